'''Writes into tensors of which several elements share memory, as those of expanded tensors do.'''
import torch

from ..errors import UnsupportedOperator
from . import messages


def guard(call):
    '''Return what is to be called after a write in place, to refuse it if no gradient can follow; or None.

    Torch lets some functions write into an expanded tensor, but where its base carries relevance too, there is no
    gradient behind them, and the backward pass would say so in words of its own.
    '''
    target = call.args[0]
    base = target._base
    if base is None or not base.requires_grad or 0 not in _written(call).stride():
        return None
    before = base.grad_fn

    def check():
        if base.grad_fn is not before:
            raise UnsupportedOperator(messages.shared_memory(*call.forward.locate(), call.operator.name))
    return check


def _written(call):
    '''The part of the first argument that is written to, as far as its strides can tell.'''
    target = call.args[0].detach()
    if call.func is not torch.Tensor.__setitem__:
        return target.squeeze()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    basic = all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in index)
    target = target[index] if basic and not any(isinstance(item, bool) for item in index) else target
    return target.squeeze()  # without the axes of one entry, whose strides do not matter
