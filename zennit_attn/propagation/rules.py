'''How relevance flows through one call of an operator, in the gradient domain.

With ``R_x = x * g_x``, what flows backward here is ``g``. Every rule below runs an operator such that autograd's
backward pass is the rule: plain autograd is LRP-0 for whatever is linear, products divide by the number of their
factors, gates are constants, activations scale by ``y / x``.
'''
import itertools
from collections.abc import Callable
from numbers import Real

import torch
from torch.nn import functional

from ..errors import UnsupportedModule, UnsupportedOperator
from ..kernels import ConstantAttention, ConstantConvolution, ConstantLinear, InPlaceOf, Scale, slope_at_zero
from ..operators import Kind, out_of_place
from ..operators.decompositions import Unwritten, visible
from ..trees import is_plain, substitute, tensors_in
from .constants import added, is_number, nothing, replaced
from .rule import Absorbed, rule


def scaled(tensor, divisor):
    '''Return a view of a tensor whose gradient arrives divided.'''
    view = tensor.view_as(tensor)
    view.register_hook(lambda grad: grad / divisor)
    return view


@rule('LRPZero', left_over=added)
def proportional(call, args=None):
    '''LRP-0 for anything linear in its operands together: ``g_x = J^T g_z``, which is autograd.'''
    return _run(call, args)


def _run(call, args=None):
    '''Run a call, if given with other arguments, which nothing is written to.'''
    if args is None:
        return call.run()
    return call.write_back(call.run_out_of_place(args)) if call.inplace else call.run(args)


@rule('gradient', left_over=added, moved=replaced)
def select(call):
    '''Values are picked and keep their relevance; bounds that are put in their place absorb it.

    A clamp between numbers on both sides of zero is an activation, as which ``hardtanh`` is known.
    '''
    value, slope = _around_zero(call) if call.operator.clamps else (None, None)
    return clamped(call, slope) if value == 0. else call.run()


@rule('gradient', left_over=added, moved=replaced)
def picked(call):
    '''Values are picked and keep their relevance, whatever the bounds.'''
    return call.run()


@rule('Identity', left_over=nothing)
def clamped(call, slope):
    '''The identity rule of a clamp that leaves zero as it is.'''
    return call.write_back(Scale.apply(call.operands[0], lambda x: call.run_out_of_place(_in_place_of(call, x)), slope))


def _in_place_of(call, tensor, constant=lambda constant: constant):
    return substitute(call.args, lambda arg: tensor if call.carries(arg) else constant(arg))


def _around_zero(call):
    '''What a clamp makes of zero, and its slope there, if its bounds are numbers, however these are written.'''
    bounds = [arg for arg in (*call.args, *call.kwargs.values()) if not call.carries(arg)]
    shapes = [bound.shape for bound in bounds if isinstance(bound, torch.Tensor)]
    shape = call.operands[0].shape
    if len(call.operands) > 1 or torch.broadcast_shapes(shape, *shapes) != shape or not all(
            bound is None or is_number(bound) for bound in bounds):
        return None, None
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    kwargs = substitute(call.kwargs, lambda bound: bound.detach().reshape(-1)[:1].to(zero))
    with torch.enable_grad():
        value = call.run_out_of_place(_in_place_of(call, zero, lambda bound: bound.reshape(-1)[:1].to(zero)), kwargs)
    return value.item(), torch.autograd.grad(value, zero)[0].item()


@rule('gradient', left_over=added, moved=replaced)
def rearrange(call):
    '''Values move and keep their relevance. Two that are written to one place would both be credited with it.'''
    writes = call.operator.writes
    if writes is not None and call.carries_at((writes.values,)) and not call.accumulates:
        places = writes.places(*call.args)
        if places is not None and places.unique().numel() < places.numel():
            module, line = call.forward.locate()
            raise UnsupportedOperator(
                f'module {module!r}: {call.operator.name} writes to one place more than once, so that it is not '
                f'defined which value stays, and whose relevance it has\n  {line}\n'
                'write each place once, or add with index_add, scatter_add or index_put(..., accumulate=True)'
            )
    return call.run()


def _overwritten(call, output, place=0):
    '''A gate in place is a constant in what the tensor that it was written to is a view of, or has views of.'''
    return Absorbed(output) if call.inplace else None


