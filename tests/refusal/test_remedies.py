'''The advice of all refusals but those of functions, which are in test_advice.py, followed to its end.

Followed to its end elsewhere, beside the refusal:

==============================================  ==================================================================
accept the plain gradient of a function         refusal/test_operators.py, test_unknown_operator_by_its_gradient
pass an input that requires a gradient          refusal/test_inputs_and_outputs.py, test_input_without_grad
explain the logits, or give another rule        here, and refusal/test_inputs_and_outputs.py, test_final_softmax_module
pass inputs and outputs in containers           reality/test_nested.py, test_opaque_objects
compute what is kept under torch.no_grad        reality/test_token_models.py, test_caches
copy a model outside of contexts                reality/test_runtimes.py, test_copies_in_an_open_context
use plain tensors and torch.autograd.grad       reality/test_runtimes.py, test_transforms_of_an_open_model
call a lazy model once                          reality/test_modules.py, test_lazy_and_quantized_modules
wrap a model that overrides ``__call__``        reality/test_modules.py, test_call_is_overridden
name an embedding that is called once           tools/test_token_gradient.py, test_embedding_must_be_called_once
pass ``select``                                 tools/test_token_gradient.py, test_what_is_no_tensor_is_refused
==============================================  ==================================================================

Not reached by a model that can be made here: a copy that still has operator modules, since copying is refused.
'''
import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import wrap_torch_function
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Gamma, Pass, ZPlus

from cases.advice import MEAN, SIZE, VARIANCE, build
from helpers import assert_closed, explain, one_hot
from zennit_attn.attribution import TokenGradient
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import UnsupportedModule
from zennit_attn.layers import Einsum, Gate, Multiply
from zennit_attn.operators import register_operator
from zennit_attn.rules import Taylor, Uniform

from .helpers import Doubler, follows, refused, seeded
from .test_contexts import in_thread


def ours(*layer_map, **options):
    '''Rules for some modules, and ours for the rest.'''
    return LayerMapComposite(list(layer_map), canonizers=[AttentionCanonizer(**options)])


# code of a forward

class Case(NamedTuple):
    '''Words of the refusal, the code that is refused, and the same after its advice.'''
    words: str
    refused: Callable
    advised: Callable
    same: bool = True
    composite: Callable = CPLRP


class Doubling(nn.Module):
    def forward(self, x):
        return Doubler.apply(x)


CONSTANT = torch.arange(1., SIZE + 1., dtype=torch.float64, requires_grad=True)
PLACES = torch.tensor([[0, 0, 1, 3]])
DOUBLING = Doubling()


def written_without_gradients(m, a, b):
    with torch.no_grad():
        a.mul_(b)
    return a


def paired(x):
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def parted(z):
    return torch.view_as_real(z).flatten(-2)


def in_place(m, a, b):
    y = b.clone()
    y[:, [0, 0]] = a[:, :2]
    return y


def placed_once(m, a, b):
    y = b.clone()
    y[:, 0] = a[:, 1]
    return y


def put(target, values, accumulate=False):
    return target.movedim(1, 0).index_put((PLACES[0],), values.movedim(1, 0), accumulate).movedim(0, 1)


def along(index, x):
    return index[..., None].expand_as(x)


