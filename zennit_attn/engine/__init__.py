'''The engine: watches every torch function called below a module's forward and routes it through its rule.'''
from .forward import Forward
from .mode import Engine
from .module_calls import HookedCall, zennit_hooks
from .tags import Tag, twin_of

__all__ = ['Engine', 'Forward', 'HookedCall', 'Tag', 'twin_of', 'zennit_hooks']
