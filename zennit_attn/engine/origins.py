'''Where a tensor comes from, as far as a product has to know: an activation of something, and what it is at zero.

A factor of a product is a gate if it is a function of each element that does not vanish at zero, ``elu(x) + 1`` or
``relu6(x + 3) / 6``, or one that saturates, such as ``tanh``. This is decided at the product and not at the sum,
because the same tensor may also go on along the stream, where the sum is an activation and a constant.
'''
from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import torch

from ..operators import Kind, Operator
from ..propagation import Call
from ..propagation.constants import is_number
from ..propagation.rules import clamped
from ..trees import substitute, tensors_in


class Origin(NamedTuple):
    '''What a tensor was made of, if it was only moved, scaled, shifted and summed since.

    Attributes
    ----------
    activation: :py:class:`~zennit_attn.operators.Operator` or None
        The last activation.
    zero: float
        What the tensor is where the input of the activation, or what a number was added to, is zero.
    '''
    activation: Operator | None
    zero: float

    @property
    def is_gate(self) -> bool:
        '''Whether it is a gate where it multiplies a tensor that is none.'''
        return self.activation is not None and (self.zero != 0. or self.activation.saturating)


def shifts(args: tuple, operand: torch.Tensor) -> bool:
    '''Whether the other of two summands may be a number. A cheap look, for every sum of one operand.'''
    if len(args) < 2:
        return True
    other = args[1] if args[0] is operand else args[0]
    return type(other) in _NUMBERS or isinstance(other, torch.Tensor) and other.numel() == 1


_NUMBERS = frozenset((float, int))


def follow(call: Call, origins: list[Origin | None]) -> Origin | None:
    '''Return the origin of what a call returns, given those of its operands.'''
    operator, kind = call.operator, call.operator.kind
    if kind is Kind.ACTIVATION or call.rule is clamped:
        return Origin(operator, _at_zero(call, origins[0].zero) if origins[0] is not None else 0.)
    if not operator.pairwise and origins.count(None) == len(origins):
        return None
    if operator.steered or operator.lends:
        origins = [origin for operand, origin in zip(call.operands, origins, strict=True)
                   if any(operand is other for other in _leading(call))]
    if len(origins) != 1:
        return _of_several(call, origins)
    origin = origins[0]
    if operator.pairwise and _adds_a_number(call, origin):
        return _shifted(call, origin)
    if origin is None:
        return None
    if kind is Kind.REARRANGE:
        return origin
    if operator.scales:
        by_number = origin.zero != 0. and (len(call.args) == 1 or isinstance(_other(call), Real))
        return Origin(origin.activation, _at_zero(call, origin.zero) if by_number else origin.zero)
    if kind is Kind.SELECT:
        return Origin(origin.activation or operator, _at_zero(call, origin.zero)) if operator.bounds else origin
    return origin if kind is Kind.ADD and origin.is_gate and origin.zero != 0. else None


def _adds_a_number(call, origin):
    '''Whether a summand is a number: beside an activation, also one that is written as a tensor of equal elements.'''
    other = _other(call)
    many = isinstance(other, torch.Tensor) and other.numel() > 1
    return (not many or (origin is not None and origin.activation is not None)) and is_number(other)


def _leading(call):
    '''The operands that are more than a denominator, or a shape.'''
    following = (*call.operator.steered, *call.operator.lends)
    if not following:
        return call.operands
    arguments = [arg for position, arg in enumerate(call.args) if position not in following]
    return [tensor for tensor in tensors_in(*arguments) if call.carries(tensor)]


def _of_several(call, origins):
    '''Products of gates are a gate. Activations that are added or put side by side are what they are at zero.'''
    if not origins or not all(origin is not None and origin.activation is not None for origin in origins):
        return None
    if call.operator.pairwise:
        return Origin(call.operator, _at_zero(call, *(origin.zero for origin in origins)))
    kind, zero = call.operator.kind, next((origin.zero for origin in origins if origin.zero != 0.), 0.)
    if all(origin.is_gate for origin in origins):
        together = kind is Kind.REARRANGE or call.operator.is_product or (kind is Kind.ADD and zero != 0.)
        return Origin(origins[0].activation, zero) if together else None
    plain = next(origin.activation for origin in origins if not origin.is_gate)
    return Origin(plain, 0.) if kind is Kind.REARRANGE and zero == 0. else None


def _shifted(call, origin):
    zero = _at_zero(call, 0. if origin is None else origin.zero)
    activation = None if origin is None else origin.activation
    return Origin(activation, zero) if zero != 0. or activation is not None else None


def _other(call):
    '''The other of two operands.'''
    return call.args[-1] if call.carries(call.args[0]) else call.args[0]


def _at_zero(call: Call, *zeros: float) -> float:
    '''What a function of each element makes of a number, or one for each operand; 1 where that cannot be told.'''
    if zeros == (0.,) and call.operator.kind is Kind.ACTIVATION:
        return 0.
    operands = _leading(call)
    numbers = torch.tensor([zeros if len(zeros) > 1 else zeros * len(operands)], dtype=torch.float64).T
    by_operand = {id(operand): number for operand, number in zip(operands, numbers, strict=True)}

    def at(tensor):
        number = by_operand.get(id(tensor))
        return tensor.detach().reshape(-1)[:1].to(numbers) if number is None else number
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return float(call.run_out_of_place(substitute(call.before, at)).reshape(-1)[0])
    except (RuntimeError, TypeError, IndexError):
        return 1.
