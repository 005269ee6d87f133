'''The two domains of relevance, and the border between them.

In the relevance domain ``R`` flows backward, as Zennit has it; in the gradient domain ``g`` does, with ``R_x = x *
g_x``. Code is run in the gradient domain, where autograd is the rule of everything linear. A tensor that came from
the relevance domain and was only moved since has a twin there: the same values, whose gradient is relevance.
'''
from functools import wraps

import torch
from torch.autograd.function import Function
from zennit.core import Stabilizer

from ..errors import ContextError
from ..trees import substitute, tensors_in
from .tags import has_twin, tag_of, twin_of


class Source:
    '''The twin of a module's output: the tensor itself, in the relevance domain.'''
    __slots__ = ('tensor',)

    def __init__(self, tensor):
        self.tensor = tensor

    def __call__(self):
        return self.tensor


class Reindexed:
    '''The twins of what a re-index returns: the same function of the twins of its operands, computed when asked for.'''
    __slots__ = ('call', 'record', 'versions', 'resolved', 'outputs')

    def __init__(self, call, record):
        call.keep_arguments()
        self.call = call
        self.record = record
        self.versions = [(tensor, tensor._version) for tensor in tensors_in(call.args, call.kwargs)]
        self.resolved = False
        self.outputs = None

    def resolve(self):
        '''Compute the twins, those of the operands first: in a loop, as there may be more of them than frames.'''
        pending = [self]
        while pending:
            missing = pending[-1].missing()
            if missing:
                pending.extend(missing)
            else:
                pending.pop().compute()

    def missing(self):
        '''Return the re-indexes of the operands that have not been computed.'''
        if self.resolved or not self._unchanged():
            return []
        twins = [tag_of(operand).twin for operand in self.call.operands if has_twin(operand)]
        return [twin.source for twin in twins if isinstance(twin, Moved) and not twin.source.resolved]

    def compute(self):
        '''Compute the twins from those of the operands. There are none if something was written to since.'''
        if not self.resolved and self._unchanged():
            self.outputs = self._compute()
        self.resolved = True

    def _unchanged(self):
        return all(tensor._version == version for tensor, version in self.versions)

    def _compute(self):
        twins = {id(operand): twin_of(operand) for operand in self.call.operands}
        if any(twin is None for twin in twins.values()):
            return None
        args, kwargs = substitute((self.call.args, self.call.kwargs), lambda tensor: twins.get(id(tensor), tensor))
        with torch._C.DisableTorchFunction():
            outputs = list(tensors_in(self.call.func(*args, **kwargs)))
            if self.record is not None:
                self.record.moved(outputs)
        return outputs


class Moved:
    '''The twin of one tensor that a re-index returned.'''
    __slots__ = ('source', 'index')

    def __init__(self, source, index):
        self.source = source
        self.index = index

    def __call__(self):
        self.source.resolve()
        return None if self.source.outputs is None else self.source.outputs[self.index]


def first_order(backward):
    '''Refuse to build the graph of a second derivative, which rules do not have.'''
    @wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled():
            raise ContextError('relevance has no derivative: the backward passes of rules are not differentiable; call '
                               'autograd with create_graph=False, or leave the context for derivatives of the model')
        return backward(ctx, *grads)
    return checked


def watching(hook, name):
    '''Return a hook of the user that may look at gradients, but not change them.'''
    @wraps(hook)
    def watched(*args):
        grads = [(grad, grad._version) for grad in tensors_in(args)]
        result = hook(*args)
        kept = all(any(tensor is grad for grad, _ in grads) for tensor in tensors_in((result,)))
        if not kept or any(grad._version != version for grad, version in grads):
            raise ContextError(f'{name} changes a gradient, which is relevance here: some would get lost or be made '
                               'up; remove the hook while the model is explained')
        return result
    watched.watched = True
    return watched


class BackwardPasses:
    '''The last backward passes in which relevance entered operator code as relevance.'''
    def __init__(self):
        self.last = []

    def add(self):
        '''Note that the present one did.'''
        task = torch._C._current_graph_task_id()
        if task not in self.last:
            self.last = [*self.last[-31:], task]

    def check(self):
        '''Refuse a backward pass that started inside of the model, where a gradient is no relevance.'''
        if torch._C._current_graph_task_id() not in self.last:
            raise ContextError(
                'this backward pass did not start at the output of the model, but at a tensor from inside of it, '
                'which is not in the domain of relevance; return that tensor from forward in a list, tuple, dict or '
                'dataclass, or open the context on the part of the model that ends there'
            )


def stabilized(stabilizer, x):
    '''Return a new tensor of `x` with a stabilizer: of the usual one in three passes over memory instead of six.'''
    if type(stabilizer) is not Stabilizer or stabilizer.clip or stabilizer.norm_scale:
        return stabilizer(x) + 0.
    result = x + 0.  # of which no zero is negative
    return torch.copysign(x.new_tensor(stabilizer.epsilon), result, out=result).add_(x)


class ToGradient(Function):
    '''A tensor enters operator code: ``R = x * g``, or with a reference ``R = (x - x0) * g``.'''
    @staticmethod
    def forward(ctx, x, passes, reference=None):
        ctx.save_for_backward(x if reference is None else x - reference)
        ctx.passes = passes
        return x.clone()

    @staticmethod
    @first_order
    def backward(ctx, grad):
        ctx.passes.check()
        x, = ctx.saved_tensors
        return x * grad, None, None


class ToRelevance(Function):
    '''A tensor leaves operator code: ``g = R / (x + eps sign(x))``. The stabilizer absorbs the rest.

    In low precision `g` is at most the largest number there is, and the stabilizer is booked for what that cuts off.
    With a reference, relevance inside of the model is that of ``x - x0``.
    '''
    @staticmethod
    def forward(ctx, x, stabilizer, report, passes, reference=None):
        output = x.clone()
        ctx.save_for_backward(output if reference is None else x - reference)
        ctx.stabilizer = stabilizer
        ctx.report = report
        ctx.passes = passes
        return output

    @staticmethod
    @first_order
    def backward(ctx, relevance):
        ctx.passes.add()
        x, = ctx.saved_tensors
        wide = torch.promote_types(x.dtype, torch.float32)
        divisor = stabilized(ctx.stabilizer, x.to(wide))
        grad = torch.div(relevance.to(wide), divisor, out=divisor)
        if wide != x.dtype:
            # A quotient that its type can not hold would be infinite, and what it meets no number any more.
            limit = torch.finfo(x.dtype).max
            grad = grad.clamp_(-limit, limit)
        if ctx.report is not None:
            ctx.report(relevance.to(wide) - x.to(wide) * grad)
        return grad.to(x.dtype), None, None, None, None
