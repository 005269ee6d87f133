'''Pasted attention code: small modules written the way people write them, one problem each, nothing of the package.

``PROBLEMS`` maps a name to a class and its input shape (without the batch). ``build(name)`` gives a float64 model in
eval mode, its weights moved away from their initialisation (so no bias is zero), and a batch of three inputs.
'''
import math
from collections import namedtuple
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import einsum, nn

Problem = namedtuple('Problem', ['cls', 'shape'])
PROBLEMS = {}
BATCH = 3
TOKENS, DIM, CLASSES = 6, 12, 5


def problem(name, shape=(TOKENS, DIM)):
    '''Enter a module class as the problem ``name`` with inputs of ``shape``.'''
    def enter(cls):
        assert name not in PROBLEMS
        PROBLEMS[name] = Problem(cls, shape)
        return cls
    return enter


def perturb(model, seed):
    '''Move every parameter and every running statistic of ``model`` away from where it was initialised.'''
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor, scale):
        return scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for param in model.parameters():
            param += noise(param, 0.3 if param.ndim <= 1 else 0.08)
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer += noise(buffer, 0.3)
            if name.endswith('running_var'):
                buffer.copy_((0.5 + noise(buffer, 0.5).abs()))


def build(name, batch=BATCH, seed=0):
    '''The float64 model of problem ``name`` in eval mode and a batch of inputs, one pixel of each exactly 0.'''
    cls, shape = PROBLEMS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls().double().eval()
        input = torch.randn(batch, *shape, dtype=torch.float64)
    input.view(batch, -1)[:, 3] = 0.
    perturb(model, seed + 1)
    return model, input


class Head(nn.Module):
    '''Mean over the tokens and a linear classifier.'''
    def __init__(self, dim=DIM, classes=CLASSES):
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x):
        return self.fc(x.mean(dim=1))


class Wrapped(nn.Module):
    '''Linear embedding, what the subclass does in ``mix`` and the residual around it, head.'''
    def __init__(self, dim=DIM):
        super().__init__()
        self.embed = nn.Linear(DIM, dim)
        self.head = Head(dim)

    def mix(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.mix(x))


# linear attention of the Zennit issue

class LinearAttention(nn.Module):
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.scale = dim_head**-0.5
        self.heads = heads
        hidden_dim = dim_head * heads
        self.to_qkv = nn.Conv2d(dim, hidden_dim * 3, 1, bias=False)

        self.to_out = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1),
                                    nn.GroupNorm(1, dim))

    def forward(self, x):
        b, c, h, w = x.shape
        qkv = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = map(
            lambda t: rearrange(t, "b (h c) x y -> b h c (x y)", h=self.heads), qkv
        )

        q = q.softmax(dim=-2)
        k = k.softmax(dim=-1)

        q = q * self.scale
        context = torch.einsum("b h d n, b h e n -> b h d e", k, v)

        out = torch.einsum("b h d e, b h d n -> b h e n", context, q)
        out = rearrange(out, "b h c (x y) -> b (h c) x y", h=self.heads, x=h, y=w)
        return self.to_out(out)


@problem('linear_attention_cnn', (3, 8, 8))
class LinearAttentionCNN(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.GroupNorm(2, dim), nn.GELU(), nn.AvgPool2d(2))
        self.attn = LinearAttention(dim, heads=2, dim_head=4)
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)
        self.act = nn.SiLU()
        self.fc = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.attn(x)
        x = self.act(self.conv(x))
        return self.fc(rearrange(x, 'b c h w -> b c (h w)').mean(-1))


# vision transformers in the manner of lucidrains

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


# multi-head attention from scratch

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


# weights and blocks used more than once

@problem('block_in_a_loop')
class BlockInALoop(nn.Module):
    '''One transformer block run three times (ALBERT).'''
    def __init__(self):
        super().__init__()
        self.attn, self.ff = ViTAttention(DIM), FeedForward(DIM, 2 * DIM)
        self.head = Head()

    def forward(self, x):
        for _ in range(3):
            x = self.attn(x) + x
            x = self.ff(x) + x
        return self.head(x)


@problem('shared_weights')
class SharedWeights(nn.Module):
    '''One Linear, one norm and one activation called at several places; a tied head by ``x @ W.t()``.'''
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.act = nn.Linear(DIM, DIM), nn.LayerNorm(DIM), nn.ReLU()
        self.embed = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, x):
        x = self.act(self.fc(self.norm(x)))
        y = self.act(self.fc(self.norm(x)) + F.linear(x, self.fc.weight.t()))
        return self.norm(self.fc(x) + self.fc(y)).mean(1) @ self.embed.t()


@problem('chunked_feed_forward')
class ChunkedFeedForward(Wrapped):
    '''One module called on several chunks of the sequence.'''
    def __init__(self):
        super().__init__()
        self.ff = FeedForward(DIM, 2 * DIM)

    def mix(self, x):
        return torch.cat([self.ff(chunk) for chunk in x.chunk(3, dim=1)], dim=1)


