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
