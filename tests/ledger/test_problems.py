'''Every pasted problem: its ledger closes, and its sinks are named.'''
import pytest
import torch

from cases.problems import PROBLEMS, build
from helpers import COMPOSITES, Snapshot, assert_closed, assert_restored, explained, one_hot, per_sample
from zennit_attn.conservation import audit

TARGETS = {'one_hot': one_hot, 'identity': None}

every_problem = pytest.mark.parametrize('name', PROBLEMS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


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
