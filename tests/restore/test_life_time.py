'''Order of opening and closing, threads, training afterwards, and when a model is freed.'''
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from zennit.attribution import Gradient

from cases.problems import build
from helpers import Snapshot, assert_restored, equal_maps, one_hot, relevance_of
from zennit_attn.canonizers.attention import engine_of
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor, Difference
from zennit_attn.conservation.recorder import recorded

from .helpers import audited, fused


def test_register_twice_and_remove_twice():
    '''Registering an open composite again starts afresh; removing twice is harmless.'''
    model, input = fused()
    expected, before = relevance_of(model, input, CPLRP), Snapshot(model)
    composite = CPLRP()
    composite.register(model)
    composite.register(model)
    assert equal_maps(Gradient(model, composite)(input.clone(), one_hot)[1], expected)
    composite.remove()
    assert_restored(before, model)
    composite.remove()
    assert_restored(before, model)


def test_one_composite_moves_to_another_model():
    (first, _), (second, other) = fused(), build('vit_mean')
    before, wanted = Snapshot(first), relevance_of(second, other, CPLRP)
    composite = CPLRP()
    composite.register(first)
    composite.register(second)
    assert_restored(before, first)
    assert equal_maps(Gradient(second, composite)(other.clone(), one_hot)[1], wanted)
    composite.remove()


def test_changes_made_by_the_user_inside_survive():
    '''What the user sets inside the context is the user's: it stays.'''
    model, input = fused()
    with Gradient(model, CPLRP()) as attributor:
        attributor(input.clone(), one_hot)
        model.note = 'mine'
        model.fuse[0].armed = 'later'
        handle = model.norm.register_forward_hook(lambda module, args, output: None)
    assert model.note == 'mine'
    assert model.fuse[0].armed == 'later'
    assert handle.id in model.norm._forward_hooks


def test_explaining_in_another_thread():
    model, input = fused()
    expected, before = relevance_of(model, input, CPLRP), Snapshot(model)
    with ThreadPoolExecutor() as pool:
        found = pool.submit(relevance_of, model, input, CPLRP).result(timeout=60)
    assert equal_maps(found, expected)
    assert_restored(before, model)


def test_training_gradients_are_those_of_an_untouched_model():
    '''After an explanation the model trains as if nothing had happened, and its own hooks still run.'''
    (model, input), (twin, _) = fused(), fused()
    relevance_of(model, input, CPLRP)
    audited(model, input, AttnLRP)
    for each in (model, twin):
        each(input).square().sum().backward()
    for (name, param), (_, other) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (param.grad is None) == (other.grad is None), name
        assert param.grad is None or torch.equal(param.grad, other.grad), name


def test_parameters_gather_no_gradient_inside():
    model, input = fused()
    with CPLRP().context(model):
        input = input.clone().requires_grad_()
        output = model(input)
        output.backward(one_hot(output))
    assert all(param.grad is None for param in model.parameters())
    assert torch.allclose(input.grad, relevance_of(model, input.detach(), CPLRP), rtol=1e-12)


@pytest.mark.parametrize('composite', [CPLRP, AttnTaylor, Difference])
def test_model_and_engine_are_freed(composite):
    '''No cycle or registry keeps an explained model alive, or what explained it.'''
    model, input = fused()
    with Gradient(model, composite()) as attributor:
        attributor(input.clone(), one_hot)
        engine = weakref.ref(engine_of(model))
    audited(model, input, composite)
    del attributor
    gc.collect()
    assert engine() is None
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_deepcopy_and_state_dict_inside_the_context():
    '''The state dict has the same keys inside as outside.'''
    model, _ = fused()
    keys = list(model.state_dict())
    with CPLRP().context(model):
        assert list(model.state_dict()) == keys
    assert list(model.state_dict()) == keys


def state(engine):
    '''What an engine keeps, with the contents of what it keeps.'''
    kept = {name: value for name, value in vars(engine).items() if name not in ('location', 'passes')}
    return kept | {'modules': [name for name, _ in engine.location.modules]}


def test_a_forward_leaves_nothing_behind_on_its_engine():
    '''Neither one that is explained, nor one that is watched, nor one that fails.'''
    model, input = fused()
    with CPLRP().context(model):
        engine = engine_of(model)
        before = state(engine)
        model(input.clone().requires_grad_())
        assert state(engine) == before
        with recorded(model, engine):
            model(input.clone().requires_grad_())
        assert state(engine) == before
        with pytest.raises(RuntimeError):
            model(input[..., :1].clone().requires_grad_())
        assert state(engine) == before
        assert engine.forward is None


def test_while_a_forward_runs_its_engine_knows_it():
    model, input = fused()
    seen = []
    handle = next(module for module in model.modules() if not list(module.children())).register_forward_hook(
        lambda *_: seen.append(engine_of(model).forward))
    with CPLRP().context(model):
        for _ in range(2):
            model(input.clone().requires_grad_())
    handle.remove()
    assert len({id(forward) for forward in seen if forward is not None}) == 2
