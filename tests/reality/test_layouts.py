'''Strides, memory formats, and batches and sequences of any size.'''
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient

from cases.problems import DIM, PROBLEMS, TOKENS, build
from helpers import one_hot, relevance_of, stock
from zennit_attn.composites import AttnLRP
from zennit_attn.conservation import audit

from .helpers import Model, check, close, data, every_composite, explain_call, fresh


@every_composite
@pytest.mark.parametrize('layout', [
    lambda x: x.mT.contiguous().mT, lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x[:1].expand(3, -1, -1)])
def test_strides(make, layout):
    x = layout(data())
    wanted = relevance_of(fresh(), x.contiguous().clone(), make)
    check(fresh(), make, wanted, x)
    leaf = x.detach().requires_grad_()
    close(explain_call(fresh(), make, lambda model: model(leaf), leaf)[0], wanted)


@every_composite
@pytest.mark.parametrize('name', ['linear_attention_cnn', 'vit_cls'])
def test_channels_last(make, name):
    model, input = build(name)
    wanted = relevance_of(model, input, make)
    check(model, make, wanted, input.contiguous(memory_format=torch.channels_last), 1e-9)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    check(model, make, wanted, input.contiguous(memory_format=torch.channels_last), 1e-9)


class Averaged(Model):
    '''For any number of tokens.'''
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(DIM, 4)

    def forward(self, x):
        return super().forward(x).mean(1)


@every_composite
def test_sizes(make):
    model = fresh(Averaged)
    whole = relevance_of(model, data(), make)
    for index in range(3):
        close(relevance_of(model, data()[index:index + 1], make, lambda output, index=index: F.one_hot(
            torch.tensor([index]), 4).to(output)), whole[index:index + 1], 1e-9)
    assert relevance_of(model, data()[:0], make).shape == (0, TOKENS, DIM)
    assert audit(model, make(), data()[:0], one_hot).unaccounted.shape == (0,)
    single = data()[:, :1]
    check(model, make, relevance_of(model, single, make), single)


@pytest.mark.parametrize('name', PROBLEMS)
@pytest.mark.parametrize('make', [AttnLRP, stock])
def test_samples_do_not_mix(name, make):
    '''As map/test_problems.py has it for CPLRP: noise in the other samples does not change the relevance of one.'''
    model, input = build(name)
    noisy = input.clone()
    noisy[1:] += torch.randn(noisy[1:].shape, dtype=noisy.dtype, generator=torch.Generator().manual_seed(3))
    with Gradient(model, make()) as attributor:
        clean, other = (attributor(each.clone(), one_hot)[1] for each in (input, noisy))
    close(other[:1], clean[:1], 1e-9)
    assert (other[1:] - clean[1:]).abs().max() > 1e-6 * clean.abs().max()
