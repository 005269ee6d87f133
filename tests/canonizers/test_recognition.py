'''Whom a named canonizer recognises, also under another name, and that a name is not enough.'''
import inspect
import sys
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from attention.helpers import published
from cases.families import DIM, HEADS
from helpers import Snapshot, assert_restored
from zennit_attn import attention as ours
from zennit_attn.attention import multihead as multihead_room
from zennit_attn.attention import vit as vit_room
from zennit_attn.canonizers import (
    AttentionCanonizer,
    FastWeightsCanonizer,
    LinearAttentionCanonizer,
    MultiheadAttentionCanonizer,
    PerformerCanonizer,
    ViTCanonizer,
)

from .helpers import NAMED


def pasted(cls, name='Mixer'):
    '''A copy of a class under another name, as if its source had been pasted into another file.'''
    namespace = dict(vars(sys.modules[cls.__module__]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about escapes in the formulas of docstrings
        source = inspect.getsource(cls).replace(f'class {cls.__name__}(', f'class {name}(', 1)
        exec(compile(source, f'<pasted {cls.__name__}>', 'exec'), namespace)
    return namespace[name]


def fast_attention(cls):
    return lambda: cls(4, nb_features=6, causal=True)


def fast_weights_attention(cls):
    return lambda: cls(HEADS, DIM, 0., ours.DPFP())


def package(family):
    '''The class of a family that its authors publish.'''
    module, name = {
        'linear': ('denoising_diffusion_pytorch.denoising_diffusion_pytorch', 'LinearAttention'),
        'performer': ('performer_pytorch.performer_pytorch', 'FastAttention'),
        'vit': ('vit_pytorch.vit', 'Attention'),
        'fast_weights': ('labml_nn.transformers.fast_weights', 'FastWeightsAttention'),
    }[family]
    return getattr(published(module), name)


FAMILIES = {
    'linear': (LinearAttentionCanonizer, lambda cls: lambda: cls(8, 2, 4)),
    'performer': (PerformerCanonizer, fast_attention),
    'vit': (ViTCanonizer, lambda cls: lambda: cls(DIM, HEADS, 4)),
    'multihead': (MultiheadAttentionCanonizer, lambda cls: lambda: cls(DIM, HEADS)),
    'fast_weights': (FastWeightsCanonizer, fast_weights_attention),
}
OURS = {
    'linear': ours.LinearAttention, 'performer': ours.FastAttention, 'vit': vit_room.Attention,
    'multihead': multihead_room.MultiheadAttention, 'fast_weights': ours.FastWeightsAttention,
}
KNOWN = {
    **{f'{family}-reference': (family, lambda cls=cls: cls) for family, cls in OURS.items()},
    **{f'{family}-reference-pasted': (family, lambda cls=cls: pasted(cls)) for family, cls in OURS.items()},
    'linear-memory': ('linear', lambda: ours.MemoryLinearAttention),
    'multihead-torch': ('multihead', lambda: nn.MultiheadAttention),
    'multihead-torch-derived': ('multihead', lambda: type('Mixer', (nn.MultiheadAttention,), {})),
    'multihead-torch-pasted': ('multihead', lambda: pasted(nn.MultiheadAttention)),
}
PUBLISHED = {
    **{f'{family}-published': (family, partial(package, family)) for family in OURS if family != 'multihead'},
    **{f'{family}-published-pasted': (family, lambda family=family: pasted(package(family)))
       for family in OURS if family != 'multihead'},
}


class Plain(nn.Module):
    '''Operators, but of no family.'''
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def forward(self, x):
        return torch.relu(self.fc(x)) * 2


#: What every module of an open model has, whatever canonizer opened it: its engine, the call of it, and guards
#: against copies.
GUARDS = {'_canonizer_engine', '_call_impl', '__reduce_ex__', '_replicate_for_data_parallel'}


def traces(module):
    '''What a canonizer can have changed in a module and all below, but for the type of softmaxes, which all change.'''
    return {(name, type(each).__name__, *sorted(each.__dict__.keys() - GUARDS),
             id(each.__dict__.get('causal_linear_fn')))
            for name, each in module.named_modules()}


def touched(canonizer, block):
    '''Whether a canonizer adds anything to a block; what is beside the block it must leave alone.'''
    model = nn.Sequential(Plain(), block)
    before, beside, own = Snapshot(model), traces(model[0]), traces(block)
    applied = canonizer().apply(model)
    changed = traces(block) != own
    assert traces(model[0]) == beside
    for each in applied:
        each.remove()
    assert_restored(before, model)
    return changed


@pytest.mark.parametrize('name', [*KNOWN, *(pytest.param(name, marks=pytest.mark.zoo) for name in PUBLISHED)])
def test_recognised_by_its_own_canonizer_only(name):
    family, cls = {**KNOWN, **PUBLISHED}[name]
    own, make = FAMILIES[family]
    block = make(cls())()
    assert [canonizer.__name__ for canonizer in NAMED if touched(canonizer, block)] == [own.__name__]


def namesake(name):
    '''A class that shares a name and a signature with a family, and nothing else.'''
    class Namesake(nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self.to_qkv, self.heads, self.scale = nn.Linear(DIM, 3 * DIM), 2., 1
            self.query = self.key = self.value = nn.Linear(DIM, DIM)

        def forward(self, x):
            return torch.relu(self.query(x))
    Namesake.__name__ = Namesake.__qualname__ = name
    return Namesake


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('canonizer', NAMED)
def test_a_name_is_not_enough(family, canonizer):
    assert not touched(canonizer, FAMILIES[family][1](namesake(OURS[family].__name__))())


@pytest.mark.parametrize('family', FAMILIES)
def test_included_in_the_one_for_all(family):
    assert set(FAMILIES[family][0].families) <= set(AttentionCanonizer.families)
    block = FAMILIES[family][1](nn.MultiheadAttention if family == 'multihead' else OURS[family])()
    model = nn.Sequential(block)
    before = Snapshot(model)
    [applied] = AttentionCanonizer().apply(model)
    everywhere = traces(block)
    applied.remove()
    [own] = FAMILIES[family][0]().apply(model)
    assert {entry[:2] for entry in traces(block)} <= {entry[:2] for entry in everywhere}
    own.remove()
    assert_restored(before, model)
