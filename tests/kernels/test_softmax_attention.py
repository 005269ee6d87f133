'''Fused softmax attention with a constant map: value gradients against the explicit softmax, and no map in memory.'''
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from zennit.attribution import Gradient

from helpers import assert_closed, relative
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.kernels import attention as kernels
from zennit_attn.propagation.rules import softmax_attention

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}
SEEN = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
BIAS = torch.linspace(-2., 2., 20, dtype=torch.float64).reshape(4, 5)


def blank(bias, rows=2):
    bias = bias.clone()
    bias[rows] = -torch.inf
    return bias


USUAL = ([2, 3, 4, 8], [2, 3, 5, 8], [2, 3, 5, 8])
# Shapes of queries, keys and values; arguments beside them.
CASES = {
    'plain': (*USUAL, {}),
    'two axes': ([4, 8], [5, 8], [5, 8], {}),
    'three axes': ([3, 4, 8], [3, 5, 8], [3, 5, 8], {}),
    'five axes': ([2, 1, 3, 4, 8], [2, 1, 3, 5, 8], [2, 1, 3, 5, 8], {}),
    'wider values': ([2, 3, 4, 8], [2, 3, 5, 8], [2, 3, 5, 11], {}),
    'one query': ([2, 3, 1, 8], [2, 3, 5, 8], [2, 3, 5, 8], {}),
    'no queries': ([2, 3, 0, 8], [2, 3, 5, 8], [2, 3, 5, 8], {}),
    'scale': (*USUAL, {'scale': 1.7}),
    'shared queries': ([1, 1, 4, 8], [2, 3, 5, 8], [2, 3, 5, 8], {}),
    'shared keys and values': ([2, 3, 4, 8], [2, 1, 5, 8], [1, 1, 5, 8], {}),
    'shared maps': ([1, 3, 4, 8], [1, 3, 5, 8], [2, 3, 5, 8], {}),
    'boolean mask': (*USUAL, {'attn_mask': SEEN[[0, 2, 2, 3]]}),
    'mask of keys': (*USUAL, {'attn_mask': SEEN[:1]}),
    'mask of samples': (*USUAL, {'attn_mask': SEEN[[0, 2]][:, None, None]}),
    'mask of heads': (*USUAL, {'attn_mask': torch.stack([SEEN, ~SEEN, SEEN.flip(0)])}),
    'float mask': (*USUAL, {'attn_mask': BIAS}),
    'blank rows': (*USUAL, {'attn_mask': SEEN}),
    'blank rows of floats': (*USUAL, {'attn_mask': blank(BIAS)}),
    'all blank': (*USUAL, {'attn_mask': torch.zeros(1, 5, dtype=torch.bool)}),
    'blank rows, three axes': ([3, 4, 8], [3, 5, 8], [3, 5, 8], {'attn_mask': SEEN}),
    'causal': ([2, 3, 5, 8], [2, 3, 5, 8], [2, 3, 5, 8], {'is_causal': True}),
    'causal, fewer queries': ([2, 3, 4, 8], [2, 3, 7, 8], [2, 3, 7, 8], {'is_causal': True}),
    'causal, more queries': ([2, 3, 7, 8], [2, 3, 4, 8], [2, 3, 4, 8], {'is_causal': True}),
    'grouped queries': ([2, 6, 4, 8], [2, 3, 5, 8], [2, 3, 5, 8], {'enable_gqa': True}),
    'grouped queries, three axes': ([4, 5, 8], [1, 5, 8], [1, 5, 8], {'enable_gqa': True, 'is_causal': True}),
    'grouped queries, mask': ([2, 6, 4, 8], [2, 2, 5, 8], [2, 2, 5, 8], {'enable_gqa': True, 'attn_mask': SEEN}),
}
every_case = pytest.mark.parametrize('name', CASES)


