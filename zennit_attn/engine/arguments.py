'''The arguments of the root's forward: taken into the gradient domain, and given back.'''
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..trees import items_of, with_items

Convert = Callable[[torch.Tensor], torch.Tensor]


class Arguments:
    '''Nested arguments, whose tensors are converted for a forward.

    Lists and dicts that the forward may write to, such as caches, stay the same objects: their tensors are replaced in
    place, and what they hold afterwards is given back. A tensor that is given twice is converted once.
    '''
    def __init__(self) -> None:
        self._converted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._mutable: dict[int, list | dict] = {}

    def enter(self, tree: Any, convert: Convert) -> Any:
        '''Return arguments with `convert` applied to every tensor. What does not change stays the same object.'''
        if isinstance(tree, torch.Tensor):
            return self._once(tree, convert)
        items = items_of(tree)
        if items is None or id(tree) in self._mutable:
            return tree
        changed = {key: self.enter(item, convert) for key, item in items.items()}
        if isinstance(tree, (list, dict)):
            self._mutable[id(tree)] = tree
            _write(tree, changed)
            return tree
        return with_items(tree, items, changed)

    def _once(self, tensor, convert):
        if id(tensor) not in self._converted:
            self._converted[id(tensor)] = tensor, convert(tensor)
        return self._converted[id(tensor)][1]

    def leave(self, convert: Convert) -> None:
        '''Give lists and dicts back: with the tensors that they had, and `convert` applied to those that are new.'''
        originals = {id(converted): original for original, converted in self._converted.values()}
        for container in self._mutable.values():
            items = items_of(container) or {}
            _write(container, {key: self._outside(item, originals, convert) for key, item in items.items()})

    def _outside(self, item, originals, convert):
        if isinstance(item, torch.Tensor):
            return originals[id(item)] if id(item) in originals else convert(item)
        items = items_of(item)
        if items is None or id(item) in self._mutable:
            return item
        changed = {key: self._outside(part, originals, convert) for key, part in items.items()}
        if isinstance(item, (list, dict)):
            _write(item, changed)
            return item
        return with_items(item, items, changed)


def _write(container, items):
    for key, item in items.items():
        if container[key] is not item:
            container[key] = item
