'''Linear attention, causal products, fast weights.'''
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import einsum, nn

from .registry import DIM, TOKENS, Head, Wrapped, problem


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
