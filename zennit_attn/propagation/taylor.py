'''Rules that expand an operator to first order: autograd, and what their hidden biases absorb.

Of ``y = f(x_1, x_2, ...)`` each operand receives ``x_k df/dx_k``. What is left of `y`, the hidden bias, is a sink,
which the ledger has by formula where there is one.
'''
import torch
from torch.nn import functional

from ..kernels import masked_rows
from ..operators import Kind
from ..trees import substitute
from .rule import HIDDEN_BIAS, Absorbed, rule
from .rules import add, attention, constant, decomposed, gate, is_root, linear, multiply, picked, proportional, scaled


def softmax_dim(call):
    '''The dimension that a softmax is taken over.'''
    dim = call.kwargs.get('dim', call.args[1] if len(call.args) > 1 else None)
    return functional._get_softmax_dim(call.operator.name, call.args[0].ndim, 3) if dim is None else dim


def _blanks(call):
    '''Mark the rows of a softmax that are masked as a whole in the precision it computes in.

    Nothing flows through them, and rounding times a number of a mask would be relevance.
    '''
    scores = call.before[0].detach()
    types = [arg for arg in (*call.args, *call.kwargs.values()) if isinstance(arg, torch.dtype)]
    return masked_rows(scores.to(types[0]) if types else scores, softmax_dim(call))


def _blanks_rows(call):
    '''Whether numbers that are added to the scores of fused attention mask rows as a whole.'''
    mask = (*call.args, None, None, None, None)[3]
    added = isinstance(mask, torch.Tensor) and mask.is_floating_point()
    return added and bool(masked_rows(mask.detach(), -1).any())


def _without_blanks(scores, call):
    blank = _blanks(call)
    if scores.device.type == 'cpu' and not blank.any():
        return scores
    view = scores.view_as(scores)
    view.register_hook(lambda grad: grad.masked_fill(blank, 0.))
    return view


def _softmax_bias(call, output, place=0):
    '''The hidden bias of a softmax, ``y - J x``. What is masked receives nothing, and counts as 0.'''
    if call.operator.tangent is None:
        return None
    x, y, blank = call.before[0].detach().double(), output.double(), _blanks(call)
    y = y.masked_fill(blank & y.isnan(), 0.)
    tangent = call.operator.tangent(x.masked_fill(blank | x.isneginf(), 0.), y, softmax_dim(call))
    return Absorbed(y - tangent, HIDDEN_BIAS)


@rule('TaylorSoftmax', left_over=_softmax_bias)
def taylor_softmax(call):
    '''The softmax rule of AttnLRP, ``R_x = x (R_y - y sum(R_y))``: autograd, whose hidden bias absorbs relevance.'''
    if call.operator.random:
        return constant(call)
    if call.operator.kind is not Kind.ATTENTION:
        return call.run((_without_blanks(call.args[0], call), *call.args[1:]))
    if call.operator.decomposition is None:
        return attention(call)
    if call.forward.observed or any(_weighs(call, operand) for operand in call.operands) or _blanks_rows(call):
        return decomposed(call, {Kind.SOFTMAX: taylor_softmax})
    operands = [scaled(arg, divisor) if call.carries(arg) else arg
                for arg, divisor in zip(call.args[:4], _attention_shares(call), strict=False)]
    return call.func(*operands, *call.args[4:], **call.kwargs)


def _weighs(call, operand):
    '''Whether an operand of fused attention is a gate, or a constant as a whole, so that shares are not even.'''
    mask = call.forward.mask_of(operand)
    return call.forward.is_gate(operand) or (mask is not None and not mask.any())


def _attention_shares(call):
    '''Divisors for query, key, value, mask: map and values share evenly, as do queries and keys the map's part.'''
    query, key, value, mask = (call.carries(arg) for arg in (*call.args, None)[:4])
    first = 2 if value and (query or key or mask) else 1
    second = 2 if query and key else 1
    return first * second, first * second, first, first


def _has_formula(call):
    '''Whether the hidden bias of an expansion is known, and not only what goes in less what comes out.'''
    operator = call.operator
    if operator.is_product or operator.kind is Kind.ATTENTION and operator.factors:
        return True
    elementwise = operator.kind in (Kind.ACTIVATION, Kind.GATE) and not operator.joint
    return elementwise and len(call.operands) == 1 and call.carries(call.args[0]) and not call.args[0].is_complex()