@rule('Constant', left_over=_overwritten)
def constant(call):
    '''View the result as a constant: its backward pass is never run.'''
    with torch.no_grad():
        output = call.run_out_of_place() if call.inplace else call.run()
    if call.inplace:
        copy = call.forward.before_gate(call)
        call.args[0].copy_(output)
        call.forward.note_gate(call, call.args[0], copy)
        return call.forward.mark_constant(call.args[0])
    call.forward.note_gate(call, output)
    return output


@rule('Uniform', left_over=added)
def uniform(call, args=None):
    '''Share relevance evenly among the `n` factors of a product: ``g_x = J^T g_z / n``. Of one factor it is LRP-0.'''
    if len(call.operands) == 1:
        return proportional(call, args)
    arguments, positions = call.args if args is None else args, call.operator.factors
    factors = [tensor for position, arg in enumerate(arguments) if position in positions
               for tensor in tensors_in(arg) if call.carries(tensor)]
    if len(factors) < 2:
        return proportional(call, args)
    gates = [tensor for tensor in factors if call.forward.is_gate(tensor)]
    masks = _masks(call, factors) if call.forward.parted else None
    if masks is not None:
        return in_parts(call, arguments, factors, gates, masks)
    gates = gates if len(gates) < len(factors) else []
    divisor = len(factors) - len(gates)

    def factor(tensor):
        own = tensor.clone() if call.inplace and tensor is call.args[0] else tensor
        if any(tensor is gate for gate in gates):
            return own.detach()
        return scaled(own, divisor) if divisor > 1 and call.carries(tensor) else own

    arguments = tuple(substitute(arg, factor) if position in positions else arg
                      for position, arg in enumerate(arguments))
    return _run(call, arguments) if divisor > 1 else proportional(call, arguments)


def _masks(call, factors):
    '''For each factor which of its elements are factors, or None for all; None if all are of all.'''
    masks = [call.forward.mask_of(tensor) for tensor in factors]
    if all(mask is None for mask in masks):
        return None
    if _contracts(call):
        masks = [None if mask is None or mask.any() else mask for mask in masks]
    return None if all(mask is None for mask in masks) else masks


def _contracts(call):
    '''Whether a product sums up, so that an element of the result may have factors of both sorts.

    There, only a factor without any element that carries relevance is known to be none. A constant that went through a
    layer is not told from what carries, and so keys of a cache must not be told from such that are computed again.
    '''
    name, equation = call.operator.name, call.args[0]
    if call.operator.kind is Kind.MULTIPLY or name in ('outer', 'ger', 'kron', 'addr'):
        return False
    if name != 'einsum' or not isinstance(equation, str) or '->' not in equation:
        return True
    inputs, output = equation.replace(' ', '').split('->')
    return not set(inputs) - {','} <= set(output)


@rule('Uniform', left_over=added)
def in_parts(call, arguments, factors, gates, masks):
    '''The uniform rule where some elements of factors are constants, which are no factors: a sum of products.

    Each factor is the sum of what carries relevance and of what does not. Of the products of these, each is shared by
    those of its factors that carry relevance, but for gates beside others, or by all of them if none does.
    '''
    positions, total = call.operator.factors, None
    weighing = [any(tensor is gate for gate in gates) for tensor in factors]
    choices = [(True,) if mask is None else (True, False) if mask.any() else (False,) for mask in masks]
    for chosen in itertools.product(*choices):
        carrying = chosen if any(chosen) else (True,) * len(chosen)
        values = [carries and not weighs for carries, weighs in zip(carrying, weighing, strict=True)]
        shares = values if any(values) else carrying
        factor = iter([_part(tensor, mask, carries, shares_in, sum(shares)) for tensor, mask, carries, shares_in in zip(
            factors, masks, chosen, shares, strict=True)])

        def part(tensor, factor=factor):
            return next(factor) if call.carries(tensor) else tensor
        terms = tuple(substitute(arg, part) if position in positions else _once(arg, total is None)
                      for position, arg in enumerate(arguments))
        term = call.run_out_of_place(terms)
        total = term if total is None else total + term
    plain = tuple(substitute(arg, torch.Tensor.detach) for arg in arguments)
    return call.write_back(InPlaceOf.apply(total, lambda: call.run_out_of_place(plain)))


