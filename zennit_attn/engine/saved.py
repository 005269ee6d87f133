'''Hooks on what autograd saves: those that compute it again in the backward pass, and others.'''
from contextlib import contextmanager

import torch
from torch.autograd.graph import disable_saved_tensors_hooks

from . import messages

_AUTOGRAD = torch._C._autograd


@contextmanager
def without_recomputation():
    '''Refuse hooks such as those of checkpoints. Hooks around it that only keep tensors elsewhere are left to work.

    Which of the two hooks are that are set inside, nobody is told before it is too late, so all of them are refused.
    '''
    hooks = _hooks_around()
    if hooks is None or any(_recomputes(hook) for hook in hooks):
        with disable_saved_tensors_hooks(messages.CHECKPOINTING):
            yield
        return
    before = _AUTOGRAD._saved_tensors_hooks_get_disabled_error_message()
    _AUTOGRAD._saved_tensors_hooks_disable(messages.CHECKPOINTING, fail_if_non_empty=False)
    try:
        yield
    finally:
        if before is None:
            _AUTOGRAD._saved_tensors_hooks_enable()
        else:
            _AUTOGRAD._saved_tensors_hooks_disable(before, fail_if_non_empty=False)


def _hooks_around():
    '''The innermost hooks, or None, as also from old versions of torch, which can not be asked for them.'''
    ask = getattr(_AUTOGRAD, '_top_saved_tensors_default_hooks', None)
    return None if ask is None else ask(True)


def _recomputes(hook):
    '''Whether a hook is that of a checkpoint, of torch or of others.'''
    names = (getattr(hook, '__module__', None), getattr(hook, '__qualname__', None))
    return any('checkpoint' in name.lower() for name in names if name)
