'''Multi-head attention from scratch.'''
import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import einsum, nn

from .registry import DIM, TOKENS, Head, Wrapped, problem


@problem('einsum_causal')
class EinsumCausal(Wrapped):
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.queries, self.keys, self.values = (nn.Linear(DIM // heads, DIM // heads) for _ in range(3))
        self.fc_out = nn.Linear(DIM, DIM)

    def mix(self, x):
        n, length, _ = x.shape
        split = x.reshape(n, length, self.heads, -1)
        values, keys, queries = self.values(split), self.keys(split), self.queries(split)
        energy = torch.einsum('nqhd,nkhd->nhqk', [queries, keys])
        mask = torch.tril(torch.ones(length, length)).expand(n, 1, length, length)
        energy = energy.masked_fill(mask == 0, float('-inf'))
        attention = torch.softmax(energy / (DIM ** (1 / 2)), dim=3)
        out = torch.einsum('nhql,nlhd->nqhd', [attention, values]).reshape(n, length, -1)
        return self.fc_out(out)


@problem('qkv_unbind')
class QKVUnbind(Wrapped):
    '''In the manner of timm.'''
    def __init__(self, heads=2):
        super().__init__()
        self.num_heads, self.scale = heads, (DIM // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.attn_drop = nn.Dropout(0.1)
        self.gamma = nn.Parameter(torch.full((DIM,), 0.5))

    def mix(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        q = q * self.scale
        attn = (q @ k.transpose(-2, -1)).softmax(dim=-1)
        x = self.attn_drop(attn) @ v
        return self.gamma * self.proj(x.transpose(1, 2).reshape(B, N, C))


@problem('talking_heads')
class TalkingHeads(Wrapped):
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, 2 * DIM, bias=False)
        self.mix_pre = nn.Parameter(torch.randn(heads, heads))
        self.mix_post = nn.Parameter(torch.randn(heads, heads))
        self.to_out = nn.Linear(DIM, DIM)

    def mix(self, x):
        qkv = (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), qkv)
        dots = einsum('b h i d, b h j d -> b h i j', q, k) * 0.4
        dots = einsum('b h i j, h g -> b g i j', dots, self.mix_pre)
        attn = einsum('b h i j, h g -> b g i j', dots.softmax(dim=-1), self.mix_post)
        out = einsum('b h i j, b h j d -> b h i d', attn, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


@problem('cross_latents')
class CrossLatents(nn.Module):
    '''Learned queries read the tokens (Perceiver): the scores carry relevance through the keys only.'''
    def __init__(self, latents=4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, DIM))
        self.q, self.kv, self.head = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * DIM), Head()

    def forward(self, x):
        latents = repeat(self.latents, 'n d -> b n d', b=x.shape[0])
        k, v = self.kv(x).split(DIM, dim=-1)
        attn = torch.bmm(self.q(latents), k.transpose(1, 2)).div(math.sqrt(DIM)).softmax(-1)
        return self.head(latents + torch.bmm(attn, v))


@problem('multi_query')
class MultiQuery(Wrapped):
    '''One key and value head for all (expand), grouped keys by repeat_interleave, T5's table of biases.'''
    def __init__(self, heads=4):
        super().__init__()
        self.heads, self.d = heads, DIM // heads
        self.q, self.kv, self.gkv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * self.d), nn.Linear(DIM, 4 * self.d)
        self.bias = nn.Embedding(2 * TOKENS, heads)

    def attend(self, q, k, v):
        step = torch.arange(TOKENS, device=q.device)
        bias = self.bias(step[None, :] - step[:, None] + TOKENS).permute(2, 0, 1).unsqueeze(0)
        scores = torch.matmul(q, k.mT) / self.d ** 0.5
        scores += bias
        return torch.matmul(F.softmax(scores.to(q.dtype), dim=-1, dtype=q.dtype), v)

    def mix(self, x):
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, self.d).transpose(1, 2)
        k, v = self.kv(x).unsqueeze(1).expand(-1, self.heads, -1, -1).chunk(2, -1)
        out = self.attend(q, k, v)
        gk, gv = self.gkv(x).view(b, n, 2, 2, self.d).unbind(2)
        gk, gv = (t.transpose(1, 2).repeat_interleave(self.heads // 2, dim=1) for t in (gk, gv))
        out = out + self.attend(q, gk, gv)
        return out.transpose(1, 2).contiguous().view(b, n, -1)
