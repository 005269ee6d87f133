'''Ledgers and maps of the demo.'''
import pytest
import torch

from helpers import assert_closed
from zennit_attn.demo import DEMOS
from zennit_attn.demo.explain import GRADIENT, highest, ledgers, relevance_maps

pytest.importorskip('sklearn')

NAMES = list(DEMOS)


def test_highest_keeps_one_logit():
    logits = torch.tensor([[1., 3., 2.], [-1., -2., -3.]])
    assert highest(logits).tolist() == [[0., 3., 0.], [-1., 0., 0.]]


@pytest.mark.parametrize('name', NAMES)
def test_ledgers_close_and_maps_agree_with_them(name):
    model, samples = DEMOS[name].load(), DEMOS[name].held_out(3).to(torch.float64)
    maps = relevance_maps(model, samples.images)
    for method, ledger in ledgers(model, samples.images).items():
        assert_closed(ledger)
        torch.testing.assert_close(maps[method].sum(dim=(1, 2)), ledger.input, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(ledger.output, model(samples.images).amax(dim=1))


@pytest.mark.parametrize('name', NAMES)
def test_gradient_x_input_is_plain_autograd(name):
    model, samples = DEMOS[name].load(), DEMOS[name].held_out(2).to(torch.float64)
    images = samples.images.clone().requires_grad_()
    gradient, = torch.autograd.grad(model(images).amax(dim=1).sum(), images)
    torch.testing.assert_close(relevance_maps(model, samples.images)[GRADIENT], (gradient * samples.images).sum(dim=1))