# hand-written normalizers

class ScaleShift(nn.Module):
    def __init__(self, dim=DIM, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.g, self.b = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))


class VarNorm(ScaleShift):
    def forward(self, x):
        var = torch.var(x, dim=-1, unbiased=False, keepdim=True)
        mean = torch.mean(x, dim=-1, keepdim=True)
        return (x - mean) * (var + self.eps).rsqrt() * self.g + self.b


class SqrtNorm(ScaleShift):
    def forward(self, x):
        mu = x.mean(-1, keepdim=True)
        s = (x - mu).pow(2).mean(-1, keepdim=True)
        return self.g * ((x - mu) / torch.sqrt(s + self.eps)) + self.b


class StdNorm(ScaleShift):
    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.g * (x - mean) / (std + self.eps) + self.b


class PowRMSNorm(ScaleShift):
    def forward(self, x):
        return self.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class NormRMSNorm(ScaleShift):
    def forward(self, x):
        return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5).clamp(min=self.eps) * self.g


@problem('handwritten_norms')
class HandwrittenNorms(Wrapped):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(cls() for cls in (VarNorm, SqrtNorm, StdNorm, PowRMSNorm, NormRMSNorm))
        self.fcs = nn.ModuleList(nn.Linear(DIM, DIM) for _ in self.norms)

    def mix(self, x):
        for norm, fc in zip(self.norms, self.fcs):
            x = x + F.relu(fc(norm(x)))
        return x


@problem('library_norms')
class LibraryNorms(Wrapped):
    def __init__(self):
        super().__init__()
        self.rms, self.ln = nn.RMSNorm(DIM), nn.LayerNorm(DIM, elementwise_affine=False)
        self.w, self.b = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.zeros(DIM))
        self.fc = nn.Linear(DIM, DIM)

    def mix(self, x):
        y = F.gelu(self.fc(self.rms(x)))
        y = y + F.rms_norm(x, (DIM,)) + F.layer_norm(x, (DIM,), weight=self.w, bias=self.b)
        return self.ln(y) + F.normalize(y, dim=-1) + F.normalize(self.fc(y), p=1.0, dim=1)


@problem('conv_norms', (4, 6, 6))
class ConvNorms(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(4, dim, 3), nn.BatchNorm2d(dim)
        self.gn, self.inorm = nn.GroupNorm(4, dim), nn.InstanceNorm2d(dim, affine=True)
        self.conv2, self.bn1 = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim)
        self.fc = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        x = x + F.silu(self.gn(self.conv2(x)))
        x = x + self.inorm(x)
        x = F.group_norm(x, 2) + F.instance_norm(x)
        return self.fc(self.bn1(x.flatten(2)).mean(-1))


# hand-written activations and gates

def tanh_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def erf_gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class HandSwish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@problem('handwritten_gelu')
class HandwrittenGELU(Wrapped):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(DIM, DIM) for _ in range(3))
        self.act = HandSwish()

    def mix(self, x):
        x = x + erf_gelu(self.fc1(x))
        x = x + tanh_gelu(self.fc2(x))
        return self.act(self.fc3(x))


@problem('swiglu')
class SwiGLU(Wrapped):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(DIM, 16), nn.Linear(16, DIM), nn.Linear(DIM, 16)

    def mix(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@problem('glu_variants')
class GLUVariants(Wrapped):
    '''GEGLU by chunk, F.glu, a bilinear unit, squared ReLU and a plain square.'''
    def __init__(self):
        super().__init__()
        self.proj, self.out = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def mix(self, x):
        a, gate = self.proj(x).chunk(2, dim=-1)
        y = a * F.gelu(gate) + F.glu(self.proj(x), dim=-1) + a.mul(gate)
        return self.out(y) + F.relu(a) ** 2 + torch.square(gate) * 0.1 + gate * gate


@problem('gated_attention')
class GatedAttention(Wrapped):
    '''Sigmoid gates on the output of the heads (AlphaFold), squeeze-and-excite on the channels.'''
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.gating, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.squeeze, self.excite = nn.Linear(DIM, 4), nn.Linear(4, DIM)

    def mix(self, x):
        q, k, v = rearrange(self.to_qkv(x), 'b n (three h d) -> three b h n d', three=3, h=self.heads)
        attn = (q @ k.transpose(-1, -2)).softmax(-1)
        out = rearrange(attn @ v, 'b h n d -> b n (h d)')
        out = self.to_out(out * self.gating(x).sigmoid())
        return out * torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean(1))))).unsqueeze(1)


