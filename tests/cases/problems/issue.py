'''Linear attention of the Zennit issue.'''
import torch
from einops import rearrange
from torch import nn

from .registry import CLASSES, problem


class LinearAttention(nn.Module):
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.scale = dim_head**-0.5
        self.heads = heads
        hidden_dim = dim_head * heads
        self.to_qkv = nn.Conv2d(dim, hidden_dim * 3, 1, bias=False)

        self.to_out = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1),
                                    nn.GroupNorm(1, dim))

    def forward(self, x):
        b, c, h, w = x.shape
        qkv = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = map(
            lambda t: rearrange(t, "b (h c) x y -> b h c (x y)", h=self.heads), qkv
        )

        q = q.softmax(dim=-2)
        k = k.softmax(dim=-1)

        q = q * self.scale
        context = torch.einsum("b h d n, b h e n -> b h d e", k, v)

        out = torch.einsum("b h d e, b h d n -> b h e n", context, q)
        out = rearrange(out, "b h c (x y) -> b (h c) x y", h=self.heads, x=h, y=w)
        return self.to_out(out)


@problem('linear_attention_cnn', (3, 8, 8))
class LinearAttentionCNN(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3, padding=1), nn.GroupNorm(2, dim), nn.GELU(), nn.AvgPool2d(2))
        self.attn = LinearAttention(dim, heads=2, dim_head=4)
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)
        self.act = nn.SiLU()
        self.fc = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.attn(x)
        x = self.act(self.conv(x))
        return self.fc(rearrange(x, 'b c h w -> b c (h w)').mean(-1))
