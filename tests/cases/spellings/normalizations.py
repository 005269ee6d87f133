'''Softmaxes and normalizations.'''
import math

import torch
import torch.nn.functional as F
from einops import reduce

from versions import TORCH

EPS = 1e-5


def by_hand(m, x):
    exp = (x - x.amax(-1, keepdim=True)).exp()
    return exp / exp.sum(-1, keepdim=True) * m.v(x)


def var_mean(m, x):
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + EPS) * m.gain + m.bias


def centred_first(m, x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * m.gain + m.bias


def layer_norm_in_place(m, x):
    x = x.sub_(x.mean(-1, keepdim=True))
    return x.div_((x * x).mean(-1, keepdim=True).add_(EPS).sqrt_()).mul_(m.gain).add_(m.bias)


def moments(m, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x ** 2).mean(-1, keepdim=True) - mean ** 2 + EPS) ** .5 * m.gain + m.bias


def grouped(m, x):
    y = x.mT.reshape(len(x), 3, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + EPS).sqrt()
    return y.view_as(x.mT).mT * m.gain + m.bias


def grouped_layers(m, x):
    y = x.mT.unflatten(1, (3, -1))
    y = F.layer_norm(y, y.shape[2:])
    return torch.addcmul(m.bias, y.flatten(1, 2).mT, m.gain)


def folded(m, x):
    scale = m.gain / (m.variance + EPS).sqrt()
    return x * scale + (m.bias - m.mean * scale)


