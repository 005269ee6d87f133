'''Lists and dicts that a forward writes to: the model sees the objects that it was given, and gives them back.'''
import pytest
import torch
from torch import nn

from helpers import relative
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP


class Decoder(nn.Module):
    '''Attention over all tokens so far, which are kept in a cache of the caller's.'''
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(9, 8), nn.Linear(8, 24), nn.Linear(8, 9)

    def forward(self, ids, cache):
        q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
        seen = cache.get('seen', []) if isinstance(cache, dict) else cache
        if seen:
            k, v = torch.cat([seen[0], k], 1), torch.cat([seen[1], v], 1)
        if isinstance(cache, dict):
            cache.update(seen=[k, v])
        else:
            cache[:] = [k, v]
        return self.head((q @ k.mT).softmax(-1) @ v)


def decoder():
    torch.manual_seed(0)
    return Decoder().double().eval(), torch.tensor([[7, 4, 0, 5]])


def last(output):
    return torch.zeros_like(output).index_fill(1, torch.tensor([output.shape[1] - 1]), 1.)


@pytest.mark.parametrize('empty', [list, dict])
@pytest.mark.parametrize('composite', [None, CPLRP, AttnLRP])
def test_tokens_one_by_one(empty, composite):
    '''The outputs, and at each step the relevance of the newest token, are those of plain code.'''
    model, ids = decoder()
    cache, plain = empty(), empty()
    for step in range(4):
        token = ids[:, step:step + 1]
        with torch.no_grad():
            expected = model(token, plain)
        with TokenGradient(model, model.embed, composite and composite()) as attributor:
            output, _ = attributor((token, cache), torch.ones_like)
        assert relative(output.detach(), expected) <= 1e-12
        held = cache['seen'] if empty is dict else cache
        assert held[0].shape[1] == step + 1


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_relevance_goes_back_through_a_cache(composite):
    '''Of the last step, through what the steps before have left, to all tokens: the map of one forward over all.'''
    model, ids = decoder()
    tokens, model.embed = model.embed(ids).detach(), nn.Identity()
    with composite().context(model):
        whole = tokens.clone().requires_grad_()
        output = model(whole, [])
        expected, = torch.autograd.grad(output, whole, last(output.detach()))
        steps, cache = [token.clone().requires_grad_() for token in tokens.split(1, 1)], []
        for step in steps:
            output = model(step, cache)
        found = torch.autograd.grad(output, steps, torch.ones_like(output))
    assert relative(torch.cat(found, 1), expected) <= 1e-6


def test_one_tensor_given_twice_is_one_tensor_inside():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, query, key):
            return self.head(query if query is key else query * 2)
    torch.manual_seed(0)
    model, x = Same().double(), torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with CPLRP().context(model):
        assert torch.equal(model(x, x), model.head(x.detach()))
