'''Rules for Linear reach the packed projections of torch's module.'''
import pytest
import torch
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Gamma, WSquare

from cases.families import BATCH, DIM, HEADS, LENGTH, Call, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, largest, relative
from zennit_attn.canonizers import AttentionCanonizer, MultiheadAttentionCanonizer
from zennit_attn.conservation import audit

from .helpers import noise, seeded

LAYERS = {
    'attention': (lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True), lambda m, x: m(x, x, x)[0], ['model']),
    'widths': (lambda: nn.MultiheadAttention(DIM, HEADS, kdim=8, vdim=7, batch_first=True),
               lambda m, x: m(x, x[..., :8], x[..., :7], need_weights=False)[0], ['model']),
    'encoder': (lambda: nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True), lambda m, x: m(x),
                ['model.self_attn']),
    'decoder': (lambda: nn.TransformerDecoderLayer(DIM, HEADS, 16, batch_first=True), lambda m, x: m(x, x),
                ['model.self_attn', 'model.multihead_attn']),
}


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('rule', [Epsilon, Gamma])
@pytest.mark.parametrize('canonizer', [MultiheadAttentionCanonizer, AttentionCanonizer])
def test_rules_for_linear_reach_packed_projections(layer, rule, canonizer):
    make, function, attentions = LAYERS[layer]
    model, input = Call(seeded(make), function), noise(BATCH, LENGTH, DIM)
    before = Snapshot(model)
    composite = LayerMapComposite([((nn.Linear,), rule())], canonizers=[canonizer()])
    ledger = audit(model, composite, input)
    ruled = {row.module for row in ledger.operators if row.rule == rule.__name__}
    assert {f'{name}.{child}' for name in attentions for child in
            ('canonizer_q', 'canonizer_k', 'canonizer_v', 'out_proj')} <= ruled
    assert_closed(ledger)
    assert_restored(before, model)


def squares(linear, relevance):
    '''Relevance of the input in proportion to squared weights; the squared bias takes its part.'''
    weight, bias = linear
    return (relevance / (weight.square().sum(1) + bias.square() + 1e-6)) @ weight.square()


def test_rule_of_the_projections_is_right_elementwise():
    model, input = seeded(lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True)), noise(BATCH, LENGTH, DIM)
    call = Call(model, LAYERS['attention'][1])
    rules = [((nn.Linear,), WSquare(stabilizer=1e-6))]
    composite = LayerMapComposite(rules, canonizers=[MultiheadAttentionCanonizer()])
    relevance = explain_largest(call, input, composite)[1]
    with torch.no_grad():
        pairs = zip(model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3), strict=True)
        q, k, v = ((input @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(1, 2) for weight, bias in pairs)
        attention = (q @ k.mT / 2).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        projection = model.out_proj.weight, model.out_proj.bias
        arrived = squares(projection, largest(mixed @ projection[0].T + projection[1]))
        unit = (arrived / (mixed + 1e-9 * mixed.sign())).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        values = (v * (attention.mT @ unit)).transpose(1, 2).flatten(2)
        expected = squares((model.in_proj_weight[2 * DIM:], model.in_proj_bias[2 * DIM:]), values)
    assert relative(relevance, expected) <= 1e-6
