'''Random programs: a Hypothesis strategy that writes small modules, line by line, as a person might.

A program is Python source: a class whose ``forward`` is a sequence of lines over a growing pool of tensors. Each line
is one of ``LINES``, templates with slots that are filled with tensors of the pool, parameters, numbers, dimensions and
modules, some of them shared with earlier lines. A line is run when it is drawn, and left out if its shapes do not fit.
All tensors of the pool have the samples first and keep them apart. ``repr(program)`` is source to paste as a case.
'''
import contextlib
import copy
import linecache
import math
import re
import textwrap
import warnings
from itertools import count

import einops
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

BATCH = 2
WIDTH = 4
LARGEST = 256

#: Templates: ``{a}`` a tensor, ``{b}`` one that broadcasts with it, ``{s}`` one of its shape, ``{o}`` the result,
#: ``{p}`` a parameter that broadcasts, ``{n}`` a number, ``{k}`` a small one, ``{d}`` a dimension of `a`, ``{i}`` an
#: index of its dimension 1, ``{square}`` a matrix for its last dimension, the rest modules or functions.
LINES = {
    'arithmetic': '''
        {o} = {a} + {b}
        {o} = {a} - {b}
        {o} = {a} * {b}
        {o} = {n} * {a} - {b} / {k}
        {o} = {a} + {p}
        {o} = {p} - {a}
        {o} = {a} * {p}
        {o} = {a} + {n}
        {o} = {n} - {a}
        {o} = -{a}
        {o} = {a} / ({b}.abs() + {n})
        {o} = {a} / {p}.exp()
        {o} = torch.add({a}, {b}, alpha={n})
        {o} = torch.sub({b}, {a}, alpha={n})
        {o} = torch.lerp({a}, {s}, {n})
        {o} = torch.lerp({a}, {s}, torch.sigmoid({a}))
        {o} = torch.addcmul({a}, {s}, {a}, value={n})
        {o} = torch.addcdiv({a}, {s}, {p}.exp(), value={n})
        {o} = {a} ** 2
        {o} = {a}.pow(3) * {n}
        {o} = {a} * {a}
        {o} = {a} + {a}
        {o} = {a} - {a}.mean({d}, keepdim=True)
        {o} = sum([{a}, {s}, {a}])
        {o} = {a}[:, :, None] * {a}[:, None] if {a}.ndim < 4 else {a}
    ''',
    'sums': '''
        {o} = {a}.sum({d}, keepdim=True)
        {o} = {a}.mean({d}, keepdim=True)
        {o} = {a}.mean({d}) if {a}.ndim > 2 else {a}
        {o} = {a}.cumsum({d})
        {o} = {a}.diff(dim={d}, prepend=torch.zeros_like({a}.narrow({d}, 0, 1)))
        {o} = {a}.flatten(1).prod(-1, keepdim=True)
        {o} = torch.trapezoid({a}, dim={d}) if {a}.ndim > 2 else {a}
        {o} = F.avg_pool1d({a}, 2, 1, ceil_mode=True) if {a}.ndim == 3 else {a}
        {o} = reduce({a}, 'b n d -> b 1 d', 'mean')
        {o} = reduce({a}, 'b n d -> b n', 'sum')
    ''',
    'products': '''
        {o} = {a} @ {square}
        {o} = F.linear({a}, {square}, {vector})
        {o} = F.linear({a}, weight={square})
        {o} = torch.einsum('bnd,bmd->bnm', {a}, {a})
        {o} = torch.einsum('bnd,bne->bde', {a}, {s})
        {o} = torch.einsum('b...d,de->b...e', {a}, {square})
        {o} = torch.einsum('bnd,bnd->bn', {a}, {s})
        {o} = named_einsum({a}, {square}, 'b n d, d e -> b e n')
        {o} = {a} @ {s}.mT
        {o} = torch.bmm({a}, {s}.transpose(1, 2)) * {n}
        {o} = torch.matmul({a}.mT, {a})
        {o} = torch.baddbmm({a} @ {a}.mT, {a}, {s}.mT, beta={n}, alpha=0.5)
        {o} = torch.addmm({vector}, {a}, {square}) if {a}.ndim == 2 else {a}
        {o} = torch.stack([torch.outer(row, row) for row in {a}.flatten(1)[:, :3]])
        {o} = torch.stack([torch.dot(row, {vector}) for row in {a}[:, 0]])[:, None] if {a}.ndim == 3 else {a}
        {o} = torch.tensordot({a}, {square}, dims=([-1], [0]))
        {o} = F.conv1d({a}, {square}[:, :, None]) if {a}.ndim == 3 and {a}.shape[1] == {square}.shape[1] else {a}
    ''',
    'activations': '''
        {o} = {function}({a})
        {o} = {function}({a})
        {o} = {activation}({a})
        {o} = {activation}({linear}({a}))
        {o} = F.leaky_relu({a}, {n})
        {o} = F.gelu({a}, approximate='tanh')
        {o} = 0.5 * {a} * (1 + torch.tanh({n} * ({a} + 0.044715 * {a} ** 3)))
        {o} = {a} * torch.sigmoid(1.702 * {a})
        {o} = F.elu({a}) + 1
        {o} = F.softplus({a}) * {b}
        {o} = F.relu({a}).square()
        {o} = {a} * (({a} > {n}) & ({a} < 1.)).to({a}.dtype)
    ''',
    'gates': '''
        {o} = torch.sigmoid({a}) * {b}
        {o} = torch.tanh({a}) * {b}
        {o} = F.silu({linear}({a})) * {linear}({a})
        {o} = {a} * torch.exp(-{b}.abs())
        {o} = F.glu(torch.cat([{a}, {s}], -1))
        {o} = (lambda left, right: left * F.gelu(right))(*{a}.chunk(2, -1))
        {o} = {a} * torch.rsqrt({b}.square() + 1)
        {o} = torch.sigmoid({p}) * {a} + (1 - torch.sigmoid({p})) * {s}
        {o} = {a} * {s}.softmax({d})
        {o} = {a} * (1 - torch.tanh({b}))
        {o} = {a}.detach() * {b}
        {o} = {a} * {b}.detach() + {a}
        {o} = {a} * {b}.norm(dim=-1, keepdim=True)
        {o} = torch.where({a} > 0, {a}, {a}.exp() - 1)
    ''',
    'norms': '''
        {o} = {norm}({a})
        {o} = {a} + {linear}({norm}({a}))
        {o} = F.layer_norm({a}, {a}.shape[-1:], weight={vector}, bias={vector}, eps=0.01)
        {o} = F.rms_norm({a}, {a}.shape[-1:], {vector}, 0.01)
        {o} = F.group_norm({a}, 1, eps=0.1)
        {o} = F.normalize({a}, dim={d}, eps=0.01)
        {o} = ({a} - {a}.mean(-1, keepdim=True)) / ({a}.std(-1, keepdim=True) + 0.1)
        {o} = {a} * torch.rsqrt({a}.pow(2).mean(-1, keepdim=True) + 0.1) * {vector}
        {o} = ({a} - {a}.mean(-1, True)) * torch.rsqrt({a}.var(-1, unbiased=False, keepdim=True) + 0.1)
        {o} = {a} / ({a}.abs().sum({d}, keepdim=True) + 0.1)
        {o} = F.instance_norm({a}, eps=0.1) if {a}.ndim == 3 and {a}.shape[2] > 1 else {a}
        {o} = (lambda var, mean: ({a} - mean) / (var + 0.1).sqrt())(*torch.var_mean({a}, dim=-1, keepdim=True))
    ''',
    'modules': '''
        {o} = {linear}({a})
        {o} = {linear}({a})
        {o} = {linear}({linear}({a}))
        {o} = {wide}({a})
        {o} = {dropout}({activation}({linear}({a})))
        {o} = {conv}({a}.transpose(1, 2)).transpose(1, 2)
        {o} = {block}({a})
        {o} = {block}({block}({a}))
        {o} = {a} + {feedforward}({a})
        {o} = {a} + {positions}(torch.arange({a}.shape[1]))
        {o} = {softmax}({a} @ {a}.mT) @ {s}
        {o} = {multihead}({a}, {a}, {s}, need_weights=False)[0]
        {o} = {multihead}({a}, {s}, {s})[0] + {a}
        {o} = {encoder}({a})
        {o} = {pool}({a})
    ''',
    'attention': '''
        {o} = F.scaled_dot_product_attention({a}, {a}, {s})
        {o} = F.scaled_dot_product_attention({linear}({a}), {linear}({a}), {linear}({s}), is_causal=True)
        {o} = F.scaled_dot_product_attention({a}, {s}, {a}, attn_mask={mask}, scale={n})
        {o} = ({a} @ {a}.mT * {n}).softmax(-1) @ {a}
        {o} = ({a} @ {s}.mT).masked_fill(~{mask}, -torch.inf).softmax(-1) @ {a}
        {o} = ({a} @ {s}.mT).masked_fill(~{mask}, -1e9).softmax(dim=-1) @ {s}
        {o} = torch.where({mask}, {a} @ {a}.mT, -torch.inf).softmax(-1) @ {linear}({a})
        {o} = ({a} @ {a}.mT + torch.zeros(()).masked_fill(~{mask}, -torch.inf)).softmax(-1) @ {s}
        {o} = {a}.softmax(-1) @ ({s}.softmax(1).mT @ {a})
        {o} = (F.elu({a}) + 1) @ ((F.elu({s}) + 1).mT @ {linear}({a})) / {k}
        {o} = (lambda k: (k @ (k.mT @ {s})) / (k @ k.sum(1).unsqueeze(-1) + 0.5))(torch.relu({a}))
        {o} = torch.sigmoid({a} @ {a}.mT) @ {s} / {k}
        {o} = rearrange(rearrange({a}, 'b n (h d) -> b h n d', h=2).softmax(-1), 'b h n d -> b n (h d)') * {a}
        {o} = torch.einsum('bij,bjd->bid', torch.einsum('bid,bjd->bij', {a}, {a}).softmax(-1), {a})
        {o} = F.log_softmax({a}, -1).exp() * {s}
        {o} = (lambda q, k, v: (q @ k.mT).softmax(-1) @ v)(*({linear}({a}) for _ in range(3)))
        {o} = (lambda t: F.scaled_dot_product_attention(t, t, t))({a}.unflatten(-1, (2, -1)).mT).mT.flatten(2)
    ''',
    'shapes': '''
        {o} = {a}.transpose(-1, -2) if {a}.ndim > 2 else {a}
        {o} = {a}.flatten(1)
        {o} = {a}.unsqueeze({d})
        {o} = {a}.reshape({a}.shape[0], -1, 2)
        {o} = {a}[:, {i}]  if {a}.ndim > 2 else {a}
        {o} = {a}[:, :{k}]
        {o} = {a}[..., ::2]
        {o} = {a}[:, [0, {i}, {i}]]
        {o} = {a}[:, -1:].expand_as({a})
        {o} = {a}.flip({d})
        {o} = {a}.roll(1, {d})
        {o} = torch.cat([{a}, {s}], {d})
        {o} = torch.cat([{token}.expand({a}.shape[0], -1, -1), {a}], 1)
        {o} = torch.stack([{a}, {s}], 1)
        {o} = torch.stack({a}.unbind(1)[::-1], 1)
        {o} = torch.cat({a}.chunk(2, {d})[::-1], {d})
        {o} = torch.cat([part * {n} for part in {a}.split(1, {d})], {d})
        {o} = rearrange({a}, 'b n d -> b d n')
        {o} = rearrange({a}, 'b n (h d) -> (b h) n d', h=2).reshape({a}.shape)
        {o} = rearrange({a}, 'b n d -> n b d').cumsum(0).transpose(0, 1)
        {o} = repeat({a}, 'b d -> b n d', n={k})
        {o} = {a}.movedim(1, 0).contiguous().movedim(0, 1)
        {o} = F.pad({a}, (1, 0), value={n})
        {o} = F.pad({a}, (0, 0, 1, 0))[:, :-1]
        {o} = {a}.repeat_interleave(2, {d})[:, :{k}]
        {o} = {a}.unfold(1, 2, 1).mean(-1) if {a}.shape[1] > 1 else {a}
        {o} = {a}.gather({d}, {s}.argsort({d}))
        {o} = {a}.tril() if {a}.ndim > 2 else {a}
        {o} = {a}.squeeze({d})
        {o} = {a}.diagonal(dim1=-2, dim2=-1) if {a}.ndim > 2 else {a}
        {o} = {a}.flatten(0, 1).mul({n}).unflatten(0, ({a}.shape[0], -1))
        {o} = torch.index_select({a}, 1, torch.tensor([{i}, 0]))
        {o} = {a}.new_zeros({a}.shape).scatter_add(1, torch.zeros_like({a}, dtype=torch.long), {a})
        {o} = {a}.view({a}.shape[0], -1).view_as({a}) if {a}.is_contiguous() else {a}
    ''',
    'selections': '''
        {o} = {a}.max({d}, keepdim=True)[0]
        {o} = {a}.amax({d}, keepdim=True)
        {o} = {a}.sort({d})[0]
        {o} = {a}.topk(1, dim={d})[0]
        {o} = {a}.clamp(min={n})
        {o} = {a}.clamp(-0.5, 0.5) + {a}
        {o} = torch.maximum({a}, {b})
        {o} = torch.minimum({a}, {p})
        {o} = torch.where({a} > {n}, {a}, {s})
        {o} = torch.where({s} > 0, {a}, {n})
        {o} = torch.where({a} > 0, {a}, {p})
        {o} = {a}.masked_fill({a} < 0, {n})
        {o} = {a}.masked_fill({s} > 0, 0.)
        {o} = {a} * ({a}.argmax(-1, keepdim=True) == torch.arange({a}.shape[-1]))
        {o} = F.max_pool1d({a}, 2, 1, 1) if {a}.ndim == 3 else {a}
        {o} = {a}.median({d}, keepdim=True).values
        {o} = {a} * F.dropout(torch.ones_like({a}), 0.5, training=False)
        {o} = {a}.take_along_dim({a}.abs().argmax({d}, keepdim=True), {d})
    ''',
    'Fourier': '''
        {o} = torch.fft.fft({a}, dim={d}).real
        {o} = torch.fft.fft2({a}).real if {a}.ndim > 2 else {a}
        {o} = torch.fft.irfft(torch.fft.rfft({a}, dim=-1) * {n}, n={a}.shape[-1], dim=-1)
        {o} = torch.fft.irfft(torch.fft.rfft({a}, n=8) * torch.fft.rfft({s}, n=8), n=8)[..., :{a}.shape[-1]]
        {o} = torch.view_as_real(torch.fft.fft({a}, dim={d})).sum(-1)
        {o} = torch.view_as_real(torch.view_as_complex({a}.unflatten(-1, (-1, 2)).contiguous()) * 1j).flatten(-2)
        {o} = torch.complex({a}, {s}).conj().imag
        {o} = torch.fft.fft({a}, dim={d}).abs() * 0.5
    ''',
    'casts': '''
        {o} = {a}.float().double()
        {o} = {a}.bfloat16().double()
        {o} = F.gelu({a}.float()).to({a})
        {o} = ({a}.float() @ {s}.float().mT).softmax(-1).to({a}.dtype) @ {s}
        {o} = ({a} @ {s}.mT).float().softmax(-1).to({a}.dtype) @ {s}
        {o} = F.layer_norm({a}.float(), {a}.shape[-1:]).type_as({a})
        {o} = {a}.half().add(1).double()
        {o} = ({a}.to(torch.float32) * {s}.to(torch.float32)).to(torch.float64)
        {o} = {a} * torch.rsqrt({a}.float().pow(2).mean(-1, keepdim=True) + 0.1).to({a}.dtype)
    ''',
}
#: Templates of several lines.
BLOCKS = {
    'in place': '''
        {o} = {a}.clone()
        {o}[:, {i}] = {n}

        {o} = {a}.clone()
        {o}[:, {i}] = {s}[:, 0]

        {o} = {a}.clone()
        {o}[..., :2] *= {n}

        {o} = {a}.clone()
        {o}[:, 0].add_({o}[:, -1])

        {o} = {a} * 1
        {o} += {b}

        {o} = {a} + 0
        {o} *= {b}

        {o} = {a}.clone()
        {o} -= {s}
        {o} /= {k}

        {o} = {a}.clone().masked_fill_({s} > {n}, {n})

        {o} = {a}.clone()
        {o}[{s} > {n}] = {n}

        {o} = {a}.clone()
        {o}[{a} > 0] = {s}[{a} > 0]

        {o} = {a}.clone()
        {o}.transpose(0, 1)[0].copy_({s}.transpose(0, 1)[-1])

        {o} = torch.empty_like({a})
        {o}.copy_({s})

        {o} = torch.zeros_like({a})
        {o}[:, :{k}] = {a}[:, :{k}]

        {o} = {a}.new_ones({a}.shape)
        {o} += {s}

        {o} = {a}.clone()
        {o}.index_put_((torch.arange(len({o})), torch.full((len({o}),), {i})), {s}[:, 0])

        {o} = {a}.clone()
        {o}.index_put_((torch.arange(len({o})), torch.full((len({o}),), {i})), {s}[:, 0], accumulate=True)

        {o} = {a}.clone()
        {o}.index_add_(1, torch.tensor([{i}, 0]), {s}[:, :2])

        {o} = {a}.clone()
        left, right = {o}.chunk(2, -1)
        left += right

        {o} = {a}.clone()
        view = {o}.transpose(1, -1)[:, 0]
        view.mul_({n}).add_(1)

        {o} = {a}.clone()
        view = {o}[:, 1:]
        view[..., 0] = {n}
        view.masked_fill_(view > 0, {n})

        {o} = {linear}({a})
        view = {o}.flatten(1)
        {o}.mul_({n})
        {o} = {o} + view.view_as({o})

        {o} = {linear}({a}).relu_()

        {o} = F.gelu({a}).mul_({b})

        {o} = {a}.clone().sigmoid_() * {s}

        {o} = {a}.clone().clamp_(min={n})

        {o} = {a} * 1
        {o}.neg_().add_({b}).div_({k})

        {o} = {a}.clone()
        {o}.unbind(1)[0].zero_()

        {o} = {a}.clone()
        for row in {o}.unflatten(1, (-1, 1)).transpose(0, 1):
            row.add_({n})

        {o} = {a}.clone()
        {o}.add_({o}, alpha={n})

        {o} = F.relu({a} * {n}, inplace=True)

        {o} = {a}.clone()
        {o}[:, 0], {o}[:, -1] = {o}[:, -1].clone(), {o}[:, 0].clone()

        {o} = {a}.clone()
        {o}[:, {i}] += {o}[:, 0] * {n}

        {o} = {a}.clone()
        {o}.tanh_().mul_({s})

        {o} = {a}.clone()
        {o}.squeeze_().unsqueeze_(1)

        {o} = {linear}({a}).zero_()
        {o}[:, {i}].add_({s}[:, 0])

        {o} = {linear}({a}).fill_({n})
        {o}[..., :2].copy_({s}[..., :2])
        {o} = {o} * {b}

        {o} = {a}.clone()
        view = {o}.flatten(1)
        {o}.sigmoid_()
        {o} = view.view_as({o}) * {b}

        {o} = {linear}({a})
        {o}[..., :2].exp_()
        {o} = {o} * {s}

        {o} = {a}.clone()
        view = {o}[:, {i}]
        view.sigmoid_()
        {o}[:, 0].add_({s}[:, -1])
        {o} = {o} * {b}

        {o} = {a}.clone()
        {o}[:] = {o}.softmax(-1)
        {o} = {o} @ {s}.mT

        left, right = torch.cat([torch.sigmoid({a}), {s}], -1).chunk(2, -1)
        {o} = left * right

        {o} = torch.where({a} > {n}, {s}, {k}.) * {b}

        {o} = F.pad({a}[..., 1:], (1, 0), value={n}).neg() * {s}

        {a}.mul_({n})
        {o} = {a}

        {a}[:, {i}] = {n}
        {o} = {a}

        {a}.add_({b})
        {o} = {a} * 1
    ''',
    'loops': '''
        state, outs = torch.zeros_like({a}[:, 0]), []
        for step in {a}.unbind(1):
            state = state * {n} + step
            outs.append(state)
        {o} = torch.stack(outs, 1)

        state, outs = torch.zeros_like({a}[:, 0]), []
        for step, gate in zip({a}.unbind(1), torch.sigmoid({s}).unbind(1)):
            state = gate * state + (1 - gate) * step
            outs.append(state)
        {o} = torch.stack(outs, 1)

        memory, outs = 0, []
        for index in range({a}.shape[1]):
            memory = memory + {a}[:, index, :, None].softmax(1) * {s}[:, index, None]
            outs.append(torch.einsum('bde,bd->be', memory, {a}[:, index].softmax(-1)))
        {o} = torch.stack(outs, dim=1)

        {o} = torch.zeros_like({a})
        for index in range({a}.shape[1]):
            {o}[:, index] = {a}[:, :index + 1].mean(1) + {n}

        {o} = {a}
        for _ in range({k}):
            {o} = {o} + {activation}({linear}({o}))

        {o} = {a}
        for _ in range({k}):
            {o} = {norm}({o} + {block}({o}))

        {o} = {a}
        for _ in range(2):
            {o} = {block}({norm}({o}))

        hidden = torch.zeros_like({a}[:, 0])
        for step in {a}.transpose(0, 1):
            hidden = torch.tanh({linear}(step) + {linear}(hidden))
        {o} = hidden

        total = 0.
        for weight in ({n}, {n}):
            total = total + {linear}({a}) * weight
        {o} = total

        {o} = {a}
        for module in ({linear}, {activation}, {linear}):
            {o} = module({o})
    ''',
    'hidden': '''
        with torch.no_grad():
            weights = {function}({a}).softmax(-1)
        {o} = weights * {s}

        with torch.no_grad():
            scale = {linear}({a}).abs().mean(-1, keepdim=True) + 1
        {o} = {a} / scale

        with torch.no_grad():
            other = {a} @ {s}.mT
        {o} = other.softmax(-1) @ {a}

        fixed = {a}.detach()
        {o} = {linear}({a} - fixed) + {b}

        fixed = {a}.detach().clone()
        fixed[:, {i}] = 0
        {o} = fixed * {s} + {a}

        if {a}.requires_grad:
            {o} = {a} * {n}
        else:
            {o} = {a} * {n}
    ''',
}
FUNCTIONS = ('F.relu F.gelu F.silu F.elu F.mish F.hardswish torch.tanh torch.erf torch.abs torch.atan torch.sin '
             'torch.square F.softsign F.relu6 F.softplus torch.sigmoid torch.exp torch.cos F.logsigmoid F.selu '
             'F.tanhshrink').split()
