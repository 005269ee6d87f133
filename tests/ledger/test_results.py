'''A ledger as data, as a page, and as a yes or no.'''
import json

import pytest
import torch
from torch import nn

from zennit_attn import CPLRP, audit
from zennit_attn.conservation import Audit


def ledger():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double().eval()
    return audit(model, CPLRP(), torch.rand(2, 3, dtype=torch.float64) + 1.)


@pytest.mark.parametrize(('left', 'precision', 'closed'), [
    (1e-9, torch.float64, True), (1e-4, torch.float64, False), (1e-4, torch.float32, True),
    (1e-2, torch.float32, False), (1e-2, torch.bfloat16, True), (.2, torch.float16, False)])
def test_a_ledger_is_closed_as_far_as_its_type_can_tell(left, precision, closed):
    output = torch.tensor([1., 2.], dtype=torch.float64)
    found = Audit(output, output - torch.tensor([0., 2. * left]), [], [], precision=precision)
    assert found.closed is closed
    assert found.is_closed(left * 1.01)
    assert not found.is_closed(left * .99)


def test_a_ledger_of_nothing_is_not_closed():
    assert not Audit(torch.zeros(2), torch.zeros(2), [], []).closed


def test_the_type_is_that_of_the_output():
    model = nn.Linear(3, 2)
    assert audit(model, CPLRP(), torch.rand(2, 3)).precision == torch.float32
    assert ledger().precision == torch.float64


def test_a_ledger_as_data_adds_up():
    found = ledger()
    data = json.loads(json.dumps(found.to_dict()))
    assert data['closed'] is True
    sinks = [sum(sink['relevance'][sample] for sink in data['sinks']) for sample in range(2)]
    for sample in range(2):
        left = data['output'][sample] - data['input'][sample] - sinks[sample]
        assert left == pytest.approx(data['unaccounted'][sample], abs=1e-12)
    assert {sink['name'] for sink in data['sinks']} >= {'0.bias', '1.bias'}
    assert data['operators'][0]['function'] == 'linear'


def test_a_ledger_shows_itself():
    found = ledger()
    found.sinks[0].name = '<b>'
    page = found._repr_html_()
    assert '&lt;b&gt;' in page
    assert '<b>' not in page
    assert page.count('<tr>') == len(found.table().splitlines())
