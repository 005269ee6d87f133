'''Torch functions that consist of others: their own code, written with torch functions that the table knows.'''
from functools import cache
from types import FunctionType

import torch
from torch.nn import functional

from .kernels import per_channel


def _glu(x, dim=-1):
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _cosine_similarity(x1, x2, dim=1, eps=1e-8):
    x1 = x1 / x1.norm(dim=dim, keepdim=True).clamp_min(eps)
    x2 = x2 / x2.norm(dim=dim, keepdim=True).clamp_min(eps)
    return (x1 * x2).sum(dim)


def _layer_norm(x, shape, weight=None, bias=None, eps=1e-5, *_):
    return _affine(functional.layer_norm(x, shape, eps=eps), weight, bias)


def _rms_norm(x, shape, weight=None, eps=None):
    return _affine(functional.rms_norm(x, shape, eps=eps), weight, None)


def _group_norm(x, groups, weight=None, bias=None, eps=1e-5, *_):
    weight, bias = per_channel(weight, x), per_channel(bias, x)
    return _affine(functional.group_norm(x, groups, eps=eps), weight, bias)


def _affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _batch_norm(x, weight, bias, mean, variance, training, momentum, eps, _):
    return functional.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def _instance_norm(x, weight, bias, mean, variance, use_input_stats, momentum, eps, _):
    return functional.instance_norm(x, mean, variance, weight, bias, use_input_stats, momentum, eps)


def _attention(query, key, value, mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return functional.dropout(scores.softmax(-1), dropout_p) @ value


#: What composed functions consist of, by name.
COMPOSITIONS = {
    'scaled_dot_product_attention': _attention,
    'glu': _glu,
    'cosine_similarity': _cosine_similarity,
    'lerp': lambda start, end, weight: start + weight * (end - start),
    'addcdiv': lambda x, tensor1, tensor2, *, value=1: x + value * (tensor1 / tensor2),
    'layer_norm': _layer_norm, 'rms_norm': _rms_norm, 'group_norm': _group_norm,
    'batch_norm': _batch_norm, 'instance_norm': _instance_norm,
}


@cache
def visible(function):
    '''A copy of a Python function of torch that does not hand itself over to a mode, which then sees its inside.'''
    checks = {name: lambda *_: False for name in function.__globals__ if name.startswith('has_torch_function')}
    copy = FunctionType(function.__code__, {**function.__globals__, **checks}, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