@problem('recurrent_gates')
class RecurrentGates(Wrapped):
    '''GRU-style cell in a loop, WaveNet's tanh * sigmoid, tanh on the stream and tanh as a gate.'''
    def __init__(self):
        super().__init__()
        self.z, self.r, self.n = (nn.Linear(2 * DIM, DIM) for _ in range(3))
        self.f, self.g, self.t = (nn.Linear(DIM, DIM) for _ in range(3))

    def mix(self, x):
        h, states = x.new_zeros(x.shape[0], DIM), []
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], dim=-1)
            z, r = torch.sigmoid(self.z(both)), self.r(both).sigmoid()
            n = torch.tanh(self.n(torch.cat([x[:, t], r * h], dim=-1)))
            h = (1 - z) * n + z * h
            states.append(h)
        y = torch.stack(states, dim=1)
        y = y + torch.tanh(self.f(y)) * torch.sigmoid(self.g(y))
        return y * torch.tanh(self.t(x)) + torch.tanh(y)


@problem('activations')
class Activations(Wrapped):
    names = ('relu', 'leaky_relu', 'elu', 'selu', 'celu', 'silu', 'gelu', 'mish', 'hardswish', 'softsign', 'tanh',
             'tanhshrink')

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(len(self.names) + 4))
        self.prelu, self.tanh_gelu = nn.PReLU(DIM), nn.GELU(approximate='tanh')

    def mix(self, x):
        for name, fc in zip(self.names, self.fcs):
            x = x + getattr(F, name)(fc(x))
        x = x + self.prelu(self.fcs[-1](x).transpose(1, 2)).transpose(1, 2) + self.tanh_gelu(self.fcs[-2](x))
        x = x + x.abs().clamp(max=2.0) + F.softplus(self.fcs[-3](x)) * x
        return x + torch.relu(x) + F.hardsigmoid(self.fcs[-4](x)) * x


