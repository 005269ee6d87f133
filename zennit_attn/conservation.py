'''The ledger: where every unit of relevance went, measured.

For every sample, ``R_output = R_input + sum over sinks + unaccounted``. Each term on the right is measured on its own
(a sink by its own formula, such as ``sum(c * g)`` for a constant `c` that was added), so that `unaccounted` is a
check: it is zero only if every operator followed a rule that conserves.
'''
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .attribution import call
from .canonizers.attention import engine_of
from .errors import NoRelevance
from .operators import AFFINE, FACTORS, Kind
from .propagation import blanks, expansion, factors_of, softmax_dim, substitute, taylor, tensors_in
from .ruled import zennit_hooks

_DEFAULT_RULES = {
    Kind.REARRANGE: 'gradient', Kind.SELECT: 'gradient', Kind.ADD: 'LRPZero', Kind.LINEAR: 'LRPZero',
    Kind.EINSUM: 'LRPZero', Kind.MULTIPLY: 'LRPZero', Kind.SOFTMAX: 'Constant', Kind.ATTENTION: 'Constant',
    Kind.GATE: 'Constant', Kind.ACTIVATION: 'Identity', Kind.NORMALIZATION: 'ConstantDeviation',
}
#: Rules that leave something over, as functions, by name.
_EXPANSIONS = {expansion: 'Taylor', taylor: 'TaylorSoftmax'}
_CLAMPS = frozenset('clamp clamp_max clamp_min clip fmax fmin maximum minimum nan_to_num'.split())


class SinkKey(NamedTuple):
    '''What identifies a sink.'''
    module: str
    operator: str
    kind: str
    name: str


@dataclass
class Sink:
    '''Relevance that left on the way.

    Attributes
    ----------
    module: str
        Dotted name of the module whose code ran.
    operator: str
        The function, or the rule of the module.
    kind: {'bias', 'parameter', 'buffer', 'constant', 'stabilizer', 'rule', 'taylor'}
        What absorbed it.
    name: str
        The parameter's name, or a word for the constant.
    relevance: :py:class:`torch.Tensor`
        Of shape [batch].
    '''
    module: str
    operator: str
    kind: str
    name: str
    relevance: torch.Tensor


@dataclass(frozen=True)
class Operation:
    '''An operator that ran: the module whose code called it, its type, function, details, rule and number of calls.'''
    module: str
    type: str
    function: str
    detail: str
    rule: str
    calls: int = field(default=1, compare=False)


@dataclass
class Audit:
    '''The ledger of one explanation.

    Attributes
    ----------
    output: :py:class:`torch.Tensor`
        Relevance that entered at the output, of shape [batch].
    input: :py:class:`torch.Tensor`
        Relevance found at the input, of shape [batch].
    sinks: list of :py:class:`Sink`
        Relevance that left on the way, largest first.
    operators: list of :py:class:`Operation`
        Which operators ran where, with which rule, in the order of their first call.
    accepted: list
        With ``AttentionCanonizer(unknown='gradient')``, what ran by its plain gradient because no rule is known for it,
        each with its module, function, reason and line.
    '''
    output: torch.Tensor
    input: torch.Tensor
    sinks: list
    operators: list
    accepted: list = field(default_factory=list)

    @property
    def unaccounted(self):
        ''':py:class:`torch.Tensor` of shape [batch]: what is left of the output's relevance after input and sinks.'''
        return self.output - self.input - sum(sink.relevance for sink in self.sinks)

    def __str__(self):
        rows = [('', 'output', '', self.output), ('', 'input', '', self.input)]
        rows += [(sink.module, sink.operator, f'{sink.kind}: {sink.name}' if sink.name else sink.kind, sink.relevance)
                 for sink in self.sinks]
        header = ('module', 'operator', 'sink', *_sample_names(self.output))
        lines = [(*row[:3], *_samples(row[3])) for row in rows]
        last = ('', 'unaccounted', '', *_samples(self.unaccounted))
        return _table(header, [*lines, last])

    def operator_table(self):
        '''Return a table of the operators that ran: what was rewritten into what.

        Returns
        -------
        str
        '''
        return _table(('module', 'type', 'function', 'detail', 'rule', 'calls'), [
            (row.module, row.type, row.function, row.detail, row.rule, str(row.calls)) for row in self.operators])


