'''What is written in place is written to both streams: the map of the same function without writes.'''
import pytest
import torch

from helpers import relative, relevance_of
from zennit_attn.composites import Difference
from zennit_attn.conservation import audit

from .helpers import Function, reference_of

W = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def rows_of_a_buffer(x):
    out = torch.zeros_like(x.detach())
    for i in range(x.shape[1]):
        out[:, i] = (x[:, i] @ W).tanh()
    return out


def view_before_base(x):
    y = (x @ W).clone()
    first = y[:, :2]
    y.tanh_()
    return first * y[:, 1:3]


def base_after_view(x):
    y = (x @ W).clone()
    y[:, :2].sigmoid_()
    y.transpose(1, 2)[:, 0] *= 2.
    return y * y


def views_of_a_constant(x):
    out = torch.ones(x.shape, dtype=x.dtype)
    left, right = out[..., :2], out[..., 2:]
    left.copy_(x[..., :2].exp())
    right.add_(x[..., 2:] @ W[:2, :2])
    return out * out


def views_of_a_constant_without_writes(x):
    out = torch.cat([x[..., :2].exp(), 1. + x[..., 2:] @ W[:2, :2]], -1)
    return out * out


def scattered(x):
    out = torch.full(x.shape, .5, dtype=x.dtype)
    out.index_add_(1, torch.tensor([0, 2, 2]), x[:, :3] @ W)
    out[:, [4]] = x[:, :1].square()
    return out.sigmoid()


def scattered_without_writes(x):
    y = x[:, :3] @ W
    rows = [.5 + y[:, 0], torch.full_like(y[:, 0], .5), .5 + y[:, 1] + y[:, 2], torch.full_like(y[:, 0], .5),
            x[:, 0].square()]
    return torch.stack(rows, 1).sigmoid()


def overwritten(x):
    y = (x @ W).clone()
    y.zero_()
    y[:, 1] += x[:, 0]
    y += x
    return y.exp()


def multiplied_by_itself(x):
    y = (x @ W).clone()
    y *= x
    y *= y
    return y


def divided_by_its_sum(x):
    y = (x @ W).exp()
    y /= y.sum(-1, keepdim=True)
    return y


def kept_list(x):
    states, state = [], x[:, 0]
    for i in range(1, x.shape[1]):
        state = state * x[:, i].sigmoid() + x[:, i]
        states.append(state)
    return torch.stack(states, 1)


#: Pairs of one function with and without writes.
PAIRS = {
    'rows of a buffer': (rows_of_a_buffer, lambda x: (x @ W).tanh()),
    'a view from before': (view_before_base, lambda x: (x @ W).tanh()[:, :2] * (x @ W).tanh()[:, 1:3]),
    'a constant through its views': (views_of_a_constant, views_of_a_constant_without_writes),
    'scattered': (scattered, scattered_without_writes),
    'overwritten': (overwritten, lambda x: (torch.cat([x[:, :1], x[:, 1:2] + x[:, :1], x[:, 2:]], 1)).exp()),
    'multiplied by itself': (multiplied_by_itself, lambda x: ((x @ W) * x) * ((x @ W) * x)),
    'divided by its sum': (divided_by_its_sum, lambda x: (x @ W).exp() / (x @ W).exp().sum(-1, keepdim=True)),
}


def _input_and_reference():
    input = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return input, reference_of(input)


@pytest.mark.parametrize('name', PAIRS)
def test_writes_change_no_map(name):
    input, reference = _input_and_reference()
    written, plain = (Function(function) for function in PAIRS[name])
    torch.testing.assert_close(written(input), plain(input))
    maps = [relevance_of(model, input, Difference(reference)) for model in (written, plain)]
    assert relative(*maps) <= 1e-12


@pytest.mark.parametrize('function', [*(first for first, _ in PAIRS.values()), base_after_view, kept_list])
def test_writes_keep_the_sum(function):
    input, reference = _input_and_reference()
    model = Function(function)
    ledger = audit(model, Difference(reference, stabilizer=1e-15), input)
    torch.testing.assert_close(ledger.input, (model(input) - model(reference)).flatten(), rtol=1e-9, atol=1e-11)


def test_reference_of_the_user_is_not_written_to():
    input, reference = _input_and_reference()
    before = reference.clone()
    relevance_of(Function(lambda x: x.clone().mul_(2.).exp_()), input, Difference(reference))
    relevance_of(Function(lambda x: x.mul_(2.)), input, Difference(reference))
    assert torch.equal(reference, before)


def test_random_draws_are_those_of_the_input():
    input, reference = _input_and_reference()
    model = Function(lambda x: torch.nn.functional.dropout(x @ W, .5))
    torch.manual_seed(0)
    relevance = relevance_of(model, input, Difference(reference), torch.ones_like)
    after = torch.rand(1)
    torch.manual_seed(0)
    mask = torch.nn.functional.dropout(torch.ones_like(input), .5)
    assert torch.equal(torch.rand(1), after)
    fixed = relevance_of(Function(lambda x: (x @ W) * mask), input, Difference(reference), torch.ones_like)
    assert relative(relevance, fixed) <= 1e-12
