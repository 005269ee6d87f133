'''Why nothing carries relevance, and why it is not known where a tensor comes from.'''
from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import messages
from .tags import Tag, gate_of

if TYPE_CHECKING:
    from .forward import Forward


def why_none(forward: Forward, outputs: list, selected: bool) -> str:
    '''Say why nothing that the root returns, or that is selected of it, carries relevance.'''
    root = forward.location.name_of(forward.location.root)
    opaque = [type(output).__name__ for output in outputs if hasattr(output, '__dict__')
              and not isinstance(output, torch.Tensor)]
    if opaque:
        return messages.unseen_output(root, opaque[0])
    gate = next(filter(None, map(gate_of, outputs)), None)
    if selected:
        return messages.no_relevance_selected(root, gate)
    if gate is not None:
        return messages.no_relevance(root, messages.ends_at_gate(*gate, last=True))
    if forward.without_grad is not None:
        return messages.no_relevance(root, messages.ends_without_grad(*forward.without_grad))
    if forward.last_gate is None:
        return messages.no_relevance(root, messages.NO_DEPENDENCE)
    return messages.no_relevance(root, messages.ends_at_gate(*forward.last_gate, last=False))


def why_untracked(forward: Forward, tensor: torch.Tensor, tag: Tag | None, where: str | None) -> str:
    '''Say why a tensor that carries relevance is not known: where it comes from, as far as that can be told.'''
    module, line = forward.locate()
    shape, at = tuple(tensor.shape), where or module
    if tensor.grad_fn is None:
        return messages.no_input(at, line, shape)
    origin = type(tensor.grad_fn).__name__
    if 'Checkpoint' in origin:
        return f'module {at!r}: {messages.CHECKPOINTING}\n  {line}'
    if tag is not None and tag.forward is not forward.identity:
        return messages.earlier_forward(at, line, shape, origin)
    return messages.unseen_code(at, line, shape, origin)
