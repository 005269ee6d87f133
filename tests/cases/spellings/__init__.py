'''Functions in several spellings each: the first is the one that the others are compared with.

A function is a list of pairs, the name of a spelling and code, which takes the host and a tensor of samples, tokens and
features, and returns one of the same shape.
'''
from . import activations, attention, gates, linear, movement, normalizations, recurrences
from .host import build

GROUPS = {'normalizations': normalizations, 'activations': activations, 'gates': gates, 'linear maps': linear,
          'movement': movement, 'attention': attention, 'recurrences': recurrences}
SPELLINGS = {function: dict(spellings) for group in GROUPS.values() for function, spellings in group.SPELLINGS.items()}

__all__ = ['GROUPS', 'SPELLINGS', 'build']
