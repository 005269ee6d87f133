'''Named canonizers combine, and overlapping ones are refused.'''
import pytest
from einops import rearrange
from torch import nn

from cases.families import BATCH, DIM, HEADS, LENGTH, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, largest, relative
from zennit_attn import attention as ours
from zennit_attn.attention import vit as vit_room
from zennit_attn.canonizers import (
    AttentionCanonizer,
    FastWeightsCanonizer,
    LinearAttentionCanonizer,
    MultiheadAttentionCanonizer,
    PerformerCanonizer,
    ViTCanonizer,
)
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import ContextError

from .helpers import NAMED, noise, seeded


class Families(nn.Module):
    '''Blocks of all families, one after another.'''
    def __init__(self):
        super().__init__()
        self.linear = ours.LinearAttention(DIM, 2, 4)
        self.performer = ours.Performer(dim=DIM, depth=1, heads=HEADS, dim_head=4, causal=True)
        self.multihead = nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True)
        self.vit = vit_room.Attention(DIM, HEADS, 4)
        self.fast = ours.FastWeightsAttention(HEADS, DIM, 0., ours.DPFP())

    def forward(self, x):
        x = x + rearrange(self.linear(rearrange(x, 'b n d -> b d n 1')), 'b d n 1 -> b n d')
        x = self.vit(self.multihead(self.performer(x))) + x
        return x + self.fast(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize('canonizers', [
    (LinearAttentionCanonizer, MultiheadAttentionCanonizer), (PerformerCanonizer, FastWeightsCanonizer), NAMED,
    NAMED[::-1],
], ids=lambda canonizers: '+'.join(each.__name__.removesuffix('Canonizer') for each in canonizers))
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_named_ones_combine(canonizers, composite):
    model, input = seeded(Families), noise(BATCH, LENGTH, DIM)
    expected, before = model(input), Snapshot(model)
    combined = composite(canonizers=[canonizer() for canonizer in canonizers])
    with combined.context(model):
        assert hasattr(model.multihead.self_attn, 'canonizer_v') == (MultiheadAttentionCanonizer in canonizers)
        assert ('forward' in model.fast.phi.__dict__) == (FastWeightsCanonizer in canonizers)
        assert hasattr(model.linear, 'canonizer_einsum') == (LinearAttentionCanonizer in canonizers)
    assert_restored(before, model)
    output, relevance = explain_largest(model, input, lambda: combined)
    assert relative(output, expected.detach()) <= 1e-12
    assert_closed(audit(model, combined, input, largest))
    assert_restored(before, model)
    if set(canonizers) == set(NAMED):
        assert relative(relevance, explain_largest(model, input, composite)[1]) <= 1e-9


@pytest.mark.parametrize('pair', [(ViTCanonizer, ViTCanonizer), (AttentionCanonizer, PerformerCanonizer),
                                  (PerformerCanonizer, AttentionCanonizer)])
def test_overlapping_ones_are_refused(pair):
    model = seeded(Families)
    before = Snapshot(model)
    composite = CPLRP(canonizers=[canonizer() for canonizer in pair])
    with pytest.raises(ContextError, match='already open on Families'), composite.context(model):
        pass
    assert_restored(before, model)
