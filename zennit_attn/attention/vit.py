'''Vision transformers of lucidrains: the one most often pasted, and the one ``vit-pytorch`` publishes today.

Axis letters: ``b`` batch, ``h`` heads, ``n`` tokens, ``d`` features of a head.
'''
import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn


def pair(size):
    '''A height and a width from one number or two.'''
    return size if isinstance(size, tuple) else (size, size)


class PreNorm(nn.Module):
    '''Normalize the features of each token before a function.

    Parameters
    ----------
    dim: int
        Number of features.
    fn: torch.nn.Module
        What comes after.
    '''
    def __init__(self, dim, fn):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x):
        '''``fn(norm(x))``.'''
        return self.fn(self.norm(x))


class FeedForward(nn.Module):
    '''Two linear layers with GELU between, each token alone.

    Parameters
    ----------
    dim, hidden_dim: int
        Outer and inner number of features.
    dropout: float, optional
        Probability after each of both layers.
    norm: bool, optional
        Whether to normalize first, as in ``vit-pytorch``.
    '''
    def __init__(self, dim, hidden_dim, dropout=0., norm=False):
        super().__init__()
        first = [nn.LayerNorm(dim)] if norm else []
        self.net = nn.Sequential(
            *first,
            nn.Linear(dim, hidden_dim), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden_dim, dim), nn.Dropout(dropout),
        )

    def forward(self, x):
        '''Map ``x (b, n, dim)`` to the same shape.'''
        return self.net(x)


class Attention(nn.Module):
    r'''Softmax attention among tokens, :math:`\mathrm{softmax}(q k^\top / \sqrt{d}) v`.

    Parameters
    ----------
    dim: int
        Features of a token.
    heads, dim_head: int, optional
        Number of heads and features of each.
    dropout: float, optional
        Probability for attention weights and outputs.
    norm: bool, optional
        Whether to normalize first, as in ``vit-pytorch``.
    '''
    def __init__(self, dim, heads=8, dim_head=64, dropout=0., norm=False):
        super().__init__()
        inner_dim = heads * dim_head
        project = heads != 1 or dim_head != dim
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.attend = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)
        self.to_qkv = nn.Linear(dim, 3 * inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(dropout)) if project else nn.Identity()

    def forward(self, x):
        '''Attend among the tokens of ``x (b, n, dim)``, to the same shape.'''
        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (rearrange(part, 'b n (h d) -> b h n d', h=self.heads) for part in qkv)
        attention = self.dropout(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale))
        return self.to_out(rearrange(torch.matmul(attention, v), 'b h n d -> b n (h d)'))


class Transformer(nn.Module):
    '''Layers of attention and feed-forward, each added to the stream of tokens.

    Parameters
    ----------
    blocks: iterable of pairs of torch.nn.Module
        Attention and feed-forward of each layer.
    norm: torch.nn.Module, optional
        What the last stream goes through.
    '''
    def __init__(self, blocks, norm=None):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList(block) for block in blocks])
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x):
        '''Map the tokens ``x (b, n, dim)`` to the same shape.'''
        for attention, feed_forward in self.layers:
            x = attention(x) + x
            x = feed_forward(x) + x
        return self.norm(x)


