'''Associative recall of several pairs, and two models of today's linear attention that learn it.

The models are as one finds them: PyTorch, no word about relevance, and recurrences in chunks of tokens, whose size is a
detail that nothing depends on but the time it takes.
'''
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import conv1d, cross_entropy, normalize, pad, silu, softplus

KEYS, VALUES, PAIRS = 32, 32, 8
#: The tokens of a sequence: pairs of a key and a value, a mark, and the keys that are asked for.
LENGTH = 3 * PAIRS + 1
MARK = KEYS + VALUES


@dataclass(frozen=True)
class Recalls:
    '''Sequences of associative recall.

    Attributes
    ----------
    tokens: :py:class:`torch.Tensor`
        Of shape ``(batch, LENGTH)``, integers: keys, then values from ``KEYS`` on, then the mark.
    answers: :py:class:`torch.Tensor`
        The value to each key that is asked for, of shape ``(batch, PAIRS)``.
    holders: :py:class:`torch.Tensor`
        The number of the pair that holds it, of the same shape.
    '''
    tokens: torch.Tensor
    answers: torch.Tensor
    holders: torch.Tensor


def recalls(count, seed):
    '''Draw sequences in which each key is stored once, and all are asked for in another order.'''
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(VALUES, (count, PAIRS), generator=generator)
    holders = torch.rand(count, PAIRS, generator=generator).argsort(1)
    stored = torch.stack([keys, KEYS + values], -1).flatten(1)
    tokens = torch.cat([stored, torch.full((count, 1), MARK), keys.gather(1, holders)], 1)
    return Recalls(tokens, values.gather(1, holders), holders)


class ShortConvolution(nn.Module):
    '''Each feature with its last tokens, so that a value knows the key before it.'''
    def __init__(self, dim, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, 1, width) * width ** -.5)

    def forward(self, x):
        past = pad(x.mT, (self.weight.shape[-1] - 1, 0))
        return silu(conv1d(past, self.weight, groups=len(self.weight))).mT


class RMSNorm(nn.Module):
    '''A norm without a mean.'''
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


def chunk_gated_delta_rule(q, k, v, g, beta, chunk_size=8):
    '''A gated delta net in chunks of tokens, with heads behind tokens. A chunk of one is the recurrence itself.'''
    length, missing = q.shape[1], -q.shape[1] % chunk_size
    q, k, v, g, beta = (
        pad(each.transpose(1, 2), (0, 0) * (each.ndim - 3) + (0, missing)).unflatten(2, (-1, chunk_size))
        for each in (q * q.shape[-1] ** -.5, k, v, g, beta))
    g = g.cumsum(-1)
    decay = (g[..., None] - g[..., None, :]).tril().exp().tril()
    system = torch.eye(chunk_size).to(q) + (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    values, keys = (torch.linalg.solve_triangular(system, beta[..., None] * each, upper=False)
                    for each in (v, k * g[..., None].exp()))
    scores, reads = q @ k.mT * decay, q * g[..., None].exp()
    writes, kept = k * (g[..., -1:] - g)[..., None].exp(), g[..., -1:, None].exp()
    memory, outs = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), []
    for value, key, score, read, write, keep in zip(
            *(each.unbind(2) for each in (values, keys, scores, reads, writes, kept)), strict=True):
        written = value - key @ memory
        outs.append(read @ memory + score @ written)
        memory = memory * keep + write.mT @ written
    return torch.cat(outs, 2)[:, :, :length].transpose(1, 2)


def chunk_scan(x, dt, A, B, C, chunk_size=8):  # noqa: N803 - the names of the article
    '''The state space of Mamba-2 in chunks of tokens. A chunk of one is the recurrence itself.'''
    length, missing = x.shape[1], -x.shape[1] % chunk_size
    x, dt, keys, queries = (pad(each.transpose(1, 2), (0, 0) * (each.ndim - 3) + (0, missing)).unflatten(
        2, (-1, chunk_size)) for each in (x, dt, B, C))
    g, x = (A[:, None, None] * dt).cumsum(-1), x * dt[..., None]
    decay = (g[..., None] - g[..., None, :]).tril().exp().tril()
    scores, reads = queries @ keys.mT * decay, queries * g[..., None].exp()
    writes, kept = keys * (g[..., -1:] - g)[..., None].exp(), g[..., -1:, None].exp()
    memory, outs = x.new_zeros(*x.shape[:2], keys.shape[-1], x.shape[-1]), []
    for value, score, read, write, keep in zip(
            *(each.unbind(2) for each in (x, scores, reads, writes, kept)), strict=True):
        outs.append(read @ memory + score @ value)
        memory = memory * keep + write.mT @ value
    return torch.cat(outs, 2)[:, :, :length].transpose(1, 2)


