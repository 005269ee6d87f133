'''All pasted problems, relative to a reference: the replica's map, and a ledger without a sink but the reference.'''
import pytest
import torch

from cases.problems import PROBLEMS, build
from helpers import assert_closed, one_hot, per_sample, relative, relevance_of
from secants import Secants
from zennit_attn.composites import Difference
from zennit_attn.conservation import audit

from .helpers import reference_of

#: Problems whose graph is not what the code calls, so that the replica has another map.
OTHERS = {
    'favor_performer': 'a graph contracts three factors two by two',
    'elu_linear_attention': 'a graph contracts three factors two by two',
    'cumsum_linear_attention': 'a graph contracts three factors two by two',
    'three_way_einsum': 'a graph contracts three factors two by two',
    'complex_rotary': 'the quadrature of the replica takes real numbers',
}
#: With normalizers as constants.
OTHERS_NOW = {
    'three_way_einsum': 'a graph contracts three factors two by two',
    'complex_rotary': 'the quadrature of the replica takes real numbers',
    'activations': 'a graph has softsign as a quotient, of which the denominator is a normalizer',
}
#: Problems that decide by the data, or detach what depends on it, so that the reference runs with what is the input's.
DECIDE = {
    'inplace_operators': 'masks what is large',
    'mixture_of_experts': 'routes to experts',
    'masked_pooling': 'detaches a deviation and what rounding takes off',
    'reindex_gather': 'picks by rank',
    'favor_performer': 'detaches the maximum of what it adds a number to',
}


@pytest.mark.parametrize('norm', ['full', 'now'])
@pytest.mark.parametrize('name', PROBLEMS)
def test_map_is_that_of_the_replica(name, norm):
    skipped = OTHERS if norm == 'full' else OTHERS_NOW
    if name in skipped:
        pytest.skip(skipped[name])
    model, input = build(name)
    reference = reference_of(input)
    relevance = one_hot(model(input).detach())
    expected = Secants(model, input, reference, norm == 'now').explain(relevance)
    assert relative(relevance_of(model, input, Difference(reference, norm)), expected) <= 1e-10


@pytest.mark.parametrize('norm', ['full', 'now'])
@pytest.mark.parametrize('name', PROBLEMS)
def test_ledger_has_the_reference_and_nothing_else(name, norm):
    model, input = build(name)
    reference = reference_of(input)
    ledger = audit(model, Difference(reference, norm), input)
    assert_closed(ledger)
    allowed = {('reference', ''), ('stabilizer', '')} | ({('reference', 'normalizers')} if norm == 'now' else set())
    assert {(sink.kind, sink.name) for sink in ledger.sinks} <= allowed
    if norm == 'full' and name not in DECIDE:
        expected = per_sample(model(reference))
        given, = (sink.relevance for sink in ledger.sinks if sink.kind == 'reference')
        torch.testing.assert_close(given, expected, rtol=0., atol=1e-7 * float(ledger.output.abs().max()))


@pytest.mark.parametrize('name', DECIDE)
def test_what_is_decided_by_the_data_is_that_of_the_input(name):
    '''So the problems that are left out above have a reason.'''
    model, input = build(name)
    reference = reference_of(input)
    ledger = audit(model, Difference(reference), input)
    given, = (sink.relevance for sink in ledger.sinks if sink.kind == 'reference')
    expected = per_sample(model(reference))
    assert (given - expected).abs().max() > 1e-7 * ledger.output.abs().max()


@pytest.mark.parametrize('name', OTHERS)
def test_replica_differs_where_it_is_left_out(name):
    model, input = build(name)
    reference = reference_of(input)
    relevance = one_hot(model(input).detach())
    replica = Secants(model, input, reference)
    if name == 'complex_rotary':
        with pytest.raises(RuntimeError, match='complex'):
            replica.explain(relevance)
        return
    expected = replica.explain(relevance)
    assert relative(relevance_of(model, input, Difference(reference)), expected) > 1e-4
