'''What code writes into the result of an operator: the map is that of the same out of place.'''
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import COMPOSITES, equal_maps, explain
from zennit_attn.composites import AttnTaylor, Difference

COMPOSITE = {**{name: make for name, (make, _) in COMPOSITES.items()}, 'attn_taylor': AttnTaylor,
             'difference': Difference}


def attended(x, **options):
    return F.scaled_dot_product_attention(x, x / 2, x, **options)


FUNCTIONS = {
    **{name: getattr(torch, name) for name in (
        'sigmoid tanh exp exp2 expm1 reciprocal sinh cosh erf erfc square relu'.split())},
    **{name: getattr(F, name) for name in (
        'gelu silu mish elu selu softplus hardsigmoid hardtanh softsign logsigmoid relu6 leaky_relu'.split())},
    'softmax': lambda x: x.softmax(-1), 'log_softmax': lambda x: x.log_softmax(-1),
    'logsumexp': lambda x: x.logsumexp(-1, keepdim=True), 'norm': lambda x: x.norm(dim=-1, keepdim=True),
    'normalize': lambda x: F.normalize(x, dim=-1), 'layer_norm': lambda x: F.layer_norm(x, (6,)),
    'rms_norm': lambda x: F.rms_norm(x, (6,)), 'prod': lambda x: x.prod(-1, keepdim=True),
    'cumsum': lambda x: x.cumsum(-1), 'amax': lambda x: x.amax(-1, keepdim=True), 'mean': lambda x: x.mean(-2)[:, None],
    'sort': lambda x: x.sort(-1).values, 'clamp': lambda x: x.clamp(-.2, .2),
    'where': lambda x: torch.where(x > 0, x, x / 2), 'pool': lambda x: F.max_pool1d(x, 1),
    'quotient': lambda x: x / (1 + x.abs()), 'product': lambda x: x * x, 'glu': lambda x: F.glu(torch.cat([x, x], -1)),
    'conv': lambda x: F.conv1d(x, torch.ones(3, 3, 1).to(x)),
    'einsum': lambda x: torch.einsum('bnd,bmd,bme->bne', x, x, x),
    'attention': attended, 'causal attention': lambda x: attended(x, is_causal=True),
    'a view of attention': lambda x: attended(x[:, None])[:, 0],
}


class Model(nn.Module):
    '''A function between two layers, and what is written into its result.'''
    def __init__(self, function, write):
        super().__init__()
        self.first, self.last, self.function, self.write = nn.Linear(4, 6), nn.Linear(6, 3), function, write

    def forward(self, x):
        y = self.first(x)
        return self.last((self.write(self.function(y)) + y).mean(1))


def build(function, write):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(function, write).double().eval(), torch.randn(2, 3, 4, dtype=torch.float64)


WRITES = {
    'scaled': (lambda y: y.mul_(1.5), lambda y: y * 1.5),
    'shifted': (lambda y: y.add_(y.detach()), lambda y: y + y.detach()),
    'a row': (lambda y: (y[:, 0].mul_(2.), y)[1], lambda y: torch.cat([y[:, :1] * 2., y[:, 1:]], 1)),
}


@pytest.mark.parametrize('composite', COMPOSITE)
@pytest.mark.parametrize('write', WRITES)
@pytest.mark.parametrize('name', FUNCTIONS)
def test_what_is_written_into_a_result(name, write, composite):
    (model, input), (other, _) = (build(FUNCTIONS[name], each) for each in WRITES[write])
    expected = explain(other, input, COMPOSITE[composite])[1]
    # Torch keeps the results of some functions for the backward pass. Of these no plain gradient is to be had either.
    kept = pytest.raises(RuntimeError, match='modified by an inplace operation')
    try:
        found = explain(model, input, COMPOSITE[composite])[1]
    except RuntimeError:
        with kept:
            explain(model, input, COMPOSITE[composite])
        with kept:
            model(input.requires_grad_()).sum().backward()
    else:
        assert equal_maps(found, expected)
