'''The order in which products associate, and the rules for which it matters.'''
from functools import cache

import pytest
import torch
from torch import nn

from attention.helpers import perturbed
from cases.families import BATCH, DIM, LENGTH, explain_largest
from helpers import assert_closed, relative
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.layers import Activation, Einsum, Multiply
from zennit_attn.rules import Constant, Uniform


class AssociatedAttention(nn.Module):
    '''Linear attention in either order: of the same value, but not of the same steps.'''
    def __init__(self, features, linear):
        super().__init__()
        self.features, self.linear = features, linear
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = self.features(q, -1), self.features(k, -2)
        return self.to_out(q @ (k.mT @ v) if self.linear else (q @ k.mT) @ v)


FEATURES = {
    'softmax': (torch.softmax, CPLRP),
    'relu': (lambda x, dim: torch.relu(x), lambda: CPLRP(layer_map=[((Activation,), Constant())])),
}


@cache
def associated(features, linear):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(AssociatedAttention(FEATURES[features][0], linear)).double().eval()
        return model, torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)


@pytest.mark.parametrize(('features', 'composite'), [
    *((name, composite) for name, (_, composite) in FEATURES.items()), ('softmax', AttnTaylor), ('relu', AttnTaylor),
])
def test_order_of_association_does_not_matter_for_constant_gates_and_expansions(features, composite):
    pairs = [explain_largest(*associated(features, linear), composite) for linear in (False, True)]
    assert relative(*(output for output, _ in pairs)) <= 1e-12
    assert relative(*(relevance for _, relevance in pairs)) <= 1e-12


@pytest.mark.parametrize(('features', 'composite'), [
    ('relu', lambda: CPLRP(layer_map=[((Einsum, Multiply), Uniform())])), ('relu', CPLRP), ('softmax', AttnLRP),
], ids=['uniform', 'default', 'taylor'])
def test_order_of_association_matters_for_the_uniform_rule(features, composite):
    maps = [explain_largest(*associated(features, linear), composite)[1] for linear in (False, True)]
    assert relative(*maps) > 0.01
    for linear in (False, True):
        model, input = associated(features, linear)
        ledger = audit(model, composite(), input)
        assert_closed(ledger)
