'''Weights and blocks used more than once.'''
import torch
import torch.nn.functional as F
from torch import nn

from .registry import CLASSES, DIM, Head, Wrapped, problem
from .vision import FeedForward, ViTAttention


@problem('block_in_a_loop')
class BlockInALoop(nn.Module):
    '''One transformer block run three times (ALBERT).'''
    def __init__(self):
        super().__init__()
        self.attn, self.ff = ViTAttention(DIM), FeedForward(DIM, 2 * DIM)
        self.head = Head()

    def forward(self, x):
        for _ in range(3):
            x = self.attn(x) + x
            x = self.ff(x) + x
        return self.head(x)


@problem('shared_weights')
class SharedWeights(nn.Module):
    '''One Linear, one norm and one activation called at several places; a tied head by ``x @ W.t()``.'''
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.act = nn.Linear(DIM, DIM), nn.LayerNorm(DIM), nn.ReLU()
        self.embed = nn.Parameter(torch.randn(CLASSES, DIM))

    def forward(self, x):
        x = self.act(self.fc(self.norm(x)))
        y = self.act(self.fc(self.norm(x)) + F.linear(x, self.fc.weight.t()))
        return self.norm(self.fc(x) + self.fc(y)).mean(1) @ self.embed.t()


@problem('chunked_feed_forward')
class ChunkedFeedForward(Wrapped):
    '''One module called on several chunks of the sequence.'''
    def __init__(self):
        super().__init__()
        self.ff = FeedForward(DIM, 2 * DIM)

    def mix(self, x):
        return torch.cat([self.ff(chunk) for chunk in x.chunk(3, dim=1)], dim=1)
