'''Fast backward passes of linear layers, activations and norms against autograd and their formulas.'''
import pytest
import torch
from torch.nn import functional

from helpers import relative
from zennit_attn.kernels import ConstantConvolution, ConstantLinear, Scale, blank_rows, group_norm

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
every_dtype = pytest.mark.parametrize('dtype', TOLERANCES)


def patterns(rows, columns):
    '''Which rows and columns of relevance are zero, by name.'''
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    return {
        'none': row + column >= 0,
        'all': row + column < 0,
        'first columns': (column >= 2 * columns // 3).expand(rows, columns),
        'last columns': (column < columns // 3).expand(rows, columns),
        'scattered columns': (column % 3 == 0).expand(rows, columns),
        'all rows but one': (row == 1).expand(rows, columns),
        'scattered rows': (row % 4 == 0).expand(rows, columns),
        'rows and columns': (row < 2) & (column > columns // 2),
        'what a sample does not see': (row == rows - 1) & (column == columns - 1),
        'half of the entries': (row + column) % 2 == 0,
    }


every_pattern = pytest.mark.parametrize('pattern', patterns(3, 3))


@every_dtype
@every_pattern
@pytest.mark.parametrize('shape', [(3, 24), (2, 70, 24), (24,), (0, 24)], ids=str)
def test_linear_is_that_of_autograd(shape, pattern, dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(36, 24, dtype=dtype), torch.randn(36, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    expected = functional.linear(x, weight, bias)
    rows = expected.numel() // 36
    grad = torch.randn_like(expected) * patterns(rows, 36)[pattern].reshape(expected.shape)
    output = ConstantLinear.apply(x, weight, bias)
    assert torch.equal(output, expected)
    gradient, = torch.autograd.grad(output, x, grad)
    assert relative(gradient, torch.autograd.grad(expected, x, grad)[0], 1e-30) <= TOLERANCES[dtype]


@pytest.mark.parametrize('entry', [1e-300, float('inf'), float('nan')])
def test_no_relevance_is_taken_for_zero(entry):
    weight = torch.ones(30, 4, dtype=torch.float64)
    x = torch.randn(40, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.zeros(40, 30, dtype=torch.float64)
    grad[7, 11] = entry
    gradient, = torch.autograd.grad(ConstantLinear.apply(x, weight, None), x, grad)
    assert gradient[7].equal(grad[7, 11].expand(4)) or (entry != entry and gradient[7].isnan().all())
    assert not gradient[:7].any()
    assert not gradient[8:].any()


@every_dtype
@every_pattern
@pytest.mark.parametrize('settings', [(), (2,), (1, 1), (2, 1, 2)], ids=['usual', 'stride', 'padding', 'dilation'])
@pytest.mark.parametrize('axes', CONVOLUTIONS)
@pytest.mark.parametrize('batch', [1, 3])
def test_convolution_is_that_of_autograd(batch, axes, settings, pattern, dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(9, 4, *[2] * axes, dtype=dtype), torch.randn(9, dtype=dtype)
    x = torch.randn(batch, 4, *[5] * axes, dtype=dtype, requires_grad=True)
    expected = CONVOLUTIONS[axes](x, weight, bias, *settings)
    kept = patterns(batch, 9)[pattern]
    grad = torch.randn_like(expected) * kept.reshape(batch, 9, *[1] * axes)
    output = ConstantConvolution.apply(x, weight, bias, CONVOLUTIONS[axes], *settings)
    assert torch.equal(output, expected)
    gradient, = torch.autograd.grad(output, x, grad)
    assert relative(gradient, torch.autograd.grad(expected, x, grad)[0], 1e-30) <= TOLERANCES[dtype]


@pytest.mark.parametrize('zeros', [0, 3])
def test_activation_is_scaled_by_its_share(zeros):
    x = torch.linspace(-3., 3., 24, dtype=torch.float64)
    x[:zeros] = 0.
    x.requires_grad_()
    grad = torch.randn(24, dtype=torch.float64)
    gradient, = torch.autograd.grad(Scale.apply(x, functional.gelu, .5), x, grad)
    share = [functional.gelu(each) / each if each else torch.tensor(.5) for each in x.detach()]
    assert relative(gradient, grad * torch.stack(share).double(), 1e-30) <= 1e-12


@every_dtype
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('affine', [True, False])
def test_group_norm_with_its_deviation_held_constant(affine, memory_format, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 5, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias = (torch.randn(6, dtype=dtype) if affine else None for _ in range(2))
    output = group_norm(x, 3, weight, bias, 1e-3)
    assert torch.equal(output, functional.group_norm(x, 3, weight, bias, 1e-3))
    rows = x.reshape(6, -1)
    deviation = (rows.var(1, correction=0, keepdim=True) + 1e-3).sqrt().detach()
    expected = ((rows - rows.mean(1, keepdim=True)) / deviation).reshape(x.shape)
    expected = expected if weight is None else expected * weight[:, None, None] + bias[:, None, None]
    grad = torch.randn_like(output)
    gradient, = torch.autograd.grad(output, x, grad)
    assert relative(gradient, torch.autograd.grad(expected, x, grad)[0], 1e-30) <= TOLERANCES[dtype]


def test_blank_rows_see_nothing():
    inf = torch.inf
    scores = torch.tensor([[-inf, -inf], [-inf, 0.], [inf, -inf], [float('nan'), -inf]])
    assert blank_rows(scores, -1).flatten().tolist() == [True, False, False, False]
    assert blank_rows(scores.t(), 0).flatten().tolist() == [True, False, False, False]
    assert blank_rows(torch.zeros(2, 0), -1).all()
