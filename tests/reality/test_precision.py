'''Low precision and autocast.'''
import pytest
import torch

from helpers import relevance_of

from .helpers import Around, close, data, every_composite, expected, explain_call, fresh


@every_composite
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, .05), (torch.float16, .005), (torch.float32, 1e-5)])
def test_low_precision(make, dtype, tolerance):
    relevance = relevance_of(fresh().to(dtype), data().to(dtype), make)
    assert relevance.dtype == dtype
    close(relevance.double(), expected(make), tolerance)


@every_composite
@pytest.mark.parametrize('where', ['outside', 'inside', 'forward only'])
def test_autocast(make, where):
    model, x = fresh().float(), data().float().requires_grad_()

    def lower(body, x):
        with torch.autocast('cpu', torch.bfloat16):
            return body(x)
    if where == 'outside':
        with torch.autocast('cpu', torch.bfloat16):
            relevance = relevance_of(model, x.detach(), make)
    elif where == 'inside':
        relevance = relevance_of(Around(lower, model), x.detach(), make)
    else:
        relevance, = explain_call(model, make, lambda model: lower(model, x), x)
    assert relevance.dtype == torch.float32
    close(relevance.double(), expected(make), .05)
