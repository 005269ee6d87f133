'''Targets of the wrong shape, and rules that cannot work where they are put.'''
import pytest
import torch
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, ZPlus

from cases import pairs
from cases.problems import build
from helpers import Snapshot, assert_restored, explain
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP
from zennit_attn.errors import AttributionError, ContextError
from zennit_attn.layers import Einsum, Multiply

from .helpers import audited, every_entry, refused


@pytest.mark.parametrize('target', [
    torch.ones(3, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64),
    lambda output: output.sum(), lambda output: torch.ones_like(output)[:, :1],
])
def test_target_of_the_wrong_shape(target):
    model, input = build('vit_mean')
    before = Snapshot(model)
    shape = tuple((target(torch.ones(3, 5)) if callable(target) else target).shape)
    with pytest.raises((AttributionError, ValueError)) as info:
        audited(model, input, target=target)
    for part in ('attr_output', '3, 5', str(shape)[1:-1]):
        assert part in str(info.value)
    assert_restored(before, model)
    with pytest.raises((AttributionError, ValueError, RuntimeError), match='3, 5'):
        explain(model, input, target=target)
    assert_restored(before, model)


# rules that cannot work where they are put

@every_entry
@pytest.mark.parametrize('rule', [Epsilon, ZPlus])
@pytest.mark.parametrize(('name', 'operator', 'function'), [
    ('three_way_einsum', Einsum, 'einsum'), ('swiglu', Multiply, 'mul|multiply'),
])
def test_stock_rule_on_two_operands(entry, rule, name, operator, function):
    model, input = build(name)
    composite = LayerMapComposite([(operator, rule())], canonizers=[AttentionCanonizer()])
    refused(model, lambda: entry(model, input, lambda: composite), rf'{type(model).__name__}|canonizer_', function,
            rule.__name__, 'operand|carry', 'Uniform|LRPZero|another rule|remove|instead')


def test_gamma_refuses_other_parameters_than_those_of_the_forward():
    other = {'weight': torch.randn(12, 12).double(), 'bias': torch.zeros(12).double()}
    model, input = pairs.build(lambda m, y: torch.func.functional_call(m.fc2, other, (y,)))
    with pytest.raises(ContextError, match='other parameters'):
        explain(model, input, lambda: CPLRP(linear_gamma=.25))
