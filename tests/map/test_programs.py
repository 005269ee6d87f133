'''Random programs under our composites and under stock rules, and by name what they have found.

``pytest tests/map/test_programs.py --programs 20000`` checks that many fresh ones. What fails is printed as source.
'''
from collections import Counter
from contextlib import suppress
from zlib import crc32

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, seed, settings
from torch import nn
from zennit import rules as stock
from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite

import oracle
from cases.programs import Pasted, is_legal, programs
from helpers import Snapshot, assert_restored, explain, relative
from zennit_attn import rules as own
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError
from zennit_attn.layers import OPERATOR_MODULES

#: How far the ledger may be open and maps may differ, by the coarsest type that a program computes with.
LEDGER = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: .1}
MAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: .1}
#: What rounding may leave of the largest term of a ledger, where terms far above the output cancel.
ROUNDING = {dtype: 100 * torch.finfo(dtype).eps for dtype in LEDGER}
#: How many programs of each family the tests run, and the share of them that may be refused.
PROGRAMS = 500
REFUSED = {'cp_lrp': 0., 'attn_lrp': 0., 'rules': 0., 'operators': .05}
NAMES = vars(stock) | {name: getattr(own, name) for name in ('TaylorSoftmax', 'Constant', 'Uniform', 'Identity',
                                                            'ConstantDeviation')}
OPERATORS = {f'canonizer_{kind.value}': cls for kind, cls in OPERATOR_MODULES.items()}
#: Rules for operators that the replica has no word for.
UNSEEN = {('canonizer_linear', 'Epsilon()'), ('canonizer_linear', 'Gamma()'), ('canonizer_linear', 'ZPlus()'),
          ('canonizer_activation', 'Constant()')}


def by_rules(program):
    '''A composite with the program's rules: by name for its modules, by type for operators.'''
    rules = {name: eval(rule, NAMES) for name, rule in program.rules.items()}
    names = [([name], rule) for name, rule in rules.items() if name not in OPERATORS]
    types = [((OPERATORS[name],), rule) for name, rule in rules.items() if name in OPERATORS]
    return MixedComposite([NameMapComposite(names), LayerMapComposite(types)], canonizers=[AttentionCanonizer()])


FAMILIES = {
    'cp_lrp': (programs(), lambda program: CPLRP()),
    'attn_lrp': (programs(), lambda program: AttnLRP()),
    'rules': (programs(ruled=True), by_rules),
    'operators': (programs(ruled=True, operators=True), by_rules),
}


def replica(program, input, family):
    '''The map by the replica, or None where it has no word for a rule, or torch cannot trace the program.'''
    rules = program.rules.items()
    if UNSEEN & set(rules):
        return None
    taylor = family == 'attn_lrp' or ('canonizer_softmax', 'TaylorSoftmax()') in rules
    model = program.build(visible=True)
    modules = {name: spelled(rule) for name, rule in rules if name not in OPERATORS}
    with oracle.ruled(model, modules), suppress(oracle.Untraceable):
        return oracle.explain(model, input, torch.abs, 'taylor' if taylor else 'constant')
    return None


def spelled(rule):
    '''The name and the arguments of a rule that is given as source.'''
    name, _, arguments = rule.rstrip(')').partition('(')
    return (name, *(float(argument) for argument in arguments.split(',') if argument))


def check(program, family, composite):
    '''Forward, map, ledger, samples and the model itself.'''
    model, input, precision = program.build(), program.input(), program.precision
    with torch.no_grad():
        expected = model(input)
    before = Snapshot(model)
    output, relevance = explain(model, input, composite(program), torch.abs)
    ledger = audit(model, composite(program), input, torch.abs)
    assert_restored(before, model)
    assert relative(output, expected, 1e-12) <= 1e-12
    with torch.no_grad():
        assert torch.equal(model(input), expected)
    terms = torch.stack([ledger.output, ledger.input, *(sink.relevance for sink in ledger.sinks)]).abs()
    tolerance = LEDGER[precision] * ledger.output.abs() + ROUNDING[precision] * terms.amax(0)
    assert (ledger.unaccounted.abs() <= tolerance).all(), str(ledger)
    assert relative(ledger.input, relevance.flatten(1).sum(1).double(), 1e-12) <= LEDGER[precision]
    for index in range(len(input)):
        alone = explain(model, input[index:index + 1], composite(program), torch.abs)[1]
        assert relative(alone, relevance[index:index + 1], 1e-12) <= MAP[precision] * 1e-3
    shown = replica(program, input, family)
    assert shown is None or relative(relevance, shown, 1e-12) <= MAP[precision]
    return torch.equal(output, expected)


