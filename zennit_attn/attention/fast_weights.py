'''Fast weights: attention as a memory that is written and corrected token by token (Schlag et al., 2021).

Parameters are named as in ``labml_nn.transformers.fast_weights``. Axis letters: ``n`` tokens (first, as there), ``b``
batch, ``h`` heads, ``d`` key features, ``e`` value features.
'''
from copy import deepcopy

import torch
from einops import rearrange
from torch import nn

from ..kernels.checks import check_features, check_heads
from ..kernels.delta import delta_rule


class DPFP(nn.Module):
    r'''Deterministic parameter-free projection, a sparse feature map without exponentials.

    .. math:: \phi_{2 d (i-1) + j}(k) = x_j \, x_{j-i} \qquad x = \mathrm{ReLU}([k, -k]) \qquad i = 1 \ldots \nu

    divided by its sum, so that a memory needs no other normalizer.

    Parameters
    ----------
    nu: int, optional
        Number of shifts, which makes ``2 nu`` features of each.
    eps: float, optional
        Added to the sum.
    '''
    def __init__(self, nu=1, eps=1e-6):
        super().__init__()
        if nu < 1:
            raise ValueError(f'nu is {nu}, expected at least 1')
        self.nu = nu
        self.relu = nn.ReLU()
        self.eps = eps

    def dpfp(self, k):
        '''The features of ``k (..., d)`` before they are normalized, of shape ``(..., 2 nu d)``.'''
        x = self.relu(torch.cat([k, -k], dim=-1))
        rolled = torch.cat([x.roll(shifts=shift, dims=-1) for shift in range(1, self.nu + 1)], dim=-1)
        return torch.cat([x] * self.nu, dim=-1) * rolled

    def forward(self, k):
        '''Map ``k (..., d)`` to features of shape ``(..., 2 nu d)`` that sum up to one.'''
        features = self.dpfp(k)
        return features / (features.sum(dim=-1, keepdim=True) + self.eps)


class HeadProjection(nn.Module):
    '''A linear layer whose output is split into heads.

    Parameters
    ----------
    d_model, heads, d_k: int
        Number of input features, of heads, and of features of each head.
    bias: bool
        Whether the layer has a bias.
    '''
    def __init__(self, d_model, heads, d_k, bias):
        super().__init__()
        self.linear = nn.Linear(d_model, heads * d_k, bias=bias)
        self.heads = heads

    def forward(self, x):
        '''Map ``x (..., d_model)`` to shape ``(..., h, d_k)``.'''
        return rearrange(self.linear(x), '... (h d) -> ... h d', h=self.heads)


class FastWeightsAttention(nn.Module):
    r'''Attention that corrects what its memory holds for a key, then reads the memory with the query.

    .. math:: W_i = W_{i-1} + \beta_i (v_i - W_{i-1} \phi(k_i)) \phi(k_i)^\top \qquad y_i = W_i \phi(q_i)

    with :math:`\beta = \sigma(x W_\beta)`.

    Parameters
    ----------
    heads, d_model: int
        Number of heads and of features of a token.
    dropout_prob: float
        Kept for compatibility: the original has a dropout layer that it does not call.
    phi: torch.nn.Module
        Feature map of queries and keys, such as :class:`DPFP`.
    backend: str, optional
        Backend of :func:`zennit_attn.attention.delta_rule`.
    '''
    def __init__(self, heads, d_model, dropout_prob, phi, backend=None):
        super().__init__()
        check_heads(d_model, heads)
        self.d_k = d_model // heads
        self.heads = heads
        self.backend = backend
        self.query = HeadProjection(d_model, heads, self.d_k, bias=False)
        self.key = HeadProjection(d_model, heads, self.d_k, bias=False)
        self.value = HeadProjection(d_model, heads, self.d_k, bias=False)
        self.interpolation_weight = nn.Sequential(HeadProjection(d_model, heads, 1, bias=False), nn.Sigmoid())
        self.phi = phi
        self.output = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout_prob)

    def forward(self, x):
        '''Attend causally among the tokens of ``x (n, b, d_model)``, to the same shape.'''
        check_features(x, 3, self.output.in_features)
        sequences = (self.phi(self.query(x)), self.phi(self.key(x)), self.value(x))
        q, k, v = (rearrange(sequence, 'n b h d -> b h n d') for sequence in sequences)
        beta = rearrange(self.interpolation_weight(x), 'n b h 1 -> b h n')
        out = delta_rule(q, k, v, beta, backend=self.backend)
        return self.output(rearrange(out, 'b h n e -> n b (h e)'))


class FeedForward(nn.Module):
    r'''Position-wise feed-forward network, :math:`f(x W_1) W_2` or gated :math:`(f(x W_1) \odot x V) W_2`.

    Parameters
    ----------
    d_model, d_ff: int
        Outer and inner number of features.
    dropout: float, optional
        Probability for the inner features.
    activation: torch.nn.Module, optional
        Activation ``f``, a ReLU of its own by default.
    is_gated: bool, optional
        Whether a second linear layer gates the first.
    bias1, bias2, bias_gate: bool, optional
        Which of the layers have a bias.
    '''
    def __init__(self, d_model, d_ff, dropout=0.1, activation=None, is_gated=False, bias1=True, bias2=True,
                 bias_gate=True):
        super().__init__()
        self.layer1 = nn.Linear(d_model, d_ff, bias=bias1)
        self.layer2 = nn.Linear(d_ff, d_model, bias=bias2)
        self.dropout = nn.Dropout(dropout)
        self.activation = nn.ReLU() if activation is None else activation
        self.is_gated = is_gated
        if is_gated:
            self.linear_v = nn.Linear(d_model, d_ff, bias=bias_gate)

    def forward(self, x):
        '''Map ``x (..., d_model)`` to the same shape.'''
        hidden = self.activation(self.layer1(x))
        if self.is_gated:
            hidden = hidden * self.linear_v(x)
        return self.layer2(self.dropout(hidden))


class FastWeightsAttentionTransformerLayer(nn.Module):
    '''Fast weights attention and a feed-forward network, each added to the stream of tokens.

    Parameters
    ----------
    d_model: int
        Features of a token.
    attn: FastWeightsAttention
        Attention, which sees the stream as it is: ``norm_self_attn`` has parameters, but the original does not call it.
    feed_forward: torch.nn.Module
        Feed-forward, which sees the normalized stream.
    dropout_prob: float
        Probability for what is added.
    '''
    def __init__(self, *, d_model, attn, feed_forward, dropout_prob):
        super().__init__()
        self.size = d_model
        self.attn = attn
        self.feed_forward = feed_forward
        self.dropout = nn.Dropout(dropout_prob)
        self.norm_self_attn = nn.LayerNorm([d_model])
        self.norm_ff = nn.LayerNorm([d_model])

    def forward(self, x):
        '''Map ``x (n, b, d_model)`` to the same shape.'''
        x = x + self.dropout(self.attn(x))
        return x + self.dropout(self.feed_forward(self.norm_ff(x)))


class FastWeightsAttentionTransformer(nn.Module):
    '''Copies of a layer one after another, and a norm.

    Parameters
    ----------
    layer: FastWeightsAttentionTransformerLayer
        The layer to copy.
    n_layers: int
        Number of copies.
    '''
    def __init__(self, layer, n_layers):
        super().__init__()
        self.layers = nn.ModuleList([deepcopy(layer) for _ in range(n_layers)])
        self.norm = nn.LayerNorm([layer.size])

    def forward(self, x):
        '''Map ``x (n, b, d_model)`` to the same shape.'''
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)
