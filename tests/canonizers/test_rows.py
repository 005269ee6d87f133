'''Rows of published functions that no model of the tests calls, each against its formula as a loop over tokens.'''
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, linear, pad, silu

from helpers import assert_closed, relative
from zennit_attn import CPLRP, audit
from zennit_attn.canonizers.published import layers, linear_attention, recurrent

BATCH, LENGTH, HEADS, KEYS, VALUES = 2, 7, 3, 4, 5


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def tokens(features, seed=0):
    return drawn(BATCH, LENGTH, HEADS, features, seed=seed)


Q, K, V = tokens(KEYS, 1), tokens(KEYS, 2), tokens(VALUES, 3)
A, B = .3 * tokens(KEYS, 4), .3 * tokens(KEYS, 5)
DECAY = -tokens(1, 6)[..., 0].abs()
X, G = drawn(BATCH, LENGTH, 8, seed=7), drawn(BATCH, LENGTH, 8, seed=8)
WEIGHT, BIAS = drawn(8, seed=9), drawn(8, seed=10)
OUT, OUT_BIAS = drawn(6, 8, seed=11), drawn(6, seed=12)


def memory(decay):
    '''What is read from a memory that decays by a factor for each token and head.'''
    state, outs = torch.zeros(BATCH, HEADS, KEYS, VALUES, dtype=torch.float64), []
    for i in range(LENGTH):
        state = state * decay[:, i, :, None, None] + K[:, i, ..., None] * V[:, i, :, None]
        outs.append(torch.einsum('bhk,bhkv->bhv', Q[:, i] * KEYS ** -.5, state))
    return torch.stack(outs, 1)


def lightning():
    '''The slopes of Lightning Attention-2: 8 / H times the head, less in higher layers.'''
    slopes = torch.tensor([8 / HEADS * head * (1 - 2 / 6) for head in range(HEADS)], dtype=torch.float64)
    return memory(torch.exp(-slopes).expand(BATCH, LENGTH, HEADS))


def corrected():
    '''S = S (1 + a b^T) + k v^T, with the keys in front: what is read by a, is written by b.'''
    state, outs = torch.zeros(BATCH, HEADS, KEYS, VALUES, dtype=torch.float64), []
    for i in range(LENGTH):
        read = torch.einsum('bhk,bhkv->bhv', A[:, i], state)
        state = state + B[:, i, ..., None] * read[:, :, None] + K[:, i, ..., None] * V[:, i, :, None]
        outs.append(torch.einsum('bhk,bhkv->bhv', Q[:, i] * KEYS ** -.5, state))
    return torch.stack(outs, 1)


def weighted(rate, bonus, keys, values):
    '''RWKV-4: a mean of all values so far, each by its key and its age, and the present one by a bonus.'''
    outs = []
    for i in range(LENGTH):
        ages = torch.arange(i - 1, -1, -1, dtype=torch.float64)[:, None]
        weights = torch.cat([keys[:, :i] - ages * rate.exp(), keys[:, i:i + 1] + bonus], 1).exp()
        outs.append((weights * values[:, :i + 1]).sum(1) / weights.sum(1))
    return torch.stack(outs, 1)


def normed(x, mean=True):
    x = x - x.mean(-1, keepdim=True) if mean else x
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * WEIGHT + BIAS * mean


NORM = {'weight': WEIGHT, 'bias': BIAS, 'eps': 1e-5}
LINEAR = {'norm_weight': WEIGHT, 'norm_bias': BIAS, 'linear_weight': OUT, 'linear_bias': OUT_BIAS, 'eps': 1e-5}
STATE = torch.cat([torch.zeros(BATCH, 2, 1, 8, dtype=torch.float64), torch.full((BATCH, 1, 1, 8), -1e38).double()], 1)
BEFORE = pad(X[:, :-1], (0, 0, 1, 0))
ROWS = {
    'lightning attention': (
        lambda v: linear_attention.lightning_attention(Q, K, v, layer_idx=2, num_layers=6)[0], V, lightning),
    'weights of all pairs': (
        lambda v: linear_attention.weights_of_linear_attention(Q, K, v, g=DECAY)[0], V, lambda: memory(DECAY.exp())),
    'no decay': (lambda v: linear_attention.general(Q, K, v, A, B)[0], V, corrected),
    'RWKV-4': (lambda v: recurrent.rwkv4_of_fla(WEIGHT, BIAS, G, v, STATE)[0], X,
               lambda: weighted(WEIGHT, BIAS, G, X)),
    'mixed with the token before': (
        lambda x: linear_attention.rwkv7_mixed(x, BEFORE - X, *(WEIGHT * i for i in range(5)))[3], X,
        lambda: X + (BEFORE - X) * 3. * WEIGHT),
    'keys': (lambda k: linear_attention.rwkv7_keys(k, G, WEIGHT), X, lambda: X * (1. + (G - 1.) * WEIGHT)),
    'channels': (
        lambda x: linear_attention.rwkv7_channels(x, torch.zeros(BATCH, 8).double(), WEIGHT, OUT.mT, OUT)[0], X,
        lambda: linear(((X + (BEFORE - X) * WEIGHT) @ OUT.mT).clamp(min=0.) ** 2, OUT.mT)),
    'layer norm and a gate': (
        lambda x: layers.layer_norm_with_gate(x, G, **NORM), X, lambda: normed(X) * silu(G)),
    'layer norm and a sigmoid': (
        lambda x: layers.layer_norm_with_gate(x, G, **NORM, activation='sigmoid'), X, lambda: normed(X) * G.sigmoid()),
    'layer norm, a gate and a layer': (
        lambda x: layers.layer_norm_gate_linear(x, G, **LINEAR), X,
        lambda: linear(normed(X) * silu(G), OUT, OUT_BIAS)),
    'layer norm of a residual and a layer': (
        lambda x: layers.layer_norm_linear(x, **LINEAR, residual=G), X, lambda: linear(normed(X + G), OUT, OUT_BIAS)),
    "Mamba-2's norm, first the gate": (
        lambda x: layers.gated_norm(x, WEIGHT, z=G, eps=1e-5, norm_before_gate=False), X,
        lambda: normed(X * silu(G), mean=False)),
    "Liger's layer norm": (lambda x: layers.liger_layer_norm(x, WEIGHT, BIAS, 1e-5), X, lambda: normed(X)),
    "Liger's GeGLU": (lambda x: layers.liger_geglu(G, x), X, lambda: gelu(G, approximate='tanh') * X),
}
every_row = pytest.mark.parametrize('name', ROWS)


@every_row
def test_forward_is_the_formula(name):
    call, values, formula = ROWS[name]
    assert relative(call(values), formula()) <= 1e-12


@every_row
def test_ledger_closes(name):
    call, values, _ = ROWS[name]

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.enter, self.leave = nn.Linear(values.shape[-1], values.shape[-1]), nn.LazyLinear(3)

        def forward(self, x):
            return self.leave(call(self.enter(x)).flatten(1))
    model = Between().double().eval()
    model(values)
    ledger = audit(model, CPLRP(), values)
    assert_closed(ledger)
    assert ledger.input.all()
