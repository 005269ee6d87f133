'''Linear maps, sums, and products with numbers and weights.'''
import math

import torch
import torch.nn.functional as F
from einops import einsum


def number(x, value):
    return torch.tensor(value, dtype=x.dtype)


def alpha_in_place(m, x):
    x += m.a(x.clone()) * .3
    return x


def shifts(x):
    x = F.pad(x, (0, 0, 1, 1))
    return [x[:, i:i + 6] for i in range(3)]


def routed(m, x):
    '''Weights of the two best experts, and which they are.'''
    weights, index = m.router(x).softmax(-1).topk(2)
    return weights / weights.sum(-1, keepdim=True), index


def routed_sum(m, x):
    weights, index = routed(m, x)
    outputs = torch.stack([expert(x) for expert in m.experts], -2)
    return (outputs.gather(-2, index[..., None].expand(*index.shape, 12)) * weights[..., None]).sum(-2)


def routed_dense(m, x):
    weights, index = routed(m, x)
    dense = torch.zeros(2, 6, 3).to(x).scatter(-1, index, weights)
    return torch.einsum('bne,bned->bnd', dense, torch.stack([expert(x) for expert in m.experts], 2))


def routed_index_add(m, x):
    weights, index = routed(m, x)
    x, weights, index = x.flatten(0, 1), weights.flatten(0, 1), index.flatten(0, 1)
    output = torch.zeros_like(x)
    for number_, expert in enumerate(m.experts):
        rows, which = torch.where(index == number_)
        output.index_add_(0, rows, expert(x[rows]) * weights[rows, which, None])
    return output.view(2, 6, 12)


def routed_one_hot(m, x):
    weights, index = routed(m, x)
    dense = (F.one_hot(index, 3).to(x) * weights[..., None]).sum(-2)
    return sum(dense[..., i:i + 1] * expert(x) for i, expert in enumerate(m.experts))


def routed_items(m, x):
    weights, index = routed(m, x)
    output = torch.zeros_like(x)
    for number_, expert in enumerate(m.experts):
        chosen = (index == number_).any(-1)
        weight = (weights * (index == number_)).sum(-1)
        output[chosen] += expert(x[chosen]) * weight[chosen].unsqueeze(-1)
    return output


def soft_loop(m, x):
    weights, output = F.softmax(m.router(x), -1), 0.
    for i, expert in enumerate(m.experts):
        output = output + weights[:, :, i, None] * expert(x)
    return output


def outputs(m, x):
    return torch.stack([expert(x) for expert in m.experts], -1)


