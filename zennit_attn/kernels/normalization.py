'''Normalizations with a constant deviation, as autograd functions.'''
import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from ..errors import UnsupportedModule


class _Normalize(Function):
    '''Normalization with the deviation held constant: ``g_x = (g_y w - mean(g_y w)) / std``.

    The input is viewed as rows that are normalized one by one.
    '''
    @staticmethod
    def forward(ctx, x, function, weight):
        output, scale = function(x)
        ctx.save_for_backward(scale, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scale, weight = ctx.saved_tensors
        weighted = grad if weight is None else grad * weight
        return _center_and_scale(weighted, scale), None, None


def _center_and_scale(grad, scale):
    rows = grad.reshape(scale.numel(), -1)
    rows = (rows - rows.mean(-1, keepdim=True)) * scale.reshape(-1, 1)
    return rows.reshape(grad.shape).to(grad.dtype)


class _LayerNorm(_Normalize):
    '''As above in one pass: torch's own backward pass, of an input that does not deviate, leaves out the deviation.'''
    @staticmethod
    def forward(ctx, x, function, weight, shape):
        ctx.shape = shape
        return _Normalize.forward(ctx, x, function, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scale, weight = ctx.saved_tensors
        grad, flat = grad.contiguous(), torch.zeros_like(grad, memory_format=torch.contiguous_format)
        mean, mask = torch.zeros_like(scale), (True, False, False)
        result = torch.ops.aten.native_layer_norm_backward(grad, flat, ctx.shape, mean, scale, weight, None, mask)
        return result[0], None, None, None


class _GroupNorm(_Normalize):
    '''The same for groups of channels.'''
    @staticmethod
    def forward(ctx, x, function, weight, sizes):
        ctx.sizes = sizes
        return _Normalize.forward(ctx, x, function, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scale, weight = ctx.saved_tensors
        grad, flat = grad.contiguous(), torch.zeros_like(grad, memory_format=torch.contiguous_format)
        mean, mask = torch.zeros_like(scale), (True, False, False)
        result = torch.ops.aten.native_group_norm_backward(grad, flat, mean, scale, weight, *ctx.sizes, mask)
        return result[0], None, None, None


class _RMSNorm(_Normalize):
    '''The same without a mean: ``g_x = g_y w / rms``.'''
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        scale, weight = ctx.saved_tensors
        weighted = grad if weight is None else grad * weight
        return (weighted * scale).to(grad.dtype), None, None


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5, *_):
    def function(x):
        output, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        return output, scale
    return _LayerNorm.apply(x, function, weight, tuple(shape))


def rms_norm(x, shape, weight=None, eps=None):
    def function(x):
        variance = x.square().mean(dim=tuple(range(-len(shape), 0)), keepdim=True)
        return functional.rms_norm(x, shape, weight, eps), torch.rsqrt(variance + stable)
    stable = torch.finfo(x.dtype).eps if eps is None else eps
    return _RMSNorm.apply(x, function, weight)


def group_norm(x, groups, weight=None, bias=None, eps=1e-5, *_):
    def native(x):
        output, _, scale = torch.native_group_norm(x, weight, bias, *sizes, eps)
        return output, scale

    def function(x):
        variance = x.reshape(x.shape[0] * groups, -1).var(-1, correction=0)
        return functional.group_norm(x, groups, weight, bias, eps), torch.rsqrt(variance + eps)
    if x.is_contiguous():
        sizes = len(x), x.shape[1], x.shape[2:].numel(), groups
        return _GroupNorm.apply(x, native, weight, sizes)
    return _Normalize.apply(x, function, per_channel(weight, x))


def per_channel(weight, x):
    return None if weight is None else weight.reshape(1, -1, *[1] * (x.ndim - 2))


def instance_norm(x, mean=None, variance=None, weight=None, bias=None, use_input_stats=True, momentum=.1, eps=1e-5):
    if use_input_stats:
        return group_norm(x, x.shape[1], weight, bias, eps)
    return functional.instance_norm(x, mean, variance, weight, bias, use_input_stats, momentum, eps)


def batch_norm(x, mean, variance, weight=None, bias=None, training=False, *args):
    if training:
        raise UnsupportedModule('batch_norm in training mode mixes the samples of a batch; call model.eval() first')
    return functional.batch_norm(x, mean, variance, weight, bias, False, *args)