def audit(model, composite, input, attr_output=None, embedding=None, select=None):
    '''Explain a model and measure where all relevance went.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    composite: :py:class:`zennit.core.Composite`
        Any composite of Zennit or of this package.
    input: :py:class:`torch.Tensor`, tuple or mapping
        Input of the model, of shape [batch, ...], or its positional or keyword arguments. Those that are floating point
        are explained.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        Relevance of the output, of the output's shape, or a function of the output. Default is the output itself.
    embedding: :py:class:`torch.nn.Module`, optional
        The module of the model from whose output it is explained, in place of its input, as by
        :py:class:`~zennit_attn.attribution.TokenGradient`.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain, e.g. ``lambda output: output.logits``.

    Returns
    -------
    :py:class:`Audit`
        For each sample one backward pass is run, with the relevance of the other samples set to zero.

    Raises
    ------
    NoRelevance
        If the input is not floating point.
    TypeError, ValueError
        If the model's output is not a tensor, or `attr_output` has not its shape.
    '''
    input = substitute(dict(input) if isinstance(input, Mapping) else input, lambda tensor: tensor.detach().clone())
    sources = [] if embedding is not None else _sources(model, input)
    with composite.context(model), torch.enable_grad():
        recorder = Recorder(model, engine_of(model))
        try:
            output, leaves = call(model, input, embedding, select)
            relevance = _output_relevance(output, attr_output)
            found = [recorder.backward(output, leaves or sources, relevance, i) for i in range(len(relevance))]
        finally:
            recorder.remove()
    found = torch.stack(found) if found else _per_sample(relevance)
    return Audit(_per_sample(relevance), found, recorder.sinks(len(relevance)), recorder.operations(),
                 recorder.accepted())


def _sources(model, input):
    '''The tensors of an input that can carry relevance, from now on requiring a gradient.'''
    sources = [tensor.requires_grad_() for tensor in tensors_in(input) if tensor.is_floating_point()]
    if not sources:
        types = ', '.join(str(tensor.dtype) for tensor in tensors_in(input)) or type(input).__name__
        raise NoRelevance(f'the input of {type(model).__name__} ({types}) has no floating point tensor that could '
                          'receive relevance; explain token ids from the embedding: audit(..., embedding=module)')
    return sources


def _output_relevance(output, attr_output):
    if output.ndim == 0:
        raise ValueError('the output is a single number; it needs a first dimension for the samples')
    relevance = output if attr_output is None else attr_output(output) if callable(attr_output) else attr_output
    if relevance.shape != output.shape:
        raise ValueError(f'attr_output has shape {tuple(relevance.shape)}, but the output has {tuple(output.shape)}; '
                         'pass relevance for every element of the output, e.g. a one-hot target')
    return relevance.detach().to(output.dtype)


def _per_sample(relevance):
    return relevance.detach().double().flatten(1).sum(1) if relevance.ndim > 1 else relevance.detach().double()


class Recorder:
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
        self.handles = []
        self.names = {_storage(tensor): name for name, tensor in _named_tensors(model)}
        if engine is not None:
            engine.recorder = self
        else:
            self._watch_rules()

    def remove(self):
        '''Stop measuring.'''
        if self.engine is not None:
            self.engine.recorder = None
        for handle in self.handles:
            handle.remove()

    def backward(self, output, inputs, relevance, sample):
        '''Run the backward pass of one sample and return the relevance found at the inputs.'''
        self.sample = sample
        own = torch.zeros_like(relevance)
        own[sample] = relevance[sample]
        found = torch.autograd.grad(output, inputs, own, retain_graph=sample + 1 < len(relevance), allow_unused=True)
        zero = torch.zeros((), dtype=torch.float64, device=output.device)
        return sum((part.double().sum() for part in found if part is not None), zero)

    def take(self, key, amount):
        '''Book an amount for a sink, for the sample whose backward pass runs.'''
        samples = self.amounts.setdefault(key, {})
        samples[self.sample] = samples.get(self.sample, 0.) + amount.detach().double().sum()

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

    def accepted(self):
        '''Return what ran by its plain gradient because no rule is known for it.'''
        return list(self.engine.accepted) if self.engine is not None else []

    # ---- what the engine reports -------------------------------------------------------------------------------------

    def stabilizer(self, where):
        '''Return a function that books what a stabilizer absorbs.'''
        key = SinkKey(where, 'to relevance', 'stabilizer', '')
        return lambda amount: self.take(key, amount)

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
        '''Note that an operator runs; return what is told its results.'''
        where = self.engine.where.name_of(self.engine.where.running_module())
        self._count(call, where, hook)
        return _Record(self, call, where, hook)

    def _count(self, call, where, hook):
        if call.operator.kind is Kind.COMPOSED:
            return
        kind, follows = call.operator.kind, self.engine.override.get(call.operator.kind)
        rule = type(hook).__name__ if hook is not None else _EXPANSIONS.get(follows, _DEFAULT_RULES[kind])
        products = (Kind.EINSUM, Kind.MULTIPLY, Kind.LINEAR)
        if hook is None and follows is None and len(call.operands) > 1 and kind in products:
            rule = 'Uniform'
        row = (where, kind.value, call.operator.name, _detail(call), rule)
        self.counts[row] += 1

    def _watch_rules(self):
        for name, module in self.model.named_modules():
            for hook in zennit_hooks(module):
                key = SinkKey(name, type(hook).__name__, 'rule', '')
                self.handles.append(module.register_forward_pre_hook(self._before(key), prepend=True))
                self.handles.append(module.register_forward_hook(self._after(key)))

    def _before(self, key):
        def hook(module, args):
            return substitute(args, lambda tensor: self._watched(tensor, key, -1.))
        return hook

    def _after(self, key):
        def hook(module, args, output):
            return substitute(output, lambda tensor: self._watched(tensor, key, 1.))
        return hook

    def _watched(self, tensor, key, sign):
        if not tensor.requires_grad:
            return tensor
        view = tensor.view_as(tensor)
        view.register_hook(lambda grad: self.take(key, sign * grad))
        return view


