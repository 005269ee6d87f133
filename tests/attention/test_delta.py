'''The delta rule: both backends against its formula, the transposed recurrence, causality and refusals.'''
import pytest
import torch
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

from zennit_attn.attention import delta_rule, delta_rule_values
from zennit_attn.kernels import delta as room

from .helpers import assert_close, cast

LENGTHS = [1, 2, 31, 32, 33, 70, 200]
LEADING = [(), (2,), (2, 3)]


def operands(length, leading=(2,), d=6, e=4):
    '''Random queries, keys of unit length, values, and betas between 0 and 1.'''
    torch.manual_seed(length)
    q, k, v = (torch.randn(*leading, length, width, dtype=torch.float64) for width in (d, d, e))
    return {'q': q, 'k': normalize(k, dim=-1), 'v': v, 'beta': torch.rand(*leading, length, dtype=torch.float64)}


def formula(q, k, v, beta):
    '''One memory after another, from the definition, each row of the batch by itself.'''
    if v.ndim > 2:
        return torch.stack([formula(*rows) for rows in zip(q, k, v, beta, strict=True)])
    memory, outs = torch.zeros(v.shape[-1], k.shape[-1], dtype=v.dtype), []
    for i in range(len(v)):
        memory = memory + beta[i] * torch.outer(v[i] - memory @ k[i], k[i])
        outs.append(memory @ q[i])
    return torch.stack(outs)


@pytest.fixture(params=['chunked', 'loop'])
def backend(request):
    return request.param


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('leading', LEADING)
def test_equals_formula(backend, length, leading):
    inputs = operands(length, leading)
    assert_close(delta_rule(**inputs, backend=backend), formula(**inputs))


def test_writes_what_is_read():
    '''With orthonormal keys and full betas the memory is a table, and a new entry replaces the old.'''
    keys = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    values = torch.randn(4, 5, dtype=torch.float64)
    queries = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 0]]
    out = delta_rule(queries, keys, values, torch.ones(4, dtype=torch.float64))
    assert_close(out, values[[0, 0, 1, 3]])


@pytest.mark.parametrize('length', [1, 32, 70])
@pytest.mark.parametrize('needed', [('v',), ('q',), ('k',), ('beta',), ('q', 'k', 'v', 'beta')])
def test_gradients_are_those_of_the_formula(backend, length, needed):
    inputs = operands(length)
    wanted = [inputs[name].requires_grad_() for name in needed]
    out, expected = delta_rule(**inputs, backend=backend), formula(**inputs)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, wanted, weight)
    for actual, other in zip(torch.autograd.grad(out, wanted, weight), gradients, strict=True):
        assert_close(actual, other, 1e-11)


def test_second_derivatives_of_the_linear_map():
    inputs = operands(40, (), 3, 2)
    v = inputs.pop('v').requires_grad_()
    assert torch.autograd.gradcheck(lambda v: delta_rule(v=v, **inputs), v, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda v: delta_rule(v=v, **inputs), v, fast_mode=True)


def test_backward_is_the_transposed_recurrence_alone(monkeypatch):
    calls = []

    def counted(function):
        return lambda *args: calls.append(function.__name__) or function(*args)
    for name in ('_solve', '_product', '_transposed'):
        monkeypatch.setattr(room, name, counted(getattr(room, name)))
    inputs = operands(70)
    inputs['v'].requires_grad_()
    delta_rule(**inputs).sum().backward()
    assert calls == ['_solve', '_product', '_transposed']


def test_keeps_memory_linear_in_tokens():
    def kept(length):
        inputs, numbers = operands(length), []
        inputs['v'].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: numbers.append(tensor.numel()), print):
            delta_rule(**inputs)
        return sum(numbers)
    assert kept(320) == 10 * kept(32) == 2 * 320 * (2 * 6 + room.CHUNK)


def test_values_form_takes_constant_gates(backend):
    inputs = operands(70)
    inputs['v'].requires_grad_()
    out, expected = delta_rule_values(**inputs, backend=backend), formula(**inputs)
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out.sum(), inputs['v'])[0], torch.autograd.grad(expected.sum(), inputs['v'])[0])


