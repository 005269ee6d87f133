'''Secants from a reference to an input, as autograd functions: ``sum g_x (x - x0) = g_y (y - y0)`` for each function.

A name that ends in ``0`` holds what a quantity is for the reference.
'''
import torch
from torch.autograd.function import Function, once_differentiable

#: Points in (0, 1) and weights of the Gauss-Legendre quadrature, which is exact for polynomials of degree 2 n - 1.
QUADRATURE = {
    1: ((.5,), (1.,)),
    2: ((.5 - 12 ** -.5, .5 + 12 ** -.5), (.5, .5)),
    3: ((.5 - .15 ** .5, .5, .5 + .15 ** .5), (5 / 18, 4 / 9, 5 / 18)),
    4: ((.06943184420297371, .33000947820757187, .6699905217924281, .9305681557970263),
        (.17392742256872692, .3260725774312731, .3260725774312731, .17392742256872692)),
}


class Gradient(Function):
    '''An output that was computed already, with a function of its gradient that returns those of the operands.'''
    @staticmethod
    def forward(ctx, output, gradients, *operands):
        ctx.gradients = gradients
        ctx.differs = [tensor.is_floating_point() or tensor.is_complex() for tensor in output]
        ctx.mark_non_differentiable(*(
            tensor for tensor, differs in zip(output, ctx.differs, strict=True) if not differs))
        return output[0] if len(output) == 1 else tuple(output)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return None, None, *ctx.gradients(*(grad for grad, differs in zip(grads, ctx.differs, strict=True) if differs))


def with_gradient(output, gradients, operands):
    '''Return an output whose backward pass is a function of its gradient.

    Parameters
    ----------
    output: :py:class:`torch.Tensor` or tuple of :py:class:`torch.Tensor`
        Computed without gradients.
    gradients: callable
        Takes the gradients of those outputs that are no integers, and returns a tuple of those of the operands.
    operands: sequence of :py:class:`torch.Tensor`
    '''
    several = isinstance(output, (tuple, list))
    fresh = [tensor.clone() if tensor._is_view() else tensor for tensor in (output if several else (output,))]
    result = Gradient.apply(fresh, gradients, *operands)
    return type(output)(result if isinstance(result, tuple) else (result,)) if several else result


def slope(function, x, x0, y, y0, alone=False):
    '''The secant of a function of each element, ``(y - y0) / (x - x0)``, or its derivative where the two are close.

    Of close numbers the secant is made of rounding. The derivative in the middle takes its place where both agree up to
    the rounding of `y`, so that what is lost is less than that. A function that is `alone` takes no tensor beside its
    operand.
    '''
    gap, epsilon = x - x0, torch.finfo(x.dtype).eps
    # Also true for what is no number, as the difference of two scores that are masked with minus infinity.
    close = ~(torch.add(gap.abs(), x.abs(), alpha=-epsilon ** (1 / 3)) > epsilon ** (1 / 3))
    secant = (y - y0).div_(gap)
    if close.any():
        gap, y, y0, own = gap[close], y[close], y0[close], secant[close]
        middle = (x[close] + x0[close]).div_(2)
        if not alone:
            everywhere = torch.zeros_like(x)
            everywhere[close] = middle
        tangent = _derivative(function, middle) if alone else _derivative(function, everywhere)[close]
        tangent.masked_fill_(middle.isinf(), 0.)
        differs = ((own - tangent) * gap).abs() > 4 * epsilon * (y.abs() + y0.abs())
        secant[close] = torch.where(differs & (gap != 0), own, tangent)
    return secant


