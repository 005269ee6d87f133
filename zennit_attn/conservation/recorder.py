'''The recorder: an observer that measures every sink while an engine runs, as the rule that ran tells it.'''
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch

from ..engine import zennit_hooks
from ..observer import Observer, OperatorObserver
from ..operators import Kind
from ..propagation import HIDDEN_BIAS, Absorbed, softmax_dim
from ..propagation.constants import added
from ..trees import address, gathered, substitute, tensors_in, tensors_of
from .ledger import Operation, Sink
from .loops import Loops


class SinkKey(NamedTuple):
    '''What identifies a sink.'''
    module: str
    operator: str
    kind: str
    name: str


class Accepted(NamedTuple):
    '''What ran by its plain gradient because no rule is known for it.'''
    module: str
    function: str
    reason: str
    line: str


class Recorder(Observer):
    '''Measures every sink while an engine runs.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, inside the context.
    engine: :py:class:`~zennit_attn.engine.Engine` or None
        The engine of the context. Without one (a composite without our canonizers), only rules of modules are measured.
    '''
    def __init__(self, model, engine):
        self.model = model
        self.engine = engine
        self.sample = 0
        self.amounts = {}
        self.counts = Counter()
        self.functions_accepted = []
        self.loops = Loops()
        self.names = {address(tensor, shared=True): name for name, tensor in _named_tensors(model)}
        self.made = {}

    def backward(self, output, inputs, relevance, sample):
        '''Run the backward pass of one sample and return the relevance found at the inputs.'''
        self.sample = sample
        own = torch.zeros_like(relevance)
        own[sample] = relevance[sample]
        found = torch.autograd.grad(output, inputs, own, retain_graph=sample + 1 < len(relevance), allow_unused=True)
        zero = torch.zeros((), dtype=torch.float64, device=output.device)
        return sum((gathered(part.double().sum()) for part in found if part is not None), zero)

    def module_returned(self, name, output):
        '''Note which module made tensors that carry nothing, such as embeddings of positions; the inner one counts.'''
        for tensor in tensors_of(output):
            if tensor.is_floating_point() and not tensor.requires_grad:
                self.made.setdefault(address(tensor, shared=True), (name, tensor))  # which keeps its place taken

    def take(self, key, amount):
        '''Book an amount for a sink, for the sample whose backward pass runs.'''
        samples = self.amounts.setdefault(key, {})
        samples[self.sample] = samples.get(self.sample, 0.) + gathered(amount.detach().double().sum())

    def sinks(self, batch):
        '''Return the sinks, largest first.'''
        result = []
        for key, samples in self.amounts.items():
            relevance = torch.tensor([float(samples.get(i, 0.)) for i in range(batch)], dtype=torch.float64)
            result.append(Sink(*key, relevance))
        return sorted(result, key=lambda sink: -sink.relevance.abs().sum())

    def operations(self):
        '''Return the operators that ran.'''
        return [Operation(*row, calls=calls) for row, calls in self.counts.items()]

    # ---- what the engine reports -------------------------------------------------------------------------------------

    def stabilizer(self, where):
        '''Return a function that books what a stabilizer absorbs.'''
        key = SinkKey(where, 'to relevance', 'stabilizer', '')
        return lambda amount: self.take(key, amount)

    def reference(self, where):
        '''Return a function that books what the reference gives at the output.'''
        return lambda amount: self.take(SinkKey('', where, 'reference', ''), amount)

    def rule(self, where, module, hook):
        '''Return a function that books what went into a rule less what came out.'''
        key = SinkKey(where, type(hook).__name__, 'rule', '')
        self.counts[where, 'module', type(module).__name__, '', type(hook).__name__] += 1

        def report(relevance, result):
            absorbed = sum(tensor.double().sum() for tensor in relevance)
            absorbed = absorbed - sum(tensor.double().sum() for tensor in result if tensor is not None)
            self.take(key, absorbed)
        return report

    def begin(self, call, module, hook):
        '''Return what measures one call of an operator.'''
        location = self.engine.location
        return _Record(self, call, location.name_of(location.running_module()), hook)

    def accepted(self, module, function, reason, line):
        '''Note what ran by its plain gradient.'''
        entry = Accepted(module, function, reason, line)
        if entry not in self.functions_accepted:
            self.functions_accepted.append(entry)

    def count(self, call, where, hook):
        '''Count a call of an operator by the rule that ran. What only runs other operators does not count.'''
        name = call.rule.name if call.rule is not None else type(hook).__name__
        if name is not None:
            self.counts[where, call.operator.kind.value, call.operator.name, _detail(call), name] += 1


