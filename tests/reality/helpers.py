'''A model as people have it, the same with other code around it, and what has to hold for both.'''
from functools import cache

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from cases.problems import DIM, TOKENS, Head
from cases.problems.vision import ViTAttention
from helpers import Snapshot, assert_closed, assert_restored, epsilon, one_hot, relevance_of, stock
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

SHAPE = (3, TOKENS, DIM)
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'epsilon': epsilon, 'stock': stock}
every_composite = pytest.mark.parametrize('make', COMPOSITES.values(), ids=COMPOSITES)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.norm, self.head = nn.Linear(DIM, DIM), ViTAttention(DIM), nn.LayerNorm(DIM), Head()

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.norm(x + self.attn(x)))


class Around(nn.Module):
    '''A model whose forward is a function of a module and the input.'''
    def __init__(self, function, body=None):
        super().__init__()
        self.body, self.function = body or fresh(), function

    def forward(self, *args, **kwargs):
        return self.function(self.body, *args, **kwargs)


def fresh(cls=Model, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(*args).double().eval()


def data(seed=1, shape=SHAPE):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def expected(make):
    '''The map of the plain model.'''
    return relevance_of(fresh(), data(), make)


def explain_call(model, make, call, *leaves):
    '''Relevance of leaves in a call of the model with anything.'''
    with make().context(model):
        output = call(model)
        return torch.autograd.grad(output, leaves, one_hot(output))


def close(actual, wanted, tolerance=1e-12):
    assert actual.shape == wanted.shape
    assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


def check(model, make, wanted, input=None, tolerance=1e-12):
    '''Forward equal, map as wanted, ledger closed, model restored.'''
    input = data() if input is None else input
    plain, before = model(input).detach(), Snapshot(model)
    with Gradient(model, make()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    assert_restored(before, model)
    close(output.detach(), plain)
    close(relevance, wanted, tolerance)
    ledger = audit(model, make(), input, one_hot)
    assert_closed(ledger)
    assert_restored(before, model)


def refused(call, *words, model=None):
    '''Refused by an error of ours that has all words; the model is as before.'''
    before = model and Snapshot(model)
    with pytest.raises(AttributionError) as info:
        call()
    message = str(info.value)
    del info  # an error that is kept keeps checkpointing switched on, before torch 2.13
    assert all(word in message for word in words), message
    if model is not None:
        assert_restored(before, model)
