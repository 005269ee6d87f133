'''Gates less what they are at zero: ``2 * sigmoid(2 * x) - 1`` is ``tanh(x)``, an activation.

A gate is a constant, and so are numbers times it. The sum with a number may vanish where what the gate was computed
from does. Then all of it together is an activation of that, and carries relevance again.
'''
from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch

from ..operators import Kind, Operator, out_of_place
from ..propagation import Call
from ..trees import substitute, tensors_in

#: The largest number that counts as zero, in double precision: rounding of such as ``softplus(x) - log(2)``.
ZERO = 1e-12
#: Gates that stay finite. What is made of them saturates.
BOUNDED = frozenset(('sigmoid', 'expit', 'erfc', 'ndtr', 'hardsigmoid'))
#: Sums of which each element is one of elements in the same place, beside those of two.
SUMS = frozenset(('neg', 'negative', 'lerp'))


class Function:
    '''A function of each element of one tensor, which it does not keep: calls with numbers, one in the other.'''
    __hash__ = None  # type: ignore[assignment]  # each forward makes its own, which no cache must keep

    def __init__(self, function: Callable, args: tuple, kwargs: Mapping):
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        def filled(arg):
            return arg(value) if isinstance(arg, Function) else value if arg is HERE else arg
        return self.function(*map(filled, self.args), **{key: filled(arg) for key, arg in self.kwargs.items()})


#: Stands for the tensor that a function is of.
HERE = object()


class Move(NamedTuple):
    '''A call that moves the values of one tensor, and which of its results is meant.'''
    function: Callable[[torch.Tensor], Any]
    index: int | None = None

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        output = self.function(tensor)
        return output if self.index is None else output[self.index]


class Made(NamedTuple):
    '''What a constant was made of.

    Attributes
    ----------
    source: :py:class:`torch.Tensor`
        What carries relevance.
    function: :py:class:`Function`
        What makes the constant of it.
    bounded: bool
        Whether all gates in it are, so that it saturates.
    moves: tuple of :py:class:`Move`
        What has moved its values since, as views do.
    versions: tuple of int
        The versions of source and constant for which this holds.
    '''
    source: torch.Tensor
    function: Function
    bounded: bool
    moves: tuple[Move, ...] = ()
    versions: tuple[int, int] = (0, 0)


# ---- gates -----------------------------------------------------------------------------------------------------------

def before(call: Call) -> torch.Tensor | None:
    '''Return a copy of what a gate in place is about to be written over, if it is one that saturates.

    Of others, such as exponentials, no copy is made: they are mostly those of a softmax, as large as its map.
    '''
    return call.args[0].clone() if call.operator.name in BOUNDED and _is_gate(call) else None


def note(call: Call, output: Any, copy: torch.Tensor | None = None) -> bool:
    '''Note on the result of a gate what it was made of, and return whether it was.

    What a gate in place was made of is there only if there is a copy of it.
    '''
    if call.inplace and copy is None or not isinstance(output, torch.Tensor) or not _is_gate(call):
        return False
    operand, = call.operands
    if output.shape != operand.shape:
        return False
    args = tuple(HERE if arg is operand else False if position == call.operator.flag else arg
                 for position, arg in enumerate(call.args))
    kwargs = {key: HERE if arg is operand else arg for key, arg in call.kwargs.items() if key != 'inplace'}
    function = Function(_pure(call.operator, call.func), args, kwargs)
    keep(output, Made(operand if copy is None else copy, function, call.operator.name in BOUNDED))
    return True


def _is_gate(call):
    '''Whether a call makes a gate, or a power, of each element of one tensor.'''
    operator, operands = call.operator, call.operands
    smooth = operator.kind is Kind.GATE and operator.smooth and not operator.joint
    if not (smooth or operator.exponent is not None) or len(operands) != 1 or operands[0].is_complex():
        return False
    given = (*call.args, *call.kwargs.values())
    return all(arg is operands[0] or isinstance(arg, Real) for arg in given)


def _pure(operator, func):
    return out_of_place(func, operator.name) if operator.inplace else func


