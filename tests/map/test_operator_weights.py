'''Rules of Zennit on operators: what they take for the weights, wherever these stand in the call.'''
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

from helpers import relative
from zennit_attn import layers
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.errors import UnsupportedRule

torch.manual_seed(0)
FIRST, SECOND, BIAS = (torch.randn(shape, dtype=torch.float64) for shape in ((6, 5), (5, 4), (4,)))
INPUT = torch.randn(3, 6, dtype=torch.float64)
RULES = {
    'z plus': ZPlus(stabilizer=1e-9), 'gamma': Gamma(.5, stabilizer=1e-9), 'w square': WSquare(stabilizer=1e-9),
    'alpha beta': AlphaBeta(2, 1, stabilizer=1e-9), 'flat': Flat(stabilizer=1e-9),
    'z box': ZBox(-3., 3., stabilizer=1e-9), 'epsilon': Epsilon(1e-9),
    'no bias': Epsilon(1e-9, zero_params=['bias']),
}
#: One map, with and without a bias, and the weights in all the places where code has them.
PRODUCTS = {
    'matmul': lambda m, x: x @ m.weight,
    'einsum': lambda m, x: torch.einsum('bi,ij->bj', x, m.weight),
    'einsum, weights first': lambda m, x: torch.einsum('ij,bi->bj', m.weight, x),
    'einsum of three': lambda m, x: torch.einsum('bi,ij,jk->bk', x, m.first, m.second),
    'einsum of three, implicit': lambda m, x: torch.einsum('zj,bi,ij', m.second.T, x, m.first).T,
    'mm by keyword': lambda m, x: torch.mm(x, mat2=m.weight),
    'multi_dot': lambda m, x: torch.linalg.multi_dot([x, m.first, m.second]),
    'tensordot': lambda m, x: torch.tensordot(x, m.weight, dims=([1], [0])),
    'linear': lambda m, x: nn.functional.linear(x, weight=m.weight.T),
}
SUMS = {
    'addmm': lambda m, x: torch.addmm(m.bias, x, m.weight),
    'addmm by keyword': lambda m, x: torch.addmm(m.bias, mat1=x, mat2=m.weight),
    'linear': lambda m, x: nn.functional.linear(x, m.weight.T, m.bias),
    'linear by keyword': lambda m, x: nn.functional.linear(x, bias=m.bias, weight=m.weight.T),
}


class Code(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code
        self.first, self.second, self.bias = nn.Parameter(FIRST), nn.Parameter(SECOND), nn.Parameter(BIAS)
        self.weight = nn.Parameter(FIRST @ SECOND)

    def forward(self, x):
        return self.code(self, x)


def layer(bias):
    linear = nn.Linear(6, 4, bias=bias).double()
    linear.weight.data = (FIRST @ SECOND).T.clone()
    if bias:
        linear.bias.data = BIAS.clone()
    return nn.Sequential(linear)


def explain(model, types, rule):
    composite = LayerMapComposite([(types, rule)], canonizers=[AttentionCanonizer()])
    with Gradient(model, composite) as attributor:
        return attributor(INPUT.clone(), lambda output: output)[1].detach()


@pytest.mark.parametrize('rule', RULES)
@pytest.mark.parametrize(('code', 'bias'), [(code, False) for code in PRODUCTS.values()] + [
    (code, True) for code in SUMS.values()], ids=[*PRODUCTS, *(f'{name}, bias' for name in SUMS)])
def test_operator_is_explained_as_the_layer(code, bias, rule):
    expected = explain(layer(bias), (nn.Linear,), RULES[rule])
    assert relative(explain(Code(code), (layers.Linear, layers.Einsum), RULES[rule]), expected) <= 1e-6


def test_both_sides():
    '''The weights of ``A x B`` are the products of an entry of `A` and one of `B`.'''
    left = torch.randn(3, 3, dtype=torch.float64)
    codes = (lambda m, x: torch.linalg.multi_dot([left, x, m.first]),
             lambda m, x: torch.einsum('cb,bi,ij->cj', left, x, m.first),
             lambda m, x: torch.einsum('bi,cbij->cj', x, torch.einsum('cb,ij->cbij', left, m.first)))
    maps = [explain(Code(code), (layers.Einsum,), RULES['z plus']) for code in codes]
    assert all(relative(found, maps[-1]) <= 1e-9 for found in maps)


def test_what_cannot_be_seen_as_a_whole_is_refused():
    code = Code(lambda m, x: torch.einsum('...i,ij,jk->...k', x, m.first, m.second))
    with pytest.raises(UnsupportedRule, match='multiply the constants first'):
        explain(code, (layers.Einsum,), RULES['z plus'])
    assert explain(code, (layers.Einsum,), RULES['epsilon']).isfinite().all()
