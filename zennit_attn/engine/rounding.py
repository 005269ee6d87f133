'''Values that were rounded, such as those of dynamic int8: relevance goes past them, to the scale alone.'''
from __future__ import annotations

import warnings
from typing import Any

import torch

from ..trees import tensors_in
from . import messages

#: What takes values to whole numbers.
FUNCTIONS = frozenset(('round', 'floor', 'ceil', 'trunc', 'fix'))
#: What casts them to integers, besides functions that cast to any type.
CASTS = frozenset(getattr(torch.Tensor, name) for name in ('byte', 'char', 'short', 'int', 'long'))
#: Types that hold nothing else.
INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))


def note(output: Any, place: tuple[str, str]) -> None:
    '''Note on a tensor the module and the line that rounded it.'''
    if isinstance(output, torch.Tensor):
        output.lrp_rounded = place  # type: ignore[attr-defined]  # tensors take attributes


def found(tensors: list[torch.Tensor], least: int = 0) -> tuple[str, str] | None:
    '''Return the module and the line that rounded what a tensor with more than some elements is of, or None.'''
    return next((place for tensor in tensors if (place := getattr(tensor, 'lrp_rounded', None)) is not None
                 and tensor.numel() > least), None)


def follow(args: tuple, kwargs: dict, output: Any) -> None:
    '''Note that what is made of rounded values is; not what whole numbers are an index of.'''
    tensors = tensors_in(args, kwargs)
    place = found(tensors)
    if place is not None and len({tensor.is_floating_point() for tensor in tensors}) == 1:
        for tensor in tensors_in(output):
            if tensor.dtype != torch.bool:
                note(tensor, place)


def warn_at(product: Any, place: tuple[str, str], said: list) -> Any:
    '''Warn, once, when relevance arrives at a product with what was rounded.'''
    def warn(grad: torch.Tensor) -> None:
        if not said and bool((grad != 0).any()):
            said.append(place)
            warnings.warn(messages.rounded(*place), stacklevel=2)
    if isinstance(product, torch.Tensor) and product.requires_grad:
        product.register_hook(warn)
    return product
