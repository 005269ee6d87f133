'''Published functions, in kernels, in chunks or step by step, and the operators that run in their place.

A recurrence is one function however it is computed, and so it has one map. Kernels have no code that could be followed.
'''
from . import attention, layers, linear_attention, recurrent, state_spaces
from .functions import Published, Rows, copied, exact, register_kernel, replacement
from .rewriting import Rewriting

#: All published functions that are known.
FUNCTIONS = Rows((*linear_attention.ROWS, *state_spaces.ROWS, *recurrent.ROWS, *attention.ROWS,
                  *layers.ROWS))

__all__ = ['FUNCTIONS', 'Published', 'Rewriting', 'Rows', 'copied', 'exact', 'register_kernel',
           'replacement']