CODE = {
    'out=': Case('assign what it returns', lambda m, a, b: a * torch.exp(b, out=b.clone()),
                 lambda m, a, b: a * torch.exp(b)),
    'write without gradients': Case('take the write out of torch.no_grad', written_without_gradients,
                                    lambda m, a, b: a.mul_(b)),
    'constant that requires a gradient, set to False': Case(
        'set requires_grad to False', lambda m, a, b: a * CONSTANT, lambda m, a, b: a * CONSTANT.detach()),
    'constant that requires a gradient, as a parameter': Case(
        'use torch.nn.Parameter', lambda m, a, b: a * CONSTANT, lambda m, a, b: a * m.constant),
    'unseen code, written with torch functions': Case(
        'write the computation with torch functions', lambda m, a, b: Doubler.apply(a) * b, lambda m, a, b: 2 * a * b),
    'unseen code, in a module with a rule': Case(
        'put it in a module', lambda m, a, b: Doubler.apply(a) * b, lambda m, a, b: m.doubling(a) * b,
        composite=lambda: CPLRP(layer_map=[(Doubling, Pass())])),
    'unseen code, by its gradient': Case(
        r"AttentionCanonizer\(unknown='gradient'\)", lambda m, a, b: Doubler.apply(a), lambda m, a, b: Doubler.apply(a),
        composite=lambda: CPLRP(canonizers=[AttentionCanonizer(unknown='gradient')])),
    'unknown function, by its gradient': Case(
        r"AttentionCanonizer\(unknown='gradient'\)", lambda m, a, b: unknown(a), lambda m, a, b: unknown(a),
        composite=lambda: CPLRP(canonizers=[AttentionCanonizer(unknown='gradient')])),
    'one place twice, each once': Case('write each place once', in_place, placed_once),
    'one place twice, index_add': Case(
        'add with index_add', lambda m, a, b: b.index_copy(1, PLACES[0], a),
        lambda m, a, b: b.index_add(1, PLACES[0], a), same=False),
    'one place twice, scatter_add': Case(
        'scatter_add', lambda m, a, b: b.scatter(1, along(PLACES, a), a),
        lambda m, a, b: b.scatter_add(1, along(PLACES, a), a), same=False),
    'one place twice, accumulated': Case(
        r'index_put\(..., accumulate=True\)', lambda m, a, b: put(b, a), lambda m, a, b: put(b, a, True), same=False),
    'power of complex numbers': Case('write it with products', lambda m, a, b: parted(paired(a) ** 2),
                                     lambda m, a, b: parted(paired(a) * paired(a))),
    'power of complex numbers, in two parts': Case(
        'for real and imaginary part', lambda m, a, b: parted(paired(a).tanh()),
        lambda m, a, b: parted(torch.complex(paired(a).real.tanh(), paired(a).imag.tanh())), same=False),
    **{f'product over places, {reduce}': Case(
        'use sum, mean, amax or amin',
        lambda m, a, b: b.scatter_reduce(1, along(PLACES.expand(len(a), -1), a), a, 'prod'),
        lambda m, a, b, reduce=reduce: b.scatter_reduce(1, along(PLACES.expand(len(a), -1), a), a, reduce), same=False)
       for reduce in ('sum', 'mean', 'amax', 'amin')},
}


@wrap_torch_function(lambda x: (x,))
def unknown(x):
    return x.cumsum(-1)


def prepared(code):
    '''A model with what the cases use, and its input.'''
    model, input = build(code)
    model.doubling, model.constant = DOUBLING, nn.Parameter(CONSTANT.detach().clone())
    return model, input


@pytest.mark.parametrize('name', CODE)
def test_code_after_the_advice_is_explained(name):
    case = CODE[name]
    (model, input), (other, _) = prepared(case.refused), prepared(case.advised)
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), case.words)
    follows(other, input, case.composite)
    if case.same:
        torch.testing.assert_close(seeded(other, input), seeded(model, input), rtol=1e-12, atol=1e-12)


# training

TRAINED = {
    'alpha_dropout': lambda m, a, b: F.alpha_dropout(a, .1, m.training),
    'batch_norm': lambda m, a, b: F.batch_norm(a, MEAN.clone(), VARIANCE.clone(), training=m.training),
    'statistics that depend on the input': lambda m, a, b: F.batch_norm(
        a, b.mean((0, 1)), b.square().mean((0, 1)), training=m.training),
    'module with statistics': lambda m, a, b: m.norm(a),
    'checkpoint': lambda m, a, b: checkpoint(m.inner, a, use_reentrant=False) if m.training else m.inner(a),
}


@pytest.mark.parametrize('name', TRAINED)
def test_model_in_training_is_explained_after_eval(name):
    model, input = build(TRAINED[name])
    model.norm = nn.BatchNorm1d(SIZE).double()
    model.norm(input)
    model.train().requires_grad_(False)  # or torch would not run with statistics that depend on parameters
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), r'model\.eval\(\)')
    follows(model.eval(), input)


def test_checkpointing_turned_off_by_its_flag():
    model, input = build(
        lambda m, a, b: checkpoint(m.inner, a, use_reentrant=False) if m.use_checkpoint else m.inner(a))
    model.use_checkpoint = True
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), 'use_checkpoint=False')
    model.use_checkpoint = False
    follows(model, input)