NUMBERS = ('0.5', '-0.7', '1.5', '0.25', '-1.', '2')
NAMES = {'torch': torch, 'nn': nn, 'F': F, 'math': math, 'rearrange': einops.rearrange, 'reduce': einops.reduce,
         'repeat': einops.repeat, 'named_einsum': einops.einsum}


class Block(nn.Module):
    '''Attention and a gated feed-forward layer with code of their own.'''
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        weights = torch.softmax(q[..., None] * k[..., None, :], dim=-1)
        return x + self.out(torch.einsum('...de,...e->...d', weights, v)) * self.scale


class FeedForward(nn.Module):
    '''Modules in a ``Sequential``, with a residual by the caller.'''
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 6), nn.GELU(), nn.Dropout(.1), nn.Linear(6, width))

    def forward(self, x):
        return self.net(x)


class RMSNorm(nn.Module):
    '''A norm by hand.'''
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + .1))


NAMES |= {'Block': Block, 'FeedForward': FeedForward, 'RMSNorm': RMSNorm}
#: What a slot for a module may hold, as source; ``w`` is the width of the tensor it is called with.
MODULES = {
    'linear': ['nn.Linear({w}, {w})', 'nn.Linear({w}, {w})', 'nn.Linear({w}, {w}, bias=False)'],
    'wide': ['nn.Linear({w}, 6)', 'nn.Linear({w}, 3)',
             'nn.Sequential(nn.Linear({w}, 5), nn.ReLU(), nn.Linear(5, {w}))'],
    'activation': ['nn.ReLU()', 'nn.GELU()', 'nn.SiLU()', 'nn.Tanh()',
                   'nn.LeakyReLU(.2)', 'nn.ELU()', 'nn.Identity()'],
    'dropout': ['nn.Dropout(.5)', 'nn.Dropout(0.)'],
    'norm': ['nn.LayerNorm({w}, eps=.1)', 'nn.RMSNorm({w}, eps=.1)', 'RMSNorm({w})'],
    'conv': ['nn.Conv1d({w}, {w}, 1)', 'nn.Conv1d({w}, {w}, 3, padding=1)', 'nn.Conv1d({w}, 2, 1)',
             'nn.Conv1d({w}, {w}, 3, padding=1, groups={w})', 'nn.ConvTranspose1d({w}, 3, 1)',
             'nn.Sequential(nn.Conv1d({w}, {w}, 1), nn.BatchNorm1d({w}), nn.ReLU())'],
    'block': ['Block({w})'],
    'feedforward': ['FeedForward({w})'],
    'positions': ['nn.Embedding(9, {w})'],
    'softmax': ['nn.Softmax(dim=-1)', 'nn.Softmax(dim=1)'],
    'multihead': ['nn.MultiheadAttention({w}, 1, batch_first=True)',
                  'nn.MultiheadAttention({w}, 1, bias=False, batch_first=True)'],
    'encoder': ['nn.TransformerEncoderLayer({w}, 1, 5, batch_first=True)',
                'nn.TransformerEncoderLayer({w}, 1, 5, batch_first=True, norm_first=True)'],
    'pool': ['nn.AvgPool1d(2, 1)', 'nn.MaxPool1d(2, 1)', 'nn.AdaptiveAvgPool1d(2)'],
}
RULES = {
    'dense': ('Epsilon()', 'Epsilon(.25)', 'Gamma()', 'Gamma(.1)', 'ZPlus()', 'AlphaBeta(2., 1.)'),
    'first': ('Flat()', 'WSquare()', 'ZBox(-3., 3.)', 'Epsilon()', 'ZPlus()'),
    'same': ('Pass()', 'Norm()'),
}
SAME_SHAPE = r'nn\.(ReLU|GELU|SiLU|Tanh|LeakyReLU|ELU|Identity|Dropout|LayerNorm)'
_numbers = count()


