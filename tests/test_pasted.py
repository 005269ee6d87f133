'''Every pasted problem under our composites: forward, map, ledger, independence of the samples, precision.'''
from functools import cache

import pytest
import torch
from zennit.attribution import Gradient

import oracle
from cases.problems import PROBLEMS, build
from helpers import COMPOSITES, Snapshot, assert_closed, assert_restored, equal_maps, one_hot, per_sample, relative
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

TARGETS = {'one_hot': one_hot, 'identity': None}

every_problem = pytest.mark.parametrize('name', PROBLEMS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


@cache
def graph_of(name):
    '''The traced graph of a problem for the replica.'''
    return oracle.trace(*build(name))


@cache
def explained(name, composite):
    '''Output and relevance of the one-hot target.'''
    model, input = build(name)
    with Gradient(model, COMPOSITES[composite][0]()) as attributor:
        output, relevance = attributor(input, one_hot)
    return output.detach(), relevance.detach()


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
@every_composite
@pytest.mark.parametrize('target', TARGETS)
def test_ledger_is_closed(name, composite, target):
    model, input = build(name)
    before = Snapshot(model)
    ledger = audit(model, COMPOSITES[composite][0](), input, TARGETS[target])
    assert_restored(before, model)
    assert ledger.unaccounted.shape == ledger.output.shape == ledger.input.shape == (len(input),)
    assert_closed(ledger)

    expected = model(input) if TARGETS[target] is None else TARGETS[target](model(input))
    assert torch.allclose(ledger.output, per_sample(expected), rtol=1e-12)
    assert all(sink.relevance.shape == (len(input),) for sink in ledger.sinks)
    found = ledger.input + sum(sink.relevance for sink in ledger.sinks)
    assert ((found - ledger.output).abs() <= 1e-9 * ledger.output.abs()).all()
    assert torch.allclose(found + ledger.unaccounted, ledger.output, rtol=1e-12, atol=1e-12)
    if target == 'one_hot':
        relevance = explained(name, composite)[1]
        scale = relevance.abs().flatten(1).sum(1)
        assert ((ledger.input - per_sample(relevance)).abs() <= 1e-12 * scale).all()


@every_problem
def test_samples_do_not_mix(name):
    model, input = build(name)
    target = one_hot(model(input))
    relevance = explained(name, 'cp_lrp')[1]
    with Gradient(model, CPLRP()) as attributor:
        for index in range(len(input)):
            alone = attributor(input[index:index + 1].clone(), target[index:index + 1])[1]
            assert relative(alone, relevance[index:index + 1]) <= 1e-9


@every_composite
def test_sinks_are_named(composite):
    '''Biases, positions and the class token of a ViT are told apart, each by its own formula.'''
    model, input = build('vit_cls')
    ledger = audit(model, COMPOSITES[composite][0](), input, one_hot)
    names = {sink.name for sink in ledger.sinks} | {f'{sink.module}.{sink.name}' for sink in ledger.sinks}
    for wanted in ('pos_embedding', 'cls_token'):
        assert any(wanted in name for name in names), str(ledger)
    head = [sink for sink in ledger.sinks if 'mlp_head' in sink.module]
    bias = (model.mlp_head.bias * one_hot(model(input)) / model(input)).sum(1)
    assert head
    assert torch.allclose(sum(sink.relevance for sink in head), bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 0.2), (torch.float32, 1e-3)])
@every_composite
def test_low_precision_map_is_close(dtype, tolerance, composite):
    model, input = build('linear_attention_cnn')
    expected = explained('linear_attention_cnn', composite)[1]
    with Gradient(model.to(dtype), COMPOSITES[composite][0]()) as attributor:
        _, relevance = attributor(input.to(dtype), one_hot)
    assert relevance.dtype == dtype
    assert (relevance.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize('where', ['root', 'root before', 'inside', 'inside before'])
def test_hooks_of_the_user_that_change_values(where):
    '''What the user's own hooks compute is explained too, or refused; never left out in silence.'''
    model, input = build('swiglu')
    module = model.w2 if where.startswith('inside') else model
    if where.endswith('before'):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 0.5,))
    else:
        module.register_forward_hook(lambda module, args, output: output * 2 + 0.5)
    expected = model(input)
    try:
        ledger = audit(model, CPLRP(), input, one_hot)
    except AttributionError:
        with pytest.raises(AttributionError, match='hook'), Gradient(model, CPLRP()) as attributor:
            attributor(input.clone(), one_hot)
        return
    with Gradient(model, CPLRP()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, oracle.explain(model, input, one_hot)) <= 1e-6
    assert_closed(ledger)


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
