'''Performer: a transformer whose attention is linear in the number of tokens (Choromanski et al., 2021).

Parameters and buffers are named as in ``performer-pytorch`` 1.1.4. Axis letters: ``b`` batch, ``h`` heads, ``n``
tokens, ``m`` tokens of a context, ``d`` features of a head.
'''
from functools import partial
from math import ceil

import torch
from einops import rearrange
from torch import nn

from ..kernels.checks import check_features, check_heads, check_length, check_mask, optional
from .fast_attention import FastAttention, ProjectionUpdater
from .positions import AbsolutePositionalEmbedding, Always, FixedPositionalEmbedding, rotate
from .residual import (
    Chunk,
    FeedForward,
    PreLayerNorm,
    PreScaleNorm,
    PreShiftTokens,
    ResidualSequence,
    ReversibleSequence,
    ReZero,
)


def local_attention(dim_head, heads, window_size, causal, dropout):
    '''Softmax attention within windows, of the optional package ``local-attention``.'''
    return optional('local_attention', 'LocalAttention', 'local attention heads')(
        window_size=window_size, causal=causal, autopad=True, dropout=dropout, look_forward=int(not causal),
        rel_pos_emb_config=(dim_head, heads),
    )


class Attention(nn.Module):
    '''Projections around :class:`FastAttention`, with some heads local instead.

    Parameters
    ----------
    dim: int
        Features of a token.
    causal: bool, optional
        Whether tokens attend only to earlier ones.
    heads, dim_head: int, optional
        Number of heads and features of each; ``dim_head=None`` is ``dim / heads``.
    local_heads, local_window_size: int, optional
        How many heads attend only within windows, and how long these are.
    dropout: float, optional
        Probability for the output.
    qkv_bias, attn_out_bias: bool, optional
        Whether the projections have biases.
    **options: object
        Of :class:`FastAttention`.
    '''
    def __init__(self, dim, causal=False, heads=8, dim_head=64, local_heads=0, local_window_size=256, dropout=0.,
                 qkv_bias=False, attn_out_bias=True, **options):
        super().__init__()
        check_heads(dim, heads)
        if not 0 <= local_heads <= heads:
            raise ValueError(f'{local_heads} local heads of {heads} heads')
        dim_head = dim // heads if dim_head is None else dim_head
        self.fast_attention = FastAttention(dim_head, causal=causal, **options)
        self.heads, self.global_heads = heads, heads - local_heads
        window = dim_head, local_heads, local_window_size, causal, dropout
        self.local_attn = local_attention(*window) if local_heads else None
        self.to_q = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_k = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_v = nn.Linear(dim, heads * dim_head, bias=qkv_bias)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=attn_out_bias)
        self.dropout = nn.Dropout(dropout)

    def attend_globally(self, q, k, v, pos_emb, mask):
        '''Linear attention among all tokens; masked ones have no value, but as in the original count as keys.'''
        if mask is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0.)
        if pos_emb is not None:
            check_length(q.shape[-2], pos_emb.shape[-2])
            q, k = rotate(q, pos_emb), rotate(k, pos_emb)
        return self.fast_attention(q, k, v)

    def attend(self, x, source, pos_emb, mask, source_mask):
        '''Attend from ``x (b, n, dim)`` to ``source (b, m, dim)``.'''
        sequences = self.to_q(x), self.to_k(source), self.to_v(source)
        q, k, v = (rearrange(sequence, 'b n (h d) -> b h n d', h=self.heads) for sequence in sequences)
        split, outs = self.global_heads, []
        if split:
            outs.append(self.attend_globally(q[:, :split], k[:, :split], v[:, :split], pos_emb, source_mask))
        if split < self.heads:
            outs.append(self.local_attn(q[:, split:], k[:, split:], v[:, split:], input_mask=mask))
        return self.dropout(self.to_out(rearrange(torch.cat(outs, dim=1), 'b h n d -> b n (h d)')))


class SelfAttention(Attention):
    '''Attention of a sequence to itself. Parameters are those of :class:`Attention`.'''
    def forward(self, x, pos_emb=None, mask=None):
        '''Map ``x (b, n, dim)`` to the same shape.

        Parameters
        ----------
        x: torch.Tensor
            Sequences of shape ``(b, n, dim)``.
        pos_emb: torch.Tensor, optional
            Sines and cosines of shape ``(1, n, dim_head)`` to rotate queries and keys with.
        mask: torch.Tensor, optional
            True for tokens to keep, of shape ``(b, n)``.
        '''
        check_features(x, 3, self.to_q.in_features)
        check_mask(mask, x.shape[:2])
        return self.attend(x, x, pos_emb, mask, mask)


