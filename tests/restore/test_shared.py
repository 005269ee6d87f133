'''What models share, and what leaves a model while a context is open on it.'''
import itertools

import pytest
import torch
from torch import nn

from helpers import Snapshot, assert_restored, relevance_of
from zennit_attn.composites import CPLRP, AttnLRP

SIZE = 6


def tied(count):
    '''Models that share a weight, and the shared weight.'''
    models = [nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU()).double() for _ in range(count)]
    for model in models[1:]:
        model[0].weight = models[0][0].weight
    return models, models[0][0].weight


@pytest.mark.parametrize('order', list(itertools.permutations(range(3))))
def test_parameter_of_several_models(order):
    '''Frozen while a context is open on any of them, in whatever order these close.'''
    models, weight = tied(3)
    before, composites = [Snapshot(model) for model in models], [CPLRP(), AttnLRP(), CPLRP()]
    for composite, model in zip(composites, models, strict=True):
        composite.register(model)
    for number, place in enumerate(order):
        assert not weight.requires_grad
        composites[place].remove()
        assert weight.requires_grad == (number == 2)
    for snapshot, model in zip(before, models, strict=True):
        assert_restored(snapshot, model)


def test_parameter_that_the_user_has_frozen():
    (first, second), weight = tied(2)
    weight.requires_grad_(False)
    composites = CPLRP(), CPLRP()
    for composite, model in zip(composites, (first, second), strict=True):
        composite.register(model)
    for composite in composites:
        composite.remove()
    assert not weight.requires_grad


def test_tensors_that_are_no_parameters_of_several_models():
    '''An attribute and a buffer that require a gradient, as merged batch norms and what is computed once leave them.'''
    (first, second), _ = tied(2)
    tensor = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    for model in (first, second):
        model[0].note = tensor
        model[0].register_buffer('scale', tensor)
    composites = CPLRP(), CPLRP()
    for composite, model in zip(composites, (first, second), strict=True):
        composite.register(model)
        assert not model[0].note.requires_grad
        assert not model[0].scale.requires_grad
    for composite in composites:
        composite.remove()
    for model in (first, second):
        assert model[0].note is tensor
        assert model[0].scale is tensor
    assert tensor.requires_grad


@pytest.mark.parametrize('change', ['replaced', 'deleted', 'moved'])
def test_module_that_leaves_an_open_model(change):
    '''It is free once the context is closed: in its own place, by itself, and as a part of another model.'''
    (model, other), _ = tied(2)
    input, kept = torch.randn(2, SIZE, dtype=torch.float64), model[0]
    expected, before = relevance_of(model, input), Snapshot(kept)
    with CPLRP().context(model):
        if change == 'deleted':
            del model[0]
        else:
            model[0] = nn.Identity()
        if change == 'moved':
            other[0] = kept
    assert_restored(before, kept)
    assert relevance_of(nn.Sequential(kept), input).isfinite().all()
    assert torch.equal(relevance_of(nn.Sequential(kept, nn.ReLU()), input), expected)
    if change == 'moved':
        assert torch.equal(relevance_of(other, input), expected)
