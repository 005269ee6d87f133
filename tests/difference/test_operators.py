'''One operator at a time, relative to a reference: complete, and what the formula says.'''
import math

import pytest
import torch
from torch.nn import functional

from helpers import assert_closed, relative, relevance_of
from zennit_attn.attention import causal_dot_product, delta_rule
from zennit_attn.composites import Difference
from zennit_attn.conservation import audit

from .helpers import Function, reference_of


def rotated(x):
    return torch.cat([-x[..., 2:], x[..., :2]], -1)


def pairs(x):
    return x[..., :2], x[..., 2:]


#: Functions of [3, 5, 4] numbers for which the rule is exact.
EXACT = {
    'relu': torch.relu, 'gelu': functional.gelu, 'silu': functional.silu, 'sigmoid': torch.sigmoid,
    'tanh': torch.tanh, 'exp': torch.exp, 'square': torch.square, 'cube': lambda x: x ** 3, 'abs': torch.abs,
    'sqrt': lambda x: (x.square() + 1.).sqrt(), 'rsqrt': lambda x: torch.rsqrt(x.square() + 1.),
    'reciprocal': lambda x: (x.square() + 1.).reciprocal(), 'sin': torch.sin, 'hardswish': functional.hardswish,
    'clamp': lambda x: x.clamp(-.5, .7), 'softplus': functional.softplus, 'sign': torch.sign, 'round': torch.round,
    'softmax': lambda x: x.softmax(-1), 'softmax of another dimension': lambda x: x.softmax(1),
    'softmin': lambda x: functional.softmin(x, -1), 'log_softmax': lambda x: x.log_softmax(-1),
    'logsumexp': lambda x: x.logsumexp(-1), 'logsumexp of two': lambda x: x.logsumexp((1, 2), keepdim=True),
    'product': lambda x: pairs(x)[0] * pairs(x)[1], 'square by hand': lambda x: x * x, 'matmul': lambda x: x @ x.mT,
    'three factors': lambda x: torch.einsum('bid,bjd,bjd->bi', x, x, x), 'prod': lambda x: x.prod(-1),
    'cumprod': lambda x: x.cumprod(-1), 'quotient': lambda x: pairs(x)[0] / (pairs(x)[1].square() + 1.),
    'one over': lambda x: 1. / (x.square() + 1.), 'quotient by itself': lambda x: x / (x.square() + 1.),
    'addcdiv': lambda x: torch.addcdiv(x, x, x.square() + 1.),
    'lerp': lambda x: torch.lerp(x, x.square(), x.sigmoid()),
    'layer_norm': lambda x: functional.layer_norm(x, (4,)),
    'layer_norm of two': lambda x: functional.layer_norm(x, (5, 4)),
    'rms_norm': lambda x: functional.rms_norm(x, (4,)), 'group_norm': lambda x: functional.group_norm(x.mT, 2).mT,
    'instance_norm': lambda x: functional.instance_norm(x), 'normalize': lambda x: functional.normalize(x, dim=-1),
    'norm': lambda x: x.norm(dim=-1), 'norm of one': lambda x: x.norm(p=1, dim=-1), 'norm of three': lambda x: x.norm(
        p=3, dim=-1), 'largest norm': lambda x: torch.linalg.vector_norm(x, torch.inf, dim=-1),
    'var': lambda x: x.var(-1), 'std': lambda x: x.std(-1), 'var_mean': lambda x: sum(torch.var_mean(x, -1)),
    'std_mean': lambda x: sum(torch.std_mean(x, -1)), 'cdist': lambda x: torch.cdist(x, x + 1.),
    'cosine_similarity': lambda x: functional.cosine_similarity(x[:, :1], x, dim=-1),
    'amax': lambda x: x.amax(-1), 'max': lambda x: x.max(-1).values,
    'min of all': lambda x: x.flatten(1).min(-1).values,
    'maximum': lambda x: torch.maximum(*pairs(x)), 'sort': lambda x: x.sort(1).values, 'topk': lambda x: x.topk(
        2, dim=1).values, 'median': lambda x: x.median(1).values, 'quantile': lambda x: x.quantile(.3, 1),
    'cummax': lambda x: x.cummax(1).values, 'max_pool': lambda x: functional.max_pool1d(x.mT, 2),
    'glu': functional.glu, 'attention': lambda x: functional.scaled_dot_product_attention(x, rotated(x), x.square()),
    'causal attention': lambda x: functional.scaled_dot_product_attention(x, rotated(x), x.square(), is_causal=True),
    'grouped attention': lambda x: functional.scaled_dot_product_attention(
        x[:, None].repeat(1, 4, 1, 1), rotated(x)[:, None].repeat(1, 2, 1, 1), x[:, None].repeat(1, 2, 1, 1),
        enable_gqa=True),
    'causal product': lambda x: causal_dot_product(x.square(), rotated(x).exp(), x),
}


@pytest.mark.parametrize('name', EXACT)
@pytest.mark.parametrize('equal', ['nothing', 'a token', 'all'])
def test_sums_up_to_the_difference(name, equal):
    '''Also where part of the reference is the input, where a secant has no quotient.'''
    model, (input, reference) = Function(EXACT[name]), _input_and_reference()
    if equal == 'a token':
        reference[:, 0] = input[:, 0]
    reference = input.clone() if equal == 'all' else reference
    ledger = audit(model, Difference(reference, stabilizer=1e-15), input)
    assert_closed(ledger)
    assert {sink.kind for sink in ledger.sinks} <= {'reference', 'stabilizer'}
    with torch.no_grad():
        expected = (model(input) - model(reference)).flatten()
    torch.testing.assert_close(ledger.input, expected, rtol=1e-9, atol=1e-11)


