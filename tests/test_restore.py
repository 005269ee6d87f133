'''Exceptions at every stage: nothing is left behind, and the next explanation is right.'''
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Activation, Linear

from cases.problems import DIM, TOKENS, Head, build
from cases.problems.issue import LinearAttention
from cases.problems.vision import ViTAttention
from helpers import Snapshot, assert_restored, equal_maps, explain, one_hot, relevance_of, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit

SHAPE = (3, TOKENS, DIM)


class Boom(Exception):
    pass


class Stop(BaseException):
    '''As KeyboardInterrupt: no Exception.'''


class Fuse(nn.Module):
    '''Raises in its forward or in its backward pass when armed.'''
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)
        self.armed, self.error = None, Boom

    def forward(self, x):
        x = self.fc(torch.relu(x)) * 2
        if self.armed == 'forward':
            raise self.error('forward')
        if self.armed == 'backward':
            x.register_hook(self.explode)
        return x + self.fc.bias

    def explode(self, grad):
        raise self.error('backward')


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.norm = nn.Linear(DIM, DIM), ViTAttention(DIM), nn.LayerNorm(DIM)
        self.fuse, self.head = nn.Sequential(Fuse()), Head()
        self.frozen = nn.Parameter(torch.ones(DIM), requires_grad=False)
        self.register_buffer('scale', torch.ones(DIM))
        self.tied = self.norm

    def forward(self, x):
        x = self.attn(self.embed(x) * self.scale) + self.frozen
        return self.head(self.norm(x + self.fuse(x)))


def fused():
    '''A model with hooks of its own, a frozen parameter, a shared module, mixed training flags.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Fused().double().eval(), torch.randn(SHAPE, dtype=torch.float64)
    model.attn.to_out[1].p = 0.
    model.attn.to_out.train()
    model.norm.register_forward_hook(lambda module, args, output: None)
    model.head.register_forward_pre_hook(lambda module, args: None)
    model.extra = {'names': ['a', 'b']}
    return model, input


def rules_inside():
    return LayerMapComposite([(Activation, Pass()), (Linear, Epsilon())], canonizers=[AttentionCanonizer()])


COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'gammas': lambda: CPLRP(linear_gamma=0.05, conv_gamma=0.25),
              'epsilon_plus_flat': stock, 'epsilon': rules_inside}
every_composite = pytest.mark.parametrize('composite', COMPOSITES.values(), ids=COMPOSITES)


def audited(model, input, composite, target=one_hot):
    return audit(model, composite(), input.clone(), target)


every_entry = pytest.mark.parametrize('entry', [explain, audited])


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


# register

class Failing(Canonizer):
    '''A canonizer that fails after others have been applied.'''
    error = Boom

    def apply(self, root_module):
        raise self.error('apply')

    def register(self):
        pass

    def remove(self):
        pass


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


# order of closing, threads, life time

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
    expected, before, found = relevance_of(model, input, CPLRP), Snapshot(model), []
    thread = threading.Thread(target=lambda: found.append(relevance_of(model, input, CPLRP)))
    thread.start()
    thread.join(timeout=60)
    assert equal_maps(found[0], expected)
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


def test_model_is_freed():
    '''No cycle or registry keeps an explained model alive.'''
    model, input = fused()
    relevance_of(model, input, CPLRP)
    audited(model, input, CPLRP)
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
