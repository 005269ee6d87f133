'''Which row a function that nobody knows needs, found out by calling it at random points.

A proposal, for the words of a refusal: what holds at some points need not hold everywhere, so it is never acted on.
'''
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from ..trees import substitute, tensors_in
from .kinds import Kind

#: Namespaces of operators that wait for other processes.
_COLLECTIVES = ('_c10d_functional', 'c10d', '_dtensor')


def name_of(function: Callable) -> str | None:
    '''Return how code refers to a function, or None if it can not.'''
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        name = str(function)
        return None if name.startswith(_COLLECTIVES) else f'torch.ops.{name}'
    name = getattr(function, '__qualname__', '').rpartition('<locals>.')[2]
    module = getattr(function, '__module__', None) or ''
    name = f'{module}.{name}' if module.split('.')[0] == 'torch' else name
    return name if name and '<' not in name else None


def propose(function: Callable, args: tuple, kwargs: Mapping) -> str | None:
    '''Return the call of ``register_operator`` that seems to fit a function, or None.

    Parameters
    ----------
    function: callable
        The function. It is called some thirty times, without gradients and on copies of its tensors.
    args: tuple
        The arguments of a call.
    kwargs: dict

    Returns
    -------
    str or None
    '''
    name = name_of(function)
    if name is None:
        return None
    devices = [tensor.device for tensor in tensors_in(args, kwargs) if tensor.device.type == 'cuda']
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction(), torch.random.fork_rng(devices[:1]):
            args, kwargs, signature = _positional(function, args, kwargs)
            facts = _Probe(function, args, kwargs).facts()
    except Exception:  # whatever an unknown function may raise on other values than those that it was given
        return None
    if facts is None:
        return None
    kind, others = facts
    others['signature'] = signature
    words = [name, repr(kind.value), *(f'{key}={value!r}' for key, value in others.items() if value)]
    return f'register_operator({", ".join(words)})'


def _positional(function: Callable, args: tuple, kwargs: Mapping) -> tuple[tuple, Mapping, str]:
    '''Return the arguments with tensors by position, and the names that these positions have.'''
    if not tensors_in(kwargs):
        return args, kwargs, ''
    bound = inspect.signature(function).bind(*args, **kwargs)
    if any(tensor.requires_grad for tensor in tensors_in(bound.kwargs)):
        raise TypeError('a row names positions, and an operand that carries relevance has none')
    return bound.args, bound.kwargs, ' '.join(list(bound.signature.parameters)[:len(bound.args)])


