'''Canonizers: how a model becomes explainable. A user needs :py:class:`AttentionCanonizer` only.'''
from .attention import AttentionCanonizer
from .named import (
    FastWeightsCanonizer,
    LinearAttentionCanonizer,
    MultiheadAttentionCanonizer,
    PerformerCanonizer,
    ViTCanonizer,
)
from .published import register_kernel

__all__ = [
    'AttentionCanonizer',
    'FastWeightsCanonizer',
    'LinearAttentionCanonizer',
    'MultiheadAttentionCanonizer',
    'PerformerCanonizer',
    'ViTCanonizer',
    'register_kernel',
]
