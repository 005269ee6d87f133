'''Lines that attention code is made of: each maps a module with weights and a carrying tensor of (3, 5, 12) to another.

``SNIPPETS`` must be explained right. ``CASTS`` compute in float32 inside. ``HIDDEN`` leave torch for Python or turn
gradients off, and have an equivalent written with ``detach``. ``ODD`` may be refused by name, but never be wrong.
'''
import math

import torch
import torch.nn.functional as F
from einops import einsum as named_einsum
from einops import pack, rearrange, reduce, repeat, unpack
from torch import nn

from versions import since

STEPS = torch.tensor([0, 2, 1, 4, 0])


class Host(nn.Module):
    '''Linear, the snippet beside a residual, mean over the tokens, classifier.'''
    def __init__(self, snippet):
        super().__init__()
        self.snippet = snippet
        self.fc, self.fc2, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.w, self.v = nn.Parameter(torch.randn(12, 12)), nn.Parameter(torch.randn(12))

    def forward(self, x):
        y = self.fc(x)
        return self.head((y + self.snippet(self, y)).mean(dim=1))


def build(snippet):
    '''A float64 host of ``snippet`` and a batch of three inputs.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Host(snippet).double().eval(), torch.randn(3, 5, 12, dtype=torch.float64)


def along_tokens(y):
    return STEPS[None, :, None].expand_as(y)


def add_in_place(y, number):
    y += number
    return y


def assign(y, *pairs):
    '''Write each value at its index.'''
    for index, value in pairs:
        y[index] = value
    return y


def multiply_in_place(y, other):
    y *= other
    return y


def aliases(m, y):
    z = m.fc2(y)
    view, row = z.view(3, -1), z[:, 0]
    z.mul_(2)
    row.add_(y[:, 1])
    return view.view(3, 5, 12) + row[:, None]


def halves_in_place(m, y):
    z = m.fc2(y) * 1
    left, right = z[..., :6], z[..., 6:]
    left += right
    right.mul_(0.5)
    return z


def swapped_rows(y):
    z = y.clone()
    z[:, 0], z[:, 1] = z[:, 1].clone(), z[:, 0].clone()
    return z


def heads(t, number=4):
    return rearrange(t, 'b n (h d) -> b h n d', h=number)


#: Snippets that an old torch cannot explain, nor differentiate.
NEWER = {'aminmax': since('2.12', 'before it, aminmax has no derivative')}
SNIPPETS = {
    # what follows an activation
    'activation, positional mean': lambda m, y: F.silu(y).mean(-1, keepdim=True),
    'activation, positional sum': lambda m, y: torch.relu(y).sum(1, keepdim=True),
    'activation, softmax': lambda m, y: torch.relu(y).softmax(-1) * y,
    'activation, chunk': lambda m, y: torch.cat(F.gelu(y).chunk(2, -1), -1),
    'activation, roll': lambda m, y: F.gelu(y).roll(1, 1),
    'activation, transpose': lambda m, y: F.gelu(y).transpose(1, 2).transpose(1, 2),
    'activation, pow': lambda m, y: F.gelu(y) ** 2,
    'halves of a gate less one': lambda m, y: y + (lambda s: s.chunk(2, -1)[0] + s.chunk(2, -1)[1] - 1)(
        torch.sigmoid(y)).repeat(1, 1, 2),
    'gate with others put in, less one': lambda m, y: y + ((2 * torch.sigmoid(2 * y)).masked_fill(
        torch.arange(y.shape[-1]) > 1, 1.5) - 1),
    'gate that multiplies, less one': lambda m, y: (lambda s: y * s + (2 * s - 1))(torch.sigmoid(2 * y)),
    'gate less numbers that are not equal': lambda m, y: y + (2 * torch.sigmoid(2 * y) - torch.linspace(
        1, 2, y.shape[-1]).to(y)),
    'activation + parameter': lambda m, y: F.gelu(y) * 0.5 + m.v,
    'activation / number': lambda m, y: F.gelu(y) / 2,
    'activation, cumsum': lambda m, y: F.gelu(y).cumsum(1),
    'activation, narrow': lambda m, y: F.gelu(y).narrow(1, 0, 1),
    'activation + 0': lambda m, y: F.gelu(y) + 0,
    'activation - number': lambda m, y: (F.elu(y) - 1) * y,
    'number - tanh': lambda m, y: (1 - torch.tanh(y)) * y,
    'activation += number': lambda m, y: add_in_place(torch.relu(y), 1) * y,
    'activation add_ number': lambda m, y: torch.relu(y).add_(1) * y,
    'activation * number + number': lambda m, y: (torch.relu(y) * 2 + 1) * y,
    'activation re-indexed + number': lambda m, y: (torch.relu(y)[:, None].squeeze(1) + 1) * y,
    'activation, in-place products': lambda m, y: F.gelu(y).mul_(y).add_(m.v),
    # tanh and erf as gates
    'tanh times tensor': lambda m, y: torch.tanh(y) * y,
    'tanh re-indexed times tensor': lambda m, y: torch.tanh(y.mean(-1)).unsqueeze(-1) * y,
    'tanh times parameter': lambda m, y: torch.tanh(y) * m.v,
    'erf times tensor': lambda m, y: torch.erf(y) * y,
    'times tanh in place': lambda m, y: multiply_in_place(m.fc2(y), torch.tanh(y)),
    # activations and gates
    'abs': lambda m, y: y.abs() * 0.3,
    'relu6, hardtanh': lambda m, y: F.relu6(y) + F.hardtanh(y),
    'logsigmoid': lambda m, y: F.logsigmoid(y) * m.fc2(y),
    'sin, atan, sinh': lambda m, y: torch.sin(y) + torch.atan(y) + torch.sinh(y),
    'cos': lambda m, y: torch.cos(y) * y,
    'log, log1p': lambda m, y: torch.log(y.abs() + 1) * y + torch.log1p(y.abs()),
    '2 ** x, exp2': lambda m, y: 2 ** y * y + torch.exp2(y) * y,
    'sign, floor, round, heaviside': lambda m, y: (
        torch.sign(y) * y + torch.floor(y) * y + torch.round(y) * y + (y // 1.) * y
        + torch.heaviside(y, torch.zeros((), dtype=y.dtype)) * y),
    'mask by comparison': lambda m, y: y * (y > 0) + y * (y < 0.5).to(y.dtype),
    'softmin, special': lambda m, y: F.softmin(y, -1) * y + torch.special.softmax(y, -1) * y + torch.special.expit(y),
    'logsumexp': lambda m, y: y.logsumexp(1, keepdim=True) * y,
    'inplace exp, sigmoid': lambda m, y: y.clone().exp_() * y + y.clone().sigmoid_() * y,
    # selections
    'clamp, clip': lambda m, y: y.clamp(-0.5, 0.5) + torch.clip(y, 0.1, 0.9) + y.clamp(min=0.1),
    'clamp by tensor': lambda m, y: torch.clamp(y, min=m.v),
    'maximum, minimum, fmax': lambda m, y: (
        torch.maximum(y, m.fc2(y)) + torch.minimum(y, m.v) + torch.max(y, m.fc2(y)) + torch.fmax(y, m.fc2(y))),
    'where': lambda m, y: torch.where(y > 0, y, 0.3) + torch.where(y > 0, y * 2, m.fc2(y)) + y.where(y > 0, m.v),
    'masked_scatter': lambda m, y: torch.zeros_like(y).masked_scatter(y > 0, y[y > 0]) + y.masked_scatter(
        y > 0, m.fc2(y)),
    'amin, median, kthvalue': lambda m, y: (
        y.amin(1, keepdim=True) + y.median(dim=1, keepdim=True)[0] + y.kthvalue(2, dim=1, keepdim=True)[0]),
    'aminmax': lambda m, y: torch.aminmax(y, dim=1, keepdim=True)[0] * 2 + torch.aminmax(y, dim=1, keepdim=True)[1],
    'sort, topk, argsort': lambda m, y: (
        torch.sort(y, dim=1, descending=True)[0] + y.topk(2, dim=1)[0].sum(1, keepdim=True)
        + torch.take_along_dim(y, y.argsort(1), 1) + y.gather(1, y.argmax(1, keepdim=True))),
    # re-indexing
    'index_copy, index_fill, index_add': lambda m, y: (
        y.index_copy(1, STEPS[:2], m.fc2(y)[:, :2]) + y.index_fill(1, STEPS[:2], 0.5)
        + y.index_add(1, STEPS, m.fc2(y), alpha=0.5)),
    'scatter, scatter_add': lambda m, y: (
        torch.zeros_like(y).scatter(1, STEPS[:4][None, :, None].expand(3, 4, 12), y[:, :4])
        + torch.zeros_like(y).scatter_add(1, along_tokens(y), y)
        + m.fc2(y).scatter_(1, torch.zeros(3, 1, 12, dtype=torch.long), 0.4)),
    'index_put of parameters': lambda m, y: y.index_put((torch.arange(3), torch.tensor([1, 2, 2])), m.v),
    'diagonal_scatter': lambda m, y: torch.diagonal_scatter(
        y[:, :, :5], torch.zeros(3, 5, dtype=y.dtype), 0, 1, 2).sum(-1, keepdim=True),
    'unfold, as_strided': lambda m, y: y.unfold(1, 3, 1).mean(-1).mean(1, keepdim=True) + y.as_strided(
        (3, 5, 12), (60, 12, 1)),
    'expand_as, broadcast_to, tile': lambda m, y: (
        y[:, :1].expand_as(y) + torch.broadcast_to(y[:, :1], y.shape) + y[:, :1].tile(1, 5, 1)),
    'rot90, flips': lambda m, y: torch.rot90(y, 2, (1, 2)) + torch.fliplr(y) + torch.atleast_3d(y).flip((1, 2)),
    'stacks': lambda m, y: (
        torch.dstack((y, y)).unflatten(-1, (2, 12)).sum(2) + torch.vstack((y, y))[3:]
        + torch.column_stack((y, y))[:, :5]),
    'splits': lambda m, y: torch.cat(torch.tensor_split(y, 3, dim=-1), -1) + torch.cat(torch.hsplit(y, [2]), 1),
    'iteration': lambda m, y: sum(t.unsqueeze(1) for t in y.unbind(1)) + torch.stack([row * 1.5 for row in y]),
    'pad modes': lambda m, y: (
        F.pad(y, (2, 2), mode='reflect')[..., 2:-2] + F.pad(y, (2, 2), mode='circular')[..., :12]
        + F.pad(y, (2, 2), mode='replicate')[..., :12] + F.pad(y, (2, 2), value=0.4)[..., :12]),
    'pixel shuffles': lambda m, y: (
        F.pixel_unshuffle(y[:, :4, :][:, None], 2).reshape(3, 4, 12).sum(1, keepdim=True)
        + F.channel_shuffle(y[:, :4, :, None], 2)[..., 0].sum(1, keepdim=True)),
    'einops reduce': lambda m, y: (
        reduce(y, 'b n d -> b 1 d', 'mean') + reduce(y, 'b n d -> b 1 d', 'max') + reduce(y, 'b n d -> b n 1', 'sum')),
    'einops einsum, pack, repeat': lambda m, y: (
        named_einsum(y, m.w, 'b n d, d e -> b n e') + repeat(y, 'b n d -> b (n r) d', r=2)[:, ::2]
        + unpack(pack([y, m.fc2(y)], 'b * d')[0], [(5,), (5,)], 'b * d')[0]),
    'eval dropouts': lambda m, y: F.alpha_dropout(y, 0.5, False) + F.dropout1d(y, 0.5, False) + F.feature_alpha_dropout(
        y, 0.5, False),
    'identities': lambda m, y: F.dropout(y.contiguous().to(y.dtype).type_as(y).clone(), 0.5, False).view_as(y),
    'transposes in place': lambda m, y: y.clone().transpose_(1, 2).transpose_(1, 2).unsqueeze_(1).squeeze_(1),
    'shapes as numbers': lambda m, y: y * len(y) / y.size(-1) / y.shape[1] * y.dim() + y.new_full((1,), y.numel()),
    # normalizers
    'x / norm': lambda m, y: (
        y / y.norm(dim=-1, keepdim=True) + y / torch.linalg.norm(y, dim=-1, keepdim=True)
        + y / torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min(1e-6)),
    'var_mean': lambda m, y: (lambda var, mean: (y - mean) * torch.rsqrt(var + 1e-5))(
        *torch.var_mean(y, dim=-1, keepdim=True)),
    'std_mean': lambda m, y: (lambda std, mean: (y - mean) / (std + 1e-5))(
        *torch.std_mean(y, dim=-1, keepdim=True)),
    'rms by ** -0.5, square, product': lambda m, y: (
        y * (y.pow(2).mean(-1, keepdim=True) + 1e-6) ** -0.5 + y * torch.rsqrt(torch.square(y).mean(-1, keepdim=True))
        + y * torch.rsqrt((y * y).mean(-1, keepdim=True)) + y * (y * y).sum(-1, keepdim=True).sqrt().reciprocal()),
    'norm in place': lambda m, y: (y - y.mean(-1, keepdim=True)).div_(y.std(-1, keepdim=True)),
    'weight norm': lambda m, y: F.linear(y, F.normalize(m.w, dim=-1), bias=m.v),
    'cosine gate': lambda m, y: F.cosine_similarity(y, m.fc2(y), dim=-1)[..., None] * y,
    # products
    'lerp': lambda m, y: torch.lerp(y, m.fc2(y), torch.sigmoid(y)) + torch.lerp(y, m.fc2(y), 0.3),
    'lerp by a carrying weight': lambda m, y: torch.lerp(y, m.fc2(y), y),
    'addcmul': lambda m, y: torch.addcmul(y, m.fc2(y), y, value=0.2),
    'bilinear': lambda m, y: F.bilinear(y, m.fc2(y), m.w.reshape(1, 12, 12)),
    'inner, cross, kron': lambda m, y: torch.inner(y, m.w) + torch.linalg.cross(
        y[..., :3], m.fc2(y)[..., :3]).sum(-1, keepdim=True) + torch.kron(y[:, :1].contiguous(), y.new_ones(1, 5, 1)),
    'dot by rows': lambda m, y: torch.stack([torch.dot(row[0], m.v) for row in y])[:, None, None],
    'prod': lambda m, y: y[..., :3].prod(-1, keepdim=True) + y[:, :2].prod(dim=1, keepdim=True),
    'matmul of views': lambda m, y: (y[:, None].transpose(2, 3) @ y[:, None])[:, 0].sum(1, keepdim=True) * 0.05,
    'conv1d': lambda m, y: F.conv1d(y.transpose(1, 2), m.w[:, :, None], m.v).transpose(1, 2),
    'dynamic conv': lambda m, y: F.conv1d(
        y.reshape(1, -1, 12), y.mean(-1).softmax(-1).reshape(15, 1, 1), groups=15).reshape(3, 5, 12),
    'linear with carrying weight': lambda m, y: torch.stack(
        [F.linear(row, row) for row in y]).sum(-1, keepdim=True) * 0.1,
    'einsum forms': lambda m, y: (
        torch.einsum('bii->b', y[:, :5, :5])[:, None, None] + torch.einsum('bij->bj', y)[:, None]
        + torch.einsum('bnd,de,ef->bnf', y, m.w, m.w) + torch.einsum(y, [0, 1, 2], m.w, [2, 3], [0, 1, 3])),
    'embedding': lambda m, y: F.embedding(torch.arange(5), m.w)[None] * y,
    'pools': lambda m, y: (
        F.avg_pool1d(y, 3, 1, 1) + F.max_pool1d(y, 3, 1, 1) + F.adaptive_avg_pool1d(y, 6).repeat(1, 1, 2)
        + F.interpolate(y, scale_factor=2.)[..., :12]),
    'grid_sample': lambda m, y: F.grid_sample(
        y[:, None], F.affine_grid(torch.eye(2, 3, dtype=y.dtype)[None].expand(3, -1, -1) * 0.5, [3, 1, 5, 12],
                                  align_corners=False), align_corners=False)[:, 0],
    'outer sum and difference': lambda m, y: (y[:, :, None] + y[:, None]).sum(2) + torch.softmax(
        -(y[:, :, None] - y[:, None]).pow(2).sum(-1), -1) @ y + torch.softmax(-torch.cdist(y, y), -1) @ y,
    # recurrent networks
    'lstm': lambda m, y: torch.lstm(
        y, (y.new_zeros(1, 3, 3), y.new_ones(1, 3, 3)), [m.w, m.w[:, :3], m.v, m.v], True, 1, 0., False, False,
        True)[0].mean(-1, keepdim=True),
    'lstm, two layers, both directions, without biases': lambda m, y: torch.lstm(
        y, (y.new_zeros(4, 3, 3), y.new_zeros(4, 3, 3)), [m.w, m.w[:, :3]] * 2 + [m.w[:, :6], m.w[:, :3]] * 2, False,
        2, 0., False, True, True)[0].mean(-1, keepdim=True),
    'states of a projected lstm': lambda m, y: sum(torch.lstm(
        y.transpose(0, 1), (y.new_zeros(1, 3, 2), y.new_zeros(1, 3, 3)), [m.w, m.w[:, :2], m.v, m.v, m.w[:2, :3]], True,
        1, 0., False, False, False)[i][0].mean(-1, keepdim=True)[:, None] for i in (1, 2)),
    'gru': lambda m, y: torch.gru(
        y, y.new_ones(2, 3, 4), [m.w, m.w[:, :4], m.v, m.v] * 2, True, 1, 0., False, True, True)[0].mean(
            -1, keepdim=True),
    'rnn_tanh, rnn_relu': lambda m, y: sum(rnn(
        y, y.new_zeros(1, 3, 12), [m.w, m.w * 0.1, m.v, m.v], True, 1, 0., False, False, True)[0]
        for rnn in (torch.rnn_tanh, torch.rnn_relu)),
    'cells': lambda m, y: torch.stack([
        torch.lstm_cell(row, (row[:, :3], row[:, 3:6]), m.w, m.w[:, :3], m.v, m.v)[1].mean(-1, keepdim=True)
        + torch.gru_cell(row, row[:, :4], m.w, m.w[:, :4]).mean(-1, keepdim=True)
        + torch.rnn_tanh_cell(row, row, m.w, m.w) + torch.rnn_relu_cell(row, row, m.w, m.w) for row in y]),
    # what is linear in one operand, and whose other operand is a gate
    'solve': lambda m, y: torch.linalg.solve(y[:, :, :5] + 3 * torch.eye(5).to(y), y) + torch.linalg.solve_triangular(
        y[:, :, :5] + 9 * torch.eye(5).to(y), y, upper=True),
    'inverse': lambda m, y: torch.linalg.inv(y[:, :, :5] + 3 * torch.eye(5).to(y)) @ y,
    'threshold': lambda m, y: F.threshold(y, 0.1, 0.) + F.threshold(y, -0.2, 0.7) + F.threshold(y * 1, 0., 0.3, True),
    'renorm': lambda m, y: torch.renorm(y, 2, 1, 1.5),
    'copysign, i1': lambda m, y: torch.copysign(y, m.v) + torch.special.i1(y) * 0.1,
    'cumprod': lambda m, y: y[..., :3].cumprod(-1).sum(-1, keepdim=True),
    # attention
    'alibi, -inf': lambda m, y: (y @ y.mT + torch.arange(5) * -0.1).masked_fill(
        torch.ones(5, 5).triu(1).bool(), float('-inf')).softmax(-1) @ y,
    'where mask': lambda m, y: torch.where(torch.ones(5, 5).tril().bool(), y @ y.mT, -1e9).softmax(-1) @ y,
    'additive -inf mask': lambda m, y: (y @ y.mT + torch.full((5, 5), float('-inf')).triu(1)).softmax(-1) @ y,
    'temperature': lambda m, y: ((y @ y.mT) / m.v[0].exp()).softmax(-1) @ y,
    'relu attention': lambda m, y: (torch.relu(y @ y.mT) / 5) @ y,
    'normalized relu attention': lambda m, y: (lambda a: a / (a.sum(-1, keepdim=True) + 1e-6))(
        torch.relu(y @ y.mT)) @ y,
    'sigmoid attention': lambda m, y: torch.sigmoid(y @ y.mT - math.log(5)) @ y,
    'softmax plus one': lambda m, y: (lambda e: e / (1 + e.sum(-1, keepdim=True)))((y @ y.mT).exp()) @ y,
    'unnormalized linear attention': lambda m, y: y @ (y.mT @ y) * 0.01,
    'decay': lambda m, y: torch.exp(-F.softplus(m.fc2(y)).cumsum(1)) * y,
    'grouped queries': lambda m, y: F.scaled_dot_product_attention(
        heads(y), heads(y[..., :6], 2), heads(y[..., 6:], 2), enable_gqa=True).transpose(1, 2).flatten(2),
    'carrying mask of sdpa': lambda m, y: F.scaled_dot_product_attention(y, y, y, attn_mask=y @ y.mT),
    'result not used': lambda m, y: (y @ y.mT, y)[1],
    # Fourier and complex
    'complex parts': lambda m, y: torch.complex(y, m.fc2(y)).real + torch.fft.fft(y).imag * 0.1,
    'complex magnitude': lambda m, y: torch.fft.fft(y).abs() * 0.1,
    'power spectrum': lambda m, y: (torch.fft.fft(y) * torch.conj(torch.fft.fft(y))).real * 0.01,
    'Fourier filter': lambda m, y: torch.fft.ifft(torch.fft.fft(y, dim=1) * torch.exp(1j * m.v), dim=1).real,
    'Fourier convolution': lambda m, y: torch.fft.irfft(
        torch.fft.rfft(y, n=16) * torch.fft.rfft(m.fc2(y), n=16), n=16)[..., :12],
    'fft2, fftshift': lambda m, y: torch.fft.fft2(y).real * 0.1 + torch.fft.fftshift(y, dim=-1),
    # in place, views, aliases
    'aliases': aliases,
    'halves in place': halves_in_place,
    'rows swapped': lambda m, y: swapped_rows(y),
    'assigned by mask': lambda m, y: assign(torch.zeros_like(y), (y > 0, y[y > 0])),
    'assigned by slices': lambda m, y: assign(
        y.new_zeros(3, 5, 12), ((..., slice(0, None, 2)), y[..., 1::2]), ((slice(None), None, 0, 1), 3.)),
    'number assigned in a view': lambda m, y: (lambda z: (assign(z.transpose(1, 2), ((slice(None), 3), 0.7)), z)[1])(
        y.clone()),
    'number assigned in a view of a view': lambda m, y: (lambda z: (assign(z[:, 1:][:, :, :4], ((..., 2), 0.7)), z)[1])(
        y.clone()),
    'fill_ of a view': lambda m, y: (lambda z: (z.transpose(1, 2)[:, 3].fill_(0.7), z)[1])(y.clone()),
    'masked_fill_ of a view': lambda m, y: (lambda z: (z[:, 1:].masked_fill_(z[:, 1:] > 0, 0.7), z)[1])(y.clone()),
    'zero_ of a view': lambda m, y: (lambda z: (z[:, 1].zero_(), z)[1])(y.clone()),
    'copied into empty': lambda m, y: torch.empty_like(y).copy_(y) + torch.empty_like(y)[:].copy_(m.fc2(y)),
    'constant += tensor': lambda m, y: torch.ones(3, 5, 12, dtype=y.dtype).add_(y),
    'arithmetic in place': lambda m, y: y.clone().neg_().add_(3).sub_(1).mul_(2).div_(3).pow_(2),
    'detached': lambda m, y: y.detach() * y,
}

CASTS = {
    'to float and back': lambda m, y: y.float().double() + y.to(torch.float32).to(y),
    'scores in float32': lambda m, y: (y @ y.mT).float().softmax(-1).to(y) @ y,
}


def without_grad(function):
    with torch.no_grad():
        return function()


def largest_of_places(x, index, src):
    '''The elementwise maximum of `x` and what an index of tokens puts there.'''
    columns = [torch.stack([x[:, i], *(src[:, j] for j in range(5) if index[j] == i)]).amax(0) for i in range(5)]
    return torch.stack(columns, 1)


# Functions that the replica does not know, each beside the same written with others.
WRITTEN_OUT = {
    'gate in place, doubled in place': (lambda m, y: y * (2 * y).sigmoid_().mul_(2),
                                        lambda m, y: y * (2 * torch.sigmoid(2 * y))),
    'gate in place by a flag, less what it is at zero': (
        lambda m, y: y + (F.hardsigmoid(2 * y, inplace=True) - .5), lambda m, y: y + (F.hardsigmoid(2 * y) - .5)),
    'gate in place by its position, less what it is at zero': (
        lambda m, y: y + (F.hardsigmoid(2 * y, True) - .5), lambda m, y: y + (F.hardsigmoid(2 * y) - .5)),
    'scatter_reduce sum': (lambda m, y: y.scatter_reduce(1, along_tokens(y), m.fc2(y), 'sum'),
                           lambda m, y: y.scatter_add(1, along_tokens(y), m.fc2(y))),
    'scatter_reduce mean': (
        lambda m, y: m.w[:5].expand(3, 5, 12).scatter_reduce(1, along_tokens(y), y, 'mean', include_self=False),
        lambda m, y: torch.stack([(y[:, 0] + y[:, 4]) / 2, y[:, 2], y[:, 1], m.w[3].expand(3, 12), y[:, 3]], 1)),
    'scatter_reduce amax': (
        lambda m, y: torch.scatter_reduce(y, 1, along_tokens(y), m.fc2(y), 'amax'),
        lambda m, y: largest_of_places(y, STEPS, m.fc2(y))),
    'scatter_reduce_ amin': (
        lambda m, y: m.fc2(y).scatter_reduce_(1, along_tokens(y), y, reduce='amin', include_self=True),
        lambda m, y: -largest_of_places(-m.fc2(y), STEPS, -y)),
    'scatter_reduce with ties': (
        lambda m, y: y.scatter_reduce(1, torch.arange(5)[None, :, None].expand_as(y), y, 'amax'), lambda m, y: y * 1.),
    'index_reduce': (lambda m, y: torch.index_reduce(y, 1, STEPS, m.fc2(y), 'amax'),
                     lambda m, y: largest_of_places(y, STEPS, m.fc2(y))),
    'quantile': (lambda m, y: y.quantile(.4, dim=1, keepdim=True) + torch.quantile(y, .125, dim=1, keepdim=True),
                 lambda m, y: (lambda z: 0.4 * z[:, 1:2] + .6 * z[:, 1:2] + (z[:, :1] + z[:, 1:2]) / 2
                               + .6 * (z[:, 2:3] - z[:, 1:2]))(y.sort(dim=1)[0])),
}

HIDDEN = {
    'item': (lambda m, y: y * y.abs().max().item(), lambda m, y: y * y.abs().max().detach()),
    'float': (lambda m, y: y * float(y.detach().std()), lambda m, y: y * y.std().detach()),
    'data': (lambda m, y: y.data * y + y.data, lambda m, y: y.detach() * y + y.detach()),
    'tolist': (lambda m, y: y * y.detach().tolist()[0][0][0], lambda m, y: y * y.detach()[0, 0, 0]),
    'numpy': (lambda m, y: y * torch.from_numpy(y.detach().numpy()), lambda m, y: y * y.detach()),
    'one_hot': (lambda m, y: F.one_hot(y.argmax(-1), 12).to(y.dtype) @ m.w * y,
                lambda m, y: (y.argmax(-1, keepdim=True) == torch.arange(12)).to(y.dtype) @ m.w * y),
    'no_grad': (lambda m, y: without_grad(lambda: torch.softmax(y @ y.mT, -1)) @ y,
                lambda m, y: torch.softmax(y @ y.mT, -1).detach() @ y),
}

ODD = {
    'scatter_reduce prod': lambda m, y: torch.ones_like(y).scatter_reduce(1, along_tokens(y), y, 'prod'),
    'scatter twice': lambda m, y: torch.zeros_like(y).scatter(1, along_tokens(y), y),
    'setitem twice': lambda m, y: assign(m.fc2(y), ((slice(None), [0, 0]), y[:, :2])),
    'index_put twice': lambda m, y: m.fc2(y).index_put((torch.tensor([1, 1]),), y[:2]),
    'index_copy twice': lambda m, y: m.fc2(y).index_copy(1, torch.tensor([1, 1]), y[:, :2]),
    'put twice': lambda m, y: m.fc2(y).put(torch.tensor([7, -173]), y[0, 0, :2]),
    'frac': lambda m, y: y.frac(),
    'remainder': lambda m, y: y % 1.0,
    'fmod': lambda m, y: torch.fmod(y, 1.),
    'lp_pool1d': lambda m, y: F.lp_pool1d(y.abs(), 2., 3, 1).mean(-1, keepdim=True),
    'matrix_exp': lambda m, y: torch.linalg.matrix_exp(y[:, :5, :5]).mean(-1, keepdim=True),
    'pinverse|pinv': lambda m, y: torch.linalg.pinv(y).mT,
    'sqrt': lambda m, y: torch.sqrt(y.abs()),
    'vmap|AddBackward': lambda m, y: torch.vmap(lambda t: t * 2 + t.flip(0))(y),
    'hfft': lambda m, y: torch.fft.hfft(y.to(torch.complex128)).real[..., :12] * 0.1,
    'float_power': lambda m, y: torch.float_power(y, 2) * 0.1,
    'pow': lambda m, y: y.abs() ** m.v.abs(),
    'pow of a 0-dim tensor': lambda m, y: y ** torch.tensor(3., dtype=torch.float64) * 0.1,
    'local_response_norm': lambda m, y: F.local_response_norm(y, 2),
}
