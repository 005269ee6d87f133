'''Constants of a forward: what carries no relevance, although autograd may see a gradient, and what is made of it.'''
from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..operators import Kind, Operator, lookup, out_of_place
from ..operators.kinds import PRODUCTS
from ..propagation import Call
from ..trees import substitute
from . import rounding, vanishing
from .tags import origin_of

if TYPE_CHECKING:
    from .forward import Forward

_COPY = lookup(torch.Tensor.copy_)


class Constants:
    '''What one forward makes of constants.

    Parameters
    ----------
    forward: :py:class:`~zennit_attn.engine.forward.Forward`
        The forward.

    Attributes
    ----------
    known: bool
        Whether there are constants of which it is known what they were made of.
    '''
    def __init__(self, forward: Forward):
        self._forward = weakref.proxy(forward)
        self.known = False

    # ---- calls with constants among the operands ---------------------------------------------------------------------

    def include(self, tensor: torch.Tensor) -> bool:
        '''Whether a tensor that requires a gradient carries nothing: a gate written in place, a foreign parameter.'''
        return self._forward.is_constant(tensor) or isinstance(tensor, torch.nn.Parameter)

    def detached(self, operator: Operator | None, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        '''Return arguments without the way back of constants, but for what is written to.'''
        target = args[0] if operator is not None and operator.inplace and args else None

        def detached(tensor):
            constant = tensor is not target and tensor.requires_grad and self.include(tensor)
            return tensor.detach() if constant else tensor
        return substitute((args, kwargs), detached)

    def may_be_viewed(self, operator: Operator | None, operands: list[torch.Tensor]) -> bool:
        '''Whether a function may return a view of a constant, which stays one for autograd: it may be written to.'''
        return operator is not None and operator.kind is Kind.REARRANGE and not (
            operator.inplace or operator.mixes) and torch.is_grad_enabled() and all(
                self._forward.is_constant(operand) for operand in operands)

    def fills_parameter(self, operator: Operator | None, args: tuple, operands: list[torch.Tensor]) -> bool:
        '''Whether a function gives a parameter its values, such as that of a module which is built in a forward.'''
        target = args[0] if operator is not None and operator.inplace and args else None
        return isinstance(target, torch.nn.Parameter) and (
            not torch.is_grad_enabled() or all(operand is target for operand in operands))

    # ---- what is made of them ----------------------------------------------------------------------------------------

    def note_gate(self, call: Call, output: Any, copy: torch.Tensor | None) -> None:
        '''Note on a gate what it was made of, and where it was rounded.'''
        if call.operator.name in rounding.FUNCTIONS:
            self.note_rounded(output)
        elif vanishing.note(call, output, copy):
            self._know()

    def note_cast(self, output: torch.Tensor) -> None:
        '''Note that values were rounded, if a tensor that carries none holds integers.'''
        if output.dtype in rounding.INTEGERS:
            self.note_rounded(output)

    def cast(self, tensor: torch.Tensor, output: torch.Tensor) -> None:
        '''Note that values that carry relevance were cast to integers, or such that had been rounded before.'''
        if tensor.requires_grad and not self._forward.is_constant(tensor):
            self.note_rounded(output)
        else:
            rounding.follow((tensor,), {}, output)

    def note_rounded(self, output: Any) -> None:
        '''Note that a constant holds rounded values.'''
        rounding.note(output, self._forward.locate())
        self._know()

    def _know(self):
        self.known = self._forward.attentive = True

    def multiplied(self, operator: Operator | None, tensors: list[torch.Tensor]) -> tuple[str, str] | None:
        '''Let constants that multiply what carries relevance be gates; return where they were rounded, or None.'''
        if not self.known or operator is None or operator.kind not in PRODUCTS:
            return None
        constants = [tensor for tensor in tensors if not tensor.requires_grad or self._forward.is_constant(tensor)]
        if not 0 < len(constants) < len(tensors):
            return None
        vanishing.forget(constants)
        # A scale is one number for many elements.
        return rounding.found(constants, max(tensor.numel() for tensor in tensors if not any(
            tensor is constant for constant in constants)))

    def made(self, operator: Operator, func: Callable, args: tuple, kwargs: Mapping) -> vanishing.Made | None:
        '''Return what a call is about to make of a constant that is known, or None.'''
        return vanishing.follow(operator, func, args, kwargs) if self.known else None

    def run(self, operator: Operator | None, func: Callable, args: tuple, kwargs: dict,
            detached: tuple[tuple, dict] | None = None) -> Any:
        '''Run a function of constants, and follow what it makes of those that are known.'''
        run_args, run_kwargs = (args, kwargs) if detached is None else detached
        if not self.known or operator is None:
            return func(*run_args, **run_kwargs)
        made = vanishing.follow(operator, func, args, kwargs)
        output = func(*run_args, **run_kwargs)
        rounding.follow(args, kwargs, output)
        return output if made is None else self._remade(operator, made, output)

    def write(self, call: Call) -> Any:
        '''Write into what carries nothing: it stays so, unless what is written carries relevance, or both vanish.'''
        target, *rest = call.args
        made = self.made(call.operator, call.func, call.args, call.kwargs)
        if made is not None:
            call.func(target.detach(), *rest, **call.kwargs)
            return self._remade(call.operator, made, target)
        with self._forward.engine:
            output = out_of_place(call.func, call.operator.name)(target.detach().clone(), *rest, **call.kwargs)
        origin = origin_of(output)
        self._copy(target, output)
        return target if origin is None else self._forward.mark(target, origin)

    def _copy(self, target, output):
        operands = [tensor for tensor in (target, output) if tensor.requires_grad]
        self._forward.engine.dispatch(_COPY, torch.Tensor.copy_, (target, output), {}, operands)

    # ---- activations of gates ----------------------------------------------------------------------------------------

    def vanishes(self, operator: Operator, made: vanishing.Made) -> bool:
        '''Whether what a call makes is an activation.'''
        return torch.is_grad_enabled() and made.source.requires_grad and vanishing.vanishes(operator, made)

    def activation(self, operator: Operator, made: vanishing.Made) -> torch.Tensor:
        '''Run a gate less what it is at zero as the activation that it is, which carries relevance.'''
        forward, source = self._forward, made.source
        with forward.engine:
            for move in made.moves:
                source = move(source)
        row = vanishing.activation(operator, made)
        return forward.engine.run_rule(Call(forward.engine.forward, row, made.function, (source,), {}, [source]))

    def _remade(self, operator, made, output):
        '''An activation in the place of a constant that vanishes where what it is made of does.'''
        if not self.vanishes(operator, made):
            vanishing.keep(output, made)
            return output
        activation = self.activation(operator, made)
        if not operator.inplace:
            return activation
        self._copy(output, activation)
        return self._forward.mark(output, origin_of(activation))