@pytest.mark.parametrize('gate', ['q', 'k', 'beta'])
def test_values_form_refuses_gates_that_require_grad(gate):
    inputs = operands(5)
    inputs[gate].requires_grad_()
    with pytest.raises(ValueError, match=f'{gate} require grad: detach them, or use delta_rule for'):
        delta_rule_values(**inputs)
    with torch.no_grad():
        delta_rule_values(**inputs)


def test_future_is_exactly_absent(backend):
    inputs = operands(100)
    out = delta_rule(**{**inputs, 'v': inputs['v'].requires_grad_()}, backend=backend)
    gradient, = torch.autograd.grad(out[:, 50].sum(), inputs['v'])
    assert (gradient[:, 51:] == 0).all()
    assert (gradient[:, :51] != 0).all()
    other = {name: each.detach().clone() for name, each in inputs.items()}
    for each in other.values():
        each[:, 51:] = 0.5
    assert torch.equal(delta_rule(**other, backend=backend)[:, :51], out[:, :51])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(backend, dtype):
    half = cast(operands(100), dtype)
    out = delta_rule(**half, backend=backend)
    assert torch.equal(out, delta_rule(**cast(half, torch.float32), backend=backend).to(dtype))


def test_autocast_does_not_lower_sums(backend):
    inputs = cast(operands(100), torch.float32)
    inputs['v'].requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = delta_rule(**inputs, backend=backend)
    assert torch.equal(out, delta_rule(**inputs, backend=backend))


def test_single_precision_is_close_to_double(backend):
    inputs = operands(200)
    assert_close(delta_rule(**cast(inputs, torch.float32), backend=backend), formula(**inputs).float(), 2e-6)


def test_any_layout(backend):
    inputs = operands(70, (2, 3))
    expected = formula(**inputs)
    permuted = {name: each.movedim(0, -1).contiguous().movedim(-1, 0) for name, each in inputs.items()}
    assert_close(delta_rule(**permuted, backend=backend), expected)


@pytest.mark.parametrize('shape', [(2, 0), (0, 5), (0, 0)])
def test_nothing_gives_nothing(backend, shape):
    q, v = torch.zeros(*shape, 3), torch.zeros(*shape, 4, requires_grad=True)
    out = delta_rule(q, q, v, torch.zeros(shape), backend)
    assert out.shape == v.shape
    if out.requires_grad:
        out.sum().backward()


def test_a_function_mode_sees_one_operator(backend):
    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))
    seen, inputs = [], operands(40)
    with Record():
        out = delta_rule(**inputs, backend=backend)
    assert seen == [delta_rule]
    assert_close(out, delta_rule(**inputs, backend=backend))


Q, V, BETA = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4), torch.zeros(2, 5)
BAD_CALLS = {
    'lengths': ((Q, Q, V[:, :4], BETA), {}, ValueError, r'v \(2, 4, 4\)'),
    'features': ((Q, V, V, BETA), {}, ValueError, r'k \(2, 5, 4\)'),
    'beta': ((Q, Q, V, BETA[..., None]), {}, ValueError, r'beta \(2, 5, 1\)'),
    'integers': ((Q, Q, V.long(), BETA), {}, TypeError, 'torch.int64'),
    'backend': ((Q, Q, V, BETA), {'backend': 'cumsum'}, ValueError, "unknown backend 'cumsum'.*loop"),
}


@pytest.mark.parametrize('case', BAD_CALLS)
def test_refuses(case):
    args, kwargs, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        delta_rule(*args, **kwargs)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('length', [1, 32, 33, 500])
def test_on_a_gpu(backend, length):
    inputs = operands(length, (2, 3), d=16, e=8)
    single = {name: each.float().cuda() for name, each in inputs.items()}
    expected, out = (delta_rule(**{**each, 'v': each['v'].requires_grad_()}, backend=backend)
                     for each in (inputs, single))
    assert_close(out.cpu(), expected.float(), 1e-5)
    gradient, = torch.autograd.grad(expected.square().sum(), inputs['v'])
    assert_close(torch.autograd.grad(out.square().sum(), single['v'])[0].cpu(), gradient.float(), 1e-5)
