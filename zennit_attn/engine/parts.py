'''Which elements of a tensor carry relevance, where constants were put beside those that do.

A constant in a tensor is no factor of a product: there, the product is linear in the other factor. Which elements are
constants is found by following them from where they were put in, by ``cat``, ``where``, a write in place, along
whatever moves them. Nothing of it is computed before a product asks.
'''
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import torch

from ..operators import Kind
from ..propagation import Call
from ..trees import is_plain, substitute, tensors_in


class Parts:
    '''The parts of one tensor that a function returned.

    Parameters
    ----------
    recipe: :py:class:`Recipe`
        How they are found.
    index: int
        Which of the tensors that the function returned it is.
    '''
    __slots__ = ('recipe', 'index')

    def __init__(self, recipe: Recipe, index: int = 0):
        self.recipe = recipe
        self.index = index

    def mask(self) -> torch.Tensor | None:
        '''Return a tensor of bool of the tensor's shape, true where it carries relevance; None if it may everywhere.'''
        self.recipe.resolve()
        return None if self.recipe.masks is None else self.recipe.masks[self.index]


class Operand(NamedTuple):
    '''Stands for a floating point argument of a function, which is not kept.

    Attributes
    ----------
    shape: tuple of int
    device: :py:class:`torch.device`
    carries: bool or :py:class:`Parts`
        Whether it carries relevance, or which parts of it do.
    stride: tuple of int or None
        The strides, if these count.
    '''
    shape: tuple
    device: torch.device
    carries: Any
    stride: tuple | None = None

    def filled(self, value: float) -> torch.Tensor:
        '''A tensor like it, which holds a number where it carries relevance, and 0 elsewhere.'''
        if self.stride is None:
            result = torch.empty(self.shape, device=self.device)
        else:
            result = torch.empty_strided(self.shape, self.stride, device=self.device)
        mask = self.carries.mask() if isinstance(self.carries, Parts) else None
        if mask is not None:
            return result.copy_(mask).mul_(value)
        return result.fill_(value if self.carries else 0.)


class Recipe:
    '''How to find the parts of what a function returns: what differs between two runs, on zeros and on ones.

    Parameters
    ----------
    function: callable
        A function that moves values.
    args, kwargs: tuple, dict
        Its arguments, with an :py:class:`Operand` for each tensor that is floating point.
    inplace: bool
        Whether it writes to its first argument.
    '''
    __slots__ = ('function', 'args', 'kwargs', 'inplace', 'versions', 'sources', 'masks', 'resolved')

    def __init__(self, function: Callable, args: tuple, kwargs: dict, inplace: bool = False):
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.inplace = inplace
        self.versions = [(tensor, tensor._version) for tensor in tensors_in(args, kwargs)]
        self.sources = [operand.carries.recipe for operand in _operands_in((args, kwargs))
                        if isinstance(operand.carries, Parts)]
        self.masks: list | None = None
        self.resolved = False

    def resolve(self) -> None:
        '''Find the parts, those of the operands first: in a loop, as there may be more of them than frames.'''
        pending = [self]
        while pending:
            missing = [source for source in pending[-1].sources if not source.resolved]
            if missing:
                pending.extend(missing)
            else:
                pending.pop()._compute()

    def _compute(self) -> None:
        if self.resolved:
            return
        if all(tensor._version == version for tensor, version in self.versions):
            try:
                with torch.no_grad(), torch._C.DisableTorchFunction():
                    self.masks = [zero != one for zero, one in zip(self._run(0.), self._run(1.), strict=True)]
            except (RuntimeError, TypeError, IndexError, ValueError):
                self.masks = None  # what cannot run on other numbers may carry relevance everywhere
        self.resolved = True
        self.args, self.kwargs, self.versions, self.sources = (), {}, [], []

    def _run(self, value: float) -> list[torch.Tensor]:
        args, kwargs = _with_operands((self.args, self.kwargs), lambda operand: operand.filled(value))
        result = self.function(*args, **kwargs)
        return tensors_in(args[0] if self.inplace else result)