def _part(tensor, mask, carries, shares, count):
    '''The elements of a factor that carry relevance, or the others, with its share of what arrives.'''
    zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
    own = tensor.clone() if mask is None else torch.where(mask if carries else ~mask, tensor, zero)
    return scaled(own, count) if shares else own.detach()


def _once(arg, first):
    '''What is added to a product, and so counts in the first of several only.'''
    return arg if first else substitute(arg, torch.Tensor.detach)


def steered(call):
    '''What is linear in all but the operands that steer it, such as a denominator: these are constants.'''
    steering = call.operator.steered
    if call.kwargs.get('rounding_mode') is not None:
        return constant(call)
    if len(call.operands) == 1:
        steers = any(call.operands[0] is call.args[position] for position in steering if position < len(call.args))
        return constant(call) if steers else proportional(call)
    if not call.carries_at(steering):
        return uniform(call)
    others = [position for position in range(len(call.args)) if position not in steering]
    return uniform(call, call.detached(steering)) if call.carries_at(others) else constant(call)


@rule('Uniform', left_over=added)
def product(call):
    '''The product over a dimension: every one of its entries is a factor.'''
    tensor, *rest = call.args
    dim = rest[0] if rest else call.kwargs.get('dim')
    if call.operator.over == 'prefix':
        output = call.run_out_of_place()
        count = torch.arange(1, output.shape[dim] + 1, device=output.device) if output.ndim else 1
        return call.write_back(scaled(output, count if not output.ndim else along(count, dim, output.ndim)).clone())
    return call.run((scaled(tensor, tensor.numel() if dim is None else tensor.shape[dim]), *rest))


def along(values, dim, ndim):
    '''Return a vector in the shape in which it broadcasts along one of `ndim` dimensions.'''
    return values.reshape([-1 if axis == dim % ndim else 1 for axis in range(ndim)])


def multiply(call):
    '''Elementwise products and quotients.'''
    operator = call.operator
    if call.carries_at(operator.decomposed_by):
        return decomposed(call)
    if operator.over:
        return product(call)
    return steered(call) if operator.steered else uniform(call)


def _is_number(value):
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.ndim == 0)


def add(call):
    '''Sums: in proportion to the summands.'''
    operator = call.operator
    if operator.trains and _trains(call):
        raise UnsupportedModule(f'{operator.name} {operator.trains} in training; call model.eval() first')
    if call.carries_at(operator.decomposed_by):
        return decomposed(call)
    if operator.factors:
        return uniform(call)
    return proportional(call)


def _trains(call):
    return bool(call.args[2] if len(call.args) > 2 else call.kwargs.get('training', call.kwargs.get('train', False)))


@rule('Identity', left_over=nothing)
def activation(call):
    '''Identity rule of an activation with ``a(0) = 0``: ``R_x = R_y``, so ``g_x = g_y * y / x``.'''
    operator = call.operator
    if operator.homogeneous:
        return call.run()
    if call.operands[0].is_complex():
        module, line = call.forward.locate()
        raise UnsupportedOperator(f'module {module!r} calls {operator.name} on a complex tensor, for which there is no '
                                  f'rule\n  {line}\nwrite it with products, or for real and imaginary part')
    if not call.carries(call.args[0]) or is_root(call):
        return constant(call)
    operand, *rest = call.args
    if operator.flag is not None:
        rest = [False if position == operator.flag else arg for position, arg in enumerate(rest, 1)]
    function = out_of_place(call.func, operator.name) if operator.inplace else call.func
    kwargs = {key: value for key, value in call.kwargs.items() if key != 'inplace'}
    slope = slope_at_zero(function, rest, kwargs, operand)
    return call.write_back(Scale.apply(operand, lambda x: function(x, *rest, **kwargs), slope))


def is_root(call):
    '''Whether a power is none of a number of 1 or more, and so does not vanish at zero in proportion.'''
    if call.operator.exponent is None:
        return False
    exponent = call.args[call.operator.exponent]
    return not _is_number(exponent) or getattr(exponent, 'requires_grad', False) or float(exponent) < 1.


