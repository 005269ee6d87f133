'''Single lines of attention code against the replica: forward, map, ledger, under CP-LRP and AttnLRP.'''
import oracle
import pytest
import snippets
import torch
from problems import one_hot
from snapshot import Snapshot, assert_restored
from versions import each
from zennit.attribution import Gradient

from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

COMPOSITES = {'cp_lrp': (CPLRP, 'constant'), 'attn_lrp': (AttnLRP, 'taylor')}
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


def relative(left, right):
    return ((left - right).abs().max() / right.abs().max()).item()


def explain(model, composite, input):
    with Gradient(model, COMPOSITES[composite][0]()) as attributor:
        return attributor(input.clone(), one_hot)


def check(snippet, composite, equivalent=None, tolerance=1e-9):
    '''Forward, model, map and ledger of one snippet; ``equivalent`` is what the replica is shown in its place.'''
    model, input = snippets.build(snippet)
    shown, _ = snippets.build(equivalent or snippet)
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, composite, input)
    ledger = audit(model, COMPOSITES[composite][0](), input, one_hot)
    assert_restored(before, model)
    assert relative(output, expected) <= 1e-12
    replica = oracle.explain(shown, input, one_hot, COMPOSITES[composite][1])
    assert relative(relevance, replica) <= 1e-6
    assert (ledger.unaccounted.abs() <= tolerance * ledger.output.abs()).all(), str(ledger)


@every_composite
@pytest.mark.parametrize('name', each(snippets.SNIPPETS, snippets.NEWER))
def test_snippet(name, composite):
    check(snippets.SNIPPETS[name], composite)


@every_composite
@pytest.mark.parametrize('name', snippets.CASTS)
def test_snippet_that_computes_in_float32(name, composite):
    check(snippets.CASTS[name], composite, tolerance=1e-6)


@every_composite
@pytest.mark.parametrize('name', snippets.HIDDEN)
def test_snippet_that_leaves_torch(name, composite):
    snippet, equivalent = snippets.HIDDEN[name]
    check(snippet, composite, equivalent)


@every_composite
@pytest.mark.filterwarnings('ignore:index_reduce.* is in beta')
@pytest.mark.parametrize('name', snippets.WRITTEN_OUT)
def test_snippet_that_the_replica_is_shown_written_out(name, composite):
    snippet, equivalent = snippets.WRITTEN_OUT[name]
    check(snippet, composite, equivalent)


@pytest.mark.parametrize('name', snippets.ODD)
def test_odd_snippet_is_refused_by_name_or_conserves(name):
    '''Never silently wrong: the message names the function and the module, or the ledger closes.'''
    model, input = snippets.build(snippets.ODD[name])
    before = Snapshot(model)
    try:
        ledger = audit(model, CPLRP(), input, one_hot)
    except AttributionError:
        with pytest.raises(AttributionError, match=f'(?s)Host.*({name.split()[0]})'):
            explain(model, 'cp_lrp', input)
    else:
        assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all(), str(ledger)
        assert torch.isfinite(explain(model, 'cp_lrp', input)[1]).all()
    assert_restored(before, model)
