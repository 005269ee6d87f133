'''Recurrences of single features: both backends against their formula, published code, their transpose, refusals.'''
from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode

from zennit_attn.attention import linear_recurrence, mlstm, polynomial_attention, selective_scan, wkv
from zennit_attn.kernels import scan as room

from .helpers import assert_close, cast, published
from .test_recurrent import in_double

LENGTHS = [1, 2, 3, 16, 17, 70]
OPERATORS = {'linear': linear_recurrence, 'scan': selective_scan, 'scan of each': selective_scan}
every_operator = pytest.mark.parametrize('name', OPERATORS)


def operands(name, length=70, leading=(2,), d=5, s=3):
    '''Random operands, and a first state.'''
    torch.manual_seed(length)

    def draw(*shape):
        return torch.randn(*leading, *shape, dtype=torch.float64)
    if name == 'linear':
        return {'x': draw(length, d), 'keep': draw(length, d).tanh(), 'initial_state': draw(d)}
    of_each = (d,) if name == 'scan of each' else ()
    return {'x': draw(length, d), 'dt': draw(length, d).exp(), 'A': -torch.rand(d, s, dtype=torch.float64),
            'B': draw(length, *of_each, s), 'C': draw(length, *of_each, s), 'initial_state': draw(d, s)}


def formula(x, initial_state, keep=None, dt=None, A=None, B=None, C=None):  # noqa: N803 - the names of the article
    '''One state after another.'''
    state, outs = initial_state, []
    for i in range(x.shape[-2]):
        if keep is not None:
            state = keep[..., i, :] * state + x[..., i, :]
            outs.append(state)
            continue
        keys, queries = (each[..., i, :] if each.ndim == x.ndim else each[..., i, :, :] for each in (B, C))
        keys, queries = (each[..., None, :] if each.ndim < state.ndim else each for each in (keys, queries))
        step = dt[..., i, :, None]
        state = (step * A).exp() * state + step * x[..., i, :, None] * keys
        outs.append((state * queries).sum(-1))
    return torch.stack(outs, -2), state


@pytest.fixture(params=['chunked', 'loop'])
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    '''Such that a few features are a block of the selective scan.'''
    monkeypatch.setattr(room, 'BLOCK', 900)


@every_operator
@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('leading', [(), (2,), (2, 3)])
def test_equals_formula(backend, name, length, leading):
    inputs = operands(name, length, leading)
    outputs = OPERATORS[name](**inputs, output_final_state=True, backend=backend)
    for actual, expected in zip(outputs, formula(**inputs), strict=True):
        assert_close(actual, expected)


@every_operator
def test_starts_empty_and_returns_outputs_alone(backend, name):
    inputs = operands(name)
    empty = {**inputs, 'initial_state': torch.zeros_like(inputs.pop('initial_state'))}
    assert_close(OPERATORS[name](**inputs, backend=backend), formula(**empty)[0])


@every_operator
@pytest.mark.parametrize('needed', ['all', 'x', 'initial_state', 'both'])
def test_gradients_are_those_of_the_formula(backend, name, needed):
    inputs = operands(name)
    names = {'all': list(inputs), 'both': ['x', 'initial_state']}.get(needed, [needed])
    wanted = [inputs[each].requires_grad_() for each in names]
    outputs = OPERATORS[name](**inputs, output_final_state=True, backend=backend)
    expected = formula(**inputs)
    weights = [torch.randn_like(each) for each in expected]
    gradients = torch.autograd.grad(expected, wanted, weights)
    for actual, other in zip(torch.autograd.grad(outputs, wanted, weights), gradients, strict=True):
        assert_close(actual, other, 1e-12)


@every_operator
def test_keeps_memory_linear_in_tokens(name, monkeypatch):
    monkeypatch.setattr(room, 'BLOCK', 2 ** 20)

    def kept(length):
        inputs, numbers = operands(name, length), []
        inputs['x'].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: numbers.append(tensor.numel()), print):
            OPERATORS[name](**inputs)
        return sum(numbers)
    assert 0 < kept(320) <= 10 * kept(32)


@every_operator
def test_future_is_exactly_absent(backend, name):
    inputs = operands(name, 100)
    out = OPERATORS[name](**{**inputs, 'x': inputs['x'].requires_grad_()}, backend=backend)
    gradient, = torch.autograd.grad(out[:, 50].sum(), inputs['x'])
    assert (gradient[:, 51:] == 0).all()
    assert (gradient[:, 30:51] != 0).all()


