'''Backward passes that are a rule: of activations, normalizations and linear layers, as autograd functions.'''
from functools import cache

import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input

from .attention.causal import plain_precision
from .errors import UnsupportedModule


class Scale(Function):
    '''``y = a(x)`` with ``g_x = g_y * y / x``, and ``a'(0)`` where `x` is 0.'''
    @staticmethod
    def forward(ctx, x, function, slope):
        y = function(x)
        ratio = y / x
        # A sum is read faster than zeros are filled in, and is not a number if one of them is there.
        if x.device.type != 'cpu' or ratio.sum().isnan():
            ratio.masked_fill_(x == 0, slope)
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


def _slope(function, args, kwargs):
    with torch.enable_grad():
        zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(function(zero, *args, **kwargs), zero)[0].item()


def slope_at_zero(function, args, kwargs):
    '''Return the derivative of an elementwise function at 0, for arguments that do not depend on the input.'''
    args = tuple(arg.item() if isinstance(arg, torch.Tensor) and arg.ndim == 0 else arg for arg in args)
    try:
        return _cached_slope(function, args, tuple(kwargs.items()))
    except TypeError:
        return _slope(function, args, kwargs)


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


#: The normalizations by name.
NORMS = {
    'layer_norm': layer_norm, 'rms_norm': rms_norm, 'group_norm': group_norm, 'instance_norm': instance_norm,
    'batch_norm': batch_norm,
}


def _own(output):
    '''An output that may be written to later, which no autograd function may return a view for.'''
    return output.clone() if output._is_view() else output


class ConstantLinear(Function):
    '''``z = x W^T + b`` with constant weights, whose backward pass skips what received no relevance.

    Queries and keys of a packed projection receive none, nor do tokens that nobody looks at any more.
    '''
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return _own(functional.linear(x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return _sparse_matmul(rows, weight).reshape(*grad.shape[:-1], weight.shape[1]), None, None


class ConstantConvolution(Function):
    '''A convolution with constant weights, whose backward pass skips channels that received no relevance.'''
    @staticmethod
    def forward(ctx, x, weight, bias, function, *settings):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return _own(function(x, weight, bias, *settings))

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


def _sparse_matmul(rows, weight):
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


class ConstantAttention(Function):
    '''Softmax attention ``o = A v`` with a constant map `A`, whose backward pass is ``g_v = A^T g_o``.

    The backward pass computes the map again, some rows at a time. So no map is kept, whatever kernel torch chooses for
    the forward pass, and of the five products in torch's own backward pass only two are left.
    '''
    @staticmethod
    def forward(ctx, value, query, key, mask, causal, scale, grouped):
        ctx.save_for_backward(query, key, mask)
        ctx.shape, ctx.dtype, ctx.causal = value.shape, value.dtype, causal
        ctx.scale = query.shape[-1] ** -.5 if scale is None else scale
        ctx.group = query.shape[-3] // key.shape[-3] if grouped else 1
        return _own(functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=grouped))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, mask = ctx.saved_tensors
        working = torch.promote_types(query.dtype, torch.float32)
        query, key = query.to(working) * ctx.scale, key.to(working)
        key = key.repeat_interleave(ctx.group, -3) if ctx.group > 1 else key
        with plain_precision(grad.device.type):
            result = _transposed_attention(query, key, mask, ctx.causal, grad.to(working))
        result = result.unflatten(-3, (-1, ctx.group)).sum(-3) if ctx.group > 1 else result
        return result.sum_to_size(ctx.shape).to(ctx.dtype), *[None] * 6


def _transposed_attention(query, key, mask, causal, grad):
    '''``A^T g`` for the softmax `A` of queries times keys, with a block of its rows in memory at a time.'''
    result = grad.new_zeros(*grad.shape[:-2], key.shape[-2], grad.shape[-1])
    for rows in _blocks_of_rows(grad, key.shape[-2]):
        seen = slice(rows.stop if causal else None)
        scores = query[..., rows, :] @ key[..., seen, :].mT
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1 + rows.start)
            scores.masked_fill_(future, -torch.inf)
        weights = _softmax(scores, mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :])
        result[..., seen, :] += weights.mT @ grad[..., rows, :]
    return result


def _softmax(scores, mask):
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return scores.softmax(-1).masked_fill_(blank_rows(scores, -1), 0.)


