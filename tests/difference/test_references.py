'''References: what they may be, tokens, what is refused, and that nothing is left behind.'''
import gc
import weakref

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES

from helpers import assert_closed, explain, relative, relevance_of
from zennit_attn import TokenGradient
from zennit_attn.composites import Difference
from zennit_attn.conservation import audit
from zennit_attn.errors import ContextError, NoRelevance, UnsupportedRule
from zennit_attn.heatmap import relevance_at
from zennit_attn.references import blank_tokens
from zennit_attn.rules import Secant

from .helpers import Function, reference_of


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.embed(ids)
        y = (x @ self.fc(x).mT).softmax(-1) @ x
        return self.out((x + y).mean(1))


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return Tokens().double().eval(), torch.randint(1, 20, (2, 6))


@pytest.fixture
def function():
    input = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Function(lambda x: (x @ x.mT).softmax(-1) @ x), input


def test_reference_may_be_a_number_a_tensor_or_a_function(function):
    model, input = function
    mean = input.mean((0, 1))
    expected = relevance_of(model, input, Difference(mean.expand_as(input).clone()))
    for reference in (mean, lambda x: x.mean((0, 1)), mean.float().double()):
        assert relative(relevance_of(model, input, Difference(reference)), expected) <= 1e-6
    half = relevance_of(model, input, Difference(torch.full_like(input, .5)))
    assert torch.equal(relevance_of(model, input, Difference(.5)), half)
    assert torch.equal(relevance_of(model, input, Difference(lambda x: .5)), half)


def test_reference_belongs_to_each_sample(function):
    model, input = function
    reference = reference_of(input)
    together = relevance_of(model, input, Difference(reference), torch.ones_like)
    for i in range(len(input)):
        alone = relevance_of(model, input[i:i + 1], Difference(reference[i:i + 1]), torch.ones_like)
        assert relative(together[i:i + 1], alone) <= 1e-12


def test_reference_of_tokens_goes_through_the_embedding(tokens):
    model, ids = tokens
    blank = ids.clone()
    blank[:, 1:] = 0

    def keep_first(ids):
        return torch.cat([ids[:, :1], torch.zeros_like(ids[:, 1:])], 1)
    results = []
    for reference in (blank, keep_first, model.embed(blank).detach()):
        with TokenGradient(model, model.embed, Difference(reference)) as attributor:
            results.append(attributor(ids, torch.ones_like)[1])
    assert relative(results[1], results[0]) == 0. == relative(results[2], results[0])
    assert not results[0][:, 0].any()
    total = ((model(ids) - model(blank)) / model(ids)).sum(1)
    torch.testing.assert_close(results[0].flatten(1).sum(1), total, rtol=1e-6, atol=1e-8)
    assert_closed(audit(model, Difference(keep_first), ids, embedding=model.embed))


def test_blank_tokens_keep_what_is_no_content():
    ids = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 7, 2, 0]])
    assert blank_tokens(9)(ids).tolist() == [[1, 9, 9, 9, 9], [1, 9, 9, 9, 9]]
    assert blank_tokens(9, keep=(), keep_ids=(0, 1, 2))(ids).tolist() == [[1, 9, 9, 9, 2], [1, 9, 9, 2, 0]]
    assert blank_tokens(9, keep=(0, -1), keep_ids=(7,))(ids).tolist() == [[1, 9, 9, 7, 2], [1, 9, 7, 9, 0]]
    assert blank_tokens(9, keep=ids > 6)(ids).tolist() == [[9, 9, 9, 7, 9], [9, 8, 7, 9, 9]]
    with pytest.raises(IndexError):
        blank_tokens(9, keep=(7,))(ids)


def test_relevance_inside_is_that_of_differences(tokens):
    '''What passes the layers adds up to the same.'''
    model, ids = tokens
    found = relevance_at(
        model, Difference(torch.zeros_like(ids)), ids, 'out', at='input', embedding=model.embed)
    total = (model(ids) - model(torch.zeros_like(ids))).sum(1)
    for relevance in found.values():
        torch.testing.assert_close(relevance.flatten(1).sum(1), total, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('reference', [torch.zeros(7), 'grey', lambda x: x[..., :2], None])
def test_bad_references_are_refused(function, reference):
    model, input = function
    with pytest.raises(NoRelevance, match=r'the reference of Function .* broadcasts'):
        relevance_of(model, input, Difference(reference))
    assert not any(name.startswith('lrp') for name in vars(input))
    relevance_of(model, input, Difference(0.))


def test_norm_is_checked():
    with pytest.raises(ValueError, match="'full' or 'now'"):
        Difference(norm='later')


def test_rule_is_one_of_the_model_as_a_whole(function):
    from zennit.composites import NameMapComposite

    from zennit_attn import AttentionCanonizer
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    input = torch.randn(2, 4, dtype=torch.float64)
    composite = NameMapComposite([(['1'], Secant(0.))], canonizers=[AttentionCanonizer()])
    with pytest.raises(UnsupportedRule, match="module '1' has the rule Secant"):
        relevance_of(model, input, composite)
    plain = NameMapComposite([(['1'], Secant(0.))])
    with pytest.raises(ContextError, match='Difference'):
        relevance_of(model, input, plain)


def test_composite_is_one_of_zennit():
    assert COMPOSITES['difference'] is Difference


def test_two_inputs_ask_why_answers_differ(function):
    '''With another input as the reference, relevance changes sign when the two change places.'''
    model, input = function
    other = reference_of(input)
    there = relevance_of(model, input, Difference(other, stabilizer=1e-15), lambda output: output)
    back = relevance_of(model, other, Difference(input, stabilizer=1e-15), lambda output: output)
    assert relative(there, -back) <= 1e-9


def test_nothing_is_left_behind(function):
    model, input = function
    reference = reference_of(input)
    seen = weakref.ref(reference)
    with Gradient(model, Difference(lambda x, reference=reference: reference)) as attributor:
        attributor(input, torch.ones_like)
    explain(model, input)  # another composite, which knows no reference
    del reference, attributor
    gc.collect()
    assert seen() is None
    assert not model._forward_hooks
    assert 'forward' not in vars(model)


def test_padding_at_the_left_is_kept_and_does_not_count():
    ids = torch.tensor([[0, 0, 5, 6, 7], [4, 0, 6, 7, 8]])
    kept = blank_tokens(9, keep=(0, 1), padding=0)(ids)
    assert kept.tolist() == [[0, 0, 5, 6, 9], [4, 0, 9, 9, 9]]
    assert blank_tokens(9, keep=(-1,), padding=0)(ids).tolist() == [[0, 0, 9, 9, 7], [9, 9, 9, 9, 8]]