def _derivative(function, x):
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        result = function(leaf)
    found, = torch.autograd.grad(result, leaf, torch.ones_like(result), allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def logarithmic_mean(y, y0, log_ratio):
    r'''``(y - y0) / ln(y / y0)``, the mean of two numbers by which the secants of ``exp`` and ``ln`` go.

    It is the arithmetic mean times :math:`\tanh(h) / h` with `h` half the logarithm of their ratio, which loses no
    digits where the two are close. `log_ratio` is overwritten; where it is not a number, as where both are 0, the mean
    is 0.
    '''
    half = log_ratio.mul_(.5).add_(torch.finfo(log_ratio.dtype).tiny * 1e6)  # of which none is 0
    return torch.tanh(half).div_(half).mul_(y + y0).mul_(.5).nan_to_num_(0.)


def log_ratio_of_softmax(x, x0, y, y0, dim):
    '''``ln(y / y0)`` of the softmax `y` of `x` and `y0` of `x0`, also where one of them is too small to be a number.'''
    norms = [scores.amax(dim, keepdim=True) - values.amax(dim, keepdim=True).log()
             for scores, values in ((x, y), (x0, y0))]
    return (x - x0).sub_(norms[0] - norms[1])


def softmax_gradient(grad, mean, dim):
    '''``g_x = L (g - sum(L g) / sum(L))``, with `L` the logarithmic mean of the softmax and that of the reference.'''
    total = mean.sum(dim, keepdim=True)
    weighted = mean * grad
    inner = weighted.sum(dim, keepdim=True).div_(total.masked_fill_(total == 0, 1.))
    return torch.addcmul(weighted, mean, inner, value=-1.)


def along_path(function, points, operands, references):
    '''Return the gradient of a function of several operands averaged over the straight path between two inputs.

    Of a polynomial of degree ``2 n`` in all operands together, `n` points give what adds up to the difference exactly.

    Parameters
    ----------
    function: callable
        Takes the operands and returns a tensor or a tuple of tensors.
    points: int
        How many points of the path are used.
    operands, references: list of :py:class:`torch.Tensor`

    Returns
    -------
    callable
        Takes the gradients of the outputs and returns a tuple of those of the operands.
    '''
    times, weights = QUADRATURE[points]
    # New tensors, so that code may write to the operands later on.
    steps = [operand - reference for operand, reference in zip(operands, references, strict=True)]
    first = [reference + times[0] * step for reference, step in zip(references, steps, strict=True)]
    steps = steps if points > 1 else None

    def gradients(*grads):
        total = None
        for time, weight in zip(times, weights, strict=True):
            at = first if steps is None else [
                start + (time - times[0]) * step for start, step in zip(first, steps, strict=True)]
            found = pulled_back(function, at, [None if grad is None else weight * grad for grad in grads])
            total = found if total is None else [_sum(*pair) for pair in zip(total, found, strict=True)]
        return tuple(total)
    return gradients


def pulled_back(function, operands, grads):
    '''The gradient of a function at some operands, given those of its outputs.'''
    leaves = [operand.detach().requires_grad_() for operand in operands]
    with torch.enable_grad():
        outputs = function(*leaves)
    pairs = [(output, grad) for output, grad in zip(_differentiable(outputs), grads, strict=True)
             if grad is not None and output.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    return torch.autograd.grad([output for output, _ in pairs], leaves, [grad for _, grad in pairs], allow_unused=True)


def _sum(one, other):
    return one if other is None else other if one is None else one + other


def between_picks(function, operands, references):
    r'''The gradient of what picks values by the data, between the picks for the input and those for the reference.

    With :math:`J` the picks of the input and :math:`J_0` those of the reference, :math:`y = J x` and :math:`y_0 = J_0
    x_0`, and the output of :math:`(1 - t) J + t J_0` for the difference is

    .. math:: t J_0 (x - x_0) + (1 - t) J (x - x_0) = y - y_0
              \quad\text{with}\quad t = \frac{y_0 - J x_0}{(y_0 - J x_0) + (y - J_0 x)} .

    For a maximum both differences are not negative, and `t` is where on the straight path from reference to input the
    one value overtakes the other. It holds for whatever is linear for numbers that keep their order.

    Parameters
    ----------
    function: callable
        Takes the operands and returns a tensor or a tuple of tensors.
    operands, references: list of :py:class:`torch.Tensor`

    Returns
    -------
    callable
        Takes the gradients of the outputs and returns a tuple of those of the operands.
    '''
    here, there = _graph(function, operands), _graph(function, references)
    shares = []
    for own, other, crossed, picked in zip(
            here[0], there[0], _pushed(function, references, operands), _pushed(function, operands, references),
            strict=True):
        gained, lost = other.detach() - picked, own.detach() - crossed
        total = gained + lost
        shares.append(torch.where(total == 0, 0., gained / torch.where(total == 0, 1., total)))

    def gradients(*grads):
        first = _backward(here, [(1 - share) * grad for share, grad in zip(shares, grads, strict=True)])
        second = _backward(there, [share * grad for share, grad in zip(shares, grads, strict=True)])
        return tuple(_sum(*pair) for pair in zip(first, second, strict=True))
    return gradients


def _graph(function, operands):
    leaves = [operand.detach().clone().requires_grad_() for operand in operands]
    with torch.enable_grad():
        return _differentiable(function(*leaves)), leaves


def _differentiable(outputs):
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output for output in outputs if output.is_floating_point() or output.is_complex()]


def _backward(graph, grads):
    outputs, leaves = graph
    return torch.autograd.grad(outputs, leaves, grads, retain_graph=True, allow_unused=True)


def _pushed(function, at, vectors):
    '''What the picks at some operands make of others: forward, as the gradient of a gradient.'''
    outputs, leaves = _graph(function, at)
    dummies = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    pulled = torch.autograd.grad(outputs, leaves, dummies, create_graph=True, allow_unused=True)
    pairs = [(grad, vector) for grad, vector in zip(pulled, vectors, strict=True) if grad is not None]
    return torch.autograd.grad([grad for grad, _ in pairs], dummies, [vector for _, vector in pairs])


def of_two_factors(operands, references, contracts):
    '''The gradient of a product of two tensors, element by element or, if it `contracts`, of matrices.

    Parameters
    ----------
    operands, references: list of :py:class:`torch.Tensor`
        The two factors, and what they are for the reference.
    contracts: bool
        Whether it is a product of matrices, with two dimensions each or more.

    Returns
    -------
    callable
        Takes the gradient of the product and returns those of the factors.
    '''
    left, right = (torch.lerp(reference, operand, .5) for operand, reference in zip(operands, references, strict=True))
    shapes = [operand.shape for operand in operands]

    def gradients(grad):
        found = (grad @ right.mH, left.mH @ grad) if contracts else (grad * right.conj(), grad * left.conj())
        return tuple(each.sum_to_size(shape) for each, shape in zip(found, shapes, strict=True))
    return gradients


def normalization_gradient(grad, centred, centred0, scale, scale0, centres):
    r'''The secant of ``y = c r`` for rows ``c`` of numbers and ``r = 1 / sqrt(mean(c^2) + eps)``, both of the input.

    With bars for the means of input and reference,

    .. math:: g_c = \bar r g_y - \langle g_y, \bar c \rangle \frac{(r r_0)^2}{r + r_0} \frac{2 \bar c}{n} ,

    of which the mean is subtracted again where ``c = x - mean(x)``.
    '''
    mean, scale_mean = (centred + centred0) / 2, (scale + scale0) / 2
    change = (scale * scale0).square() / (scale + scale0) * 2 / centred.shape[-1]
    result = scale_mean * grad - (grad * mean).sum(-1, keepdim=True) * change * mean
    return result - result.mean(-1, keepdim=True) if centres else result
