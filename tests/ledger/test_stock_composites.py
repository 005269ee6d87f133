'''Zennit's own composites: the ledger closes, with biases, without them, and with constants beside relevance.'''
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.rules import Gamma

from cases.problems import perturb, zero_additive
from cases.stock import MODELS, STOCK, attention, every_model, every_stock, rule_map, wide_cnn
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.conservation import audit


@every_model
@every_stock
def test_relevance_is_conserved_without_biases(model, stock):
    model, input = MODELS[model]()
    zero_additive(model)
    output, relevance = explain(model, input, attention(stock))
    expected = one_hot(output).flatten(1).sum(1)
    assert ((relevance.flatten(1).sum(1) - expected).abs() <= 1e-4 * expected.abs()).all()


@every_model
@every_stock
@pytest.mark.parametrize('target', [one_hot, None])
def test_ledger_is_closed_with_biases(model, stock, target):
    model, input = MODELS[model]()
    before = Snapshot(model)
    ledger = audit(model, attention(stock), input, target)
    assert_restored(before, model)
    assert_closed(ledger)
    _, relevance = explain(model, input, attention(stock), target)
    scale = relevance.abs().flatten(1).sum(1)
    assert ((ledger.input - relevance.flatten(1).sum(1)).abs() <= 1e-12 * scale).all()


@every_stock
def test_zero_params_take_the_bias_out_of_the_rule(stock):
    '''With ``zero_params`` the rules ignore the biases that stay in the modules.'''
    if stock in ('name_map', 'mixed'):
        pytest.skip('takes no zero_params')
    model, input = wide_cnn()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.bias.data.zero_()
    composite = attention(stock)
    kwargs = {'zero_params': ['bias'], 'canonizers': [AttentionCanonizer()]}
    composite = type(composite)(**kwargs, **({'low': -3., 'high': 3.} if stock == 'epsilon_gamma_box' else {}))
    output, relevance = explain(model, input, composite)
    kept = relevance.flatten(1).sum(1)
    assert relative(output, model(input)) <= 1e-12
    ledger = audit(model, composite, input, one_hot)
    assert_closed(ledger)
    assert relative(ledger.input, kept) <= 1e-9


# constants that a re-index puts beside relevance

class Beside(nn.Module):
    '''A snippet between two modules with stock rules, so that relevance itself flows through it.'''
    def __init__(self, snippet):
        super().__init__()
        self.snippet = snippet
        self.first, self.act, self.last = nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
        self.v, self.w = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        return self.last(self.snippet(self, self.first(x)))


def assigned(y, index, value):
    y = y.clone()
    y[index] = value
    return y


BESIDE = {
    'class token': lambda m, y: torch.cat([m.v.expand(3, 2, 12), y], 1),
    'class token and position': lambda m, y: torch.cat([m.v.expand(3, 2, 12), y], 1) + m.v,
    'stack': lambda m, y: torch.stack([y, m.v.expand_as(y)], 2).flatten(1, 2),
    'pad': lambda m, y: F.pad(y, (0, 0, 1, 1), value=0.5),
    'masked_fill': lambda m, y: y.masked_fill(y > 0.3, 0.5),
    'where parameter': lambda m, y: torch.where(y > 0, y, m.v),
    'where number': lambda m, y: torch.where(y > 0, y, 0.25),
    'assigned number': lambda m, y: assigned(y, (slice(None), 1), 0.5),
    'assigned parameter': lambda m, y: assigned(y, (slice(None), 1), m.v),
    'assigned into a parameter': lambda m, y: assigned(m.v.expand(3, 5, 12), (slice(None), 1), y[:, 2]),
    'maximum': lambda m, y: torch.maximum(y, m.v),
    'clamp': lambda m, y: y.clamp(min=0.2) + y.clamp(-0.2, 0.2),
    'clamp alone': lambda m, y: y.clamp(min=0.2),
    'index_fill': lambda m, y: y.index_fill(1, torch.tensor([1]), 0.5),
    'scatter': lambda m, y: y.scatter(1, torch.ones(3, 1, 12, dtype=torch.long), 0.5),
    'masked_scatter': lambda m, y: y.masked_scatter(y > 0, m.w.expand(3, 12, 12).reshape(-1)),
    'index_put': lambda m, y: y.index_put((torch.arange(3), torch.tensor([1, 2, 2])), m.v, accumulate=True),
    'index_put, accumulate by position': lambda m, y: torch.index_put(
        y, (torch.arange(3), torch.tensor([1, 2, 2])), m.v, True),
    'put': lambda m, y: y.put(torch.tensor([3, 3, 40]), m.v[:3], True) + y.put(torch.tensor([5]), y[0, 1, :1], True),
    'copy_ into a view': lambda m, y: (lambda z: (z[:, 0].copy_(m.v), z)[1])(y.clone()),
    'fill_ of a view': lambda m, y: (lambda z: (z[:, 0].fill_(0.3), z)[1])(y.clone()),
    'detached half': lambda m, y: torch.cat([y.detach(), y], 1),
    'behind an activation': lambda m, y: torch.cat([m.act(y), m.v.expand(3, 1, 12)], 1),
    'used twice': lambda m, y: torch.cat([y, y.flip(1), y[:, :1].expand(3, 2, 12)], 1),
    'chosen': lambda m, y: torch.cat([y.max(dim=1, keepdim=True)[0], y.topk(2, dim=1)[0], y[:, [3, 3]]], 1),
    'code beside module': lambda m, y: torch.cat([y, F.gelu(y) * 2], 1),
}


@pytest.mark.parametrize('name', BESIDE)
@pytest.mark.parametrize('make', [STOCK['epsilon_plus_flat'], lambda canonizers: rule_map(Gamma(), canonizers)])
@pytest.mark.parametrize('target', [one_hot, None])
def test_constants_beside_relevance_are_sinks(name, make, target):
    with torch.random.fork_rng():
        torch.manual_seed(17)
        model, input = Beside(BESIDE[name]).double().eval(), torch.randn(3, 5, 12, dtype=torch.float64)
    perturb(model, 18)
    ledger = audit(model, make([AttentionCanonizer()]), input, target)
    assert_closed(ledger)
    relevance = explain(model, input, make([AttentionCanonizer()]), target)[1]
    assert torch.allclose(ledger.input, relevance.flatten(1).sum(1), rtol=1e-9, atol=1e-12)
