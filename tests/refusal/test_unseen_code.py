'''Code that cannot be seen: functions of autograd, TorchScript.'''
import pytest
import torch
from torch import nn

from cases.problems import DIM
from helpers import explain
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP

from .helpers import SHAPE, Code, Doubler, Plain, every_composite, every_entry, host, refused


@every_entry
@every_composite
def test_custom_autograd_function(entry, composite):
    model, input = host(Code(Doubler.apply))
    refused(model, lambda: entry(model, input, composite),
            r'inner\.block\.1', 'Doubler', r"unknown\s*=\s*'gradient'|canonizer|rule")


def test_custom_autograd_function_used_later():
    '''The unseen tensor is found also when it is only passed on, stored, or is the output itself.'''
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(DIM, 4)

        def forward(self, x):
            return Doubler.apply(self.fc(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Last().double(), torch.randn(3, DIM).double()
    refused(model, lambda: explain(model, input), 'Last', 'Doubler')


@every_entry
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('compile', [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(SHAPE))])
def test_torchscript_submodule(entry, compile):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = host(compile(Plain()))
    refused(model, lambda: entry(model, input), r'inner\.block\.1', 'TorchScript|jit', 'use the module')


@torch.jit.script
def swish_(x):
    return x.mul_(x.sigmoid())


@every_entry
@pytest.mark.parametrize('code', [lambda x: swish_(x), lambda x: swish_(x[:, 1:]), lambda x: swish_(x.sigmoid_())])
def test_torchscript_in_place(entry, code):
    '''Refused where it is written, though C++ calls the engine; the plain gradient can be accepted all the same.'''
    model, input = host(Code(lambda x: x + code(x * 1.).sum(1, keepdim=True)))
    refused(model, lambda: entry(model, input),
            r'inner\.block\.1', 'TorchScript', 'in place', r'test_unseen_code\.py:\d+')
    accepting = CPLRP(canonizers=[AttentionCanonizer(unknown='gradient')])
    assert explain(model, input, accepting)[1].isfinite().all()
