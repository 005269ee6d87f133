'''Softmax attention with several heads, written with einsum, equal to :class:`torch.nn.MultiheadAttention`.

Axis letters: ``b`` batch, ``h`` heads, ``n`` queries, ``m`` keys, ``d`` features of a head.
'''
import torch
from torch import nn
from torch.nn import functional

from ..kernels.checks import check_features, check_heads, shapes


def additive(mask, dtype, name):
    '''Turn a mask, boolean (True where attention is forbidden) or floating point, into one to add to scores.'''
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float('-inf'))
    if not mask.is_floating_point():
        raise TypeError(f'{name} has dtype {mask.dtype}, expected torch.bool or a floating point dtype')
    return mask.to(dtype)


def project(weight, bias, x):
    '''Apply a packed projection, ``x (b, n, i)`` with ``weight (o, i)`` to ``(b, n, o)``.'''
    out = torch.einsum('oi,bni->bno', weight, x)
    return out if bias is None else out + bias


class MultiheadAttention(nn.Module):
    r'''Multi-head attention from einsum, with the signature, parameters and output of the one in torch.

    .. math:: y = W_o \, [\, \mathrm{softmax}(q_h k_h^\top / \sqrt{d} + M) \, v_h \,]_h + b_o

    Parameters
    ----------
    embed_dim, num_heads: int
        Features of a token, and number of heads they are split into.
    dropout: float, optional
        Probability for attention weights.
    bias: bool, optional
        Whether the projections have biases.
    add_bias_kv: bool, optional
        Whether a learned key and value join every sequence.
    add_zero_attn: bool, optional
        Whether a key and value of zeros join every sequence.
    kdim, vdim: int, optional
        Features of keys and values, by default ``embed_dim``.
    batch_first: bool, optional
        Whether sequences are ``(b, n, embed_dim)`` rather than ``(n, b, embed_dim)``.
    '''
    def __init__(self, embed_dim, num_heads, dropout=0., bias=True, add_bias_kv=False, add_zero_attn=False, kdim=None,
                 vdim=None, batch_first=False):
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        self._register_projections()
        self.register_parameter('in_proj_bias', nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.register_parameter('bias_k', nn.Parameter(torch.randn(1, 1, embed_dim)) if add_bias_kv else None)
        self.register_parameter('bias_v', nn.Parameter(torch.randn(1, 1, embed_dim)) if add_bias_kv else None)

    def _register_projections(self):
        '''One packed weight where all widths are equal, otherwise one each, as torch keeps them.'''
        packed = self.kdim == self.vdim == self.embed_dim
        sizes = {
            'in_proj_weight': (3 * self.embed_dim, self.embed_dim) if packed else None,
            'q_proj_weight': None if packed else (self.embed_dim, self.embed_dim),
            'k_proj_weight': None if packed else (self.embed_dim, self.kdim),
            'v_proj_weight': None if packed else (self.embed_dim, self.vdim),
        }
        for name, size in sizes.items():
            weight = None if size is None else nn.Parameter(nn.init.xavier_uniform_(torch.empty(size)))
            self.register_parameter(name, weight)

    def projections(self):
        '''Weights and biases of queries, keys and values.'''
        if self.in_proj_weight is None:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return zip(weights, biases, strict=True)

    def check(self, query, key, value):
        '''Refuse sequences whose widths, lengths or batches do not fit.'''
        check_features(query, query.ndim if query.ndim in (2, 3) else 3, self.embed_dim, 'query')
        check_features(key, query.ndim, self.kdim, 'key')
        check_features(value, query.ndim, self.vdim, 'value')
        batch = 0 if self.batch_first else 1
        if key.shape[:-1] != value.shape[:-1] or (query.ndim == 3 and query.shape[batch] != key.shape[batch]):
            raise ValueError(f'{shapes(query=query, key=key, value=value)}: all need the same batch, key and value the '
                             'same length')

    def batched(self, sequence):
        '''Put a sequence into the layout ``(b, n, features)``.'''
        if sequence.ndim == 2:
            return sequence[None]
        return sequence if self.batch_first else sequence.transpose(0, 1)

    def extended(self, k, v):
        '''Append the learned and the zero key and value, each of one token.'''
        ends_k, ends_v = [k], [v]
        if self.bias_k is not None:
            ends_k.append(self.bias_k.expand(len(k), -1, -1))
            ends_v.append(self.bias_v.expand(len(v), -1, -1))
        if self.add_zero_attn:
            ends_k.append(torch.zeros_like(k[:, :1]))
            ends_v.append(torch.zeros_like(v[:, :1]))
        return torch.cat(ends_k, dim=1), torch.cat(ends_v, dim=1)

    def mask(self, scores, attn_mask, key_padding_mask, length):
        '''Sum of the masks of shape ``(b or 1, h or 1, n or 1, m)`` for ``scores (b, h, n, m)``; 0 without masks.

        The ``length`` keys of the input are masked; those that were appended never are.
        '''
        batch, heads, queries, keys = scores.shape
        total = 0
        if attn_mask is not None:
            if attn_mask.shape not in ((queries, length), (batch * heads, queries, length)):
                raise ValueError(f'attn_mask has shape {tuple(attn_mask.shape)}, expected {(queries, length)} or '
                                 f'{(batch * heads, queries, length)}')
            own = additive(attn_mask, scores.dtype, 'attn_mask')
            total = own if own.ndim == 2 else own.unflatten(0, (batch, heads))
        if key_padding_mask is not None:
            if key_padding_mask.shape not in ((batch, length), *([(length,)] if batch == 1 else [])):
                raise ValueError(f'key_padding_mask has shape {tuple(key_padding_mask.shape)}, '
                                 f'expected {(batch, length)}')
            padding = additive(key_padding_mask, scores.dtype, 'key_padding_mask')
            total = total + padding.reshape(batch, 1, 1, length)
        return functional.pad(total, (0, keys - length)) if isinstance(total, torch.Tensor) else total

    @staticmethod
    def causal_mask(scores):
        '''Mask of shape ``(n, m)`` that hides later keys, the appended ones too.'''
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return additive(later, scores.dtype, 'attn_mask')

    def attend(self, query, key, value, attn_mask, key_padding_mask, causal):
        '''Outputs ``(b, n, embed_dim)`` and weights ``(b, h, n, m)`` for ``(b, n, features)``.'''
        q, k, v = (project(*pair, x) for pair, x in zip(self.projections(), (query, key, value), strict=True))
        k, v = self.extended(k, v)
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in (q, k, v))
        scores = torch.einsum('bnhd,bmhd->bhnm', q * self.head_dim ** -0.5, k)
        own = self.mask(scores, attn_mask, key_padding_mask, key.shape[1])
        weights = (scores + (self.causal_mask(scores) if causal else own)).softmax(dim=-1)
        weights = functional.dropout(weights, self.dropout, self.training)
        out = torch.einsum('bhnm,bmhd->bnhd', weights, v)
        return self.out_proj(out.flatten(-2)), weights

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
                average_attn_weights=True, is_causal=False):
        '''Attend from queries to keys.

        Parameters
        ----------
        query, key, value: torch.Tensor
            Sequences ``(n, b, embed_dim)``, ``(m, b, kdim)`` and ``(m, b, vdim)``, batch first if the module is, or
            without a batch.
        key_padding_mask: torch.Tensor, optional
            Boolean (True for keys to ignore) or additive, of shape ``(b, m)``.
        need_weights: bool, optional
            Whether to return the attention weights.
        attn_mask: torch.Tensor, optional
            Boolean (True where attention is forbidden) or additive, of shape ``(n, m)`` or ``(b h, n, m)``.
        average_attn_weights: bool, optional
            Whether the weights are averaged over heads.
        is_causal: bool, optional
            A hint that ``attn_mask`` is causal. As in torch, a causal mask over all keys, the appended ones too, takes
            its place if neither weights are returned nor keys are padded.

        Returns
        -------
        torch.Tensor
            Outputs, in the layout of ``query``.
        torch.Tensor or None
            Weights of shape ``(b, n, m)``, or ``(b, h, n, m)``. A query that may attend to nothing gives NaN.
        '''
        if is_causal and attn_mask is None:
            raise ValueError('is_causal is only a hint, attn_mask has to be given with it')
        self.check(query, key, value)
        sequences = (self.batched(sequence) for sequence in (query, key, value))
        causal = is_causal and key_padding_mask is None and not need_weights
        out, weights = self.attend(*sequences, attn_mask, key_padding_mask, causal)
        weights = weights.mean(dim=1) if average_attn_weights else weights
        if query.ndim == 2:
            out, weights = out[0], weights[0]
        elif not self.batch_first:
            out = out.transpose(0, 1)
        return out, weights if need_weights else None
