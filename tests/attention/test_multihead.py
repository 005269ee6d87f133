'''Multi-head attention written with einsum, against torch.nn.MultiheadAttention with the same weights.'''
import pytest
import torch
from torch import nn

from zennit_attn.attention import MultiheadAttention

from .helpers import TOLERANCE, assert_close, cast, perturbed

DIM, HEADS, QUERIES, KEYS, BATCH = 12, 3, 5, 7, 4
OPTIONS = {
    'plain': {},
    'no bias': {'bias': False},
    'bias_kv': {'add_bias_kv': True},
    'zero_attn': {'add_zero_attn': True},
    'bias_kv and zero_attn': {'add_bias_kv': True, 'add_zero_attn': True, 'bias': False},
    'widths': {'kdim': 8, 'vdim': 10},
    'widths and all': {'kdim': 8, 'add_bias_kv': True, 'add_zero_attn': True},
}
MASKS = {
    'none': (),
    'boolean': ('boolean',),
    'additive': ('additive',),
    'per head': ('per head',),
    'padding': ('padding',),
    'additive padding': ('additive padding',),
    'boolean and padding': ('boolean', 'padding'),
    'per head and padding': ('per head', 'padding'),
    'additive and additive padding': ('additive', 'additive padding'),
}


def masks(names, queries, keys):
    '''Masks that leave each query the first two keys.'''
    boolean = torch.rand(queries, keys) < 0.4
    heads = torch.rand(BATCH * HEADS, queries, keys) < 0.4
    padding = torch.arange(keys) >= torch.tensor([keys, keys - 2, 3, keys])[:, None]
    boolean[:, :2] = heads[..., :2] = False
    known = {
        'boolean': ('attn_mask', boolean), 'additive': ('attn_mask', torch.randn(queries, keys)),
        'per head': ('attn_mask', heads), 'padding': ('key_padding_mask', padding),
        'additive padding': ('key_padding_mask', torch.randn(BATCH, keys)),
    }
    return dict(known[name] for name in names)


def both(options, dtype):
    '''Torch's module and ours, with the same weights.'''
    torch.manual_seed(0)
    original = perturbed(nn.MultiheadAttention(DIM, HEADS, **options)).to(dtype).eval()
    model = MultiheadAttention(DIM, HEADS, **options).to(dtype).eval()
    model.load_state_dict(original.state_dict())
    return original, model


def sequences(options, self_attention):
    '''Query, key and value, the last two of other lengths and widths unless they are the query.'''
    query = torch.randn(QUERIES, BATCH, DIM)
    key = torch.randn(KEYS, BATCH, options.get('kdim', DIM))
    value = torch.randn(KEYS, BATCH, options.get('vdim', DIM))
    inputs = (query, query, query) if self_attention else (query, key, value)
    return tuple(each.transpose(0, 1) for each in inputs) if options.get('batch_first') else inputs


def compare(models, inputs, **kwargs):
    '''Outputs and weights are equal, the latter with and without their mean, and may be left out.'''
    for average in (True, False):
        expected = models[0](*inputs, **kwargs, average_attn_weights=average)
        for value, other in zip(models[1](*inputs, **kwargs, average_attn_weights=average), expected, strict=True):
            assert_close(value, other)
    out, weights = models[1](*inputs, **kwargs, need_weights=False)
    assert weights is None
    assert_close(out, expected[0])


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('batch_first', [False, True])
@pytest.mark.parametrize('option', OPTIONS)
def test_cross_attention(option, batch_first, mask, dtype):
    options = {**OPTIONS[option], 'batch_first': batch_first}
    inputs, kwargs = cast((sequences(options, False), masks(MASKS[mask], QUERIES, KEYS)), dtype)
    compare(both(options, dtype), inputs, **kwargs)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('option', [name for name in OPTIONS if 'widths' not in name])
def test_self_attention(option, mask, dtype):
    inputs, kwargs = cast((sequences(OPTIONS[option], True), masks(MASKS[mask], QUERIES, QUERIES)), dtype)
    compare(both(OPTIONS[option], dtype), inputs, **kwargs)


@pytest.mark.parametrize('option', OPTIONS)
@pytest.mark.parametrize('batch_first', [False, True])
def test_without_batch(option, batch_first):
    models = both({**OPTIONS[option], 'batch_first': batch_first}, torch.float64)
    inputs = [each[:, 0].double() for each in sequences(OPTIONS[option], False)]
    attn_mask, padding = torch.rand(QUERIES, KEYS) < 0.4, torch.arange(KEYS) >= KEYS - 1
    attn_mask[:, 0] = False
    compare(models, inputs, attn_mask=attn_mask, key_padding_mask=padding)


def test_causal_hint_comes_with_a_mask():
    models = both({}, torch.float64)
    inputs = cast(sequences({}, True), torch.float64)
    compare(models, inputs, attn_mask=torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1), is_causal=True)


def test_gradients_are_those_of_torch():
    models = both({'add_bias_kv': True}, torch.float64)
    inputs = cast(sequences({}, False), torch.float64)
    for model in models:
        model(*inputs)[0].square().sum().backward()
    pairs = dict(models[0].named_parameters())
    assert pairs.keys() == dict(models[1].named_parameters()).keys()
    for name, parameter in models[1].named_parameters():
        assert_close(parameter.grad, pairs[name].grad)


def test_dropout_drops_weights():
    model = MultiheadAttention(DIM, HEADS, dropout=0.5)
    x = torch.randn(QUERIES, BATCH, DIM)
    weights = model(x, x, x, average_attn_weights=False)[1]
    assert 0 < (weights == 0).sum() < weights.numel()
    assert (model.eval()(x, x, x, average_attn_weights=False)[1] > 0).all()


X = torch.zeros(QUERIES, BATCH, DIM)
BAD_CALLS = {
    'query width': ((X[..., :5], X, X), {}, ValueError, 'query has shape'),
    'key width': ((X, X[..., :5], X), {}, ValueError, 'key has shape'),
    'axes': ((X[None], X, X), {}, ValueError, 'query has shape'),
    'mixed axes': ((X, X[0], X), {}, ValueError, 'key has shape'),
    'lengths': ((X, X[:3], X), {}, ValueError, 'same'),
    'batches': ((X, X[:, :2], X[:, :2]), {}, ValueError, 'same'),
    'mask shape': ((X, X, X), {'attn_mask': torch.zeros(QUERIES, KEYS)}, ValueError, r'attn_mask has shape \(5, 7\)'),
    'mask dtype': ((X, X, X), {'attn_mask': torch.zeros(QUERIES, QUERIES).long()}, TypeError, 'attn_mask has dtype'),
    'padding shape': ((X, X, X), {'key_padding_mask': torch.zeros(2, QUERIES)}, ValueError, 'key_padding_mask has'),
    'padding dtype': ((X, X, X), {'key_padding_mask': torch.zeros(BATCH, QUERIES).int()}, TypeError, 'torch.int32'),
    'causal': ((X, X, X), {'is_causal': True}, ValueError, 'attn_mask has to be given'),
}


@pytest.mark.parametrize('case', BAD_CALLS)
def test_refuses_inputs(case):
    inputs, kwargs, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        MultiheadAttention(DIM, HEADS)(*inputs, **kwargs)


@pytest.mark.parametrize('heads', [5, 0])
def test_refuses_uneven_heads(heads):
    with pytest.raises(ValueError, match='not divisible'):
        MultiheadAttention(DIM, heads)
