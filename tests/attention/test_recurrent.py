'''Recurrences that forget: both backends against their formula, published code, the transposed recurrence, refusals.'''
from functools import partial
from unittest import mock

import pytest
import torch
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from zennit_attn.attention import (
    causal_dot_product,
    delta_rule,
    gated_delta_rule,
    gated_linear_attention,
    general_delta_rule,
)
from zennit_attn.kernels import recurrent as room

from .helpers import assert_close, cast, published

LENGTHS = [1, 2, 31, 32, 33, 70]
LEADING = [(), (2,), (2, 3)]
FORMS = ['plain', 'decay', 'decay_by_key', 'bonus', 'delta', 'delta_decay', 'delta_decay_by_key', 'general',
         'general_decay', 'general_decay_by_key']


def operands(form, length=70, leading=(2,), d=6, e=4):
    '''Random queries, keys of unit length, values, a first memory, and the gates of a form.'''
    torch.manual_seed(length)

    def draw(*shape):
        return torch.randn(*leading, *shape, dtype=torch.float64)
    inputs = {'q': draw(length, d), 'k': normalize(draw(length, d), dim=-1), 'v': draw(length, e)}
    if 'by_key' in form or form == 'bonus':
        inputs['decay'] = -draw(length, d).abs()
    elif 'decay' in form:
        inputs['decay'] = -draw(length).abs()
    if 'delta' in form:
        inputs['beta'] = draw(length).sigmoid()
    if form == 'bonus':
        inputs['bonus'] = draw(length, d)
    if 'general' in form:
        inputs['a'], inputs['b'] = normalize(draw(length, d), dim=-1), draw(length, d) / d
    return {**inputs, 'initial_state': draw(d, e)}


def operator(form):
    if 'general' in form:
        return general_delta_rule
    return gated_delta_rule if 'delta' in form else gated_linear_attention


def formula(q, k, v, initial_state, decay=None, beta=None, bonus=None, a=None, b=None):
    '''One memory after another as matrices, each row of the batch by itself.'''
    if v.ndim > 2:
        rows = [formula(**{name: each[i] for name, each in (
            ('q', q), ('k', k), ('v', v), ('initial_state', initial_state), ('decay', decay), ('beta', beta),
            ('bonus', bonus), ('a', a), ('b', b)) if each is not None}) for i in range(len(v))]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    memory, outs, eye = initial_state, [], torch.eye(q.shape[-1], dtype=v.dtype)
    for i in range(len(v)):
        keep = eye if decay is None else decay[i].exp() * eye
        strength = 1. if beta is None else beta[i]
        erase = eye if beta is None else eye - strength * torch.outer(k[i], k[i])
        write, before = strength * torch.outer(k[i], v[i]), memory
        keep = erase @ keep if a is None else keep + torch.outer(b[i], a[i])
        memory = keep @ memory + write
        outs.append(q[i] @ (memory if bonus is None else before + torch.diag(bonus[i]) @ write))
    return torch.stack(outs), memory


@pytest.fixture(params=['chunked', 'loop'])
def backend(request):
    return request.param


every_form = pytest.mark.parametrize('form', FORMS)


@every_form
@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('leading', LEADING)
def test_equals_formula(backend, form, length, leading):
    inputs = operands(form, length, leading)
    outputs = operator(form)(**inputs, output_final_state=True, backend=backend)
    for actual, expected in zip(outputs, formula(**inputs), strict=True):
        assert_close(actual, expected)


@every_form
def test_starts_empty_and_returns_outputs_alone(backend, form):
    inputs = operands(form)
    empty = {**inputs, 'initial_state': torch.zeros_like(inputs.pop('initial_state'))}
    assert_close(operator(form)(**inputs, backend=backend), formula(**empty)[0])


def test_without_decay_they_are_their_elders(backend):
    inputs = operands('delta')
    del inputs['initial_state']
    assert_close(gated_delta_rule(**inputs, backend=backend), delta_rule(**inputs))
    del inputs['beta']
    assert_close(gated_linear_attention(**inputs, backend=backend), causal_dot_product(**inputs))


def test_the_general_delta_rule_is_the_gated_one_with_one_key(backend):
    inputs = operands('delta_decay_by_key')
    k, beta = inputs['k'], inputs.pop('beta')[..., None]
    general = {**inputs, 'k': beta * k, 'a': inputs['decay'].exp() * k, 'b': -beta * k}
    assert_close(general_delta_rule(**general, backend=backend), gated_delta_rule(**inputs, beta=beta[..., 0]))