@pytest.mark.parametrize('factor', [0., 1e-200])
def test_what_forgets_all_loses_no_digits(backend, factor):
    inputs = operands('linear')
    inputs['keep'] = torch.where(torch.rand_like(inputs['keep']) < 0.3, factor, inputs['keep'])
    assert_close(linear_recurrence(**inputs, backend=backend), formula(**inputs)[0])


@every_operator
def test_packed_sequences_are_sequences_by_themselves(backend, name):
    inputs, bounds = operands(name), [0, 1, 34, 34, 70]
    states = inputs['initial_state'] = torch.randn(2, 4, *inputs['initial_state'].shape[1:], dtype=torch.float64)
    out, last = OPERATORS[name](**inputs, cu_seqlens=torch.tensor(bounds), output_final_state=True, backend=backend)
    del inputs['initial_state']
    for i, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == end:
            assert torch.equal(last[:, i], states[:, i])
            continue
        part, state = formula(**{key: each if key == 'A' else each[:, start:end] for key, each in inputs.items()},
                              initial_state=states[:, i])
        assert_close(out[:, start:end], part)
        assert_close(last[:, i], state)


@every_operator
def test_masked_tokens_neither_add_nor_forget(backend, name):
    inputs, mask = operands(name), torch.rand(70) < 0.5
    out, last = OPERATORS[name](**inputs, mask=mask.expand(2, 70), output_final_state=True, backend=backend)
    state = inputs.pop('initial_state')
    expected, state = formula(**{key: each if key == 'A' else each[:, mask] for key, each in inputs.items()},
                              initial_state=state)
    assert_close(out[:, mask], expected)
    assert_close(last, state)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@every_operator
def test_half_precision_is_summed_in_single(backend, name, dtype):
    half = cast(operands(name), dtype)
    out, last = OPERATORS[name](**half, backend=backend, output_final_state=True)
    expected, state = OPERATORS[name](**cast(half, torch.float32), backend=backend, output_final_state=True)
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(last, state)


@every_operator
def test_autocast_does_not_lower_sums(backend, name):
    inputs = cast(operands(name), torch.float32)
    inputs['x'].requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = OPERATORS[name](**inputs, backend=backend)
    assert torch.equal(out, OPERATORS[name](**inputs, backend=backend))


@every_operator
@pytest.mark.parametrize(('length', 'leading'), [(0, (2,)), (5, (0,)), (0, (0,))])
def test_nothing_gives_nothing(backend, name, length, leading):
    inputs = operands(name, length, leading)
    inputs['x'].requires_grad_()
    out, last = OPERATORS[name](**inputs, backend=backend, output_final_state=True)
    assert out.shape == inputs['x'].shape
    assert torch.equal(last, inputs['initial_state'])


@every_operator
def test_a_function_mode_sees_one_operator(backend, name):
    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))
    seen, inputs = [], operands(name)
    with Record():
        OPERATORS[name](**inputs, backend=backend)
    assert seen == [OPERATORS[name]]


X, STATES = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
BAD_CALLS = {
    'factors': (linear_recurrence, (X, X[:, :4]), {}, ValueError, r'keep \(2, 4, 3\)'),
    'state': (linear_recurrence, (X, X), {'initial_state': X}, ValueError, r'initial_state \(2, 3\).*\(2, 5, 3\)'),
    'bounds': (linear_recurrence, (X, X), {'cu_seqlens': [0, 2]}, ValueError, 'number of tokens, 5'),
    'mask': (linear_recurrence, (X, X), {'mask': X[..., 0]}, TypeError, 'torch.bool'),
    'integers': (linear_recurrence, (X.long(), X), {}, TypeError, 'torch.int64'),
    'backend': (linear_recurrence, (X, X), {'backend': 'cumsum'}, ValueError, "unknown backend 'cumsum'"),
    'steps': (selective_scan, (X, X[:, :4], X[0, :3], STATES, STATES), {}, ValueError, r'dt \(2, 4, 3\)'),
    'rates': (selective_scan, (X, X, X[0], STATES, STATES), {}, ValueError, r'A \(5, 3\)'),
    'keys': (selective_scan, (X, X, torch.zeros(3, 4), STATES[:1], STATES), {}, ValueError, r'B \(1, 5, 4\)'),
    'states': (selective_scan, (X, X, torch.zeros(3, 4), STATES, STATES), {'initial_state': X}, ValueError,
               r'initial_state \(2, 3, 4\)'),
    'types': (selective_scan, (X.long(), X, torch.zeros(3, 4), STATES, STATES), {}, TypeError, 'torch.int64'),
    'gates of mLSTM': (mlstm, (X, X, X, X, X[..., 0]), {}, ValueError, r'input_gate \(2, 5, 3\)'),
    'weights of RWKV': (wkv, (X, X, X, X), {}, ValueError, r'decay \(2, 5, 3\)'),
    'state of RWKV': (wkv, (X, X, X[0, 0], X[0, 0]), {'initial_state': X[:, 0]}, ValueError, 'or none of them'),
}


