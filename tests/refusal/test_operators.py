'''Functions without a rule, and forms of functions that are not served.'''
import pytest
import torch
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat

from cases import pairs, snippets
from cases.problems import TOKENS
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, explain, one_hot, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

from .helpers import Code, audited, every_composite, every_entry, host, refused


def matrix_exponential(x):
    square = x[..., :TOKENS]
    return x + torch.linalg.matrix_exp(square * 0.1).sum(-1, keepdim=True)


@every_entry
@every_composite
def test_unknown_operator(entry, composite):
    model, input = host(Code(matrix_exponential))
    message = refused(model, lambda: entry(model, input, composite),
                      r'inner\.block\.1', 'matrix_exp', r"unknown\s*=\s*'gradient'", r'test_operators\.py:\d+')
    assert 'torch.linalg.matrix_exp(square * 0.1)' in message


@every_composite
def test_unknown_operator_by_its_gradient(composite):
    '''With ``unknown='gradient'`` autograd serves the function, and the ledger still closes.'''
    model, input = host(Code(matrix_exponential))
    canonizers = [AttentionCanonizer(unknown='gradient')]
    make = EpsilonPlusFlat if composite is stock else composite
    output, relevance = explain(model, input, lambda: make(canonizers=canonizers))
    assert torch.allclose(output, model(input), rtol=1e-12)
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0


def test_unknown_operator_away_from_the_relevance():
    '''A function without a rule is no matter where its operands carry none.'''
    model, input = host(Code(lambda x: x + torch.linalg.matrix_exp(x.detach()[..., :TOKENS] * 0.1).mean()))
    ledger = audited(model, input)
    assert_closed(ledger)


def test_unknown_value_of_unknown():
    with pytest.raises(ValueError, match='unknown'):
        AttentionCanonizer(unknown='ignore')


@every_composite
def test_next_explanation_after_a_refusal_is_right(composite):
    '''A refusal in an open context leaves the context usable, and the model explainable after it.'''
    odd = Code(torch.relu)
    model, input = host(odd)
    expected, before = explain(model, input, composite)[1], Snapshot(model)
    with Gradient(model, composite()) as attributor:
        odd.function = matrix_exponential
        with pytest.raises(AttributionError, match='matrix_exp'):
            attributor(input.clone(), one_hot)
        odd.function = torch.relu
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    assert_restored(before, model)
    assert equal_maps(explain(model, input, composite)[1], expected)


def expanded(y):
    return y.sum(1, keepdim=True).expand(y.shape)


@pytest.mark.parametrize(('code', 'message'), [
    (lambda m, y: torch.exp(y, out=y * 1.), 'out='),
    (lambda m, y: torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (6, 2))) ** 2).flatten(-2), 'complex'),
    (lambda m, y: (lambda z: (z.__setitem__((slice(None), (0, 0)), y[:, :2]), z)[1])(y.clone()), 'more than once'),
])
def test_refused_by_name(code, message):
    model, input = pairs.build(code)
    with pytest.raises(AttributionError, match=message):
        explain(model, input, CPLRP)


@pytest.mark.parametrize('name', snippets.ODD)
def test_odd_snippet_is_refused_by_name_or_conserves(name):
    '''Never silently wrong: the message names the function and the module, or the ledger closes.'''
    model, input = snippets.build(snippets.ODD[name])
    before = Snapshot(model)
    try:
        ledger = audit(model, CPLRP(), input, one_hot)
    except AttributionError:
        with pytest.raises(AttributionError, match=f'(?s)Host.*({name.split()[0]})'):
            explain(model, input)
    else:
        assert_closed(ledger)
        assert torch.isfinite(explain(model, input)[1]).all()
    assert_restored(before, model)
