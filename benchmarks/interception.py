'''What it costs that every torch function below a model is looked at: microseconds a call over plain torch.

Each work calls one operator again and again on tensors that are so small that nothing but the calls counts, once in an
open context and once outside, both with gradients. The last ones call no operators, but modules that contain others.
'''
from contextlib import contextmanager
from functools import partial
from statistics import median

import measure
import torch
from explaining import frozen
from measure import Row, rounds
from torch import nn
from torch.nn import functional
from zennit.attribution import Gradient

from zennit_attn.composites import CPLRP

GOAL = 3.
OTHER = torch.ones(4, 4)
#: Operators whose rule is autograd, and that are let through.
THROUGH = {
    'x + y': lambda x: x + x,
    'x + constant': lambda x: x + OTHER,
    'x * constant': lambda x: x * OTHER,
    'matmul': lambda x: OTHER @ x,
    'einsum': lambda x: torch.einsum('ij,jk->ik', OTHER, x),
    'reshape': lambda x: x.reshape(4, 4),
    'transpose': lambda x: x.transpose(0, 1),
    'getitem': lambda x: x[:],
    'mean': lambda x: x.mean(0, keepdim=True),
}
#: Operators that are run in another way than torch would.
REPLACED = {
    'softmax (constant)': lambda x: x + x.softmax(-1),
    'linear': lambda x: functional.linear(x, OTHER),
    'gelu (identity rule)': functional.gelu,
    'layer_norm (constant deviation)': lambda x: functional.layer_norm(x, (4,)),
    'x * y (uniform)': lambda x: x * x,
}


class Repeated(nn.Module):
    '''One operator, time and again.'''
    def __init__(self, function, calls):
        super().__init__()
        self.function, self.calls = function, calls

    def forward(self, x):
        for _ in range(self.calls):
            x = self.function(x)
        return x + 0 * OTHER


def containers(calls):
    '''Modules that only contain others.'''
    nested = [nn.Sequential(nn.Identity()) for _ in range(calls)]
    return nn.Sequential(*nested, Repeated(lambda x: x + OTHER, 1))


@contextmanager
def plain(model, x):
    '''A forward pass outside of any context.'''
    yield lambda: model(x.requires_grad_())


@contextmanager
def watched(model, x):
    '''A forward pass in an open context.'''
    with Gradient(model, CPLRP()):
        yield lambda: model(x.requires_grad_())


def opened(model):
    '''Both works.'''
    model, x = frozen(model), torch.rand(4, 4) / 4
    return {'ours': partial(watched, model, x), 'plain torch': partial(plain, model, x)}


def cost(options, make):
    '''Microseconds a call in a context and outside, and their difference over that of one call in all.'''
    calls = 20 if options.quick else 1000
    many, one = (rounds(opened(make(number)), options) for number in (calls, 1))
    each = {name: [1e6 * (total - single) / (calls - 1) for total, single in zip(many[name], one[name], strict=True)]
            for name in many}
    over = [ours - plain for ours, plain in zip(each['ours'], each['plain torch'], strict=True)]
    return median(each['ours']), median(each['plain torch']), median(over)


def row(options, name, make, goal):
    '''One line of the table, whose ratio stands for the microseconds a call over plain torch.'''
    ours, theirs, over = cost(options, make)
    text = f'{ours:.2f} µs, {1e6 / ours:,.0f} calls a second'
    return Row(name, 'µs a call over plain', text, 'plain torch', f'{theirs:.2f} µs', over, goal=goal)


def rows(options):
    '''All operators, and modules without any.'''
    for name, function in THROUGH.items():
        yield row(options, f'let through: {name}', partial(Repeated, function), GOAL)
    for name, function in REPLACED.items():
        yield row(options, f'replaced: {name}', partial(Repeated, function), None)
    yield row(options, 'modules that run no operators', containers, .1)


if __name__ == '__main__':
    measure.main(measure.parser(__doc__, repeats=15), rows)
