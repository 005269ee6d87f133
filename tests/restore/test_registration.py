'''Exceptions while a composite registers.'''
import gc

import pytest
import torch
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.rules import Epsilon
from zennit.types import Linear

from cases.problems.issue import LinearAttention
from helpers import Snapshot, assert_restored, equal_maps, relevance_of, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP

from .helpers import Boom, Failing, Stop, audited, fused


class FailingMap(LayerMapComposite):
    '''A composite of stock Zennit whose module map fails half-way.'''
    def mapping(self, ctx, name, module):
        if name == 'head':
            raise Boom('mapping')
        return super().mapping(ctx, name, module)


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
@pytest.mark.parametrize('order', [[AttentionCanonizer, Failing], [Failing, AttentionCanonizer]])
@pytest.mark.parametrize('error', [Boom, Stop])
def test_exception_in_a_later_canonizer(make, order, error):
    model, input = fused()
    expected, before = relevance_of(model, input, make), Snapshot(model)
    canonizers = [cls() for cls in order]
    for canonizer in canonizers:
        canonizer.error = error
    for attempt in (lambda: relevance_of(model, input, lambda: make(canonizers=canonizers)),
                    lambda: audited(model, input, lambda: make(canonizers=canonizers))):
        with pytest.raises(error, match='apply'):
            attempt()
        assert_restored(before, model)
    assert equal_maps(relevance_of(model, input, make), expected)


def test_exception_in_a_later_canonizer_with_merged_batch_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), LinearAttention(4, 2, 4)).double().eval()
    SequentialMergeBatchNorm().apply(model)[0].remove()
    before = Snapshot(model)
    canonizers = [SequentialMergeBatchNorm(), AttentionCanonizer(), Failing()]
    with pytest.raises(Boom):
        relevance_of(model, torch.randn(2, 3, 6, 6).double(), lambda: CPLRP(canonizers=canonizers))
    assert_restored(before, model)


@pytest.mark.parametrize('composite', [
    lambda: EpsilonPlusFlat(canonizers=[AttentionCanonizer(), Failing()]),
    lambda: FailingMap([(Linear, Epsilon())], canonizers=[AttentionCanonizer()]),
])
def test_stock_composite_that_fails_to_register(composite):
    '''Stock Zennit leaves canonizers applied when register fails; its own ``remove`` must suffice to restore.'''
    model, input = fused()
    expected, before = relevance_of(model, input, stock), Snapshot(model)
    composite = composite()
    with pytest.raises(Boom):
        composite.register(model)
    composite.remove()
    assert_restored(before, model)
    assert equal_maps(relevance_of(model, input, stock), expected)


def test_forgotten_composite_does_not_block_the_model():
    '''A stock composite that failed to register and was never removed: the model is free once it is collected.'''
    model, input = fused()
    composite = EpsilonPlusFlat(canonizers=[AttentionCanonizer(), Failing()])
    with pytest.raises(Boom):
        composite.register(model)
    composite.remove()
    del composite
    gc.collect()
    assert relevance_of(model, input, CPLRP).isfinite().all()
