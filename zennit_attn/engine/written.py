'''Softmaxes that are written out: each step of one runs so that all of it is expanded as a whole.'''
from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..operators import Kind, Operator
from ..propagation import RULES, Call, constant, expanded, picked, taylor, whole
from ..trees import substitute
from . import vanishing
from .tags import are_parts, weights_of
from .weights import plan

if TYPE_CHECKING:
    from .forward import Forward


class WrittenSoftmaxes:
    '''The softmaxes that the code of one forward writes out.

    Parameters
    ----------
    forward: :py:class:`~zennit_attn.engine.forward.Forward`
        The forward.
    '''
    def __init__(self, forward: Forward):
        self._forward = weakref.proxy(forward)

    def may_have(self, operator: Operator | None, operands: list[torch.Tensor]) -> bool:
        '''Whether a call may be a part of one.'''
        return self._forward.normalizes and operator is not None and (
            operator.weighs is not None or are_parts(operands)) and torch.is_grad_enabled()

    def dispatch(self, operator: Operator, func: Callable, args: tuple, kwargs: dict,
                 operands: list[torch.Tensor]) -> Any:
        '''Run what may be a part of one.'''
        forward = self._forward
        made = forward.constants.made(operator, func, args, kwargs)
        if made is not None and not operator.inplace and forward.constants.vanishes(operator, made):
            return forward.constants.activation(operator, made)
        planned, call = self._plan(operator, func, args, kwargs, operands)
        if planned is not None and planned.how != 'plain':
            output = self._run(planned, call)
            if made is not None:
                vanishing.keep(output, made)
            return output
        output = forward.engine.dispatch(operator, func, args, kwargs, operands, plans=False)
        if planned is not None:
            forward.mark_weights(call.args[0] if call.inplace else output, planned.part)
        return output

    def _plan(self, operator, func, args, kwargs, operands):
        '''How a call runs that may be a part of one.'''
        forward = self._forward
        known = {id(operand): weights for operand in operands if (weights := weights_of(operand)) is not None}
        if kwargs.get('out') is not None:
            return None, None
        rule = forward.operation_of(operator.kind)
        if rule is not taylor and rule is not RULES.get(operator.kind) and operator.kind is not Kind.SOFTMAX or (
                not forward.expands_softmaxes()):
            return None, None
        constants = {id(operand) for operand in operands
                     if id(operand) not in known and forward.constants.include(operand)}
        if constants:
            args, kwargs = substitute(
                (args, kwargs), lambda tensor: tensor.detach() if id(tensor) in constants else tensor)
            operands = [operand for operand in operands if id(operand) not in constants]
        call = Call(forward.engine.forward, operator, func, args, kwargs, operands)
        if not operands or call.inplace and args[0]._is_view():
            return None, None
        planned = plan(call, known, rule is taylor, forward.is_gate)
        current = planned is None or planned.how == 'plain' or all(
            weights.recipe is None or weights.recipe.is_current() for weights in known.values())
        return planned if current else None, call

    def _run(self, planned, call):
        '''Run a step of one: a constant that keeps its way back, or all of it.'''
        forward, how, weights = self._forward, planned.how, planned.part
        run_rule = forward.engine.run_rule
        if how == 'steps':
            return run_rule(call)
        if how == 'constant':
            output = run_rule(call, constant)
            forward.mark_weights(output, weights, carries=False)
            return output
        if how == 'copied':
            output = run_rule(call, _copied)
        else:
            parts = _parts(call, planned.constants)

            def rule(call):
                return _copied(call, whole, parts, planned.divisor)
            if how == 'latent':
                return self._run_latent(call, rule if parts else None, weights)
            if call.inplace and id(call.args[0]) in parts and forward.is_constant(call.args[0]):
                call.args[0].detach_()  # from what it was before it became a constant, which may be written over
            output = run_rule(call, rule)
            forward.mark(output)
        forward.mark_weights(output, weights)
        return output

    def _run_latent(self, call, rule, weights):
        forward, kind = self._forward, call.operator.kind
        is_made = kind in (Kind.GATE, Kind.ACTIVATION) or call.carries_at(call.operator.steered)
        if rule is None:
            rule = _copied if is_made else picked if kind is Kind.SELECT else forward.operation_of(kind)
        output = forward.engine.run_rule(call, rule, weights)
        if is_made:
            forward.note_gate(call, output)
        return output


def _copied(call, rule=expanded, *how):
    '''What a rule returns, as a copy: exponentials need in their backward pass what code may write to.'''
    output = rule(call, *how)
    return output if call.inplace or call.operator.weighs is None else output.clone()


def _parts(call, constants):
    '''By the ``id`` of an operand, how it is computed by plain autograd, if by other calls than those that ran.'''
    recipes = {id(operand): weights.recipe.compute for operand in call.operands
               if (weights := weights_of(operand)) is not None and weights.recipe is not None}
    return {**recipes, **{id(tensor): lambda leaf, tensor=tensor: tensor.detach() for tensor in constants}}
