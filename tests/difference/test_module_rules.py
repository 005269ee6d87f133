'''Rules of modules beside differences: they see the differences of their input and output, and no bias.'''
import pytest
import torch
from torch import nn
from zennit.rules import AlphaBeta, Epsilon, Flat, Norm, Pass, WSquare, ZPlus
from zennit.rules import Gamma as ZennitGamma
from zennit.types import Activation, AvgPool, Linear

from helpers import assert_closed, relative, relevance_of
from zennit_attn.composites import Difference
from zennit_attn.conservation import audit
from zennit_attn.errors import UnsupportedRule
from zennit_attn.rules import Gamma

from .helpers import reference_of

EPSILON = 1e-12


def contributions(layer, x, x0):
    '''``(x - x0)_i w_ij`` of a linear layer, of shape [batch, inputs, outputs].'''
    return (x - x0)[..., None] * layer.weight.T


def plus(layer, x, x0):
    parts = contributions(layer, x, x0).clamp(min=0)
    return parts / (parts.sum(1, keepdim=True) + EPSILON)


def generalized(layer, x, x0, gamma=.3):
    parts = contributions(layer, x, x0)
    total = parts.sum(1, keepdim=True)
    above, below = parts + gamma * parts.clamp(min=0), parts + gamma * parts.clamp(max=0)
    return torch.where(total > 0, above / above.sum(1, keepdim=True), below / below.sum(1, keepdim=True))


def equal(layer, x, x0):
    return torch.full_like(contributions(layer, x, x0), 1 / x.shape[-1])


def squares(layer, x, x0):
    return (layer.weight.T.square() / layer.weight.T.square().sum(0)).expand(len(x), -1, -1)


def plain(layer, x, x0):
    parts = contributions(layer, x, x0)
    return parts / parts.sum(1, keepdim=True)


RULES = {
    'ZPlus': (ZPlus(EPSILON), plus), 'Gamma': (ZennitGamma(.3, EPSILON), generalized),
    'our Gamma': (Gamma(.3, EPSILON), generalized), 'Flat': (Flat(EPSILON), equal),
    'WSquare': (WSquare(EPSILON), squares), 'Epsilon': (Epsilon(EPSILON), plain),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3)).double().eval()


@pytest.mark.parametrize('name', RULES)
def test_rules_see_differences(model, name):
    '''Against the formula: relevance is ``dy g`` at every layer, and each hands it on by its shares.'''
    rule, shares = RULES[name]
    input = torch.randn(4, 6, dtype=torch.float64)
    reference = reference_of(input)
    found = relevance_of(model, input, Difference(reference, layer_map=[(nn.Linear, rule)]), torch.ones_like)
    with torch.no_grad():
        (a, b), (a0, b0) = ([model[0](x), model[1](model[0](x))] for x in (input, reference))
        y, y0 = model[2](b), model[2](b0)
        relevance = (y - y0) / y
        relevance = (shares(model[2], b, b0) @ relevance[..., None])[..., 0]  # a sigmoid passes it on
        relevance = (shares(model[0], input, reference) @ relevance[..., None])[..., 0]
    assert relative(found, relevance) <= 1e-7


@pytest.mark.parametrize('layer_map', [
    [(Linear, ZPlus())], [(Linear, AlphaBeta())], [(Linear, Epsilon()), (Activation, Pass()), (AvgPool, Norm())],
])
def test_ledgers_close(layer_map):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.GELU(),
        nn.Linear(8, 3)).double().eval()
    input = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    assert_closed(audit(model, Difference(reference_of(input), layer_map=layer_map), input))


def test_gammas_of_the_composite():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36 * 4, 3)).double()
    input = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    reference = reference_of(input)
    own = Difference(reference, conv_gamma=.25, linear_gamma=.1)
    ledger = audit(model, own, input)
    assert_closed(ledger)
    assert sum(sink.relevance.abs().max() for sink in ledger.sinks if sink.kind == 'rule') <= 1e-6
    stock = Difference(reference, layer_map=[
        (nn.Conv2d, ZennitGamma(.25, 1e-9)), (nn.Linear, ZennitGamma(.1, 1e-9))])
    assert relative(relevance_of(model, input, own), relevance_of(model, input, stock)) <= 1e-6


def test_rules_on_what_is_not_linear_are_refused():
    class Square(nn.Module):
        def forward(self, x):
            return x.square()
    model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2)).double()
    input = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedRule, match="rule Epsilon on module '1': Square is not linear"):
        relevance_of(model, input, Difference(0., layer_map=[(Square, Epsilon())]))
    assert model[0].bias is not None
    relevance_of(model, input, Difference(0.))  # by the advice: without a rule


def test_bias_is_there_after_the_backward_pass(model):
    before = [parameter.clone() for parameter in model.parameters()]
    input = torch.randn(4, 6, dtype=torch.float64)
    relevance_of(model, input, Difference(reference_of(input), layer_map=[(nn.Linear, ZPlus())]))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
