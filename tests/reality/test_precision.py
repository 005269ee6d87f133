'''Low precision and autocast.'''
import pytest
import torch

from helpers import relevance_of
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit

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


class Faint(torch.nn.Module):
    '''A model whose outputs are tiny.'''
    def __init__(self, scale):
        super().__init__()
        self.fc, self.scale = torch.nn.Linear(8, 3, bias=False), scale

    def forward(self, x):
        return self.fc(x) * self.scale


def faint(scale, dtype):
    '''A model, an input, a target at one output of each sample, and these outputs.'''
    model, x, target = fresh(Faint, scale).to(dtype), data(shape=(2, 8)).to(dtype), torch.eye(3, dtype=dtype)[[0, 1]]
    return model, x, lambda output: target, model(x).detach().double()[[0, 1], [0, 1]]


@pytest.mark.parametrize('scale', [1e-3, 1e-5])
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, .05), (torch.float16, .1), (torch.float32, 1e-3)])
def test_tiny_outputs(dtype, tolerance, scale):
    '''Relevance per unit saturates where its type ends: the map keeps its form, and the ledger has what is cut.'''
    model, x, target, output = faint(scale, dtype)
    kept = (1 / output.abs()).clamp(max=torch.finfo(dtype).max) * output.abs()
    contributions = x.double() * model.fc.weight.detach().double()[:2]
    expected = contributions / contributions.sum(1, keepdim=True) * kept[:, None]
    close(relevance_of(model, x, CPLRP, target).double(), expected, tolerance)
    ledger = audit(model, CPLRP(), x, target)
    assert ledger.unaccounted.abs().max() < tolerance
    absorbed = sum(sink.relevance for sink in ledger.sinks if sink.kind == 'stabilizer')
    assert (absorbed - (1 - kept)).abs().max() < tolerance
    assert ((1 - kept) > .5).any() == (dtype is torch.float16 and scale < 1e-3)


@pytest.mark.parametrize('scale', [1e-7, 0.])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_that_are_almost_zero(dtype, scale):
    '''There is no map to speak of, but there are numbers.'''
    model, x, target, _ = faint(scale, dtype)
    assert relevance_of(model, x, CPLRP, target).isfinite().all()
    assert audit(model, CPLRP(), x, target).unaccounted.isfinite().all()