# inputs and outputs

class Outer(nn.Module):
    '''A model around another.'''
    def __init__(self, forward, **parts):
        super().__init__()
        self.code = forward
        for name, part in parts.items():
            setattr(self, name, part)
        self.double().eval()

    def forward(self, *args, **kwargs):
        return self.code(self, *args, **kwargs)


def plain():
    '''A model with nothing odd in it, and its input.'''
    return build(lambda m, a, b: a * b.sigmoid())


def test_complex_input():
    model, input = plain()
    odd = Outer(lambda m, z: m.body(parted(z)), body=model)
    refused(odd, lambda: explain(odd, paired(input)), 'torch.view_as_real')
    advised = Outer(lambda m, x: m.inside(torch.view_as_complex(x)), inside=Outer(odd.code, body=model))
    follows(advised, torch.view_as_real(paired(input)))


def test_complex_output():
    model, input = plain()
    odd = Outer(lambda m, x: paired(F.pad(m.body(x), (0, 1))), body=model)
    refused(odd, lambda: explain(odd, input), 'split it with torch.view_as_real')
    follows(Outer(lambda m, x: torch.view_as_real(m.odd(x)), odd=odd), input)


def test_output_in_an_object():
    model, input = plain()
    odd = Outer(lambda m, x: SimpleNamespace(logits=m.body(x)), body=model)
    refused(odd, lambda: audit(odd, CPLRP(), input, one_hot), 'return tensors, or lists, tuples, dicts')
    assert_closed(audit(odd, CPLRP(), input, one_hot, select=lambda output: output.logits))
    for wrap in (lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {'logits': x}):
        advised = Outer(lambda m, x, wrap=wrap: wrap(m.odd(x).logits), odd=odd)
        ledger = audit(advised, CPLRP(), input, one_hot, select=first)
        assert_closed(ledger)


def first(output):
    output = output['logits'] if isinstance(output, dict) else output
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize(('final', 'composite'), [
    ('softmax', AttnLRP), ('sigmoid', lambda: CPLRP(layer_map=[(Gate, Taylor())]))])
def test_final_gate(final, composite):
    model, input = plain()
    odd = Outer(lambda m, x: F.softmax(m.body(x), -1) if final == 'softmax' else m.body(x).sigmoid(), body=model)
    refused(odd, lambda: audit(odd, CPLRP(), input, one_hot), 'explain the logits', 'give that operator another rule')
    follows(odd.body, input)
    follows(odd, input, composite)


def token_model():
    '''A model of token ids, and ids.'''
    model, _ = plain()
    return Outer(lambda m, ids: m.body(m.embedding(ids)), body=model, embedding=nn.Embedding(7, SIZE)), (
        torch.tensor([[0, 3, 1, 6], [2, 2, 5, 4]]))


def test_integer_input():
    model, ids = token_model()
    refused(model, lambda: audit(model, CPLRP(), ids, one_hot), r'audit\(\.\.\., embedding=module\)')
    ledger = audit(model, CPLRP(), ids, one_hot, embedding=model.embedding)
    assert_closed(ledger)

    def explained():
        with CPLRP().context(model):
            model(ids)
    refused(model, explained, 'TokenGradient', r'torch\.no_grad\(\)')
    with TokenGradient(model, model.embedding, CPLRP()) as attributor:
        relevance = attributor(ids, one_hot)[1]
    torch.testing.assert_close(relevance.sum((1, 2)), ledger.input, rtol=1e-9, atol=0.)
    with CPLRP().context(model), torch.no_grad():
        torch.testing.assert_close(model(ids), seeded(model, ids))


def test_embedding_that_can_be_explained_from():
    model, ids = token_model()
    pairs = Outer(lambda m, ids: (m.embedding(ids), None), embedding=model.embedding)
    odd = Outer(lambda m, ids: m.body(m.pairs(ids)[0]), body=model.body, pairs=pairs)
    unused = nn.Embedding(7, SIZE)
    odd.unused = unused
    for wrong, words in ((odd, 'is the model itself; name the embedding inside'),
                         (pairs, 'explained from a tensor; name the embedding inside'),
                         (unused, 'was not called in its forward; name a module that is')):
        refused(odd, lambda wrong=wrong: audit(odd, CPLRP(), ids, one_hot, embedding=wrong), words)
    ledger = audit(odd, CPLRP(), ids, one_hot, embedding=model.embedding)
    assert_closed(ledger)


