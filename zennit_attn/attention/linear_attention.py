'''Linear attention over feature maps: the class of Zennit's issue 169, and its published relative.

Axis letters: ``b`` batch, ``h`` heads, ``n`` pixels, ``d`` key features, ``e`` value features.
'''
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional


class LinearAttention(nn.Module):
    r'''Attention whose softmax is taken of queries and keys apart, so that keys and values contract first.

    .. math:: o = \Big(\sum_n \mathrm{softmax}_n(k)_{dn} v_{en}\Big) \, \mathrm{softmax}_d(q)_{dn} / \sqrt{d}

    The cost is linear in the number of pixels. Parameters are named as in Zennit's issue 169.

    Parameters
    ----------
    dim: int
        Channels of the input and output.
    heads: int, optional
        Number of heads.
    dim_head: int, optional
        Channels of each head.
    '''
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.scale = dim_head ** -0.5
        self.heads = heads
        self.to_qkv = nn.Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), nn.GroupNorm(1, dim))

    def memory(self, k, v):
        '''Keys and values to attend to, of shapes ``(b, h, d, n)`` and ``(b, h, e, n)``.'''
        return k, v

    def forward(self, x):
        '''Attend within feature maps.

        Parameters
        ----------
        x: torch.Tensor
            Feature maps of shape ``(b, dim, height, width)``.

        Returns
        -------
        torch.Tensor
            Feature maps of the same shape.
        '''
        channels = self.to_qkv.in_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f'x has shape {tuple(x.shape)}, expected (b, {channels}, height, width)')
        qkv = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = (rearrange(part, 'b (h c) x y -> b h c (x y)', h=self.heads) for part in qkv)
        k, v = self.memory(k, v)
        q = q.softmax(dim=-2) * self.scale
        context = torch.einsum('bhdn,bhen->bhde', k.softmax(dim=-1), v)
        out = torch.einsum('bhde,bhdn->bhen', context, q)
        return self.to_out(rearrange(out, 'b h c (x y) -> b (h c) x y', y=x.shape[3]))


class ChannelRMSNorm(nn.Module):
    r'''Scale the channels of each pixel to unit mean square, :math:`y = g x \sqrt{c} / \lVert x \rVert`.

    Parameters
    ----------
    dim: int
        Number of channels ``c``.
    '''
    def __init__(self, dim):
        super().__init__()
        self.scale = dim ** 0.5
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x):
        '''Normalize ``x (b, c, height, width)``.'''
        return functional.normalize(x, dim=1) * self.g * self.scale


class MemoryLinearAttention(LinearAttention):
    '''Linear attention of ``denoising-diffusion-pytorch``: normalized, with learned keys and values beside the input's.

    Parameters
    ----------
    dim, heads, dim_head: int
        As in :class:`LinearAttention`.
    num_mem_kv: int, optional
        Number of learned keys and values.
    '''
    def __init__(self, dim, heads=4, dim_head=32, num_mem_kv=4):
        super().__init__(dim, heads, dim_head)
        self.norm = ChannelRMSNorm(dim)
        self.mem_kv = nn.Parameter(torch.randn(2, heads, dim_head, num_mem_kv))
        self.to_out[1] = ChannelRMSNorm(dim)

    def memory(self, k, v):
        '''Put the learned keys and values in front.'''
        learned_k, learned_v = self.mem_kv.unsqueeze(1).expand(-1, len(k), -1, -1, -1)
        return torch.cat([learned_k, k], dim=-1), torch.cat([learned_v, v], dim=-1)

    def forward(self, x):
        '''Normalize, then attend; shapes as in :meth:`LinearAttention.forward`.'''
        return super().forward(self.norm(x))
