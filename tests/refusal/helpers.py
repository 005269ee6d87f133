'''A model that calls odd code two levels down, and what has to be said about it.'''
import re

import pytest
import torch
from torch import nn

from cases.problems import DIM, TOKENS, Head
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot, stock
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError
from zennit_attn.testing import check_explanation

SHAPE = (3, TOKENS, DIM)


class Host(nn.Module):
    '''A model that calls ``odd`` two levels down.'''
    def __init__(self, odd):
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(DIM, DIM), nn.Module(), Head()
        self.inner.block = nn.Sequential(nn.LayerNorm(DIM), odd)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.inner.block(x))


class Doubler(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Code(nn.Module):
    '''A pasted module that runs ``function``, with a weight of its own.'''
    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(DIM, DIM), function

    def forward(self, x):
        return self.function(self.fc(x))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def forward(self, x):
        return torch.relu(self.fc(x))


def host(odd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Host(odd() if isinstance(odd, type) else odd).double().eval()
        return model, torch.randn(SHAPE, dtype=torch.float64)


def refused(model, call, *patterns, before=None):
    '''``call`` is refused with a message of ours that has all ``patterns``, and leaves no trace.'''
    before = before or Snapshot(model)
    with pytest.raises(AttributionError) as info:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(info.value), flags=re.IGNORECASE | re.DOTALL), (pattern, str(info.value))
    assert_restored(before, model)
    return str(info.value)


def audited(model, input, composite=CPLRP, target=one_hot):
    return audit(model, composite(), input.clone(), target)


def seeded(function, *args):
    '''What a function returns that may draw at random.'''
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return function(*args)


def follows(model, input, composite=CPLRP, draws=False):
    '''An explanation that is complete, and not empty. What draws at random has no forward to compare with.'''
    if draws:
        ledger = audit(model, composite(), input, one_hot)
        assert_closed(ledger)
    else:
        ledger = check_explanation(model, input, composite(), one_hot)
    assert ledger.input.abs().min() > 0


every_entry = pytest.mark.parametrize('entry', [explain, audited])
every_composite = pytest.mark.parametrize('composite', [CPLRP, AttnLRP, stock])
