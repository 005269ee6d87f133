'''On a GPU every pasted problem gets the map that it gets on a CPU, and its ledger closes.'''
import pytest
import torch

from cases.problems import PROBLEMS, build
from helpers import assert_closed, explain, one_hot, relative, stock
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor, Difference
from zennit_attn.conservation import audit

COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'gammas': AttnLRPGamma, 'taylor': AttnTaylor,
              'difference': Difference, 'stock': stock}
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')]


def runs_on_a_gpu(model, input):
    try:
        with torch.no_grad():
            model(input)
    except RuntimeError as error:
        if 'same device' not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize('name', PROBLEMS)
@pytest.mark.parametrize('composite', COMPOSITES)
def test_map_and_ledger_are_those_of_a_cpu(name, composite):
    model, input = build(name)
    relevance = explain(model, input, COMPOSITES[composite])[1]
    model = model.cuda()
    if not runs_on_a_gpu(model, input.cuda()):
        pytest.skip('its own code makes tensors on the CPU')
    found, there = explain(model, input.cuda(), COMPOSITES[composite])
    assert there.device.type == 'cuda'
    with torch.no_grad():
        assert relative(found, model(input.cuda())) <= 1e-12
    assert relative(there.cpu(), relevance) <= 1e-6
    if composite != 'stock':
        assert_closed(audit(model, COMPOSITES[composite](), input.cuda(), one_hot))