@pytest.mark.parametrize('case', BAD_CALLS)
def test_refuses(case):
    function, args, options, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        function(*args, **options)


# ---- what is put together from operators -----------------------------------------------------------------------------

def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('strength', [1., 30.])
@pytest.mark.parametrize('first', [False, True])
def test_mlstm_equals_its_formula(strength, first):
    '''Unscaled sums, which do not overflow in float64 here.'''
    torch.manual_seed(0)
    q, k, v, gain, loss = draw(2, 20, 6), draw(2, 20, 6), draw(2, 20, 5), draw(2, 20) * strength, draw(2, 20)
    memory, normalizer, maximum = draw(2, 6, 5), draw(2, 6), draw(2, 1)
    state = (memory, normalizer, maximum) if first else None
    out, last = mlstm(q, k, v, gain, loss, initial_state=state, output_final_state=True)
    scale = maximum.exp() if first else torch.ones(2, 1).double()
    memory, normalizer = (memory * scale[..., None], normalizer * scale) if first else (
        torch.zeros_like(memory), torch.zeros_like(normalizer))
    highest = scale.log()[:, 0]
    for i in range(20):
        memory = loss[:, i].sigmoid()[:, None, None] * memory + gain[:, i].exp()[:, None, None] * (
            k[:, i, :, None] * v[:, i, None])
        normalizer = loss[:, i].sigmoid()[:, None] * normalizer + gain[:, i].exp()[:, None] * k[:, i]
        highest = torch.maximum(highest + loss[:, i].sigmoid().log(), gain[:, i])
        query = q[:, i] * 6 ** -.5
        above, below = (query[:, None] @ memory)[:, 0], (query * normalizer).sum(-1)
        below = torch.maximum(below.abs(), torch.ones_like(below)) + 1e-6 * highest.exp()
        assert_close(out[:, i], above / below[:, None])
    assert_close(last[0] * last[2].exp()[..., None], memory)
    assert_close(last[1] * last[2].exp(), normalizer)


@pytest.mark.parametrize('strength', [1., 100.])
def test_wkv_equals_its_formula(strength):
    torch.manual_seed(0)
    k, v, decay, bonus = draw(2, 20, 6) * strength, draw(2, 20, 6), -torch.rand(6).double(), draw(6)
    out = wkv(k, v, decay, bonus)
    for i in range(20):
        exponents = torch.stack([(i - 1 - j) * decay + k[:, j] for j in range(i)] + [bonus + k[:, i]], 1)
        assert_close(out[:, i], (exponents.softmax(1) * v[:, :i + 1]).sum(1))


@pytest.mark.parametrize('function', [partial(mlstm, output_final_state=True), partial(wkv, output_final_state=True)])
def test_a_sequence_can_be_continued(function):
    torch.manual_seed(0)
    inputs = [draw(2, 20, 6), draw(2, 20, 6)]
    weights = [-torch.rand(6).double(), draw(6)]
    if function.func is mlstm:
        inputs, weights = [*inputs, draw(2, 20, 5), draw(2, 20), draw(2, 20)], []
    names = ('initial_state', 'normalizer', 'maximum')

    def run(inputs, **state):
        out, *last = function(*inputs, *weights, **state)
        return out, last[0] if function.func is mlstm else dict(zip(names, last, strict=True))
    whole, last = run(inputs)
    first, state = run([each[:, :7] for each in inputs])
    second, state = run([each[:, 7:] for each in inputs], **(
        {'initial_state': state} if function.func is mlstm else state))
    assert_close(torch.cat([first, second], 1), whole)
    if function.func is wkv:
        state, last = state.values(), last.values()
    for actual, expected in zip(state, last, strict=True):
        assert_close(actual, expected)