#: Numbers of the map that are in memory at a time: what a CPU's cache holds, and what keeps an accelerator busy.
BLOCK = {'cpu': 2 ** 19, 'cuda': 2 ** 26}
#: Rows that a block has at least, so that its products are worth a call.
BLOCK_ROWS = 32


def _blocks_of_rows(grad, columns):
    row = grad.shape[:-2].numel() * columns
    size = max(BLOCK_ROWS, BLOCK.get(grad.device.type, 2 ** 20) // max(1, row))
    return [slice(start, min(start + size, grad.shape[-2])) for start in range(0, grad.shape[-2], size)]


def blank_rows(scores, dim):
    '''Mark the rows that are masked as a whole: their softmax is undefined, so nothing flows through them.'''
    return scores.amax(dim, keepdim=True).isneginf() if scores.numel() else scores.isneginf().all(dim, keepdim=True)


class GammaLinear(Function):
    '''The generalized gamma rule of a linear module in two products: see :py:class:`~zennit_attn.rules.Gamma`.'''
    @staticmethod
    def forward(ctx, x, function, gradient, report):
        output = _own(function(x))
        ctx.save_for_backward(x)
        # not saved by autograd, which would refuse code that writes into the output later on
        ctx.output, ctx.version, ctx.function = output.detach(), output._version, function
        ctx.gradient = gradient
        ctx.report = report
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        output = ctx.output if ctx.output._version == ctx.version else ctx.function(x)
        result = ctx.gradient(x, output, grad)
        if ctx.report is not None:
            ctx.report([output * grad], [x * result])
        return result, None, None, None


class LinearMap:
    '''The map ``x -> x W`` of a linear layer or convolution without its bias, its transpose, and those of ``|W|``.'''
    def __init__(self, module):
        self.module = module

    def __call__(self, x, weight):
        if isinstance(self.module, torch.nn.Linear):
            return functional.linear(x, weight)
        return self.module._conv_forward(x, weight, None)

    def transpose(self, grad, weight, like):
        '''Return ``grad W^T``, of the shape of the inputs `like`.'''
        if isinstance(self.module, torch.nn.Linear):
            return _sparse_matmul(grad.reshape(-1, grad.shape[-1]), weight).reshape(like.shape)
        module, dims = self.module, grad.ndim - 2
        zeros = [0] * dims
        return torch.ops.aten.convolution_backward(
            grad, like, weight, None, module.stride, module.padding, module.dilation, False, zeros, module.groups,
            (True, False, False))[0]

    @property
    def bias(self):
        '''The bias in a shape that fits the outputs, or None.'''
        bias = self.module.bias
        if bias is None or isinstance(self.module, torch.nn.Linear):
            return bias
        return bias.reshape(-1, *[1] * (self.module.weight.ndim - 2))

    @staticmethod
    def fits(module, *inputs):
        '''Whether a module is a linear layer or convolution whose code is torch's, called with one batch.'''
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or not inputs[0].requires_grad:
            return False
        if torch.is_autocast_enabled(inputs[0].device.type):
            return False
        if type(module).forward is torch.nn.Linear.forward:
            return True
        plain = any(type(module).forward is cls.forward for cls in _CONVOLUTIONS)
        return plain and inputs[0].ndim == module.weight.ndim and (
            module.padding_mode == 'zeros' and not isinstance(module.padding, str))


_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def gamma_gradient(linear, x, output, grad, gamma, stabilizer, zero_params=()):
    '''Propagate ``g_z`` through a linear map by the rule :py:class:`~zennit_attn.rules.Gamma`.'''
    weight, bias = linear.module.weight.detach(), linear.bias
    magnitude = weight.abs()
    kept = bias is not None and 'bias' not in zero_params
    product = output if bias is None else output - bias
    positive = (product + linear(x.abs(), magnitude)) / 2
    negative = product - positive
    if kept:
        positive, negative = positive + bias.clamp(min=0), negative + bias.clamp(max=0)
        product = output
    relevance = output * grad
    above = torch.where(output > 0, relevance / stabilizer(product + gamma * positive), 0)
    below = torch.where(output < 0, relevance / stabilizer(product + gamma * negative), 0)
    plain = linear.transpose((1 + gamma / 2) * (above + below), weight, x)
    return plain + x.sign() * linear.transpose(gamma / 2 * (above - below), magnitude, x)
