'''Writes past autograd into the memory of tensors that carry relevance, by ``.data``, ``detach`` and NumPy.'''
from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UnsupportedOperator
from ..trees import address
from . import messages

if TYPE_CHECKING:
    from .forward import Forward

#: What gives code the memory of a tensor without its gradient.
ALIASES = frozenset((torch.Tensor.data.__get__, torch.Tensor.detach, torch.detach, torch.Tensor.numpy))


class HiddenWrites:
    '''What one forward writes where no rule can follow.

    Parameters
    ----------
    forward: :py:class:`~zennit_attn.engine.forward.Forward`
        The forward.
    '''
    def __init__(self, forward: Forward):
        self._forward = weakref.proxy(forward)
        self._carrying: dict[Any, weakref.ref] = {}
        self._watched: list[tuple[tuple[str, str], str, Callable[[], bool]]] = []

    def note_alias(self, func: Callable, tensor: torch.Tensor, alias: Any) -> None:
        '''Note that code has got hold of the memory of a tensor that carries relevance.'''
        place = address(tensor, shared=True)
        if tensor.requires_grad and not self._forward.is_constant(tensor):
            self._carrying[place] = weakref.ref(tensor)
        elif place not in self._carrying:
            return
        if func == torch.Tensor.data.__get__:  # which counts writes by itself
            self._watched.append((self._forward.locate(), 'a function', lambda: alias._version == 0))
        elif func is torch.Tensor.numpy:  # which does not count them
            values = tensor.detach()
            kept = values.clone()
            self._watched.append((self._forward.locate(), 'numpy', lambda: torch.equal(values, kept)))

    def check_write(self, target: Any, name: str) -> None:
        '''Refuse a write in place to a tensor without a gradient that shares memory with one that carries relevance.'''
        if self._carrying and isinstance(target, torch.Tensor):
            place = address(target, shared=True)
            carrying = self._carrying[place]() if place in self._carrying else None
            if carrying is not None and address(carrying, shared=True) == place:
                raise UnsupportedOperator(messages.hidden_write(*self._forward.locate(), name))

    def check(self) -> None:
        '''Refuse what was written where no function of torch was seen to write, at the end of the forward.'''
        for where, name, is_untouched in self._watched:
            if not is_untouched():
                raise UnsupportedOperator(messages.hidden_write(*where, name))