def templates():
    '''All templates, as pairs of their group and their source.'''
    single = [(group, line.strip()) for group, lines in LINES.items() for line in lines.strip().splitlines()]
    blocks = [(group, textwrap.dedent(block).strip('\n')) for group, text in BLOCKS.items()
              for block in textwrap.dedent(text).strip('\n').split('\n\n')]
    return single + blocks


TEMPLATES = templates()


class Program:
    '''A module as source, with the rules of a composite.

    Parameters
    ----------
    members: dict of str to str
        The source of each attribute.
    lines: list of str
        The body of ``forward`` before it returns.
    kept: list of str
        The names whose tensors are read at the end.
    shape: tuple of int
        The shape of the input.
    rules: dict of str to str, optional
        The rule of each module or operator module by name, as source.
    zeros: bool, optional
        Whether the input has entries that are exactly 0.
    '''
    def __init__(self, members, lines, kept, shape, rules=None, zeros=False):
        self.members, self.lines, self.kept, self.shape = members, lines, kept, shape
        self.rules, self.zeros = rules or {}, zeros

    def source(self, visible=False):
        '''The class; ``visible`` detaches what is computed under ``torch.no_grad``, which a replica cannot see.'''
        members = ''.join(f'\n        self.{name} = {value}' for name, value in self.members.items())
        lines = [visibly(line) for line in self.lines] if visible else self.lines
        body = textwrap.indent('\n'.join(lines), ' ' * 8)
        kept = ', '.join(f'{name}.flatten(1)' for name in self.kept)
        return (f'class Program(nn.Module):\n    def __init__(self):\n        super().__init__(){members}\n\n'
                f'    def forward(self, x):\n{body}\n        return self.head(torch.cat([{kept}], 1))\n')

    def __repr__(self):
        zeros = ' with zeros' if self.zeros else ''
        return f'\n{self.source()}\n# input of shape {self.shape}{zeros}, rules {self.rules}\n'

    def build(self, visible=False):
        '''The model, with weights that depend on nothing but their order and shapes.'''
        source = self.source(visible)
        name = f'<program {next(_numbers)}>'
        linecache.cache[name] = len(source), None, source.splitlines(True), name
        namespace = dict(NAMES)
        exec(compile(source, name, 'exec'), namespace)
        with torch.random.fork_rng(devices=[]):
            return initialized(namespace['Program']())

    def input(self):
        return values(self.shape, self.zeros)

    @property
    def precision(self):
        '''The coarsest type that it computes with.'''
        source = self.source()
        if 'bfloat16' in source or 'half()' in source:
            return torch.bfloat16
        return torch.float32 if re.search(r'\.float\(\)|float32', source) else torch.float64


