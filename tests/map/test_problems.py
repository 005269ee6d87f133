'''Every pasted problem: the replica's map, for each sample alone, and in low precision.'''
from functools import cache

import pytest
import torch
from zennit.attribution import Gradient

import oracle
from cases.problems import PROBLEMS, build
from helpers import COMPOSITES, explained, one_hot, relative
from zennit_attn.composites import CPLRP

every_problem = pytest.mark.parametrize('name', PROBLEMS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


@cache
def graph_of(name):
    '''The traced graph of a problem for the replica.'''
    return oracle.trace(*build(name))


@every_problem
@every_composite
def test_map_equals_replica(name, composite):
    model, input = build(name)
    if name == 'three_way_einsum':
        expected = oracle.twin_relevance(name, model, input, one_hot)
    else:
        expected = oracle.Replica(graph_of(name), input, COMPOSITES[composite][1]).relevance(one_hot)
    assert relative(explained(name, composite)[1], expected) <= 1e-6


@pytest.mark.parametrize('name', set(oracle.TWINS) - {'three_way_einsum'})
def test_replica_equals_handwritten_twin(name):
    model, input = build(name)
    expected = oracle.twin_relevance(name, model, input, one_hot)
    assert relative(oracle.explain(model, input, one_hot), expected) <= 1e-12


@every_problem
def test_samples_do_not_mix(name):
    model, input = build(name)
    target = one_hot(model(input))
    relevance = explained(name, 'cp_lrp')[1]
    with Gradient(model, CPLRP()) as attributor:
        for index in range(len(input)):
            alone = attributor(input[index:index + 1].clone(), target[index:index + 1])[1]
            assert relative(alone, relevance[index:index + 1]) <= 1e-9


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.2), (torch.float32, 1e-3)])
@every_composite
def test_low_precision_map_is_close(dtype, tolerance, composite):
    model, input = build('linear_attention_cnn')
    expected = explained('linear_attention_cnn', composite)[1]
    with Gradient(model.to(dtype), COMPOSITES[composite][0]()) as attributor:
        _, relevance = attributor(input.to(dtype), one_hot)
    assert relevance.dtype == dtype
    assert (relevance.double() - expected).norm() <= tolerance * expected.norm()
