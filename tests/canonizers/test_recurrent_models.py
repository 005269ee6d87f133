'''Published models with recurrences: one map whatever computes these, the forward that they have, and their ledger.'''
from functools import partial
from unittest import mock

import pytest
import torch

from attention.helpers import published
from cases.families import COMPOSITES, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, largest, relative
from versions import release
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.canonizers.published import functions
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit

from .test_delta_nets import Alone

pytestmark = pytest.mark.zoo

LENGTH, WIDTH = 20, 16
MAMBA = {'hidden_size': WIDTH, 'num_hidden_layers': 1, 'state_size': 6, 'expand': 2, 'time_step_rank': 4}
XLSTM = {'hidden_size': WIDTH, 'num_heads': 2, 'num_hidden_layers': 1, 'embedding_dim': WIDTH, 'qk_dim_factor': .5,
         'v_dim_factor': 1., 'mode': 'inference', 'return_last_states': False}
#: Where each model is, its layer, its configuration, and how the layer is made of both.
MODELS = {
    'mamba': ('MambaMixer', 'MambaConfig', MAMBA, {'layer_idx': 0}),
    'falcon_mamba': ('FalconMambaMixer', 'FalconMambaConfig', MAMBA, {
        'layer_idx': 0, 'initialize_mixer_weights': False}),
    'jamba': ('JambaMambaMixer', 'JambaConfig', {
        'hidden_size': WIDTH, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 2,
        'mamba_d_state': 6, 'mamba_expand': 2, 'mamba_dt_rank': 4, 'use_mamba_kernels': False}, {'layer_idx': 0}),
    'zamba': ('ZambaMambaMixer', 'ZambaConfig', {
        'hidden_size': WIDTH, 'num_hidden_layers': 3, 'num_attention_heads': 2, 'n_mamba_heads': 2, 'mamba_d_state': 6,
        'mamba_expand': 2, 'mamba_dt_rank': 4, 'use_mamba_kernels': False}, {'layer_idx': 0}),
    'xlstm': ('xLSTMBlock', 'xLSTMConfig', XLSTM, {}),
    'rwkv': ('RwkvSelfAttention', 'RwkvConfig', {'hidden_size': WIDTH, 'num_hidden_layers': 1}, {}),
    'recurrent_gemma': ('RecurrentGemmaRecurrentBlock', 'RecurrentGemmaConfig', {
        'hidden_size': WIDTH, 'num_hidden_layers': 1, 'lru_width': 32, 'num_attention_heads': 4}, {'layer_idx': 0}),
}
every_model = pytest.mark.parametrize('name', MODELS)


class Griffin(torch.nn.Module):
    '''The block of a model that is told where tokens are.'''
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        length = x.shape[1]
        return self.layer(x, torch.arange(length)[None], torch.ones(len(x), length), use_cache=False)[0]


def build(name):
    layer, config, options, more = MODELS[name]
    code = published(f'transformers.models.{name}.modeling_{name}')
    if release(published('transformers').__version__) < release('5.24'):
        pytest.skip('needs transformers 5.24: before it, the recurrence is a part of a forward, and no function')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(published(f'transformers.models.{name}.configuration_{name}'), config)(**options)
        layer = getattr(code, layer)(config, **more)
        model = (Griffin if name == 'recurrent_gemma' else Alone)(layer).double().eval()
        with torch.no_grad():  # some are what happened to be in memory
            for parameter in model.parameters():
                parameter.normal_(0., 0.4)
        return code, model, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


def ways(name, code, model):
    '''What may compute the recurrence of a model, as contexts.'''
    if name in ('mamba', 'falcon_mamba', 'jamba', 'zamba'):
        yield mock.patch.object(code, 'mamba_selective_scan', step_by_step(code))
        if 'mamba' in name:
            yield mock.patch.object(model.layer, 'use_mambapy', True)
    elif name == 'xlstm':
        backend = model.layer.mlstm_layer.mlstm_backend
        for size in (1, 4, 16):
            yield mock.patch.object(backend, '_inference_fn', partial(backend._inference_fn, chunk_size=size))
        yield mock.patch.object(backend, '_inference_fn', partial(
            code.mlstm_recurrent_sequence_native, return_last_states=True))


def step_by_step(code):
    '''What the published code runs for a token that has a cache, for all tokens of a sequence.'''
    def scan(hidden_states, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **kwargs):  # noqa: N803 - their names
        state, outs = hidden_states.new_zeros(*hidden_states.shape[:2], A.shape[1]), []
        for token in range(hidden_states.shape[2]):
            outs.append(code.mamba_selective_state_update(
                state, hidden_states[..., token], dt[..., token], A, B[..., token], C[..., token], D,
                z=z[..., token], dt_bias=delta_bias, dt_softplus=delta_softplus))
        return torch.stack(outs, dim=-1)
    return scan


@every_model
@pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference], ids=[*COMPOSITES, 'difference'])
def test_one_map_whatever_computes_it(name, composite, double):
    code, model, input = build(name)
    map = explain_largest(model, input, composite)[1]
    assert map.abs().sum() > 0
    for way in ways(name, code, model):
        with way:
            assert relative(explain_largest(model, input, composite)[1], map) <= 1e-9


@every_model
def test_forward_is_that_of_the_model(name):
    _, model, input = build(name)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, input = model.to(dtype), input.to(dtype)
        assert relative(explain_largest(model, input)[0], model(input).detach()) <= tolerance


@every_model
def test_operator_is_that_of_the_code(name, double):
    '''In float64 nothing is rounded off, so that what is added to the operator is nothing.'''
    _, model, input = build(name)
    with mock.patch.object(functions, '_rounds', return_value=False):
        output = explain_largest(model, input)[0]
    assert relative(output, model(input).detach()) <= 1e-12


@every_model
def test_ledger_closes(name, double):
    _, model, input = build(name)
    ledger = audit(model, CPLRP(), input)
    assert any(word in str(ledger.operator_table()) for word in (
        'selective_scan', 'linear_recurrence', 'gated_linear_attention', 'wkv'))
    assert_closed(ledger)


@every_model
def test_the_future_is_exactly_absent(name, double):
    _, model, input = build(name)

    def at_token(output):
        chosen = torch.zeros_like(output)
        chosen[:, 10] = largest(output[:, 10])
        return chosen
    relevance = explain_largest(model, input, CPLRP, at_token)[1]
    assert (relevance[:, 11:] == 0).all()
    assert (relevance[:, :11].abs().sum(-1) > 0).all()


@every_model
def test_model_is_restored(name):
    _, model, _ = build(name)
    before = Snapshot(model)
    [own] = AttentionCanonizer().apply(model)
    own.remove()
    assert_restored(before, model)