class _ViT(nn.Module):
    '''What both vision transformers do; they differ in norms, and in whether mean pooling keeps a class token.'''
    def __init__(self, image_size, patch_size, pool, emb_dropout):
        super().__init__()
        self.image_size, self.patch_size = pair(image_size), pair(patch_size)
        if any(image % patch for image, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise ValueError(f'image size {self.image_size} is not divisible by patch size {self.patch_size}')
        if pool not in ('cls', 'mean'):
            raise ValueError(f"pool is {pool!r}, choose 'cls' (class token) or 'mean'")
        self.pool = pool
        self.dropout = nn.Dropout(emb_dropout)
        self.to_latent = nn.Identity()

    def patches(self, channels):
        '''Number of patches, numbers in a patch, and the layer that cuts an image into them.'''
        (height, width), (patch_height, patch_width) = self.image_size, self.patch_size
        cut = Rearrange('b c (h p1) (w p2) -> b (h w) (p1 p2 c)', p1=patch_height, p2=patch_width)
        return (height // patch_height) * (width // patch_width), channels * patch_height * patch_width, cut

    def check(self, img):
        '''Refuse images that do not fill whole patches, or have more of them than there are positions.'''
        classes, positions = self.cls_token.shape[-2], self.pos_embedding.shape[-2]
        if img.ndim != 4 or any(size % patch for size, patch in zip(img.shape[2:], self.patch_size, strict=True)):
            raise ValueError(f'image has shape {tuple(img.shape)}, expected (b, c, height, width) in whole patches '
                             f'of {self.patch_size}')
        tokens = classes + (img.shape[2] // self.patch_size[0]) * (img.shape[3] // self.patch_size[1])
        if tokens > positions:
            raise ValueError(f'image of {tuple(img.shape[2:])} has {tokens} tokens, but there are only {positions} '
                             f'positions, for images of {self.image_size}')

    def forward(self, img):
        '''Classify images.

        Parameters
        ----------
        img: torch.Tensor
            Images of shape ``(b, channels, height, width)``, at most as large as ``image_size``.

        Returns
        -------
        torch.Tensor
            Logits of shape ``(b, num_classes)``, or the tokens if there is no head.
        '''
        self.check(img)
        x = self.to_patch_embedding(img)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.dropout(x + self.pos_embedding[..., :x.shape[1], :])
        x = self.transformer(x)
        if self.mlp_head is None:
            return x
        x = x.mean(dim=1) if self.pool == 'mean' else x[:, 0]
        return self.mlp_head(self.to_latent(x))


class ViT(_ViT):
    '''The vision transformer that is found pasted everywhere: blocks wrapped in :class:`PreNorm`, a norm in the head.

    Parameters
    ----------
    image_size, patch_size: int or tuple of int
        Size of images and patches, or height and width of each.
    num_classes, dim, depth, heads, mlp_dim: int
        Number of classes, features of a token, layers, heads and inner features of a feed-forward.
    pool: {'cls', 'mean'}, optional
        Whether the class token or the mean of all tokens is classified. The class token is there in both cases.
    channels, dim_head: int, optional
        Channels of an image and features of a head.
    dropout, emb_dropout: float, optional
        Probabilities in the layers and of the embedded tokens.
    '''
    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, heads, mlp_dim, pool='cls', channels=3,
                 dim_head=64, dropout=0., emb_dropout=0.):
        super().__init__(image_size, patch_size, pool, emb_dropout)
        number, size, cut = self.patches(channels)
        self.to_patch_embedding = nn.Sequential(cut, nn.Linear(size, dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, number + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = Transformer(
            (PreNorm(dim, Attention(dim, heads, dim_head, dropout)), PreNorm(dim, FeedForward(dim, mlp_dim, dropout)))
            for _ in range(depth)
        )
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))


class NormViT(_ViT):
    '''The vision transformer that ``vit-pytorch`` publishes today: norms inside the blocks and around the patches.

    Parameters are those of :class:`ViT`, but mean pooling has no class token, and with ``num_classes=0`` the tokens are
    the output.
    '''
    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, heads, mlp_dim, pool='cls', channels=3,
                 dim_head=64, dropout=0., emb_dropout=0.):
        super().__init__(image_size, patch_size, pool, emb_dropout)
        number, size, cut = self.patches(channels)
        classes = int(pool == 'cls')
        self.to_patch_embedding = nn.Sequential(cut, nn.LayerNorm(size), nn.Linear(size, dim), nn.LayerNorm(dim))
        self.cls_token = nn.Parameter(torch.randn(classes, dim))
        self.pos_embedding = nn.Parameter(torch.randn(number + classes, dim))
        self.transformer = Transformer(
            ((Attention(dim, heads, dim_head, dropout, norm=True), FeedForward(dim, mlp_dim, dropout, norm=True))
             for _ in range(depth)),
            norm=nn.LayerNorm(dim),
        )
        self.mlp_head = nn.Linear(dim, num_classes) if num_classes > 0 else None