class _Probe:
    '''Calls a function with some of its floating point arguments replaced. Positions count the arguments.

    Kernels need not check their arguments: an index or a box far from those that were given may crash the process. So
    an argument is replaced by what lies between it and zero, and by other values only once that has found it linear.
    '''
    def __init__(self, function: Callable, args: tuple, kwargs: Mapping):
        self.function = function
        self.args = substitute(tuple(args), lambda tensor: tensor.detach().clone())
        self.kwargs = substitute(dict(kwargs), lambda tensor: tensor.detach())
        self.positions = [position for position, arg in enumerate(self.args)
                          if any(tensor.is_floating_point() for tensor in tensors_in(arg))]
        self.carrying = [position for position in self.positions
                         if any(tensor.requires_grad for tensor in tensors_in(args[position]))] or self.positions
        dtypes = [tensor.dtype for tensor in tensors_in(self.args) if tensor.is_floating_point()]
        self.tolerance = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.) ** .5

    def copies(self, values: Mapping[int, Any]) -> tuple[list, dict]:
        '''Return copies of the arguments, with others at some positions.'''
        given = [values.get(position, arg) for position, arg in enumerate(self.args)]
        return substitute((given, self.kwargs), torch.clone)

    def at(self, values: Mapping[int, Any] = MappingProxyType({})) -> torch.Tensor:
        '''Return all that is floating point of the output, flattened.'''
        args, kwargs = self.copies(values)
        outputs = [tensor for tensor in tensors_in(self.function(*args, **kwargs)) if tensor.is_floating_point()]
        return torch.cat([output.flatten().double() for output in outputs])

    def writes(self) -> bool:
        '''Whether it writes to what it is given.'''
        args, kwargs = self.copies({})
        self.function(*args, **kwargs)
        pairs = zip(tensors_in(args, kwargs), tensors_in(self.args, self.kwargs), strict=True)
        return not all(torch.equal(after, before) for after, before in pairs)

    @cached_property
    def own(self) -> torch.Tensor:
        '''The output at the arguments that were given.'''
        return self.at()

    def replaced(self, position: int, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        '''Return an argument with its floating point tensors replaced.'''
        return substitute(
            self.args[position], lambda tensor: function(tensor) if tensor.is_floating_point() else tensor)

    def zeros(self, positions: Iterable[int]) -> dict[int, Any]:
        return {position: self.replaced(position, torch.zeros_like) for position in positions}

    def near(self, positions: Iterable[int]) -> dict[int, Any]:
        return {position: self.replaced(position, _between_it_and_zero) for position in positions}

    def same(self, left: torch.Tensor, right: torch.Tensor) -> bool:
        scale = max(float(left.abs().max()), float(right.abs().max()), 1e-30)
        return float((left - right).abs().max()) <= self.tolerance * scale

    def keeps_mixtures(self, position: int, make: Callable[[torch.Tensor], torch.Tensor]) -> bool:
        '''Whether what it makes of a mixture of values is that mixture of what it makes of them.'''
        other = self.replaced(position, make)
        mixed = _mixed(self.args[position], other)
        return self.same(.25 * self.own + .75 * self.at({position: other}), self.at({position: mixed}))

    def is_linear(self, position: int) -> bool:
        '''Whether it is affine in an argument.'''
        try:
            return all(self.keeps_mixtures(position, make) for make in (_between_it_and_zero, torch.randn_like))
        except Exception:  # it takes no other values there
            return False

    def matters(self, position: int) -> bool:
        try:
            return not self.same(self.at(self.near([position])), self.own)
        except Exception:
            return True

    def facts(self) -> tuple[Kind, dict[str, Any]] | None:
        '''Return the kind and other facts, or None if nothing fits.'''
        if self.writes() or not self.same(self.at(), self.own):
            return None  # no row says what is written to; and what draws at random is no function
        positions = [position for position in self.positions if self.matters(position)]
        linear = [position for position in positions if self.is_linear(position)]
        if not any(position in self.carrying for position in linear):
            return self._nonlinear([position for position in positions if position in self.carrying])
        return self._linear(linear, tuple(position for position in positions if position not in linear))

    def _linear(self, linear: list[int], steered: tuple[int, ...]) -> tuple[Kind, dict[str, Any]] | None:
        constant = bool(self.at(self.zeros(linear)).any())
        added = self._added(linear)
        factors = tuple(position for position in linear if position not in added)
        if not self._is_product(factors):
            return None
        several = len(tensors_in([self.args[position] for position in linear])) > 1
        if len(added) == len(linear) and not steered:
            return (Kind.REARRANGE if self._moves(linear) else Kind.ADD), {'affine': constant or several}
        if not (steered or added or constant):
            return Kind.EINSUM, {}
        joint = len(linear) > 1
        return Kind.LINEAR, {'factors': (factors or added[:1]) if joint else (), 'steered': steered,
                             'affine': constant or (joint and bool(added))}

    def _added(self, linear: list[int]) -> tuple[int, ...]:
        '''The arguments whose part in the output does not depend on the other ones: summands.'''
        found = []
        for position in linear:
            nothing, rest = self.zeros([position]), self.zeros(other for other in linear if other != position)
            if self.same(self.at(rest) - self.at(rest | nothing), self.own - self.at(nothing)):
                found.append(position)
        return tuple(found)

    def _is_product(self, factors: tuple[int, ...]) -> bool:
        '''Whether no factor leaves anything of a product where it is zero. A sum of products does.'''
        nothing = self.at(self.zeros(factors))
        return all(self.same(self.at(self.zeros([position])), nothing) for position in factors)

    def _moves(self, positions: list[int]) -> bool:
        '''Whether all that comes out is what went in, or a constant.'''
        values = self.near(positions)
        output, constant = self.at(values), self.at(self.zeros(positions))
        given = torch.cat([tensor.flatten().double() for tensor in tensors_in(list(values.values()))])
        moved = output[output != constant]
        return bool(moved.numel()) and bool(torch.isin(moved, given).all())

    def _nonlinear(self, positions: list[int]) -> tuple[Kind, dict[str, Any]] | None:
        if not positions:
            return None
        nothing, alone = self.at(self.zeros(positions)), self._is_elementwise(positions)
        if alone and not nothing.any():
            return (Kind.ACTIVATION, {'homogeneous': self._is_homogeneous()}) if positions == [0] else None
        if alone:
            return Kind.GATE, {}
        if self._moves(positions):
            return Kind.SELECT, {}
        weighs = all(bool((values >= 0).all()) for values in (self.own, self.at(self.near(positions)), nothing))
        return (Kind.GATE, {}) if weighs and nothing.any() else None

    def _is_homogeneous(self) -> bool:
        '''Whether it is linear on each side of zero, in its first argument.'''
        x = self.replaced(0, torch.randn_like)
        return self.same(self.at({0: .5 * x}), .5 * self.at({0: x}))

    def _is_elementwise(self, positions: list[int]) -> bool:
        x, (args, kwargs) = self.args[positions[0]], self.copies({})
        output = self.function(*args, **kwargs)
        if len(positions) > 1 or not isinstance(x, torch.Tensor) or getattr(output, 'shape', None) != x.shape:
            return False
        kept = torch.rand(x.shape, device=x.device) < .5
        changed = torch.where(kept, x, _between_it_and_zero(x))
        difference = self.at({positions[0]: changed}) - self.own
        return not difference[kept.flatten()].any()


def _between_it_and_zero(tensor: torch.Tensor) -> torch.Tensor:
    '''Return random values between those of a tensor and zero, and small ones in the place of zeros.'''
    share = torch.rand_like(tensor)
    return torch.where(tensor == 0, .25 * share, tensor * (.5 + .5 * share))


def _mixed(arg: Any, other: Any) -> Any:
    others = iter(tensors_in(other))
    return substitute(arg, lambda tensor: torch.lerp(tensor, next(others), .75) if tensor.is_floating_point() else next(
        others))
