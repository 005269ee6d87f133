'''Sequences of tokens whose true evidence is known, and causal models that answer with the token that comes next.'''
from functools import partial

import torch
from torch import nn
from torch.nn.functional import pad

from ..attention import DPFP, FastWeightsAttention, MultiheadAttention
from ..attention.performer import SelfAttention
from .data import Samples
from .models import FeedForward

SYMBOLS = 32
#: The token that stands for nothing, both in the sequences and where evidence is taken away.
BLANK = SYMBOLS
LENGTH = 17
TASKS = ('recall', 'induction')


def sequences(count, seed, task):
    '''Draw sequences that end with a token seen before; the answer is what came after it.

    In associative recall eight pairs of a key (one half of the symbols) and a value (the other half) come before a key.
    In induction sixteen different symbols in any order come before one of them. Either way the answer stands once in
    the sequence, so the evidence is the last token, its first occurrence and the token after that. Each other token is
    blank with a probability that is drawn for each sequence.

    Parameters
    ----------
    count: int
        Number of sequences.
    seed: int
        The same seed, count and task draw the same sequences. The global random state is neither used nor changed.
    task: str
        ``'recall'`` or ``'induction'``.

    Returns
    -------
    :py:class:`~zennit_attn.demo.data.Samples`
        Token ids in place of images, of shape ``(count, 17)``, answers as labels, and masks of the evidence.
    '''
    if task not in TASKS:
        raise ValueError(f'The task has to be one of {", ".join(TASKS)}, not {task!r}.')
    generator = torch.Generator().manual_seed(seed)

    def shuffled(symbols):
        return torch.rand(count, symbols, generator=generator).argsort(dim=1)
    before = LENGTH - 1
    if task == 'recall':
        pairs = shuffled(SYMBOLS // 2)[:, :before // 2], shuffled(SYMBOLS // 2)[:, :before // 2] + SYMBOLS // 2
        tokens = torch.stack(pairs, dim=2).flatten(1)
        place = 2 * torch.randint(before // 2, (count, 1), generator=generator)
    else:
        tokens = shuffled(SYMBOLS)[:, :before]
        place = torch.randint(before - 1, (count, 1), generator=generator)
    tokens = torch.cat([tokens, tokens.gather(1, place)], dim=1)
    masks = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, torch.cat([place, place + 1], dim=1), True)
    masks[:, -1] = True
    labels = tokens.gather(1, place + 1)[:, 0]
    blank = torch.rand(tokens.shape, generator=generator) < torch.rand(count, 1, generator=generator)
    return Samples(torch.where(blank & ~masks, BLANK, tokens), labels, masks)


def previous(x):
    '''Exchange the second half of a token's features for those of the token before it.'''
    own, shifted = x.chunk(2, dim=-1)
    return torch.cat([own, pad(shifted[:, :-1], (0, 0, 1, 0))], dim=-1)


class CausalMultihead(nn.Module):
    '''Softmax attention to earlier tokens.'''
    def __init__(self, dim, heads):
        super().__init__()
        self.attention = MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x):
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.attention(x, x, x, attn_mask=later, need_weights=False)[0]


class FastWeights(nn.Module):
    '''A memory that is written and corrected token by token.'''
    def __init__(self, dim, heads):
        super().__init__()
        self.attention = FastWeightsAttention(heads, dim, 0., DPFP(nu=2))

    def forward(self, x):
        return self.attention(x.transpose(0, 1)).transpose(0, 1)


class CausalModel(nn.Module):
    '''Embedding, positions, causal attention and perceptrons in turn, a linear head on the last token.

    Parameters
    ----------
    attention: callable
        Takes the number of features and of heads, and returns a causal module of sequences ``(b, n, dim)``.
    dim, depth, heads, mlp_dim: int, optional
        Features of a token, number of layers, number of heads and width of the perceptrons.
    '''
    def __init__(self, attention, dim=48, depth=2, heads=4, mlp_dim=96):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, dim)
        self.positions = nn.Parameter(torch.randn(LENGTH, dim) * .02)
        self.layers = nn.ModuleList([
            nn.ModuleList([nn.LayerNorm(dim), attention(dim, heads), FeedForward(dim, mlp_dim)]) for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, SYMBOLS)

    def read(self, x):
        '''Answer embedded tokens ``(b, n, dim)`` with logits of the symbols.'''
        x = x + self.positions
        for norm, attention, feed_forward in self.layers:
            x = x + attention(previous(norm(x)))
            x = x + feed_forward(x)
        return self.to_logits(self.norm(x[:, -1]))

    def forward(self, tokens):
        '''Answer tokens ``(b, n)`` with logits of the symbols.'''
        return self.read(self.embedding(tokens))


def performer_attention(dim, heads):
    '''Causal linear attention with the ReLU kernel.'''
    return SelfAttention(dim, causal=True, heads=heads, dim_head=dim // heads, generalized_attention=True,
                         nb_features=48)


#: Builders of the causal models, by family.
CAUSAL = {
    'multihead': partial(CausalModel, CausalMultihead),
    'performer': partial(CausalModel, performer_attention),
    'fast_weights': partial(CausalModel, FastWeights),
}
