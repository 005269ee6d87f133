'''The causal product: every backend against its formula, forward, gradients, causality and refusals.'''
import pytest
import torch
from torch.overrides import TorchFunctionMode

from zennit_attn.attention import backends, causal_dot_product, causal_dot_product_values
from zennit_attn.kernels import causal as room

from .helpers import assert_close, cast

PLAIN = ['chunked', 'cumsum']
LENGTHS = [1, 2, 63, 64, 65, 130, 257]
LEADING = [(), (2,), (2, 3)]


def gates_and_values(length, leading=(2,), d=5, e=4, dtype=torch.float64):
    '''Random queries, keys and values.'''
    torch.manual_seed(length)
    return (torch.randn(*leading, length, width, dtype=dtype) for width in (d, d, e))


def formula(q, k, v):
    '''Each output by itself, from the definition.'''
    outs = []
    for i in range(v.shape[-2]):
        outs.append(sum((q[..., i, :] * k[..., j, :]).sum(-1, keepdim=True) * v[..., j, :] for j in range(i + 1)))
    return torch.stack(outs, dim=-2)


@pytest.fixture(params=PLAIN)
def backend(request):
    return request.param


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('leading', LEADING)
def test_equals_formula(backend, length, leading):
    q, k, v = gates_and_values(length, leading)
    assert_close(causal_dot_product(q, k, v, backend), formula(q, k, v))


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('product', [room._loop, room._parallel, room._cumsum])
@pytest.mark.parametrize('reverse', [False, True])
def test_kernels_of_all_devices(product, length, reverse):
    q, k, v = gates_and_values(length)
    scores = q @ k.mT
    assert_close(product(q, k, v, reverse), (scores.triu() if reverse else scores.tril()) @ v)


def test_chooses_the_kernel_by_device(monkeypatch):
    calls = []
    monkeypatch.setattr(room, '_parallel', lambda *args: calls.append('parallel'))
    monkeypatch.setattr(room, '_loop', lambda *args: calls.append('loop'))
    for length, device in ((65, 'cpu'), (65, 'meta'), (64, 'meta')):
        room._chunked(*(each.to(device) for each in gates_and_values(length)))
    assert calls == ['loop', 'parallel', 'loop']


@pytest.mark.parametrize('length', [1, 64, 100])
@pytest.mark.parametrize('needed', ['v', 'q', 'k', 'qk', 'qkv'])
def test_gradients_are_those_of_the_formula(backend, length, needed):
    operands = dict(zip('qkv', gates_and_values(length), strict=True))
    wanted = [operands[name].requires_grad_() for name in needed]
    out, expected = causal_dot_product(**operands, backend=backend), formula(**operands)
    weight = torch.randn_like(expected)
    for actual, other in zip(
        torch.autograd.grad(out, wanted, weight), torch.autograd.grad(expected, wanted, weight), strict=True
    ):
        assert_close(actual, other)


def test_second_derivatives(backend):
    operands = [each.requires_grad_() for each in gates_and_values(67, d=3, e=2)]
    assert torch.autograd.gradcheck(lambda *args: causal_dot_product(*args, backend), operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *args: causal_dot_product(*args, backend), operands, fast_mode=True)


def test_value_gradient_is_one_product(monkeypatch):
    calls = []

    def counted(q, k, v, reverse):
        calls.append(reverse)
        return room._chunked(q, k, v, reverse)
    monkeypatch.setitem(room.BACKENDS, 'chunked', counted)
    q, k, v = gates_and_values(70)
    causal_dot_product(q, k, v.requires_grad_()).sum().backward()
    assert calls == [False, True]


def test_keeps_nothing_but_its_inputs():
    kept = []
    q, k, v = gates_and_values(300)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        causal_dot_product(q, k, v.requires_grad_())
        assert [tensor.data_ptr() for tensor in kept] == [q.data_ptr(), k.data_ptr()]


def test_values_form_takes_constant_gates(backend):
    q, k, v = gates_and_values(70)
    out = causal_dot_product_values(q, k, v.requires_grad_(), backend)
    assert_close(out, formula(q, k, v))
    assert_close(torch.autograd.grad(out.sum(), v)[0], torch.autograd.grad(formula(q, k, v).sum(), v)[0])


