'''Modules called more than once give the map of a model with a copy for each call.'''
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.composites import EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlusFlat
from zennit.rules import Epsilon, Gamma, ZPlus

from cases.problems import perturb
from cases.programs import Block, FeedForward, initialized, values
from cases.stock import rule_map
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.conservation import audit


class CalledTwice(nn.Module):
    '''One Linear and one activation called three times.'''
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.act, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):
            x = self.act(self.shared(x))
        return self.last(x)


class ConvTwice(CalledTwice):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(80, 4)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):
            x = self.act(self.shared(x))
        return self.last(x.flatten(1))


def unrolled(model):
    '''The same network with a module of its own for every call.'''
    layers = [model.first, model.act, model.shared, model.act, model.shared, model.act]
    if isinstance(model, ConvTwice):
        layers.append(nn.Flatten())
    return nn.Sequential(*(deepcopy(layer) for layer in [*layers, model.last]))


@pytest.mark.parametrize(('cls', 'shape'), [(CalledTwice, (3, 6)), (ConvTwice, (3, 2, 6, 6))])
@pytest.mark.parametrize('rule', [Epsilon(), Epsilon(0.1), ZPlus(), Gamma(0.25)])
def test_module_called_twice_equals_unrolled_copy(cls, shape, rule):
    torch.manual_seed(8)
    model, input = cls().double().eval(), torch.randn(shape, dtype=torch.float64)
    perturb(model, 9)
    expected = explain(unrolled(model), input, rule_map(rule, []))[1]
    relevance = explain(model, input, rule_map(rule, [AttentionCanonizer()]))[1]
    assert relative(relevance, expected) <= 1e-9
    ledger = audit(model, rule_map(rule, [AttentionCanonizer()]), input, one_hot)
    assert_closed(ledger)


class Looped(nn.Module):
    '''A transformer whose layers may be one and the same, as in ALBERT.'''
    def __init__(self, layers, norms, heads):
        super().__init__()
        self.stem = nn.Conv1d(3, 3, 1)
        self.embed, self.positions = nn.Linear(6, 4), nn.Parameter(torch.empty(3, 4))
        self.layers, self.norms, self.heads = nn.ModuleList(layers), nn.ModuleList(norms), nn.ModuleList(heads)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.embed(self.stem(x)) + self.positions
        for layer, norm, head in zip(self.layers, self.norms, self.heads, strict=True):
            x = norm(layer(x))
            x = F.gelu(head(x)) + x
        return self.head(x.mean(1))


class Attention(nn.Module):
    '''Multi-head attention and a feed-forward layer by modules.'''
    def __init__(self):
        super().__init__()
        self.attn, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.feedforward = FeedForward(4)

    def forward(self, x):
        x = x + self.attn(*[self.norm(x)] * 3, need_weights=False)[0]
        return x + self.feedforward(x)


LAYERS = {
    'looped ViT': lambda: Block(4),
    'ALBERT': Attention,
    'encoder layer': lambda: nn.TransformerEncoderLayer(4, 2, 5, batch_first=True),
    'Linear': lambda: nn.Linear(4, 4),
    'Linear and activation': lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    'convolution over tokens': lambda: nn.Conv1d(3, 3, 3, padding=1),
}
BY_NAME = {
    'epsilon_plus_flat': EpsilonPlusFlat,
    'epsilon_gamma_box': lambda canonizers: EpsilonGammaBox(low=-3., high=3., canonizers=canonizers),
    'epsilon_alpha2_beta1': EpsilonAlpha2Beta1,
}


@pytest.mark.parametrize('composite', BY_NAME)
@pytest.mark.parametrize('layer', LAYERS)
def test_looped_equals_unrolled(layer, composite):
    '''Modules called three times give the map of a model with a copy for each call.'''
    def composed():
        return BY_NAME[composite](canonizers=[AttentionCanonizer()])

    shared = LAYERS[layer](), nn.LayerNorm(4), nn.Linear(4, 4)
    looped = initialized(Looped(*([part] * 3 for part in shared)))
    unrolled = Looped(*([deepcopy(part) for _ in range(3)] for part in shared)).double().eval()
    unrolled.load_state_dict(looped.state_dict())
    input, before = values((2, 3, 6)), Snapshot(looped)
    output, relevance = explain(looped, input, composed(), torch.abs)
    expected_output, expected = explain(unrolled, input, composed(), torch.abs)
    assert torch.equal(output, expected_output)
    assert relative(relevance, expected, 1e-12) <= 1e-12
    ledger = audit(looped, composed(), input, torch.abs)
    assert_closed(ledger)
    for index in range(len(input)):
        alone = explain(looped, input[index:index + 1], composed(), torch.abs)[1]
        assert relative(alone, relevance[index:index + 1], 1e-12) <= 1e-9
    assert_restored(before, looped)