# gradients

def gradient_of(model, input, target=one_hot, **options):
    '''Relevance in a context that is already open.'''
    x = input.clone().requires_grad_()
    output = model(x)
    return torch.autograd.grad(output, x, target(output), **options)[0]


def test_gradients_inside_of_a_forward():
    model, input = plain()

    def sharpened(m, x):
        leaf = x.detach().requires_grad_() if not x.requires_grad else x
        with torch.enable_grad():
            slope, = torch.autograd.grad(leaf.pow(3).sum(), leaf)
        return m.body(x + slope)
    odd = Outer(sharpened, body=model)
    refused(odd, lambda: audit(odd, CPLRP(), input, one_hot), 'explain the part of the model before or after it')
    follows(odd.body, input + 3 * input ** 2)


def test_second_derivatives():
    model, input = plain()

    def twice():
        with CPLRP().context(model):
            gradient_of(model, input, create_graph=True).sum().backward()
    refused(model, twice, 'create_graph=False', 'leave the context for derivatives of the model')
    with CPLRP().context(model):
        relevance = gradient_of(model, input, create_graph=False)
    assert torch.allclose(relevance, explain(model, input)[1], rtol=1e-9)
    assert gradient_of(model, input, create_graph=True).requires_grad


@pytest.mark.parametrize('kind', ['tensor', 'module'])
def test_hook_that_changes_a_gradient(kind):
    hooks = []

    def hooked(m, a, b):
        if m.hooked and kind == 'tensor' and a.requires_grad:
            a.register_hook(lambda grad: 2 * grad)
        return m.inner(a)
    model, input = build(hooked)
    model.hooked = True
    if kind == 'module':
        hooks.append(model.inner.register_full_backward_hook(lambda module, grads, _: (2 * grads[0],)))
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), 'remove the hook')
    model.hooked = False
    for hook in hooks:
        hook.remove()
    follows(model, input)


def test_backward_pass_from_inside():
    kept = []

    def keeping(m, x):
        kept.append(m.first(x))
        return m.second(kept[-1].relu())
    model, input = Outer(keeping, first=nn.Linear(SIZE, SIZE), second=nn.Linear(SIZE, 3)), plain()[1][:, 0]

    def attempt():
        with CPLRP().context(model):
            gradient_of(lambda x: (model(x), kept[-1])[1], input)
    refused(model, attempt, 'return that tensor from forward in a list', 'open the context on the part')
    returning = Outer(lambda m, x: [m.body(x), kept[-1]], body=model)
    ledger = audit(returning, CPLRP(), input, one_hot, select=lambda output: output[1])
    assert_closed(ledger)
    follows(model.first, input)


def test_input_that_is_written_to():
    model, input = plain()

    def attempt(used):
        with ours((nn.Linear, Epsilon())).context(model):
            x = input.clone().requires_grad_()
            y = used(x)
            output = model(y)
            with torch.no_grad():
                x.add_(1.)
            return torch.autograd.grad(output, y, one_hot(output))[0]
    refused(model, lambda: attempt(lambda x: x), 'write to a clone of it')
    wanted = explain(model, input, ours((nn.Linear, Epsilon())))[1]
    assert torch.allclose(attempt(torch.clone), wanted, rtol=1e-9)


# contexts

def test_second_context():
    model, input = plain()
    composite = CPLRP()
    composite.register(model)
    try:
        refused(model, lambda: audit(model, CPLRP(), input, one_hot), r'leave it, or call remove\(\) on its composite')
    finally:
        composite.remove()
    follows(model, input)
    with Gradient(model, CPLRP()):
        pass
    follows(model, input)


def test_model_in_two_threads():
    model, input = plain()
    wanted, found = explain(model, input)[1], []

    def attempt(make):
        def forward(m, x):
            # the second thread calls while the first one runs the forward
            in_thread(lambda: found.append(explain(make(m.body), input)[1]) if make else m.body(x))
            return m.body(x)
        return Outer(forward, body=model)
    odd = attempt(None)
    refused(odd, lambda: explain(odd, input), 'call it there, or give each thread a copy of the model')
    twin = copy.deepcopy(model)
    assert torch.allclose(explain(attempt(lambda body: twin), input)[1], wanted, rtol=1e-9)
    assert torch.allclose(found[0], wanted, rtol=1e-9)


