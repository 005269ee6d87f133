'''Functions of autograd with a backward pass of their own, before gates and before what carries relevance.'''
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import epsilon, relevance_of
from zennit_attn.composites import CPLRP, AttnLRP

from .helpers import Around, check, data, every_composite, refused


class Seen(torch.autograd.Function):
    '''Code that cannot be seen.'''
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Reversed(torch.autograd.Function):
    '''Gradient reversal: the identity with another gradient.'''
    view = True

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x) if Reversed.view else x

    @staticmethod
    def backward(ctx, grad):
        return -grad


@every_composite
@pytest.mark.parametrize('view', [True, False])
def test_identity_with_another_gradient(make, view, monkeypatch):
    monkeypatch.setattr(Reversed, 'view', view)
    model = Around(lambda body, x: body.head(body.attn(Reversed.apply(body.embed(x)))))
    refused(lambda: relevance_of(model, data(), make), 'ReversedBackward', model=model)
    model = nn.Sequential(model, Around(lambda body, x: Reversed.apply(x))).double()
    refused(lambda: relevance_of(model, data(), make), 'ReversedBackward', model=model)


GATED = {
    'softmax': lambda f, x, v: f(x).softmax(-1) * v, 'sigmoid': lambda f, x, v: f(x).sigmoid() * v,
    'sdpa': lambda f, x, v: F.scaled_dot_product_attention(f(x), f(x), v),
}
CARRIED = {
    'values': lambda f, x, v: F.scaled_dot_product_attention(v, v, f(x)),
    'all': lambda f, x, v: (lambda y: F.scaled_dot_product_attention(y, y, y))(f(x)),
    'mean': lambda f, x, v: v + torch.var_mean(f(x), -1, keepdim=True)[1],
    'activation': lambda f, x, v: F.silu(f(x)) + v,
}


@pytest.mark.parametrize('make', [CPLRP, epsilon])
@pytest.mark.parametrize('gate', GATED)
def test_unseen_code_into_a_gate(make, gate):
    '''What only goes into a constant receives nothing, wherever it comes from.'''
    models = [Around(lambda body, x, f=f: body(GATED[gate](f, body.embed(x), x)))
              for f in (Seen.apply, lambda x: 2 * x)]
    check(models[0], make, relevance_of(models[1], data(), make))


@pytest.mark.parametrize('gate', [*GATED, *CARRIED])
@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
def test_unseen_code_that_receives_relevance(make, gate):
    if gate == 'sigmoid' or (gate in GATED and make is CPLRP):
        return
    model = Around(lambda body, x: body((GATED | CARRIED)[gate](Seen.apply, body.embed(x), x)))
    refused(lambda: relevance_of(model, data(), make), 'SeenBackward', model=model)
