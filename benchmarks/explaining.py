'''Explanations to be measured: gradient x input as one writes it, and Zennit's attributor with a composite.'''
from contextlib import contextmanager

import torch
from torch.nn import functional
from zennit.attribution import Gradient


def first_class(output):
    '''Select what is explained: the first class, or the first feature of all tokens.'''
    return functional.pad(output[..., :1], (0, output.shape[-1] - 1))


def gradient_times_input(model, input):
    '''Gradient x input, as one writes it without any library.'''
    input = input.detach().requires_grad_()
    output = model(input)
    gradient, = torch.autograd.grad(output, input, first_class(torch.ones_like(output)))
    return input * gradient


def plain(model, input):
    '''A work: gradient x input.'''
    @contextmanager
    def opened():
        yield lambda: gradient_times_input(model, input)
    return opened


def attributed(make_composite, model, input):
    '''A work: one explanation in the open context of a composite.'''
    @contextmanager
    def opened():
        with Gradient(model, make_composite()) as attributor:
            yield lambda: attributor(input, first_class)[1]
    return opened


def explain(make_composite, model, input):
    '''An explanation as a whole: open a context, explain, close it.'''
    with attributed(make_composite, model, input)() as work:
        return work()


def frozen(model, seed=0):
    '''A model in eval mode with frozen parameters off their initialisation, which may be zero.'''
    torch.manual_seed(seed)
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=.01)
    return model
