'''Layers of flash-linear-attention, whose kernels need a GPU: with stand-ins that cannot be seen, and without any.

The stand-ins are the references that the package has beside its kernels.
'''
import contextlib
import functools
import importlib
import sys
from unittest import mock

import pytest
import torch
from torch.nn.functional import conv1d, pad, silu

from attention.test_recurrent import in_double
from cases.families import COMPOSITES, explain_largest
from cases.kernels import hidden
from helpers import Snapshot, assert_closed, assert_restored, largest, relative
from zennit_attn.canonizers import AttentionCanonizer, families
from zennit_attn.canonizers.published import Rows, functions
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit
from zennit_attn.errors import UntrackedTensor

from .test_delta_nets import Alone

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings('ignore')]  # it warns that there is no GPU

REASON = 'fla-core is not installed, and not in an extra: with it transformers runs kernels that need a GPU'
LENGTH, WIDTH = 70, 16
HEADS = {'hidden_size': WIDTH, 'num_heads': 2}
KEYED = {**HEADS, 'head_dim': 8}
LAYERS = {
    'GatedLinearAttention': HEADS, 'MultiScaleRetention': HEADS, 'DeltaNet': HEADS,
    'GatedDeltaNet': {**KEYED, 'expand_v': 1}, 'KimiDeltaAttention': KEYED, 'HGRNAttention': {'hidden_size': WIDTH},
    'HGRN2Attention': {**HEADS, 'expand_ratio': 8}, 'RWKV6Attention': HEADS,
    'RWKV7Attention': {'hidden_size': WIDTH, 'head_dim': 8, 'layer_idx': 0, 'num_hidden_layers': 2},
    'LinearAttention': HEADS, 'BasedLinearAttention': {**HEADS, 'num_key_value_heads': 2, 'feature_dim': 4},
    'ReBasedLinearAttention': {**HEADS, 'num_key_value_heads': 2, 'feature_dim': 4},
    'GatedSlotAttention': {**HEADS, 'num_slots': 4}, 'ABCAttention': {**HEADS, 'num_slots': 4},
    'LightNetAttention': {**HEADS, 'expand_ratio': 8}, 'Comba': KEYED, 'GatedDeltaProduct': KEYED,
}
#: The layers that may run in chunks or token by token.
MODES = {name: 'fused_recurrent' for name in (
    'GatedLinearAttention', 'MultiScaleRetention', 'DeltaNet', 'GatedDeltaNet', 'KimiDeltaAttention', 'HGRN2Attention',
    'RWKV6Attention', 'LinearAttention', 'GatedSlotAttention', 'Comba')}
every_layer = pytest.mark.parametrize('name', LAYERS)