@every_form
def test_gradients_are_those_of_the_formula(backend, form):
    inputs = operands(form)
    wanted = [each.requires_grad_() for each in inputs.values()]
    outputs, expected = operator(form)(**inputs, output_final_state=True, backend=backend), formula(**inputs)
    weights = [torch.randn_like(each) for each in expected]
    gradients = torch.autograd.grad(expected, wanted, weights)
    for actual, other in zip(torch.autograd.grad(outputs, wanted, weights), gradients, strict=True):
        assert_close(actual, other, 1e-11)


@every_form
@pytest.mark.parametrize('needed', [('v',), ('initial_state',), ('v', 'initial_state')])
def test_gradients_of_the_linear_map(backend, form, needed):
    inputs = operands(form)
    wanted = [inputs[name].requires_grad_() for name in needed]
    outputs, expected = operator(form)(**inputs, output_final_state=True, backend=backend), formula(**inputs)
    weights = [torch.randn_like(each) for each in expected]
    gradients = torch.autograd.grad(expected, wanted, weights)
    for actual, other in zip(torch.autograd.grad(outputs, wanted, weights), gradients, strict=True):
        assert_close(actual, other, 1e-12)


@every_form
def test_second_derivatives_of_the_linear_map(form):
    inputs = operands(form, 40, (), 3, 2)
    v, state = (inputs.pop(name).requires_grad_() for name in ('v', 'initial_state'))
    function = partial(operator(form), **inputs, output_final_state=True)
    assert torch.autograd.gradcheck(lambda v, state: function(v=v, initial_state=state), (v, state), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda v, state: function(v=v, initial_state=state), (v, state), fast_mode=True)


@every_form
def test_backward_is_the_transposed_recurrence_alone(monkeypatch, form):
    calls = []

    def counted(function):
        return lambda *args: calls.append(function.__name__) or function(*args)
    for name in ('_gates', '_product', '_transposed'):
        monkeypatch.setattr(room, name, counted(getattr(room, name)))
    inputs = operands(form)
    inputs['v'].requires_grad_()
    operator(form)(**inputs).sum().backward()
    assert calls == ['_gates', '_product', '_transposed']


@every_form
def test_keeps_memory_linear_in_tokens(form):
    def kept(length):
        inputs, numbers = operands(form, length), []
        inputs['v'].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: numbers.append(tensor.numel()), print):
            operator(form)(**inputs)
        return sum(numbers)
    assert kept(320) == 10 * kept(32) > 0


@every_form
def test_future_is_exactly_absent(backend, form):
    inputs = operands(form, 100)
    out = operator(form)(**{**inputs, 'v': inputs['v'].requires_grad_()}, backend=backend)
    gradient, = torch.autograd.grad(out[:, 50].sum(), inputs['v'])
    assert (gradient[:, 51:] == 0).all()
    assert (gradient[:, :51] != 0).all()
    other = {name: each.detach().clone() for name, each in inputs.items()}
    state = other.pop('initial_state')
    for each in other.values():
        each[:, 51:] = -0.5
    assert torch.equal(operator(form)(**other, initial_state=state, backend=backend)[:, :51], out[:, :51])


@pytest.mark.parametrize('form', [
    'decay', 'decay_by_key', 'bonus', 'delta_decay', 'delta_decay_by_key', 'general_decay_by_key'])
@pytest.mark.parametrize('strength', [200., torch.inf])
def test_strong_decays_neither_overflow_nor_lose_digits(backend, form, strength):
    '''Of a sum of decays over a chunk the exponential is 0 or infinite, and differences of such sums are no number.'''
    inputs = operands(form)
    inputs['decay'] = torch.where(torch.rand_like(inputs['decay']) < 0.3, -strength, inputs['decay'])
    outputs, expected = operator(form)(**inputs, output_final_state=True, backend=backend), formula(**inputs)
    for actual, other in zip(outputs, expected, strict=True):
        assert_close(actual, other)


