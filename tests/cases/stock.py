'''Zennit's own composites, and two models to judge them by.'''
from functools import partial

import pytest
import torch
from einops import rearrange
from torch import nn
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    LayerMapComposite,
    MixedComposite,
    NameMapComposite,
)
from zennit.rules import Epsilon, Flat, Gamma, Pass, ZPlus
from zennit.types import Activation, Linear

from cases.problems import build, perturb
from cases.problems.issue import LinearAttention
from zennit_attn.canonizers import AttentionCanonizer


class WideCNN(nn.Module):
    '''The linear attention of the issue between convolutions wide enough that no sum has one sign only.'''
    def __init__(self, dim=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, dim, 3), nn.GroupNorm(2, dim), nn.GELU(), nn.AvgPool2d(2))
        self.attn = LinearAttention(dim, heads=2, dim_head=16)
        self.conv, self.act, self.fc = nn.Conv2d(dim, dim, 3), nn.SiLU(), nn.Linear(dim, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.attn(x)
        x = self.act(self.conv(x))
        return self.fc(rearrange(x, 'b c h w -> b c (h w)').mean(dim=-1))


def wide_cnn():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, input = WideCNN().double().eval(), torch.randn(3, 4, 10, 10, dtype=torch.float64).clamp(-3, 3)
    perturb(model, 4)
    return model, input


def name_map(canonizers):
    '''Rules by name, among them one for a module inside the attention block.'''
    return NameMapComposite([
        (('stem.0', 'conv', 'to_patch_embedding.2'), ZPlus()),
        (('attn.to_qkv', 'attn.to_out.0', 'layers.0.0.to_qkv', 'layers.1.1.net.1', 'fc', 'mlp_head'), Epsilon()),
    ], canonizers=canonizers)


def mixed(canonizers):
    return MixedComposite([
        NameMapComposite([(('fc', 'mlp_head'), Gamma(0.1)), (('stem.0', 'to_patch_embedding.2'), Flat())]),
        EpsilonPlus(),
    ], canonizers=canonizers)


def gamma_box(canonizers):
    return EpsilonGammaBox(low=-3., high=3., canonizers=canonizers)


MODELS = {'wide_cnn': wide_cnn, 'vit_mean': partial(build, 'vit_mean')}
STOCK = {
    'epsilon_plus_flat': lambda canonizers: EpsilonPlusFlat(canonizers=canonizers),
    'epsilon_plus': lambda canonizers: EpsilonPlus(canonizers=canonizers),
    'epsilon_alpha2_beta1': lambda canonizers: EpsilonAlpha2Beta1(canonizers=canonizers),
    'epsilon_gamma_box': gamma_box,
    'name_map': name_map,
    'mixed': mixed,
}
every_model = pytest.mark.parametrize('model', MODELS)
every_stock = pytest.mark.parametrize('stock', STOCK)


def attention(stock):
    return STOCK[stock]([AttentionCanonizer()])


def rule_map(rule, canonizers):
    return LayerMapComposite([(Activation, Pass()), (Linear, rule)], canonizers=canonizers)