def _length_one(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def naive(path, name):
    return getattr(importlib.import_module(f'fla.ops.{path}'), name)


def _first(*tensors):
    return (tensor.transpose(1, 2) for tensor in tensors)


def _gla(q, k, v, g=None, gk=None, scale=None, output_final_state=False, **others):
    decay = g if gk is None else gk
    decay = torch.zeros_like(q) if decay is None else decay
    decay = decay if decay.ndim == 4 else decay[..., None].expand_as(q)
    scale = 1. if scale is None else scale * q.shape[-1] ** .5
    out, last = naive('gla.naive', 'naive_recurrent_gla')(q * scale, k, v, decay, output_final_state=True)
    return out, last if output_final_state else None


def _retention(q, k, v, scale=None, **others):
    scale = 1. if scale is None else scale * q.shape[-1] ** .5
    return naive('retention.naive', 'naive_retention')(*_first(q * scale, k, v)).transpose(1, 2), None


def _delta(q, k, v, beta, scale=None, use_qk_l2norm_in_kernel=False, **others):
    q, k = (_length_one(each) if use_qk_l2norm_in_kernel else each for each in (q, k))
    out, _ = naive('delta_rule.naive', 'delta_rule_recurrence')(*_first(q, k, v, beta))
    return out.transpose(1, 2), None


def _gated_delta(q, k, v, g=None, beta=None, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, A_log=None,  # noqa: N803 - their name
                 dt_bias=None, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, function=None, **others):
    q, k = (_length_one(each) if use_qk_l2norm_in_kernel else each for each in (q, k))
    if use_gate_in_kernel and g.ndim == 3:
        g = -A_log.exp() * torch.nn.functional.softplus(g + dt_bias)
    elif use_gate_in_kernel:
        g = naive('kda.gate', 'naive_kda_gate')(g, A_log, dt_bias, torch.float64)
    beta = beta.sigmoid() * (2 if allow_neg_eigval else 1) if use_beta_sigmoid_in_kernel else beta
    return function()(q=q, k=k, v=v, g=g, beta=beta)[0], None


def _comba(q, k, v, p, g, beta=None, use_qk_l2norm_in_kernel=False, **others):
    q, k, p = (_length_one(each) if use_qk_l2norm_in_kernel else each for each in (q, k, p))
    return naive('comba.naive', 'naive_recurrent_comba')(q, k, v, p, beta, g)[0], None


def _product(q, k, v, g, beta, num_householder, scale=None, use_qk_l2norm_in_kernel=False, **others):
    q, k = (_length_one(each) if use_qk_l2norm_in_kernel else each for each in (q, k))
    function = naive('gated_delta_product.naive', 'naive_recurrent_gated_delta_product')
    return function(q, k, v, g, beta, q.shape[-1] ** -.5, num_householder=num_householder)[0], None


def _rwkv6(r, k, v, w, u, scale=None, **others):
    scale = r.shape[-1] ** -.5 if scale is None else scale
    out, _ = naive('rwkv6.recurrent_naive', 'naive_recurrent_rwkv6')(*_first(r, k, v, w), u, scale=scale)
    return out.transpose(1, 2), None


def _rwkv7(r, w, k, v, a, b, scale=1., **others):
    out, _ = naive('generalized_delta_rule.dplr.naive', 'dplr_recurrence')(
        *_first(r * r.shape[-1] ** .5, k, v, a, b, w))
    return out.transpose(1, 2), None


def _linear(q, k, v, scale=None, normalize=False, **others):
    out, last = naive('linear_attn.naive', 'naive_recurrent_linear_attn')(
        q, k, v, scale=scale, normalize=normalize, output_final_state=False)
    return out, last


def _based(q, k, v, scale=None, use_norm=True):
    return naive('based.naive', 'naive_parallel_based')(*_first(q, k, v), scale, use_norm).transpose(1, 2)


def _rebased(q, k, v, eps=1e-5, use_scale=True, use_normalize=True, return_both=False):
    def weighted(values):
        return naive('rebased.naive', 'naive_parallel_rebased')(
            *_first(q, k, values), None if use_scale else 1., False).transpose(1, 2)
    return weighted(v) / (weighted(torch.ones_like(v)) + eps) if use_normalize else weighted(v)


def _slots(q, k, v, s, g=None, scale=None, **others):
    return naive('gsa.naive', 'naive_recurrent_gsa')(q, k, v, s, g, scale)[0], None


def _additive(x, output_dtype=None, gate_dtype=None, **others):
    total = x.exp().cumsum(1).log()
    gate = torch.cat([total[:, :1], total[:, :-1]], 1) - total
    return (x - total).exp(), gate, total[:, -1:]


def _light(q, k, v, scale=None, **others):
    keys, gate, total = _additive(k)
    return _gla(q, keys, v, gate, scale=scale)[0], (None, total)


def _norm(name):
    def norm(x, weight, bias, residual=None, eps=1e-5, prenorm=False, **others):
        return naive_of('norm.layernorm', name)(x, weight, bias, residual=residual, eps=eps, prenorm=prenorm)
    return norm


def naive_of(path, name):
    return getattr(importlib.import_module(f'fla.modules.{path}'), name)


def _groups(x, weight, bias, residual=None, eps=1e-5, prenorm=False, is_rms_norm=False, num_groups=1, **others):
    return naive_of('norm.layernorm', 'group_norm_ref')(
        x, weight, bias, num_groups, residual=residual, eps=eps, prenorm=prenorm, is_rms_norm=is_rms_norm)


def _gated_norm(x, g, weight, bias, activation='swish', eps=1e-6, **others):
    out = naive_of('norm.layernorm', 'rms_norm_ref')(x, weight, bias, eps=eps)
    return out * (g.sigmoid() if activation == 'sigmoid' else silu(g))


def _norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias, eps=1e-5, **others):
    out = naive_of('norm.layernorm', 'rms_norm_ref')(x, norm_weight, norm_bias, eps=eps)
    return torch.nn.functional.linear(out, linear_weight, linear_bias)