@every_form
def test_packed_sequences_are_sequences_by_themselves(backend, form):
    inputs = operands(form)
    inputs['initial_state'] = torch.randn(2, 4, 6, 4, dtype=torch.float64)
    bounds = [0, 1, 34, 34, 70]
    out, last = operator(form)(**inputs, cu_seqlens=torch.tensor(bounds), output_final_state=True, backend=backend)
    states = inputs.pop('initial_state')
    for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == end:
            assert torch.equal(last[:, i], states[:, i])
            continue
        part, state = formula(**{name: each[:, start:end] for name, each in inputs.items()}, initial_state=states[:, i])
        assert_close(out[:, start:end], part)
        assert_close(last[:, i], state)


@every_form
def test_masked_tokens_neither_write_nor_forget(backend, form):
    inputs, mask = operands(form), torch.rand(70) < 0.5
    out, last = operator(form)(**inputs, mask=mask.expand(2, 70), output_final_state=True, backend=backend)
    state = inputs.pop('initial_state')
    expected, memory = formula(**{name: each[:, mask] for name, each in inputs.items()}, initial_state=state)
    assert_close(out[:, mask], expected)
    assert_close(last, memory)


@every_form
def test_a_sequence_can_be_continued(backend, form):
    inputs = operands(form)
    function, state = partial(operator(form), backend=backend, output_final_state=True), inputs.pop('initial_state')
    whole, last = function(**inputs, initial_state=state)
    parts = []
    for span in (slice(0, 37), slice(37, 70)):
        part, state = function(**{name: each[:, span] for name, each in inputs.items()}, initial_state=state)
        parts.append(part)
    assert_close(torch.cat(parts, 1), whole)
    assert_close(state, last)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@every_form
def test_half_precision_is_summed_in_single(backend, form, dtype):
    half = cast(operands(form), dtype)
    out, last = operator(form)(**half, backend=backend, output_final_state=True)
    expected, state = operator(form)(**cast(half, torch.float32), backend=backend, output_final_state=True)
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(last, state)


@every_form
def test_autocast_does_not_lower_sums(backend, form):
    inputs = cast(operands(form), torch.float32)
    inputs['v'].requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = operator(form)(**inputs, backend=backend)
    assert torch.equal(out, operator(form)(**inputs, backend=backend))


@pytest.mark.parametrize('shape', [(2, 0), (0, 5), (0, 0)])
@pytest.mark.parametrize('function', [gated_linear_attention, gated_delta_rule, general_delta_rule])
def test_nothing_gives_nothing(backend, shape, function):
    q, v, gate = torch.zeros(*shape, 3), torch.zeros(*shape, 4, requires_grad=True), torch.zeros(shape)
    out = function(q, q, v, *((q, q) if function is general_delta_rule else ()), gate, backend=backend)
    assert out.shape == v.shape
    if out.requires_grad:
        out.sum().backward()


@every_form
def test_a_function_mode_sees_one_operator(backend, form):
    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))
    seen, inputs = [], operands(form)
    with Record():
        operator(form)(**inputs, backend=backend)
    assert seen == [operator(form)]


Q, V, GATE = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(2, 5)
BAD_CALLS = {
    'lengths': ({'v': V[:, :4]}, ValueError, r'v \(2, 4, 4\)'),
    'decay': ({'decay': GATE[:, :4]}, ValueError, r'decay \(2, 4\), q \(2, 5, 3\)'),
    'decay by value': ({'decay': V}, ValueError, r'decay \(2, 5, 4\)'),
    'state': ({'initial_state': V}, ValueError, r'needs initial_state \(2, 3, 4\).*\(2, 5, 4\)'),
    'states': ({'initial_state': Q.new_zeros(2, 3, 4), 'cu_seqlens': [0, 2, 5]}, ValueError, r'\(2, 2, 3, 4\)'),
    'bounds': ({'cu_seqlens': [0, 2]}, ValueError, 'number of tokens, 5'),
    'order': ({'cu_seqlens': [0, 4, 2, 5]}, ValueError, 'ascend'),
    'mask': ({'mask': GATE}, TypeError, 'torch.bool'),
    'mask shape': ({'mask': GATE.bool()[:1]}, ValueError, r'\(1, 5\)'),
    'integers': ({'v': V.long()}, TypeError, 'torch.int64'),
    'backend': ({'backend': 'cumsum'}, ValueError, "unknown backend 'cumsum'.*loop"),
}


