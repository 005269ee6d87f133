'''Gradients of all kinds: several passes, none at all, inside of a forward, of parts.'''
import threading

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from helpers import Snapshot, assert_closed, assert_restored, one_hot, relevance_of
from zennit_attn.conservation import audit

from .helpers import Around, check, close, data, every_composite, expected, explain_call, fresh, refused


@every_composite
def test_second_derivatives(make):
    model, x = fresh(), data().requires_grad_()

    def twice():
        with make().context(model):
            output = model(x)
            relevance, = torch.autograd.grad(output, x, one_hot(output), create_graph=True)
            torch.autograd.grad(relevance.sum(), x)
    refused(twice, 'create_graph=False', model=model)

    def inactive():
        composite = make()
        with composite.context(model), composite.inactive():
            output = model(x)
            torch.autograd.grad(output, x, one_hot(output))
    refused(inactive, 'inactive', model=model)


@every_composite
def test_without_gradients(make):
    '''Predictions in the context are plain; an explanation without gradients is torch's error; audit needs no care.'''
    model, x = fresh(), data().requires_grad_()
    plain, before = model(x).detach(), Snapshot(model)
    with make().context(model):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                close(model(x), plain)
                close(model(data()), plain)
        close(explain_open(model, x), expected(make))
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='does not require grad'):
            relevance_of(model, x.detach(), make)
        ledger = audit(model, make(), x, one_hot)
    assert_closed(ledger)
    assert_restored(before, model)
    with torch.inference_mode():
        other = data() * 1
    close(relevance_of(model, other, make), expected(make))


LOOKS = {
    'cast': lambda x: x.double(), 'same device': lambda x: x.cpu(), 'contiguous': lambda x: x.contiguous(),
    'flat': lambda x: x[0, 0].flatten(), 'at least': lambda x: torch.atleast_2d(x), 'like': lambda x: x.type_as(x),
    'view': lambda x: x[:, 0], 'maximum': lambda x: x.abs().max(), 'sum in place': lambda x: x.clone().add_(x),
    'expanded': lambda x: x.expand_as(x), 'several': lambda x: torch.broadcast_tensors(x, x),
}


@every_composite
@pytest.mark.parametrize('look', LOOKS)
def test_a_look_without_gradients_changes_nothing(make, look):
    '''Some functions return what they are given, which is not made without gradients.'''
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.look = fresh(), False

        def forward(self, x):
            x = x * 1.
            hidden = x.tanh()
            if self.look:
                with torch.no_grad():
                    for tensor in (x, hidden):
                        LOOKS[look](tensor)
            return self.inner(hidden + x)
    model, relevances = Looks(), []
    for model.look in (False, True):
        relevances.append(relevance_of(model, data(), make))
    close(*relevances)


def explain_open(model, x):
    output = model(x)
    return torch.autograd.grad(output, x, one_hot(output))[0]


@every_composite
def test_two_models_in_two_threads(make):
    found, barrier = {}, threading.Barrier(2)

    def work(name, model):
        with Gradient(model, make()) as attributor:
            for _ in range(5):
                barrier.wait(timeout=30)
                found[name] = attributor(data(), one_hot)[1]
    threads = [threading.Thread(target=work, args=(name, fresh())) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for relevance in found.values():
        close(relevance, expected(make))
    assert len(found) == 2


@every_composite
def test_several_passes_in_one_context(make):
    '''Forward twice, backward in another order, twice through one graph, from two outputs at once.'''
    model, x, y = fresh(), data().requires_grad_(), data(5).requires_grad_()
    with make().context(model):
        first, second, third = model(x), model(y), model(x)
        other, = torch.autograd.grad(second, y, one_hot(second))
        for keep in (True, False):
            close(torch.autograd.grad(first, x, one_hot(first), retain_graph=keep)[0], expected(make))
        fourth = model(x)
        both, = torch.autograd.grad([third, fourth], x, [one_hot(third)] * 2)
    close(both, 2 * expected(make))
    close(other, relevance_of(fresh(), data(5), make))


@every_composite
def test_inputs_of_all_kinds(make):
    '''A parameter, a tensor that is computed from another, one that has a gradient already.'''
    parameter = nn.Parameter(data())
    close(explain_call(fresh(), make, lambda model: model(parameter), parameter)[0], expected(make))
    leaf = (data() / 2).requires_grad_()
    doubled = leaf * 2
    close(explain_call(fresh(), make, lambda model: model(doubled), leaf)[0], 2 * expected(make))
    used = data().requires_grad_()
    fresh()(used).sum().backward()
    gradient = used.grad.clone()
    close(explain_call(fresh(), make, lambda model: model(used), used)[0], expected(make))
    assert torch.equal(used.grad, gradient)


@every_composite
def test_input_that_is_written_to_before_the_backward_pass(make):
    model, x = fresh(), data().requires_grad_()
    with make().context(model):
        output = model(x)
        with torch.no_grad():
            x.add_(1)
        with pytest.raises(RuntimeError, match='written to|modified by an inplace operation'):
            torch.autograd.grad(output, x, one_hot(output))


@every_composite
def test_gradients_inside_of_a_forward(make):
    '''They would be those of the rules, and so the forward another one.'''
    def forward(body, x):
        gradient, = torch.autograd.grad((x ** 2).sum(), x, create_graph=True)
        return body(x + gradient)
    model = Around(forward)
    refused(lambda: relevance_of(model, data(), make), 'takes gradients', 'torch.autograd.grad', model=model)


def by_method(tensor):
    return tensor.requires_grad_()


def by_attribute(tensor):
    tensor.requires_grad = True
    return tensor


@every_composite
@pytest.mark.parametrize('switch', [by_method, by_attribute])
def test_constants_that_are_made_to_require_a_gradient(make, switch):
    '''As set-ups for fine-tuning do with embeddings: they are constants still, and their gradients are refused.'''
    offset = data(2)

    def forward(body, x, switch=switch):
        return body(x * switch(offset.clone()) + switch(offset.clone()))
    model = Around(forward)
    wanted = relevance_of(Around(lambda body, x: body(x * offset + offset)), data(), make)
    check(model, make, wanted)

    def energy(body, x):
        leaf = switch(x.detach())
        return x + torch.autograd.grad((leaf ** 2).sum(), leaf)[0]
    refused(lambda: relevance_of(Around(energy), data(), make), 'takes gradients', 'torch.autograd.grad')


@every_composite
def test_explaining_a_tensor_from_inside(make):
    '''Its gradient is not relevance.'''
    model, kept = fresh(), []
    model.attn.register_forward_hook(lambda module, args, output: kept.append(output))
    x = data().requires_grad_()

    def attempt():
        with make().context(model):
            model(x)
            torch.autograd.grad(kept[-1].sum(), x)
    refused(attempt, 'did not start at the output', model=model)
    check(model, make, expected(make))


@every_composite
def test_parts_called_outside_of_the_forward(make):
    '''``model.encode(x)`` in the context of ``model``: plain gradients, if it were not refused.'''
    model, x = fresh(), data().requires_grad_()

    def attempt():
        with make().context(model):
            model.head(model.norm(model.embed(x)))
    refused(attempt, "'embed'", 'outside of the forward', 'on that module', model=model)
    with make().context(model):
        close(model.embed(data()), fresh().embed(data()))
