'''Exceptions at every stage of an explanation: nothing is left behind, and the next one is right.'''
import pytest
from zennit.attribution import Gradient

from helpers import Snapshot, assert_restored, equal_maps, one_hot, relevance_of
from zennit_attn.composites import CPLRP

from .helpers import Boom, Stop, every_composite, every_entry, fused


@every_composite
def test_context_changes_something_and_restores_it(composite):
    '''The snapshot does see the open context; after it, all is as before.'''
    model, input = fused()
    before = Snapshot(model)
    with Gradient(model, composite()):
        assert all(not param.requires_grad for param in model.parameters())
        with pytest.raises(AssertionError):
            assert_restored(before, model)
    assert_restored(before, model)


@every_composite
@every_entry
@pytest.mark.parametrize('error', [Boom, Stop])
@pytest.mark.parametrize('stage', ['forward', 'backward'])
def test_exception_in_a_pass(composite, entry, error, stage):
    model, input = fused()
    expected = relevance_of(model, input, composite)
    fuse = model.fuse[0]
    fuse.armed, fuse.error = stage, error
    before = Snapshot(model)
    with pytest.raises(error, match=stage):
        entry(model, input, composite)
    assert_restored(before, model)
    fuse.armed = None
    assert equal_maps(relevance_of(model, input, composite), expected)


@every_composite
@pytest.mark.parametrize('stage', ['forward', 'backward'])
def test_exception_inside_an_open_context(composite, stage):
    '''The context stays usable after an explanation in it has failed.'''
    model, input = fused()
    expected, before = relevance_of(model, input, composite), Snapshot(model)
    with Gradient(model, composite()) as attributor:
        model.fuse[0].armed = stage
        with pytest.raises(Boom):
            attributor(input.clone(), one_hot)
        model.fuse[0].armed = None
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    assert_restored(before, model)
    assert equal_maps(relevance_of(model, input, composite), expected)


@every_composite
@every_entry
def test_exception_in_the_target(composite, entry):
    model, input = fused()
    expected, before = relevance_of(model, input, composite), Snapshot(model)

    def target(output):
        raise Boom('target')

    with pytest.raises(Boom, match='target'):
        entry(model, input, composite, target)
    assert_restored(before, model)
    assert equal_maps(relevance_of(model, input, composite), expected)


@every_entry
def test_wrong_input_shape(entry):
    model, input = fused()
    before = Snapshot(model)
    with pytest.raises(RuntimeError):
        entry(model, input[..., :-1], CPLRP)
    assert_restored(before, model)
