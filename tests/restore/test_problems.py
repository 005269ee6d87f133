'''Every pasted problem: same forward, model as before, and one explanation after another.'''
import pytest
import torch
from zennit.attribution import Gradient

from cases.problems import PROBLEMS, build
from helpers import COMPOSITES, Snapshot, assert_restored, equal_maps, explained, one_hot, relative

every_problem = pytest.mark.parametrize('name', PROBLEMS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


@every_problem
@every_composite
def test_forward_is_unchanged_and_model_restored(name, composite):
    model, input = build(name)
    expected, before = model(input), Snapshot(model)
    with Gradient(model, COMPOSITES[composite][0]()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    assert relative(output, expected) <= 1e-12
    assert relevance.shape == input.shape
    assert_restored(before, model)
    assert equal_maps(model(input), expected)


@every_composite
def test_several_explanations_in_one_context(composite):
    '''Neither inputs, batch sizes nor targets of earlier calls leave a trace in later ones.'''
    model, input = build('vit_mean')
    expected = explained('vit_mean', composite)[1]
    with Gradient(model, COMPOSITES[composite][0]()) as attributor:
        attributor(input[:1] * 3)
        attributor(torch.randn(5, *input.shape[1:], dtype=input.dtype), one_hot)
        assert relative(attributor(input.clone(), one_hot)[1], expected) <= 1e-12
        assert relative(attributor(input.clone(), one_hot(model(input.clone().requires_grad_())))[1], expected) <= 1e-12
