'''Recurrences as one operator: what they are to the rules, against twins, whatever computes them.'''
from functools import cache, partial

import pytest
import torch
from torch import nn

from attention.helpers import perturbed
from cases.families import BATCH, DIM, HEADS, explain_largest
from helpers import assert_closed, largest, relative
from zennit_attn.attention import gated_delta_rule, gated_linear_attention
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor
from zennit_attn.conservation import audit

LENGTH = 40  # more than a chunk
FORMS = ['decay', 'decay_by_key', 'bonus', 'delta', 'delta_by_key']
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
        inputs['initial_state'] = self.first(x[:, 0]).unflatten(-1, (HEADS, DIM // HEADS, -1))
        out, last = self.compute(**inputs)
        return self.out(out.transpose(1, 2).flatten(2)) + last.flatten(1).sum(-1)[:, None, None]


def kernel(form, backend=None):
    function = gated_delta_rule if 'delta' in form else gated_linear_attention
    return partial(function, output_final_state=True, backend=backend)


def formula(constant_gates, q, k, v, decay, initial_state, beta=None, bonus=None):
    '''The weights of all earlier values, written out as products of matrices.'''
    if constant_gates:
        q, k, decay, beta, bonus = (each if each is None else each.detach() for each in (q, k, decay, beta, bonus))
    decay = decay if decay.ndim == q.ndim else decay[..., None].expand_as(q)
    eye, outs, reads = torch.eye(q.shape[-1], dtype=q.dtype), [], q.unsqueeze(-2)
    strength = torch.ones_like(q[..., 0]) if beta is None else beta
    steps = torch.diag_embed(decay.exp())
    if beta is not None:
        steps = (eye - beta[..., None, None] * k.unsqueeze(-1) * k.unsqueeze(-2)) @ steps
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