class CrossAttention(Attention):
    '''Attention of a sequence to another. Parameters are those of :class:`Attention`, without local heads.'''
    def forward(self, x, context=None, context_mask=None):
        '''Map ``x (b, n, dim)`` to the same shape, with ``context (b, m, dim)`` and its mask ``(b, m)``.'''
        if context is None:
            raise ValueError('cross attention needs a context')
        check_features(x, 3, self.to_q.in_features)
        check_features(context, 3, self.to_k.in_features, 'context')
        check_mask(context_mask, context.shape[:2], 'context_mask')
        return self.attend(x, context, None, None, context_mask)


def local_heads_of_layers(local_heads, depth, heads):
    '''Number of local heads in each layer, from one number or one a layer.'''
    local_heads = local_heads if isinstance(local_heads, tuple) else (local_heads,)
    local_heads = local_heads * depth if len(local_heads) == 1 else local_heads
    if len(local_heads) != depth or not all(0 <= number <= heads for number in local_heads):
        raise ValueError(f'local_attn_heads is {local_heads}, expected one of 0 to {heads}, or {depth} of them')
    return local_heads


class Performer(nn.Module):
    '''Layers of linear attention and feed-forward networks.

    Parameters
    ----------
    dim, depth, heads, dim_head: int
        Features of a token, number of layers, number of heads, and features of a head.
    local_attn_heads: int or tuple of int, optional
        Number of local heads, of all layers or of each.
    local_window_size: int, optional
        Length of the windows of local heads.
    causal: bool, optional
        Whether tokens attend only to earlier ones.
    ff_mult, ff_chunks: int, optional
        Inner features of a feed-forward network by ``dim``, and number of pieces that it takes of a sequence.
    nb_features, generalized_attention, kernel_fn, no_projection, causal_backend: optional
        Features and causal product, see :class:`FastAttention`.
    feature_redraw_interval: int or None, optional
        Passes in training until random features are redrawn.
    reversible: bool, optional
        Whether layers are coupled reversibly, see ``ReversibleSequence``.
    use_scalenorm, use_rezero: bool, optional
        Normalize by length, or scale the output instead, rather than by layer norm.
    ff_glu, shift_tokens: bool, optional
        Whether feed-forward networks are gated, and features are shifted by a token.
    ff_dropout, attn_dropout: float, optional
        Probabilities in feed-forward networks and attention.
    cross_attend: bool, optional
        Whether each layer is followed by one that attends to a context.
    auto_check_redraw: bool, optional
        Whether each pass counts towards a redraw.
    qkv_bias, attn_out_bias: bool, optional
        Whether projections have biases.
    '''
    def __init__(self, dim, depth, heads, dim_head, local_attn_heads=0, local_window_size=256, causal=False, ff_mult=4,
                 nb_features=None, feature_redraw_interval=1000, reversible=False, ff_chunks=1,
                 generalized_attention=False, kernel_fn=None, use_scalenorm=False, use_rezero=False, ff_glu=False,
                 ff_dropout=0., attn_dropout=0., cross_attend=False, no_projection=False, auto_check_redraw=True,
                 qkv_bias=True, attn_out_bias=True, shift_tokens=False, causal_backend=None):
        super().__init__()
        options = {
            'heads': heads, 'dim_head': dim_head, 'dropout': attn_dropout, 'nb_features': nb_features,
            'generalized_attention': generalized_attention, 'kernel_fn': kernel_fn, 'no_projection': no_projection,
            'qkv_bias': qkv_bias, 'attn_out_bias': attn_out_bias, 'causal_backend': causal_backend,
        }
        norm = partial(PreScaleNorm, dim) if use_scalenorm else ReZero if use_rezero else partial(PreLayerNorm, dim)

        def own(fn):
            return norm(PreShiftTokens((0, 1) if causal else (-1, 0, 1), fn) if shift_tokens else fn)

        def feed_forward():
            return Chunk(ff_chunks, FeedForward(dim, ff_mult, ff_dropout, glu=ff_glu), along_dim=1)

        layers = []
        for local_heads in local_heads_of_layers(local_attn_heads, depth, heads):
            attention = SelfAttention(
                dim, causal=causal, local_heads=local_heads, local_window_size=local_window_size, **options
            )
            layers.append((own(attention), own(feed_forward())))
            if cross_attend:
                layers.append((norm(CrossAttention(dim, **options)), norm(feed_forward())))
        self.dim, self.cross_attend = dim, cross_attend
        self.net = (ReversibleSequence if reversible else ResidualSequence)(layers)
        self.auto_check_redraw = auto_check_redraw
        self.proj_updater = ProjectionUpdater(self.net, feature_redraw_interval)

    def fix_projection_matrices_(self):
        '''Never redraw random features again.'''
        self.proj_updater.fix_projections_()

    def arguments(self, x, pos_emb, mask, context, context_mask):
        '''Keyword arguments for the attention of each layer.'''
        if not self.cross_attend and (context is not None or context_mask is not None):
            raise ValueError('a context was given, but cross_attend is False')
        check_features(x, 3, self.dim)
        check_mask(mask, x.shape[:2])
        own = {'pos_emb': pos_emb, 'mask': mask}
        other = {'context': context, 'context_mask': context_mask}
        return [other if self.cross_attend and index % 2 else own for index in range(len(self.net))]

    def forward(self, x, pos_emb=None, mask=None, context=None, context_mask=None):
        '''Map sequences to sequences.

        Parameters
        ----------
        x: torch.Tensor
            Sequences of shape ``(b, n, dim)``.
        pos_emb: torch.Tensor, optional
            Sines and cosines of shape ``(1, n, dim_head)`` to rotate queries and keys with.
        mask: torch.Tensor, optional
            True for tokens to keep, of shape ``(b, n)``.
        context: torch.Tensor, optional
            What layers that cross attend see, of shape ``(b, m, dim)``.
        context_mask: torch.Tensor, optional
            True for tokens of the context to keep, of shape ``(b, m)``.

        Returns
        -------
        torch.Tensor
            Sequences of shape ``(b, n, dim)``.
        '''
        if self.auto_check_redraw:
            self.proj_updater.redraw_projections()
        return self.net(x, self.arguments(x, pos_emb, mask, context, context_mask))