def operands(name, dtype):
    '''Queries, keys, values and the other arguments of a case.'''
    torch.manual_seed(0)
    *shapes, options = CASES[name]
    mask = options.get('attn_mask')
    options = options if mask is None or mask.dtype == torch.bool else {**options, 'attn_mask': mask.to(dtype)}
    return [torch.randn(shape, dtype=dtype) for shape in shapes], options


def attend(q, k, v, attn_mask=None, is_causal=False, scale=None, enable_gqa=False):
    '''The formula of attention, row by row of the map; a query that sees nothing gets nothing.'''
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = torch.einsum('...nd,...md->...nm', q, k) * (q.shape[-1] ** -.5 if scale is None else scale)
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
    if is_causal:
        seen = torch.arange(scores.shape[-2])[:, None] >= torch.arange(scores.shape[-1])
    if attn_mask is not None:
        seen = attn_mask if attn_mask.dtype == torch.bool else ~attn_mask.isneginf()
        scores = scores if attn_mask.dtype == torch.bool else scores + attn_mask.masked_fill(~seen, 0.)
    shares = scores.exp() * seen
    total = shares.sum(-1, keepdim=True)
    return torch.einsum('...nm,...me->...ne', (shares / (total + (total == 0))).detach(), v)


@pytest.fixture(params=['one block', 'blocks'])
def blocks(request, monkeypatch):
    '''The map as a whole, and in blocks of two rows.'''
    if request.param == 'blocks':
        monkeypatch.setattr(kernels, 'BLOCK', {'cpu': 1})
        monkeypatch.setattr(kernels, 'BLOCK_ROWS', 2)


@pytest.mark.parametrize('dtype', TOLERANCES)
@every_case
@pytest.mark.usefixtures('blocks')
def test_value_gradient_is_that_of_the_formula(name, dtype):
    (q, k, v), options = operands(name, dtype)
    v.requires_grad_()
    output = softmax_attention(q, k, v, **options)
    assert torch.equal(output, functional.scaled_dot_product_attention(q, k, v, **options))
    expected = attend(q, k, v, **options)
    grad = torch.randn_like(expected)
    gradient, = torch.autograd.grad(output, v, grad)
    assert gradient.dtype == dtype
    assert relative(output, expected, 1e-30) <= TOLERANCES[dtype]
    assert relative(gradient, torch.autograd.grad(expected, v, grad)[0], 1e-30) <= TOLERANCES[dtype]


@pytest.mark.parametrize('name', ['plain', 'boolean mask', 'causal', 'grouped queries'])
def test_half_precision_is_as_near_as_its_operands(name):
    (q, k, v), options = operands(name, torch.float64)
    v.requires_grad_()
    expected = attend(q, k, v, **options)
    grad = torch.randn_like(expected)
    halves = [x.detach().bfloat16() for x in (q, k, v)]
    output = softmax_attention(*halves[:2], halves[2].requires_grad_(), **options)
    gradient, = torch.autograd.grad(output, halves[2], grad.bfloat16())
    assert gradient.dtype == output.dtype == torch.bfloat16
    assert relative(gradient.double(), torch.autograd.grad(expected, v, grad)[0]) <= 2e-2


def test_dropout_is_torchs_own():
    (q, k, v), _ = operands('plain', torch.float64)
    v.requires_grad_()
    outcomes = []
    for function in (softmax_attention, functional.scaled_dot_product_attention):
        torch.manual_seed(1)
        output = function(q, k, v, dropout_p=.5)
        outcomes.append((output, *torch.autograd.grad(output.square().sum(), v)))
    assert all(torch.equal(ours, expected) for ours, expected in zip(*outcomes, strict=True))
    assert relative(outcomes[0][0], attend(q, k, v)) > .1


class Attention(nn.Module):
    '''Self-attention whose fused function can be exchanged for the formula.'''
    def __init__(self, function, key_heads=4, after=None, **options):
        super().__init__()
        self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 3)
        self.k, self.v = (nn.Linear(16, 4 * key_heads) for _ in range(2))
        self.function, self.after, self.options = function, after, options

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        heads = self.function(q, key=k, value=v, **self.options)
        heads = heads if self.after is None else self.after(heads, v)
        return self.out(heads.transpose(1, 2).flatten(2).mean(1))