def run(function, inputs, weights, **options):
    '''Outputs and the last state as a tuple.'''
    if function is polynomial_attention:
        return function(*inputs, **options), ()
    out, *last = function(*inputs, *weights, output_final_state=True, **options)
    return out, last[0] if function is mlstm else tuple(last)


def inputs_of(function):
    inputs, weights = [draw(2, 20, 6), draw(2, 20, 6)], []
    if function is wkv:
        return inputs, [-torch.rand(6).double(), draw(6)]
    inputs.append(draw(2, 20, 5))
    return (inputs if function is polynomial_attention else [*inputs, draw(2, 20), draw(2, 20)]), weights


every_function = pytest.mark.parametrize('function', [mlstm, wkv, polynomial_attention])


@every_function
def test_packed_sequences_are_sequences_each(function):
    torch.manual_seed(0)
    (inputs, weights), bounds = inputs_of(function), [0, 1, 8, 8, 20]
    out, last = run(function, inputs, weights, cu_seqlens=torch.tensor(bounds))
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if start == end:
            continue
        expected, state = run(function, [each[:, start:end] for each in inputs], weights)
        assert_close(out[:, start:end], expected)
        for one, other in zip(last, state, strict=True):
            assert_close(one[:, number], other)


@pytest.mark.parametrize('function', [mlstm, wkv])
def test_packed_sequences_go_on_from_states(function):
    torch.manual_seed(0)
    inputs, weights = inputs_of(function)
    _, state = run(function, inputs, weights)
    packed = tuple(torch.stack([part, part], 1) for part in state)
    names = ('initial_state', 'normalizer', 'maximum')
    given, alone = ({'initial_state': each} if function is mlstm else dict(zip(names, each, strict=True))
                    for each in (packed, state))
    out, last = run(function, inputs, weights, cu_seqlens=[0, 12, 20], **given)
    expected, states = run(function, [each[:, 12:] for each in inputs], weights, **alone)
    assert_close(out[:, 12:], expected)
    for one, other in zip(last, states, strict=True):
        assert_close(one[:, 1], other)


@every_function
@pytest.mark.parametrize('first', [False, True])
def test_masked_tokens_count_for_nothing(function, first):
    torch.manual_seed(0)
    (inputs, weights), mask = inputs_of(function), torch.rand(20) < .5
    mask[:3] = first
    out, last = run(function, inputs, weights, mask=mask.expand(2, 20))
    expected, state = run(function, [each[:, mask] for each in inputs], weights)
    assert_close(out[:, mask], expected)
    assert out.isfinite().all()
    for one, other in zip(last, state, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize('coefficients', [(1., 1., .5), (0., 0., 1.), (0., 1., 0.)])
@pytest.mark.parametrize('normalize', [False, True])
def test_polynomial_attention_equals_its_formula(coefficients, normalize):
    torch.manual_seed(0)
    q, k, v = draw(2, 3, 70, 4), draw(2, 3, 70, 4), draw(2, 3, 70, 5)
    scores = q @ k.mT
    weights = sum(each * scores ** power for power, each in enumerate(coefficients)).tril()
    expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-3 if normalize else 1)
    actual = polynomial_attention(q, k, v, coefficients, normalize=normalize, eps=1e-3)
    assert_close(actual, expected, 1e-9 if normalize else 1e-12)


@pytest.mark.zoo
def test_they_equal_transformers():
    code = published('transformers.models.rwkv.modeling_rwkv')
    torch.manual_seed(0)
    decay, bonus, k, v = draw(7), draw(7), draw(2, 20, 7), draw(2, 20, 7)
    patches = in_double()
    for patch in patches:
        patch.start()
    try:
        expected, _ = code.rwkv_linear_attention_cpu(decay, bonus, k, v)
    finally:
        for patch in patches:
            patch.stop()
    assert_close(wkv(k, v, -decay.exp(), bonus), expected)