def axial_positions(dim, max_seq_len, shape):
    '''Axial position embedding, of the optional package ``axial-positional-embedding``.'''
    shape = (ceil(max_seq_len / 64), 64) if shape is None else shape
    kind = optional('axial_positional_embedding', 'AxialPositionalEmbedding', 'axial positions')
    return kind(dim, shape)


class PerformerLM(nn.Module):
    '''Language model around :class:`Performer`.

    Parameters
    ----------
    num_tokens, max_seq_len: int
        Number of known tokens, and length of the longest sequence.
    dim, depth, heads, dim_head: int
        Features of a token, number of layers, number of heads, and features of a head.
    emb_dropout: float, optional
        Probability for the embedded tokens.
    tie_embed: bool, optional
        Whether logits are products with the token embedding.
    rotary_position_emb, axial_position_emb: bool, optional
        Rotary positions (with sinusoidal ones added to the tokens) or else axial ones, or else a learned table.
    axial_position_shape: tuple of int, optional
        Sizes of the axes of axial positions, by default ``(max_seq_len / 64, 64)``.
    qkv_bias, attn_out_bias: bool, optional
        Whether projections have biases.
    **options: object
        Of :class:`Performer`.
    '''
    def __init__(self, *, num_tokens, max_seq_len, dim, depth, heads, dim_head=64, emb_dropout=0., tie_embed=False,
                 rotary_position_emb=True, axial_position_emb=False, axial_position_shape=None, qkv_bias=False,
                 attn_out_bias=False, **options):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.layer_pos_emb = Always(None)
        if rotary_position_emb:
            self.pos_emb = FixedPositionalEmbedding(dim, max_seq_len)
            self.layer_pos_emb = FixedPositionalEmbedding(dim_head, max_seq_len)
        elif axial_position_emb:
            self.pos_emb = axial_positions(dim, max_seq_len, axial_position_shape)
        else:
            self.pos_emb = AbsolutePositionalEmbedding(dim, max_seq_len)
        self.dropout = nn.Dropout(emb_dropout)
        self.performer = Performer(
            dim, depth, heads, dim_head, qkv_bias=qkv_bias, attn_out_bias=attn_out_bias, **options
        )
        self.norm = nn.LayerNorm(dim)
        self.to_out = None if tie_embed else nn.Linear(dim, num_tokens)

    def fix_projection_matrices_(self):
        '''Never redraw random features again.'''
        self.performer.fix_projection_matrices_()

    def forward(self, x, return_encodings=False, **kwargs):
        '''Logits of the next or the masked token at each position.

        Parameters
        ----------
        x: torch.Tensor
            Tokens of shape ``(b, n)``.
        return_encodings: bool, optional
            Whether to return the normalized features ``(b, n, dim)`` instead.
        **kwargs: torch.Tensor
            Masks and context of :meth:`Performer.forward`.

        Returns
        -------
        torch.Tensor
            Logits of shape ``(b, n, num_tokens)``.
        '''
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f'tokens have shape {tuple(x.shape)} and dtype {x.dtype}, expected integers (b, n)')
        check_length(x.shape[1], self.max_seq_len)
        x = self.token_emb(x)
        x = self.dropout(x + self.pos_emb(x))
        x = self.norm(self.performer(x, pos_emb=self.layer_pos_emb(x), **kwargs))
        if return_encodings:
            return x
        return x @ self.token_emb.weight.t() if self.to_out is None else self.to_out(x)
