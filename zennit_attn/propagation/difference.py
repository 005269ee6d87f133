'''Rules of differences: relevance relative to a reference, by the secant of each operator.

With a bar for the mean of the two values that a quantity has, for the input and for the reference ``x0``, every rule
returns a ``g_x`` with ``sum g_x (x - x0) = g_y (y - y0)``. So constants cancel, and nothing is absorbed.
'''
import torch
from torch.nn import functional

from ..kernels import (
    ConstantLinear,
    SecantAttention,
    along_path,
    between_picks,
    log_ratio_of_softmax,
    logarithmic_mean,
    masked_rows,
    normalization_gradient,
    of_two_factors,
    pulled_back,
    slope,
    softmax_gradient,
    with_gradient,
)
from ..operators import Kind
from ..trees import substitute, tensors_in
from .constants import replaced
from .rule import HIDDEN_BIAS, Absorbed, rule
from .rules import RULES, constant, decomposed, is_root, may_skip, rearrange
from .taylor import softmax_dim

#: The sink of normalizers that are constants, but others for the reference.
NORMALIZERS = ('reference', 'normalizers')


def _unexplained(call, output, place=0):
    '''``y - y0``, of which what the operands receive is taken off where they are watched.'''
    return Absorbed(output - tensors_in(call.reference.whole)[place], hidden=HIDDEN_BIAS)


def constants(call, output, place=0):
    '''What constants do that are others for the reference.'''
    if not call.reference.differs:
        return None
    same, whole = tensors_in(call.reference.output)[place], tensors_in(call.reference.whole)[place]
    return Absorbed(same - whole, hidden=NORMALIZERS)


@rule('Difference', left_over=constants, moved=replaced)
def moved(call):
    '''Values move; constants that are put beside them are the same in the reference.'''
    return rearrange.function(call)


@rule('Difference', left_over=constants)
def summed(call):
    '''What is linear in its operands together is linear in their differences.'''
    if call.func is functional.linear and may_skip(call):
        return ConstantLinear.apply(*call.args, *[None] * (3 - len(call.args)))
    return call.run()


def function_of(call):
    '''The function of the call's operands alone, without writing to any.'''
    places = {id(operand): place for place, operand in enumerate(call.operands)}

    def function(*operands):
        args, kwargs = substitute((call.args, call.kwargs), lambda tensor: (
            operands[places[id(tensor)]] if id(tensor) in places else tensor))
        return call.run_out_of_place(args, kwargs)
    return function


def _plain(call):
    '''What the call returns, without gradients and without writing to anything.'''
    with torch.no_grad():
        return call.run_out_of_place()


def _kept(call):
    '''The operands, of which the first may be about to be overwritten.'''
    return [operand.clone() if call.inplace and operand is call.args[0] else operand for operand in call.operands]


def _returned(call, output, gradients, operands):
    return call.write_back(with_gradient(output, gradients, operands))


def _along(call, points):
    output, kept = _plain(call), _kept(call)
    gradients = along_path(
        function_of(call), points, [operand.detach() for operand in kept], call.reference.operands)
    return _returned(call, output, gradients, kept)


