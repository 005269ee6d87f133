'''The generalized gamma rule of linear layers and convolutions in two products.'''
import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from .linear import sparse_matmul
from .outputs import owned


class GammaLinear(Function):
    '''The generalized gamma rule of a linear module in two products: see :py:class:`~zennit_attn.rules.Gamma`.

    With a reference, a pair of input and output, it is the rule of the differences from these.
    '''
    @staticmethod
    def forward(ctx, x, function, gradient, report, reference=None):
        output = owned(function(x))
        ctx.save_for_backward(x)
        ctx.reference = reference
        # not saved by autograd, which would refuse code that writes into the output later on
        ctx.output, ctx.version, ctx.function = output.detach(), output._version, function
        ctx.gradient = gradient
        ctx.report = report
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        output = ctx.output if ctx.output._version == ctx.version else ctx.function(x)
        if ctx.reference is not None:
            x, output = x - ctx.reference[0], output - ctx.reference[1]
        result = ctx.gradient(x, output, grad)
        if ctx.report is not None:
            ctx.report([output * grad], [x * result])
        return result, None, None, None, None


class LinearMap:
    '''The map ``x -> x W`` of a linear layer or convolution without its bias, its transpose, and those of ``|W|``.

    Of differences, which have no bias, `biased` is False.
    '''
    def __init__(self, module, biased=True):
        self.module = module
        self.biased = biased

    def __call__(self, x, weight):
        if isinstance(self.module, torch.nn.Linear):
            return functional.linear(x, weight)
        return self.module._conv_forward(x, weight, None)

    def transpose(self, grad, weight, like):
        '''Return ``grad W^T``, of the shape of the inputs `like`.'''
        if isinstance(self.module, torch.nn.Linear):
            return sparse_matmul(grad.reshape(-1, grad.shape[-1]), weight).reshape(like.shape)
        module, dims = self.module, grad.ndim - 2
        zeros = [0] * dims
        return torch.ops.aten.convolution_backward(
            grad, like, weight, None, module.stride, module.padding, module.dilation, False, zeros, module.groups,
            (True, False, False))[0]

    @property
    def bias(self):
        '''The bias in a shape that fits the outputs, or None.'''
        bias = self.module.bias if self.biased else None
        if bias is None or isinstance(self.module, torch.nn.Linear):
            return bias
        return bias.reshape(-1, *[1] * (self.module.weight.ndim - 2))

    @staticmethod
    def fits(module, *inputs):
        '''Whether a module is a linear layer or convolution whose code is torch's, called with one batch.'''
        if len(inputs) != 1 or not isinstance(inputs[0], torch.Tensor) or not inputs[0].requires_grad:
            return False
        if torch.is_autocast_enabled(inputs[0].device.type):
            return False
        if type(module).forward is torch.nn.Linear.forward:
            return True
        plain = any(type(module).forward is cls.forward for cls in _CONVOLUTIONS)
        return plain and inputs[0].ndim == module.weight.ndim and (
            module.padding_mode == 'zeros' and not isinstance(module.padding, str))


_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


def gamma_gradient(linear, x, output, grad, gamma, stabilizer, zero_params=()):
    '''Propagate ``g_z`` through a linear map by the rule :py:class:`~zennit_attn.rules.Gamma`.'''
    weight, bias = linear.module.weight.detach(), linear.bias
    magnitude = weight.abs()
    kept = bias is not None and 'bias' not in zero_params
    product = output if bias is None else output - bias
    positive = (product + linear(x.abs(), magnitude)) / 2
    negative = product - positive
    if kept:
        positive, negative = positive + bias.clamp(min=0), negative + bias.clamp(max=0)
        product = output
    relevance = output * grad
    above = torch.where(output > 0, relevance / stabilizer(product + gamma * positive), 0)
    below = torch.where(output < 0, relevance / stabilizer(product + gamma * negative), 0)
    plain = linear.transpose((1 + gamma / 2) * (above + below), weight, x)
    return plain + x.sign() * linear.transpose(gamma / 2 * (above - below), magnitude, x)