def _hidden_bias(call, output, place=0):
    '''Of a product of `n` factors ``(1 - n) y``, of a function of each element ``y - x y'(x)``.

    Of anything else, the output as a whole: what the operands received is taken off it where they are watched.
    '''
    if not _has_formula(call):
        return Absorbed(output, hidden=HIDDEN_BIAS)
    if call.operator.kind not in (Kind.ACTIVATION, Kind.GATE):
        return Absorbed((1 - len(call.factors)) * output, hidden=HIDDEN_BIAS)
    leaf = call.before[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        result = call.run_out_of_place((leaf * 1., *call.args[1:]))
    slope, = torch.autograd.grad(result, leaf, torch.ones_like(result))
    # Where the function is flat, as at a masked value of -inf, its operand receives nothing.
    return Absorbed(output - torch.where(slope == 0, 0., leaf.detach() * slope), hidden=HIDDEN_BIAS)


@rule('Taylor', left_over=_hidden_bias)
def taylor(call):
    '''The first-order Taylor expansion: autograd. Normalizers and deviations are constants.'''
    operator, kind = call.operator, call.operator.kind
    if kind is Kind.SOFTMAX:
        return taylor_softmax(call)
    if kind is Kind.SELECT:
        return picked(call)
    if kind is Kind.ADD and len(call.factors) < 2:
        return add(call) if operator.trains or operator.decomposed_by else proportional(call)
    if kind is Kind.GATE and not operator.smooth or is_root(call) and call.carries(call.args[0]):
        return gate(call)
    if kind is Kind.MULTIPLY and (operator.steered or operator.decomposed_by):
        return multiply(call)
    if kind is Kind.LINEAR and len(call.operands) == 1:
        return linear(call)
    if kind is Kind.ATTENTION and operator.decomposition is not None and (call.forward.observed or _blanks_rows(call)):
        return decomposed(call, dict.fromkeys(EXPANDED, taylor))
    return expanded(call)


@rule('Taylor', left_over=_hidden_bias)
def expanded(call):
    '''The expansion of a function, whatever it is: autograd.'''
    operands = {id(tensor): tensor.clone() if call.inplace and tensor is call.args[0] else tensor
                for tensor in call.operands}
    if call.record is not None and not _has_formula(call):
        operands = call.record.expand(operands)
    if call.inplace:  # what it held is needed in the backward pass, also where it is a constant
        operands.setdefault(id(call.args[0]), call.args[0].clone())
    args, call.kwargs = substitute((call.args, call.kwargs), lambda tensor: operands.get(id(tensor), tensor))
    return call.write_back(call.run_out_of_place(args)) if call.inplace else call.run(args)


def _all_of_it(call, output, place=0):
    return Absorbed(output, hidden=HIDDEN_BIAS)


@rule('Taylor', left_over=_all_of_it)
def whole(call, parts, divisor=1):
    '''The expansion of a function as a whole, of which a call is the last step.

    Parameters
    ----------
    call: :py:class:`~zennit_attn.propagation.Call`
    parts: dict
        By the ``id`` of an operand, a function that computes it by plain autograd. It takes a function, which it has to
        apply to what it starts from.
    divisor: int, optional
        How many factors the function is a product of, which share evenly.
    '''
    watched = {}

    def leaf(tensor):
        if id(tensor) not in watched:
            own = tensor.clone() if call.inplace and tensor is call.args[0] else tensor
            watched[id(tensor)] = tensor, own if call.record is None else call.record.expand({id(tensor): own})[
                id(tensor)]
        return watched[id(tensor)][1]

    def value(tensor):
        if id(tensor) in parts:
            return parts[id(tensor)](leaf)
        return leaf(tensor) if call.carries(tensor) else tensor
    args, kwargs = substitute((call.args, call.kwargs), value)
    output = call.run_out_of_place(args, kwargs)
    return call.write_back(scaled(output, divisor) if divisor > 1 else output)


#: The kinds of operators that the expansion is for.
EXPANDED = frozenset({
    Kind.EINSUM, Kind.MULTIPLY, Kind.LINEAR, Kind.SOFTMAX, Kind.ATTENTION, Kind.GATE, Kind.ACTIVATION, Kind.ADD,
    Kind.SELECT})
