'''Which row a function that nobody knows needs, found out by calling it at random points.

A proposal, for the words of a refusal: what holds at some points need not hold everywhere, so it is never acted on.
'''
from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
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
    name = getattr(function, '__qualname__', '')
    return name if name and '<' not in name.rpartition('.')[2] else None


def propose(function: Callable, args: tuple, kwargs: Mapping) -> str | None:
    '''Return the call of ``register_operator`` that seems to fit a function, or None.

    Parameters
    ----------
    function: callable
        The function. It is called some twenty times, without gradients and on copies of its tensors.
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
    return bound.args, bound.kwargs, ' '.join(list(bound.signature.parameters)[:len(bound.args)])


class _Probe:
    '''Calls a function with some of its floating point arguments replaced. Positions count the arguments.'''
    def __init__(self, function: Callable, args: tuple, kwargs: Mapping):
        self.function = function
        self.args = substitute(tuple(args), lambda tensor: tensor.detach().clone())
        self.kwargs = substitute(dict(kwargs), lambda tensor: tensor.detach())
        self.positions = [position for position, arg in enumerate(self.args)
                          if any(tensor.is_floating_point() for tensor in tensors_in(arg))]
        dtypes = [tensor.dtype for tensor in tensors_in(self.args) if tensor.is_floating_point()]
        self.tolerance = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.) ** .5

    def at(self, **values: Any) -> torch.Tensor:
        '''Return the output, flattened, with ``p3=x`` in the place of argument 3.'''
        args = [values.get(f'p{position}', arg) for position, arg in enumerate(self.args)]
        args, kwargs = substitute((args, self.kwargs), lambda tensor: tensor.clone())
        outputs = [tensor for tensor in tensors_in(self.function(*args, **kwargs)) if tensor.is_floating_point()]
        return torch.cat([output.flatten().double() for output in outputs])

    def scaled(self, position: int, factor: float) -> Any:
        return substitute(self.args[position],
                          lambda tensor: tensor * factor if tensor.is_floating_point() else tensor)

    def random(self, position: int) -> Any:
        return substitute(self.args[position],
                          lambda tensor: torch.randn_like(tensor) if tensor.is_floating_point() else tensor)

    def plus(self, position: int, other: Any) -> Any:
        others = iter(tensors_in(other))
        return substitute(self.args[position],
                          lambda tensor: tensor + next(others) if tensor.is_floating_point() else next(others))

    def same(self, left: torch.Tensor, right: torch.Tensor) -> bool:
        scale = max(float(left.abs().max()), float(right.abs().max()), 1e-30)
        return float((left - right).abs().max()) <= self.tolerance * scale

    def is_linear(self, *positions: int) -> bool:
        '''Whether it is affine in some arguments together: it keeps sums and multiples of them, less a constant.'''
        own = {f'p{position}': self.args[position] for position in positions}
        other = {f'p{position}': self.random(position) for position in positions}
        both = {f'p{position}': self.plus(position, other[f'p{position}']) for position in positions}
        nothing = {f'p{position}': self.scaled(position, 0.) for position in positions}
        half = {f'p{position}': self.scaled(position, -.5) for position in positions}
        try:
            zero = self.at(**nothing)
            return self.same(self.at(**own) + self.at(**other) - zero, self.at(**both)) and self.same(
                self.at(**half), 1.5 * zero - .5 * self.at(**own))
        except Exception:  # it takes no other values there: indices as numbers, boxes
            return False

    def matters(self, position: int) -> bool:
        try:
            return not self.same(self.at(**{f'p{position}': self.random(position)}), self.at())
        except Exception:
            return True

    def facts(self) -> tuple[Kind, dict[str, Any]] | None:
        '''Return the kind and other facts, or None if nothing fits.'''
        if not self.same(self.at(), self.at()):
            return None  # it draws at random
        positions = [position for position in self.positions if self.matters(position)]
        linear = [position for position in positions if self.is_linear(position)]
        steered = tuple(position for position in positions if position not in linear)
        if not linear:
            return self._elementwise(positions)
        zeros = {f'p{position}': self.scaled(position, 0.) for position in linear}
        constant = bool(self.at(**zeros).any())
        if steered:
            return Kind.LINEAR, self._products(linear) | {'steered': steered} | (
                {'affine': True} if constant or self._added(linear) else {})
        if self.is_linear(*linear):
            kind = Kind.REARRANGE if self._moves(linear) else Kind.ADD
            return kind, {'affine': constant or len(linear) > 1}
        added = self._added(linear)
        if not added and not constant:
            return Kind.EINSUM, {}
        return Kind.LINEAR, self._products(linear) | {'affine': True}

    def _added(self, linear: list[int]) -> list[int]:
        '''The arguments that are added: what they do does not depend on the others.'''
        found = []
        for position in linear if len(linear) > 1 else []:
            zeros = {f'p{other}': self.scaled(other, 0.) for other in linear if other != position}
            nothing = {f'p{position}': self.scaled(position, 0.)}
            if self.same(self.at(**zeros) - self.at(**zeros, **nothing), self.at() - self.at(**nothing)):
                found.append(position)
        return found

    def _products(self, linear: list[int]) -> dict[str, Any]:
        added = self._added(linear)
        factors = tuple(position for position in linear if position not in added)
        return {'factors': factors} if len(factors) > 1 or added else {}

    def _moves(self, linear: list[int]) -> bool:
        '''Whether all that comes out is what went in, or a constant.'''
        values = {f'p{position}': self.random(position) for position in linear}
        output = self.at(**values)
        constant = self.at(**{f'p{position}': self.scaled(position, 0.) for position in linear})
        given = torch.cat([tensor.flatten().double() for tensor in tensors_in(list(values.values()))])
        return bool(torch.isin(output[output != constant], given).all())

    def _elementwise(self, positions: list[int]) -> tuple[Kind, dict[str, Any]] | None:
        if len(positions) != 1 or not isinstance(self.args[positions[0]], torch.Tensor):
            return (Kind.GATE, {}) if positions else None
        position = positions[0]
        x, y = self.args[position], self.at()
        changed = x.clone()
        changed.view(-1)[0] += 1.
        alone = y.numel() == x.numel() and not (self.at(**{f'p{position}': changed}) - y)[1:].any()
        if alone and position == 0 and not self.at(**{f'p{position}': torch.zeros_like(x)}).any():
            return Kind.ACTIVATION, {}
        if self._moves(positions):
            return Kind.SELECT, {}
        return Kind.GATE, {}
