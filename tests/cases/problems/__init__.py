'''Pasted attention code: small modules written the way people write them, one problem each, nothing of the package.

``PROBLEMS`` maps a name to a class and its input shape (without the batch). ``build(name)`` gives a float64 model in
eval mode, its weights moved away from their initialisation (so no bias is zero), and a batch of three inputs.
'''
from importlib import import_module

from .registry import DIM, PROBLEMS, TOKENS, Head, build, perturb, zero_additive

__all__ = ['DIM', 'PROBLEMS', 'TOKENS', 'Head', 'build', 'perturb', 'zero_additive']

for _room in 'issue vision multihead reused norms gates linear library mixing operators'.split():
    import_module(f'.{_room}', __name__)
