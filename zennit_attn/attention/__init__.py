'''Reference attention modules, without relevance: the families of attention code that people paste, install and write.

Each loads the ``state_dict`` of the package it is known from, and has an equal forward.
'''
from ..kernels.causal import backends, causal_dot_product, causal_dot_product_values
from ..kernels.delta import delta_rule, delta_rule_values
from ..kernels.recurrent import gated_delta_rule, gated_linear_attention, general_delta_rule
from ..kernels.scan import linear_recurrence, selective_scan, wkv
from .fast_attention import FastAttention
from .fast_weights import (
    DPFP,
    FastWeightsAttention,
    FastWeightsAttentionTransformer,
    FastWeightsAttentionTransformerLayer,
)
from .linear_attention import LinearAttention, MemoryLinearAttention
from .multihead import MultiheadAttention
from .performer import Performer, PerformerLM
from .recurrences import mlstm, polynomial_attention
from .vit import NormViT, ViT

__all__ = [
    'DPFP', 'FastAttention', 'FastWeightsAttention', 'FastWeightsAttentionTransformer',
    'FastWeightsAttentionTransformerLayer', 'LinearAttention', 'MemoryLinearAttention', 'MultiheadAttention', 'NormViT',
    'Performer', 'PerformerLM', 'ViT', 'backends', 'causal_dot_product', 'causal_dot_product_values', 'delta_rule',
    'delta_rule_values', 'gated_delta_rule', 'gated_linear_attention', 'general_delta_rule', 'linear_recurrence',
    'mlstm', 'polynomial_attention', 'selective_scan', 'wkv',
]
