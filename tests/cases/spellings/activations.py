'''Functions of each element, on the stream.'''
import math

import torch
import torch.nn.functional as F
from einops import rearrange

ROOT = math.sqrt(2 / math.pi)


def zero(x):
    return torch.zeros_like(x)


def number(x, value=0.):
    return torch.tensor(value, dtype=x.dtype)


def item_written(m, x):
    x[x < 0] = 0.
    return x


def in_two(m, x):
    y = torch.zeros_like(x)
    y[x > 0] = x[x > 0]
    return y


SPELLINGS = {
    'relu': [
        ('functional', lambda m, x: F.relu(x)),
        ('method', lambda m, x: x.relu()),
        ('in place', lambda m, x: x.relu_()),
        ('functional in place', lambda m, x: F.relu(x, inplace=True)),
        ('module', lambda m, x: m.functions['relu'](x)),
        ('module in place', lambda m, x: m.functions['relu in place'](x)),
        ('clamp', lambda m, x: x.clamp(min=0)),
        ('clamp_min', lambda m, x: torch.clamp_min(x, 0.)),
        ('clamp in place', lambda m, x: x.clamp_(0)),
        ('clip', lambda m, x: torch.clip(x, 0.)),
        ('maximum of zeros', lambda m, x: torch.maximum(x, zero(x))),
        ('maximum of a number', lambda m, x: torch.maximum(number(x), x)),
        ('max of zeros', lambda m, x: torch.max(x, zero(x))),
        ('fmax', lambda m, x: torch.fmax(x, number(x))),
        ('where', lambda m, x: torch.where(x > 0, x, 0.)),
        ('where of zeros', lambda m, x: torch.where(x <= 0, zero(x), x)),
        ('masked_fill', lambda m, x: x.masked_fill(x < 0, 0.)),
        ('item written', item_written), ('two items', in_two),
        ('times a comparison', lambda m, x: x * (x > 0)),
        ('times a step', lambda m, x: torch.heaviside(x, zero(x)).mul(x)),
        ('with abs', lambda m, x: (x + x.abs()) / 2),
        ('threshold', lambda m, x: F.threshold(x, 0., 0.)),
        ('module of a threshold', lambda m, x: m.functions['threshold'](x)),
        ('minus the rest', lambda m, x: x - x.clamp(max=0)),
        ('minimum', lambda m, x: -torch.minimum(-x, zero(x))),
        ('amax of a stack', lambda m, x: torch.stack([x, zero(x)]).amax(0)),
        ('leaky', lambda m, x: F.leaky_relu(x, 0.)),
        ('hardtanh', lambda m, x: F.hardtanh(x, 0., 1e9)),
    ],
    'leaky relu': [
        ('functional', lambda m, x: F.leaky_relu(x, .1)),
        ('module', lambda m, x: m.functions['leaky'](x)),
        ('in place', lambda m, x: F.leaky_relu_(x, .1)),
        ('prelu', lambda m, x: F.prelu(x, torch.tensor([.1], dtype=x.dtype))),
        ('where', lambda m, x: torch.where(x > 0, x, .1 * x)),
        ('maximum', lambda m, x: torch.maximum(x, .1 * x)),
        ('max', lambda m, x: torch.max(.1 * x, x)),
        ('two relus', lambda m, x: x.relu() - .1 * (-x).relu()),
        ('times slopes', lambda m, x: x * torch.where(x > 0, 1., torch.full_like(x, .1))),
        ('two clamps', lambda m, x: x.clamp(min=0) + .1 * x.clamp(max=0)),
    ],
    'abs': [
        ('method', lambda m, x: x.abs()), ('torch', lambda m, x: torch.absolute(x)),
        ('builtin', lambda m, x: abs(x)), ('in place', lambda m, x: x.abs_()),
        ('times sign', lambda m, x: x * x.sign()),
        ('two relus', lambda m, x: F.relu(x) + F.relu(-x)),
        ('maximum', lambda m, x: torch.maximum(x, -x)),
        ('where', lambda m, x: torch.where(x < 0, -x, x)),
        ('root of square', lambda m, x: x.square().sqrt()),
    ],
    'hardtanh': [
        ('functional', lambda m, x: F.hardtanh(x)), ('module', lambda m, x: m.functions['hardtanh'](x)),
        ('clamp', lambda m, x: x.clamp(-1, 1)), ('clip', lambda m, x: torch.clip(x, min=-1., max=1.)),
        ('clamp in place', lambda m, x: x.clamp_(-1., 1.)),
        ('two clamps', lambda m, x: x.clamp(min=-1).clamp(max=1)),
        ('minimum of maximum', lambda m, x: torch.minimum(torch.maximum(x, number(x, -1.)), number(x, 1.))),
        ('min of max', lambda m, x: torch.max(torch.min(x, torch.ones_like(x)), -torch.ones_like(x))),
        ('where', lambda m, x: torch.where(x.abs() < 1, x, x.sign())),
        ('tensors', lambda m, x: torch.clamp(x, number(x, -1.), number(x, 1.))),
    ],
    'relu6': [
        ('functional', lambda m, x: F.relu6(5 * x)), ('module', lambda m, x: m.functions['relu6'](5 * x)),
        ('hardtanh', lambda m, x: F.hardtanh(5 * x, 0., 6.)), ('clamp', lambda m, x: (5 * x).clamp(0, 6)),
        ('relu and clamp', lambda m, x: F.relu(5 * x).clamp(max=6)),
        ('clamp and relu', lambda m, x: F.relu(torch.clamp_max(5 * x, 6.))),
        ('minimum', lambda m, x: torch.minimum(F.relu(5 * x), number(x, 6.))),
    ],
    'GELU': [
        ('functional', lambda m, x: F.gelu(x)), ('module', lambda m, x: m.functions['gelu'](x)),
        ('erf', lambda m, x: .5 * x * (1 + torch.erf(x / math.sqrt(2)))),
        ('erf out of order', lambda m, x: x * ((x * 2 ** -.5).erf() + 1.) / 2),
        ('erf in place', lambda m, x: (x / math.sqrt(2)).erf_().add_(1.).mul_(.5).mul_(x)),
        ('erf of a tensor of ones', lambda m, x: x * .5 * (torch.ones(12).to(x) + torch.erf(x / 2 ** .5))),
        ('distributed', lambda m, x: .5 * (x + x * torch.erf(x / math.sqrt(2)))),
        ('ndtr', lambda m, x: x * torch.special.ndtr(x)),
        ('erfc', lambda m, x: x * torch.erfc(-x / math.sqrt(2)) / 2),
    ],
    'GELU of tanh': [
        ('functional', lambda m, x: F.gelu(x, approximate='tanh')),
        ('module', lambda m, x: m.functions['gelu tanh'](x)),
        ('by hand', lambda m, x: .5 * x * (1 + torch.tanh(ROOT * (x + .044715 * x ** 3)))),
        ('pow', lambda m, x: .5 * x * (1. + torch.tanh(ROOT * (x + .044715 * torch.pow(x, 3.))))),
        ('products', lambda m, x: (torch.tanh(ROOT * x * (1 + .044715 * x * x)) + 1) * x * .5),
        ('sigmoid', lambda m, x: x * torch.sigmoid(2 * ROOT * (x + .044715 * x ** 3))),
        ('halves', lambda m, x: x * (.5 + .5 * torch.tanh(ROOT * (x + .044715 * x ** 3)))),
    ],
    'quick GELU': [
        ('by hand', lambda m, x: x * torch.sigmoid(1.702 * x)),
        ('method', lambda m, x: (x * 1.702).sigmoid() * x),
        ('silu', lambda m, x: F.silu(1.702 * x) / 1.702),
        ('in place', lambda m, x: x.mul(1.702).sigmoid_().mul(x)),
    ],
    'SiLU': [
        ('functional', lambda m, x: F.silu(x)), ('module', lambda m, x: m.functions['silu'](x)),
        ('functional in place', lambda m, x: F.silu(x, inplace=True)),
        ('module in place', lambda m, x: m.functions['silu in place'](x)),
        ('sigmoid', lambda m, x: x * torch.sigmoid(x)), ('method', lambda m, x: x.sigmoid().mul(x)),
        ('sigmoid in place', lambda m, x: x.clone().mul_(x.sigmoid())),
        ('expit', lambda m, x: torch.mul(x, torch.special.expit(x))),
        ('module of a sigmoid', lambda m, x: m.functions['sigmoid'](x) * x),
        ('exp', lambda m, x: x / (1 + torch.exp(-x))),
        ('tanh', lambda m, x: x * (1 + torch.tanh(x / 2)) / 2),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bnd', x, x.sigmoid())),
    ],
    'mish': [
        ('functional', lambda m, x: F.mish(x)), ('module', lambda m, x: m.functions['mish'](x)),
        ('by hand', lambda m, x: x * torch.tanh(F.softplus(x))),
        ('log1p', lambda m, x: x * torch.log1p(x.exp()).tanh()),
        ('module of softplus', lambda m, x: m.functions['softplus'](x).tanh_().mul(x)),
    ],
    'hardswish': [
        ('functional', lambda m, x: F.hardswish(3 * x)), ('module', lambda m, x: m.functions['hardswish'](3 * x)),
        ('relu6', lambda m, x: 3 * x * F.relu6(3 * x + 3) / 6),
        ('relu6 by a sixth', lambda m, x: (F.relu6(3 * x + 3) * (1 / 6)).mul(3 * x)),
        ('clamp', lambda m, x: 3 * x * (3 * x + 3).clamp(0, 6) / 6),
        ('clamp of a sixth', lambda m, x: 3 * x * (x / 2 + .5).clamp(0, 1)),
        ('hardtanh', lambda m, x: 3 * x * F.hardtanh(3 * x + 3, 0., 6.) / 6.),
        ('hardsigmoid', lambda m, x: 3 * x * F.hardsigmoid(3 * x)),
        ('module of a gate', lambda m, x: m.functions['hardsigmoid'](3 * x) * (3 * x)),
        ('two relus', lambda m, x: 3 * x * (F.relu(3 * x + 3) - F.relu(3 * x - 3)) / 6),
        ('min of max', lambda m, x: 3 * x * torch.min(torch.max(3 * x + 3, zero(x)), zero(x) + 6) / 6),
        ('fmin of fmax', lambda m, x: torch.fmin(torch.fmax(number(x), 3 * x + 3), number(x, 6.)) / 6 * (3 * x)),
        ('relu6 of a tensor', lambda m, x: 3 * x * F.relu6(3 * x + number(x, 3.)) / 6),
        ('minimum of maximum', lambda m, x: 3 * x * torch.minimum(torch.maximum(
            3 * x + 3, number(x)), number(x, 6.)) / 6),
    ],
    'ELU': [
        ('functional', lambda m, x: F.elu(x)), ('module', lambda m, x: m.functions['elu'](x)),
        ('in place', lambda m, x: F.elu(x, inplace=True)), ('celu', lambda m, x: F.celu(x)),
        ('where of expm1', lambda m, x: torch.where(x > 0, x, torch.expm1(x))),
        ('sum of expm1', lambda m, x: F.relu(x) + torch.expm1(x.clamp(max=0))),
        ('minus relu', lambda m, x: F.relu(x) + torch.expm1(-F.relu(-x))),
        ('where of exp', lambda m, x: torch.where(x > 0, x, x.exp() - 1)),
        ('sum of exp', lambda m, x: F.relu(x) + (x.clamp(max=0).exp() - 1)),
    ],
    'SELU': [
        ('functional', lambda m, x: F.selu(x)), ('module', lambda m, x: m.functions['selu'](x)),
        ('elu', lambda m, x: 1.0507009873554804934193349852946 * F.elu(x, 1.6732632423543772848170429916717)),
    ],
    'softsign': [
        ('functional', lambda m, x: F.softsign(x)), ('module', lambda m, x: m.functions['softsign'](x)),
        ('quotient', lambda m, x: x / (1 + x.abs())), ('reciprocal', lambda m, x: x * (1 + x.abs()).reciprocal()),
        ('in place', lambda m, x: x.div_(x.abs() + 1)),
    ],
    'softshrink': [
        ('functional', lambda m, x: F.softshrink(x, .5)), ('module', lambda m, x: m.functions['softshrink'](x)),
        ('two relus', lambda m, x: F.relu(x - .5) - F.relu(-x - .5)),
        ('sign', lambda m, x: x.sign() * F.relu(x.abs() - .5)),
        ('minus a clamp', lambda m, x: x - x.clamp(-.5, .5)),
    ],
    'tanh': [
        ('torch', lambda m, x: torch.tanh(x)), ('method', lambda m, x: x.tanh()), ('in place', lambda m, x: x.tanh_()),
        ('module', lambda m, x: m.functions['tanh'](x)), ('functional', lambda m, x: F.tanh(x)),
        ('sinh over cosh', lambda m, x: x.sinh() / x.cosh()),
        ('sigmoid', lambda m, x: 2 * torch.sigmoid(2 * x) - 1),
        ('minus sigmoid', lambda m, x: 1 - torch.sigmoid(-2 * x) * 2),
        ('minus half', lambda m, x: (torch.sigmoid(2 * x) - .5) / .5),
        ('sigmoids', lambda m, x: (lambda s: s - (1 - s))(torch.sigmoid(2 * x))),
        ('sigmoid by keywords', lambda m, x: torch.sub(input=2 * torch.sigmoid(input=2 * x), other=.5, alpha=2)),
        ('sigmoid minus a tensor of one', lambda m, x: 2 * torch.sigmoid(2 * x) - torch.ones(1, 1).to(x)),
        ('sigmoid minus ones', lambda m, x: 2 * torch.sigmoid(2 * x) - torch.ones_like(x)),
        ('sigmoid in place', lambda m, x: (2 * x).sigmoid_().mul_(2).sub_(1)),
        ('sigmoid between views', lambda m, x: rearrange(
            rearrange(2 * torch.sigmoid(2 * x), 'b n (h d) -> (b h) d n', h=2) - 1, '(b h) d n -> b n (h d)', h=2)),
        ('sigmoid in chunks', lambda m, x: torch.cat(
            [part - 1 for part in (2 * torch.sigmoid(2 * x)).chunk(2, -1)], -1)),
        ('sigmoid between two numbers', lambda m, x: torch.lerp(zero(x) - 1, zero(x) + 1, torch.sigmoid(2 * x))),
        ('two sigmoids', lambda m, x: torch.sigmoid(2 * x) + torch.sigmoid(2 * x) - 1),
        ('softmax of two', lambda m, x: torch.stack([x, -x]).softmax(0)[0] * 2 - 1),
        ('exp over exp', lambda m, x: (lambda e: (e - 1) / (e + 1))((2 * x).exp())),
        ('exp', lambda m, x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())),
        ('expm1', lambda m, x: torch.expm1(2 * x) / (torch.exp(2 * x) + 1)),
    ],
    'square': [
        ('product', lambda m, x: x * x), ('power', lambda m, x: x ** 2), ('pow', lambda m, x: torch.pow(x, 2.)),
        ('keywords', lambda m, x: torch.pow(input=x, exponent=2)), ('method', lambda m, x: x.square()),
        ('in place', lambda m, x: x.pow_(2)), ('float_power', lambda m, x: x.float_power(2)),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bnd', x, x)),
        ('of a copy', lambda m, x: x.clone().mul_(x)), ('abs', lambda m, x: x.abs().pow(2)),
        ('times abs', lambda m, x: x * x.abs() * x.sign()),
        ('prod', lambda m, x: torch.stack([x, x]).prod(0)), ('addcmul', lambda m, x: torch.addcmul(zero(x), x, x)),
    ],
    'cube': [
        ('power', lambda m, x: x ** 3), ('products', lambda m, x: x * x * x), ('last', lambda m, x: x * (x * x)),
        ('square', lambda m, x: x.square() * x), ('einsum', lambda m, x: torch.einsum('...,...,...->...', x, x, x)),
        ('pow in place', lambda m, x: x.pow_(3)), ('prod', lambda m, x: torch.stack([x, x, x], -1).prod(-1)),
    ],
    'squared relu': [
        ('square', lambda m, x: F.relu(x).square()), ('power', lambda m, x: F.relu(x) ** 2),
        ('product', lambda m, x: F.relu(x) * F.relu(x)), ('times x', lambda m, x: x * F.relu(x)),
        ('where', lambda m, x: torch.where(x > 0, x * x, 0.)), ('clamp', lambda m, x: x.clamp(min=0).pow(2)),
        ('masked', lambda m, x: x.square() * (x > 0)), ('in place', lambda m, x: x.relu_().square()),
        ('maximum', lambda m, x: torch.maximum(x, zero(x)).square()),
    ],
    'StarReLU': [
        ('power', lambda m, x: m.scalar * F.relu(x) ** 2 + m.shift),
        ('square', lambda m, x: torch.square(F.relu(x)).mul(m.scalar).add(m.shift)),
        ('addcmul', lambda m, x: torch.addcmul(m.shift, m.scalar, F.relu(x).pow(2))),
        ('product', lambda m, x: m.shift + F.relu(x) * F.relu(x) * m.scalar),
        ('in place', lambda m, x: x.relu_().pow(2).mul_(m.scalar).add_(m.shift)),
    ],
    'softplus beside a residual': [
        ('functional', lambda m, x: x + F.softplus(x)), ('log of exp', lambda m, x: x + (1 + x.exp()).log()),
        ('log1p', lambda m, x: x + torch.log1p(torch.exp(x))), ('module', lambda m, x: m.functions['softplus'](x) + x),
        ('logsigmoid', lambda m, x: x - F.logsigmoid(-x)),
        ('logaddexp', lambda m, x: x + torch.logaddexp(x, zero(x))),
    ],
}