def _input_and_reference():
    input = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return input, reference_of(input)


def test_function_that_is_no_case_leaves_a_named_rest():
    '''Of other functions of several elements the rest is a sink, and the ledger closes.'''
    model = Function(lambda x: torch.atan2(pairs(x)[0], pairs(x)[1].exp() + x[..., :2].square()))
    input, reference = _input_and_reference()
    ledger = audit(model, Difference(reference), input)
    assert_closed(ledger)
    rest, = (sink for sink in ledger.sinks if sink.kind == 'taylor')
    assert rest.operator == 'atan2'
    assert 0. < rest.relevance.abs().max() < .05 * ledger.output.abs().max()


def test_softmax_goes_by_the_logarithmic_mean():
    x, x0 = (torch.randn(1, 6, dtype=torch.float64) for _ in range(2))
    target = torch.rand(1, 6, dtype=torch.float64)
    y, y0 = x.softmax(-1), x0.softmax(-1)
    mean = (y - y0) / (y.log() - y0.log())
    g = target / y
    expected = (x - x0) * mean * (g - (mean * g).sum() / mean.sum())
    found = relevance_of(torch.nn.Softmax(-1), x, Difference(x0, stabilizer=1e-15), lambda output: target)
    assert relative(found, expected) <= 1e-12


def test_softmax_does_not_depend_on_the_zero_of_scores():
    x, x0 = (torch.randn(2, 6, dtype=torch.float64) for _ in range(2))
    maps = [relevance_of(torch.nn.Softmax(-1), x + shift, Difference(x0 + shift)) for shift in (0., 100.)]
    assert relative(*maps) <= 1e-9


def test_softmax_of_what_is_too_small_to_be_a_number():
    '''A token that the input ignores altogether, and the reference does not.'''
    x, x0 = torch.tensor([[0., -500.]]), torch.tensor([[0., 0.]])
    found = relevance_of(Function(lambda x: x.softmax(-1)[:, :1]), x, Difference(x0), torch.ones_like)
    expected = Function(lambda x: x.softmax(-1)[:, :1])
    total = (expected(x) - expected(x0)) / expected(x)
    torch.testing.assert_close(found.sum(1, keepdim=True), total)


def test_masked_scores_receive_nothing():
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    model = Function(lambda x: ((x @ x.mT + mask).softmax(-1) @ x)[:, 1])
    input, reference = _input_and_reference()
    relevance = relevance_of(model, input, Difference(reference))
    assert relevance.isfinite().all()
    assert not relevance[:, 2:].any()
    assert relevance[:, :2].all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_powers_of_small_numbers(dtype):
    '''A variance of 1e-4 and one of 2e-4 are not close, though their difference is small.'''
    def rms(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
    input, reference = (tensor.to(dtype) * .02 for tensor in _input_and_reference())
    model = Function(rms)
    relevance = relevance_of(model, input, Difference(reference), torch.ones_like)
    total = ((model(input) - model(reference)) / model(input)).flatten()
    torch.testing.assert_close(relevance.flatten(1).sum(1), total, rtol=0., atol=10 * math.sqrt(
        torch.finfo(dtype).eps) * float(relevance.abs().max()) / 100)


def test_secant_of_close_numbers_is_the_derivative():
    '''And not a quotient of two roundings.'''
    input = torch.randn(2, 8, dtype=torch.float64)
    reference = input + 1e-13
    relevance = relevance_of(Function(torch.exp), input, Difference(reference), lambda output: output)
    slope = relevance / (input - reference)
    weights = Function(torch.exp)(torch.eye(8, dtype=torch.float64)).flatten()
    weights = weights - Function(torch.exp)(torch.zeros(1, 8, dtype=torch.float64)).flatten()
    expected = weights / (math.e - 1) * input.exp()
    assert relative(slope, expected) <= 1e-3  # of the difference itself three digits are there


def test_maximum_is_shared_by_where_the_one_overtakes_the_other():
    '''From (1, 0) to (0, 3): on the way the second overtakes after a quarter.'''
    x, x0 = torch.tensor([[0., 3.]]), torch.tensor([[1., 0.]])
    model = torch.nn.Module()
    model.forward = lambda x: x.amax(1, keepdim=True)
    found = relevance_of(model, x.double(), Difference(x0.double(), stabilizer=1e-15), lambda output: output)
    torch.testing.assert_close(found, torch.tensor([[-.25, 2.25]]).double())


def test_recurrence_leaves_a_small_rest():
    def rule(x):
        return delta_rule(x, functional.normalize(rotated(x), dim=-1), x.square(), x.sum(-1).sigmoid())
    model, (input, reference) = Function(rule), _input_and_reference()
    ledger = audit(model, Difference(reference), input)
    assert_closed(ledger)
    rest = sum(sink.relevance.abs().max() for sink in ledger.sinks if sink.kind == 'taylor')
    assert rest <= 1e-3 * ledger.output.abs().max()