@problem('inplace_activations', (4, 6, 6))
class InplaceActivations(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, dim, 3), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, 1),
                                 nn.BatchNorm2d(dim), nn.SiLU(inplace=True))
        self.conv, self.fc = nn.Conv2d(dim, dim, 1), nn.Linear(dim, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.net(x)
        x = self.relu(self.conv(x) + x)
        y = self.conv(x)
        y.relu_()
        y = F.relu_(y + x) * 0.9 + self.fc.weight.mean()
        F.leaky_relu(y, 0.2, inplace=True)
        return self.fc(y.mean(dim=(2, 3)))


# linear attention, causal products, fast weights

def orthogonal_features(rows, cols):
    blocks = [torch.linalg.qr(torch.randn(cols, cols))[0] for _ in range(-(-rows // cols))]
    return torch.cat(blocks)[:rows] * math.sqrt(cols)


def softmax_features(data, projection, is_query, eps=1e-4):
    normalizer, ratio = data.shape[-1] ** -0.25, projection.shape[0] ** -0.5
    projection = projection.type_as(data).expand(*data.shape[:2], -1, -1)
    dash = torch.einsum('...id,...jd->...ij', normalizer * data, projection)
    diag = (torch.sum(data ** 2, dim=-1) / 2.0 * normalizer ** 2).unsqueeze(dim=-1)
    dims = (-1,) if is_query else (-1, -2)
    return ratio * (torch.exp(dash - diag - torch.amax(dash, dim=dims, keepdim=True).detach()) + eps)


@problem('favor_performer')
class FavorPerformer(nn.Module):
    '''Non-causal FAVOR+ blocks, ReZero and a generalized (ReLU) kernel in the second.'''
    def __init__(self, heads=3, features=8):
        super().__init__()
        self.heads = heads
        self.qkvs = nn.ModuleList(nn.Linear(DIM, 3 * DIM) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.rezero = nn.Parameter(torch.tensor(0.3))
        self.register_buffer('projection_matrix', orthogonal_features(features, DIM // heads))
        self.kernel_fn, self.head = nn.ReLU(), Head()

    def features(self, t, is_query, generalized):
        if not generalized:
            return softmax_features(t, self.projection_matrix, is_query)
        return self.kernel_fn(torch.einsum('bhnd,md->bhnm', t, self.projection_matrix)) + 1e-3

    def attend(self, q, k, v):
        d_inv = 1. / torch.einsum('...nd,...d->...n', q, k.sum(dim=-2).type_as(q))
        context = torch.einsum('...nd,...ne->...de', k, v)
        return torch.einsum('...de,...nd,...n->...ne', context, q, d_inv)

    def forward(self, x):
        for index, (qkv, out) in enumerate(zip(self.qkvs, self.outs)):
            q, k, v = rearrange(qkv(x), 'b n (s h d) -> s b h n d', s=3, h=self.heads)
            q, k = self.features(q, True, index == 1), self.features(k, False, index == 1)
            x = x + out(rearrange(self.attend(q, k, v), 'b h n d -> b n (h d)')) * self.rezero
        return self.head(x)


@problem('elu_linear_attention')
class EluLinearAttention(Wrapped):
    '''Feature map elu + 1, non-causal, key mask (Katharopoulos).'''
    def __init__(self, heads=3):
        super().__init__()
        self.heads, self.eps = heads, 1e-6
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))

    def mix(self, x):
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        k = k * (torch.arange(TOKENS) < TOKENS - 1).to(k)[None, :, None, None]
        kv = torch.einsum('nshd,nshm->nhmd', k, v)
        z = 1 / (torch.einsum('nlhd,nhd->nlh', q, k.sum(dim=1)) + self.eps)
        return torch.einsum('nlhd,nhmd,nlh->nlhm', q, kv, z).contiguous().flatten(2)


@problem('cumsum_linear_attention')
class CumsumLinearAttention(Wrapped):
    def __init__(self, heads=2):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM)

    def mix(self, x):
        q, k, v = rearrange(self.to_qkv(x), 'b n (s h d) -> s b h n d', s=3, h=self.heads)
        q, k = q.softmax(dim=-1), torch.exp(k)
        d_inv = 1. / torch.einsum('...nd,...nd->...n', q, k.cumsum(dim=-2) + 1e-6)
        context = torch.einsum('...nd,...ne->...nde', k, v).cumsum(dim=-3)
        out = torch.einsum('...nde,...nd,...n->...ne', context, q, d_inv)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


@problem('fast_weights')
class FastWeights(Wrapped):
    '''The delta rule, one step a token; keys and queries behind elu + 1 and a sum, beta behind a sigmoid.'''
    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.d = heads, DIM // heads
        self.query, self.key, self.value = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.interpolation_weight = nn.Sequential(nn.Linear(DIM, heads), nn.Sigmoid())
        self.output = nn.Linear(DIM, DIM)

    def phi(self, t):
        t = F.elu(t.view(*t.shape[:-1], self.heads, self.d)) + 1.0
        return t / t.sum(dim=-1, keepdim=True)

    def mix(self, x):
        q, k = self.phi(self.query(x)), self.phi(self.key(x))
        v = self.value(x).view(*x.shape[:-1], self.heads, self.d)
        beta = self.interpolation_weight(x)
        weights, outputs = q.new_zeros((q.shape[0], self.heads, self.d, self.d)), []
        for i in range(x.shape[1]):
            value_existing = torch.einsum('bhvk,bhk->bhv', weights, k[:, i])
            weights = weights + torch.einsum('bhv,bhk->bhvk', beta[:, i, :, None] * (v[:, i] - value_existing), k[:, i])
            outputs.append(torch.einsum('bhvk,bhk->bhv', weights, q[:, i]))
        return self.output(torch.stack(outputs, dim=1).reshape(*x.shape[:2], -1))


@problem('delta_net')
class DeltaNet(Wrapped):
    '''The delta rule with keys that carry relevance: normalized SiLU, the uniform rule at every product.'''
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, 4) for _ in range(3))
        self.o = nn.Linear(4, DIM)

    def mix(self, x):
        q, k = F.silu(self.q(x)), F.normalize(F.silu(self.k(x)), p=2, dim=-1)
        v, state, outputs = self.v(x), torch.zeros(x.shape[0], 4, 4, dtype=x.dtype), []
        for t in range(3):
            error = v[:, t] - (state @ k[:, t].unsqueeze(-1)).squeeze(-1)
            state = state + error.unsqueeze(-1) * k[:, t].unsqueeze(-2)
            outputs += [torch.matmul(state, q[:, t, :, None])[..., 0]]
        return self.o(torch.stack(outputs, 1).repeat(1, 2, 1))


@problem('retention')
class Retention(Wrapped):
    '''A recurrent state with a decay, written into a preallocated output by slices.'''
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, 4, bias=False) for _ in range(3))
        self.o, self.norm = nn.Linear(4, DIM), nn.GroupNorm(1, DIM)

    def mix(self, x):
        q, k, v = self.q(x).softmax(-1), torch.sigmoid(self.k(x)), self.v(x)
        state, out = 0, torch.empty_like(v)
        for t in range(x.size(1)):
            state = 0.9 * state + k[:, t, :, None] * v[:, t, None, :]
            out[:, t] = torch.einsum('bk,bkv->bv', q[:, t], state)
        return self.norm(self.o(out).transpose(-1, -2)).transpose(-1, -2)


@problem('xcit')
class CrossCovariance(Wrapped):
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.temperature = nn.Linear(DIM, 3 * DIM), nn.Parameter(torch.ones(heads, 1, 1))
        self.to_out = nn.Linear(DIM, DIM)

    def mix(self, x):
        q, k, v = rearrange(self.to_qkv(x), 'b n (s h d) -> s b h d n', s=3, h=self.heads)
        q, k = map(lambda t: F.normalize(t, dim=-1, p=2), (q, k))
        attn = (einsum('b h i n, b h j n -> b h i j', q, k) * self.temperature.exp()).softmax(dim=-1)
        return self.to_out(rearrange(einsum('b h i j, b h j n -> b h i n', attn, v), 'b h d n -> b n (h d)'))


# torch's own attention

