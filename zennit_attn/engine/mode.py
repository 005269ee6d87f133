'''The engine: watches every torch function called below a module's forward and routes it through its rule.'''
import threading
from contextlib import contextmanager, nullcontext

import torch
from torch.overrides import TorchFunctionMode
from zennit.core import Stabilizer

from ..errors import ContextError, NoRelevance, UnsupportedModule, UnsupportedOperator, UntrackedTensor
from ..operators import TABLE, Kind, lookup, reason
from ..operators.kinds import PRODUCTS
from ..operators.probe import propose
from ..operators.refusals import UNKNOWN, UNSEEN_WRITE
from ..propagation import Call
from ..trees import tensors_in, tensors_of
from . import messages, rounding
from .arguments import Arguments
from .domains import BackwardPasses, watching
from .forward import Forward
from .hidden import ALIASES
from .location import Location
from .memory import guard
from .module_calls import apply_to_operator
from .origins import shifts
from .parameters import written_to
from .saved import without_recomputation
from .tags import origin_of
from .uncompiled import uncompiled
from .veil import Veil

#: Functions by which code says that a tensor requires a gradient.
_SWITCHES = frozenset((torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__))
#: Functions by which code asks for gradients while it runs.
_GRADIENTS = _SWITCHES | {torch.autograd.grad, torch.Tensor.backward, torch.Tensor.register_hook}
_WATCHED = _GRADIENTS | ALIASES | rounding.CASTS


