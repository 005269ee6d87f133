'''Code that says the same in other words has the same map.'''
import pytest
import torch
from torch import nn
from torch.nn import functional
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass

from cases.pairs import NEWER, PAIRS, before_activation, build
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot, relative, stock
from versions import each
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor, Difference
from zennit_attn.conservation import audit

COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'stock': stock,
              'pass': lambda: CPLRP(layer_map=[(nn.ReLU, Pass())])}


@pytest.mark.filterwarnings('ignore:Implicit dimension choice')
@pytest.mark.parametrize('name', each(PAIRS, NEWER))
@pytest.mark.parametrize('composite', COMPOSITES)
def test_equal_to_the_same_in_other_words(name, composite):
    (model, input), (other, _) = (build(code) for code in PAIRS[name])
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, COMPOSITES[composite])
    ledger = audit(model, COMPOSITES[composite](), input, one_hot)
    assert_restored(before, model)
    assert torch.allclose(output, expected, rtol=1e-9)
    assert torch.allclose(relevance, explain(other, input, COMPOSITES[composite])[1], rtol=1e-5, atol=1e-7)
    if composite != 'stock':  # whose own stabilizers are larger
        assert_closed(ledger)


@pytest.mark.parametrize('composite', COMPOSITES)
def test_module_in_place_before_a_residual(composite):
    model, input = build(before_activation)
    expected = model(input)
    output, relevance = explain(model, input, COMPOSITES[composite])
    model.relu.inplace = False
    model.code = lambda m, y: (lambda z: z + m.fc(z))(m.relu(m.fc2(y)))
    assert torch.allclose(output, expected, rtol=1e-9)
    assert torch.allclose(relevance, explain(model, input, COMPOSITES[composite])[1], rtol=1e-5, atol=1e-7)


def test_constants_in_a_sum_of_products_still_share():
    '''A decision, so that keys of a cache are not told from such that are computed again.'''
    def assigned(m, y):
        scores = y @ m.fc2(y).mT
        scores[:, :2] = scores[:, :2].softmax(-1)
        return scores @ y

    def apart(m, y):
        scores = y @ m.fc2(y).mT
        return torch.cat([scores[:, :2].softmax(-1) @ y, scores[:, 2:] @ y], 1)
    (model, input), (other, _) = build(assigned), build(apart)
    assert torch.allclose(model(input), other(input), rtol=1e-9)
    assert_closed(audit(model, CPLRP(), input, one_hot))
    difference = relative(explain(model, input)[1], explain(other, input)[1])
    assert .2 < difference < .3, difference


def test_conjugates_behind_a_rule():
    class Conjugate(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            z = torch.view_as_complex(x.unflatten(-1, (2, 2))).conj().resolve_conj()
            return self.head(torch.view_as_real(z).flatten(1))

    torch.manual_seed(0)
    model, x = Conjugate().double(), torch.randn(3, 4, dtype=torch.float64)

    def epsilon():
        return LayerMapComposite([(nn.Linear, Epsilon(1e-12))], canonizers=[AttentionCanonizer(stabilizer=1e-12)])
    assert torch.allclose(explain(model, x, epsilon)[1], explain(model, x, CPLRP)[1], rtol=1e-6)


def scaled_by_data(m, y):
    m.fc2.weight.data.mul_(2.)
    z = m.fc2(y)
    m.fc2.weight.data.div_(2.)
    return z * y


def scaled_without_grad(m, y):
    with torch.no_grad():
        m.fc2.weight.mul_(2.)
    z = m.fc2(y)
    with torch.no_grad():
        m.fc2.weight.div_(2.)
    return z * y


def replaced_by_data(m, y):
    before = m.fc2.weight.data
    m.fc2.weight.data = 2. * before
    z = m.fc2(y)
    m.fc2.weight.data = before
    return z * y


@pytest.mark.parametrize('changed', [scaled_by_data, scaled_without_grad, replaced_by_data])
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor, Difference])
def test_weights_that_are_changed_and_changed_back(changed, composite):
    (model, input), (other, _) = build(changed), build(
        lambda m, y: functional.linear(y, 2. * m.fc2.weight, m.fc2.bias) * y)
    held = model(input)  # a graph that holds the weights all the while
    before = Snapshot(model)
    output, relevance = explain(model, input, composite)
    assert_restored(before, model)
    assert torch.allclose(output, held, rtol=1e-9)
    assert torch.allclose(relevance, explain(other, input, composite)[1], rtol=1e-9, atol=1e-12)
    assert_closed(audit(model, composite(), input, one_hot))