class _Record:
    '''What one operator adds or absorbs, in the domain that its result is used in.'''
    def __init__(self, recorder, call, where, hook):
        self.recorder = recorder
        self.call = call
        self.where = where
        follows = recorder.engine.override.get(call.operator.kind) if hook is None else None
        expands = getattr(hook, 'absorbs', False) or follows in _EXPANSIONS
        self.absorbs = expands and call.operator.kind is Kind.SOFTMAX
        self.left = None
        # A rule of Zennit measures as a whole what goes in and what comes out.
        ruled = hook is not None and not hasattr(hook, 'operate')
        self.added = None if ruled else _constant_part(call)
        base = call.args[0]._base if call.inplace else None
        self.base = base.detach().clone() if base is not None and not base.requires_grad else None
        bounded = not ruled and call.operator.name in _CLAMPS and len(call.operands) == 1
        self.before = call.operands[0].detach().clone() if bounded else None

    def returned(self, output):
        '''The operator has returned, in the gradient domain: a constant `c` absorbs ``c * g``.'''
        call = self.call
        output = call.args[0] if output is None or call.inplace else output
        if call.opened or not isinstance(output, torch.Tensor) or not output.requires_grad:
            return
        if self.before is not None:
            self.added = output.detach() * (1 - self._kept(output))
        if self.absorbs:
            self._watch_softmax(output)
        elif self.left is not None:
            self._watch(output, self.left(output.detach()), self._hidden())
        elif self.added is not None and (self.added.any() or self.base is not None):
            self._watch(output, self.added)
        elif self.base is not None:
            self._watch(output, torch.zeros_like(output))

    def moved(self, outputs):
        '''The same in the relevance domain: what arrives where a constant was put is absorbed.'''
        key = self._key()
        if self.before is not None:
            constant = 1 - self._kept(outputs[0])
        elif self.added is not None:
            constant = _constant_part(self.call, 1.) == self.added
        else:
            return
        outputs[0].register_hook(lambda relevance: self.recorder.take(key, relevance * constant))

    def _kept(self, output):
        '''The share of each element that is the operand's: torch decides what counts where it equals its bound.'''
        leaf = self.before.expand(output.shape).clone().requires_grad_()

        def replaced(tensor):
            return leaf if tensor is self.call.operands[0] else tensor.detach()
        with torch.enable_grad():
            result = self.call.run_out_of_place(substitute(self.call.args, replaced))
        kept, = torch.autograd.grad(result, leaf, torch.ones_like(result))
        return kept

    def _key(self):
        return SinkKey(self.where, self.call.operator.name, *self._identify())

    def _watch(self, output, value, key=None):
        if self.call.inplace and output._base is not None:
            # Relevance reaches a view that was written to through its base.
            output, value = output._base, _within_base(output, value, self.base)
        key, value = key or self._key(), value.clone()
        output.register_hook(lambda grad: self.recorder.take(key, _inner(value, grad)))

    def expand(self, operands):
        '''An expansion is about to run. Returns the operands, watched if no formula says what is left over of them.'''
        self.left, added = _left_over(self.call), self.added
        if self.call.operator.kind is Kind.ADD:
            return operands
        self.added = None
        if self.left is not None and added is None:
            return operands
        self.left = lambda output: output  # less what the operands receive
        return {key: self._watched(operand, -1.) for key, operand in operands.items()}

    def _watched(self, operand, sign):
        view, value = operand.view_as(operand), operand.detach().clone()
        view.register_hook(lambda grad: self.recorder.take(self._hidden(), sign * _inner(value, grad)))
        return view

    def _hidden(self):
        return SinkKey(self.where, self.call.operator.name, 'taylor', 'hidden bias')

    def _watch_softmax(self, output):
        operand, dim = self.call.operands[0].detach().clone(), softmax_dim(self.call)
        result = output.detach().masked_fill(blanks(self.call), 0.).clone()
        key = SinkKey(self.where, self.call.operator.name, 'taylor', 'hidden bias')

        def absorb(grad):
            if self.call.operator.name == 'log_softmax':
                inner = grad - result.exp() * grad.sum(dim, keepdim=True)
            else:
                inner = result * (grad - (result * grad).sum(dim, keepdim=True))
            inner = -inner if self.call.operator.name == 'softmin' else inner
            self.recorder.take(key, _inner(result, grad).sum() - _inner(operand, inner).sum())
        output.register_hook(absorb)

    def _identify(self):
        names = [self.recorder.names[_storage(tensor)] for tensor in self._constants()
                 if _storage(tensor) in self.recorder.names]
        biases = [name for name in names if name.endswith('bias')]
        if biases:
            return 'bias', biases[0]
        if names:
            return 'parameter', ', '.join(dict.fromkeys(names))
        return 'constant', _number(self.call)

    def _constants(self):
        call, factors = self.call, FACTORS.get(self.call.operator.name, ())
        if call.operator.kind is Kind.NORMALIZATION:
            factors = (0,)
        positional = [tensor for i, arg in enumerate(call.args) if i not in factors for tensor in tensors_in(arg)]
        return [tensor for tensor in [*positional, *tensors_in(call.kwargs)] if not call.carries(tensor)]