@rule('ConstantDeviation', left_over=added)
def normalization(call):
    '''The deviation is a constant; subtracting the mean is linear.'''
    plain = len(call.operands) == 1 and call.operands[0] is call.args[0] and call.operator.normalize is not None
    if not plain and call.carries_at(call.operator.decomposed_by):
        return decomposed(call)
    x, *rest = call.args
    if torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
        rest = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in rest]
    return call.operator.normalize(x, *rest, **call.kwargs)


@rule('Constant', left_over=nothing)
def attention(call):
    '''Fused attention (of softmax, causal product, recurrences): linear in values and states, the rest are gates.'''
    states, values = call.operator.states, call.operator.values
    if not (call.carries(call.args[values]) or any(call.carries(call.kwargs.get(name)) for name in states)):
        return constant(call)
    args = [arg.detach() if call.carries(arg) and position != values else arg
            for position, arg in enumerate(call.args)]
    kwargs = {name: arg.detach() if call.carries(arg) and name not in states else arg
              for name, arg in call.kwargs.items()}
    function = softmax_attention if call.func is functional.scaled_dot_product_attention else call.func
    return function(*args, **kwargs)


def softmax_attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
    '''Without dropout, whose mask cannot be drawn again, no map needs to be kept.'''
    if dropout_p:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return ConstantAttention.apply(value, query, key, attn_mask, is_causal, scale, enable_gqa)


@rule('Constant', left_over=nothing)
def gate(call):
    '''A function that does not vanish at zero: a constant. Of ``var_mean`` and ``std_mean`` the mean stays linear.'''
    linear_outputs = call.operator.linear_outputs
    if not linear_outputs:
        return constant(call)
    return tuple(output if position in linear_outputs else output.detach()
                 for position, output in enumerate(call.run()))


@rule('LRPZero', left_over=added)
def linear(call):
    '''Weights times input, as a product of whichever of the two depend on the input.'''
    if call.operator.steered:
        return steered(call)
    if call.func is functional.linear and may_skip(call):
        return ConstantLinear.apply(*call.args, *[None] * (3 - len(call.args)))
    if call.func in _CONVOLUTIONS and may_skip(call) and _is_dense_convolution(*call.args):
        return _constant_convolution(call.func, *call.args)
    return uniform(call)


def may_skip(call):
    '''Looking for zeros is worth it on a CPU only; autocast computes in another type than its operands have.'''
    operand = call.args[0]
    only = len(call.operands) == 1 and call.carries(operand) and not call.kwargs and operand.ndim > 1
    # Quantized and distributed tensors need not have the functions that looking for zeros takes.
    only = only and all(is_plain(arg) for arg in call.args[:3] if isinstance(arg, torch.Tensor))
    return only and operand.device.type == 'cpu' and not torch.is_autocast_enabled('cpu') and not operand.is_complex()


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def _is_dense_convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return groups == 1 and not isinstance(padding, str) and x.ndim == weight.ndim


def _constant_convolution(function, x, weight, bias=None, *settings):
    return ConstantConvolution.apply(x, weight, bias, function, *settings)


@rule(None, left_over=nothing)
def decomposed(call, rules=None):
    '''Run what a function consists of under the engine's eyes, where each step follows the rule of its own kind.'''
    function = call.operator.decomposition or visible(call.func)
    try:
        output = call.forward.decompose(function, call.args, call.kwargs, rules)
    except Unwritten as error:
        module, line = call.forward.locate()
        raise UnsupportedOperator(f'module {module!r}: {error}\n  {line}') from error
    return call.write_back(output)


#: The rule of each kind of operator, for operators to which a composite gives none.
RULES: dict[Kind, Callable] = {
    Kind.REARRANGE: rearrange, Kind.SELECT: select, Kind.ADD: add, Kind.LINEAR: linear, Kind.EINSUM: uniform,
    Kind.MULTIPLY: multiply, Kind.SOFTMAX: constant, Kind.ATTENTION: attention, Kind.GATE: gate,
    Kind.ACTIVATION: activation, Kind.NORMALIZATION: normalization, Kind.COMPOSED: decomposed,
}