class Engine(TorchFunctionMode):
    '''Routes every torch function called below one module's forward through the rule of its kind.

    Parameters
    ----------
    root: :py:class:`torch.nn.Module`
        The module whose forward is explained.
    stabilizer: callable or float, optional
        Stabilization where a tensor of the gradient domain enters the relevance domain.
    unknown: {'raise', 'gradient'}, optional
        What to do with a function that the table does not know: refuse it, or accept autograd.
    veil: :py:class:`~zennit_attn.engine.veil.Veil`, optional
        That of the context which the module is a part of. Default is a new one.

    Attributes
    ----------
    veil: :py:class:`~zennit_attn.engine.veil.Veil`
        Knows what the context has added to the model, and hides it while the model runs.
    location: :py:class:`~zennit_attn.engine.location.Location`
        Knows the modules of the model, and which of them runs.
    passes: :py:class:`~zennit_attn.engine.domains.BackwardPasses`
        The backward passes that began at the model's output.
    forward: :py:class:`~zennit_attn.engine.forward.Forward` or None
        The run of the forward that is under way.
    root_forward: callable
        What runs as the forward of the root.
    observer: :py:class:`~zennit_attn.observer.Observer` or None
        Who watches, while :py:meth:`observed_by` is entered.
    '''
    def __init__(self, root, stabilizer=1e-9, unknown='raise', veil=None):
        super().__init__()
        self.root = root
        self.stabilizer = Stabilizer.ensure(stabilizer)
        self.unknown = unknown
        self.veil = Veil() if veil is None else veil
        self.location = Location(root, self.veil)
        self.passes = BackwardPasses()
        self.families = frozenset()
        self.forward = None
        self.root_forward = None
        self.observer = None
        self._take_over = None
        self._source = None
        self._select = None
        self._rests = 0

    # ---- what others may set, for a while ----------------------------------------------------------------------------

    @contextmanager
    def observed_by(self, observer):
        '''Let an observer watch forwards and their backward passes.'''
        self.observer = observer
        try:
            yield
        finally:
            self.observer = None

    def run_as_root(self, forward):
        '''Take a function for the forward of the root.'''
        self.root_forward = forward

    @contextmanager
    def explaining_from(self, module):
        '''Explain from the output of a module, so that no input has to require a gradient.'''
        self._source = module
        try:
            yield
        finally:
            self._source = None

    @property
    def selects(self):
        '''Whether a function of what the root returns is explained.'''
        return self._select is not None

    @property
    def selects_of_every_end(self):
        '''Whether what is explained may be what entered any of the gates.'''
        return getattr(self._select, 'of_every_end', False)

    @contextmanager
    def selecting(self, select):
        '''Explain a function of what the root returns, which runs as a part of its forward.'''
        self._select = select
        try:
            yield
        finally:
            self._select = None

    @contextmanager
    def resting(self, module):
        '''Let a module that the engine has taken over run as it is, in the backward pass of its rule.'''
        self._rests += 1
        try:
            # Hiding takes longer than a small layer, and layers of torch look at nothing.
            with self.veil.drawn(lambda: [module]) if _may_look(module) else nullcontext():
                yield
        finally:
            self._rests -= 1

    def before_forwards(self, take_over):
        '''Call a function before every forward, to take over modules that were given a rule since the last one.'''
        self._take_over = take_over

    def join(self, families):
        '''Note that families of blocks are helped with.'''
        self.families |= set(families)

    # ---- one forward -------------------------------------------------------------------------------------------------

    @property
    def rests(self):
        '''Whether modules run as they are.'''
        return self._rests > 0

    @property
    def running(self):
        '''Whether the root's forward runs, in this thread.'''
        if self.forward is None:
            return False
        if self.forward.thread != threading.get_ident():
            raise ContextError(messages.other_thread(self.location.name_of(self.root)))
        return True

    def run(self, function, args, kwargs, rules=None):
        '''Run the root's forward, with relevance at its inputs and outputs.

        Parameters
        ----------
        function: callable
            The forward.
        args: tuple
        kwargs: dict
        rules: dict, optional
            Rules by kind of operator that replace the defaults.

        Returns
        -------
        object
            What `function` returns.
        '''
        self._check_transforms()
        with self.veil.drawn(self._survey):
            return self._run(function, args, kwargs, rules)

    def predict(self, function, args, kwargs):
        '''Run the root's forward without gradients, as it runs without a context.'''
        with self.veil.drawn(self._survey):
            return function(*args, **kwargs)

    def _survey(self):
        self.location.survey()
        if self._take_over is not None:
            self._take_over()
        return [module for _, module, _ in self.location.ruled]

    def _run(self, function, args, kwargs, rules):
        self._check_modules()
        forward = Forward(self, rules)
        forward.assignments.check_active()
        if self._source is None and not any(tensor.requires_grad for tensor in tensors_of((args, kwargs))):
            raise NoRelevance(messages.nothing_to_explain(self.location.name_of(self.root)))
        arguments = Arguments()
        args, kwargs = arguments.enter((args, kwargs), forward.enter)
        try:
            with self._running(forward), without_recomputation(), uncompiled(), self:
                output = function(*args, **kwargs)
                chosen = output if self._select is None else forward.selected(self._select, output)
            forward.hidden.check()
            return forward.leave(chosen, selected=chosen is not output)
        finally:
            arguments.leave(forward.give_back)

    @contextmanager
    def _running(self, forward):
        self.forward = forward
        try:
            yield
            if forward.refusal is not None:
                raise forward.refusal
        except SystemError as error:
            if forward.refusal is None:
                raise
            raise forward.refusal from error
        except RuntimeError as error:
            if messages.CHECKPOINTING not in str(error):
                raise
            where = self.location.name_of(self.location.module_in(error.__traceback__))
            raise UnsupportedModule(f'module {where!r}: {messages.CHECKPOINTING}') from error
        finally:
            self.forward = None

    def _check_transforms(self):
        '''Refuse to run under what sees other tensors than the engine does.'''
        tracing = torch.jit.is_tracing()
        if tracing or torch._C._functorch.peek_interpreter_stack() is not None:
            under = 'torch.jit.trace' if tracing else 'a torch.func transform (grad, vjp, jvp, vmap)'
            raise ContextError(messages.under_transform(self.location.name_of(self.root), under))

    def _check_modules(self):
        '''Refuse modules that mix the samples of a batch.'''
        for name, module in self.location.modules:
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
                raise UnsupportedModule(messages.batch_statistics(name))

    # ---- one operator ------------------------------------------------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        operator = TABLE.get(func) or lookup(func)
        if operator is not None and operator.kind is Kind.PLAIN and not operator.inplace:
            if func in _WATCHED:
                return self._run_watched(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))
        tensors = tensors_in(args, kwargs) if kwargs else tensors_in(*args)
        operands = []
        for tensor in tensors:  # a comprehension would be one more call, for every call of torch
            if tensor.requires_grad:
                operands.append(tensor)
        forward = self.forward
        if not operands:
            if operator is not None and (
                    operator.inplace or operator.kind is Kind.REFUSED or kwargs and 'out' in kwargs):
                for target in written_to(operator, func, args, kwargs or {}):
                    forward.hidden.check_write(target, operator.name)
                    forward.attentive = forward.parameters.check_write(target, operator.name) or forward.attentive
            if forward.constants.known and forward.references is None:
                return forward.constants.run(operator, func, args, kwargs or {})
            output = func(*args, **(kwargs or {}))
            if forward.references is not None:
                forward.references.follow_constants(operator, func, args, kwargs or {}, output)
            return output
        if forward.attentive:
            if forward.parameters.written:
                args, kwargs = forward.parameters.kept(args, kwargs or {})
            place = forward.constants.multiplied(operator, tensors)
            if place is not None:
                product = self.dispatch(operator, func, args, kwargs or {}, operands)
                return rounding.warn_at(product, place, forward.rounded)
        if forward.direct and operator is not None and len(operands) <= operator.direct and (
                forward.are_plain(operands)) and not (
                operator.pairwise and len(operands) == 1 and shifts(args, operands[0])):
            return self._run_directly(forward, operator, func, args, kwargs or {}, operands, len(tensors))
        return self.dispatch(operator, func, args, kwargs or {}, operands)

    def _run_directly(self, forward, operator, func, args, kwargs, operands, tensors):
        '''The common case without detours: no rules of modules, nobody watches, and autograd is the rule.'''
        output = func(*args, **kwargs)
        if operator.mixes and not (operator.joins and len(operands) == tensors):
            return forward.mark_mixed(output, func, args, kwargs, operands)
        if isinstance(output, torch.Tensor):
            # Inside the forward of an autograd function, nothing requires a gradient, and nothing must be tagged.
            if output is not operands[0] and output.requires_grad:
                output.lrp_tag = forward.carrying_tag if torch.is_grad_enabled() else forward.constant_tag
            elif not output.requires_grad:
                forward.constants.note_cast(output)
            return output
        return forward.mark(output)

    def dispatch(self, operator, func, args, kwargs, operands, plans=True):
        '''Run a function on operands that carry relevance: the steps, in an order that matters.

        1. Where operands come from is checked first, because nothing can be said of a tensor from elsewhere.
        2. A softmax that is written out is followed while its exponentials, which are constants, are still there.
        3. Constants are taken out before all that asks what carries: after it, there may be nothing left.
        4. What has no rule is refused before it is asked which.
        5. Without gradients nothing flows, whatever the rule; `out=` goes past autograd, whatever the rule. These two
           may be swapped.
        6. What is written into a constant is computed beside it, by the rules, so this comes before them.
        7. The rule runs.
        '''
        forward = self.forward
        if forward.memory.shared:
            forward.memory.refresh(operands)
        self._check_origin(operator, args, operands)
        if plans and forward.written.may_have(operator, operands):
            return forward.written.dispatch(operator, func, args, kwargs, operands)
        constants = forward.constants
        if any(constants.include(operand) for operand in operands):
            if operator is not None and operator.name.endswith('__set__'):
                unseen = operator.name == UNSEEN_WRITE
                return self._run_unknown(operator, func, args, kwargs) if unseen else func(*args, **kwargs)
            if constants.fills_parameter(operator, args, operands):
                return func(*args, **kwargs)
            if constants.may_be_viewed(operator, operands):
                output = constants.run(operator, func, args, kwargs)
                if isinstance(output, torch.Tensor) and output._is_view():
                    return forward.mark_constant(output)
            detached = constants.detached(operator, args, kwargs)
            operands = [tensor for tensor in tensors_in(*detached) if tensor.requires_grad]
            if not operands:
                return constants.run(operator, func, args, kwargs, detached)
            args, kwargs = detached
        if operator is None or operator.kind in (Kind.REFUSED, Kind.PLAIN):
            return self._run_unknown(operator, func, args, kwargs)
        call = Call(forward, operator, func, args, kwargs, operands)
        if not torch.is_grad_enabled():
            return self._run_without_grad(call)
        if kwargs.get('out') is not None:
            raise UnsupportedOperator(messages.out_argument(*forward.locate(), operator.name))
        if call.inplace and forward.is_constant(call.args[0]) and operator.kind not in (Kind.REARRANGE, Kind.SELECT):
            return constants.write(call)
        return self.run_rule(call)

    def _check_origin(self, operator, args, operands):
        '''Refuse operands from code that cannot be seen, but parameters, and what would receive no relevance anyway.'''
        unneeded = self._unneeded(operator, args)
        for operand in operands:
            if not (isinstance(operand, torch.nn.Parameter) or any(operand is tensor for tensor in unneeded)):
                self.forward.check_tag(operand)

    def _unneeded(self, operator, args):
        '''Operands that receive no relevance by the default rule, so that it does not matter where they come from.'''
        gate = operator is not None and operator.kind in (Kind.SOFTMAX, Kind.GATE, Kind.ATTENTION) and (
            not operator.linear_outputs and not operator.inplace)
        if not gate or not args or not self.forward.assignments.is_default(operator.kind):
            return ()
        if operator.kind is not Kind.ATTENTION:
            return args[:1] if isinstance(args[0], torch.Tensor) and not any(args[0] is arg for arg in args[1:]) else ()
        value = args[operator.values] if len(args) > operator.values else None
        return [arg for arg in args if isinstance(arg, torch.Tensor) and arg is not value]

    def _run_unknown(self, operator, func, args, kwargs):
        if operator is not None and operator.harmless:
            return func(*args, **kwargs)
        if operator is not None and operator.name == UNSEEN_WRITE and self.unknown != 'gradient':
            self.forward.refusal = UntrackedTensor(messages.unseen_write(*self.forward.locate(), tuple(args[0].shape)))
            raise self.forward.refusal
        name = getattr(func, '__name__', str(func)) if operator is None else operator.name
        why = reason(name, operator)
        if self.unknown == 'gradient':
            self.forward.accept(name, why)
            return self.forward.mark(func(*args, **kwargs))
        row = propose(func, args, kwargs) if why == UNKNOWN else None
        raise UnsupportedOperator(messages.unknown(*self.forward.locate(), name, why, row))

    def _run_without_grad(self, call):
        self.forward.note_without_grad(call)
        if not call.inplace or not call.carries(call.args[0]):
            return self.forward.mark(call.run())
        raise UnsupportedOperator(messages.written_without_grad(*self.forward.locate(), call.operator.name))

    def run_rule(self, call, rule=None, weights=None):
        '''Run a call by the rule of the composite, or else that of its kind.

        As a part of a softmax it has a rule of its own, and `weights` if the result is a constant.
        '''
        forward, kind = self.forward, call.operator.kind
        if call.operator.mask is not None:
            call.flatten_mask()
        if call.operator.draws:
            call.draw()
        if kind is Kind.LINEAR and forward.assignments.modules:
            forward.check_not_passed_by()
        if forward.references is not None:
            forward.references.begin(call)
        origins = [origin_of(operand) for operand in call.operands]
        state_of = forward.memory.state_of
        states = [state_of(operand) for operand in call.operands] if forward.parted or call.inplace else None
        base = call.inplace and state_of(call.args[0]._base)
        check_memory = guard(call) if call.inplace else None
        module, hook = forward.rule_of(kind)
        if forward.observed:
            call.watched_by(forward.observer.begin(call, module, hook))
        if rule is not None:
            output = rule(call)
        elif hook is None:
            output = forward.assignments.default(kind)(call)
        else:
            output = apply_to_operator(forward, call, module, hook)
        if forward.ends and kind in (Kind.SOFTMAX, Kind.GATE):
            forward.note_end(call, output)
        if check_memory is not None:
            check_memory()
        if forward.observed and kind in PRODUCTS and not call.inplace:
            output = _itself(output)
        if weights is None:
            forward.mark_result(call, output, origins, states, base)
        else:
            forward.mark_weights(call.args[0] if call.inplace else output, weights, carries=False)
        record = call.released() if forward.observed else None
        if record is not None:
            record.returned(output)
        return output

    def _run_watched(self, func, args, kwargs):
        '''Refuse gradients taken while the model runs: they would be those of the rules. Hooks may only look.

        Where code asks for the memory of a tensor, or casts it to integers, that is noted.
        '''
        if func in _SWITCHES:
            return self._switch(func, args, kwargs)
        if func in rounding.CASTS:
            output = func(*args, **kwargs)
            self.forward.constants.cast(args[0], output)
            return output
        if func in ALIASES:
            alias = func(*args, **kwargs)
            self.forward.hidden.note_alias(func, args[0], alias)
            if func is torch.Tensor.numpy:
                self.forward.attentive = self.forward.parameters.check_array(args[0]) or self.forward.attentive
            return alias
        if not any(tensor.requires_grad for tensor in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        module, line = self.forward.locate()
        if func is torch.Tensor.register_hook:
            hook = args[1] if len(args) > 1 else kwargs['hook']
            return func(args[0], watching(hook, f'a tensor hook of module {module!r}\n  {line}\n'))
        raise UnsupportedOperator(messages.gradients_inside(module, line, func.__name__))

    def _switch(self, func, args, kwargs):
        '''Let code ask for gradients of a tensor that carries no relevance, which stays a constant.'''
        tensor = args[0]
        carried = tensor.requires_grad
        output = func(*args, **kwargs)
        # torch.func does so too, with tensors that may wrap some that carry relevance.
        if not carried and torch._C._functorch.peek_interpreter_stack() is None:
            self.forward.mark_constant(tensor)
        return output


def _itself(output):
    '''A product that torch returns as a view, of which a write in place would take a hook that measures away.'''
    return output.clone() if isinstance(output, torch.Tensor) and output._is_view() else output


def _may_look(module):
    '''Whether a module has code of its own, or parts that may have, which could look at what a context has added.'''
    return bool(module._modules) or not type(module).__module__.startswith(('torch.nn.', 'zennit_attn.layers'))
