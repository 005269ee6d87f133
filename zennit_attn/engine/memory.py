'''Memory that tensors share: what writes in place make of the tags of others, and of elements that share a place.'''
from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..errors import UnsupportedOperator
from ..propagation import Call
from . import messages
from .parts import Parts, of_base, of_view
from .tags import parts_of, tag_of

if TYPE_CHECKING:
    from .forward import Forward


class Memory:
    '''What the code of one forward writes to memory that tensors share.

    Parameters
    ----------
    forward: :py:class:`~zennit_attn.engine.forward.Forward`
        The forward.

    Attributes
    ----------
    shared: bool
        Whether constants were written into memory that other tensors may share, whose tags can be out of date.
    '''
    def __init__(self, forward: Forward):
        self._forward = weakref.proxy(forward)
        self.shared = False

    def state_of(self, tensor: torch.Tensor | None) -> bool | Parts:
        '''Return whether a tensor carries relevance, or which parts of it do.'''
        if tensor is None or not tensor.requires_grad:
            return False
        return parts_of(tensor) or not self._forward.is_constant(tensor)

    def written(self, target: torch.Tensor, before: bool | Parts) -> None:
        '''Note what a write in place has made of the memory of its target.

        `before` is the state of what the target is a view of, before it.
        '''
        forward, state, base = self._forward, self.state_of(target), target._base
        if base is None:
            # A view keeps what it is a view of, as the backward pass may too.
            self._share(state is not True and target._use_count() > 1)  # type: ignore[attr-defined]
            return
        if not base.requires_grad:
            return
        if state is before is False:
            forward.mark_constant(base)
        elif state is before is True:
            forward.mark(base)
        else:
            forward.mark_tensor(base, None, None, of_base(target, state, before))
        self._share(state is not True)

    def _share(self, shared):
        if shared:
            self.shared, self._forward.direct = True, False

    def refresh(self, operands: list[torch.Tensor]) -> None:
        '''Bring the tags of views up to date with what was written to their bases.'''
        forward = self._forward
        for view in operands:
            base, tag = view._base, tag_of(view)
            if base is None or not base.requires_grad or (tag is not None and tag.forward is not forward.identity):
                continue
            whole = tag is None or tag is forward.carrying_tag or tag is forward.constant_tag or (
                tag.version != view._version)
            state = self.state_of(base)
            if not whole or (state is True and not forward.is_constant(view)):
                continue
            if state is False:
                forward.mark_constant(view)
            else:
                forward.mark_tensor(view, None, None, None if state is True else of_view(view, state))

    def put_in_place(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        '''Write what a module has computed in place where everybody sees it who holds its input.'''
        forward, tag = self._forward, tag_of(result)
        target.copy_(result)
        if forward.references is not None:
            forward.references.put_in_place(target, result)
        if target._base is not None and target._base.requires_grad:
            forward.mark(target._base)
        forward.mark_tensor(target, None, tag.twin if tag is not None else None)
        return target


def guard(call: Call) -> Callable[[], None] | None:
    '''Return what is to be called after a write in place, to refuse it if no gradient can follow; or None.

    Torch lets some functions write into an expanded tensor, but where its base carries relevance too, there is no
    gradient behind them, and the backward pass would say so in words of its own.
    '''
    target = call.args[0]
    base = target._base
    if base is None or not base.requires_grad or 0 not in _written(call).stride():
        return None
    before = base.grad_fn

    def check() -> None:
        if base.grad_fn is not before:
            raise UnsupportedOperator(messages.shared_memory(*call.forward.locate(), call.operator.name))
    return check


def _written(call):
    '''The part of the first argument that is written to, as far as its strides can tell.'''
    target = call.args[0].detach()
    if call.func is not torch.Tensor.__setitem__:
        return target.squeeze()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    basic = all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in index)
    target = target[index] if basic and not any(isinstance(item, bool) for item in index) else target
    return target.squeeze()  # without the axes of one entry, whose strides do not matter
