'''Operators one by one.'''
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .gates import SwiGLU
from .registry import CLASSES, DIM, TOKENS, Head, Wrapped, problem
from .vision import ViTAttention


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