def test_part_called_outside_of_the_forward():
    model, input = Outer(lambda m, x: m.head(m.encode(x)), encode=nn.Linear(SIZE, SIZE), head=nn.Linear(SIZE, 3)), (
        plain()[1][:, 0])

    def attempt():
        with CPLRP().context(model):
            model.encode(input.clone().requires_grad_())
    refused(model, attempt, 'open the context on that module', 'forward of a module of its own')
    follows(model.encode, input)
    follows(Outer(lambda m, x: m.model.encode(x).tanh(), model=model), input)


def test_inactive_composite():
    model, input = plain()
    composite = CPLRP()

    def attempt():
        with composite.context(model), composite.inactive():
            gradient_of(model, input)
    refused(model, attempt, r'inactive\(\) does not work', 'leave the context for plain gradients')
    x = input.clone().requires_grad_()
    wanted, = torch.autograd.grad(model(x), x, one_hot(model(x)))
    assert torch.allclose(gradient_of(model, input), wanted, rtol=1e-12)


def test_rule_that_was_switched_off():
    model, input = plain()
    composite = ours((nn.Linear, Epsilon()))

    def attempt():
        with composite.context(model):
            for hook in composite.hook_refs:
                hook.active = False
            gradient_of(model, input)
    refused(model, attempt, 'is inactive', 'leave the context for a plain gradient')
    assert gradient_of(model, input).abs().min() > 0


# rules

def test_rule_on_an_operator_with_two_operands():
    model, input = build(lambda m, a, b: a * b)
    refused(model, lambda: audit(model, ours((Multiply, Epsilon())), input, one_hot),
            'use zennit_attn.rules.Uniform there, or leave the operator without a rule')
    follows(model, input, lambda: ours((Multiply, Uniform())))
    follows(model, input, ours)


def test_rule_that_has_to_see_the_weights_of_the_whole():
    first, second = (torch.randn(SIZE, SIZE, dtype=torch.float64) for _ in range(2))
    model, input = build(lambda m, a, b: torch.einsum('...i,ij,jk->...k', a, first, second))

    def composite():
        return ours((Einsum, ZPlus()))
    refused(model, lambda: audit(model, composite(), input, one_hot),
            'multiply the constants first, or leave the operator without a rule')
    follows(model, input, ours)
    other, _ = build(lambda m, a, b: torch.einsum('...i,ik->...k', a, first @ second))
    follows(other, input, composite)
    torch.testing.assert_close(seeded(other, input), seeded(model, input), rtol=1e-12, atol=1e-12)


class Product(nn.Module):
    '''A module of two inputs.'''
    def forward(self, a, b):
        return a * b


def test_rule_on_a_module_with_two_inputs():
    model, input = build(lambda m, a, b: m.product(a, b))
    model.product = Product()
    refused(model, lambda: audit(model, ours((Product, Epsilon())), input, one_hot),
            'leave the module without a rule, or give it zennit_attn.rules.Uniform')
    follows(model, input, lambda: ours((Product, Uniform())))
    follows(model, input, ours)


class Paired(nn.Module):
    '''A module that takes a list, or returns one, around another.'''
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, pair):
        return self.body(pair[0]) if isinstance(pair, list) else [self.body(pair)]


@pytest.mark.parametrize('code', [lambda m, a, b: m.paired([a]), lambda m, a, b: m.paired(a)[0]])
def test_rule_on_a_module_with_a_list(code):
    model, input = build(code)
    model.paired = Paired(nn.Linear(SIZE, SIZE)).double()
    refused(model, lambda: audit(model, ours((Paired, Epsilon())), input, one_hot), 'to the modules inside')
    follows(model, input, lambda: ours((nn.Linear, Epsilon())))


def test_two_rules_on_a_module():
    model, input = plain()

    def attempt():
        with ours((nn.Linear, Epsilon())).context(model):
            handle = Epsilon().register(model.first)
            try:
                gradient_of(model, input)
            finally:
                handle.remove()
    refused(model, attempt, 'has 2 Zennit rules; attach one')
    follows(model, input, lambda: ours((nn.Linear, Epsilon())))


