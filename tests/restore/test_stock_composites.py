'''Zennit's own composites: same forward, model as before, one explanation after another.'''
from zennit.composites import EpsilonPlusFlat

from cases.problems import build
from cases.stock import MODELS, attention, every_model, every_stock, wide_cnn
from helpers import Snapshot, assert_restored, equal_maps, explain, relative
from zennit_attn.canonizers import AttentionCanonizer


@every_model
@every_stock
def test_forward_is_unchanged_and_model_restored(model, stock):
    model, input = MODELS[model]()
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, attention(stock))
    assert relative(output, expected) <= 1e-12
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0
    assert_restored(before, model)


def test_same_composite_again_and_on_another_model():
    composite = EpsilonPlusFlat(canonizers=[AttentionCanonizer()])
    first, input = wide_cnn()
    second, other = build('vit_mean')
    expected = explain(first, input, composite)[1]
    explain(second, other, composite)
    assert equal_maps(explain(first, input, composite)[1], expected)
