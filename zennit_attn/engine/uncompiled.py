'''Compiled functions, which run their originals while a model is explained.'''
import sys
from contextlib import contextmanager

import torch


@contextmanager
def uncompiled():
    '''Let functions that :py:func:`torch.compile` has made run as they were written, where every step is seen.

    Torch can do so from 2.6 on. Where nothing was compiled, nothing is imported for it.
    '''
    stance = getattr(torch.compiler, 'set_stance', None)
    if stance is None or 'torch._dynamo' not in sys.modules:
        yield
        return
    with stance('force_eager'):
        yield