@pytest.mark.parametrize('gate', ['q', 'k'])
def test_values_form_refuses_gates_that_require_grad(gate):
    operands = dict(zip('qkv', gates_and_values(5), strict=True))
    operands[gate].requires_grad_()
    with pytest.raises(ValueError, match=f'{gate} require grad: detach them, or use causal_dot_product for'):
        causal_dot_product_values(**operands)
    with torch.no_grad():
        causal_dot_product_values(**operands)


def test_future_is_exactly_absent(backend):
    q, k, v = gates_and_values(200)
    out = causal_dot_product(q, k, v.requires_grad_(), backend)
    gradient, = torch.autograd.grad(out[:, 100].sum(), v)
    assert (gradient[:, 101:] == 0).all()
    assert (gradient[:, :101] != 0).all()
    other = [each.detach().clone() for each in (q, k, v)]
    for each in other:
        each[:, 101:] = 7.
    assert torch.equal(causal_dot_product(*other, backend)[:, :101], out[:, :101])


@pytest.mark.parametrize('reverse', [False, True])
def test_absence_is_exact_in_parallel_chunks(reverse):
    q, k, v = gates_and_values(200)
    out = room._parallel(q, k, v, reverse)
    absent, present = (slice(None, 100), slice(100, None)) if reverse else (slice(101, None), slice(None, 101))
    for each in (q, k, v):
        each[:, absent] = 7.
    assert torch.equal(room._parallel(q, k, v, reverse)[:, present], out[:, present])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(backend, dtype):
    q, k, v = cast(tuple(gates_and_values(500)), dtype)
    out = causal_dot_product(q, k, v, backend)
    assert torch.equal(out, causal_dot_product(q.float(), k.float(), v.float(), backend).to(dtype))
    gradient, = torch.autograd.grad(causal_dot_product(q, k, v.requires_grad_(), backend).sum(), v)
    assert gradient.dtype == dtype


def test_autocast_does_not_lower_sums(backend):
    q, k, v = cast(tuple(gates_and_values(100)), torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        out = causal_dot_product(q, k, v.requires_grad_(), backend)
    assert torch.equal(out, causal_dot_product(q, k, v, backend))
    assert_close(torch.autograd.grad(out.sum(), v)[0], torch.autograd.grad(formula(q, k, v).sum(), v)[0], 1e-5)


def test_mixed_dtypes_are_promoted(backend):
    q, k, v = gates_and_values(5)
    assert_close(causal_dot_product(q, k.float().double(), v, backend), causal_dot_product(q, k.float(), v, backend))


def test_any_layout(backend):
    q, k, v = gates_and_values(70, (2, 3))
    expected = formula(q, k, v)
    permuted = [each.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for each in (q, k, v)]
    assert_close(causal_dot_product(*permuted, backend), expected)
    expanded = q[:1, :1].expand_as(q)
    assert_close(causal_dot_product(expanded, k, v, backend), formula(expanded, k, v))


@pytest.mark.parametrize('shape', [(2, 0), (0, 5), (0, 0)])
def test_nothing_gives_nothing(backend, shape):
    q, v = torch.zeros(*shape, 3), torch.zeros(*shape, 4, requires_grad=True)
    out = causal_dot_product(q, q, v, backend)
    assert out.shape == v.shape
    out.sum().backward()
    assert v.grad.shape == v.shape


def test_a_function_mode_sees_one_operator(backend):
    class Record(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))
    seen, (q, k, v) = [], gates_and_values(70)
    with Record():
        out = causal_dot_product(q, k, v, backend=backend)
    assert seen == [causal_dot_product]
    assert_close(out, causal_dot_product(q, k, v, backend))


Q, V = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
BAD_CALLS = {
    'lengths': ((Q, Q, V[:, :4]), {}, ValueError, r'v \(2, 4, 4\)'),
    'batches': ((Q, Q, V[:1]), {}, ValueError, r'v \(1, 5, 4\)'),
    'features': ((Q, V, V), {}, ValueError, r'k \(2, 5, 4\)'),
    'axes': ((Q[0, 0], Q[0, 0], V[0, 0]), {}, ValueError, r'\.\.\., n, d'),
    'integers': ((Q, Q, V.long()), {}, TypeError, 'torch.int64'),
    'complex': ((Q, Q, V.cfloat()), {}, TypeError, 'torch.complex64'),
    'backend': ((Q, Q, V), {'backend': 'fast'}, ValueError, "unknown backend 'fast'.*chunked"),
}


