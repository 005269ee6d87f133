'''The advice of refusals, followed to its end: the forward is the same, and the ledger closes.'''
import re

import pytest
import torch

from cases import advice
from helpers import Snapshot, assert_closed, assert_restored, one_hot
from zennit_attn import operators
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import UnsupportedOperator
from zennit_attn.operators.refusals import GROUPS, REASONS
from zennit_attn.testing import check_explanation

ADVISED = {**advice.CASES, **advice.FORMS}


def seeded(function, *args):
    '''What a function returns that may draw at random.'''
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return function(*args)


def reason_of(model, input):
    '''Why a model is refused, as the error says it.'''
    before = Snapshot(model)
    with pytest.raises(UnsupportedOperator, match='no rule is known for it') as info:
        audit(model, CPLRP(), input, one_hot)
    assert_restored(before, model)
    return re.search(r'no rule is known for it: (.*)', str(info.value))[1]


def follows(model, input, draws=False):
    '''An explanation that is complete, and not empty. What draws at random has no forward to compare with.'''
    if draws:
        ledger = audit(model, CPLRP(), input, one_hot)
        assert_closed(ledger)
    else:
        ledger = check_explanation(model, input, attr_output=one_hot)
    assert ledger.input.abs().min() > 0


@pytest.fixture
def stand_ins(table):
    '''Functions that this CPU or this version of torch lacks, known by their names.'''
    for function in advice.STAND_INS.values():
        operators.register_operator(function, 'refused')


@pytest.mark.parametrize('why', GROUPS)
def test_every_reason_has_a_case(why):
    assert any(REASONS.get(name) == why for name in advice.CASES), 'tests/cases/advice.py has no case that follows it'


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors is in prototype stage')
@pytest.mark.parametrize('name', ADVISED)
def test_advice_of_a_reason_closes_the_ledger(name, stand_ins):
    '''A function of every group is refused for its reason, and what the reason says instead is explained.'''
    case = ADVISED[name]
    (model, input), (other, _) = advice.build(case.refused), advice.build(case.advised)
    model.train(case.trains)
    why = reason_of(model, input)
    assert why == REASONS[name] if name in REASONS else why
    follows(other, input, case.draws)
    if case.same:
        expected, actual = (seeded(module, input) for module in (model, other))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
