'''Backward passes that are a rule, as autograd functions: of activations, normalizations, linear layers, attention.'''
from .activation import Scale, slope_at_zero
from .attention import ConstantAttention, blank_rows
from .causal import backends, causal_dot_product, causal_dot_product_values, plain_precision
from .delta import delta_rule, delta_rule_values
from .gamma import GammaLinear, LinearMap, gamma_gradient
from .linear import ConstantConvolution, ConstantLinear
from .normalization import batch_norm, group_norm, instance_norm, layer_norm, per_channel, rms_norm
from .outputs import InPlaceOf

__all__ = [
    'ConstantAttention', 'ConstantConvolution', 'ConstantLinear', 'GammaLinear', 'InPlaceOf', 'LinearMap', 'Scale',
    'backends', 'batch_norm', 'blank_rows', 'causal_dot_product', 'causal_dot_product_values', 'delta_rule',
    'delta_rule_values',
    'gamma_gradient', 'group_norm', 'instance_norm', 'layer_norm', 'per_channel', 'plain_precision', 'rms_norm',
    'slope_at_zero',
]
