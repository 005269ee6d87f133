'''What a rule is: how an operator runs, and what it leaves over.'''
from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from .call import Call


class Absorbed(NamedTuple):
    '''What one call absorbs: of the relevance per unit `g` that arrives at its output, ``sum(value * g)``.

    Attributes
    ----------
    value: :py:class:`torch.Tensor`
        Of the shape of the output.
    hidden: tuple of str, optional
        Kind and name of the sink, where it is no constant of the model: the hidden bias of an expansion.
    '''
    value: torch.Tensor
    hidden: tuple[str, str] | None = None


#: What an expansion leaves over.
HIDDEN_BIAS = ('taylor', 'hidden bias')


class Rule:
    '''A function that runs an operator such that autograd's backward pass is a rule, and what the rule absorbs.

    Calling it notes in the call that it is the rule that ran.

    Parameters
    ----------
    function: callable
        Takes a :py:class:`Call`, and what other rules may add to say how, and returns what the operator returns.
    name: str or None
        The name of the rule, as the table of operators of an audit has it. None for what only runs other operators.
    left_over: callable
        Takes the call, its detached output, after it ran, and which of several outputs that is; returns what it
        :py:class:`Absorbed`, or None.
    moved: callable, optional
        Takes the call and a detached output and returns a mask of what was put in the place of values: what a rule
        that moves values absorbs in the relevance domain. It returns None if there is nothing.
    '''
    def __init__(self, function: Callable[..., Any], name: str | None,
                 left_over: Callable[[Call, torch.Tensor, int], Absorbed | None],
                 moved: Callable[[Call, torch.Tensor], torch.Tensor | None] | None = None):
        update_wrapper(self, function)
        self.function = function
        self.name = name
        self.left_over = left_over
        self.moved = moved or (lambda call, output: None)
        self.moves = moved is not None

    def __call__(self, call: Call, *how: Any) -> Any:
        call.rule = self
        return self.function(call, *how)

    def __repr__(self) -> str:
        return f'<rule {self.name} by {self.function.__name__}>'


def rule(name: str | None, left_over: Callable, moved: Callable | None = None) -> Callable[[Callable], Rule]:
    '''Make a :py:class:`Rule` of a function.'''
    return lambda function: Rule(function, name, left_over, moved)
