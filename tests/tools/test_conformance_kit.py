'''The conformance kit sees what it is there for.'''
import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlus
from zennit.core import Composite

from helpers import assert_closed
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.testing import check_explanation


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_qkv, self.fc = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.fc((q @ k.mT).softmax(-1) @ v).mean(1)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Attention().double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('composite', [
    None, AttnLRP(), CPLRP(linear_gamma=.1), EpsilonPlus(canonizers=[AttentionCanonizer()]),
])
def test_a_sound_explanation_passes(model, x, composite):
    ledger = check_explanation(model, x, composite)
    assert_closed(ledger)


def test_an_open_ledger_is_shown(model, x):
    with pytest.raises(AssertionError, match=r'(?s)does not close.*unaccounted'):
        check_explanation(model, x, Composite())


def test_a_changed_forward_is_shown(model, x):
    model.register_forward_hook(lambda module, args, output: output * (2 if args[0].requires_grad else 1))
    with pytest.raises(AssertionError, match='not close'):
        check_explanation(model, x)


def test_what_is_left_behind_is_shown(model, x):
    class Careless(CPLRP):
        def remove(self):
            model.fc.left = True
            super().remove()

    with pytest.raises(AssertionError, match="module 'fc'"):
        check_explanation(model, x, Careless())


class Drain(nn.Module):
    '''Nearly all that the output has is a constant.'''
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.first(x) * 1e-4 + 3.)


def test_drained_is_said():
    torch.manual_seed(0)
    model, input = Drain().double().eval(), torch.randn(2, 4, dtype=torch.float64)
    ledger = check_explanation(model, input)
    assert (ledger.share.abs() < .01).all()
    first, *rest = str(ledger).splitlines()
    assert first.startswith('Little reaches the input')
    assert 'constant 3.0 (add of Drain)' in first
    assert rest[-1].strip().startswith('unaccounted')
    with pytest.raises(AssertionError, match='less than 10% of the relevance reaches the input'):
        check_explanation(model, input, min_share=.1)


def test_nothing_is_said_of_a_map_that_is_there():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)).double()
    ledger = check_explanation(model, torch.randn(2, 4, dtype=torch.float64), min_share=.9)
    assert ledger.drained() is None
    assert 'Little' not in str(ledger)