def _named_tensors(model):
    yield from model.named_buffers()
    yield from model.named_parameters()


def _storage(tensor):
    return tensor.untyped_storage().data_ptr()


def _inner(value, grad):
    '''``value * grad``, where a masked value of -inf that receives nothing counts as nothing.'''
    product = value * grad.conj()
    return torch.where(grad == 0, torch.zeros_like(product), product).real.double().sum()


def _constant_part(call, value=0.):
    '''What an operator that is affine in its operands returns when these are zero, or None if it adds nothing.'''
    if call.operator.name not in AFFINE or call.operator.kind is Kind.COMPOSED:
        return None

    def zero(tensor):
        carries = call.carries(tensor)
        return torch.full_like(tensor.detach(), value) if carries else tensor

    with torch.no_grad():
        args = [substitute(arg, zero) for arg in call.args]
        if call.inplace and not call.carries(call.args[0]):
            args[0] = args[0].clone()
        kwargs = substitute(call.kwargs, zero)
        result = call.func(*args, **kwargs)
    return args[0] if call.inplace or result is None else result


def _left_over(call):
    '''Return a function of the result `y` of an expansion that tells its hidden bias, or None if there is no formula.

    Of a product of `n` factors it is ``(1 - n) y``, of a function of each element ``y - x y'(x)``.
    '''
    name, kind = call.operator.name, call.operator.kind
    if kind is Kind.EINSUM or name in ('mul', 'multiply', 'imul', 'rmul', 'causal_dot_product'):
        factors = len(factors_of(call))
        return lambda output: (1 - factors) * output
    if kind not in (Kind.ACTIVATION, Kind.GATE) or name in _JOINT or len(call.operands) > 1 or (
            call.args[0].is_complex()):
        return None
    leaf = call.args[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        result = call.run_out_of_place((leaf * 1., *call.args[1:]))
    slope, = torch.autograd.grad(result, leaf, torch.ones_like(result))
    return lambda output: output - leaf.detach() * slope


#: Gates of several elements.
_JOINT = frozenset('logcumsumexp logsumexp'.split())


def _within_base(view, value, before):
    '''A value of a view in the shape of its base, and beside it what the base held that did not carry relevance yet.'''
    base = torch.zeros_like(view._base.detach()) if before is None else before.clone()
    offset = view.storage_offset() - view._base.storage_offset() + base.storage_offset()
    base.as_strided(view.shape, view.stride(), offset).copy_(value)
    return base


def _number(call):
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


def _sample_names(relevance):
    return [f'sample {i}' for i in range(min(len(relevance), 4))] + (['...'] if len(relevance) > 4 else [])


def _samples(relevance):
    return [f'{value: .6g}' for value in relevance[:4].tolist()] + (['...'] if len(relevance) > 4 else [])


def _table(header, rows):
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in (header, *rows))
