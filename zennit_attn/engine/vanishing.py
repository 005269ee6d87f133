'''Gates less what they are at zero: ``2 * sigmoid(2 * x) - 1`` is ``tanh(x)``, an activation.

A gate is a constant, and so are numbers times it. The sum with a number may vanish where what the gate was computed
from does. Then all of it together is an activation of that, and carries relevance again.
'''
from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import torch

from ..operators import Kind, Operator
from ..propagation import Call

#: The largest number that counts as zero, in double precision: rounding of such as ``softplus(x) - log(2)``.
ZERO = 1e-12
#: Gates that stay finite. What is made of them saturates.
BOUNDED = frozenset(('sigmoid', 'expit', 'erfc', 'ndtr', 'hardsigmoid'))


#: What takes values to the nearest whole number.
ROUNDING = frozenset(('round',))


class Function:
    '''A function of each element of one tensor, which it does not keep: calls with numbers, one in the other.'''
    __hash__ = None  # type: ignore[assignment]  # each forward makes its own, which no cache must keep

    def __init__(self, function: Callable, args: tuple):
        self.function = function
        self.args = args

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        args = [arg(value) if isinstance(arg, Function) else value if arg is HERE else arg for arg in self.args]
        return self.function(*args)


#: Stands for the tensor that a function is of.
HERE = object()


class Made(NamedTuple):
    '''What a constant was made of.

    Attributes
    ----------
    source: :py:class:`torch.Tensor`
        What carries relevance, of the same shape.
    function: :py:class:`Function`
        What makes the constant of it.
    bounded: bool
        Whether all gates in it are, so that it saturates.
    versions: tuple of int
        The versions of source and constant for which this holds.
    '''
    source: torch.Tensor
    function: Function
    bounded: bool
    versions: tuple[int, int] = (0, 0)


def note(call: Call, output: Any) -> bool:
    '''Note on the result of a gate what it was made of, and return whether it was.'''
    operator, operands = call.operator, call.operands
    if operator.name in ROUNDING and isinstance(output, torch.Tensor):
        output.lrp_rounded = call.forward.locate()  # type: ignore[attr-defined]  # tensors take attributes
        return True
    smooth = operator.kind is Kind.GATE and operator.smooth and not operator.joint
    if not (smooth or operator.exponent is not None) or call.inplace or call.kwargs or len(operands) != 1:
        return False
    source, = operands
    alone = all(arg is source or isinstance(arg, Real) for arg in call.args) and not source.is_complex()
    if not alone or not isinstance(output, torch.Tensor) or output.shape != source.shape:
        return False
    function = Function(call.func, tuple(HERE if arg is source else arg for arg in call.args))
    keep(output, Made(source, function, operator.name in BOUNDED))
    return True


def keep(output: torch.Tensor, made: Made) -> None:
    '''Note on a constant what it was made of.'''
    if output.shape == made.source.shape:
        versions = made.source._version, output._version
        output.lrp_made = made._replace(versions=versions)  # type: ignore[attr-defined]  # tensors take attributes


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


def rounded(tensors: list[torch.Tensor], least: int = 0) -> tuple[str, str] | None:
    '''Return the module and the line that rounded what a constant with more than some elements is of, or None.'''
    return next((found for tensor in tensors if (found := getattr(tensor, 'lrp_rounded', None)) is not None
                 and not tensor.requires_grad and tensor.numel() > least), None)


def follow(operator: Operator, func: Callable, args: tuple, kwargs: dict) -> Made | None:
    '''Return what a sum or a product of gates and numbers is made of, if that is one tensor.'''
    if operator.kind not in (Kind.ADD, Kind.MULTIPLY) or operator.inplace or kwargs:
        return None
    found = [made_of(arg) for arg in args]
    known = [made for made in found if made is not None]
    if not known or any(made.source is not known[0].source for made in known):
        return None
    if not all(made is not None or _is_number(arg) for arg, made in zip(args, found, strict=True)):
        return None
    arguments = tuple(arg if made is None else made.function for arg, made in zip(args, found, strict=True))
    return Made(known[0].source, Function(func, arguments), all(made.bounded for made in known))


def _is_number(arg):
    return isinstance(arg, Real) or (isinstance(arg, torch.Tensor) and arg.ndim == 0)


def vanishes(operator: Operator, made: Made) -> bool:
    '''Whether a sum is zero where its source is.'''
    if not operator.pairwise:
        return False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        try:
            return abs(float(made.function(torch.zeros((), dtype=torch.float64)))) <= ZERO
        except (RuntimeError, TypeError):
            return False


def activation(operator: Operator, made: Made) -> Operator:
    '''The row of what a sum has become.'''
    return Operator(operator.name, Kind.ACTIVATION, saturating=made.bounded)