def _gated_norm_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias, eps=1e-6, **others):
    out = _gated_norm(x, g, norm_weight, norm_bias, eps=eps)
    return torch.nn.functional.linear(out, linear_weight, linear_bias)


def _convolution(x, weight=None, bias=None, activation=None, **others):
    out = conv1d(pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0)), weight[:, None], bias, groups=len(weight))
    return (silu(out) if activation else out).transpose(1, 2), None


def _shift(x, cu_seqlens=None, cache=None, output_cache=False, **others):
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    return (before - x, x[:, -1:].clone()) if output_cache else before - x


def _rotary(x, cos, sin, interleaved=False, **others):
    return naive_of('rotary.ops', 'rotary_embedding_ref')(x, cos[:x.shape[1]], sin[:x.shape[1]], interleaved)


def _mixed(*args):
    return naive('rwkv7.fused_addcmul', 'torch_addcmul_rwkv7')(*args)


STAND_INS = {
    'chunk_gla': _gla, 'fused_recurrent_gla': _gla, 'chunk_simple_gla': _gla, 'fused_recurrent_simple_gla': _gla,
    'chunk_retention': _retention, 'fused_recurrent_retention': _retention, 'parallel_retention': _retention,
    'chunk_delta_rule': _delta, 'fused_recurrent_delta_rule': _delta,
    'chunk_gated_delta_rule': functools.partial(_gated_delta, function=lambda: naive(
        'gated_delta_rule.naive', 'naive_recurrent_gated_delta_rule')),
    'chunk_kda': functools.partial(_gated_delta, function=lambda: naive('kda.naive', 'naive_recurrent_kda')),
    'chunk_comba': _comba, 'fused_recurrent_comba': _comba, 'chunk_gated_delta_product': _product,
    'chunk_hgrn': lambda x, g, **others: naive('hgrn.naive', 'naive_recurrent_hgrn')(x, g),
    'chunk_rwkv6': _rwkv6, 'fused_recurrent_rwkv6': _rwkv6, 'chunk_rwkv7': _rwkv7,
    'chunk_linear_attn': _linear, 'fused_recurrent_linear_attn': _linear, 'fused_chunk_linear_attn': _linear,
    'parallel_based': _based, 'fused_chunk_based': _based, 'parallel_rebased': _rebased,
    'chunk_gsa': _slots, 'fused_recurrent_gsa': _slots, 'chunk_abc': _slots, 'chunk_lightnet': _light,
    'fused_additive_gate': _additive, 'rms_norm': _norm('rms_norm_ref'), 'layer_norm': _norm('layer_norm_ref'),
    'group_norm': _groups, 'rms_norm_gated': _gated_norm, 'rms_norm_linear': _norm_linear,
    'rms_norm_swish_gate_linear': _gated_norm_linear,
    'causal_conv1d': _convolution, 'token_shift': _shift, 'rotary_embedding': _rotary,
    'l2norm': lambda x, eps=1e-6, output_dtype=None: x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
    'fused_addcmul_rwkv7': _mixed,
    'fused_k_rwkv7': lambda k, a, ka: naive('rwkv7.fused_k_update', 'k_update_ref')(k, a, ka),
    'gate_output_correction': lambda *args: naive(
        'rwkv7.gate_output_correction', 'gate_output_correction_ref')(*args),
    'swish': silu, 'swiglu': lambda x, y: silu(x) * y,
    'swiglu_linear': lambda x, y, weight, bias: torch.nn.functional.linear(silu(x) * y, weight, bias),
}
#: What has no name of its own, as it is the `apply` of an autograd function.
APPLIED = ('swish', 'swiglu', 'swiglu_linear')
STAND_INS |= {name.replace('chunk_', 'fused_recurrent_'): STAND_INS[name] for name in (
    'chunk_gated_delta_rule', 'chunk_kda', 'chunk_hgrn')}