class Pasted:
    '''A module that a program has shrunk to, with what `Program` has; ``visible`` is its equivalent for the replica.'''
    def __init__(self, module, shape, rules=None, zeros=False, visible=None):
        self.module, self.shape, self.rules, self.zeros = module, shape, rules or {}, zeros
        self.visible, self.precision = visible or module, torch.float64

    def build(self, visible=False):
        with torch.random.fork_rng(devices=[]):
            return initialized(self.visible() if visible else self.module())

    def input(self):
        return values(self.shape, self.zeros)


def values(shape, zeros=False):
    '''Numbers of an input, a third of them exactly 0 if asked for.'''
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-2.9, 2.9)
    return x.masked_fill(torch.rand(shape, generator=generator) < .3, 0.) if zeros else x


def visibly(block):
    '''A block whose results under ``torch.no_grad`` are detached by name.'''
    return re.sub(r'(with torch.no_grad\(\):\n    )(\w+) = (.*)', r'\1\2 = \3\n\2 = \2.detach()', block)


def initialized(model):
    '''The model in float64 with random parameters, biases included.'''
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * .6)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_var.abs_().add_(.5)
    return model


class Writer:
    '''Draws lines and runs them.'''
    def __init__(self, draw, shape):
        self.draw, self.shape = draw, shape
        self.self, self.members, self.lines = nn.Module(), {}, []
        self.env = {**NAMES, 'self': self.self, 'x': values(shape)}
        self.alone = {**self.env, 'x': self.env['x'][:1]}
        self.pool = ['x']

    def member(self, source):
        '''The name of an attribute, of an earlier line's or a new one.'''
        same = [name for name, value in self.members.items() if value == source]
        if same and (len(same) > 2 or self.draw(st.booleans())):
            return f'self.{self.draw(st.sampled_from(same))}'
        name = f'm{len(self.members)}'
        self.members[name] = source
        with torch.random.fork_rng(devices=[]):
            setattr(self.self, name, eval(source, NAMES))
        initialized(self.self if isinstance(getattr(self.self, name), nn.Parameter) else getattr(self.self, name))
        return f'self.{name}'

    def add(self, group, template):
        '''Fill in a template and run it; leave it out if it does not fit.'''
        slots = dict.fromkeys(re.findall(r'{(\w+)}', template))
        a = self.draw(st.sampled_from(self.pool))
        if re.match(r'\{a\}(\.\w+_\(|\[[^]]*\] = )', template) and a == 'x':
            return
        members = dict(self.members)
        names = {slot: self.fill(slot, a) for slot in slots}
        if None not in names.values():
            name = names['o'] = f't{len(self.lines)}'
            block = template.format(**names)
            if self.runs(block, name):
                self.lines.append(block)
                self.pool.append(name)
                return
        for name in self.members.keys() - members.keys():
            delattr(self.self, name)
        self.members = members

    def runs(self, block, name):
        '''Whether a block runs, on a batch and on its first sample alone, with the same result for that.'''
        envs = copied(self.env), copied(self.alone)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                for env in envs:
                    exec(block, env)
            except Exception:  # whatever does not fit, torch and einops have many words for it
                return False
        result, alone = (env[name] for env in envs)
        fits = result.dtype == torch.float64 and 2 <= result.ndim <= 4 and result.shape[0] == BATCH and (
            0 < result.numel() <= LARGEST) and bool(result.isfinite().all()) and bool(result.abs().max() < 100) and (
            result[:1].shape == alone.shape) and torch.allclose(result[:1], alone, rtol=1e-3, atol=1e-3)
        if fits:
            self.env, self.alone = envs
        return fits

    def fill(self, slot, a):
        tensor = self.env[a]
        sizes = {name: self.env[name].shape for name in self.pool}
        width = tensor.shape[-1]
        if slot == 'a':
            return a
        if slot == 'o':
            return ''
        if slot == 's':
            return self.draw(st.sampled_from([name for name in self.pool if sizes[name] == tensor.shape]))
        if slot == 'b':
            return self.draw(st.sampled_from([name for name in self.pool if broadcast(sizes[name], tensor.shape)]))
        if slot == 'n':
            return self.draw(st.sampled_from(NUMBERS))
        if slot == 'k':
            return str(self.draw(st.integers(1, 3)))
        if slot == 'd':
            return str(self.draw(st.sampled_from([*range(1, tensor.ndim), -1])))
        if slot == 'i':
            return str(self.draw(st.integers(0, tensor.shape[1] - 1)))
        if slot == 'function':
            return self.draw(st.sampled_from(FUNCTIONS))
        if slot == 'mask':
            return f'torch.ones({tensor.shape[1]}, {tensor.shape[1]}, dtype=torch.bool).tril()'
        if slot in MODULES:
            return self.member(self.draw(st.sampled_from(MODULES[slot])).format(w=width))
        shapes = {
            'p': [(width,), tuple(tensor.shape[1:]), (1,) * tensor.ndim], 'square': [(width, width)],
            'vector': [(width,)], 'token': [(1, 1, width)],
        }[slot]
        return self.member(f'nn.Parameter(torch.empty{self.draw(st.sampled_from(shapes))})')