@problem('nn_multihead_attention')
class NNMultihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(DIM, 3, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(DIM, 2, kdim=8, vdim=8, dropout=0.1)
        self.fc, self.head = nn.Linear(DIM, 8), Head()

    def forward(self, x):
        x = x + self.self_attn(x, x, x)[0]
        y = x.transpose(0, 1)
        memory = self.fc(y)
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        y = y + self.cross_attn(y, memory, memory, need_weights=False, attn_mask=causal)[0]
        return self.head(y.transpose(0, 1))


@problem('nn_transformer_encoder')
class NNEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre = nn.TransformerEncoderLayer(DIM, 3, 16, batch_first=True, norm_first=True, activation='gelu')
        self.post = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True)
        self.head = Head()

    def forward(self, x):
        return self.head(self.post(self.pre(x)))


@problem('nn_transformer_stacks')
class NNStacks(nn.Module):
    '''Encoder with a padding mask, decoder with a causal mask, biases for keys and values, weights per head.'''
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True), 1)
        self.decoder = nn.TransformerDecoderLayer(DIM, 2, 16, batch_first=True)
        self.biased = nn.MultiheadAttention(DIM, 3, add_bias_kv=True, add_zero_attn=True, batch_first=True)
        self.head = Head()

    def forward(self, x):
        padding = (torch.arange(TOKENS) == TOKENS - 1).expand(x.shape[0], -1)
        causal = torch.full((TOKENS, TOKENS), float('-inf'), dtype=x.dtype).triu(1)
        y = self.decoder(x, self.encoder(x, src_key_padding_mask=padding), tgt_mask=causal)
        y, weights = self.biased(query=y, key=y, value=y, average_attn_weights=False)
        return self.head(y + weights.mean(1)[:, :, :TOKENS] @ x)


# windows, rotations, Fourier mixing, stems

