'''What the package refuses: each time by name, with a remedy, and with the model as it was.'''
import re
import threading

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.rules import Epsilon, ZPlus

from cases.problems import DIM, TOKENS, Head, build
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, explain, one_hot, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError, NoRelevance
from zennit_attn.layers import Einsum, Multiply

SHAPE = (3, TOKENS, DIM)


class Host(nn.Module):
    '''A model that calls ``odd`` two levels down.'''
    def __init__(self, odd):
        super().__init__()
        self.embed, self.inner, self.head = nn.Linear(DIM, DIM), nn.Module(), Head()
        self.inner.block = nn.Sequential(nn.LayerNorm(DIM), odd)

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.inner.block(x))


class Doubler(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Code(nn.Module):
    '''A pasted module that runs ``function``, with a weight of its own.'''
    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(DIM, DIM), function

    def forward(self, x):
        return self.function(self.fc(x))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def forward(self, x):
        return torch.relu(self.fc(x))


def matrix_exponential(x):
    square = x[..., :TOKENS]
    return x + torch.linalg.matrix_exp(square * 0.1).sum(-1, keepdim=True)


def host(odd):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Host(odd() if isinstance(odd, type) else odd).double().eval()
        return model, torch.randn(SHAPE, dtype=torch.float64)


def refused(model, call, *patterns, before=None):
    '''``call`` is refused with a message of ours that has all ``patterns``, and leaves no trace.'''
    before = before or Snapshot(model)
    with pytest.raises(AttributionError) as info:
        call()
    for pattern in patterns:
        assert re.search(pattern, str(info.value), flags=re.IGNORECASE | re.DOTALL), (pattern, str(info.value))
    assert_restored(before, model)
    return str(info.value)


def audited(model, input, composite=CPLRP, target=one_hot):
    return audit(model, composite(), input.clone(), target)


every_entry = pytest.mark.parametrize('entry', [explain, audited])
every_composite = pytest.mark.parametrize('composite', [CPLRP, AttnLRP, stock])


# operators

@every_entry
@every_composite
def test_unknown_operator(entry, composite):
    model, input = host(Code(matrix_exponential))
    message = refused(model, lambda: entry(model, input, composite),
                      r'inner\.block\.1', 'matrix_exp', r"unknown\s*=\s*'gradient'", r'test_refusals\.py:\d+')
    assert 'torch.linalg.matrix_exp(square * 0.1)' in message


@every_composite
def test_unknown_operator_by_its_gradient(composite):
    '''With ``unknown='gradient'`` autograd serves the function, and the ledger still closes.'''
    model, input = host(Code(matrix_exponential))
    canonizers = [AttentionCanonizer(unknown='gradient')]
    make = EpsilonPlusFlat if composite is stock else composite
    output, relevance = explain(model, input, lambda: make(canonizers=canonizers))
    assert torch.allclose(output, model(input), rtol=1e-12)
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0


def test_unknown_operator_away_from_the_relevance():
    '''A function without a rule is no matter where its operands carry none.'''
    model, input = host(Code(lambda x: x + torch.linalg.matrix_exp(x.detach()[..., :TOKENS] * 0.1).mean()))
    ledger = audited(model, input)
    assert_closed(ledger)


def test_unknown_value_of_unknown():
    with pytest.raises(ValueError, match='unknown'):
        AttentionCanonizer(unknown='ignore')


@every_entry
@every_composite
def test_custom_autograd_function(entry, composite):
    model, input = host(Code(Doubler.apply))
    refused(model, lambda: entry(model, input, composite),
            r'inner\.block\.1', 'Doubler', r"unknown\s*=\s*'gradient'|canonizer|rule")


def test_custom_autograd_function_used_later():
    '''The unseen tensor is found also when it is only passed on, stored, or is the output itself.'''
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(DIM, 4)

        def forward(self, x):
            return Doubler.apply(self.fc(x))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Last().double(), torch.randn(3, DIM).double()
    refused(model, lambda: explain(model, input), 'Last', 'Doubler')


# code that cannot be seen

@every_entry
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning')
@pytest.mark.parametrize('compile', [torch.jit.script, lambda m: torch.jit.trace(m, torch.randn(SHAPE))])
def test_torchscript_submodule(entry, compile):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = host(compile(Plain()))
    refused(model, lambda: entry(model, input), r'inner\.block\.1', 'TorchScript|jit', 'use the module')


@every_entry
def test_compiled_submodule(entry):
    model, input = host(torch.compile(Plain(), backend='eager'))
    refused(model, lambda: entry(model, input), r'inner\.block\.1', 'compile', 'original|_orig_mod|eager|without')


def test_compiled_in_place():
    '''``module.compile()`` leaves the class as it was.'''
    odd = Plain()
    odd.compile(backend='eager')
    model, input = host(odd)
    refused(model, lambda: explain(model, input), r'inner\.block\.1', 'compile')


# outputs and inputs without relevance

@every_entry
@pytest.mark.parametrize('final', ['softmax', 'sigmoid', 'log_softmax'])
def test_final_gate(entry, final):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Plain()

        def forward(self, x):
            x = self.body(x).mean(1)
            return x.sigmoid() if final == 'sigmoid' else getattr(torch, final)(x, dim=-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Probabilities().double(), torch.randn(SHAPE).double()
    refused(model, lambda: entry(model, input), 'Probabilities', final, 'logits')


def test_final_softmax_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = nn.Sequential(nn.Linear(DIM, 4), nn.Softmax(dim=-1)).double(), torch.randn(3, DIM).double()
    refused(model, lambda: explain(model, input), 'Sequential|1', 'softmax', 'logits')
    assert explain(model, input, AttnLRP)[1].isfinite().all()


def test_output_without_the_input():
    '''An output that does not depend on the input at all.'''
    model, input = host(Plain())
    model.forward = lambda x: model.head(torch.ones(3, TOKENS, DIM, dtype=x.dtype))
    refused(model, lambda: explain(model, input), 'Host', 'relevance')


def test_input_without_grad():
    model, input = build('vit_mean')
    before = Snapshot(model)
    with CPLRP().context(model):
        with pytest.raises(AttributionError, match='requires_grad'):
            model(input)
        assert explain_open(model, input).isfinite().all()
    assert_restored(before, model)


def explain_open(model, input):
    '''The relevance of the one-hot target in a context that is already open.'''
    input = input.clone().requires_grad_()
    output = model(input)
    relevance, = torch.autograd.grad(output, input, one_hot(output))
    return relevance


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, DIM), Head()

    def forward(self, ids):
        return self.head(self.embed(ids))


def test_integer_input():
    model, ids = Tokens().double(), torch.randint(11, (3, TOKENS))
    refused(model, lambda: audited(model, ids), 'Tokens', 'int64|integer', 'embedding|TokenGradient')
    before = Snapshot(model)
    expected = pytest.raises(AttributionError, match='(?s)(int64|integer).*(embedding|TokenGradient)')
    with CPLRP().context(model), expected:
        model(ids)
    assert_restored(before, model)


# contexts

def in_thread(call):
    '''What ``call`` raises in another thread.'''
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.mark.parametrize('where', [lambda call: call(), in_thread])
@pytest.mark.parametrize('second', [CPLRP, AttnLRP, stock])
def test_second_context(where, second):
    model, input = build('vit_mean')
    expected, before = explain(model, input)[1], Snapshot(model)
    with Gradient(model, CPLRP()) as attributor:
        open_ = Snapshot(model)
        refused(model, lambda: where(lambda: explain(model, input, second)), 'ViT', 'open', 'close|leave|exit|one',
                before=open_)
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    assert_restored(before, model)
    assert equal_maps(explain(model, input)[1], expected)


def test_second_context_on_a_part_of_an_open_model():
    model, input = build('block_in_a_loop')
    expected = explain(model, input)[1]
    part = model.attn
    with Gradient(model, CPLRP()) as attributor:
        open_ = Snapshot(model)
        refused(model, lambda: explain(part, input), 'open', before=open_)
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    with Gradient(part, CPLRP()):
        open_ = Snapshot(model)
        refused(model, lambda: explain(model, input), 'open', before=open_)
    assert equal_maps(explain(model, input)[1], expected)


def test_two_models_at_once():
    '''Contexts on different models don't disturb each other, nested or in threads.'''
    (first, input), (second, other) = build('vit_mean'), build('swiglu')
    expected, wanted = explain(first, input)[1], explain(second, other)[1]
    with Gradient(first, CPLRP()) as one, Gradient(second, CPLRP()) as two:
        assert equal_maps(one(input.clone(), one_hot)[1], expected)
        assert equal_maps(two(other.clone(), one_hot)[1], wanted)
        found = []
        in_thread(lambda: found.append(two(other.clone(), one_hot)[1]))
        assert equal_maps(found[0], wanted)


# targets

@pytest.mark.parametrize('target', [
    torch.ones(3, 4, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64),
    lambda output: output.sum(), lambda output: torch.ones_like(output)[:, :1],
])
def test_target_of_the_wrong_shape(target):
    model, input = build('vit_mean')
    before = Snapshot(model)
    shape = tuple((target(torch.ones(3, 5)) if callable(target) else target).shape)
    with pytest.raises((AttributionError, ValueError)) as info:
        audited(model, input, target=target)
    for part in ('attr_output', '3, 5', str(shape)[1:-1]):
        assert part in str(info.value)
    assert_restored(before, model)
    with pytest.raises((AttributionError, ValueError, RuntimeError), match='3, 5'):
        explain(model, input, target=target)
    assert_restored(before, model)


# rules that cannot work where they are put

@every_entry
@pytest.mark.parametrize('rule', [Epsilon, ZPlus])
@pytest.mark.parametrize(('name', 'operator', 'function'), [
    ('three_way_einsum', Einsum, 'einsum'), ('swiglu', Multiply, 'mul|multiply'),
])
def test_stock_rule_on_two_operands(entry, rule, name, operator, function):
    model, input = build(name)
    composite = LayerMapComposite([(operator, rule())], canonizers=[AttentionCanonizer()])
    refused(model, lambda: entry(model, input, lambda: composite), rf'{type(model).__name__}|canonizer_', function,
            rule.__name__, 'operand|carry', 'Uniform|LRPZero|another rule|remove|instead')


@every_composite
def test_next_explanation_after_a_refusal_is_right(composite):
    '''A refusal in an open context leaves the context usable, and the model explainable after it.'''
    odd = Code(torch.relu)
    model, input = host(odd)
    expected, before = explain(model, input, composite)[1], Snapshot(model)
    with Gradient(model, composite()) as attributor:
        odd.function = matrix_exponential
        with pytest.raises(AttributionError, match='matrix_exp'):
            attributor(input.clone(), one_hot)
        odd.function = torch.relu
        assert equal_maps(attributor(input.clone(), one_hot)[1], expected)
    assert_restored(before, model)
    assert equal_maps(explain(model, input, composite)[1], expected)


class AuxiliaryLoss(nn.Module):
    '''Code that computes a loss beside its output, as routers and language models do.'''
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = self.fc(x).relu()
        logits = self.head(y)
        classes = torch.zeros(len(x), dtype=torch.long)
        return logits, nn.functional.mse_loss(y, x) + nn.functional.cross_entropy(logits, target=classes)


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[-1].reshape(1)


def test_auxiliary_loss_is_no_obstacle():
    torch.manual_seed(0)
    model, x = AuxiliaryLoss().double(), torch.randn(2, 6, dtype=torch.float64)
    ledger = audit(model, CPLRP(), x, torch.ones_like, select=lambda output: output[0])
    plain = audit(nn.Sequential(model.fc, nn.ReLU(), model.head), CPLRP(), x, torch.ones_like)
    assert torch.allclose(ledger.input, plain.input, rtol=1e-9)
    assert_closed(ledger)
    with pytest.raises(NoRelevance, match='mse_loss|cross_entropy'):
        audit(nn.Sequential(model, Last()), CPLRP(), x)