def copied(env):
    '''A copy whose tensors can be written to, with views of one tensor still sharing their memory.'''
    return copy.deepcopy({key: value for key, value in env.items() if torch.is_tensor(value)}) | {
        key: value for key, value in env.items() if not torch.is_tensor(value)}


def broadcast(left, right):
    try:
        return torch.broadcast_shapes(left, right)[0] == BATCH and len(left) == len(right)
    except RuntimeError:
        return False


@st.composite
def programs(draw, ruled=False, operators=False, lines=7):
    '''Programs of up to a number of drawn lines; ``ruled`` gives rules to modules, ``operators`` to operators.'''
    shape = (BATCH, draw(st.integers(1, 4)), draw(st.sampled_from([WIDTH, WIDTH, 2, 6])))
    writer = Writer(draw, shape)
    start = draw(st.sampled_from(['{o} = {linear}({a})', '{o} = {a} + {p}', '{o} = {a} * {n}']))
    writer.add('modules', start)
    for _ in range(draw(st.integers(1, lines))):
        writer.add(*draw(st.sampled_from(TEMPLATES)))
    names = writer.pool[1:]
    kept = [names[0], *(name for name in names[1:] if name == names[-1] or draw(st.booleans()))]
    total = sum(writer.env[name][0].numel() for name in kept)
    members = {**writer.members, 'head': f'nn.Linear({total}, 3)'}
    rules = draw_rules(draw, members) if ruled else {}
    if operators:
        rules |= draw_operator_rules(draw)
    return Program(members, writer.lines, kept, shape, rules, draw(st.booleans()))


