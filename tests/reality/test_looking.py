'''Models that look at themselves: their own code sees what it would see without a context.'''
import inspect
from functools import cache

import pytest
import torch
from torch import nn
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.rules import Epsilon

from helpers import Snapshot, assert_restored, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.rules import Uniform

COMPOSITES = {
    'cp_lrp': CPLRP,
    'attn_lrp': AttnLRP,
    'gamma': lambda: CPLRP(linear_gamma=.1),
    'stock': lambda: EpsilonPlusFlat(canonizers=[AttentionCanonizer()]),
}
#: What a model may ask of itself: each returns a number, or what can be counted or compared.
QUESTIONS = {
    'class of attention': lambda m: isinstance(m.attend, nn.MultiheadAttention),
    'class of softmax': lambda m: isinstance(m.weigh, nn.Softmax) and type(m.weigh) is nn.Softmax,
    'class by name': lambda m: [type(module).__qualname__ for module in m.modules()],
    'children': lambda m: [name for name, _ in m.named_children()],
    'modules': lambda m: [name for name, _ in m.named_modules()],
    'linear modules': lambda m: sum(isinstance(module, nn.Linear) for module in m.modules()),
    'own dict of modules': lambda m: list(m._modules),
    'parameters': lambda m: [name for name, _ in m.named_parameters()],
    'sum of parameters': lambda m: sum(parameter.square().sum() for parameter in m.parameters()),
    'buffers': lambda m: [name for name, _ in m.named_buffers()],
    'state dict': lambda m: list(m.state_dict()),
    'repr': repr,
    'signature': lambda m: str(inspect.signature(m.forward)),
    'argument names': lambda m: inspect.getfullargspec(m.forward).args,
    'signatures of children': lambda m: [str(inspect.signature(module.forward)) for module in m.children()],
    'owner of forward': lambda m: m.forward.__self__ is m and m.head.forward.__self__ is m.head,
    'name of forward': lambda m: [m.forward.__qualname__, m.head.forward.__name__],
    'hooks': lambda m: [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in m.modules()],
    'submodule by name': lambda m: hasattr(m, 'canonizer_einsum'),
}
every_question = pytest.mark.parametrize('question', QUESTIONS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


class Looking(nn.Module):
    '''A model whose code asks questions about itself, and writes the answers down.'''
    def __init__(self, question=None):
        super().__init__()
        self.attend, self.weigh = nn.MultiheadAttention(6, 2, batch_first=True), nn.Softmax(-1)
        self.head, self.question, self.answers = nn.Linear(6, 3), question, []
        self.register_buffer('scale', torch.full((6,), 2.))
        self.head.register_forward_hook(lambda module, args, output: None)

    def ask(self):
        '''In a helper, where no frame says what the module is called.'''
        if self.question is not None:
            self.answers.append(self.question(self))

    def forward(self, x, factor=1.):
        self.ask()
        x = x + self.attend(x, x, x)[0] * self.scale
        return self.head(self.weigh(x @ x.mT) @ x).mean(1) * factor


class Inside(nn.Module):
    '''A model with a part that looks at itself.'''
    def __init__(self, question=None):
        super().__init__()
        self.part = Looking(question)

    def forward(self, x):
        return self.part(x)


@cache
def given():
    return torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def built(cls, question=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(question).double().eval()


def answers_of(model):
    return next(module for module in model.modules() if isinstance(module, Looking)).answers


def plain(model):
    '''What the model returns, and what it answers, without a context.'''
    with torch.no_grad():
        output = model(given())
    answer, = answers_of(model)
    answers_of(model).clear()
    return output, answer


@every_composite
@every_question
@pytest.mark.parametrize('cls', [Looking, Inside])
def test_what_a_model_sees_of_itself(cls, question, composite):
    '''The answer, the output and the map are those of a model that does not look.'''
    model = built(cls, QUESTIONS[question])
    output, answer = plain(model)
    before = Snapshot(model)
    found, relevance = explain(model, given(), COMPOSITES[composite])
    answers = list(answers_of(model))
    answers_of(model).clear()
    assert_restored(before, model)
    assert answers
    assert all(torch.equal(each, answer) if isinstance(each, torch.Tensor) else each == answer for each in answers)
    twin = explain(built(cls), given(), COMPOSITES[composite])
    assert torch.equal(found, twin[0])
    assert torch.equal(relevance, twin[1])
    assert relative(found, output) <= 1e-14


@every_question
@pytest.mark.parametrize('rule', [Epsilon, Uniform])
def test_what_a_module_with_a_rule_sees_of_itself(question, rule):
    '''In the forward, and in the backward pass of its rule, where it runs again.'''
    model = built(Inside, QUESTIONS[question])
    answer = plain(model)[1]
    explain(model, given(), lambda: LayerMapComposite([(Looking, rule())], canonizers=[AttentionCanonizer()]))
    answers = answers_of(model)
    assert len(answers) >= 2
    assert all(torch.equal(each, answer) if isinstance(each, torch.Tensor) else each == answer for each in answers)


@every_question
def test_what_a_model_sees_in_a_prediction_inside_a_context(question):
    model = built(Looking, QUESTIONS[question])
    output, answer = plain(model)
    with CPLRP().context(model):
        found, seen = plain(model)
    assert torch.equal(found, output)
    assert torch.equal(seen, answer) if isinstance(seen, torch.Tensor) else seen == answer


@every_composite
def test_outside_of_the_forward_operator_modules_are_seen(composite):
    '''Before and after a forward, also one that fails, a composite and print find them.'''
    model = built(Looking)
    with COMPOSITES[composite]().context(model):
        shown, hooks = repr(model), [len(module._forward_hooks) for module in model.modules()]
        assert 'canonizer_einsum' in shown
        assert 'canonizer_q' in shown
        model(given().clone().requires_grad_())
        with pytest.raises(RuntimeError):
            model(given()[..., :2].clone().requires_grad_())
        assert repr(model) == shown
        assert [len(module._forward_hooks) for module in model.modules()] == hooks


@every_composite
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_a_look_that_fails(composite, error):
    def fail(model):
        raise error('look')
    model = built(Looking, fail)
    before = Snapshot(model)
    with pytest.raises(error, match='look'):
        explain(model, given(), COMPOSITES[composite])
    assert_restored(before, model)


def test_removed_while_the_forward_runs():
    '''What is hidden then is not put back.'''
    composite = CPLRP(linear_gamma=.1)
    model = built(Looking, lambda model: composite.remove())
    before = Snapshot(model)
    composite.register(model)
    with pytest.raises((RuntimeError, ValueError)):  # old versions of torch raise the latter of no inputs
        torch.autograd.grad(model(given().clone().requires_grad_()).sum(), [])
    model.answers.clear()
    assert_restored(before, model)


def test_hooks_of_the_user_run_and_stay():
    '''Also those that are registered in an open context, or by the forward itself.'''
    calls = []

    def register(model):
        if not calls:
            model.head.register_forward_hook(lambda *_: calls.append('inside'))
    model = built(Looking, register)
    with CPLRP(linear_gamma=.1).context(model):
        model.head.register_forward_hook(lambda *_: calls.append('context'))
        model(given().clone().requires_grad_())
    assert calls == ['context', 'inside']
    assert len(model.head._forward_hooks) == 3


class Walking(nn.Module):
    '''Runs its children as they are found, in a helper.'''
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def run(self, x):
        for module in self._modules.values():
            x = module(x)
        return x * torch.softmax(x, -1)

    def forward(self, x):
        return self.run(x).sum(1)


@every_composite
def test_a_walk_over_the_own_children(composite):
    model = Walking().double().eval()
    output = explain(model, given(), COMPOSITES[composite])[0]
    assert relative(output, model(given()).detach()) <= 1e-14


def test_operators_of_code_that_walks_can_be_given_rules():
    model = Walking().double().eval()
    softmax_follows = explain(model, given(), AttnLRP)[1]
    assert relative(softmax_follows, explain(model, given(), CPLRP)[1]) > 1e-3


class Derived(nn.MultiheadAttention):
    '''Calls torch's forward in its own way.'''
    def forward(self, x):
        return super().forward(2 * x, x, x, need_weights=False)[0]


@every_composite
def test_a_class_derived_from_attention_runs_its_own_forward(composite):
    model = nn.Sequential(Derived(6, 2, batch_first=True), nn.Linear(6, 3)).double().eval()
    before = Snapshot(model)
    output = explain(model, given(), COMPOSITES[composite], one_hot)[0]
    assert relative(output, model(given()).detach()) <= 1e-14
    assert_restored(before, model)