def moved(func: Callable, args: tuple, kwargs: Mapping, carries: Callable[[torch.Tensor], Any],
          inplace: bool = False) -> Recipe | None:
    '''Return how to find the parts of what a function that moves values returns, or None if it cannot be told.

    Parameters
    ----------
    func: callable
        The function.
    args, kwargs: tuple, dict
        Its arguments.
    carries: callable
        Takes a tensor among them and returns whether it carries relevance, or which parts of it do.
    inplace: bool, optional
        Whether the function writes to its first argument.
    '''
    tensors = tensors_in(args, kwargs)
    if any(tensor.is_complex() or tensor.layout is not torch.strided or not is_plain(tensor) for tensor in tensors):
        return None

    def stand_in(tensor):
        if not tensor.is_floating_point():
            return tensor
        return Operand(tuple(tensor.shape), tensor.device, carries(tensor))
    args, kwargs = substitute((args, kwargs), stand_in)
    return Recipe(func, args, kwargs, inplace)


def follow_parts(call: Call, states: list | None) -> Recipe | None:
    '''Return how to find the parts of what a call returns or writes to.

    Parameters
    ----------
    call: :py:class:`~zennit_attn.propagation.Call`
    states: list of bool or :py:class:`Parts`, or None
        Whether each of its operands carried relevance before it, or which parts of it did. None if all did.
    '''
    states = [True] * len(call.operands) if states is None else states
    operator, known = call.operator, any(state is not True for state in states)
    if operator.kind is Kind.REARRANGE and (known or _places_constants(call)):
        if call.accumulates or operator.name.startswith('as_strided'):
            return None
        by_operand = {id(operand): state for operand, state in zip(call.operands, states, strict=True)}
        return moved(call.func, call.args, call.kwargs, lambda tensor: by_operand.get(id(tensor), False), call.inplace)
    if not known or not (operator.pairwise or operator.scales or operator.clamps or operator.kind is Kind.ACTIVATION):
        return None
    steering = [arg for position, arg in enumerate(call.args) if position in operator.steered]
    leading = [(operand, state) for operand, state in zip(call.operands, states, strict=True)
               if not any(operand is arg for arg in steering)]
    if not leading or any(state is True for _, state in leading):
        return None
    operands = [Operand(tuple(operand.shape), operand.device, state) for operand, state in leading]
    shapes = [tensor.shape for tensor in tensors_in(call.args, call.kwargs)]
    return Recipe(_largest, (torch.broadcast_shapes(*shapes), *operands), {})


def _places_constants(call):
    '''Whether a function that moves values puts constants beside them.'''
    return call.operator.mixes and not (
        call.operator.joins and len(call.operands) == len(tensors_in(call.args, call.kwargs)))


def of_view(view: torch.Tensor, carries: Any) -> Parts | None:
    '''Return the parts of a view, given those of its base.'''
    base = view._base
    if base is None or not _is_simple(base) or not _is_simple(view):
        return None
    source = Operand(tuple(base.shape), base.device, carries, base.stride())
    offset = view.storage_offset() - base.storage_offset()
    return Parts(Recipe(torch.as_strided, (source, tuple(view.shape), view.stride(), offset), {}))


def of_base(view: torch.Tensor, carries: Any, before: Any) -> Parts | None:
    '''Return the parts of the base of a view that was written to, given those of the view and those it had before.'''
    base = view._base
    if base is None or not _is_simple(base) or not _is_simple(view):
        return None
    target = Operand(tuple(base.shape), base.device, before, base.stride())
    values = Operand(tuple(view.shape), view.device, carries)
    offset = view.storage_offset() - base.storage_offset()
    return Parts(Recipe(_write_view, (target, values, view.stride(), offset), {}, inplace=True))


def _write_view(base, values, stride, offset):
    base.as_strided(values.shape, stride, offset).copy_(values)


def _largest(shape, *tensors):
    return reduce(torch.maximum, tensors).expand(shape)


def _is_simple(tensor):
    return not tensor.is_complex() and tensor.layout is torch.strided and 0 not in tensor.stride()


def _operands_in(tree):
    found: list[Operand] = []
    _with_operands(tree, found.append)
    return found


def _with_operands(tree, function):
    '''Nested arguments with a function applied to each operand.'''
    if isinstance(tree, Operand):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _with_operands(value, function) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_with_operands(item, function) for item in tree)
    return tree