def draw_rules(draw, members):
    rules = {}
    for index, (name, source) in enumerate(members.items()):
        first = index == 0 and name != 'head' and source.startswith('nn.Linear')
        choices = (
            RULES['first'] if first else
            RULES['dense'] if re.match(r'nn\.(Linear|Conv1d)\(', source) else
            RULES['same'] if re.match(SAME_SHAPE, source) else ())
        rule = draw(st.sampled_from(['', *choices]))
        if rule:
            rules[name] = rule
    return rules


def draw_operator_rules(draw):
    choices = {'softmax': ('TaylorSoftmax()', 'Constant()'), 'einsum': ('Uniform()',), 'multiply': ('Uniform()',),
               'linear': ('Epsilon()', 'Gamma()', 'ZPlus()'), 'activation': ('Pass()', 'Constant()', 'Identity()'),
               'normalization': ('ConstantDeviation()',)}
    drawn = {kind: draw(st.sampled_from(['', *rules])) for kind, rules in choices.items()}
    if drawn['softmax'] == 'TaylorSoftmax()':
        drawn['attention'] = drawn['softmax']
    return {f'canonizer_{kind}': rule for kind, rule in drawn.items() if rule}


@contextlib.contextmanager
def frozen(model):
    '''The model with parameters that require no gradient, as while it is explained.'''
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield model.requires_grad_(False)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def is_legal(model, input):
    '''Whether plain torch can run the program, and take its gradient in the input.'''
    leaf = input.clone().requires_grad_()
    with frozen(model):
        try:
            output = model(leaf)
            grad, = torch.autograd.grad(output.sum(), leaf, allow_unused=True, retain_graph=True)
            first, = torch.autograd.grad(output[0].sum(), leaf, allow_unused=True, retain_graph=True)
            last, = torch.autograd.grad(output[-1].sum(), leaf, allow_unused=True)
            for sample in input.split(1):  # torch lays out gradients otherwise, which it can not view as complex ones
                alone = sample.clone().requires_grad_()
                torch.autograd.grad(model(alone).sum(), alone, allow_unused=True)
        except RuntimeError:
            return False
    if first is not None and (first[1:] != 0).any() or last is not None and (last[:-1] != 0).any():
        return False  # a layer took the batch for a sequence
    return grad is not None and bool(output.isfinite().all()) and bool((output.abs() > 1e-3).all())
