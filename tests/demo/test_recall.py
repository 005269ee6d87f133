'''The models of associative recall: what they were trained for, one map whatever their chunks, and where it points.'''
from functools import partial

import pytest
import torch
from torch.nn.functional import one_hot

from cases.families import COMPOSITES
from helpers import assert_closed, relative
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit
from zennit_attn.demo.recall import LENGTH, PAIRS, RECALLS, VALUES, recalls

every_demo = pytest.mark.parametrize('name', RECALLS)


def lead(query, output):
    chosen = torch.zeros_like(output)
    top = one_hot(output[:, query].argmax(-1), VALUES).to(output)
    chosen[:, query] = output[:, query] * (top - (1 - top) / (VALUES - 1))
    return chosen


def relevance_of(model, tokens, composite=CPLRP, query=0):
    with TokenGradient(model, model.embed, composite()) as attributor:
        return attributor(tokens, partial(lead, query))[1].detach()


def test_sequences_ask_for_each_key_once():
    samples = recalls(5, 0)
    assert samples.tokens.shape == (5, LENGTH)
    for tokens, answers, holders in zip(samples.tokens, samples.answers, samples.holders, strict=True):
        keys, values, asked = tokens[:2 * PAIRS:2], tokens[1:2 * PAIRS:2], tokens[-PAIRS:]
        assert len(set(keys.tolist())) == PAIRS
        assert torch.equal(keys[holders], asked)
        assert torch.equal(values[holders] - VALUES, answers)


@every_demo
def test_recalls_new_sequences(name):
    demo = RECALLS[name]
    assert demo.accuracy(demo.load(torch.float32)) > .99
    assert demo.weights.stat().st_size < 80_000


@every_demo
@pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference], ids=[*COMPOSITES, 'difference'])
def test_one_map_for_chunks_of_any_size(name, composite):
    model, tokens = RECALLS[name].load(), recalls(3, 1).tokens
    maps = [relevance_of(model.in_chunks_of(size), tokens, composite) for size in (8, 1, 3, 32)]
    assert maps[0].abs().sum() > 0
    for other in maps[1:]:
        assert relative(other, maps[0]) <= 1e-9


@every_demo
@pytest.mark.parametrize('composite', [COMPOSITES[name] for name in ('cp_lrp', 'attn_lrp', 'attn_taylor')])
def test_ledger_closes(name, composite):
    model = RECALLS[name].load()
    ledger = audit(model, composite(), recalls(3, 1).tokens, partial(lead, 2), embedding=model.embed)
    assert_closed(ledger)
    assert not ledger.loops


@every_demo
def test_relevance_is_highest_on_the_pair_that_holds_the_answer(name):
    model, samples = RECALLS[name].load(), RECALLS[name].held_out(100)
    by_token = relevance_of(model, samples.tokens, query=3).sum(-1)
    by_pair = by_token[:, :2 * PAIRS].unflatten(1, (PAIRS, 2)).sum(-1)
    assert (by_pair.argmax(1) == samples.holders[:, 3]).double().mean() > .95
    assert (by_token[:, -PAIRS + 4:] == 0).all()


def test_missing_weights_say_how_to_train(tmp_path, monkeypatch):
    demo = RECALLS['mamba2']
    monkeypatch.setattr(type(demo), 'weights', tmp_path / 'none.pt')
    with pytest.raises(FileNotFoundError, match=r'python -m zennit_attn\.demo\.train'):
        demo.load()
