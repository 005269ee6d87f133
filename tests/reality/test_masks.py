'''Padding by every kind of mask, and queries that see nothing.'''
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases.problems import TOKENS
from helpers import assert_closed, relevance_of
from zennit_attn import explain
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor, Difference

from .helpers import Around, check, close, data, every_composite


def masked(kind):
    '''A model with a padding mask on its last two tokens.'''
    keep = torch.arange(TOKENS) < TOKENS - 2

    def attend(body, x):
        x = body.embed(x)
        q, k, v = body.attn.to_qkv(x).chunk(3, -1)
        scores = q @ k.mT / 3
        if kind == 'bool':
            scores = scores.masked_fill(~keep, -torch.inf)
        elif kind == 'sdpa':
            return pooled(body, F.scaled_dot_product_attention(q, k, v, keep.expand(TOKENS, TOKENS), scale=1 / 3))
        elif kind != 'short':
            scores = scores + torch.tensor([kind, 0.], dtype=scores.dtype)[keep.long()]
        return pooled(body, scores.softmax(-1) @ v)

    def pooled(body, out):
        return body.attn.to_out(out)[:, :TOKENS - 2].mean(1)
    return Around(attend)


@every_composite
@pytest.mark.parametrize('kind', [torch.finfo(torch.float32).min, torch.finfo(torch.float64).min, -1e9, -torch.inf,
                                  'bool', 'sdpa'])
def test_padding_mask(make, kind):
    '''Every way to mask gives the map of the sequence without padding, and 0 for the padding.'''
    short = relevance_of(masked('short'), data()[:, :TOKENS - 2], make)
    check(masked(kind), make, F.pad(short, (0, 0, 0, 2)))


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
@pytest.mark.parametrize('how', ['fused', 'written out', 'float32'])
def test_blank_rows(make, how):
    '''A query that may look at nothing: where its output is not used, it has no relevance, and others lose none.'''
    keep = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    keep[-1] = False

    def attend(body, x):
        q, k, v = body.attn.to_qkv(body.embed(x)).chunk(3, -1)
        if how == 'fused':
            out = F.scaled_dot_product_attention(q, k, v, keep)
        elif how == 'float32':  # where the smallest number of the scores' type is infinite
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, torch.finfo(q.dtype).min)
            out = F.softmax(scores, -1, dtype=torch.float32).to(v.dtype).masked_fill(~keep[:, :1], 0.) @ v
        else:
            out = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0.) @ v
        return body.attn.to_out(out)[:, :-1].mean(1)

    def shorter(body, x):
        q, k, v = body.attn.to_qkv(body.embed(x)).chunk(3, -1)
        return body.attn.to_out(F.scaled_dot_product_attention(q[:, :-1], k, v)).mean(1)
    wanted = relevance_of(Around(shorter), data(), make)
    if how == 'float32':
        close(relevance_of(Around(attend), data(), make), wanted, 1e-5)
    else:
        check(Around(attend), make, wanted)


class MaskedRows(nn.Module):
    '''Attention in which padding looks at nothing, fused or written out, of which all tokens are read.'''
    def __init__(self, fused):
        super().__init__()
        self.qkv, self.head, self.fused = nn.Linear(8, 24), nn.Linear(8, 2), fused

    def forward(self, x, mask):
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.fused:
            return self.head(F.scaled_dot_product_attention(q, k, v, mask).mean(1))
        return self.head(((q @ k.mT / 8 ** .5 + mask).softmax(-1) @ v).mean(1))


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor, Difference])
@pytest.mark.parametrize('low', [torch.finfo(torch.float64).min, torch.finfo(torch.float32).min, -1e30])
def test_rows_of_which_only_a_mask_is_left(composite, low):
    '''Rounding times such a number is no relevance; and the two spellings, and both roads, have one map.'''
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 5, 5, dtype=torch.float64)
    mask[:, :, 4] = mask[:, 4] = low
    maps = []
    for fused in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = MaskedRows(fused).double().eval()
        found = explain(model, {'x': x, 'mask': mask}, 1, composite(), wrt='x')
        ledger = found.audit()
        assert_closed(ledger)
        assert torch.allclose(ledger.input, found.relevance.flatten(1).sum(1), rtol=1e-9)
        maps.append(found.relevance)
    assert torch.allclose(*maps, rtol=1e-9, atol=1e-12)