def write_into(heads, v):
    heads += v
    heads[:, 0] *= 2
    return heads


MODELS = {
    'plain': {},
    'boolean mask': {'attn_mask': torch.ones(6, 6, dtype=torch.bool).tril(1)},
    'blank rows': {'attn_mask': torch.ones(6, 6, dtype=torch.bool).tril(-1)},
    'float mask': {'attn_mask': torch.linspace(-1., 1., 36, dtype=torch.float64).reshape(6, 6)},
    'causal': {'is_causal': True},
    'scale': {'scale': .2, 'is_causal': True},
    'grouped queries': {'enable_gqa': True, 'key_heads': 2},
    'written to': {'after': write_into},
}


def explained(composite, function, options):
    torch.manual_seed(0)
    model = Attention(function, **options).double().eval()
    input, target = torch.randn(2, 6, 16, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2]
    with Gradient(model, composite()) as attributor:
        output, relevance = attributor(input.clone(), target)
    return output, relevance, audit(model, composite(), input, target)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.usefixtures('blocks')
def test_relevance_is_that_of_the_formula(name):
    output, relevance, ledger = explained(CPLRP, functional.scaled_dot_product_attention, MODELS[name])
    expected = explained(CPLRP, lambda query, key, value, **options: attend(query, key, value, **options), MODELS[name])
    assert relative(output, expected[0]) <= 1e-12
    assert relative(relevance, expected[1]) <= 1e-9
    assert_closed(ledger)


@pytest.mark.parametrize('name', [name for name in MODELS if name != 'written to'])  # torch's own backward refuses it
def test_ledger_of_the_taylor_rule_closes(name):
    _, relevance, ledger = explained(AttnLRP, functional.scaled_dot_product_attention, MODELS[name])
    assert relevance.isfinite().all()
    assert_closed(ledger)


class Memory:
    '''Bytes allocated while a block runs: at most, and still at its end.'''
    def __enter__(self):
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profiler.__enter__()
        return self

    def __exit__(self, *exception):
        self.profiler.__exit__(*exception)
        events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == '[memory]']
        held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
        self.peak, self.kept = max(held, default=0), held[-1] if held else 0


def memory(length, values, **options):
    '''Bytes of one map, bytes kept after the forward pass, bytes of the backward pass at most.'''
    q, k, v = (torch.randn(1, 4, length, width) for width in (8, 8, values))
    v.requires_grad_()
    with Memory() as forward:
        output = softmax_attention(q, k, v, **options)
    grad = torch.ones_like(output)
    with Memory() as backward:
        torch.autograd.grad(output, v, grad)
    return 4 * 4 * length ** 2, forward.kept, backward.peak


@pytest.mark.parametrize('values', [8, 12], ids=['flash kernel', 'explicit kernel'])
@pytest.mark.parametrize('options', [{}, {'is_causal': True}], ids=['all', 'causal'])
def test_no_map_is_kept(values, options, monkeypatch):
    monkeypatch.setattr(kernels, 'BLOCK', {'cpu': 2 ** 14})
    size, kept, peak = memory(1024, values, **options)
    assert kept < size / 10
    assert peak < size / 5
    _, kept_of_two, peak_of_two = memory(2048, values, **options)
    assert kept_of_two < 2.1 * kept
    assert peak_of_two < 2.1 * peak


def test_a_map_would_be_seen():
    q, k, v = (torch.randn(1, 4, 512, 8) for _ in range(3))
    v.requires_grad_()
    with Memory() as forward:
        output = (q @ k.mT).softmax(-1) @ v
    assert output.shape == v.shape
    assert forward.kept > 4 * 4 * 512 ** 2