def instance(m, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return m.bias + m.gain * (x - mean) / torch.sqrt(var + EPS)


def std_mean(m, x):
    std, mean = torch.std_mean(x, dim=-1, keepdim=True)
    return (x - mean) / std


def range_of_sort(m, x):
    ordered = x.sort(-1)[0]
    low, high = ordered[..., :1], ordered[..., -1:]
    return (x - low) / (high - low)


def range_of_aminmax(m, x):
    low, high = torch.aminmax(x, dim=-1, keepdim=True)
    return (x - low) / (high - low)


#: Before torch 2.12, it has no derivative.
BY_AMINMAX = [('aminmax', range_of_aminmax)] if TORCH >= (2, 12) else []


def over_sum(x):
    return x / x.sum(-1, keepdim=True)


def logsumexp(x):
    top = x.amax(-1, keepdim=True)
    return top + (x - top).exp().sum(-1, keepdim=True).log()


def divided_in_place(x):
    weights = x.exp()
    weights /= weights.sum(-1, keepdim=True)
    return weights


def all_in_place(x):
    x.sub_(x.amax(-1, keepdim=True).detach()).exp_()
    return x.div_(x.sum(-1, keepdim=True))


def by_element(x):
    parts = [part.exp() for part in x.unbind(-1)]
    return torch.stack([part / sum(parts) for part in parts], -1)


def buffered(x):
    weights = torch.empty_like(x)
    for index in range(12):
        weights[..., index] = x[..., index].exp()
    return weights


def in_place_by_column(x):
    for index in range(12):
        x[..., index].exp_()
    return x


def shifted_plus_one(x, top):
    weights = (x - top).exp()
    return weights / ((-top).exp() + weights.sum(-1, keepdim=True))


SPELLINGS = {
    'softmax': [
        ('method', lambda m, x: x.softmax(-1) * m.v(x)),
        ('torch', lambda m, x: torch.softmax(x, dim=2) * m.v(x)),
        ('functional', lambda m, x: F.softmax(x, -1) * m.v(x)),
        ('keywords', lambda m, x: F.softmax(dim=-1, input=x) * m.v(x)),
        ('module', lambda m, x: m.functions['softmax'](x) * m.v(x)),
        ('softmin', lambda m, x: F.softmin(-x, -1) * m.v(x)),
        ('shifted', lambda m, x: m.v(x) * (x - x.amax(-1, keepdim=True).detach()).softmax(-1)),
        ('by hand', by_hand),
        ('exp over sum', lambda m, x: x.exp() / x.exp().sum(-1, keepdim=True) * m.v(x)),
        ('exp of log_softmax', lambda m, x: x.log_softmax(-1).exp() * m.v(x)),
        ('exp of logsumexp', lambda m, x: (x - x.logsumexp(-1, keepdim=True)).exp() * m.v(x)),
    ],
    'softmax, written out': [
        ('softmax', lambda m, x: x.softmax(-1) * m.v(x)),
        ('exp twice', lambda m, x: x.exp() / x.exp().sum(-1, True) * m.v(x)),
        ('minus amax', lambda m, x: over_sum((x - x.amax(-1, True)).exp()) * m.v(x)),
        ('minus amax, detached', lambda m, x: over_sum((x - x.amax(-1, True).detach()).exp()) * m.v(x)),
        ('minus max of all', lambda m, x: over_sum((x - x.max()).exp()) * m.v(x)),
        ('minus max', lambda m, x: over_sum((x - x.max(-1, keepdim=True).values).exp()) * m.v(x)),
        ('log of sum', lambda m, x: (x - x.exp().sum(-1, True).log()).exp() * m.v(x)),
        ('logsumexp by hand', lambda m, x: (x - logsumexp(x)).exp() * m.v(x)),
        ('minus logsumexp first', lambda m, x: (-x.logsumexp(-1, True) + x).exp() * m.v(x)),
        ('exp2', lambda m, x: over_sum((x * math.log2(math.e)).exp2()) * m.v(x)),
        ('power', lambda m, x: over_sum(math.e ** x) * m.v(x)), ('pow', lambda m, x: over_sum(
            torch.pow(math.e, x)) * m.v(x)),
        ('reciprocal', lambda m, x: x.exp() * x.exp().sum(-1, True).reciprocal() * m.v(x)),
        ('inverse', lambda m, x: x.exp() * (1 / x.exp().sum(-1, True)) * m.v(x)),
        ('power of -1', lambda m, x: x.exp() * x.exp().sum(-1, True) ** -1 * m.v(x)),
        ('normalize', lambda m, x: F.normalize(x.exp(), p=1, dim=-1) * m.v(x)),
        ('norm', lambda m, x: x.exp() / x.exp().norm(1, -1, True) * m.v(x)),
        ('clamped', lambda m, x: x.exp() / x.exp().sum(-1, True).clamp_min(1e-9) * m.v(x)),
        ('divided in place', lambda m, x: divided_in_place(x) * m.v(x)),
        ('all in place', lambda m, x: all_in_place(x.clone()) * m.v(x)),
        ('element by element', lambda m, x: by_element(x) * m.v(x)),
        ('written to a buffer', lambda m, x: over_sum(buffered(x)) * m.v(x)),
        ('exponentials of views in place', lambda m, x: over_sum(in_place_by_column(x.clone())) * m.v(x)),
        ('matrix of ones', lambda m, x: x.exp() / (x.exp() @ torch.ones(12, 1).to(x)) * m.v(x)),
        ('linear', lambda m, x: x.exp() / F.linear(x.exp(), torch.ones(1, 12).to(x)) * m.v(x)),
        ('einsum', lambda m, x: torch.einsum('bnd,bn->bnd', x.exp(), 1 / x.exp().sum(-1)) * m.v(x)),
        ('cumsum', lambda m, x: x.exp() / x.exp().cumsum(-1)[..., -1:] * m.v(x)),
        ('mean', lambda m, x: x.exp() / x.exp().mean(-1, True) / 12 * m.v(x)),
        ('parts', lambda m, x: over_sum(torch.cat([x[..., :5].exp(), x[..., 5:].exp()], -1)) * m.v(x)),
        ('keywords', lambda m, x: torch.true_divide(input=x.exp(), other=x.exp().sum(dim=-1, keepdim=True)) * m.v(x)),
        ('values inside', lambda m, x: x.exp() * m.v(x) / x.exp().sum(-1, True)),
        ('values over the sum', lambda m, x: x.exp() * m.v(x) * (1 / x.exp().sum(-1, True))),
    ],
    'softmax plus one': [
        ('padded', lambda m, x: F.pad(x, (0, 1)).softmax(-1)[..., :-1] * m.v(x)),
        ('cat', lambda m, x: torch.cat([x, torch.zeros_like(x[..., :1])], -1).softmax(-1)[..., :-1] * m.v(x)),
        ('one', lambda m, x: x.exp() / (1 + x.exp().sum(-1, True)) * m.v(x)),
        ('shifted', lambda m, x: shifted_plus_one(x, x.amax(-1, True)) * m.v(x)),
        ('shifted up', lambda m, x: shifted_plus_one(x, x.amax(-1, True).clamp(min=0)) * m.v(x)),
        ('logsumexp', lambda m, x: (x - F.pad(x, (0, 1)).logsumexp(-1, True)).exp() * m.v(x)),
        ('logaddexp', lambda m, x: (x - torch.logaddexp(x.logsumexp(-1, True), torch.zeros(()).to(x))).exp() * m.v(x)),
    ],
    'softmax with a temperature': [
        ('divided', lambda m, x: (x / 2.5).softmax(-1) * m.v(x)),
        ('multiplied', lambda m, x: (x * .4).softmax(-1) * m.v(x)),
        ('in place', lambda m, x: x.clone().div_(2.5).softmax(-1) * m.v(x)),
        ('tensor', lambda m, x: F.softmax(torch.div(x, torch.tensor(2.5)), -1) * m.v(x)),
    ],
    'log_softmax beside a residual': [
        ('functional', lambda m, x: x + F.log_softmax(x, -1)),
        ('method', lambda m, x: x + x.log_softmax(-1)),
        ('module', lambda m, x: m.functions['log_softmax'](x) + x),
        ('logsumexp', lambda m, x: x + (x - x.logsumexp(-1, keepdim=True))),
        ('log of softmax', lambda m, x: x + x.softmax(-1).log()),
    ],
    'layer norm': [
        ('module', lambda m, x: m.layer_norm(x)),
        ('functional', lambda m, x: F.layer_norm(x, (12,), m.gain, m.bias)),
        ('keywords', lambda m, x: F.layer_norm(input=x, normalized_shape=x.shape[-1:], bias=m.bias, weight=m.gain)),
        ('affine by hand', lambda m, x: torch.layer_norm(x, (12,)) * m.gain + m.bias),
        ('var', lambda m, x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True)
                                                               + EPS).sqrt() * m.gain + m.bias),
        ('var_mean', var_mean), ('centred first', centred_first), ('in place', layer_norm_in_place),
        ('moments', moments),
        ('einops', lambda m, x: (x - reduce(x, 'b n d -> b n 1', 'mean')) / torch.sqrt(EPS + reduce(
            (x - x.mean(-1, True)) ** 2, 'b n d -> b n 1', 'mean')) * m.gain + m.bias),
        ('group norm', lambda m, x: F.group_norm(x.flatten(0, 1), 1, m.gain, m.bias).view_as(x)),
    ],
    'RMS norm': [
        ('module', lambda m, x: m.rms_norm(x)),
        ('functional', lambda m, x: F.rms_norm(x, (12,), m.gain, EPS)),
        ('keywords', lambda m, x: F.rms_norm(x, normalized_shape=[12], eps=EPS, weight=m.gain)),
        ('rsqrt', lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * m.gain),
        ('gain first', lambda m, x: m.gain * (x * (x.square().mean(-1, True) + EPS).rsqrt())),
        ('over root', lambda m, x: x / ((x * x).mean(-1, True) + EPS).sqrt() * m.gain),
        ('power', lambda m, x: x * (EPS + torch.einsum('bnd,bnd->bn', x, x)[..., None] / 12) ** -.5 * m.gain),
        ('norm', lambda m, x: x / torch.sqrt(x.norm(dim=-1, keepdim=True) ** 2 / 12 + EPS) * m.gain),
        ('in place', lambda m, x: x.mul_(x.pow(2).mean(-1, True).add_(EPS).rsqrt_()).mul_(m.gain)),
    ],
    'group norm': [
        ('module', lambda m, x: m.group_norm(x.mT).mT),
        ('functional', lambda m, x: F.group_norm(x.transpose(1, 2), 3, m.gain, m.bias).transpose(1, 2)),
        ('by hand', grouped), ('layer norm of groups', grouped_layers),
    ],
    'batch norm': [
        ('module', lambda m, x: m.batch_norm(x.mT).mT),
        ('functional', lambda m, x: F.batch_norm(x.mT, m.mean, m.variance, m.gain, m.bias).mT),
        ('by hand', lambda m, x: (x - m.mean) / (m.variance + EPS).sqrt() * m.gain + m.bias),
        ('folded', folded), ('linear', lambda m, x: F.linear(
            x, torch.diag(m.gain * (m.variance + EPS).rsqrt()), m.bias - m.mean * m.gain * (m.variance + EPS).rsqrt())),
    ],
    'instance norm': [
        ('module', lambda m, x: m.instance_norm(x.mT).mT),
        ('functional', lambda m, x: F.instance_norm(x.mT, weight=m.gain, bias=m.bias).mT),
        ('by hand', instance),
        ('group norm', lambda m, x: F.group_norm(x.mT, 12, m.gain, m.bias).mT),
    ],
    'L2 normalization': [
        ('functional', lambda m, x: F.normalize(x, dim=-1)),
        ('norm', lambda m, x: x / x.norm(dim=-1, keepdim=True)),
        ('clamped', lambda m, x: x / x.norm(p=2, dim=-1, keepdim=True).clamp_min(1e-12)),
        ('vector_norm', lambda m, x: torch.div(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True))),
        ('rsqrt', lambda m, x: x * x.pow(2).sum(-1, keepdim=True).rsqrt()),
        ('expanded', lambda m, x: x / x.norm(dim=-1, keepdim=True).expand_as(x)),
        ('einsum', lambda m, x: x / torch.einsum('...d,...d->...', x, x).unsqueeze(-1).sqrt()),
        ('in place', lambda m, x: x.div_(x.norm(dim=-1, keepdim=True))),
        ('reciprocal', lambda m, x: x.norm(dim=-1, keepdim=True).reciprocal() * x),
    ],
    'cosine similarity': [
        ('functional', lambda m, x: F.cosine_similarity(x, m.k(x), -1)[..., None] * m.v(x)),
        ('module', lambda m, x: m.functions['cosine'](x, m.k(x)).unsqueeze(-1) * m.v(x)),
        ('normalized', lambda m, x: (F.normalize(x, dim=-1) * F.normalize(m.k(x), dim=-1)).sum(-1, True) * m.v(x)),
        ('einsum', lambda m, x: torch.einsum('bnd,bnd->bn', F.normalize(x, dim=-1), F.normalize(m.k(x), dim=-1)
                                             ).unsqueeze(-1) * m.v(x)),
        ('over norms', lambda m, x: (x * m.k(x)).sum(-1, True) / (x.norm(dim=-1, keepdim=True) * m.k(x).norm(
            dim=-1, keepdim=True)) * m.v(x)),
    ],
    'standard score': [
        ('std', lambda m, x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)),
        ('var', lambda m, x: (x - x.mean(-1, keepdim=True)) / x.var(-1, keepdim=True) ** .5),
        ('std_mean', std_mean),
        ('sums', lambda m, x: (x - x.sum(-1, True) / 12) / ((x - x.sum(-1, True) / 12).pow(2).sum(-1, True) / 11
                                                            ).sqrt()),
    ],
    'centring': [
        ('minus', lambda m, x: x - x.mean(-1, keepdim=True)),
        ('in place', lambda m, x: x.sub_(x.mean(-1, keepdim=True))),
        ('matrix', lambda m, x: x @ (torch.eye(12).to(x) - 1 / 12)),
        ('alpha', lambda m, x: torch.sub(x, x.sum(-1, keepdim=True), alpha=1 / 12)),
        ('negative', lambda m, x: -x.mean(-1, keepdim=True) + x),
        ('expanded', lambda m, x: x - x.mean(-1, keepdim=True).expand(*x.shape)),
    ],
    'range normalization': [
        ('amin and amax', lambda m, x: (x - x.amin(-1, True)) / (x.amax(-1, True) - x.amin(-1, True))),
        ('min and max', lambda m, x: (x - x.min(-1, True)[0]) / (x.max(-1, True).values - x.min(-1, True).values)),
        *BY_AMINMAX, ('sort', range_of_sort),
    ],
}
