'''Softmaxes that are written out: what their exponentials are elsewhere, and shifts that cancel.'''
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import assert_closed, explain, largest, relative
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.errors import NoRelevance


class Code(nn.Module):
    '''A line of code between two layers.'''
    def __init__(self, code):
        super().__init__()
        self.first, self.a, self.b, self.head, self.code = *(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 2), code

    def forward(self, x):
        return self.head(self.code(self, self.first(x)))


def built(code):
    torch.manual_seed(0)
    return Code(code).double().eval(), torch.randn(3, 5, 6, dtype=torch.float64)


def in_place(m, e):
    e = e * 1.
    e.mul_(2.).add_(1.)
    return e * m.b.weight[0]


def written(m, e, x):
    y = x.clone()
    y[..., :3] = e[..., :3]
    return y


#: What code does with exponentials that are not divided by a sum of such.
USES = {
    'product': lambda m, e, x: e * m.a(x),
    'layer': lambda m, e, x: x + m.b(e),
    'sum': lambda m, e, x: x + e.sum(-1, keepdim=True),
    'side by side': lambda m, e, x: torch.cat([e[..., :3], x[..., 3:]], -1),
    'in place': lambda m, e, x: in_place(m, e) * x,
    'written into': written,
    'another denominator': lambda m, e, x: e / (1 + x.abs().sum(-1, keepdim=True)) + x,
    'over a maximum': lambda m, e, x: x * (e / e.amax(-1, keepdim=True)),
    'of each element': lambda m, e, x: x * (e / (1 + e)),
    'two of them': lambda m, e, x: (e @ (e.mT @ m.a(x))) / (e @ e.sum(1)[..., None]),
    'squared': lambda m, e, x: x * (e * e / (e * e).sum(-1, keepdim=True)),
}


@pytest.mark.parametrize('composite', [AttnLRP, lambda: AttnLRPGamma(linear_gamma=.1)])
@pytest.mark.parametrize('use', USES)
def test_exponentials_are_constants_elsewhere(use, composite):
    '''The same as with their values: nothing goes the way back that they have kept.'''
    model, input = built(lambda m, x: USES[use](m, x.exp(), x))
    twin, _ = built(lambda m, x: USES[use](m, x.detach().exp(), x))
    relevance = explain(model, input, composite, largest)[1]
    assert relative(relevance, explain(twin, input, composite, largest)[1]) <= 1e-12
    ledger = audit(model, composite(), input, largest)
    assert_closed(ledger)
    assert relative(ledger.input, relevance.flatten(1).sum(1)) <= 1e-9


def test_models_that_end_with_exponentials_are_refused_by_name():
    model, input = built(lambda m, x: x)
    with pytest.raises(NoRelevance, match='exp'):
        explain(nn.Sequential(model, Exp()), input, AttnLRP)


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()


def causal(x):
    return torch.ones(x.shape[1], x.shape[1]).tril().to(x)


def pooled(shift):
    def run(m, x):
        weights = (m.a(x) - shift(m.a(x))).exp()
        return (weights * m.b(x)).cumsum(1) / weights.cumsum(1)
    return run


def attended(shift):
    def run(m, x):
        scores = m.a(x) @ m.b(x).mT
        weights = (scores - shift(scores)).exp() * causal(x)
        return weights / weights.sum(-1, keepdim=True) @ x
    return run


def linear(shift):
    '''Linear attention, whose normalizer is a constant.'''
    def run(m, x):
        q, k = m.a(x).exp(), (m.b(x) - shift(m.b(x))).exp()
        weights = q @ k.mT * causal(x)
        return weights @ x / weights.sum(-1, keepdim=True)
    return run


SHIFTS = {
    'amax': lambda x: x.amax(1, keepdim=True), 'max of all': lambda x: x.amax((1, 2), keepdim=True),
    'values': lambda x: x.max(1, keepdim=True).values,
    'two maxima': lambda x: torch.maximum(x[:, :3].amax(1, True), x[:, 3:].amax(1, True)),
}


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
@pytest.mark.parametrize('shift', SHIFTS)
@pytest.mark.parametrize('code', [pooled, attended, linear])
def test_a_maximum_over_time_that_cancels_carries_nothing(code, shift, composite):
    model, input = built(code(SHIFTS[shift]))

    def early(output):
        return largest(output[:, :3]) if output.shape[1] == 3 else F.pad(largest(output[:, :2]), (0, 0, 0, 3))
    relevance = explain(model, input, composite, early)[1]
    assert relevance[:, 2:].abs().max() <= 1e-12 * relevance.abs().max()
    assert_closed(audit(model, composite(), input, early))
    expected = explain(built(code(lambda x: SHIFTS[shift](x).detach()))[0], input, composite, early)[1]
    assert relative(relevance, expected) <= 1e-9


def shifted(x):
    return x - x.amax(-1, keepdim=True)


def over_sum(x):
    return x / x.sum(-1, keepdim=True)


def written_to_later(m, x):
    '''What was added to the numerator is something else when it is divided.'''
    added, weights = torch.ones(6).to(x), m.a(x).exp()
    above = weights * m.b(x) + added
    added.zero_()
    return above / weights.sum(-1, keepdim=True)


def viewed(m, x):
    '''A view of what became an exponential in place sees what is written to it later.'''
    weights = m.a(x)
    weights.exp_()
    first = weights[..., :1]
    weights.mul_(2.)
    return weights * first


def looped(m, x):
    above, below, top = 0., 0., torch.full_like(x, -torch.inf)
    for step in range(400):
        scores = m.a(x) * (step % 7) / 7
        new = torch.maximum(top, scores)
        factor, weights, top = (top - new).exp(), (scores - new).exp(), new
        above, below = above * factor + weights * m.b(x), below * factor + weights
    return above / below


def at_once(m, x):
    scores = torch.stack([m.a(x) * (step % 7) / 7 for step in range(400)])
    return (scores.softmax(0) * m.b(x)).sum(0)


#: Pairs of code that computes the same.
PAIRS = {
    'top k': (lambda m, x: over_sum(m.a(x).topk(3).values.exp()) * m.b(x)[..., :3],
              lambda m, x: m.a(x).topk(3).values.softmax(-1) * m.b(x)[..., :3]),
    'top k, shifted': (lambda m, x: over_sum(shifted(m.a(x).topk(3).values).exp()) * m.b(x)[..., :3],
                       lambda m, x: m.a(x).topk(3).values.softmax(-1) * m.b(x)[..., :3]),
    'of maxima': (lambda m, x: over_sum(shifted(torch.maximum(m.a(x), m.b(x))).exp()) * x,
                  lambda m, x: torch.maximum(m.a(x), m.b(x)).softmax(-1) * x),
    'minima': (lambda m, x: over_sum((-(m.a(x) - m.a(x).amin(-1, True))).exp()) * x,
               lambda m, x: F.softmin(m.a(x), -1) * x),
    'normalized again': (lambda m, x: over_sum(m.a(x).softmax(-1).topk(3).values) * m.b(x)[..., :3],
                         lambda m, x: m.a(x).topk(3).values.softmax(-1) * m.b(x)[..., :3]),
    'many steps': (looped, at_once),
}


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
@pytest.mark.parametrize('name', PAIRS)
def test_two_ways_of_one_function(name, composite):
    (model, input), (other, _) = (built(lambda m, x, code=code: F.pad(code(m, x), (0, 6 - code(m, x).shape[-1])))
                                  for code in PAIRS[name])
    relevance = explain(model, input, composite, largest)[1]
    assert relative(relevance, explain(other, input, composite, largest)[1]) <= 1e-9
    if name != 'many steps':
        assert_closed(audit(model, composite(), input, largest))


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
@pytest.mark.parametrize('code', [written_to_later, viewed])
def test_what_is_written_to_later_is_no_part(code, composite):
    model, input = built(lambda m, x: x + code(m, x))
    output = explain(model, input, composite, largest)[0]
    assert torch.equal(output, model(input))
    assert_closed(audit(model, composite(), input, largest))
