'''Attention models as one finds them in papers' code: PyTorch and einops, no word about relevance.'''
import math

import torch
from einops import rearrange, repeat
from einops.layers.torch import Rearrange
from torch import nn

from ..attention import MultiheadAttention

# A vision transformer in the manner of lucidrains.

class FeedForward(nn.Module):
    '''Pre-norm two-layer perceptron.'''
    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, dim),
        )

    def forward(self, x):
        return self.net(x)


class Attention(nn.Module):
    '''Pre-norm softmax attention: ``softmax(Q K^T / sqrt(d)) V``.'''
    def __init__(self, dim, heads, dim_head):
        super().__init__()
        self.heads = heads
        self.scale = dim_head ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x):
        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), qkv)
        attn = self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale)
        out = torch.matmul(attn, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


class Transformer(nn.Module):
    '''Attention and perceptron in turn, each on a residual stream.'''
    def __init__(self, dim, depth, heads, dim_head, mlp_dim):
        super().__init__()
        self.layers = nn.ModuleList([
            nn.ModuleList([Attention(dim, heads, dim_head), FeedForward(dim, mlp_dim)]) for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.norm(x)


class ViT(nn.Module):
    '''Patches, a class token, learned positions, a transformer, and a linear head on the class token.'''
    def __init__(self, image_size=32, patch_size=4, num_classes=4, channels=3, dim=48, depth=3, heads=4, dim_head=16,
                 mlp_dim=96):
        super().__init__()
        patch_dim = channels * patch_size ** 2
        self.to_patch_embedding = nn.Sequential(
            Rearrange('b c (h p1) (w p2) -> b (h w) (p1 p2 c)', p1=patch_size, p2=patch_size),
            nn.Linear(patch_dim, dim),
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * .02)
        self.pos_embedding = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2 + 1, dim) * .02)
        self.transformer = Transformer(dim, depth, heads, dim_head, mlp_dim)
        self.mlp_head = nn.Linear(dim, num_classes)

    def forward(self, img):
        x = self.to_patch_embedding(img)
        cls_tokens = repeat(self.cls_token, '1 n d -> b n d', b=x.shape[0])
        x = torch.cat((cls_tokens, x), dim=1)
        x = x + self.pos_embedding[:, :x.shape[1]]
        x = self.transformer(x)
        return self.mlp_head(x[:, 0])


# A convolutional network with the attention of https://github.com/chr5tphr/zennit/issues/169.

class LinearAttention(nn.Module):
    '''The class that the issue asks to explain.'''
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.scale = dim_head ** -0.5
        self.heads = heads
        hidden_dim = dim_head * heads
        self.to_qkv = nn.Conv2d(dim, hidden_dim * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1), nn.GroupNorm(1, dim))

    def forward(self, x):
        b, c, h, w = x.shape
        qkv = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = map(lambda t: rearrange(t, 'b (h c) x y -> b h c (x y)', h=self.heads), qkv)

        q = q.softmax(dim=-2)
        k = k.softmax(dim=-1)

        q = q * self.scale
        context = torch.einsum('b h d n, b h e n -> b h d e', k, v)

        out = torch.einsum('b h d e, b h d n -> b h e n', context, q)
        out = rearrange(out, 'b h c (x y) -> b (h c) x y', h=self.heads, x=h, y=w)
        return self.to_out(out)


def conv_block(channels, dim, stride):
    '''Convolution, batch norm, ReLU.'''
    return nn.Sequential(
        nn.Conv2d(channels, dim, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(),
    )


class LinearAttentionCNN(nn.Module):
    '''Convolutions with a residual linear attention after each stage, mean pooling, a linear head.'''
    def __init__(self, channels=1, num_classes=10, dim=16, stride=1, heads=4, dim_head=8):
        super().__init__()
        self.stage1 = conv_block(channels, dim, stride)
        self.attn1 = LinearAttention(dim, heads, dim_head)
        self.stage2 = conv_block(dim, dim * 2, 2)
        self.attn2 = LinearAttention(dim * 2, heads, dim_head)
        self.stage3 = conv_block(dim * 2, dim * 2, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim * 2, num_classes))

    def forward(self, x):
        x = self.stage1(x)
        x = x + self.attn1(x)
        x = self.stage2(x)
        x = x + self.attn2(x)
        return self.head(self.stage3(x))


