'''What operators add to what carries relevance, by formula: biases, numbers, bounds, what masks put in.'''
from numbers import Real

import torch

from ..operators import Kind
from ..trees import substitute, tensors_in
from .rule import Absorbed


def nothing(call, output, place=0):
    '''A rule that absorbs nothing.'''


def is_number(value):
    '''Whether a constant is one number, however it is written. Several that are learned are none.'''
    if not isinstance(value, torch.Tensor):
        return isinstance(value, Real)
    if value.numel() < 2 or isinstance(value, torch.nn.Parameter):
        return value.numel() == 1
    return bool((value == value.reshape(-1)[0]).all())


def added(call, output, place=0):
    '''The constants of an affine operator, ``f(0)``, or what bounds put in the place of values.'''
    if call.operator.bounds:
        return Absorbed(output * replaced(call, output)) if len(call.operands) == 1 else None
    constants = tensors_in(constant_part(call))
    return Absorbed(constants[place]) if constants else None


def constant_part(call, value=0.):
    '''What an operator that is affine in its operands returns when these are `value`, or None if it adds nothing.

    Operands that steer the others keep theirs: the constant may depend on them.
    '''
    if not call.operator.affine or call.operator.kind is Kind.COMPOSED:
        return None

    def fill(tensor):
        return torch.full_like(tensor.detach(), value) if call.carries(tensor) else tensor

    with torch.no_grad():
        args = [arg if position in call.operator.steered else substitute(arg, fill)
                for position, arg in enumerate(call.args)]
        if call.inplace and not call.carries(call.args[0]):
            args[0] = call.before[0].clone()
        result = call.func(*args, **substitute(call.kwargs, fill))
    return args[0] if call.inplace or result is None else result


def replaced(call, output):
    '''A mask of what no operand put there, or None: what absorbs relevance that is moved and not scaled.

    Where an operand equals its bound, torch decides how much of it counts.
    '''
    if call.operator.bounds:
        return 1 - _kept(call, output) if len(call.operands) == 1 else None
    zeros, ones = constant_part(call), constant_part(call, 1.)
    return None if zeros is None else zeros == ones


def _kept(call, output):
    operand = call.original if call.inplace and call.carries(call.args[0]) else call.operands[0]
    leaf = operand.detach().expand(output.shape).clone().requires_grad_()

    def replace(tensor):
        return leaf if tensor is call.operands[0] else tensor.detach()
    with torch.enable_grad():
        result = call.run_out_of_place(substitute(call.args, replace))
    kept, = torch.autograd.grad(result, leaf, torch.ones_like(result))
    return kept