@rule('Difference', left_over=constants)
def product(call, factors):
    '''A product of `n` factors is a polynomial along the path: ``n / 2`` points are exact, the mean for two factors.'''
    contracts = call.func in _MATRIX_PRODUCTS
    if not (contracts or call.func in _TIMES) or not len(call.operands) == len(call.args) == 2 or call.kwargs or (
            contracts and min(operand.ndim for operand in call.operands) < 2):
        return _along(call, (factors + 1) // 2)
    output, kept = _plain(call), _kept(call)
    gradients = of_two_factors([operand.detach() for operand in kept], call.reference.operands, contracts)
    return _returned(call, output, gradients, kept)


_TIMES = frozenset((torch.mul, torch.Tensor.mul, torch.Tensor.mul_, torch.Tensor.__mul__, torch.Tensor.__imul__))
_MATRIX_PRODUCTS = frozenset((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
                              torch.mm, torch.Tensor.mm))


@rule('Difference', left_over=_unexplained)
def path(call):
    '''Any other function of several operands: its gradient averaged over the path. What is left over is a sink.'''
    operands = {id(operand): operand for operand in call.operands}
    if call.record is not None:
        watched = call.record.expand(operands)
        call.args, call.kwargs = substitute(
            (call.args, call.kwargs), lambda tensor: watched.get(id(tensor), tensor))
        call.operands = [watched[id(operand)] for operand in call.operands]
    return _along(call, 4)


def multiplied(call):
    '''Products, quotients and contractions.'''
    operator = call.operator
    if call.carries_at(operator.decomposed_by):
        return decomposed(call)
    if operator.over:
        return _over_entries(call)
    if operator.steered:
        return _steered(call)
    factors = len(call.factors)
    if factors > 8:
        return path(call)
    return summed(call) if factors < 2 else product(call, factors)


def _over_entries(call):
    tensor, *rest = call.args
    dim = rest[0] if rest else call.kwargs.get('dim')
    entries = tensor.numel() if dim is None else tensor.shape[dim]
    return path(call) if entries > 8 else product(call, entries)


def _steered(call):
    if call.kwargs.get('rounding_mode') is not None:
        return path(call)
    if not call.carries_at(call.operator.steered):
        others = len(call.operands)
        return summed(call) if others < 2 else product(call, others)
    name = call.operator.name
    return quotient(call) if name.endswith(('div', 'divide', 'truediv')) and not call.kwargs else path(call)


@rule('Difference', left_over=constants)
def quotient(call):
    '''``y = a / b``: ``dy = (da - mean(y) db) / mean(b)``.'''
    over = call.operator.steered[0]
    output, kept = _plain(call), _kept(call)
    mean = (output + call.reference.output) / 2
    below = (call.args[over].detach() + call.reference.args[over]) / 2
    above = call.carries(call.args[1 - over])
    shapes = [operand.shape for operand in kept]

    def gradients(grad):
        parts = (grad / below, -grad * mean / below) if over else (-grad * mean / below, grad / below)
        parts = parts if above else (parts[over],)
        return tuple(part.sum_to_size(shape) for part, shape in zip(parts, shapes, strict=True))
    return _returned(call, output, gradients, kept)


def elementwise(call):
    '''Functions of each element go by their slope, others by parts or along the path.'''
    operator = call.operator
    if _is_quadratic(call):
        return quadratic(call, _DEVIATIONS.get(operator.name, True))
    if operator.name in _EXPONENT:
        return picks(call)
    if operator.name == 'logsumexp' and not call.operands[0].is_complex():
        return log_sum_exp(call)
    if len(call.operands) == 1 and call.carries(call.args[0]) and not operator.joint and (
            not call.args[0].is_complex()):
        output = _plain(call)
        if isinstance(output, torch.Tensor) and output.shape == call.args[0].shape and (
                operator.name not in _OF_SEVERAL):
            return secant(call, output)
    return path(call)


#: Functions of all elements of their operand, though of its shape.
_OF_SEVERAL = frozenset('cholesky inv inverse linalg_inv pinv pinverse cholesky_inverse'.split())


@rule('Difference', left_over=constants)
def secant(call, output):
    '''``g_x = g_y (y - y0) / (x - x0)`` for a function of each element.'''
    operand, = kept = _kept(call)
    alone = len(tensors_in(call.args, call.kwargs)) == 1
    reference = call.reference
    slopes = slope(function_of(call), operand.detach(), reference.operands[0], output, reference.output, alone)
    return _returned(call, output, lambda grad: (grad * slopes,), kept)


@rule('Difference', left_over=constants)
def picks(call):
    '''What picks by the data: from the picks for the reference to those for the input.'''
    if call.operator.bounds and len(call.operands) == 1:
        return elementwise(call)
    if any(operand.is_complex() for operand in call.operands):
        return path(call)
    output, kept = _plain(call), _kept(call)
    gradients = between_picks(function_of(call), [operand.detach() for operand in kept], call.reference.operands)
    return _returned(call, output, gradients, kept)


def added(call):
    '''Sums, and the few of that kind which pick.'''
    if call.operator.name in ('quantile', 'nanquantile'):
        return picks(call)
    if call.carries_at(call.operator.decomposed_by):
        return decomposed(call)
    if call.operator.trains:
        return RULES[Kind.ADD](call)
    return multiplied(call) if call.operator.factors else summed(call)


@rule('Difference', left_over=constants)
def softmax(call):
    '''A softmax by the logarithmic mean `L` of its two values: ``g_x = L (g - sum(L g) / sum(L))``.'''
    operator = call.operator
    if operator.random or operator.tangent is None:
        return path(call)
    dim = softmax_dim(call)
    output, reference = _plain(call), call.reference.output
    logarithmic = operator.name == 'log_softmax'
    sign = -1. if operator.name == 'softmin' else 1.
    if logarithmic:
        mean = logarithmic_mean(output.exp(), reference.exp(), output - reference)
        share = mean / _divisor(mean.sum(dim, keepdim=True))
    else:
        scores = [sign * tensor.to(output.dtype) for tensor in (call.before[0].detach(), call.reference.args[0])]
        mean = logarithmic_mean(output, reference, log_ratio_of_softmax(*scores, output, reference, dim))
        mean.masked_fill_(masked_rows(scores[0], dim) & masked_rows(scores[1], dim), 0.)
    dtype = call.args[0].dtype

    def gradients(grad):
        if logarithmic:
            return ((grad - share * grad.sum(dim, keepdim=True)).to(dtype),)
        return ((sign * softmax_gradient(grad, mean, dim)).to(dtype),)
    return _returned(call, output, gradients, _kept(call))


def _divisor(total):
    return torch.where(total == 0, 1., total)


@rule('Difference', left_over=constants)
def log_sum_exp(call):
    '''``ln sum exp x``: ``g_x = g_y L / sum(L)`` with the logarithmic mean `L` of the softmax.'''
    dim, keep = _reduced(call)
    x, x0 = call.args[0].detach(), call.reference.args[0]
    logs = [tensor - tensor.logsumexp(dim, keepdim=True) for tensor in (x, x0)]
    mean = logarithmic_mean(logs[0].exp(), logs[1].exp(), logs[0] - logs[1])
    share = mean / _divisor(mean.sum(dim, keepdim=True))

    def gradients(grad):
        return (share * (grad if keep else _unreduced(grad, dim, x.ndim)),)
    return _returned(call, _plain(call), gradients, _kept(call))


def _reduced(call):
    dim = call.args[1] if len(call.args) > 1 else call.kwargs['dim']
    keep = call.args[2] if len(call.args) > 2 else call.kwargs.get('keepdim', False)
    return (dim,) if isinstance(dim, int) else tuple(dim), keep


def _unreduced(grad, dim, ndim):
    for axis in sorted(axis % ndim for axis in dim):
        grad = grad.unsqueeze(axis)
    return grad


def attention(call):
    '''Fused attention: in one step, or as what it consists of, or along the path.'''
    if call.operator.decomposition is None:
        factors = len(call.factors)
        return product(call, factors) if factors else path(call)
    settings = _settings(*call.args[3:], **call.kwargs)
    dropout, mask, *_ = settings
    if dropout or (mask is not None and call.carries(mask)) or not call.carries_at((0, 1, 2)):
        return decomposed(call)
    return fused(call, settings[1:])


def _settings(attn_mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
    return dropout_p, attn_mask, is_causal, scale, enable_gqa


@rule('Difference', left_over=constants)
def fused(call, settings):
    '''See :py:class:`~zennit_attn.kernels.SecantAttention`.'''
    return SecantAttention.apply(*call.args[:3], (_plain(call),), call.reference.args[:3], *settings)


def normalization(call):
    '''Normalizations: their deviation has a secant too.'''
    operator = call.operator
    plain = len(call.operands) == 1 and call.operands[0] is call.args[0]
    if not plain and call.carries_at(operator.decomposed_by):
        return decomposed(call)
    rows = _ROWS.get(operator.name)
    if rows is None:
        return path(call)
    rows = rows(*call.args, **call.kwargs)
    return summed(call) if rows is None else normalized(call, *rows)


@rule('Difference', left_over=constants)
def normalized(call, rows, weight, eps, centres):
    '''See :py:func:`~zennit_attn.kernels.secants.normalization_gradient`.'''
    x = call.before[0].detach()
    working = torch.promote_types(x.dtype, torch.float32)
    centred, scale = [], []
    for tensor in (x, call.reference.args[0]):
        values = _centred(rows(tensor.to(working)), centres)
        centred.append(values)
        scale.append((values.square().mean(-1, keepdim=True) + eps).rsqrt())

    def gradients(grad):
        weighted = grad if weight is None else grad * weight
        result = normalization_gradient(rows(weighted.to(working)), *centred, *scale, centres)
        return (result.reshape(x.shape).to(x.dtype),)
    return _returned(call, _plain(call), gradients, [call.args[0]])


def _layer_rows(x, shape, weight=None, bias=None, eps=1e-5, *_):
    return lambda tensor: tensor.flatten(-len(shape)), weight, eps, True


def _rms_rows(x, shape, weight=None, eps=None):
    return lambda tensor: tensor.flatten(-len(shape)), weight, torch.finfo(x.dtype).eps if eps is None else eps, False


def _group_rows(x, groups, weight=None, bias=None, eps=1e-5, *_):
    weight = None if weight is None else weight.reshape(1, -1, *[1] * (x.ndim - 2))
    return lambda tensor: tensor.reshape(tensor.shape[0] * groups, -1), weight, eps, True


def _instance_rows(x, mean=None, variance=None, weight=None, bias=None, use_input_stats=True, momentum=.1, eps=1e-5):
    return _group_rows(x, x.shape[1], weight, bias, eps) if use_input_stats else None


def _batch_rows(x, mean, variance, weight=None, bias=None, training=False, *_):
    return None


_ROWS = {'layer_norm': _layer_rows, 'rms_norm': _rms_rows, 'group_norm': _group_rows,
         'instance_norm': _instance_rows, 'batch_norm': _batch_rows}


# roots of what is quadratic in the operands: norms, distances and deviations

@rule('Difference', left_over=constants)
def quadratic(call, root=True):
    '''``y = sqrt(q)`` with `q` quadratic: ``dy = dq / (y + y0)``, and ``dq`` is that at the mean of the operands.

    The gradient of `y` there is that of `q` over twice ``sqrt(q)``, so one factor is all that is needed. A mean that is
    returned beside it is linear.
    '''
    output, kept = _plain(call), _kept(call)
    means = [(operand.detach() + value) / 2 for operand, value in zip(kept, call.reference.operands, strict=True)]
    function = function_of(call)
    with torch.no_grad():
        middle = tensors_in(function(*means))
    sums = [own + other for own, other in zip(tensors_in(output), tensors_in(call.reference.output), strict=True)]
    linear = call.operator.linear_outputs
    factors = [1. if place in linear or not root else 2 * at / _divisor(total)
               for place, (at, total) in enumerate(zip(middle, sums, strict=True))]

    def gradients(*grads):
        scaled = [None if grad is None else grad * factor for grad, factor in zip(grads, factors, strict=True)]
        return tuple(pulled_back(function, means, scaled))
    return _returned(call, output, gradients, kept)


def _is_quadratic(call):
    '''Whether a function is a variance, or a norm or distance with squares.'''
    position = _EXPONENT.get(call.operator.name)
    if position is None:
        return call.operator.name in _DEVIATIONS
    default = 2. if len(call.args) <= position else call.args[position]
    exponent = call.kwargs.get('p', call.kwargs.get('ord', default))
    if call.func is torch.linalg.norm and exponent in (2, 2.):
        return False  # of a matrix it is the largest singular value
    return exponent in (None, 2, 2., 'fro')


_DEVIATIONS = {'var': False, 'var_mean': False, 'std': True, 'std_mean': True, 'hypot': True, 'frobenius_norm': True}
#: The position of the exponent in the arguments.
_EXPONENT = {'norm': 1, 'vector_norm': 1, 'linalg_vector_norm': 1, 'cdist': 2, 'dist': 2, 'pairwise_distance': 2}

#: The rule of each kind of operator.
DIFFERENCES = {
    Kind.REARRANGE: moved, Kind.SELECT: picks, Kind.ADD: added, Kind.LINEAR: multiplied, Kind.EINSUM: multiplied,
    Kind.MULTIPLY: multiplied, Kind.SOFTMAX: softmax, Kind.ATTENTION: attention, Kind.GATE: elementwise,
    Kind.ACTIVATION: elementwise, Kind.NORMALIZATION: normalization, Kind.COMPOSED: decomposed,
}


# with normalizers as constants, which are others for the reference

def _constant(call):
    '''View the result as a constant, which keeps its own value for the reference.'''
    output = constant(call)
    if not call.inplace:
        for tensor, value in zip(tensors_in(output), tensors_in(call.reference.whole), strict=True):
            call.forward.references.set(tensor, value)
    return output


def elementwise_now(call):
    '''Roots, deviations and norms are normalizers; other functions have a secant.'''
    root = is_root(call) if call.operator.kind is Kind.ACTIVATION else not call.operator.smooth
    return _constant(call) if root else elementwise(call)


def multiplied_now(call):
    '''Denominators are normalizers.'''
    steered = call.operator.steered
    if not call.carries_at(steered) or call.carries_at(call.operator.decomposed_by):
        return multiplied(call)
    if not call.carries_at([position for position in range(len(call.args)) if position not in steered]):
        return _constant(call)
    references = call.forward.references
    args = [references.set(arg.detach(), references.of(arg)) if position in steered and call.carries(arg) else arg
            for position, arg in enumerate(call.args)]
    return call.forward.decompose(call.func, args, call.kwargs)


def normalization_now(call):
    '''The deviation is a constant.'''
    plain = len(call.operands) == 1 and call.operands[0] is call.args[0]
    if not plain and call.carries_at(call.operator.decomposed_by):
        return decomposed(call)
    rows = _ROWS.get(call.operator.name)
    rows = None if rows is None else rows(*call.args, **call.kwargs)
    return normalization(call) if rows is None else _constant_deviation(call, *rows)


@rule('Difference', left_over=constants)
def _constant_deviation(call, rows, weight, eps, centres):
    x, x0 = call.args[0], call.reference.args[0]
    output = call.operator.normalize(x, *call.args[1:], **call.kwargs)
    gap = _centred(rows(x.detach() - x0), centres)
    scale = (_centred(rows(x.detach()), centres).square().mean(-1, keepdim=True) + eps).rsqrt()
    gap = (gap * scale).reshape(x.shape)
    call.reference.put(output.detach() - (gap if weight is None else gap * weight))
    return output


def _centred(rows, centres):
    return rows - rows.mean(-1, keepdim=True) if centres else rows


#: The rules with normalizers as constants.
NORMALIZERS_NOW = {
    **DIFFERENCES, Kind.GATE: elementwise_now, Kind.ACTIVATION: elementwise_now, Kind.MULTIPLY: multiplied_now,
    Kind.LINEAR: multiplied_now, Kind.NORMALIZATION: normalization_now,
}
