'''The ledger asks the rule that ran: what it is called, what it absorbs.'''
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import wrap_torch_function

from helpers import assert_closed, one_hot
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.layers import Multiply
from zennit_attn.operators import register_operator
from zennit_attn.rules import Uniform


class Line(nn.Module):
    '''One line of code between two layers.'''
    def __init__(self, line):
        super().__init__()
        self.line, self.first, self.second = line, nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.line(self.first(x), self.second(x)))


def built(line):
    torch.manual_seed(0)
    return Line(line).double().eval(), torch.randn(2, 4, dtype=torch.float64)


def rule_of(ledger, function):
    found, = {row.rule for row in ledger.operators if row.function == function and not row.module.endswith('head')}
    return found


@pytest.mark.parametrize(('line', 'function', 'rule'), [
    (lambda a, b: a / (b.abs() + 1), 'div', 'LRPZero'),
    (lambda a, b: a * torch.tanh(b), 'mul', 'LRPZero'),
    (lambda a, b: a * b, 'mul', 'Uniform'),
    (lambda a, b: a * 2, 'mul', 'LRPZero'),
    (lambda a, b: 1 / b * a, 'rtruediv', 'Constant'),
    (lambda a, b: functional.elu(a) + 1 + b, 'elu', 'Identity'),
    (lambda a, b: torch.addcdiv(a, b, a.exp()), 'div', 'LRPZero'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_rule_that_ran_is_shown(line, function, rule):
    model, input = built(line)
    ledger = audit(model, CPLRP(), input, one_hot)
    assert rule_of(ledger, function) == rule
    assert_closed(ledger)


def test_rule_of_the_user_is_shown():
    model, input = built(lambda a, b: a * b)
    ledger = audit(model, CPLRP(layer_map=[(Multiply, Uniform())]), input, one_hot)
    assert rule_of(ledger, 'mul') == 'Uniform'


@wrap_torch_function(lambda x: (x,))
def shifted_scan(x):
    return x.cumsum(-1) + 1.5


@wrap_torch_function(lambda x, gate: (x, gate))
def weighed(x, gate):
    return x * gate.exp() + .5


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
def test_own_operator_that_adds_a_constant(table, composite):
    '''The constant of a registered function whose row says "affine" is a sink; without the word, the ledger is open.'''
    model, input = built(lambda a, b: shifted_scan(a) * torch.sigmoid(b))
    register_operator(shifted_scan, 'add', affine=True)
    ledger = audit(model, composite(), input, one_hot)
    assert_closed(ledger)
    assert any(sink.operator == 'shifted_scan' and sink.kind == 'constant' for sink in ledger.sinks)

    register_operator(shifted_scan, 'add')
    ledger = audit(model, composite(), input, one_hot)
    assert (ledger.unaccounted.abs() > 1e-3 * ledger.output.abs()).any()


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_own_operator_that_is_steered(table, composite):
    '''Linear in one operand, steered by another, with a constant on top.'''
    model, input = built(weighed)
    register_operator(weighed, 'linear', steered=(1,), affine=True)
    ledger = audit(model, composite(), input, one_hot)
    assert_closed(ledger)
    assert {row.rule for row in ledger.operators if row.function == 'weighed'} == {'LRPZero'}
    assert not any(row.module == 'second' and row.rule == 'Uniform' for row in ledger.operators)


def in_place(code):
    '''A line whose first operand is a clone that is written to.'''
    return lambda a, b: code(a * 1, b)


def tanh_times(t, b):
    t = torch.tanh(t)
    t *= b
    return t


def gate_over(t, b):
    scale = t.clone().exp_()
    scale /= b
    return scale * t


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
@pytest.mark.parametrize('line', [
    lambda a, b: functional.batch_norm(a, b.mean(0), b.var(0) + 1, None, None),
    lambda a, b: functional.instance_norm(a[..., None], b.mean(0), b.var(0) + 1, use_input_stats=False)[..., 0],
    in_place(tanh_times), in_place(gate_over), lambda a, b: torch.divide(torch.tanh(a), 2) * b,
], ids=['batch norm', 'instance norm', 'tanh in place', 'gate in place', 'divide'])
def test_lines_that_failed(line, composite):
    '''Statistics that depend on the input, activations and gates that are multiplied in place.'''
    if composite is AttnTaylor and line.__closure__ and line.__closure__[0].cell_contents is tanh_times:
        pytest.skip('an expansion is autograd, which needs the result of tanh that is overwritten')
    model, input = built(line)
    assert_closed(audit(model, composite(), input, one_hot))


@wrap_torch_function(lambda x, weight, bias: (x, weight, bias))
def linear_by_rows(x, weight, bias):
    '''As linear layers are computed on some devices: what they return is a view of the rows.'''
    return functional.linear(x.reshape(-1, 4), weight, bias).view(x.shape)


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor])
def test_product_that_is_a_view_and_written_to(table, composite):
    def line(a, b):
        y = linear_by_rows(a, torch.eye(4).to(a) * 2, torch.arange(4.).to(a))
        y += 1
        y *= 1.5
        y[:, 1:] += b[:, 1:]
        return y
    register_operator(linear_by_rows, 'linear', factors=(0, 1), affine=True)
    model, input = built(line)
    ledger = audit(model, composite(), input, one_hot)
    assert_closed(ledger)
    assert any(sink.operator == 'linear_by_rows' for sink in ledger.sinks)