class GatedDeltaNet(nn.Module):
    '''A layer of a gated delta net (Yang et al., 2025).'''
    def __init__(self, dim, heads=2, chunk_size=8):
        super().__init__()
        self.heads, self.chunk_size = heads, chunk_size
        self.norm, self.qkv, self.conv = RMSNorm(dim), nn.Linear(dim, 3 * dim, bias=False), ShortConvolution(3 * dim)
        self.beta, self.decay, self.gate = nn.Linear(dim, heads), nn.Linear(dim, heads), nn.Linear(dim, dim)
        self.out_norm, self.out = RMSNorm(dim // heads), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        x = self.norm(x)
        q, k, v = self.conv(self.qkv(x)).unflatten(-1, (3 * self.heads, -1)).chunk(3, 2)
        out = chunk_gated_delta_rule(normalize(q, dim=-1), normalize(k, dim=-1), v, -softplus(self.decay(x) - 4.),
                                     self.beta(x).sigmoid(), self.chunk_size)
        return self.out(self.out_norm(out).flatten(2) * silu(self.gate(x)))


class Mamba2(nn.Module):
    '''A layer of Mamba-2 (Dao and Gu, 2024).'''
    def __init__(self, dim, heads=2, states=24, chunk_size=8):
        super().__init__()
        self.heads, self.states, self.chunk_size = heads, states, chunk_size
        self.norm, self.xbc = RMSNorm(dim), nn.Linear(dim, dim + 2 * heads * states, bias=False)
        self.conv = ShortConvolution(dim + 2 * heads * states)
        self.dt, self.gate = nn.Linear(dim, heads), nn.Linear(dim, dim)
        self.A_log, self.D = nn.Parameter(torch.linspace(-4., -1., heads)), nn.Parameter(torch.ones(heads))
        self.out_norm, self.out = RMSNorm(dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        x = self.norm(x)
        parts = self.conv(self.xbc(x)).split([x.shape[-1], *2 * [self.heads * self.states]], -1)
        values, keys, queries = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        out = chunk_scan(values, softplus(self.dt(x)), -self.A_log.exp(), keys, queries, self.chunk_size)
        out = (out + values * self.D[:, None]).flatten(2) * silu(self.gate(x))
        return self.out(self.out_norm(out))


class RecallModel(nn.Module):
    '''Embedded tokens, layers on a residual stream, and the logits of the values where a key is asked for.'''
    def __init__(self, layer, dim=48, depth=2):
        super().__init__()
        self.embed = nn.Embedding(KEYS + VALUES + 1, dim)
        self.layers = nn.ModuleList([layer(dim) for _ in range(depth)])
        self.norm, self.head = RMSNorm(dim), nn.Linear(dim, VALUES)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(self.norm(x[:, -PAIRS:]))

    def in_chunks_of(self, size):
        '''Run the recurrences in chunks of another size, and return the model.'''
        for layer in self.layers:
            layer.chunk_size = size
        return self


@dataclass(frozen=True)
class RecallDemo:
    '''A trained model of associative recall: its name, its title, its layer, and how it was trained.'''
    name: str
    title: str
    layer: type
    steps: int = 600
    rate: float = 1e-2

    @property
    def weights(self):
        '''Path of the weights.'''
        return Path(__file__).parent / 'weights' / f'{self.name}.pt'

    def build(self):
        '''Return the model, untrained.'''
        return RecallModel(self.layer)

    def load(self, dtype=torch.float64):
        '''Return the trained model in evaluation mode.'''
        if not self.weights.is_file():
            raise FileNotFoundError(f'{self.weights} is missing; train it with python -m zennit_attn.demo.train')
        model = self.build()
        model.load_state_dict(torch.load(self.weights, weights_only=True))
        return model.to(dtype).eval()

    def held_out(self, count):
        '''Return sequences that the model was not trained on.'''
        return recalls(count, 10 ** 9)

    def train(self, seed=0):
        '''Return a trained model.'''
        torch.manual_seed(seed)
        model = self.build().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=self.steps, pct_start=.15)
        for step in range(self.steps):
            batch = recalls(128, seed * 10 ** 6 + step)
            loss = cross_entropy(model(batch.tokens).flatten(0, 1), batch.answers.flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step()
            schedule.step()
            if step % 200 == 0:
                print(f'  step {step:4d} of {self.steps}  loss {loss.item():.3f}', flush=True)
        return model.eval()

    def accuracy(self, model, count=1000):
        '''The share of the keys asked for, in new sequences, whose value has the highest logit.'''
        samples = self.held_out(count)
        with torch.no_grad():
            return (model(samples.tokens).argmax(-1) == samples.answers).float().mean().item()


RECALLS = {demo.name: demo for demo in (
    RecallDemo('gated_delta_net', 'Gated delta net', GatedDeltaNet),
    RecallDemo('mamba2', 'Mamba-2', Mamba2),
)}
