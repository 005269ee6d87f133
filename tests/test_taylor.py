'''The Taylor rule: ledgers with hidden biases closed, whatever the code, and where a composite gives it.'''
import pytest
import snippets
import torch
from problems import PROBLEMS, build, one_hot
from snapshot import Snapshot, assert_restored
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite, NameMapComposite

from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.layers import Activation, Add, Attention, Einsum, Gate, Multiply, Softmax
from zennit_attn.rules import Taylor

OPERATORS = (Activation, Add, Attention, Einsum, Gate, Multiply, Softmax)


def everywhere():
    '''The rule for all operators of a model.'''
    return LayerMapComposite([(OPERATORS, Taylor())], canonizers=[AttentionCanonizer()])


COMPOSITES = {'attn_taylor': AttnTaylor, 'everywhere': everywhere}
every_composite = pytest.mark.parametrize('composite', COMPOSITES)
# torch needs what F.relu returns, and refuses to differentiate once a number has been added to it in place.
OVERWRITTEN = ('activation += number', 'activation add_ number')
LINES = {**snippets.SNIPPETS, **{name: line for name, (line, _) in snippets.WRITTEN_OUT.items()}}


def explain(model, input, composite):
    with Gradient(model, composite()) as attributor:
        return attributor(input.clone(), one_hot)


def check(model, input, composite):
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, composite)
    ledger = audit(model, composite(), input, one_hot)
    assert_restored(before, model)
    assert torch.allclose(output, expected, rtol=1e-12)
    assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all(), str(ledger)
    assert torch.allclose(ledger.input.sum(), relevance.sum(), rtol=1e-9)  # some lines mix the samples


@pytest.mark.parametrize('name', PROBLEMS)
@every_composite
def test_ledger_of_pasted_code_closes(name, composite):
    check(*build(name), COMPOSITES[composite])


@pytest.mark.filterwarnings('ignore:index_reduce.* is in beta')
@pytest.mark.parametrize('name', [name for name in LINES if name not in OVERWRITTEN])
def test_ledger_of_single_lines_closes(name):
    check(*snippets.build(LINES[name]), everywhere)


class Gated(nn.Module):
    '''Attention by sigmoids of a module, and a feed-forward with a gate of its own outside of attention.'''
    def __init__(self):
        super().__init__()
        self.attention = SigmoidAttention()
        self.fc, self.head = nn.Linear(6, 12), nn.Linear(6, 3)

    def forward(self, x):
        value, gate = self.fc(self.attention(x)).chunk(2, -1)
        return self.head((value * torch.sigmoid(gate)).mean(1))


class SigmoidAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.sigmoid = nn.Linear(6, 18), nn.Sigmoid()

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = self.sigmoid(q @ k.mT)
        return weights @ v / (1 + weights.sum(-1, keepdim=True))


def twin(model, x):
    '''Gradient x input, with the normalizer of attention and the gate outside of it as constants.'''
    x = x.clone().requires_grad_()
    q, k, v = model.attention.qkv(x).chunk(3, -1)
    weights = torch.sigmoid(q @ k.mT)
    value, gate = model.fc(weights @ v / (1 + weights.sum(-1, keepdim=True)).detach()).chunk(2, -1)
    output = model.head((value * torch.sigmoid(gate).detach()).mean(1))
    weight = one_hot(output) / (output + 1e-9 * output.sign()).detach()
    return (x * torch.autograd.grad(output, x, weight)[0]).detach()


def gated():
    torch.manual_seed(0)
    return Gated().double(), torch.randn(3, 5, 6, dtype=torch.float64)


def by_name(name):
    return lambda: NameMapComposite([([name], Taylor())], canonizers=[AttentionCanonizer()])


@pytest.mark.parametrize('composite', [
    AttnTaylor, by_name('attention'), lambda: CPLRP(layer_map=[(SigmoidAttention, Taylor())]),
], ids=['composite', 'by name', 'by type'])
def test_attention_alone_is_expanded(composite):
    '''By the composite's idea of attention, or all of a module that is given the rule.'''
    model, x = gated()
    relevance = explain(model, x, composite)[1]
    assert torch.allclose(relevance, twin(model, x), rtol=1e-9, atol=1e-12)
    check(model, x, composite)


def test_maps_differ_from_those_of_constant_gates():
    model, x = gated()
    assert not torch.allclose(explain(model, x, CPLRP)[1], twin(model, x), rtol=.1, atol=1e-3)


def test_roots_and_deviations_stay_constant():
    class Attention(nn.Module):
        def forward(self, x):
            return x * (x.var(-1, keepdim=True) + 1e-5) ** -.5 + x / x.norm(dim=-1, keepdim=True)

    x = torch.randn(3, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 6), Attention(), nn.Linear(6, 2)).double()
    assert torch.equal(explain(model, x, AttnTaylor)[1], explain(model, x, CPLRP)[1])


@pytest.mark.parametrize('line', ['x.mul_(y)', 'x.mul_(y).add_(x)', 'x.__imul__(y)'])
def test_products_in_place(line):
    class Attention(nn.Module):
        def forward(self, x):
            x, y = x.chunk(2, -1)
            return eval(line, {'x': x * 1., 'y': y})

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), Attention(), nn.Linear(4, 2)).double(), torch.randn(3, 6).double()
    check(model, x, AttnTaylor)
    plain = x.clone().requires_grad_()
    output = model(plain)
    weight = one_hot(output) / (output + 1e-9 * output.sign()).detach()
    expected = (x * torch.autograd.grad(output, plain, weight)[0]).detach()
    assert torch.allclose(explain(model, x, AttnTaylor)[1], expected, rtol=1e-9, atol=1e-12)
