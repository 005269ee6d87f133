'''Audits, maps and attributors compare the forward in a context with that without.'''
import random
import warnings

import pytest
import torch
from torch import nn

from helpers import Snapshot, assert_restored, relative
from zennit_attn import TokenGradient, audit, check_explanation
from zennit_attn.composites import CPLRP
from zennit_attn.errors import ChangedForward
from zennit_attn.heatmap import relevance_at
from zennit_attn.plain import PlainForward

# Dropout is what draws random numbers here.
pytestmark = pytest.mark.filterwarnings('ignore:Model is in training mode')


class Model(nn.Module):
    '''A token model, or one of vectors; code of a test is its forward.'''
    def __init__(self, code):
        super().__init__()
        self.embed, self.fc, self.drop, self.code = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Dropout(), code
        self.register_buffer('counted', torch.zeros(()))
        self.calls, self.kept = 0, []

    def forward(self, x):
        x = self.embed(x) if not x.is_floating_point() else x
        return self.code(self, self.fc(x)).sum(1)


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
VECTORS = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def built(code):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(code).double()


ENTRIES = {
    'audit': lambda model, **options: audit(model, CPLRP(), VECTORS, **options),
    'relevance_at': lambda model, **options: relevance_at(model, CPLRP(), VECTORS, 'fc', **options),
    'tokens': lambda model, **options: TokenGradient(model, model.embed, CPLRP(), **options)(IDS),
}
every_entry = pytest.mark.parametrize('entry', ENTRIES.values(), ids=ENTRIES)


def on_gradients(model, x):
    '''What a context does change.'''
    return x * (2 if model.fc.weight.requires_grad else 3)


@every_entry
def test_a_forward_that_differs_is_refused(entry):
    model = built(on_gradients)
    before = Snapshot(model)
    with pytest.raises(ChangedForward, match=r'Model computes something else.*differs by up to'):
        entry(model)
    assert_restored(before, model)
    entry(model, compare=False)


def test_the_conformance_kit_refuses_it():
    with pytest.raises(AssertionError, match='not close to that without a context'):
        check_explanation(built(on_gradients), VECTORS)


def counting(model, x):
    '''State of all sorts that a forward changes.'''
    model.calls += 1
    model.kept.append(x)
    model.counted += 1
    model.new = x
    return x * model.calls * len(model.kept) * model.counted


def drawing(model, x):
    '''Draws of torch and of Python, that of dropout among them.'''
    return model.drop(x) * random.random() + torch.rand(()).double() * x


@every_entry
@pytest.mark.parametrize('code', [counting, drawing])
def test_state_and_random_numbers_are_given_back(entry, code):
    '''The explained forward starts from where the plain one did, so the map is that without a comparison.'''
    found = []
    for compare in (True, False):
        torch.manual_seed(0)
        random.seed(0)
        model = built(code)
        result = entry(model, compare=compare)
        assert model.calls == (code is counting)
        found.append(result[0] if isinstance(result, tuple) else result['fc'] if isinstance(result, dict) else (
            result.output))
    assert torch.equal(*found)


@every_entry
def test_what_never_repeats_is_not_refused(entry):
    count = iter(range(1, 100))
    with pytest.warns(UserWarning, match='two forwards of Model on the same input differ'):
        entry(built(lambda model, x: x * next(count)))


def test_a_gradient_that_torch_lacks_is_no_difference():
    code = nn.functional.batch_norm
    model = built(lambda model, x: code(x.mT, x.mean((0, 1)).detach(), x.var((0, 1)), None, None).mT)
    assert audit(model, CPLRP(), VECTORS).output.isfinite().all()


def test_compared_once_for_each_context():
    model = built(lambda model, x: calls.append(torch.is_grad_enabled()) or x)
    calls = []
    with TokenGradient(model, model.embed, CPLRP()) as attributor:
        first, second = attributor(IDS), attributor(IDS)
        assert len(calls) == 3
        assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 3
    assert torch.equal(first[1], second[1])
    attributor(IDS)
    assert len(calls) == 5


def test_input_that_a_forward_writes_to():
    '''A cache is filled once.'''
    class Cached(nn.Module):
        def forward(self, x, cache):
            cache.append(x)
            return torch.cat(cache, 1).sum(1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ledger = audit(Cached(), CPLRP(), {'x': VECTORS, 'cache': []})
    assert relative(ledger.output, VECTORS.sum((1, 2))) <= 1e-12


def test_places_that_are_not_finite():
    '''Logits that are masked with minus infinity are equal to themselves.'''
    masked = torch.tensor([[0., -torch.inf], [1., 2.]])
    forward = PlainForward(nn.Identity(), lambda input: input, masked, False)
    assert forward.difference(masked) is None
    assert 'at (1, 0)' in forward.difference(masked + torch.tensor([[0., 0.], [1., 0.]]))
    assert forward.difference(torch.zeros(2, 2)) is not None
    assert 'shape' in forward.difference(torch.zeros(2))