@contextmanager
def recorded(model, engine):
    '''Yield a recorder that measures what happens to a model.'''
    recorder = Recorder(model, engine)
    # Each hook is in the stack before the next is registered, as an interrupt may come at any of them.
    with ExitStack() as stack:
        stack.callback(recorder.loops.forget)
        if engine is not None:
            stack.enter_context(engine.observed_by(recorder))
        else:
            for name, module in model.named_modules():
                for hook in zennit_hooks(module):
                    _watch_rule(stack, recorder, module, SinkKey(name, type(hook).__name__, 'rule', ''))
        yield recorder


def _watch_rule(stack, recorder, module, key):
    '''Measure what goes into a rule of stock Zennit, and what comes out, until the stack closes.'''
    def watched(tensor, sign):
        if not tensor.requires_grad:
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(lambda grad: recorder.take(key, sign * grad))
        return view
    stack.callback(module.register_forward_pre_hook(
        lambda module, args: substitute(args, lambda tensor: watched(tensor, -1.)), prepend=True).remove)
    stack.callback(module.register_forward_hook(
        lambda module, args, output: substitute(output, lambda tensor: watched(tensor, 1.))).remove)


class _Record(OperatorObserver):
    '''What one operator absorbs, in the domain that its result is used in, as the rule that ran has it.'''
    def __init__(self, recorder, call, where, hook):
        self.recorder = recorder
        self.call = call
        self.where = where
        self.hook = hook
        base = call.args[0]._base if call.inplace else None
        self.base = base.detach().clone() if base is not None and not base.requires_grad else None

    def returned(self, output):
        '''Ask the rule what it absorbs: where a value `c` is absorbed, ``c * g`` is.'''
        call = self.call
        self.recorder.count(call, self.where, self.hook)
        output = call.args[0] if output is None or call.inplace else output
        if call.rule is not None and call.rule.name == 'Uniform':
            self.recorder.loops.note(call, self.where, output)
        for place, tensor in enumerate(tensors_in(output)):
            if tensor.requires_grad:
                self._book(tensor, place)

    def _book(self, output, place):
        absorbed = self._absorbed(output.detach(), place)
        if absorbed is not None and (absorbed.value.any() or self.base is not None):
            self._watch(output, absorbed)
        elif self.base is not None:
            self._watch(output, Absorbed(torch.zeros_like(output)))

    def _absorbed(self, output, place):
        rule = self.call.rule
        if rule is not None:
            return rule.left_over(self.call, output, place)
        # A rule of Zennit is measured as a whole. A rule of the user's is taken for one that is linear.
        ours = self.hook is None or hasattr(self.hook, 'operate')
        return added(self.call, output, place) if ours else None

    def moved(self, outputs):
        '''The same in the relevance domain: what arrives where a constant was put is absorbed.'''
        constant = self.call.rule and self.call.rule.moved(self.call, outputs[0].detach())
        if constant is not None:
            key = SinkKey(self.where, self.call.operator.name, *self._identify())
            outputs[0].register_hook(lambda relevance: self.recorder.take(key, relevance * constant))

    def expand(self, operands):
        '''Take off what the operands receive, where no formula says what is left over of them.'''
        return {key: self._taken_off(operand) for key, operand in operands.items()}

    def _taken_off(self, operand):
        view, value = operand.view_as(operand), self.recorder.engine.forward.contribution(operand).clone()
        key = SinkKey(self.where, self.call.operator.name, *HIDDEN_BIAS)

        def take(grad):
            if grad is not None:
                self.recorder.take(key, -_inner(value, grad))
        view.register_hook(take)
        return view

    def _watch(self, output, absorbed):
        value = absorbed.value
        if self.call.inplace and output._base is not None:
            # Relevance reaches a view that was written to through its base.
            output, value = output._base, _within_base(output, value, self.base)
        key = SinkKey(self.where, self.call.operator.name, *(absorbed.hidden or self._identify()))
        value = value.clone()

        def take(grad):
            if grad is not None:  # of one of several outputs, which nothing depends on
                self.recorder.take(key, _inner(value, grad))
        output.register_hook(take)

    def _identify(self):
        storages = [address(tensor, shared=True) for tensor in self.call.constants]
        names = [self.recorder.names[storage] for storage in storages if storage in self.recorder.names]
        biases = [name for name in names if name.endswith('bias')]
        if biases:
            return 'bias', biases[0]
        if names:
            return 'parameter', ', '.join(dict.fromkeys(names))
        made = [self.recorder.made[storage][0] for storage in storages if storage in self.recorder.made]
        return 'constant', ', '.join(dict.fromkeys(made)) or _number(self.call)


