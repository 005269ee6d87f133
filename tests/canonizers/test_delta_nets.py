'''Published gated delta nets: one map in chunks of any size and step by step, and the forward that they have.'''
from unittest import mock

import pytest
import torch

from attention.helpers import published
from cases.families import COMPOSITES, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, relative
from versions import release
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.canonizers.published import functions
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit

pytestmark = pytest.mark.zoo

LENGTH, WIDTH = 40, 16
GATED = {'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 6, 'linear_value_head_dim': 5}
KIMI = {'linear_num_heads': 4, 'linear_head_dim': 6}
#: Where each model is, its layer, its configuration, and its functions in chunks and step by step.
MODELS = {
    'qwen3_next': ('Qwen3NextGatedDeltaNet', 'Qwen3NextConfig', GATED,
                   ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')),
    'qwen3_5': ('Qwen3_5GatedDeltaNet', 'Qwen3_5TextConfig', GATED,
                ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')),
    'olmo_hybrid': ('OlmoHybridGatedDeltaNet', 'OlmoHybridConfig', {**GATED, 'linear_num_key_heads': 4},
                    ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')),
    'lara_mini': ('LaraMiniGatedDeltaNet', 'LaraMiniConfig', GATED,
                  ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')),
    'qwen4_exp': ('Qwen4ExpTextGatedDeltaNet', 'Qwen4ExpTextConfig', GATED,
                  ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule')),
    'kimi_linear': ('KimiLinearDeltaAttention', 'KimiLinearConfig', KIMI,
                    ('chunk_kimi_delta_attention', 'recurrent_kimi_delta_attention')),
    'bailing_hybrid': ('BailingHybridDeltaAttention', 'BailingHybridConfig', KIMI,
                       ('chunk_kimi_delta_attention', 'recurrent_kimi_delta_attention')),
    'glm5_next': ('Glm5NextTextLinearAttention', 'Glm5NextTextConfig', {**KIMI, 'num_key_value_heads': 4},
                  ('chunk_kimi_delta_attention', 'recurrent_kimi_delta_attention')),
}
every_model = pytest.mark.parametrize('name', MODELS)


class Alone(torch.nn.Module):
    '''A layer below a root, as it is in a model.'''
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        output = self.layer(x)
        return output[0] if isinstance(output, tuple) else output


def build(name):
    layer, config, options, functions = MODELS[name]
    code = published(f'transformers.models.{name}.modeling_{name}')
    if release(published('transformers').__version__) < release('5.0'):
        pytest.skip('needs transformers 5: before it, a layer has the functions as attributes, which are not found')
    common = {'hidden_size': WIDTH, 'num_hidden_layers': 2, 'num_attention_heads': 4,
              'layer_types': ['linear_attention', 'full_attention']}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(published(f'transformers.models.{name}.configuration_{name}'), config)(**common, **options)
        model = Alone(getattr(code, layer)(config, 0)).double().eval()
        with torch.no_grad():  # some are what happened to be in memory
            for parameter in model.parameters():
                parameter.normal_(0., 0.4)
        return code, functions, model, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


def ways(code, functions):
    '''What may compute the recurrence, by name: in chunks of several sizes, and step by step.'''
    chunked, recurrent = (getattr(code, function) for function in functions)
    return {'chunks of 64': chunked, 'steps': recurrent,
            'chunks of 4': lambda *args, **kwargs: chunked(*args, **{**kwargs, 'chunk_size': 4})}


@every_model
@pytest.mark.parametrize('composite', COMPOSITES.values(), ids=COMPOSITES)
def test_one_map_whatever_computes_it(name, composite, double):
    code, functions, model, input = build(name)
    maps = []
    for way in ways(code, functions).values():
        with mock.patch.object(code, functions[0], way):
            maps.append(explain_largest(model, input, composite)[1])
    assert maps[0].abs().sum() > 0
    for other in maps[1:]:
        assert relative(other, maps[0]) <= 1e-9


@every_model
def test_forward_is_that_of_the_model(name):
    _, _, model, input = build(name)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        model, input = model.to(dtype), input.to(dtype)
        assert relative(explain_largest(model, input)[0], model(input).detach()) <= tolerance


@every_model
def test_operator_is_that_of_the_code(name, double):
    '''In float64 nothing is rounded off, so that what is added to the operator is nothing.'''
    _, _, model, input = build(name)
    with mock.patch.object(functions, '_rounds', return_value=False):
        output = explain_largest(model, input)[0]
    assert relative(output, model(input).detach()) <= 1e-12


@every_model
def test_ledger_closes(name, double):
    '''In float64 throughout: the published norm before the output rounds relevance to float32.'''
    _, _, model, input = build(name)
    ledger = audit(model, CPLRP(), input)
    assert 'gated_delta_rule' in str(ledger.operator_table())
    assert_closed(ledger)


@every_model
def test_model_is_restored(name):
    _, _, model, _ = build(name)
    before = Snapshot(model)
    [own] = AttentionCanonizer().apply(model)
    assert 'forward' in model.layer.__dict__
    own.remove()
    assert_restored(before, model)
