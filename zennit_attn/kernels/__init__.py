'''Backward passes that are a rule, as autograd functions: of activations, normalizations, linear layers, attention.'''
from .activation import Scale, slope_at_zero
from .attention import ConstantAttention, SecantAttention, blank_rows, masked_rows
from .causal import backends, causal_dot_product, causal_dot_product_values, plain_precision
from .delta import delta_rule, delta_rule_values
from .gamma import GammaLinear, LinearMap, gamma_gradient
from .linear import ConstantConvolution, ConstantLinear
from .normalization import batch_norm, group_norm, instance_norm, layer_norm, per_channel, rms_norm
from .outputs import InPlaceOf
from .recurrent import gated_delta_rule, gated_linear_attention, general_delta_rule
from .scan import linear_recurrence, selective_scan, wkv
from .secants import (
    along_path,
    between_picks,
    log_ratio_of_softmax,
    logarithmic_mean,
    normalization_gradient,
    of_two_factors,
    pulled_back,
    slope,
    softmax_gradient,
    with_gradient,
)

__all__ = [
    'ConstantAttention', 'ConstantConvolution', 'ConstantLinear', 'GammaLinear', 'InPlaceOf', 'LinearMap', 'Scale',
    'SecantAttention', 'along_path', 'backends', 'batch_norm', 'between_picks', 'blank_rows', 'causal_dot_product',
    'causal_dot_product_values', 'delta_rule', 'delta_rule_values', 'gamma_gradient', 'gated_delta_rule',
    'gated_linear_attention', 'general_delta_rule', 'group_norm', 'instance_norm', 'layer_norm', 'linear_recurrence',
    'log_ratio_of_softmax', 'logarithmic_mean', 'masked_rows', 'normalization_gradient', 'of_two_factors',
    'per_channel', 'plain_precision', 'pulled_back', 'rms_norm', 'selective_scan', 'slope', 'slope_at_zero',
    'softmax_gradient', 'with_gradient', 'wkv',
]
