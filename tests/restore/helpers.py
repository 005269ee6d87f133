'''A model with all that a context changes, which raises where it is told to.'''
import pytest
import torch
from torch import nn
from zennit.canonizers import Canonizer
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Activation, Linear

from cases.problems import DIM, TOKENS, Head
from cases.problems.vision import ViTAttention
from helpers import explain, one_hot, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit

SHAPE = (3, TOKENS, DIM)


class Boom(Exception):
    pass


class Stop(BaseException):
    '''As KeyboardInterrupt: no Exception.'''


class Fuse(nn.Module):
    '''Raises in its forward or in its backward pass when armed.'''
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)
        self.armed, self.error = None, Boom

    def forward(self, x):
        x = self.fc(torch.relu(x)) * 2
        if self.armed == 'forward':
            raise self.error('forward')
        if self.armed == 'backward':
            x.register_hook(self.explode)
        return x + self.fc.bias

    def explode(self, grad):
        raise self.error('backward')


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.norm = nn.Linear(DIM, DIM), ViTAttention(DIM), nn.LayerNorm(DIM)
        self.fuse, self.head = nn.Sequential(Fuse()), Head()
        self.frozen = nn.Parameter(torch.ones(DIM), requires_grad=False)
        self.register_buffer('scale', torch.ones(DIM))
        self.tied = self.norm

    def forward(self, x):
        x = self.attn(self.embed(x) * self.scale) + self.frozen
        return self.head(self.norm(x + self.fuse(x)))


def fused():
    '''A model with hooks of its own, a frozen parameter, a shared module, mixed training flags.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Fused().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    model.attn.to_out[1].p = 0.
    model.attn.to_out.train()
    model.norm.register_forward_hook(lambda module, args, output: None)
    model.head.register_forward_pre_hook(lambda module, args: None)
    model.extra = {'names': ['a', 'b']}
    return model, input


def rules_inside():
    return LayerMapComposite([(Activation, Pass()), (Linear, Epsilon())], canonizers=[AttentionCanonizer()])


COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'gammas': lambda: CPLRP(linear_gamma=0.05, conv_gamma=0.25),
              'epsilon_plus_flat': stock, 'epsilon': rules_inside}
every_composite = pytest.mark.parametrize('composite', COMPOSITES.values(), ids=COMPOSITES)


def audited(model, input, composite, target=one_hot):
    return audit(model, composite(), input.clone(), target)


every_entry = pytest.mark.parametrize('entry', [explain, audited])


class Failing(Canonizer):
    '''A canonizer that fails after others have been applied.'''
    error = Boom

    def apply(self, root_module):
        raise self.error('apply')

    def register(self):
        pass

    def remove(self):
        pass
