'''Single lines of attention code against the replica: forward, map, ledger, under CP-LRP and AttnLRP.'''
import pytest

import oracle
from cases import snippets
from helpers import COMPOSITES, Snapshot, assert_closed, assert_restored, explain, one_hot, relative
from versions import each
from zennit_attn.conservation import audit

every_composite = pytest.mark.parametrize('composite', COMPOSITES)


def check(snippet, composite, equivalent=None, tolerance=1e-9):
    '''Forward, model, map and ledger of one snippet; ``equivalent`` is what the replica is shown in its place.'''
    model, input = snippets.build(snippet)
    shown, _ = snippets.build(equivalent or snippet)
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, COMPOSITES[composite][0])
    ledger = audit(model, COMPOSITES[composite][0](), input, one_hot)
    assert_restored(before, model)
    assert relative(output, expected) <= 1e-12
    replica = oracle.explain(shown, input, one_hot, COMPOSITES[composite][1])
    assert relative(relevance, replica) <= 1e-6
    assert_closed(ledger, tolerance)


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
