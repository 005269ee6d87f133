'''Products of two tensors, of which one may be a gate.'''
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat


def number(x, value):
    return torch.tensor(value, dtype=x.dtype)


def elu_one(x):
    return F.elu(x) + 1


def halves(function, x):
    return torch.cat([function(half) for half in x.chunk(2, -1)], -1)


def stacked(function, x):
    return torch.stack([function(column) for column in x.unbind(-1)], -1)


def written(m, x):
    gate = F.elu(x)
    gate += 1
    gate *= m.v(x)
    return gate


def excited(m, x):
    return m.b(F.relu(m.a(x.mean(1, keepdim=True))))


SPELLINGS = {
    'GLU': [
        ('by hand', lambda m, x: m.a(x) * torch.sigmoid(m.b(x))),
        ('functional', lambda m, x: F.glu(torch.cat([m.a(x), m.b(x)], -1), -1)),
        ('module', lambda m, x: m.functions['glu'](torch.cat((m.a(x), m.b(x)), dim=2))),
        ('gate first', lambda m, x: m.b(x).sigmoid() * m.a(x)),
        ('in place', lambda m, x: m.a(x).mul_(m.b(x).sigmoid_())),
        ('gate in place', lambda m, x: m.b(x).sigmoid_().mul(m.a(x))),
        ('einsum', lambda m, x: einsum(m.a(x), m.b(x).sigmoid(), 'b n d, b n d -> b n d')),
        ('quotient', lambda m, x: m.a(x) / (1 + torch.exp(-m.b(x)))),
        ('tanh', lambda m, x: m.a(x) * (torch.tanh(m.b(x) / 2) * .5 + .5)),
        ('stack', lambda m, x: m.a(x) * stacked(torch.sigmoid, m.b(x))),
    ],
    'SwiGLU': [
        ('functional', lambda m, x: F.silu(m.a(x)) * m.b(x)), ('reversed', lambda m, x: m.b(x) * F.silu(m.a(x))),
        ('module', lambda m, x: m.functions['silu'](m.a(x)).mul(m.b(x))),
        ('sigmoid', lambda m, x: m.a(x) * m.a(x).sigmoid() * m.b(x)),
        ('sigmoid last', lambda m, x: m.a(x) * m.b(x) * m.a(x).sigmoid()),
        ('sigmoid inside', lambda m, x: m.a(x) * (m.a(x).sigmoid() * m.b(x))),
        ('in place', lambda m, x: F.silu(m.a(x), inplace=True).mul_(m.b(x))),
        ('one matrix', lambda m, x: (lambda a, b: F.silu(a) * b)(*F.linear(
            x, torch.cat([m.a.weight, m.b.weight]), torch.cat([m.a.bias, m.b.bias])).chunk(2, -1))),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bnd', F.silu(m.a(x)), m.b(x))),
    ],
    'GeGLU': [
        ('functional', lambda m, x: F.gelu(m.a(x)) * m.b(x)), ('reversed', lambda m, x: m.b(x) * F.gelu(m.a(x))),
        ('erf', lambda m, x: m.a(x) * .5 * (1 + torch.erf(m.a(x) * 2 ** -.5)) * m.b(x)),
        ('erf last', lambda m, x: m.a(x) * m.b(x) * ((1 + torch.erf(m.a(x) / 2 ** .5)) / 2)),
        ('module', lambda m, x: torch.mul(m.functions['gelu'](m.a(x)), m.b(x))),
    ],
    'ReGLU': [
        ('functional', lambda m, x: F.relu(m.a(x)) * m.b(x)), ('reversed', lambda m, x: m.b(x) * m.a(x).relu()),
        ('masked', lambda m, x: m.a(x) * m.b(x) * (m.a(x) > 0)),
        ('where', lambda m, x: torch.where(m.a(x) > 0, m.a(x) * m.b(x), 0.)),
        ('clamp', lambda m, x: m.a(x).clamp(min=0) * m.b(x)),
        ('maximum', lambda m, x: torch.maximum(m.a(x), number(x, 0.)) * m.b(x)),
        ('in place', lambda m, x: m.a(x).relu_().mul(m.b(x))),
    ],
    'bilinear gate': [
        ('product', lambda m, x: m.a(x) * m.b(x)), ('reversed', lambda m, x: torch.mul(m.b(x), m.a(x))),
        ('in place', lambda m, x: m.a(x).mul_(m.b(x))),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bnd', m.a(x), m.b(x))),
        ('addcmul', lambda m, x: torch.addcmul(torch.zeros_like(x), m.a(x), m.b(x))),
        ('matmul', lambda m, x: (m.a(x)[..., None, None] @ m.b(x)[..., None, None])[..., 0, 0]),
        ('prod', lambda m, x: torch.stack([m.a(x), m.b(x)]).prod(0)),
    ],
    'tanh gate': [
        ('torch', lambda m, x: m.v(x) * torch.tanh(x)), ('module', lambda m, x: m.functions['tanh'](x) * m.v(x)),
        ('in place', lambda m, x: m.v(x).mul_(x.tanh())), ('halves', lambda m, x: halves(torch.tanh, x) * m.v(x)),
        ('stack', lambda m, x: stacked(torch.tanh, x) * m.v(x)),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bnd', torch.tanh(x), m.v(x))),
        ('transposed', lambda m, x: (torch.tanh(x.mT) * m.v(x).mT).mT),
        ('sigmoid', lambda m, x: m.v(x) * (2 * torch.sigmoid(2 * x) - 1)),
        ('sinh over cosh', lambda m, x: m.v(x) * (x.sinh() / x.cosh())),
    ],
    'scalar tanh gate': [
        ('broadcast', lambda m, x: torch.tanh(m.score(x)) * m.v(x)),
        ('expand_as', lambda m, x: torch.tanh(m.score(x)).expand_as(x) * m.v(x)),
        ('expand', lambda m, x: torch.tanh(m.score(x)).expand(-1, -1, 12) * m.v(x)),
        ('repeat', lambda m, x: torch.tanh(m.score(x)).repeat(1, 1, 12) * m.v(x)),
        ('einops', lambda m, x: repeat(torch.tanh(m.score(x)), 'b n 1 -> b n d', d=12) * m.v(x)),
        ('einsum', lambda m, x: torch.einsum('bn,bnd->bnd', torch.tanh(m.score(x))[..., 0], m.v(x))),
        ('matrix', lambda m, x: torch.tanh(m.score(x)) @ torch.ones(1, 12).to(x) * m.v(x)),
        ('diagonal', lambda m, x: torch.diag_embed(torch.tanh(m.score(x))[..., 0]) @ m.v(x)),
        ('plus zeros', lambda m, x: (torch.tanh(m.score(x)) + torch.zeros_like(x)) * m.v(x)),
    ],
    'softsign gate': [
        ('functional', lambda m, x: m.v(x) * F.softsign(x)),
        ('module', lambda m, x: m.functions['softsign'](x) * m.v(x)),
        ('quotient', lambda m, x: m.v(x) * (x / (1 + x.abs()))),
    ],
    'hard sigmoid gate': [
        ('relu6', lambda m, x: F.relu6(3 * x + 3) / 6 * m.v(x)),
        ('functional', lambda m, x: F.hardsigmoid(3 * x) * m.v(x)),
        ('module', lambda m, x: m.v(x) * m.functions['hardsigmoid'](3 * x)),
        ('relu6 last', lambda m, x: m.v(x) * F.relu6(3 * x + 3) / 6),
        ('relu6 module', lambda m, x: m.functions['relu6'](3. + 3 * x).div(6.).mul(m.v(x))),
        ('clamp', lambda m, x: torch.clamp(x / 2 + .5, 0, 1) * m.v(x)),
        ('clamp in place', lambda m, x: (x / 2).add_(.5).clamp_(0., 1.).mul_(m.v(x))),
        ('hardtanh', lambda m, x: F.hardtanh(.5 + .5 * x, 0., 1.) * m.v(x)),
        ('minimum of maximum', lambda m, x: torch.minimum(torch.maximum(x / 2 + .5, number(x, 0.)), number(x, 1.))
            * m.v(x)),
        ('min of max', lambda m, x: m.v(x) * torch.min(torch.max(x / 2 + .5, torch.zeros_like(x)), torch.ones_like(x))),
        ('tensors', lambda m, x: torch.clamp(x / 2 + .5, number(x, 0.), number(x, 1.)) * m.v(x)),
        ('two relus', lambda m, x: (F.relu(x / 2 + .5) - F.relu(x / 2 - .5)) * m.v(x)),
        ('where', lambda m, x: torch.where(x > 1, 1., torch.where(x < -1, 0., x / 2 + .5)) * m.v(x)),
        ('tensor of numbers', lambda m, x: (x / 2 + torch.full((12,), .5).to(x)).clamp(0, 1) * m.v(x)),
    ],
    'elu + 1 gate': [
        ('plus', lambda m, x: (F.elu(x) + 1) * m.v(x)), ('one first', lambda m, x: m.v(x) * (1. + F.elu(x))),
        ('module', lambda m, x: (m.functions['elu'](x) + 1.) * m.v(x)),
        ('in place', lambda m, x: F.elu(x).add_(1).mul_(m.v(x))), ('operators in place', written),
        ('a tensor', lambda m, x: (F.elu(x) + number(x, 1.)) * m.v(x)),
        ('a tensor of one', lambda m, x: (F.elu(x) + torch.ones(1).to(x)) * m.v(x)),
        ('ones', lambda m, x: (F.elu(x) + torch.ones(12).to(x)) * m.v(x)),
        ('ones_like', lambda m, x: (F.elu(x) + torch.ones_like(x)) * m.v(x)),
        ('minus minus', lambda m, x: (F.elu(x) - -1) * m.v(x)), ('rsub', lambda m, x: (1 - -F.elu(x)) * m.v(x)),
        ('halves', lambda m, x: halves(elu_one, x) * m.v(x)), ('stack', lambda m, x: stacked(elu_one, x) * m.v(x)),
        ('heads', lambda m, x: rearrange(rearrange(elu_one(x), 'b n (h d) -> b h n d', h=3)
            * rearrange(m.v(x), 'b n (h d) -> b h n d', h=3), 'b h n d -> b n (h d)')),
        ('cat and chunk', lambda m, x: torch.cat([F.elu(x), F.elu(x)]).add(1).chunk(2)[0] * m.v(x)),
        ('plus alpha', lambda m, x: torch.add(F.elu(x), torch.ones_like(x), alpha=1) * m.v(x)),
        ('expand_as', lambda m, x: elu_one(x).expand_as(x) * m.v(x)),
        ('where', lambda m, x: torch.where(x > 0, x + 1, x.exp()) * m.v(x)),
        ('maximum', lambda m, x: torch.maximum(x + 1, x.clamp(max=0).exp()) * m.v(x)),
    ],
    'abs + 1 gate': [
        ('abs', lambda m, x: (x.abs() + 1) * m.v(x)), ('two relus', lambda m, x: (F.relu(x) + F.relu(-x) + 1) * m.v(x)),
        ('halves', lambda m, x: (halves(torch.abs, x) + torch.ones_like(x)) * m.v(x)),
        ('stack', lambda m, x: m.v(x) * stacked(torch.abs, x).add(torch.ones(12).to(x))),
        ('one first', lambda m, x: m.v(x) * (F.relu(x) + (1 + F.relu(-x)))),
        ('maximum', lambda m, x: (torch.maximum(x, -x) + 1) * m.v(x)),
    ],
    'exp gate': [
        ('method', lambda m, x: x.exp() * m.v(x)), ('torch', lambda m, x: torch.mul(m.v(x), torch.exp(x))),
        ('in place', lambda m, x: m.v(x).mul_(x.exp())), ('power', lambda m, x: torch.e ** x * m.v(x)),
        ('pow', lambda m, x: torch.pow(torch.e, x) * m.v(x)),
        ('quotient', lambda m, x: m.v(x) / (-x).exp()),
        ('expm1', lambda m, x: (torch.expm1(x) + 1) * m.v(x)),
        ('exp2', lambda m, x: torch.exp2(x / torch.log(number(x, 2.))) * m.v(x)),
    ],
    'softplus gate': [
        ('functional', lambda m, x: F.softplus(x) * m.v(x)), ('log', lambda m, x: (1 + x.exp()).log() * m.v(x)),
        ('log1p', lambda m, x: torch.log1p(torch.exp(x)) * m.v(x)),
        ('logsigmoid', lambda m, x: -F.logsigmoid(-x) * m.v(x)),
        ('logaddexp', lambda m, x: torch.logaddexp(x, torch.zeros_like(x)) * m.v(x)),
    ],
    'reciprocal': [
        ('quotient', lambda m, x: m.v(x) / (x.exp() + 1)),
        ('reciprocal', lambda m, x: m.v(x) * (x.exp() + 1).reciprocal()),
        ('one over', lambda m, x: 1 / (1 + x.exp()) * m.v(x)), ('power', lambda m, x: (x.exp() + 1) ** -1 * m.v(x)),
        ('true_divide', lambda m, x: torch.true_divide(m.v(x), x.exp() + 1)),
        ('sigmoid', lambda m, x: torch.sigmoid(-x) * m.v(x)),
    ],
    'root': [
        ('sqrt', lambda m, x: m.v(x) * (x.square() + 1).sqrt()), ('power', lambda m, x: m.v(x) * (x ** 2 + 1) ** .5),
        ('pow', lambda m, x: torch.pow(x * x + 1, .5) * m.v(x)), ('rsqrt', lambda m, x: m.v(x) / (x * x + 1).rsqrt()),
        ('hypot', lambda m, x: m.v(x) * torch.hypot(x, torch.ones_like(x))),
    ],
    'squeeze and excitation': [
        ('sigmoid', lambda m, x: x * torch.sigmoid(excited(m, x))),
        ('expand_as', lambda m, x: x * torch.sigmoid(excited(m, x)).expand_as(x)),
        ('module', lambda m, x: m.functions['sigmoid'](excited(m, x)).mul(x)),
        ('convolutions', lambda m, x: x * torch.sigmoid(F.conv1d(F.relu(F.conv1d(m.functions['mean'](
            x.mT), m.a.weight[..., None], m.a.bias)), m.b.weight[..., None], m.b.bias)).mT),
        ('view', lambda m, x: x * m.b(F.relu(m.a(x.mean(1)))).sigmoid().view(2, 1, 12)),
        ('einsum', lambda m, x: torch.einsum('bnd,bd->bnd', x, m.b(F.relu(m.a(x.mean(1)))).sigmoid())),
        ('in place', lambda m, x: x.mul_(excited(m, x).sigmoid_())),
    ],
    'one plus a scale': [
        ('plus one', lambda m, x: x * (1 + m.a(x))), ('ones', lambda m, x: (torch.ones_like(x) + m.a(x)) * x),
        ('distributed', lambda m, x: x + x * m.a(x)), ('addcmul', lambda m, x: torch.addcmul(x, x, m.a(x))),
    ],
    'one plus a tanh': [
        ('plus one', lambda m, x: m.v(x) * (1 + torch.tanh(x))),
        ('distributed', lambda m, x: m.v(x) + m.v(x) * torch.tanh(x)),
        ('sigmoid', lambda m, x: m.v(x) * 2 * torch.sigmoid(2 * x)),
        ('tensor', lambda m, x: m.v(x) * (torch.ones(1, 1, 1).to(x) + x.tanh())),
    ],
    'mix by a gate': [
        ('two products', lambda m, x: m.a(x).sigmoid() * m.b(x) + (1 - m.a(x).sigmoid()) * m.v(x)),
        ('lerp', lambda m, x: torch.lerp(m.v(x), m.b(x), m.a(x).sigmoid())),
        ('difference', lambda m, x: m.v(x) + m.a(x).sigmoid() * (m.b(x) - m.v(x))),
        ('negative', lambda m, x: m.a(x).sigmoid() * m.b(x) + (-m.a(x)).sigmoid() * m.v(x)),
        ('addcmul', lambda m, x: torch.addcmul(m.v(x), m.a(x).sigmoid(), m.b(x) - m.v(x))),
        ('softmax', lambda m, x: (torch.stack([m.a(x), torch.zeros_like(x)]).softmax(0)
                                  * torch.stack([m.b(x), m.v(x)])).sum(0)),
    ],
    'variance as a factor': [
        ('var', lambda m, x: m.v(x) * x.var(-1, unbiased=False, keepdim=True)),
        ('var_mean', lambda m, x: m.v(x) * torch.var_mean(x, -1, unbiased=False, keepdim=True)[0]),
        ('std', lambda m, x: m.v(x) * x.std(-1, correction=0, keepdim=True) ** 2),
        ('by hand', lambda m, x: m.v(x) * (x - x.mean(-1, True)).square().mean(-1, True)),
    ],
}
