'''Parameters that a forward writes to: what was computed with them has to keep the values that they had.

A forward may normalize its weights in place, or scale them and scale them back. Autograd does not see what goes by
``.data`` or a detached alias, and would take the values of the end for those of the way.
'''
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import UnsupportedOperator
from ..operators import Operator
from ..trees import address, substitute, tensors_in
from . import messages
from .location import Location

_SET_DATA = torch.Tensor.data.__set__


def written_to(operator: Operator, func: Callable, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    '''Return the tensors that a call writes to.'''
    several = operator.name.startswith('foreach_') and func.__name__.endswith('_')
    first = args and (operator.inplace or several or func == _SET_DATA)
    return tensors_in(args[0] if first else (), kwargs.get('out', ()))


class Parameters:
    '''The parameters of a model during one forward.

    Parameters
    ----------
    location: :py:class:`~zennit_attn.engine.location.Location`
        Knows the modules of the model, and which of them have rules.

    Attributes
    ----------
    ran: set of int
        The ``id`` of modules with a rule that were called.
    written: set
        Where the values of those are that were written to, and their ``id``.
    '''
    def __init__(self, location: Location):
        self._location = location
        self._names: dict[Any, tuple[str, torch.Tensor]] | None = None
        # Who holds them before the forward starts, such as the graph of an earlier output.
        self._holders = {id(parameter): parameter._use_count() for _, module in location.modules
                         for parameter in module._parameters.values() if parameter is not None}
        self.written: set = set()
        self.ran: set = set()
        self._before: dict[int, tuple] = {}

    def check_write(self, target: torch.Tensor, name: str) -> bool:
        '''Note a write in place to a constant, or refuse it if its values are needed; return whether it is a parameter.
        '''
        found = self._known().get(address(target, shared=True))
        if found is None:
            return False
        parameter, tensor = found
        module = self._ruled(parameter)
        ruled = module[0] if module is not None and id(module[1]) in self.ran else None
        with torch._C.DisableTorchFunction():
            self._before.setdefault(id(tensor), (tensor, tensor.data, tensor.detach().clone()))
        if ruled is not None or tensor._use_count() > self._holders[id(tensor)]:  # type: ignore[attr-defined]
            self._put_back()
            raise UnsupportedOperator(messages.written_parameter(*self._location.locate(), name, parameter, ruled))
        self.written |= {address(target, shared=True), id(target)}  # by its id, as it may be given other memory
        return True

    def check_array(self, tensor: torch.Tensor) -> bool:
        '''Note that NumPy may write to a parameter, which nobody sees, or refuse it where a rule reads it.'''
        found = self._known().get(address(tensor, shared=True))
        if found is not None:
            module = self._ruled(found[0])
            if module is not None:
                raise UnsupportedOperator(messages.array_of_parameter(*self._location.locate(), found[0], module[0]))
            self.written.add(address(tensor, shared=True))
        return found is not None

    def _ruled(self, parameter):
        '''The name of the module that has a parameter, and the module, if it has a rule.'''
        return next(((name, module) for name, module, _ in self._location.ruled
                     if name and parameter.rpartition('.')[0] == name), None)

    def _put_back(self) -> None:
        '''Give parameters what they held before the forward, whose code does not come to that.'''
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for parameter, data, values in self._before.values():
                data.copy_(values)
                parameter.data = data

    def kept(self, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        '''Return arguments with copies of the parameters that were written to.'''
        return substitute((args, kwargs), lambda tensor: tensor.detach().clone() if (
            not tensor.requires_grad and not self.written.isdisjoint((address(tensor, shared=True), id(tensor)))
        ) else tensor)

    def _known(self):
        if self._names is None:
            self._names = dict(self._each())
        return self._names

    def _each(self) -> Iterable:
        for name, module in self._location.modules:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    yield address(parameter, shared=True), (f'{name}.{key}' if name else key, parameter)