@pytest.mark.parametrize('case', BAD_CALLS)
@pytest.mark.parametrize('function', [gated_linear_attention, gated_delta_rule, general_delta_rule])
def test_refuses(case, function):
    options, error, message = BAD_CALLS[case]
    inputs = {'q': Q, 'k': Q, 'v': V, **options}
    if function is general_delta_rule:
        inputs['a'] = inputs['b'] = Q
    if function is gated_delta_rule:
        inputs['beta'] = inputs['v'][..., 0]
    with pytest.raises(error, match=message):
        function(**inputs)


def test_refuses_gates_of_other_shapes():
    with pytest.raises(ValueError, match=r'beta \(2, 5, 1\)'):
        gated_delta_rule(Q, Q, V, GATE[..., None])
    with pytest.raises(ValueError, match=r'a \(2, 5, 4\), b \(2, 5, 3\)'):
        general_delta_rule(Q, Q, V, V, Q)
    with pytest.raises(ValueError, match=r'bonus \(7, 2, 5, 3\)'):
        gated_linear_attention(Q, Q, V, bonus=torch.zeros(7, 2, 5, 3))


#: The functions of published code by form, which have heads behind tokens and name decays ``g`` or ``gk``.
PUBLISHED = {
    ('simple_gla', 'naive_recurrent_simple_gla'): ('decay', 'g'),
    ('simple_gla', 'naive_chunk_simple_gla'): ('decay', 'g'),
    ('gla', 'naive_recurrent_gla'): ('decay_by_key', 'gk'),
    ('gated_delta_rule', 'naive_recurrent_gated_delta_rule'): ('delta_decay', 'g'),
    ('gated_delta_rule', 'naive_chunk_gated_delta_rule'): ('delta_decay', 'g'),
    ('kda', 'naive_recurrent_kda'): ('delta_decay_by_key', 'g'),
}


def in_double():
    '''Published code computes in float32 whatever it is given. Within this it is the same code in float64.'''
    return [mock.patch.object(torch, 'float32', torch.float64), mock.patch.object(torch, 'float', torch.float64),
            mock.patch.object(torch.Tensor, 'float', torch.Tensor.double)]


def assert_equals_published(function, form, names, scale=6 ** -0.5):
    inputs = operands(form, 70, (2, 3))
    given = {names.get(name, name): each if name == 'initial_state' else each.transpose(1, 2)
             for name, each in inputs.items()}
    patches = in_double()
    for patch in patches:
        patch.start()
    try:
        out, last = function(**given, output_final_state=True)
    finally:
        for patch in patches:
            patch.stop()
    inputs['q'] = inputs['q'] * scale
    actual, state = operator(form)(**inputs, output_final_state=True)
    assert_close(actual.transpose(1, 2), out)
    assert_close(state, last)


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')  # it warns that there is no GPU
@pytest.mark.parametrize('where', PUBLISHED, ids=lambda where: where[1])
def test_equals_flash_linear_attention(where):
    form, decay = PUBLISHED[where]
    package = pytest.importorskip(f'fla.ops.{where[0]}.naive', exc_type=ImportError, reason=(
        'fla-core is not installed, and not in an extra: with it transformers runs kernels that need a GPU'))
    function = getattr(package, where[1])
    assert_equals_published(function, form, {'decay': decay})


@pytest.mark.zoo
@pytest.mark.parametrize('name', ['torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule'])
def test_equals_transformers(name):
    function = getattr(published('transformers.models.qwen3_next.modeling_qwen3_next'), name)
    while hasattr(function, '__wrapped__'):
        function = function.__wrapped__
    assert_equals_published(function, 'delta_decay', {'q': 'query', 'k': 'key', 'v': 'value', 'decay': 'g'})


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@every_form
def test_on_a_gpu(backend, form):
    inputs = operands(form, 100, (2, 3), d=16, e=8)
    single = {name: each.float().cuda() for name, each in inputs.items()}
    expected, out = (operator(form)(**{**each, 'v': each['v'].requires_grad_()}, backend=backend)
                     for each in (inputs, single))
    assert_close(out.cpu(), expected.float(), 1e-5)
    gradient, = torch.autograd.grad(expected.square().sum(), inputs['v'])
    assert_close(torch.autograd.grad(out.square().sum(), single['v'])[0].cpu(), gradient.float(), 1e-5)