@problem('shifted_windows', (6, 6, 4))
class ShiftedWindows(nn.Module):
    '''Swin: pad, roll, partition, a table of biases, a mask written by slices, ``F.linear`` with a child's weights.'''
    def __init__(self, dim=8, heads=2, window=4, shift=2):
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.qkv, self.proj, self.fc = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, CLASSES)
        self.heads, self.window, self.shift = heads, window, shift
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        steps = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')).flatten(1)
        offset = (steps[:, :, None] - steps[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer('index', (offset[..., 0] * (2 * window - 1) + offset[..., 1]).view(-1))

    def windows(self, x):
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window ** 2, c)

    def mask(self, x, h, w):
        img = x.new_zeros((h, w))
        cuts = ((0, -self.window), (-self.window, -self.shift), (-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, cols in enumerate(cuts):
                img[rows[0]:rows[1], cols[0]:cols[1]] = 3 * i + j
        img = self.windows(img.view(1, h, w, 1)).squeeze(-1)
        diff = img.unsqueeze(1) - img.unsqueeze(2)
        return diff.masked_fill(diff != 0, float(-100.0)).masked_fill(diff == 0, float(0.0))

    def attend(self, x, h, w):
        n, length, c = x.shape
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * (c // self.heads) ** -0.5).matmul(k.transpose(-2, -1))
        attn = attn + self.table[self.index].view(length, length, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        mask = self.mask(x, h, w)
        attn = attn.view(n // len(mask), len(mask), self.heads, length, length) + mask.unsqueeze(1).unsqueeze(0)
        attn = F.softmax(attn.view(-1, self.heads, length, length), dim=-1)
        x = attn.matmul(v).transpose(1, 2).reshape(n, length, c)
        return F.dropout(F.linear(x, self.proj.weight, self.proj.bias), p=0.1, training=self.training)

    def forward(self, x):
        x = shortcut = self.embed(x)
        b, height, width, c = x.shape
        extra = (self.window - height % self.window) % self.window
        x = F.pad(x, (0, 0, 0, extra, 0, extra))
        h, w = x.shape[1:3]
        x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attend(self.windows(x), h, w)
        x = x.view(b, h // self.window, w // self.window, self.window, self.window, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))[:, :height, :width, :].contiguous()
        return self.fc((shortcut + x).flatten(1, 2).mean(1))


@problem('local_windows')
class LocalWindows(Wrapped):
    '''Local attention that looks one window back: pad, unfold, a masked score for the padding.'''
    def __init__(self, window=2):
        super().__init__()
        self.window, self.to_qkv = window, nn.Linear(DIM, 3 * DIM)

    def mix(self, x):
        q, k, v = self.to_qkv(x).split([DIM, DIM, DIM], dim=-1)
        q = rearrange(q, 'b (w n) d -> b w n d', n=self.window)
        k, v = (F.pad(t, (0, 0, self.window, 0), value=-1.).unfold(1, 2 * self.window, self.window) for t in (k, v))
        scores = einsum('bwid,bwdj->bwij', q, k)
        scores = scores.masked_fill(torch.arange(2 * self.window) % 3 == 1, -torch.finfo(x.dtype).max)
        return einsum('bwij,bwdj->bwid', scores.softmax(-1), v).reshape(x.shape)


def rotate_half(x):
    x1, x2 = x[..., :x.shape[-1] // 2], x[..., x.shape[-1] // 2:]
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x):
    x1, x2 = rearrange(x, '... (d j) -> ... d j', j=2).unbind(dim=-1)
    return rearrange(torch.stack((-x2, x1), dim=-1), '... d j -> ... (d j)')


@problem('rotary')
class Rotary(Wrapped):
    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.d = heads, DIM // heads + DIM // heads % 2
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.register_buffer('inv_freq', 1.0 / (100 ** (torch.arange(0, self.d, 2).float() / self.d)))

    def mix(self, x):
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), self.to_qkv(x).chunk(3, dim=-1))
        freqs = torch.outer(torch.arange(x.shape[1]).type_as(self.inv_freq), self.inv_freq)
        cos, sin = torch.cat((freqs, freqs), dim=-1).cos(), torch.cat((freqs, freqs), dim=-1).sin()
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        cos, sin = (repeat(t, 'n d -> n (d j)', j=2) for t in (freqs.cos(), freqs.sin()))
        v = (v * cos) + rotate_every_two(v) * sin
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


@problem('complex_rotary')
class ComplexRotary(Wrapped):
    '''Rotary positions as complex numbers (Llama's reference code).'''
    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))

    def rotate(self, t):
        turns = torch.polar(torch.ones(TOKENS, DIM // 2, dtype=t.dtype),
                            torch.outer(torch.arange(TOKENS).to(t.dtype), torch.linspace(0.1, 1, DIM // 2).to(t.dtype)))
        pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    def mix(self, x):
        q, k, v = self.rotate(self.wq(x)), self.rotate(self.wk(x)), self.rotate(self.wv(x))
        return torch.matmul(F.softmax(q @ k.transpose(1, 2) / math.sqrt(DIM), dim=-1), v)


@problem('fnet')
class FNet(Wrapped):
    '''Fourier mixing (FNet) and a global filter with complex weights (GFNet).'''
    def __init__(self):
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.complex_weight = nn.Parameter(torch.randn(TOKENS // 2 + 1, DIM, 2) * 0.2)

    def mix(self, x):
        x = self.norm(torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real * 0.2 + x)
        y = torch.fft.rfft(x, dim=1, norm='ortho') * torch.view_as_complex(self.complex_weight)
        y = torch.fft.irfft(y, n=x.shape[1], dim=1, norm='ortho')
        return F.gelu(self.ff(y)) + torch.fft.fftn(y, dim=(1, 2)).real * 0.1


@problem('conv_stem', (3, 12, 12))
class ConvStem(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, dim, 5, stride=2, padding=2), nn.MaxPool2d(3, stride=1, padding=1)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, padding_mode='reflect')
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv1d, self.fc = nn.Conv1d(dim, dim, 3), nn.Linear(dim, CLASSES)
        self.upsample = nn.Upsample(scale_factor=1.5, mode='nearest')

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = x + F.hardswish(self.depthwise(x))
        y = F.interpolate(x, size=(9, 9), mode='bilinear', align_corners=False)
        y = F.avg_pool2d(self.up(y), 2) + self.upsample(x)
        y = y + F.conv2d(y, self.conv1.weight[:, :1].expand(-1, y.shape[1], -1, -1), padding=2, bias=self.conv1.bias)
        y = F.adaptive_avg_pool2d(y, 4) + F.adaptive_max_pool2d(y, (4, 4))
        y = self.conv1d(F.max_pool2d(y, 2).flatten(2))
        shuffled = F.pixel_shuffle(y.repeat(1, 4, 1)[:, :, :, None], 2)[..., 0]
        y = F.interpolate(y, scale_factor=2, mode='linear') + shuffled
        return self.fc(y.amax(dim=-1))


@problem('unfold_fold', (3, 8, 8))
class UnfoldFold(nn.Module):
    '''Tokens-to-token: nn.Unfold, attention over patches, F.fold back.'''
    def __init__(self):
        super().__init__()
        self.unfold, self.fc = nn.Unfold(4, stride=2, padding=1), nn.Linear(48, 48)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = self.unfold(x).transpose(1, 2)
        x = x + torch.softmax(x @ x.transpose(1, 2) * 0.1, dim=-1) @ self.fc(x)
        return self.head(F.fold(x.transpose(1, 2), (8, 8), 4, stride=2, padding=1).mean((-1, -2)))


# operators one by one

@problem('reindex_cat')
class ReindexCat(Wrapped):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(DIM, DIM), nn.Linear(2 * DIM, DIM)
        self.token = nn.Parameter(torch.randn(1, 1, DIM))

    def mix(self, x):
        y = self.fc(x)
        x = torch.cat([x, y, self.token.expand(x.shape[0], 2, -1)], dim=1)
        a, b = torch.split(x, [TOKENS, TOKENS + 2], dim=1)
        parts = torch.stack([a, b[:, 2:], a.flip(1)], dim=2).unbind(2)
        z = parts[0] + torch.repeat_interleave(parts[1][:, ::2], 2, dim=1) + parts[2].roll(1, dims=1)
        z = z.repeat(1, 1, 2).unflatten(-1, (2, DIM)).movedim(2, 0).flatten(0, 1)
        z = torch.hstack(torch.tensor_split(z, 2, dim=0)).narrow(1, 0, TOKENS)
        z = torch.concat((z, z.swapaxes(1, 2).transpose(1, 2)), -1).squeeze().reshape(-1, TOKENS, 2 * DIM)
        return self.out(z)


@problem('reindex_gather')
class ReindexGather(Wrapped):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def mix(self, x):
        y, index = self.fc(x), torch.tensor([3, 1, 0, 5, 1, 2])
        y = y + y.gather(1, index[None, :, None].expand_as(y)) + y.index_select(1, index) + y[:, index]
        y = y + torch.take_along_dim(x, index.view(1, -1, 1), dim=1)
        y = torch.where(index[None, :, None] > 2, y, x) + torch.where(y > 0, y, torch.tensor(0.2, dtype=y.dtype))
        y.masked_fill_(index.eq(5)[None, :, None], 0.3)
        y = F.pad(y, (1, 0, 0, 2), value=0.1)[:, 1:-1, 1:] + y.roll((1, 2), (1, 2))
        z = x.clone()
        z[:, [0, 2]] = y[:, 1:3]
        z[:, 4] = 1.5
        z[x > 1.2] = 0.25
        rows = torch.arange(x.shape[0])[:, None]
        z = z.index_put((rows, torch.tensor([[0, 0]])), y[:, 3:5] * 0.5, accumulate=True)
        best, _ = y.max(dim=1, keepdim=True)
        return (z + best + y.max(dim=-1)[0][..., None] + torch.maximum(x, y) + x.min(dim=1, keepdim=True).values
                + y.tril() + torch.diag_embed(torch.diagonal(y, dim1=1, dim2=2), dim1=1, dim2=2)[..., :1]
                + y.sort(dim=1)[0] + y.topk(2, dim=1).values.sum(1, keepdim=True))


@problem('addmm_baddbmm')
class AddmmBaddbmm(Wrapped):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(DIM, DIM) * 0.3), nn.Parameter(torch.zeros(DIM))
        self.w3 = nn.Parameter(torch.randn(TOKENS, DIM, DIM) * 0.3)
        self.alibi = nn.Parameter(torch.randn(1, 1, TOKENS))

    def mix(self, x):
        b, n, d = x.shape
        y = torch.addmm(self.bias, x.view(-1, d), self.weight, beta=0.5, alpha=2.0).view(b, n, d)
        y = y + torch.addmm(y.view(-1, d), x.reshape(-1, d), self.weight, beta=0.7, alpha=-0.3).view_as(y)
        scores = torch.baddbmm(self.alibi.expand(b, 1, n), x, y.transpose(1, 2), beta=0.4, alpha=0.2)
        y = torch.baddbmm(x, scores.softmax(-1), y, beta=0.6, alpha=1.5)
        y = self.bias.expand(b, n, d).baddbmm(scores, y, alpha=0.05)
        z = torch.addbmm(x[:, 0], y.transpose(0, 1), self.w3, beta=0.3, alpha=0.2)
        y = y + torch.addcmul(x, y, self.bias, value=0.3) + torch.addcdiv(x, y, self.bias.exp() + 1, value=-2)
        return y + z[:, None]


@problem('inplace_operators')
class InplaceOperators(Wrapped):
    def __init__(self):
        super().__init__()
        self.fc, self.pos = nn.Linear(DIM, DIM), nn.Parameter(torch.randn(1, TOKENS, DIM))

    def mix(self, x):
        y = self.fc(x)
        y += self.pos
        y *= 1.5
        y[:, 1:] += x[:, :-1]
        y[..., 0] *= 2.
        y -= 0.3 * x
        y /= 1.25
        first, rest = y[:, :1], y[:, 1:]
        first.mul_(0.5)
        rest.add_(x[:, 1:], alpha=0.2).sub_(self.pos[:, 1:])
        z = y.clone()
        z[:, 2] = x[:, 0] + y[:, 1]
        z.transpose(1, 2)[:, 3] = 0.7
        z.view(-1, DIM)[0::TOKENS, 1:3].copy_(x[:, 5, :2])
        z.masked_fill_(z > 2.5, 2.5).clamp_(min=-3.)
        y.neg_()
        return y + z


@problem('numbers')
class Numbers(Wrapped):
    '''Arithmetic with numbers, in every position.'''
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def mix(self, x):
        y = 3 - self.fc(x) * 2 + 0.5
        y = (y - 1.5) / 3 + 2 * x / 4
        y = torch.rsub(y, 0.7, alpha=2) + torch.add(x, 0.3, alpha=2) + torch.sub(y, x, alpha=0.5)
        y = -y + y.true_divide(2.) + torch.mul(0.1, x) + torch.lerp(x, y, 0.3)
        return y + 2. / (y * y + 1) * x + (y ** 2 + 1) ** -0.5 * x


@problem('matmul_forms')
class MatmulForms(Wrapped):
    def __init__(self):
        super().__init__()
        self.w, self.vec = nn.Parameter(torch.randn(DIM, DIM) * 0.3), nn.Parameter(torch.randn(DIM))
        self.bilinear = nn.Parameter(torch.randn(DIM, DIM) * 0.1)

    def mix(self, x):
        y = x @ self.w + (self.w @ x.mT).transpose(1, 2)
        scalars = x @ self.vec + torch.einsum('bnd,d', y, self.vec)
        y = y * scalars[..., None] + torch.einsum('bnd,bmd,de->bne', x, y, self.w)
        gram = torch.einsum('bid,bjd->bij', y, y) * 0.05
        y = torch.tensordot(gram, self.w[:TOKENS], dims=1) + y.matmul(torch.eye(DIM, dtype=x.dtype))
        y = y + torch.einsum('bnd,de,bne->bn', x, self.bilinear, y).unsqueeze(-1) * 0.1
        y = y + torch.linalg.multi_dot((x.flatten(0, 1), self.w, self.w)).view_as(x)
        return y + torch.einsum('...ij->...ji', y.permute(0, 2, 1))


@problem('mixture_of_experts')
class MixtureOfExperts(Wrapped):
    '''Top-k routing, experts over the tokens that chose them, ``index_add_`` into zeros.'''
    def __init__(self, experts=3):
        super().__init__()
        self.router = nn.Linear(DIM, experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU() for _ in range(experts))

    def mix(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.router(flat), dim=1), 2, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == index)
            out.index_add_(0, token, expert.mix(flat[token]) * weights[token, slot, None])
        return out.reshape(x.shape)


@problem('masked_pooling')
class MaskedPooling(nn.Module):
    '''Attention pooling, a masked mean, and a straight-through estimator whose detached part is a constant.'''
    def __init__(self):
        super().__init__()
        self.score, self.fc, self.out = nn.Linear(DIM, 1), nn.Linear(DIM, DIM), nn.Linear(DIM, CLASSES)

    def forward(self, x):
        y = F.relu(self.fc(x))
        hard = torch.round(y)
        y = y + (hard - y).detach()
        mask = (torch.arange(TOKENS) % 4 != 3).to(x.dtype)[None, :, None]
        pooled = (y * mask).sum(dim=1) / mask.sum(1).clamp(min=1e-9)
        weights = self.score(y).masked_fill(mask == 0, torch.finfo(y.dtype).min).softmax(1)
        return self.out(pooled + (weights * y).sum(1) + y.std(dim=1).detach())


@problem('dense_output', (TOKENS, DIM))
class DenseOutput(nn.Module):
    '''The output is a map of tokens, not logits; no head.'''
    def __init__(self):
        super().__init__()
        self.block = ViTAttention(DIM)

    def forward(self, x):
        return self.block(x) + x


@problem('closures', (TOKENS, DIM))
class Closures(nn.Module):
    '''Lambdas, a PreNorm wrapper, functools.partial, helper functions and modules in plain Python containers.'''
    class PreNorm(nn.Module):
        def __init__(self, dim, fn):
            super().__init__()
            self.norm, self.fn = nn.LayerNorm(dim), fn

        def forward(self, x, **kwargs):
            return self.fn(self.norm(x), **kwargs)

    class Lambda(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn = fn

        def forward(self, x):
            return self.fn(x)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({
            'attn': self.PreNorm(DIM, ViTAttention(DIM)),
            'shift': self.Lambda(lambda t: torch.cat((F.pad(t[..., :6], (0, 0, 1, -1)), t[..., 6:]), dim=-1)),
            'ff': self.PreNorm(DIM, nn.Sequential(
                nn.Linear(DIM, DIM), self.Lambda(partial(F.gelu, approximate='tanh')))),
        })
        self.head = Head()

    def forward(self, x):
        for name in ('attn', 'shift', 'ff'):
            x = self.blocks[name](x) + x
        return self.head(x)


@problem('three_way_einsum')
class ThreeWayEinsum(nn.Module):
    '''One einsum whose three operands all carry relevance: a third of the gradient for each.'''
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(DIM, 8) for _ in range(3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(torch.einsum('bnd,bne,bne->bd', self.a(x), self.b(x), self.c(x)))


def zero_additive(model, names=('bias', 'pos_embedding', 'cls_token')):
    '''Set every parameter that is added to the stream, known by the end of its name, to zero.'''
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(names):
                param.zero_()
    return model