# A Performer: attention through positive random features (FAVOR+, https://arxiv.org/abs/2009.14794).

def orthogonal_features(rows, columns):
    '''Gaussian vectors of which each block of `columns` is orthogonal.'''
    q, r = torch.linalg.qr(torch.randn(math.ceil(rows / columns), columns, columns))
    # only with a positive diagonal of R are all directions equally likely
    directions = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return directions.mT.flatten(0, 1)[:rows] * torch.randn(rows, columns).norm(dim=1, keepdim=True)


def softmax_kernel(x, projection, is_query, eps=1e-4):
    '''Positive random features, in expectation ``phi(q) . phi(k) = exp(q . k / sqrt(d))``.'''
    x = x * x.shape[-1] ** -0.25
    dash = torch.einsum('b h n d, m d -> b h n m', x, projection)
    diag = (x ** 2).sum(dim=-1, keepdim=True) / 2.
    peak = dash.amax(dim=-1, keepdim=True) if is_query else dash.amax(dim=(-1, -2), keepdim=True)
    return projection.shape[0] ** -0.5 * (torch.exp(dash - diag - peak.detach()) + eps)


def linear_attention(q, k, v):
    '''``phi(Q) (phi(K)^T V)``, each row divided by ``phi(Q) sum(phi(K))``: linear in the number of tokens.'''
    d_inv = 1. / torch.einsum('b h n m, b h m -> b h n', q, k.sum(dim=-2))
    context = torch.einsum('b h n m, b h n e -> b h m e', k, v)
    return torch.einsum('b h m e, b h n m, b h n -> b h n e', context, q, d_inv)


class FastAttention(nn.Module):
    '''Attention that never builds the matrix of tokens by tokens.'''
    def __init__(self, dim_head, nb_features):
        super().__init__()
        self.register_buffer('projection_matrix', orthogonal_features(nb_features, dim_head))

    def forward(self, q, k, v):
        q = softmax_kernel(q, self.projection_matrix, is_query=True)
        k = softmax_kernel(k, self.projection_matrix, is_query=False)
        return linear_attention(q, k, v)


class PerformerAttention(nn.Module):
    '''Pre-norm multi-head attention around `FastAttention`.'''
    def __init__(self, dim, heads, dim_head, nb_features):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_k = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_v = nn.Linear(dim, heads * dim_head, bias=False)
        self.fast_attention = FastAttention(dim_head, nb_features)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x):
        x = self.norm(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), (q, k, v))
        out = self.fast_attention(q, k, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


class PerformerClassifier(nn.Module):
    '''Overlapping patches of two convolutions, learned positions, Performer layers, a linear head on the mean token.'''
    def __init__(self, image_size=32, num_classes=4, channels=3, dim=48, depth=2, heads=4, dim_head=16, nb_features=32,
                 mlp_dim=96):
        super().__init__()
        self.to_tokens = nn.Sequential(
            nn.Conv2d(channels, dim // 2, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.pos_emb = nn.Parameter(torch.randn((image_size // 4) ** 2, dim) * .02)
        self.layers = nn.ModuleList([
            nn.ModuleList([self.attention(dim, heads, dim_head, nb_features), FeedForward(dim, mlp_dim)])
            for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_classes)

    def attention(self, dim, heads, dim_head, nb_features):
        '''Return the attention of a layer.'''
        return PerformerAttention(dim, heads, dim_head, nb_features)

    def forward(self, img):
        x = rearrange(self.to_tokens(img), 'b d h w -> b (h w) d')
        x = x + self.pos_emb
        for attn, ff in self.layers:
            x = x + attn(x)
            x = x + ff(x)
        return self.to_logits(self.norm(x).mean(dim=1))


# The same with the attention of torch.nn.MultiheadAttention, written with einsum.

class SelfAttention(nn.Module):
    '''Pre-norm multi-head attention of a sequence to itself.'''
    def __init__(self, dim, heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attend = MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x):
        x = self.norm(x)
        return self.attend(x, x, x, need_weights=False)[0]


class MultiheadClassifier(PerformerClassifier):
    '''The patches, positions, perceptrons and head of `PerformerClassifier` around softmax attention.'''
    def attention(self, dim, heads, dim_head, nb_features):
        '''Return the attention of a layer.'''
        return SelfAttention(dim, heads)
