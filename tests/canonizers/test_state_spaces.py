'''Published state spaces of Mamba-2: one map in chunks of any size and step by step, and the forward that they have.'''
from unittest import mock

import pytest
import torch

from attention.helpers import published
from cases.families import COMPOSITES, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, relative
from versions import release
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.canonizers.published import FUNCTIONS, functions, replacement
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit

from .test_delta_nets import Alone

pytestmark = pytest.mark.zoo

LENGTH, WIDTH = 20, 16
SIZES = {'hidden_size': WIDTH, 'num_hidden_layers': 2, 'num_attention_heads': 2}
BAMBA = {'mamba_d_state': 6, 'mamba_n_heads': 4, 'mamba_d_head': 8, 'mamba_n_groups': 2, 'mamba_expand': 2}
#: Where each model is, its layer and its configuration.
MODELS = {
    'mamba2': ('Mamba2Mixer', 'Mamba2Config', {
        'state_size': 6, 'num_heads': 4, 'head_dim': 8, 'n_groups': 2, 'expand': 2}),
    'bamba': ('BambaMixer', 'BambaConfig', {**BAMBA, 'num_key_value_heads': 2}),
    'falcon_h1': ('FalconH1Mixer', 'FalconH1Config', {**BAMBA, 'mamba_d_ssm': 32, 'num_key_value_heads': 2}),
    'granitemoehybrid': ('GraniteMoeHybridMambaLayer', 'GraniteMoeHybridConfig', {
        **BAMBA, 'num_key_value_heads': 2, 'layer_types': ['mamba', 'attention']}),
    'nemotron_h': ('NemotronHMamba2Mixer', 'NemotronHConfig', {
        'mamba_num_heads': 4, 'mamba_head_dim': 8, 'n_groups': 2, 'ssm_state_size': 6, 'expand': 2}),
    'zamba2': ('Zamba2MambaMixer', 'Zamba2Config', {
        'mamba_d_state': 6, 'n_mamba_heads': 4, 'mamba_headdim': 8, 'mamba_ngroups': 2, 'mamba_expand': 2,
        'num_hidden_layers': 54}),
}
every_model = pytest.mark.parametrize('name', MODELS)


def build(name):
    layer, config, options = MODELS[name]
    code = published(f'transformers.models.{name}.modeling_{name}')
    if release(published('transformers').__version__) < release('5.24'):
        pytest.skip('needs transformers 5.24: before it, the recurrence is a part of a forward, and no function')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(published(f'transformers.models.{name}.configuration_{name}'), config)(**{**SIZES, **options})
        layer = getattr(code, layer)(config, layer_idx=0)
        if name == 'falcon_h1':  # which the model around it gives to it
            layer.register_buffer('mup_vector', torch.rand(1, 1, layer.in_proj.out_features) + .5)
        model = Alone(layer).double().eval()
        with torch.no_grad():  # some are what happened to be in memory
            for parameter in model.parameters():
                parameter.normal_(0., 0.4)
        return code, model, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


def step_by_step(code):
    '''What the published code runs for a token that has a cache, for all tokens of a sequence.'''
    def scan(x, dt, rates, keys, queries, chunk_size, D=None, dt_bias=None, dt_softplus=False, **kwargs):  # noqa: N803 - their name
        batch, length, heads, width = x.shape
        state, outs = x.new_zeros(batch, heads, width, keys.shape[-1]), []
        rates = rates[:, None, None].expand(-1, width, keys.shape[-1])
        for token in range(length):
            outs.append(code.mamba2_selective_state_update(
                state, x[:, token], dt[:, token, :, None].expand(-1, -1, width), rates, keys[:, token],
                queries[:, token], D[:, None].expand(-1, width), dt_bias=dt_bias[:, None].expand(-1, width),
                dt_softplus=dt_softplus))
        return torch.stack(outs, dim=1)
    return scan


@every_model
@pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference], ids=[*COMPOSITES, 'difference'])
def test_one_map_whatever_computes_it(name, composite, double):
    code, model, input = build(name)
    maps = []
    for size in (64, 4, 1):
        model.layer.chunk_size = size
        maps.append(explain_largest(model, input, composite)[1])
    with mock.patch.object(code, 'mamba2_chunk_scan', step_by_step(code)):
        maps.append(explain_largest(model, input, composite)[1])
    assert maps[0].abs().sum() > 0
    for other in maps[1:]:
        assert relative(other, maps[0]) <= 1e-9


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
    '''In float64 throughout: the published norm before the output rounds relevance to float32.'''
    _, model, input = build(name)
    ledger = audit(model, CPLRP(), input)
    assert 'gated_linear_attention' in str(ledger.operator_table())
    assert_closed(ledger)


def test_one_token_and_its_state_are_those_of_the_code(double):
    code, _, _ = build('mamba2')
    update = FUNCTIONS.find('mamba2_selective_state_update', code.mamba2_selective_state_update)
    state, x = torch.randn(2, 4, 8, 6, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    steps = torch.rand(2, 4, 1, dtype=torch.float64).expand(-1, -1, 8)
    rates = -torch.rand(4, 1, 1, dtype=torch.float64).expand(-1, 8, 6)
    keys, queries = torch.randn(2, 2, 2, 6, dtype=torch.float64)
    ours, theirs = state.clone(), state.clone()
    run = replacement(update, code.mamba2_selective_state_update)
    out = run(ours, x, steps, rates, keys, queries, dt_softplus=True)
    expected = code.mamba2_selective_state_update(theirs, x, steps, rates, keys, queries, dt_softplus=True)
    assert relative(out, expected) <= 1e-12
    assert relative(ours, theirs) <= 1e-12


@every_model
def test_model_is_restored(name):
    _, model, _ = build(name)
    before = Snapshot(model)
    [own] = AttentionCanonizer().apply(model)
    assert 'forward' in model.layer.__dict__
    own.remove()
    assert_restored(before, model)
