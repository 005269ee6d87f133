'''The gamma rule: equal to a replica from the formula and to Zennit's, wherever it takes the short way.'''
import pytest
import torch
import zennit.rules
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite

from helpers import assert_closed, explain
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, CPLRPGamma
from zennit_attn.conservation import audit
from zennit_attn.kernels import GammaLinear
from zennit_attn.rules import Gamma

GAMMA = .3
EPSILON = 1e-12


class OwnLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class Wrapped(nn.Module):
    '''A layer between operators: relevance enters and leaves it in the gradient domain.'''
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return (self.layer(x * 1.) * 2.).flatten(1)


class Keyword(Wrapped):
    def forward(self, x):
        return self.layer(input=x * 1.).flatten(1)


class Twice(Wrapped):
    def forward(self, x):
        return self.layer(self.layer(x).tanh()).flatten(1)


LAYERS = {
    'linear': (lambda: nn.Linear(5, 5), (2, 3, 5)),
    'linear without bias': (lambda: nn.Linear(5, 4, bias=False), (2, 5)),
    'conv1d': (lambda: nn.Conv1d(4, 4, 3, padding=1, dilation=2), (2, 4, 9)),
    'conv2d': (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2), (2, 4, 8, 7)),
    'conv2d that leaves a rest': (lambda: nn.Conv2d(2, 3, 2, stride=3), (2, 2, 7, 7)),
    'conv3d': (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 3, 4)),
}
#: Layers for which there is no short way, so that Zennit's own rule runs.
OTHERS = {
    'subclass with its own forward': (lambda: OwnLinear(5, 4), (2, 5)),
    'transposed convolution': (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 2, 4, 4)),
    'circular padding': (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode='circular'), (2, 2, 6)),
    'padding by name': (lambda: nn.Conv1d(2, 3, 3, padding='same'), (2, 2, 6)),
}


def build(make, shape):
    torch.manual_seed(0)
    layer = make().double().eval()
    nn.init.normal_(layer.weight)
    x = torch.randn(shape, dtype=torch.float64)
    x.view(-1)[::7] = 0.
    return layer, x


def under(rule, model, x):
    types = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    composite = LayerMapComposite(layer_map=[(types, rule)], canonizers=[AttentionCanonizer(stabilizer=EPSILON)])
    return explain(model, x, composite, random_like)


def random_like(output):
    return torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(1))


def replica(layer, x, relevance, keep_bias):
    '''The rule from its formula: one matrix of contributions for each sample, one row for each input.'''
    def linear(x):
        return layer(x) - layer(torch.zeros_like(x))

    result = []
    for sample, share in zip(x, relevance, strict=True):
        basis = torch.eye(sample.numel(), dtype=x.dtype).reshape(-1, *sample.shape)
        contributions = sample.reshape(-1, 1) * linear(basis).flatten(1)
        output = layer(sample[None]).flatten()
        bias = layer(torch.zeros_like(sample)[None]).flatten()
        kept = bias if keep_bias else torch.zeros_like(bias)
        total = torch.zeros_like(sample).flatten()
        for sign in (1, -1):
            favoured = contributions + GAMMA * (sign * contributions).clamp(min=0) * sign
            denominator = favoured.sum(0) + kept + GAMMA * (sign * kept).clamp(min=0) * sign
            shares = torch.where(sign * output > 0, share.flatten() / (denominator + sign * EPSILON), 0.)
            total = total + favoured @ shares
        result.append(total.reshape(sample.shape))
    return torch.stack(result)


@pytest.mark.parametrize('zero_params', [None, 'bias', ['bias']], ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_short_way_is_the_rule_and_zennits(name, zero_params, monkeypatch):
    layer, x = build(*LAYERS[name])
    model = Wrapped(layer)
    calls = []
    monkeypatch.setattr('zennit_attn.rules.gamma_gradient', spied(calls))
    output, relevance = under(Gamma(GAMMA, EPSILON, zero_params), model, x)
    assert len(calls) == 1
    expected = replica(layer, x, random_like(output), keep_bias=zero_params is None)
    torch.testing.assert_close(relevance, expected, rtol=1e-7, atol=1e-8)
    _, stock = under(zennit.rules.Gamma(GAMMA, EPSILON, zero_params), model, x)
    torch.testing.assert_close(relevance, stock, rtol=1e-7, atol=1e-8)


def spied(calls):
    from zennit_attn.kernels import gamma_gradient

    def spy(*args):
        calls.append(args)
        return gamma_gradient(*args)
    return spy


@pytest.mark.parametrize('name', OTHERS)
def test_long_way_is_zennits(name, monkeypatch):
    layer, x = build(*OTHERS[name])
    monkeypatch.setattr(GammaLinear, 'apply', None)
    _, relevance = under(Gamma(GAMMA, EPSILON), Wrapped(layer), x)
    _, stock = under(zennit.rules.Gamma(GAMMA, EPSILON), Wrapped(layer), x)
    torch.testing.assert_close(relevance, stock, rtol=0, atol=0)


@pytest.mark.parametrize('cls', [Keyword, Twice])
def test_other_ways_to_call(cls):
    layer, x = build(lambda: nn.Linear(5, 5), (2, 5))
    _, relevance = under(Gamma(GAMMA, EPSILON), cls(layer), x)
    _, stock = under(zennit.rules.Gamma(GAMMA, EPSILON), cls(layer), x)
    torch.testing.assert_close(relevance, stock, rtol=1e-6, atol=1e-8)


def test_plain_zennit_outside_the_canonizer():
    layer, x = build(lambda: nn.Linear(5, 4), (2, 5))
    maps = []
    for rule in (Gamma(GAMMA, EPSILON, 'bias'), zennit.rules.Gamma(GAMMA, EPSILON, 'bias')):
        with Gradient(layer, LayerMapComposite(layer_map=[((nn.Linear,), rule)])) as attributor:
            maps.append(attributor(x, torch.ones(2, 4, dtype=x.dtype))[1])
    assert torch.equal(*maps)


def test_bias_is_the_only_sink():
    layer, x = build(lambda: nn.Linear(5, 4), (2, 3, 5))
    report = audit(Wrapped(layer), CPLRPGamma(linear_gamma=GAMMA), x, torch.ones(2, 12, dtype=x.dtype))
    assert_closed(report)
    rule = [sink for sink in report.sinks if sink.operator == 'Gamma']
    assert [sink.module for sink in rule] == ['layer']
    assert (rule[0].relevance.abs() > 1e-3).all()


def test_gamma_zero_is_lrp_zero():
    layer, x = build(lambda: nn.Linear(5, 4), (2, 5))
    _, relevance = under(Gamma(0., EPSILON), Wrapped(layer), x)
    _, expected = explain(Wrapped(layer), x, CPLRP, random_like)
    torch.testing.assert_close(relevance, expected, rtol=1e-6, atol=1e-8)


def test_input_that_no_relevance_can_reach_stays_at_zero():
    layer, x = build(lambda: nn.Linear(5, 4), (2, 5))
    x[0] = 0.
    _, relevance = under(Gamma(GAMMA, EPSILON), Wrapped(layer), x)
    assert (relevance[0] == 0).all()
    assert (relevance[1] != 0).any()


def test_copy_keeps_the_arguments():
    copied = Gamma(.1, 1e-3, ['bias']).copy()
    assert type(copied) is Gamma
    assert copied.arguments == {'gamma': .1, 'stabilizer': 1e-3, 'zero_params': ['bias']}
