'''The advice of refusals, followed to its end: the forward is the same, and the ledger closes.'''
import re

import pytest
import torch

from cases import advice, unknown
from helpers import Snapshot, assert_restored, one_hot
from zennit_attn import operators
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import UnsupportedOperator
from zennit_attn.operators import probe
from zennit_attn.operators.refusals import GROUPS, REASONS

from .helpers import follows, seeded

ADVISED = {**advice.CASES, **advice.FORMS}


def reason_of(model, input):
    '''Why a model is refused, as the error says it.'''
    before = Snapshot(model)
    with pytest.raises(UnsupportedOperator, match='no rule is known for it') as info:
        audit(model, CPLRP(), input, one_hot)
    assert_restored(before, model)
    return re.search(r'no rule is known for it: (.*)', str(info.value))[1]


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
    assert (REASONS.get(name) or advice.WORDS[name]) in reason_of(model, input)
    follows(other, input, draws=case.draws)
    if case.same:
        expected, actual = (seeded(module, input) for module in (model, other))
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# functions that no table knows

def proposed(model, input):
    '''The row that a refusal ends with, or None.'''
    with pytest.raises(UnsupportedOperator, match='it is not in the table of operators') as info:
        audit(model, CPLRP(), input, one_hot)
    *_, before, row = str(info.value).splitlines()
    return row.strip() if before.endswith('(from zennit_attn import register_operator):') else None


def registered(row):
    '''Run a row as it stands in the error, where the functions that it may name are known.'''
    exec(f'from zennit_attn import register_operator\n{row}', {**vars(unknown)})


every_composite = pytest.mark.parametrize('composite', [CPLRP, AttnLRP])


@every_composite
@pytest.mark.parametrize('name', unknown.FITTING)
def test_row_that_is_proposed_closes_the_ledger(name, composite, table):
    code, row = unknown.FITTING[name]
    model, input = advice.build(code)
    assert proposed(model, input) == f'register_operator({row})'
    registered(proposed(model, input))
    follows(model, input, composite)


@pytest.mark.parametrize('name', unknown.FITTING)
def test_row_that_is_proposed_in_single_precision(name):
    code, row = unknown.FITTING[name]
    model, input = advice.build(code)
    assert proposed(model.float(), input.float()) == f'register_operator({row})'


@pytest.mark.parametrize('name', unknown.UNFIT)
def test_no_row_is_proposed(name):
    model, input = advice.build(unknown.UNFIT[name])
    assert proposed(model, input) is None


@pytest.mark.parametrize('name', [*unknown.FITTING, *unknown.UNFIT])
def test_proposal_changes_nothing(name):
    code = unknown.FITTING[name][0] if name in unknown.FITTING else unknown.UNFIT[name]
    model, input = advice.build(code)
    before, values, state = Snapshot(model), input.clone(), torch.get_rng_state()
    proposed(model, input)
    assert_restored(before, model)
    assert torch.equal(input, values)
    assert torch.equal(torch.get_rng_state(), state)


def test_proposal_leaves_what_the_function_was_given():
    x = torch.randn(2, 4)
    values = x.clone()
    assert probe.propose(unknown.overwritten, (x,), {}) is None
    assert probe.propose(unknown.bent, (x,), {}) == "register_operator(bent, 'activation')"
    assert torch.equal(x, values)


def test_function_of_torch_is_named_in_full():
    '''So that its row can be run by who does not know where it is.'''
    assert probe.name_of(torch._C._nn.pad_sequence) == 'torch._C._nn.pad_sequence'


def test_function_inside_of_another_has_its_own_name():
    inner = unknown.visible(lambda x: 2. * x)
    assert probe.propose(inner, (torch.ones(3),), {}) is None

    @unknown.visible
    def doubled(x):
        return 2. * x
    assert probe.propose(doubled, (torch.ones(3),), {}) == "register_operator(doubled, 'add')"


# torchvision's kernels, whose steering operand depends on the input as well

def deformed(m, a, b):
    '''A deformable convolution of 3x3 in 4x4, with offsets and a mask from the input.'''
    offset, mask = b.mean((1, 2)).view(-1, 1, 1, 1).expand(-1, 18, 2, 2), b.amax((1, 2)).view(-1, 1, 1, 1)
    return torch.ops.torchvision.deform_conv2d(
        a[:, None], m.inner.weight[None, None, :3, :3], offset, mask.expand(-1, 9, 2, 2), m.inner.bias[:1],
        1, 1, 0, 0, 1, 1, 1, 1, True)


def aligned(m, a, b):
    '''A box in each image, with its last corner from the input.'''
    corner = b[:, 0, :2].square() + 1.
    boxes = torch.cat([torch.arange(len(a), dtype=a.dtype)[:, None], torch.zeros_like(corner), corner], 1)
    return torch.ops.torchvision.roi_align(a[:, None], boxes, 1., 2, 2, 2, False)


@every_composite
@pytest.mark.parametrize(('code', 'row'), [
    (deformed, "torch.ops.torchvision.deform_conv2d, 'linear', factors=(0, 1, 3), steered=(2,), affine=True"),
    (aligned, "torch.ops.torchvision.roi_align, 'linear', steered=(1,)"),
])
def test_row_of_a_kernel_of_torchvision(code, row, composite, table):
    pytest.importorskip('torchvision', reason='its kernels are in torchvision', exc_type=ImportError)
    model, input = advice.build(code)
    assert proposed(model, input) == proposed(model.float(), input.float()) == f'register_operator({row})'
    registered(proposed(model.double(), input))
    follows(model, input, composite)