SPELLINGS = {
    'linear': [
        ('module', lambda m, x: m.a(x)), ('functional', lambda m, x: F.linear(x, m.a.weight, m.a.bias)),
        ('keywords', lambda m, x: F.linear(input=x, bias=m.a.bias, weight=m.a.weight)),
        ('matmul', lambda m, x: x @ m.a.weight.T + m.a.bias), ('bias first', lambda m, x: m.a.bias + x @ m.a.weight.mT),
        ('einsum', lambda m, x: torch.einsum('bnd,ed->bne', x, m.a.weight) + m.a.bias),
        ('einops', lambda m, x: einsum(m.a.weight, x, 'e d, b n d -> b n e').add_(m.a.bias)),
        ('addmm', lambda m, x: torch.addmm(m.a.bias, x.flatten(0, 1), m.a.weight.T).view(2, 6, 12)),
        ('baddbmm', lambda m, x: torch.baddbmm(m.a.bias, x, m.a.weight.T.expand(2, 12, 12))),
        ('convolution', lambda m, x: F.conv1d(x.mT, m.a.weight[..., None], m.a.bias).mT),
        ('tensordot', lambda m, x: torch.tensordot(x, m.a.weight, dims=([2], [1])) + m.a.bias),
        ('sum', lambda m, x: (x.unsqueeze(-2) * m.a.weight).sum(-1) + m.a.bias),
        ('one more column', lambda m, x: torch.cat([x, torch.ones(2, 6, 1).to(x)], -1) @ torch.cat(
            [m.a.weight, m.a.bias[:, None]], -1).T),
        ('halves', lambda m, x: x[..., :6] @ m.a.weight[:, :6].T + F.linear(x[..., 6:], m.a.weight[:, 6:], m.a.bias)),
    ],
    'low rank': [
        ('left first', lambda m, x: x @ m.down @ m.up), ('right first', lambda m, x: x @ (m.down @ m.up)),
        ('einsum', lambda m, x: torch.einsum('bnd,dr,re->bne', x, m.down, m.up)),
        ('multi_dot', lambda m, x: torch.linalg.multi_dot([x.flatten(0, 1), m.down, m.up]).view_as(x)),
        ('linears', lambda m, x: F.linear(F.linear(x, m.down.T), m.up.T)),
    ],
    'bilinear form': [
        ('module', lambda m, x: m.bilinear(x, m.k(x))),
        ('einsum', lambda m, x: torch.einsum('bni,oij,bnj->bno', x, m.bilinear.weight, m.k(x)) + m.bilinear.bias),
        ('matmul', lambda m, x: (x[..., None, None, :] @ m.bilinear.weight @ m.k(x)[..., None, :, None]
                                 )[..., 0, 0] + m.bilinear.bias),
        ('products', lambda m, x: (torch.einsum('bni,oij->bnoj', x, m.bilinear.weight) * m.k(x).unsqueeze(2)
                                   ).sum(-1).add(m.bilinear.bias)),
        ('functional', lambda m, x: F.bilinear(input2=m.k(x), input1=x, weight=m.bilinear.weight,
                                               bias=m.bilinear.bias)),
    ],
    'convolution': [
        ('module', lambda m, x: m.conv(x.mT).mT),
        ('functional', lambda m, x: F.conv1d(x.mT, m.conv.weight, m.conv.bias, padding=1).mT),
        ('same', lambda m, x: F.conv1d(input=x.mT, weight=m.conv.weight, bias=m.conv.bias, padding='same').mT),
        ('unfold', lambda m, x: torch.einsum('bnck,ock->bno', F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1), m.conv.weight)
            + m.conv.bias),
        ('shifts', lambda m, x: sum(part @ m.conv.weight[..., i].T for i, part in enumerate(shifts(x))) + m.conv.bias),
        ('images', lambda m, x: F.conv2d(x.mT.unsqueeze(2), m.conv.weight.unsqueeze(2), m.conv.bias, padding=(0, 1)
                                         ).squeeze(2).mT),
        ('linear of shifts', lambda m, x: F.linear(torch.cat(shifts(x), -1), m.conv.weight.permute(
            0, 2, 1).flatten(1), m.conv.bias)),
        ('im2col', lambda m, x: (m.conv.weight.flatten(1) @ F.unfold(x.mT.unsqueeze(2), (1, 3), padding=(0, 1))
                                 + m.conv.bias[:, None]).mT),
    ],
    'depthwise convolution': [
        ('module', lambda m, x: m.depthwise(x.mT).mT),
        ('unfold', lambda m, x: (F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1) * m.depthwise.weight[:, 0]).sum(-1)
            + m.depthwise.bias),
        ('einsum', lambda m, x: torch.einsum('bndk,dk->bnd', F.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1),
                                             m.depthwise.weight.squeeze(1)).add(m.depthwise.bias)),
        ('shifts', lambda m, x: sum(part * m.depthwise.weight[:, 0, i] for i, part in enumerate(shifts(x)))
            + m.depthwise.bias),
        ('dense', lambda m, x: F.conv1d(x.mT, torch.diag_embed(m.depthwise.weight[:, 0].T).permute(1, 2, 0),
                                        m.depthwise.bias, padding=1).mT),
    ],
    'layer scale': [
        ('product', lambda m, x: x + m.gain * m.a(x)), ('addcmul', lambda m, x: torch.addcmul(x, m.gain, m.a(x))),
        ('method', lambda m, x: x.add(m.a(x).mul(m.gain))), ('in place', lambda m, x: m.a(x).mul_(m.gain).add_(x)),
        ('into a constant', lambda m, x: m.gain.expand_as(x).clone().mul_(m.a(x)).add(x)),
        ('diagonal', lambda m, x: x + m.a(x) @ torch.diag(m.gain)),
        ('einsum', lambda m, x: torch.einsum('bnd,d->bnd', m.a(x), m.gain) + x),
        ('expand_as', lambda m, x: x + m.a(x) * m.gain.expand_as(x)),
        ('folded', lambda m, x: x + F.linear(x, m.a.weight * m.gain[:, None], m.a.bias * m.gain)),
    ],
    'scaled residual': [
        ('number', lambda m, x: x + .3 * m.a(x)), ('alpha', lambda m, x: torch.add(x, m.a(x), alpha=.3)),
        ('in place', alpha_in_place), ('tensor', lambda m, x: x + m.a(x) * number(x, .3)),
        ('tensor of one', lambda m, x: torch.tensor([.3]).to(x).double() * 0 + x + .3 * m.a(x)),
        ('add in place', lambda m, x: x.clone().add_(m.a(x), alpha=.3)),
        ('numbers', lambda m, x: x + torch.full((12,), .3, dtype=x.dtype) * m.a(x)),
        ('minus', lambda m, x: x - m.a(x) * -.3), ('sub', lambda m, x: torch.sub(x, m.a(x), alpha=-.3)),
        ('quotient', lambda m, x: x + m.a(x) / (1 / .3)),
    ],
    'parameter of one': [
        ('product', lambda m, x: m.scalar * x), ('reversed', lambda m, x: x.mul(m.scalar)),
        ('item', lambda m, x: x * m.scalar[0]), ('number', lambda m, x: x * m.scalar.item()),
        ('expanded', lambda m, x: x * m.scalar.expand(12)), ('in place', lambda m, x: x.mul_(m.scalar)),
    ],
    'division by a root': [
        ('number', lambda m, x: x / math.sqrt(12)), ('product', lambda m, x: x * 12 ** -.5),
        ('div', lambda m, x: torch.div(x, 12 ** .5)), ('in place', lambda m, x: x.div_(math.sqrt(12))),
        ('tensor', lambda m, x: x / torch.sqrt(number(x, 12.))), ('rsqrt', lambda m, x: x * number(x, 12.).rsqrt()),
        ('tensor of one', lambda m, x: x / number(x, [12 ** .5])), ('ones', lambda m, x: x / (
            torch.ones(12).to(x) * math.sqrt(12))), ('keywords', lambda m, x: torch.mul(other=12 ** -.5, input=x)),
        ('size', lambda m, x: x / x.shape[-1] ** .5),
    ],
    'difference': [
        ('minus', lambda m, x: m.a(x) - m.b(x)), ('sub', lambda m, x: torch.sub(m.a(x), other=m.b(x))),
        ('plus', lambda m, x: m.a(x) + -m.b(x)), ('negative first', lambda m, x: m.b(x).neg().add(m.a(x))),
        ('in place', lambda m, x: m.a(x).sub_(m.b(x))), ('rsub', lambda m, x: torch.rsub(m.b(x), m.a(x))),
        ('diff', lambda m, x: torch.stack([m.b(x), m.a(x)], -1).diff(dim=-1)[..., 0]),
        ('einsum', lambda m, x: torch.einsum('s...,s->...', torch.stack([m.a(x), m.b(x)]), number(x, [1., -1.]))),
        ('alpha', lambda m, x: torch.add(m.a(x), m.b(x), alpha=-1)),
    ],
    'negative': [
        ('minus', lambda m, x: -x), ('method', lambda m, x: x.neg()), ('in place', lambda m, x: x.neg_()),
        ('from zero', lambda m, x: 0 - x), ('product', lambda m, x: x * -1), ('rsub', lambda m, x: torch.rsub(x, 0)),
        ('tensor', lambda m, x: torch.zeros_like(x) - x), ('quotient', lambda m, x: x / -1.),
    ],
    'weighted sum': [
        ('plus', lambda m, x: m.scalar * m.a(x) + (1 - m.scalar) * m.b(x)),
        ('lerp', lambda m, x: torch.lerp(m.b(x), m.a(x), m.scalar)),
        ('difference', lambda m, x: m.b(x) + m.scalar * (m.a(x) - m.b(x))),
        ('addcmul', lambda m, x: torch.addcmul(m.b(x) * (1 - m.scalar), m.a(x), m.scalar)),
        ('stack', lambda m, x: torch.stack([m.a(x), m.b(x)], -1) @ torch.cat([m.scalar, 1 - m.scalar])),
        ('einsum', lambda m, x: torch.einsum('i,ibnd->bnd', torch.cat([m.scalar, 1 - m.scalar]), torch.stack(
            (m.a(x), m.b(x))))),
    ],
    'sum of three': [
        ('plus', lambda m, x: x + m.a(x) + m.b(x)), ('right first', lambda m, x: x + (m.a(x) + m.b(x))),
        ('builtin', lambda m, x: sum([m.a(x), m.b(x), x])),
        ('stack', lambda m, x: torch.stack([x, m.a(x), m.b(x)]).sum(0)),
        ('in place', lambda m, x: m.a(x).add_(m.b(x)).add_(x)),
        ('matmul', lambda m, x: (torch.stack([x, m.a(x), m.b(x)], -1) @ torch.ones(3, 1).to(x)).squeeze(-1)),
        ('one matrix', lambda m, x: F.linear(x, torch.eye(12).to(x) + m.a.weight + m.b.weight, m.a.bias + m.b.bias)),
    ],
    'mixture of experts': [
        ('gather', routed_sum), ('dense', routed_dense), ('index_add', routed_index_add), ('one_hot', routed_one_hot),
        ('items', routed_items),
    ],
    'soft mixture': [
        ('loop', soft_loop),
        ('einsum', lambda m, x: torch.einsum('bne,bnde->bnd', m.router(x).softmax(-1), outputs(m, x))),
        ('sum', lambda m, x: (outputs(m, x) * F.softmax(m.router(x), dim=-1).unsqueeze(-2)).sum(-1)),
        ('matmul', lambda m, x: (outputs(m, x) @ m.router(x).softmax(-1)[..., None])[..., 0]),
        ('weights first', lambda m, x: torch.einsum('bne,edi,bni->bnd', m.router(x).softmax(-1), torch.stack(
            [expert.weight for expert in m.experts]), x) + m.router(x).softmax(-1) @ torch.stack(
                [expert.bias for expert in m.experts])),
    ],
}
