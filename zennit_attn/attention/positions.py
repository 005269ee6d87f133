'''Positions of tokens: a learned table, sinusoids, and the rotation of queries and keys.'''
import torch
from torch import nn

from ..kernels.checks import check_length


class Always(nn.Module):
    '''Gives the same value for any input.

    Parameters
    ----------
    val: object
        The value.
    '''
    def __init__(self, val):
        super().__init__()
        self.val = val

    def forward(self, x):
        '''The value.'''
        return self.val


class AbsolutePositionalEmbedding(nn.Module):
    '''A learned vector for each position.

    Parameters
    ----------
    dim, max_seq_len: int
        Features of a token and length of the longest sequence.
    '''
    def __init__(self, dim, max_seq_len):
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)

    def forward(self, x):
        '''Vectors ``(n, dim)`` for the tokens of ``x (b, n, ...)``.'''
        check_length(x.shape[1], self.emb.num_embeddings)
        return self.emb(torch.arange(x.shape[1], device=x.device))


class FixedPositionalEmbedding(nn.Module):
    r'''Sines, then cosines, of :math:`p / 10000^{2 i / d}` for each position :math:`p`.

    Parameters
    ----------
    dim, max_seq_len: int
        Number of features, which is even, and length of the longest sequence.
    '''
    def __init__(self, dim, max_seq_len):
        super().__init__()
        if dim % 2:
            raise ValueError(f'sinusoidal and rotary positions need an even number of features, not {dim}')
        frequencies = 1. / 10000 ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(max_seq_len).float(), frequencies)
        self.register_buffer('emb', torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, x):
        '''Features ``(1, n, dim)`` for the tokens of ``x (b, n, ...)``, in its dtype.'''
        check_length(x.shape[1], len(self.emb))
        return self.emb[None, :x.shape[1]].to(x)


def rotate(x, positions):
    r'''Rotate each pair of features, :math:`(x_1 \cos - x_2 \sin, x_2 \cos + x_1 \sin)`.

    Parameters
    ----------
    x: torch.Tensor
        Queries or keys of shape ``(b, h, n, d)``.
    positions: torch.Tensor
        Sines and cosines of shape ``(1, n, d)`` from :class:`FixedPositionalEmbedding`.

    Returns
    -------
    torch.Tensor
        Rotated features of shape ``(b, h, n, d)``.
    '''
    sin, cos = (half.repeat_interleave(2, dim=-1) for half in positions.chunk(2, dim=-1))
    first, second = x.unflatten(-1, (-1, 2)).unbind(dim=-1)
    return x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin
