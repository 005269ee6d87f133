'''Recurrences as one operator: what they are to the rules, against twins, whatever computes them.'''
from functools import cache, partial

import pytest
import torch
from torch import nn

from attention.helpers import perturbed
from cases.families import BATCH, DIM, HEADS, explain_largest
from helpers import assert_closed, largest, relative
from zennit_attn.attention import (
    gated_delta_rule,
    gated_linear_attention,
    general_delta_rule,
    linear_recurrence,
    mlstm,
    polynomial_attention,
    selective_scan,
    wkv,
)
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor, Difference
from zennit_attn.conservation import audit

LENGTH = 40  # more than a chunk
FORMS = ['decay', 'decay_by_key', 'bonus', 'delta', 'delta_by_key', 'general']
every_form = pytest.mark.parametrize('form', FORMS)


class Recurrence(nn.Module):
    '''A layer of heads with a memory that the input may set, computed by what it is given.'''
    def __init__(self, form, compute):
        super().__init__()
        self.form, self.compute, width = form, compute, DIM // HEADS
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.decay = nn.Linear(DIM, HEADS if form in ('decay', 'delta') else DIM)
        self.beta, self.bonus = nn.Linear(DIM, HEADS), nn.Linear(DIM, DIM)
        self.first = nn.Linear(DIM, HEADS * width * width)

    def forward(self, x):
        q, k, v, bonus = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
                          for part in (*self.qkv(x).chunk(3, -1), self.bonus(x)))
        decay = -nn.functional.softplus(self.decay(x))
        decay = decay.transpose(1, 2) if decay.shape[-1] == HEADS else decay.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        inputs = {'q': q, 'k': k / 2, 'v': v, 'decay': decay}
        if 'delta' in self.form:
            inputs['beta'] = self.beta(x).sigmoid().transpose(1, 2)
        if self.form == 'bonus':
            inputs['bonus'] = bonus
        if self.form == 'general':
            inputs['a'], inputs['b'] = bonus / 2, k / 4
        inputs['initial_state'] = self.first(x[:, 0]).unflatten(-1, (HEADS, DIM // HEADS, -1))
        out, last = self.compute(**inputs)
        return self.out(out.transpose(1, 2).flatten(2)) + last.flatten(1).sum(-1)[:, None, None]


def kernel(form, backend=None):
    function = {'delta': gated_delta_rule, 'general': general_delta_rule}.get(
        form.split('_')[0], gated_linear_attention)
    return partial(function, output_final_state=True, backend=backend)


def formula(constant_gates, q, k, v, decay, initial_state, beta=None, bonus=None, a=None, b=None):
    '''The weights of all earlier values, written out as products of matrices.'''
    if constant_gates:
        q, k, decay, beta, bonus, a, b = (
            each if each is None else each.detach() for each in (q, k, decay, beta, bonus, a, b))
    decay = decay if decay.ndim == q.ndim else decay[..., None].expand_as(q)
    eye, outs, reads = torch.eye(q.shape[-1], dtype=q.dtype), [], q.unsqueeze(-2)
    strength = torch.ones_like(q[..., 0]) if beta is None else beta
    steps = torch.diag_embed(decay.exp())
    if beta is not None:
        steps = (eye - beta[..., None, None] * k.unsqueeze(-1) * k.unsqueeze(-2)) @ steps
    if a is not None:
        steps = steps + b.unsqueeze(-1) * a.unsqueeze(-2)
    for i in range(q.shape[2]):
        total, row = 0., reads[:, :, i]
        for j in range(i, -1, -1):
            own = row * bonus[:, :, i, None] if bonus is not None and i == j else row
            weight = (own * k[:, :, j, None]).sum(-1) * strength[:, :, j, None]
            total = total + weight * v[:, :, j]
            row = row if bonus is not None and i == j else row @ steps[:, :, j]
        outs.append(total + (row @ initial_state).squeeze(-2))
    memory = initial_state
    for i in range(q.shape[2]):
        memory = steps[:, :, i] @ memory + (strength[:, :, i, None] * k[:, :, i])[..., None] * v[:, :, i, None]
    return torch.stack(outs, 2), memory


@cache
def layer(form, backend=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(Recurrence(form, kernel(form, backend))).double().eval()
        return model, torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)


@every_form
@pytest.mark.parametrize('backend', ['chunked', 'loop'])
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_twin(form, backend, composite):
    '''Values and the first memory carry relevance; queries, keys, decays, betas and bonuses are constants.'''
    model, input = layer(form, backend)
    twin = layer(form)[0]
    leaf = input.clone().requires_grad_()
    kept, twin.compute = twin.compute, partial(formula, True)
    try:
        output = twin(leaf)
    finally:
        twin.compute = kept
    weight = largest(output) / (output + 1e-9 * output.sign()).detach()
    expected = leaf.detach() * torch.autograd.grad(output, leaf, weight)[0]
    actual, relevance = explain_largest(model, input, composite)
    assert relative(actual, output.detach()) <= 1e-12
    assert relative(relevance, expected) <= 1e-12


@every_form
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
def test_one_map_whatever_computes_it(form, composite):
    maps = [explain_largest(*layer(form, backend), composite)[1] for backend in ('chunked', 'loop')]
    assert relative(*maps) <= 1e-9


@every_form
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
def test_ledger_closes(form, composite):
    model, input = layer(form)
    assert_closed(audit(model, composite(), input))


@every_form
def test_order_of_association_matters_only_to_code_that_is_written_out(form):
    '''Products from the left or from the right are one function, and two maps unless one operator stands for both.'''
    model, input = layer(form)
    own = explain_largest(model, input)
    kept, model.compute = model.compute, partial(formula, False)
    try:
        written = explain_largest(model, input)
    finally:
        model.compute = kept
    assert relative(own[0], written[0]) <= 1e-12
    assert relative(own[1], written[1]) > 0.01


@every_form
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
def test_future_is_exactly_absent(form, composite):
    model, input = layer(form)

    def at_token(output):
        chosen = torch.zeros_like(output)
        chosen[:, 20, 1] = output[:, 20, 1].detach()
        return chosen
    kept, model.compute = model.compute, lambda **inputs: (kept(**inputs)[0], inputs['v'].new_zeros(BATCH, 1))
    try:
        relevance = explain_largest(model, input, composite, at_token)[1]
    finally:
        model.compute = kept
    assert (relevance[:, 21:] == 0).all()
    assert (relevance[:, :21].abs().sum(-1) > 0).all()


# ---- recurrences of single features, and what is put together from operators -----------------------------------------

class Layer(nn.Module):
    '''Projections to what a recurrence takes: values, and gates of the same width.'''
    def __init__(self, form, compute):
        super().__init__()
        self.form, self.compute = form, compute
        self.parts, self.out = nn.Linear(DIM, 5 * DIM), nn.Linear(DIM, DIM)
        self.weights = nn.Parameter(-torch.rand(2, DIM))

    def forward(self, x):
        v, *gates = self.parts(x).chunk(5, -1)
        return self.out(self.compute(v, *gates, *self.weights))


def _scan(v, first, second, third, fourth, decay, _, function=selective_scan):
    rates = decay[:, None] * torch.tensor([1., 2., 3.], dtype=v.dtype)
    return function(v, nn.functional.softplus(first), rates, second[..., :3], third[..., :3])


SINGLE = {
    'linear': lambda v, a, *_: linear_recurrence(v, a.sigmoid()),
    'scan': _scan,
    'mlstm': lambda v, q, k, gates, *_: mlstm(q, k, v, gates[..., 0], gates[..., 1]),
    'wkv': lambda v, k, *rest: wkv(k, v, rest[-2], rest[-1]),
    'polynomial': lambda v, q, k, *_: polynomial_attention(q[..., :3], k[..., :3], v, (2., 1., 1.)),
}


def _weights(form, v, first, second, third, fourth, decay, bonus):
    '''The weight of each earlier token for each feature of a value, of shape ``(batch, to, from, feature)``.'''
    length = v.shape[1]
    steps = torch.arange(length)
    past = (steps[:, None] >= steps)[..., None]
    if form == 'linear':
        total = first.sigmoid().log().cumsum(1)
        return torch.where(past, total[:, :, None] - total[:, None], -torch.inf).exp()
    if form == 'scan':
        time, rates = nn.functional.softplus(first), decay[:, None] * torch.tensor([1., 2., 3.], dtype=v.dtype)
        total = (time[..., None] * rates).cumsum(1)
        kept = torch.where(past[..., None], total[:, :, None] - total[:, None], -torch.inf).exp()
        return torch.einsum('bijds,bjs,bis,bjd->bijd', kept, second[..., :3], third[..., :3], time)
    if form == 'mlstm':
        gain, total = third[..., 0], nn.functional.logsigmoid(third[..., 1]).cumsum(1)
        kept = torch.where(past[..., 0], total[:, :, None] - total[:, None] + gain[:, None], -torch.inf).exp()
        weights = first @ second.mT * first.shape[-1] ** -.5 * kept
        highest = torch.maximum((gain - total).cummax(1).values, torch.zeros(())) + total
        below = torch.maximum(weights.sum(2).abs(), torch.ones(())) + 1e-6 * highest.exp()
        return (weights / below[..., None])[..., None]
    if form == 'polynomial':
        scores = first[..., :3] @ second[..., :3].mT
        weights = (2 + scores + scores ** 2).tril()
        return (weights / (weights.sum(2, keepdim=True) + 1e-6))[..., None]
    exponents = (steps[:, None] - 1 - steps)[..., None] * decay + first[:, None]
    exponents = torch.where((steps[:, None] == steps)[..., None], bonus + first[:, None], exponents)
    return torch.where(past, exponents, -torch.inf).softmax(2)


def twin(form):
    '''Values with constant weights.'''
    def compute(v, *gates):
        weights = _weights(form, v.detach(), *(each.detach() for each in gates))
        return torch.einsum('bijd,bjd->bid', weights.expand(*weights.shape[:3], v.shape[-1]), v)
    return compute


@cache
def single(form):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(Layer(form, SINGLE[form])).double().eval()
        return model, torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)


every_single = pytest.mark.parametrize('form', SINGLE)


@every_single
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_twin_of_single_features(form, composite):
    '''Values carry relevance, and all that weighs them is constant: decays, steps, keys, queries, normalizers.'''
    model, input = single(form)
    leaf = input.clone().requires_grad_()
    kept, model.compute = model.compute, twin(form)
    try:
        output = model(leaf)
    finally:
        model.compute = kept
    weight = largest(output) / (output + 1e-9 * output.sign()).detach()
    expected = leaf.detach() * torch.autograd.grad(output, leaf, weight)[0]
    actual, relevance = explain_largest(model, input, composite)
    assert relative(actual, output.detach()) <= 1e-11
    assert relative(relevance, expected) <= 1e-11


@every_single
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor, Difference])
def test_ledger_of_single_features_closes(form, composite):
    model, input = single(form)
    assert_closed(audit(model, composite(), input))


@every_single
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor, Difference])
def test_future_of_single_features_is_exactly_absent(form, composite):
    model, input = single(form)

    def at_token(output):
        chosen = torch.zeros_like(output)
        chosen[:, 20, 1] = output[:, 20, 1].detach()
        return chosen
    relevance = explain_largest(model, input, composite, at_token)[1]
    assert (relevance[:, 21:] == 0).all()
    assert (relevance[:, :21].abs().sum(-1) > 0).all()
