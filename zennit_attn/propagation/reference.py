'''A call as it is for the reference.'''
from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ..trees import substitute, tensors_in

if TYPE_CHECKING:
    from .call import Call

#: Functions that draw at random in a way that leaves them linear: both streams get the same draws.
_DRAW = frozenset('''
    alpha_dropout dropout dropout1d dropout2d dropout3d feature_alpha_dropout feature_dropout native_dropout rrelu
    scaled_dot_product_attention gumbel_softmax
    '''.split())


class Reference:
    '''The arguments of a call as they are for the reference, and what it returns for them.

    Parameters
    ----------
    call: :py:class:`Call`
        Before it has run.
    of: callable
        Takes a tensor and returns what it is for the reference.

    Attributes
    ----------
    operands: list of :py:class:`torch.Tensor`
        The operands that carry relevance, as they are for the reference.
    args: tuple
    kwargs: dict
        The arguments, with these in the place of the operands. Constants are those of the input.
    differs: bool
        Whether constants of the rule are others for the reference.
    '''
    __slots__ = ('call', 'args', 'kwargs', 'operands', 'differs', '_constants', '_output', '_whole', '_state')

    def __init__(self, call: Call, of: Callable[[torch.Tensor], torch.Tensor]):
        values = {}
        for operand in call.operands:
            value = of(operand)
            values[id(operand)] = value.clone() if call.inplace and operand is call.args[0] else value
        if call.inplace and not call.carries(call.args[0]):
            values[id(call.args[0])] = of(call.args[0]).clone()
        self.call = call
        self.operands = [values[id(operand)] for operand in call.operands]
        self.args, self.kwargs = substitute(
            (call.args, call.kwargs), lambda tensor: values.get(id(tensor), tensor))
        # What is a constant for the rule, but another one for the reference.
        self._constants = {id(tensor): tensor.lrp_reference for tensor in tensors_in(call.args, call.kwargs)
                           if id(tensor) not in values and hasattr(tensor, 'lrp_reference')}
        self.differs = bool(self._constants)
        self._output: Any = None
        self._whole: Any = None
        self._state = _random_state(call) if call.operator.random or call.operator.name in _DRAW else None

    @property
    def output(self) -> Any:
        '''What the function returns for the operands of the reference, with the constants of the input.'''
        if self._output is None:
            self._output = self._run(self.args, self.kwargs)
        return self._output

    @property
    def whole(self) -> Any:
        '''What the function returns for the reference, with its own constants.'''
        if self._whole is None:
            self._whole = self.output if not self._constants else self._run(*substitute(
                (self.args, self.kwargs), lambda tensor: self._constants.get(id(tensor), tensor)))
        return self._whole

    def put(self, output: torch.Tensor) -> None:
        '''Note what the function returns with the constants of a rule, which are others for the reference.'''
        self._whole, self._output, self.differs = self.whole, output, True

    def _run(self, args, kwargs):
        call = self.call
        with torch.no_grad(), torch._C.DisableTorchFunction(), _drawing(self._state):
            if not call.inplace:
                return call.func(*args, **kwargs)
            target = args[0].clone()
            result = call.func(target, *args[1:], **kwargs)
            return target if result is None else result


def _random_state(call):
    '''The state of the random numbers before a call draws.'''
    devices = {tensor.device for tensor in call.operands if tensor.device.type == 'cuda'}
    return torch.get_rng_state(), [(device, torch.cuda.get_rng_state(device)) for device in devices]


@contextmanager
def _drawing(state):
    '''Draw as before, without a trace.'''
    if state is None:
        yield
        return
    here, there = state
    with torch.random.fork_rng(devices=[device for device, _ in there]):
        torch.set_rng_state(here)
        for device, own in there:
            torch.cuda.set_rng_state(own, device)
        yield
