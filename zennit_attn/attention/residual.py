'''What surrounds attention in a Performer: norms, feed-forward networks, and the stream they are added to.

Parameters are named as in ``performer-pytorch``. Axis letters: ``b`` batch, ``n`` tokens.
'''
import torch
from torch import nn
from torch.nn import functional


class ReZero(nn.Module):
    '''Scale the output of a function by a parameter that starts near zero.

    Parameters
    ----------
    fn: torch.nn.Module
        The function.
    '''
    def __init__(self, fn):
        super().__init__()
        self.g = nn.Parameter(torch.tensor(1e-3))
        self.fn = fn

    def forward(self, x, **kwargs):
        '''``g fn(x)``.'''
        return self.fn(x, **kwargs) * self.g


class PreScaleNorm(nn.Module):
    r'''Scale each token to the length of a parameter before a function, :math:`f(g x / \lVert x \rVert)`.

    Parameters
    ----------
    dim: int
        Number of features, which does not matter here.
    fn: torch.nn.Module
        The function.
    eps: float, optional
        Least length.
    '''
    def __init__(self, dim, fn, eps=1e-5):
        super().__init__()
        self.fn = fn
        self.g = nn.Parameter(torch.ones(1))
        self.eps = eps

    def forward(self, x, **kwargs):
        '''Scale ``x (b, n, dim)``, then apply the function.'''
        length = torch.norm(x, dim=-1, keepdim=True).clamp(min=self.eps)
        return self.fn(x / length * self.g, **kwargs)


class PreLayerNorm(nn.Module):
    '''Layer norm before a function.

    Parameters
    ----------
    dim: int
        Number of features.
    fn: torch.nn.Module
        The function.
    '''
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x, **kwargs):
        '''``fn(norm(x))``.'''
        return self.fn(self.norm(x), **kwargs)


class PreShiftTokens(nn.Module):
    '''Shift equal parts of the features along the sequence before a function.

    Parameters
    ----------
    shifts: tuple of int
        By how many tokens each part is shifted, to later ones if positive.
    fn: torch.nn.Module
        The function.
    '''
    def __init__(self, shifts, fn):
        super().__init__()
        self.fn = fn
        self.shifts = tuple(shifts)

    @staticmethod
    def shift(part, amount, mask):
        '''Shift ``part (b, n, f)``; masked tokens are zeroed, so that they are not shifted into others.'''
        if not amount:
            return part
        if mask is not None:
            part = part.masked_fill(~mask[..., None], 0.)
        return functional.pad(part, (0, 0, amount, -amount))

    def forward(self, x, **kwargs):
        '''Shift ``x (b, n, dim)``, then apply the function.'''
        parts, mask = x.split(x.shape[-1] // len(self.shifts), dim=-1), kwargs.get('mask')
        amounts = [*self.shifts, *[0] * (len(parts) - len(self.shifts))]
        shifted = [self.shift(part, amount, mask) for part, amount in zip(parts, amounts, strict=True)]
        return self.fn(torch.cat(shifted, dim=-1), **kwargs)


class Chunk(nn.Module):
    '''Apply a function to pieces of a tensor, one after another.

    Parameters
    ----------
    chunks: int
        Number of pieces.
    fn: torch.nn.Module
        The function.
    along_dim: int, optional
        Axis to cut along.
    '''
    def __init__(self, chunks, fn, along_dim=-1):
        super().__init__()
        self.dim = along_dim
        self.chunks = chunks
        self.fn = fn

    def forward(self, x):
        '''The function of all pieces of ``x``, put together.'''
        if self.chunks == 1:
            return self.fn(x)
        return torch.cat([self.fn(piece) for piece in x.chunk(self.chunks, dim=self.dim)], dim=self.dim)


class FeedForward(nn.Module):
    '''Two linear layers with an activation between, or a gated activation (GLU).

    Parameters
    ----------
    dim: int
        Outer number of features.
    mult: int, optional
        Inner number of features by ``dim``.
    dropout: float, optional
        Probability for the inner features.
    activation: type, optional
        Type of the activation, GELU by default.
    glu: bool, optional
        Whether activated features are multiplied by as many that are not.
    '''
    def __init__(self, dim, mult=4, dropout=0., activation=None, glu=False):
        super().__init__()
        self.glu = glu
        self.w1 = nn.Linear(dim, dim * mult * (2 if glu else 1))
        self.act = nn.GELU() if activation is None else activation()
        self.dropout = nn.Dropout(dropout)
        self.w2 = nn.Linear(dim * mult, dim)

    def forward(self, x):
        '''Map ``x (b, n, dim)`` to the same shape.'''
        if self.glu:
            x, factor = self.w1(x).chunk(2, dim=-1)
            x = self.act(x) * factor
        else:
            x = self.act(self.w1(x))
        return self.w2(self.dropout(x))


class ResidualSequence(nn.Module):
    r'''Pairs of functions, each added to the stream, :math:`x \leftarrow x + f(x)`, :math:`x \leftarrow x + g(x)`.

    Parameters
    ----------
    layers: iterable of pairs of torch.nn.Module
        The functions ``f`` (attention) and ``g`` (feed-forward).
    '''
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList(layer) for layer in layers])

    def __len__(self):
        return len(self.layers)

    def forward(self, x, arguments):
        '''Map ``x (b, n, dim)``, with a dictionary of keyword arguments for ``f`` of each pair.'''
        for (f, g), kwargs in zip(self.layers, arguments, strict=True):
            x = x + f(x, **kwargs)
            x = x + g(x)
        return x


class Wrapped(nn.Module):
    '''Calls a function that is kept under the name ``net``, as reversible blocks do in ``performer-pytorch``.

    Parameters
    ----------
    net: torch.nn.Module
        The function.
    '''
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, **kwargs):
        '''``net(x)``.'''
        return self.net(x, **kwargs)


class ReversibleBlock(nn.Module):
    '''Two streams that are added to in turns.

    Parameters
    ----------
    f, g: torch.nn.Module
        Attention and feed-forward.
    '''
    def __init__(self, f, g):
        super().__init__()
        self.f = Wrapped(f)
        self.g = Wrapped(g)

    def forward(self, x1, x2, **kwargs):
        '''``y1 = x1 + f(x2)`` and ``y2 = x2 + g(y1)``, all of shape ``(b, n, dim)``.'''
        y1 = x1 + self.f(x2, **kwargs)
        return y1, x2 + self.g(y1)


class ReversibleSequence(nn.Module):
    r'''Pairs of functions on two coupled streams, whose sum is the output (RevNet).

    The original recomputes activations in its backward pass to save memory, which fails in eval mode. Here the backward
    pass is that of autograd, in either mode.

    Parameters
    ----------
    layers: iterable of pairs of torch.nn.Module
        The functions ``f`` (attention) and ``g`` (feed-forward).
    '''
    def __init__(self, layers):
        super().__init__()
        self.blocks = nn.ModuleList([ReversibleBlock(f, g) for f, g in layers])

    def __len__(self):
        return len(self.blocks)

    def forward(self, x, arguments):
        '''Map ``x (b, n, dim)``, with a dictionary of keyword arguments for ``f`` of each pair.'''
        x1 = x2 = x
        for block, kwargs in zip(self.blocks, arguments, strict=True):
            x1, x2 = block(x1, x2, **kwargs)
        return x1 + x2
