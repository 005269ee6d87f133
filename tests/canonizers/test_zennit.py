'''Zennit's own canonizers beside ours.'''
from copy import deepcopy

import pytest
import torch
import torchvision
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import ResNetCanonizer

from cases.problems import perturb
from cases.problems.issue import LinearAttention
from cases.stock import STOCK
from helpers import Snapshot, assert_closed, changes, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit


@pytest.mark.parametrize('stock', ['epsilon_plus_flat', 'epsilon_gamma_box', 'epsilon_alpha2_beta1'])
def test_resnet_canonizer_combines(stock):
    torch.manual_seed(10)
    model, input = torchvision.models.resnet18(num_classes=5).double().eval(), torch.randn(2, 3, 32, 32).double()
    perturb(model, 11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_()
    twin = deepcopy(model)
    before, twin_before = Snapshot(model), Snapshot(twin)
    expected_output, expected = explain(twin, input, STOCK[stock]([ResNetCanonizer()]))
    output, relevance = explain(model, input, STOCK[stock]([ResNetCanonizer(), AttentionCanonizer()]))
    assert relative(output, expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-9
    assert changes(before, model) <= changes(twin_before, twin)


class NormedAttention(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3), nn.BatchNorm2d(dim), nn.ReLU())
        self.attn, self.fc = LinearAttention(dim, 2, 4), nn.Linear(dim, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.attn(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize('make', [STOCK['epsilon_plus_flat'], lambda canonizers: CPLRP(canonizers=canonizers)])
def test_merged_batch_norm_combines(make):
    torch.manual_seed(12)
    model, input = NormedAttention().double().eval(), torch.randn(3, 3, 8, 8).double()
    perturb(model, 13)
    merged, twin = deepcopy(model), deepcopy(model)
    before, twin_before = Snapshot(model), Snapshot(twin)
    explain(twin, input, EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()]))
    SequentialMergeBatchNorm().apply(merged)
    expected_output, expected = explain(merged, input, make([AttentionCanonizer()]))
    both = [SequentialMergeBatchNorm(), AttentionCanonizer()]
    output, relevance = explain(model, input, make(both))
    assert relative(output, expected_output) <= 1e-12
    assert relative(output, model(input)) <= 1e-4
    assert relative(relevance, expected) <= 1e-9
    ledger = audit(model, make(both), input, one_hot)
    assert_closed(ledger)
    assert changes(before, model) <= changes(twin_before, twin)