# ---- what constants are made of --------------------------------------------------------------------------------------

def keep(output: Any, made: Made) -> None:
    '''Note on a constant, or on each of several that a move returns, what it was made of.'''
    if isinstance(output, torch.Tensor):
        versions = made.source._version, output._version
        output.lrp_made = made._replace(versions=versions)  # type: ignore[attr-defined]  # tensors take attributes
    elif isinstance(output, (list, tuple)):
        *moves, last = made.moves
        for index, item in enumerate(output):
            if isinstance(item, torch.Tensor):
                keep(item, made._replace(moves=(*moves, last._replace(index=index))))


def made_of(tensor: Any) -> Made | None:
    '''Return what a constant was made of, if neither was written to since.'''
    made = getattr(tensor, 'lrp_made', None) if isinstance(tensor, torch.Tensor) else None
    current = made is not None and made.versions == (made.source._version, tensor._version)
    return made if current else None


def forget(tensors: list[torch.Tensor]) -> None:
    '''Let go of what constants were made of, once they multiply what carries relevance: they are gates.'''
    for tensor in tensors:
        if not tensor.requires_grad and hasattr(tensor, 'lrp_made'):
            del tensor.lrp_made


def follow(operator: Operator, func: Callable, args: tuple, kwargs: Mapping) -> Made | None:
    '''Return what a call makes of a constant that was made of one tensor: it moves it, or puts numbers to it.'''
    given = tensors_in(args, kwargs)
    found = {id(arg): made for arg in given if (made := made_of(arg)) is not None}
    if not found:
        return None
    first, *rest = found.values()
    if operator.kind is Kind.REARRANGE:
        return _moved(operator, func, args, kwargs, given, first)
    pairs = operator.pairwise or operator.name in SUMS
    if not (pairs or operator.kind is Kind.MULTIPLY and operator.over is None) or any(
            made.source is not first.source or made.moves != first.moves for made in rest):
        return None
    numbers = {id(arg): number for arg in given if id(arg) not in found
               and (number := _number(arg, next(each for each in given if id(each) in found))) is not None}
    if any(id(arg) not in found and id(arg) not in numbers for arg in given):
        return None
    terms = {**{key: made.function for key, made in found.items()}, **numbers}
    args, kwargs = substitute((tuple(args), dict(kwargs)), lambda tensor: terms[id(tensor)])
    bounded = all(made.bounded for made in found.values())
    return Made(first.source, Function(_pure(operator, func), args, kwargs), bounded, first.moves)


def _moved(operator, func, args, kwargs, given, made):
    '''A move of one tensor, which puts nothing else in its place; indices are no values.'''
    values = [tensor for tensor in given if tensor.is_floating_point()]
    if operator.inplace or operator.affine or operator.lends or len(values) != 1:
        return None
    tensor, = values

    def move(other):
        return func(*substitute(tuple(args), lambda each: other if each is tensor else each),
                    **substitute(dict(kwargs), lambda each: other if each is tensor else each))
    return made._replace(moves=(*made.moves, Move(move)))


def _number(tensor, other):
    '''The number that a tensor is, if all its elements are the same one and it does not widen another tensor.'''
    if tensor.ndim == 0:
        return tensor.detach()
    if tensor.dtype != other.dtype or tensor.numel() == 0 or tensor.is_complex() or (
            torch.broadcast_shapes(tensor.shape, other.shape) != other.shape):
        return None
    number = tensor.detach().flatten()[0]
    return number if tensor.numel() == 1 or bool((tensor == number).all()) else None


# ---- what vanishes ---------------------------------------------------------------------------------------------------

def vanishes(operator: Operator, made: Made) -> bool:
    '''Whether a sum is zero where its source is.'''
    if not operator.pairwise and operator.name != 'lerp':
        return False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        try:
            return abs(float(made.function(torch.zeros((), dtype=torch.float64)))) <= ZERO
        except (RuntimeError, TypeError):
            return False


def activation(operator: Operator, made: Made) -> Operator:
    '''The row of what a sum has become.'''
    return Operator(operator.name, Kind.ACTIVATION, saturating=made.bounded)
