'''The identity rule of activations as an autograd function.'''
from functools import cache

import torch
from torch.autograd.function import Function, once_differentiable


class Scale(Function):
    '''``y = a(x)`` with ``g_x = g_y * y / x``, and ``a'(0)`` where `x` is 0.'''
    @staticmethod
    def forward(ctx, x, function, slope):
        y = function(x)
        ratio = y / x
        # A sum is read faster than zeros are filled in, and is not a number if one of them is there.
        if x.device.type != 'cpu' or ratio.sum().isnan():
            ratio = torch.where(x == 0, slope, ratio)
        ctx.save_for_backward(ratio)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        ratio, = ctx.saved_tensors
        return grad * ratio, None, None


@cache
def _cached_slope(function, args, kwargs):
    return _slope(function, args, dict(kwargs))


def _slope(function, args, kwargs, like=None):
    with torch.enable_grad():
        zero = torch.zeros(1, dtype=torch.float64) if like is None else torch.zeros_like(like.detach())
        slope, = torch.autograd.grad(function(zero.requires_grad_(), *args, **kwargs).sum(), zero)
        return slope.item() if like is None else slope


def slope_at_zero(function, args, kwargs, like):
    '''Return the derivative of an elementwise function at 0, for arguments that do not depend on the input.

    A number, or if one of the arguments is a tensor of several elements, a tensor of the shape of `like`.
    '''
    args = tuple(arg.item() if isinstance(arg, torch.Tensor) and arg.ndim == 0 else arg for arg in args)
    if any(isinstance(arg, torch.Tensor) for arg in (*args, *kwargs.values())):
        return _slope(function, args, kwargs, like)
    try:
        return _cached_slope(function, args, tuple(kwargs.items()))
    except TypeError:
        return _slope(function, args, kwargs)