@pytest.mark.parametrize('case', BAD_CALLS)
def test_refuses(case):
    args, kwargs, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        causal_dot_product(*args, **kwargs)


def test_extension_is_named_where_it_is_missing(monkeypatch):
    def missing(name):
        raise ImportError(name)
    monkeypatch.setattr(room, 'import_module', missing)
    assert backends() == PLAIN
    with pytest.raises(ImportError, match='pip install .* pytorch-fast-transformers'):
        causal_dot_product(Q, Q, V, 'fast_transformers')


@pytest.mark.zoo
def test_extension_is_listed(extension):
    assert backends() == [*PLAIN, 'fast_transformers']


@pytest.mark.zoo
@pytest.mark.parametrize('length', LENGTHS)
def test_extension_equals_formula(extension, length):
    q, k, v = gates_and_values(length, (2, 3))
    out = causal_dot_product(*cast((q, k, v), torch.float32), 'fast_transformers')
    assert_close(out, formula(q, k, v).float())


@pytest.mark.zoo
@pytest.mark.parametrize('needed', ['v', 'qk', 'qkv'])
def test_extension_gradients_for_any_layout(extension, needed):
    '''Also for a gradient that is expanded from one number, as that of a sum, which the extension alone misreads.'''
    operands = dict(zip('qkv', gates_and_values(70), strict=True))
    single = {name: each.float().mT.contiguous().mT for name, each in operands.items()}
    wanted = [[each[name].requires_grad_() for name in needed] for each in (operands, single)]
    expected = torch.autograd.grad(formula(**operands).sum(), wanted[0])
    actual = torch.autograd.grad(causal_dot_product(**single, backend='fast_transformers').sum(), wanted[1])
    for value, other in zip(actual, expected, strict=True):
        assert_close(value, other.float())


@pytest.mark.zoo
def test_extension_does_not_take_double(extension):
    with pytest.raises(TypeError, match='float32 only'):
        causal_dot_product(*gates_and_values(5), 'fast_transformers')


@pytest.mark.zoo
def test_extension_ignores_the_default_dtype(extension):
    q, k, v = cast(tuple(gates_and_values(70)), torch.float32)
    expected = causal_dot_product(q, k, v, 'fast_transformers')
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(causal_dot_product(q, k, v, 'fast_transformers'), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.zoo
@pytest.mark.parametrize('wrong', ['transposed', 'scaled', 'acausal'])
def test_a_wrong_kernel_is_seen(extension, monkeypatch, wrong):
    '''The comparison with the formula fails where the extension gives other numbers.'''
    kernel = extension.CausalDotProduct.dot['cpu']

    def broken(q, k, v, out):
        kernel(*((k, q) if wrong == 'transposed' else (q, k)), v, out)
        if wrong == 'scaled':
            out *= 1 + 1e-4
        if wrong == 'acausal':
            out[..., 0, :] += out[..., -1, :]
    monkeypatch.setitem(extension.CausalDotProduct.dot, 'cpu', broken)
    with pytest.raises(AssertionError):
        test_extension_equals_formula(extension, 70)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('name', room.BACKENDS)
@pytest.mark.parametrize('length', [1, 64, 65, 1000])
def test_on_a_gpu(name, length):
    if name not in backends('cuda'):
        pytest.skip('the CUDA extension of pytorch-fast-transformers is not built here')
    q, k, v = gates_and_values(length, (2, 3), d=16, e=8)
    expected = causal_dot_product(q, k, v.requires_grad_())
    gradient, = torch.autograd.grad(expected.square().sum(), v)
    single = [each.detach().float().cuda() for each in (q, k, v)]
    out = causal_dot_product(*single[:2], single[2].requires_grad_(), name)
    assert_close(out.cpu(), expected.float(), 1e-5)
    assert_close(torch.autograd.grad(out.square().sum(), single[2])[0].cpu(), gradient.float(), 1e-5)