def build(name, **options):
    layers = pytest.importorskip('fla.layers', reason=REASON, exc_type=ImportError)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Alone(getattr(layers, name)(**LAYERS[name], **options)).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if 'A_log' not in key:
                    parameter.normal_(0., 0.3)
        return model, torch.randn(2, LENGTH, WIDTH)


@pytest.fixture
def stand_ins(monkeypatch):
    '''References that cannot be seen in the place of all kernels, computed in float64 throughout.'''
    pytest.importorskip('fla.layers', reason=REASON, exc_type=ImportError)
    for module in [value for key, value in sys.modules.items() if key.split('.')[0] == 'fla']:
        for attribute, value in list(vars(module).items()):
            name = attribute if attribute in APPLIED else getattr(value, '__name__', None)
            if name in STAND_INS and callable(value) and not isinstance(value, type):
                like = None if attribute in APPLIED else value
                monkeypatch.setattr(module, attribute, hidden(STAND_INS[name], like, 'fla.ops'))
    swish = hidden(silu, package='fla.ops')
    swish.__name__ = 'SwishFunction'
    monkeypatch.setitem(naive_of('activations', 'ACT2FN'), 'swish', swish)
    with contextlib.ExitStack() as patches:
        for patch in in_double():
            patches.enter_context(patch)
        patches.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        yield


@every_layer
def test_runs_without_a_kernel(name):
    '''What replaces the kernels needs no GPU, so that the layer can be explained where its forward does not run.'''
    model, input = build(name)
    output, relevance = explain_largest(model, input)
    assert output.isfinite().all()
    assert relevance.abs().sum() > 0


@every_layer
def test_forward_is_that_of_the_layer(name, stand_ins):
    model, input = build(name)
    with mock.patch.object(functions, '_rounds', return_value=False):
        output = explain_largest(model, input)[0]
    assert relative(output, model(input).detach()) <= 1e-12


@every_layer
@pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference], ids=[*COMPOSITES, 'difference'])
def test_one_map_whatever_computes_it(name, composite, stand_ins):
    '''In chunks or token by token, by a kernel or by the code of its reference.'''
    model, input = build(name)
    map = explain_largest(model, input, composite)[1]
    assert map.abs().sum() > 0
    if name in MODES:
        other = build(name, mode=MODES[name])[0]
        assert relative(explain_largest(other, input, composite)[1], map) <= 1e-9


@every_layer
def test_ledger_closes(name, stand_ins):
    model, input = build(name)
    assert_closed(audit(model, CPLRP(), input))


@every_layer
def test_the_future_is_exactly_absent(name, stand_ins):
    model, input = build(name)

    def at_token(output):
        chosen = torch.zeros_like(output)
        chosen[:, 50] = largest(output[:, 50])
        return chosen
    relevance = explain_largest(model, input, CPLRP, at_token)[1]
    assert (relevance[:, 51:] == 0).all()
    assert (relevance[:, :51] != 0).any()


@every_layer
def test_layer_is_restored(name):
    model, _ = build(name)
    before = Snapshot(model)
    [own] = AttentionCanonizer().apply(model)
    own.remove()
    assert_restored(before, model)


def test_every_layer_needs_its_kernels(stand_ins):
    '''Otherwise these tests would show nothing: without their rows the stand-ins are refused.'''
    for name in LAYERS:
        model, input = build(name)
        with mock.patch.object(families, 'FUNCTIONS', Rows()), pytest.raises(UntrackedTensor, match='cannot see'):
            explain_largest(model, input)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@every_layer
def test_kernels_on_a_gpu(name):
    '''The forward of the kernels, and the map of what runs in their place against that in float64.'''
    model, input = build(name)
    expected, relevance = explain_largest(model.double(), input.double())
    model, input = model.float().cuda(), input.cuda()
    assert relative(model(input).detach().cpu(), expected) <= 1e-2  # kernels may round their operands to ten bits
    output, own = explain_largest(model, input)
    assert relative(output.cpu(), expected) <= 1e-4
    assert relative(own.cpu(), relevance) <= 1e-3
