'''Bad input: the model's own errors come through, and leave nothing behind.'''
from functools import partial

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from canonizers.helpers import seeded
from cases.families import BATCH, DIM, HEADS, LENGTH, Call, fast_weights, performer
from helpers import Snapshot, assert_restored
from zennit_attn import attention as ours
from zennit_attn.composites import CPLRP


def attend(model, x, **kwargs):
    return model(x, x, x, **kwargs)[0]


X = torch.zeros(BATCH, LENGTH, DIM, dtype=torch.float64)
KEEP = torch.ones(BATCH, LENGTH, dtype=torch.bool)
BAD_INPUTS = {
    'performer width': (partial(performer, 'reference'), lambda model, x: model(x[..., :5]), 'x has shape'),
    'performer mask': (partial(performer, 'reference'), lambda model, x: model(x, mask=KEEP[:, 1:]), 'mask has shape'),
    'performer mask dtype': (
        partial(performer, 'reference'), lambda model, x: model(x, mask=KEEP.long()), 'mask has dtype torch.int64'),
    'performer context': (
        partial(performer, 'reference', cross_attend=True), lambda model, x: model(x), 'needs a context'),
    'performer positions': (
        partial(performer, 'reference'), lambda model, x: model(x, pos_emb=x[:1, :4, :4]), '9 tokens.* only 4'),
    'linear channels': (
        lambda: ours.LinearAttention(8, 2, 4), lambda model, x: model(x[..., None]), r'expected \(b, 8, height'),
    'vit size': (
        lambda: ours.ViT(image_size=8, patch_size=4, num_classes=3, dim=4, depth=1, heads=1, mlp_dim=4),
        lambda model, x: model(x[:, :3, :, None].expand(-1, -1, -1, 8)), 'only 5 positions'),
    'fast weights width': (
        partial(fast_weights, 'reference'), lambda model, x: model.model(x[..., :5]), 'x has shape'),
    **{f'{kind.__name__.split(".")[0]} {name}': (
        partial(kind.MultiheadAttention, DIM, HEADS, batch_first=True), partial(attend, **kwargs), message)
       for kind in (ours, nn) for name, (kwargs, message) in {
        'mask shape': ({'attn_mask': torch.zeros(LENGTH, 1)}, 'shape'),
        'mask of one row': ({'attn_mask': torch.zeros(1, LENGTH)}, 'shape'),
        'mask dtype': ({'attn_mask': torch.zeros(LENGTH, LENGTH).long()}, '(?i)bool'),
        'padding shape': ({'key_padding_mask': ~KEEP[:1]}, 'shape'),
        'padding dtype': ({'key_padding_mask': (~KEEP).long()}, '(?i)bool'),
        'causal hint': ({'is_causal': True, 'need_weights': False}, 'attn_mask'),
       }.items()},
}


@pytest.mark.parametrize('case', BAD_INPUTS)
def test_bad_input_is_refused_as_without_the_context(case):
    make, function, message = BAD_INPUTS[case]
    call = Call(seeded(make), function)
    errors = (ValueError, TypeError, RuntimeError, AssertionError)
    with pytest.raises(errors) as plain:
        call(X)
    before = Snapshot(call)
    with pytest.raises(errors, match=message) as explained, Gradient(call, CPLRP()) as attributor:
        attributor(X.clone(), torch.ones_like)
    assert explained.type is plain.type or not case.startswith('zennit_attn')
    assert_restored(before, call)
