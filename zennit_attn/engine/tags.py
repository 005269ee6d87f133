'''What the engine knows of a tensor, kept on the tensor itself.'''
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .origins import Origin
    from .parts import Parts
    from .weights import Weights


class Tag:
    '''What is known of a tensor that requires a gradient.

    Attributes
    ----------
    forward: object
        Stands for the forward that the tensor belongs to.
    carries: bool
        Whether it carries relevance. A tensor that became a gate in place requires a gradient, and carries nothing.
    origin: :py:class:`~zennit_attn.engine.origins.Origin` or None
        What it was made of, if a product has to know.
    twin: callable or None
        Returns the same values in the relevance domain, or None.
    version: int
        The version of the tensor that origin, twin, parts and weighing hold for: a write in place ends them.
    parts: :py:class:`~zennit_attn.engine.parts.Parts` or None
        Which of its elements carry relevance, if some may not.
    weighing: :py:class:`~zennit_attn.engine.weights.Weights` or None
        What it is to a softmax that is written out.
    '''
    __slots__ = ('forward', 'carries', 'origin', 'twin', 'version', 'parts', 'weighing')

    def __init__(self, forward: object, carries: bool = True, origin: Origin | None = None,
                 twin: Callable[[], torch.Tensor | None] | None = None, version: int = 0,
                 parts: Parts | None = None, weighing: Weights | None = None):
        self.forward = forward
        self.carries = carries
        self.origin = origin
        self.twin = twin
        self.version = version
        self.parts = parts
        self.weighing = weighing


def tag_of(tensor: torch.Tensor) -> Tag | None:
    '''Return the tag of a tensor, or None.'''
    return getattr(tensor, 'lrp_tag', None)


def origin_of(tensor: torch.Tensor) -> Origin | None:
    '''Return what a tensor was made of, or None.'''
    tag = tag_of(tensor)
    return tag.origin if tag is not None and tag.version == tensor._version else None


def weights_of(tensor: torch.Tensor) -> Weights | None:
    '''Return what a tensor is to a softmax that is written out, or None.'''
    tag = tag_of(tensor)
    return tag.weighing if tag is not None and tag.version == tensor._version else None


def are_parts(tensors: list[torch.Tensor]) -> bool:
    '''Whether one of some tensors may be a part of a softmax that is written out. A cheap look, for every call.'''
    for tensor in tensors:  # noqa: SIM110 - a generator for any() would take longer
        tag = getattr(tensor, 'lrp_tag', None)
        if tag is not None and tag.weighing is not None:
            return True
    return False


def parts_of(tensor: torch.Tensor) -> Parts | None:
    '''Return which elements of a tensor carry relevance, or None if all may.'''
    tag = tag_of(tensor)
    return tag.parts if tag is not None and tag.version == tensor._version else None


def gate_of(output: object) -> tuple[str, str, str] | None:
    '''Return the gate that a tensor is the result of: its operator, the module and the line; or None.'''
    return getattr(output, 'lrp_gate', None)


def has_twin(tensor: torch.Tensor) -> bool:
    '''Whether a tensor may have a twin, as it was not written to since.'''
    tag = tag_of(tensor)
    return tag is not None and tag.twin is not None and tag.version == tensor._version


def twin_of(tensor: torch.Tensor) -> torch.Tensor | None:
    '''Return the tensor of the relevance domain that holds the same values, or None if there is none (any more).'''
    return tag_of(tensor).twin() if has_twin(tensor) else None  # type: ignore[union-attr, misc]  # or it has none
