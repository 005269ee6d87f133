'''Linear layers and convolutions with constant weights, as autograd functions that skip what is zero.'''
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from .outputs import owned


class ConstantLinear(Function):
    '''``z = x W^T + b`` with constant weights, whose backward pass skips what received no relevance.

    Queries and keys of a packed projection receive none, nor do tokens that nobody looks at any more.
    '''
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return owned(functional.linear(x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return sparse_matmul(rows, weight).reshape(*grad.shape[:-1], weight.shape[1]), None, None


class ConstantConvolution(Function):
    '''A convolution with constant weights, whose backward pass skips channels that received no relevance.'''
    @staticmethod
    def forward(ctx, x, weight, bias, function, *settings):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return owned(function(x, weight, bias, *settings))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        channels = _nonzero(grad.flatten(2).transpose(0, 1))
        if channels is not None:
            grad, weight = grad[:, channels], weight[channels]
        transposed = _TRANSPOSED[weight.ndim - 2]
        result = transposed(ctx.shape, weight, grad, *ctx.settings) if len(weight) else grad.new_zeros(ctx.shape)
        return result, *[None] * (3 + len(ctx.settings))


_TRANSPOSED = {1: conv1d_input, 2: conv2d_input, 3: conv3d_input}


def sparse_matmul(rows, weight):
    '''``rows @ weight`` without the rows and columns that are zero, where a sample of them says that it is worth it.'''
    columns = _nonzero(rows.t())
    if columns is not None:
        rows, weight = rows[:, columns], weight[columns]
    some = _nonzero(rows)
    if some is None:
        return rows @ weight
    result = rows.new_zeros(len(rows), weight.shape[1])
    result[some] = rows[some] @ weight
    return result


def _nonzero(rows):
    '''Return a slice or mask of the rows that are not zero, or None if most of a sample of them are not.'''
    if not rows.numel():
        return None
    probe = rows[::max(1, len(rows) // 64), ..., ::max(1, rows.shape[-1] // 16)]
    if (probe != 0).flatten(1).any(1).sum() > .75 * len(probe):
        return None
    # Reductions of what is there, because a temporary copy would cost more than it may save.
    axes = tuple(range(1, rows.ndim))
    some = (rows.amax(axes) != 0) | (rows.amin(axes) != 0)
    found = some.nonzero().flatten().tolist() or [-1]
    return slice(found[0], found[-1] + 1) if found[-1] - found[0] + 1 == len(found) else some