@pytest.mark.parametrize('family', FAMILIES)
def test_random_programs(family, request):
    seen, number = Counter(), request.config.getoption('programs')
    strategy, composite = FAMILIES[family]

    @settings(max_examples=PROGRAMS if number is None else max(1, number // len(FAMILIES)),
              database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def each(program):
        seen['drawn'] += 1
        if not is_legal(program.build(), program.input()):
            seen['illegal'] += 1
            return
        try:
            seen['exact'] += check(program, family, composite)
        except AttributionError as error:
            seen['refused'] += 1
            seen[type(error).__name__] += 1
            if not REFUSED[family]:
                raise
    if number is None:  # the same programs each time, and others in each family
        each = seed(crc32(family.encode()))(each)
    each()
    print(dict(seen))
    legal = seen['drawn'] - seen['illegal']
    assert legal >= .9 * seen['drawn']
    assert seen['refused'] <= REFUSED[family] * legal
    assert seen['exact'] >= .9 * (legal - seen['refused'])


# what the programs have found

class ViewWithoutGrad(nn.Module):
    '''In torch, a view that is made without gradients claims to require one; here it is a constant.'''
    def __init__(self):
        super().__init__()
        self.m0, self.head = nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        t0 = self.m0(x)
        with torch.no_grad():
            turned = t0.transpose(1, 2)
        return self.head((t0 * turned.reshape(t0.shape) + turned.sum(1, keepdim=True).mT).flatten(1))


class ViewDetached(ViewWithoutGrad):
    def forward(self, x):
        t0 = self.m0(x)
        turned = t0.transpose(1, 2).detach()
        return self.head((t0 * turned.reshape(t0.shape) + turned.sum(1, keepdim=True).mT).flatten(1))


class BiasOfAFunction(nn.Module):
    '''Where a rule of Zennit is on ``F.linear``, the bias is a part of what the rule absorbs, no sink of its own.'''
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(4, 4)), nn.Parameter(torch.empty(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(F.linear(x, self.weight, self.bias).flatten(1))


class ClampAtItsBound(nn.Module):
    '''An element that equals its bound passes no gradient on, or half of it, and the ledger has to know.'''
    def __init__(self):
        super().__init__()
        self.m0, self.head = nn.Linear(4, 4), nn.Linear(24, 3)

    def forward(self, x):
        t0 = self.m0(x)
        t0[:, 0] = -1.
        t1 = torch.cat([t0.clamp(min=-1.), torch.maximum(t0, torch.tensor(-1.))], 1)
        return self.head(t1.flatten(1))


class FusedAttentionOfGates(nn.Module):
    '''A gate is one in fused attention as well, whoever watches.'''
    def __init__(self):
        super().__init__()
        self.m0, self.head = nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        t0 = torch.tanh(self.m0(x))
        return self.head(F.scaled_dot_product_attention(t0, x, t0).flatten(1))


class ConstantTimesGate(nn.Module):
    '''A gate is none beside a constant, also if only its elements tell that it is one.'''
    def __init__(self):
        super().__init__()
        self.m0, self.head = nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        t0 = self.m0(x)
        t0[..., :2].exp_()
        return self.head((t0 * (F.elu(x) + 1)).flatten(1))


CASES = {
    'a gate beside constants': ('cp_lrp', Pasted(ConstantTimesGate, (2, 3, 4))),
    'fused attention of gates': ('attn_lrp', Pasted(FusedAttentionOfGates, (2, 3, 4))),
    'a clamp at its bound': ('cp_lrp', Pasted(ClampAtItsBound, (2, 3, 4))),
    'the same before a rule': ('rules', Pasted(ClampAtItsBound, (2, 3, 4), {'m0': 'Epsilon()', 'head': 'ZPlus()'})),
    'a view made without gradients': ('cp_lrp', Pasted(ViewWithoutGrad, (2, 3, 4), visible=ViewDetached)),
    'the same under rules': ('rules', Pasted(ViewWithoutGrad, (2, 3, 4), {'m0': 'ZPlus()'}, visible=ViewDetached)),
    'the bias of a function with a rule': ('operators', Pasted(
        BiasOfAFunction, (2, 3, 4), {'canonizer_linear': 'ZPlus()', 'head': 'Epsilon()'})),
}


@pytest.mark.parametrize('name', CASES)
def test_found_case(name):
    family, case = CASES[name]
    assert is_legal(case.build(), case.input())
    check(case, family, FAMILIES[family][1])


def test_replica_sees_a_wrong_rule():
    '''The check can fail: the map of one composite is not that of another.'''
    case = Pasted(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)), (2, 3, 4),
                  {'1': 'ZPlus()'})
    check(case, 'rules', by_rules)
    with pytest.raises(AssertionError):
        check(case, 'rules', lambda program: CPLRP())