def _named_tensors(model):
    yield from model.named_buffers()
    yield from model.named_parameters()


def _inner(value, grad):
    '''``value * grad``, where a masked value of -inf that receives nothing counts as nothing.'''
    product = value * grad.conj()
    return torch.where(grad == 0, torch.zeros_like(product), product).real.double().sum()


def _within_base(view, value, before):
    '''A value of a view in the shape of its base, and beside it what the base held that did not carry relevance yet.'''
    base = torch.zeros_like(view._base.detach()) if before is None else before.clone()
    size, stride, first = _layout(view)
    _, _, start = _layout(view._base)
    value = value.conj() if view.is_conj() else -value if view.is_neg() else value
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    # Of elements that share memory, as those of an expanded tensor do, one stands for all.
    for axis, step in enumerate(stride):
        if step == 0 and size[axis] > 1:
            value = value.narrow(axis, 0, 1)
    real = torch.view_as_real(base) if base.is_complex() else base
    real.as_strided(value.shape, stride, first - start).copy_(value)
    return base


def _layout(tensor):
    '''The sizes, strides and offset of a tensor, in real numbers.'''
    if not tensor.is_complex():
        return tensor.shape, tensor.stride(), tensor.storage_offset()
    return (*tensor.shape, 2), (*(2 * step for step in tensor.stride()), 1), 2 * tensor.storage_offset()


def _number(call):
    if call.operator.joins:  # whose numbers are dimensions
        return 'tensor'
    numbers = [str(arg) for arg in call.args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]
    return ', '.join(numbers) if numbers else 'tensor'


def _detail(call):
    '''The einsum's equation, the softmax's dim, the rearrange's pattern, else the shapes of the operands.'''
    if call.operator.kind is Kind.SOFTMAX:
        return f'dim={softmax_dim(call)}'
    if call.args and isinstance(call.args[0], str):
        return call.args[0]
    pattern = _einops_pattern() if call.operator.kind in (Kind.REARRANGE, Kind.ADD, Kind.SELECT) else None
    return pattern or ' '.join('x'.join(map(str, operand.shape)) for operand in call.operands)


def _einops_pattern():
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get('__name__', '').startswith('einops'):
            owner = frame.f_locals.get('self')
            pattern = frame.f_locals.get('pattern') or getattr(owner, 'pattern', None)
            if isinstance(pattern, str):
                return pattern
        frame = frame.f_back
    return None
