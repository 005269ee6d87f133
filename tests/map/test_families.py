'''The attention families: ours and the original have one map, tokens that of the embedding, later ones nothing.'''
import pytest
import torch

from cases.families import LENGTH, PROBLEMS, Call, build, every_composite, explain_largest
from helpers import Snapshot, assert_restored, largest, relative
from zennit_attn.attribution import TokenGradient

PAIRS = sorted({name for name, _ in PROBLEMS} & {name for name, origin in PROBLEMS if origin == 'reference'}
               & {name for name, origin in PROBLEMS if origin != 'reference'})


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.zoo] if (name, 'published') in PROBLEMS else []) for name in PAIRS])
@every_composite
def test_reference_and_original_have_the_same_map(name, composite):
    '''With the same weights, and whatever the code looks like.'''
    original, input = build(name, next(origin for key, origin in PROBLEMS if key == name and origin != 'reference'))
    reference, _ = build(name, 'reference')
    reference.load_state_dict(original.state_dict())
    expected = explain_largest(original, input, composite)[1]
    assert relative(explain_largest(reference, input, composite)[1], expected) <= 1e-8


@pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=marks, id='-'.join(key))
    for key, (_, _, marks) in PROBLEMS.items() if key[0].startswith('lm_')])
@every_composite
def test_language_models_from_their_tokens(name, origin, composite):
    model, _ = build(name, origin)
    tokens, before = model.model, Snapshot(model)
    if model.kwargs:
        tokens = Call(tokens, lambda inner, ids: inner(ids, **model.kwargs))
    with TokenGradient(tokens, model.model.token_emb, composite()) as attributor:
        output, relevance = attributor(model.ids, largest)
    assert_restored(before, model)
    expected_output, expected = explain_largest(model, model.model.token_emb(model.ids).detach(), composite)
    assert relative(output.detach(), expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-9


CAUSAL = [key for key in PROBLEMS if 'causal' in key[0] and 'cross' not in key[0] or key[0].startswith('fast_weights')]


@pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=PROBLEMS[key][2], id='-'.join(key)) for key in CAUSAL])
@every_composite
@pytest.mark.parametrize('token', [0, 4, LENGTH - 1])
def test_later_tokens_get_exactly_nothing(name, origin, composite, token):
    model, input = build(name, origin)
    only = (torch.arange(LENGTH) == token)[:, None]
    relevance = explain_largest(model, input, composite, lambda output: output.detach() * only)[1].abs().sum(-1)
    assert (relevance[:, token + 1:] == 0).all()
    # Features of fast weights are sparse, so that some earlier keys are orthogonal to a query; masks hide tokens.
    sparse = name.startswith('fast_weights') or 'masked' in name
    assert (relevance[:, :token + 1] > 0).double().mean() > (0.4 if sparse else 0.999)