def test_other_parameters_than_those_of_the_model():
    model, input = plain()
    other = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    odd = Outer(lambda m, x: torch.func.functional_call(m.body, other, (x,)), body=model)
    refused(odd, lambda: explain(odd, input, CPLRP(linear_gamma=.25)), 'put these into the model')
    expected = seeded(odd, input)
    model.load_state_dict(other)
    follows(model, input, lambda: CPLRP(linear_gamma=.25))
    torch.testing.assert_close(seeded(model, input), expected)


def test_rule_that_modifies_a_computed_weight():
    model, input = build(lambda m, a, b: m.inner(a))
    parametrizations.weight_norm(model.inner)

    def gamma():
        return ours((nn.Linear, Gamma()))
    refused(model, lambda: audit(model, gamma(), input, one_hot), 'parametrize.remove_parametrizations',
            'another rule')
    follows(model, input, lambda: ours((nn.Linear, Epsilon())))
    parametrize.remove_parametrizations(model.inner, 'weight')
    follows(model, input, gamma)


# parameters that are written to, and rules that are passed by

def test_parameter_that_is_written_to_after_it_was_used():
    def twice(m, a, b):
        first = m.inner(a)
        with torch.no_grad():
            m.inner.weight.mul_(2.)
        return first

    def computed(m, a, b):
        return F.linear(a, 1. * m.inner.weight, m.inner.bias)
    model, input = build(twice)
    refused(model, lambda: audit(model, CPLRP(), input, one_hot, compare=False), 'compute a tensor of the parameter')
    follows(*build(computed))


def test_parameter_of_a_module_with_a_rule_that_is_written_to():
    def scaled(m, a, b):
        m.inner.weight.data.mul_(2.)
        out = m.inner(a)
        m.inner.weight.data.div_(2.)
        return out
    model, input = build(scaled)
    refused(model, lambda: audit(model, CPLRP(linear_gamma=.25), input, one_hot, compare=False), 'has a rule',
            'before the model is called')
    follows(model, input)
    model, input = build(lambda m, a, b: m.inner(a))
    model.inner.weight.data.mul_(2.)
    follows(model, input, lambda: CPLRP(linear_gamma=.25))


def test_forward_that_is_called_past_the_rule():
    model, input = build(lambda m, a, b: nn.Linear.forward(m.inner, a))
    refused(model, lambda: audit(model, CPLRP(linear_gamma=.25), input, one_hot), 'call the module')
    follows(model, input)
    model, input = build(lambda m, a, b: m.inner(a))
    follows(model, input, lambda: CPLRP(linear_gamma=.25))


# modules that cannot be seen

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_torchscript():
    model, input = build(lambda m, a, b: m.part(a))
    model.part = torch.jit.script(model.inner)
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), 'use the module it was made from')
    model.part = model.inner
    follows(model, input)


def test_data_parallel():
    model, input = plain()
    parallel = nn.DataParallel(model)
    parallel.device_ids = [0, 1]
    refused(parallel, lambda: audit(parallel, CPLRP(), input, one_hot), 'explain model.module')
    follows(parallel.module, input)


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_quantized():
    model, input = plain()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model).float(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModule, match='explain the model that it was made from'):
        audit(quantized, CPLRP(), input.float(), one_hot)
    follows(model, input)


def test_name_that_is_taken():
    model, input = plain()
    model.canonizer_add = 1
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), "already has an attribute 'canonizer_add'; rename it")
    model.own_add = model.__dict__.pop('canonizer_add')
    follows(model, input)


def test_registered_function_is_known(table):
    '''What every refusal of an unknown function ends with, where no row can be proposed.'''
    @wrap_torch_function(lambda x: (x,))
    def noisy(x):
        return x + torch.rand(x.shape, dtype=x.dtype)
    model, input = build(lambda m, a, b: noisy(a))
    refused(model, lambda: audit(model, CPLRP(), input, one_hot), 'zennit_attn.register_operator to give it a kind')
    register_operator(noisy, 'add')
    assert explain(model, input)[1].abs().min() > 0
