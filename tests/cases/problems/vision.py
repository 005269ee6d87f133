'''Vision transformers in the manner of lucidrains, and fused attention in their place.'''
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import nn

from .registry import CLASSES, DIM, TOKENS, Wrapped, problem


def pair(t):
    return t if isinstance(t, tuple) else (t, t)


class FeedForward(nn.Module):
    def __init__(self, dim, hidden_dim, dropout=0.1):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim), nn.Dropout(dropout),
        )

    def forward(self, x):
        return self.net(x)


class ViTAttention(nn.Module):
    def __init__(self, dim, heads=2, dim_head=4, dropout=0.1):
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)
        self.to_qkv = nn.Linear(dim, inner * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))

    def forward(self, x):
        x = self.norm(x)
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), qkv)
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        attn = self.dropout(self.attend(dots))
        out = torch.matmul(attn, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


class ViT(nn.Module):
    attention = ViTAttention

    def __init__(self, pool='cls', image=8, patch=4, dim=DIM, depth=2):
        super().__init__()
        height, width = pair(patch)
        self.to_patch_embedding = nn.Sequential(
            Rearrange('b c (h p1) (w p2) -> b (h w) (p1 p2 c)', p1=height, p2=width),
            nn.LayerNorm(3 * height * width), nn.Linear(3 * height * width, dim), nn.LayerNorm(dim),
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(
            nn.ModuleList([self.attention(dim), FeedForward(dim, 2 * dim)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.pool = pool
        self.to_latent = nn.Identity()
        self.mlp_head = nn.Linear(dim, CLASSES)

    def forward(self, img):
        x = self.to_patch_embedding(img)
        b, n, _ = x.shape
        cls_tokens = repeat(self.cls_token, '1 1 d -> b 1 d', b=b)
        x = torch.cat((cls_tokens, x), dim=1)
        x += self.pos_embedding[:, :(n + 1)]
        x = self.dropout(x)
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        x = self.norm(x)
        x = x.mean(dim=1) if self.pool == 'mean' else x[:, 0]
        return self.mlp_head(self.to_latent(x))


problem('vit_cls', (3, 8, 8))(ViT)
problem('vit_mean', (3, 8, 8))(partial(ViT, pool='mean'))


class SDPAAttention(ViTAttention):
    def forward(self, x):
        q, k, v = self.to_qkv(self.norm(x)).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout.p if self.training else 0.)
        return self.to_out(out.transpose(1, 2).flatten(2))


@problem('vit_sdpa', (3, 8, 8))
class SDPAViT(ViT):
    attention = SDPAAttention


@problem('sdpa_causal_mask')
class SDPACausal(Wrapped):
    '''Keyword tensors, a boolean mask and a float mask, ``is_causal`` and a scale.'''
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))

    def mix(self, x):
        q, k, v = (rearrange(f(x), 'b n (h d) -> b h n d', h=3) for f in (self.q, self.k, self.v))
        seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=x.device).tril(1)
        bias = torch.arange(TOKENS, device=x.device, dtype=x.dtype).neg()[None, :].expand(TOKENS, -1) * 0.1
        out = F.scaled_dot_product_attention(q, key=k, value=v, attn_mask=seen)
        out = out + F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=bias, scale=0.3)
        out = out + F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return rearrange(out, 'b h n d -> b n (h d)')
