'''The engine: watches every torch function called below a module's forward and routes it through its rule.'''
from .forward import Forward
from .mode import Engine
from .module_calls import HookedCall
from .tags import Tag, twin_of
from .veil import engine_of, zennit_hooks

__all__ = ['Engine', 'Forward', 'HookedCall', 'Tag', 'engine_of', 'twin_of', 'zennit_hooks']
