'''A second context on an open model, or on a part of it.'''
import threading

import pytest
from zennit.attribution import Gradient

from cases.problems import build
from helpers import Snapshot, assert_restored, equal_maps, explain, one_hot, stock
from zennit_attn.composites import CPLRP, AttnLRP

from .helpers import refused


def in_thread(call):
    '''What ``call`` raises in another thread.'''
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.mark.parametrize('where', [lambda call: call(), in_thread])
@pytest.mark.parametrize('second', [CPLRP, AttnLRP, stock])
def test_second_context(where, second):
    model, input = build('vit_mean')
    expected, before = explain(model, input)[1], Snapshot(model)
    with Gradient(model, CPLRP()) as attributor:
        open_ = Snapshot(model)
        refused(model, lambda: where(lambda: explain(model, input, second)), 'ViT', 'open', 'close|leave|exit|one',
                before=open_)
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    assert_restored(before, model)
    assert equal_maps(explain(model, input)[1], expected)


def test_second_context_on_a_part_of_an_open_model():
    model, input = build('block_in_a_loop')
    expected = explain(model, input)[1]
    part = model.attn
    with Gradient(model, CPLRP()) as attributor:
        open_ = Snapshot(model)
        refused(model, lambda: explain(part, input), 'open', before=open_)
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    with Gradient(part, CPLRP()):
        open_ = Snapshot(model)
        refused(model, lambda: explain(model, input), 'open', before=open_)
    assert equal_maps(explain(model, input)[1], expected)


def test_two_models_at_once():
    '''Contexts on different models don't disturb each other, nested or in threads.'''
    (first, input), (second, other) = build('vit_mean'), build('swiglu')
    expected, wanted = explain(first, input)[1], explain(second, other)[1]
    with Gradient(first, CPLRP()) as one, Gradient(second, CPLRP()) as two:
        assert equal_maps(one(input.clone(), one_hot)[1], expected)
        assert equal_maps(two(other.clone(), one_hot)[1], wanted)
        found = []
        in_thread(lambda: found.append(two(other.clone(), one_hot)[1]))
        assert equal_maps(found[0], wanted)
