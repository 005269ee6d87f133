'''The protocol by which a forward and its backward pass are watched: what an observer is told, and what it may say.

:py:class:`Observer` and :py:class:`OperatorObserver` do nothing. Who watches subclasses them and overrides what it
needs: the recorder of the ledger (:py:mod:`zennit_attn.conservation`) and the watch of
:py:func:`~zennit_attn.heatmap.relevance_at` do.
'''
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class OperatorObserver:
    '''Watches one call of an operator.'''
    def expand(self, operands: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        '''An expansion is about to run, of whose hidden bias no formula is known.

        Parameters
        ----------
        operands: dict[int, :py:class:`torch.Tensor`]
            What it will run on, by the ``id`` of the call's operands.

        Returns
        -------
        dict[int, :py:class:`torch.Tensor`]
            What it shall run on: the same, or views of the same values that are watched.
        '''
        return operands

    def returned(self, output: Any) -> None:
        '''The operator has returned `output`, in the gradient domain.'''

    def moved(self, outputs: Sequence[torch.Tensor]) -> None:
        '''The operator, which moves values, was repeated in the relevance domain and has returned `outputs`.'''


class Observer:
    '''Watches the forwards of one engine, and their backward passes.'''
    def begin(self, call: Any, module: torch.nn.Module | None, hook: Any) -> OperatorObserver | None:
        '''An operator is about to run.

        Parameters
        ----------
        call: :py:class:`~zennit_attn.propagation.Call`
        module: :py:class:`torch.nn.Module` or None
            The operator module in the place of which it runs.
        hook: :py:class:`zennit.core.Hook` or None
            The rule that the composite has given it.

        Returns
        -------
        :py:class:`OperatorObserver` or None
            What is told of this call.
        '''
        return None

    def stabilizer(self, where: str) -> Callable[[torch.Tensor], None] | None:
        '''Return a function that is told what the stabilizer before the module `where` absorbs.'''
        return None

    def reference(self, where: str) -> Callable[[torch.Tensor], None] | None:
        '''Return a function that is told how much of an output's relevance is what the reference gives.'''
        return None

    def rule(self, where: str, module: torch.nn.Module, hook: Any) -> Callable[[Sequence, Sequence], None] | None:
        '''Return a function that is told the relevance that went into a rule of a module, and what came out.'''
        return None

    def module_returned(self, module: str, output: Any) -> None:
        '''A module has returned what is not a tensor that carries relevance.'''

    def accepted(self, module: str, function: str, reason: str, line: str) -> None:
        '''A function ran by its plain gradient, because no rule is known for it.'''
