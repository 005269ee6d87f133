'''The engine: watches every torch function called below a module's forward and routes it through its rule.'''
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from zennit.core import BasicHook, Stabilizer
from zennit.rules import Pass

from .domains import Entries, Reindexed, Source, Tag, ToGradient, ToRelevance, twin_of, watching
from .errors import ContextError, NoRelevance, UnsupportedModule, UnsupportedOperator, UnsupportedRule, UntrackedTensor
from .layers import OPERATOR_MODULES, OperatorModule
from .operators import DIRECT, TABLE, Kind, lookup, out_of_place
from .propagation import RULES, Call, expansion, tensors_in
from .refusals import reason
from .ruled import Ruled, RuledCall, to_positional, zennit_hooks
from .structures import leaves, rebuilt, tensors_of
from .whereabouts import Whereabouts

_CHECKPOINTING = (
    'saved tensor hooks such as those of torch.utils.checkpoint compute parts of the model again in the backward pass, '
    'where no rule can follow; turn checkpointing off (model.eval(), gradient_checkpointing_disable(), '
    'use_checkpoint=False)'
)
#: Functions that put what is given in the place of all that a tensor held.
_OVERWRITES = frozenset(('copy', 'fill', 'zero'))
#: Functions by which code asks for gradients while it runs.
_GRADIENTS = frozenset((torch.autograd.grad, torch.Tensor.backward, torch.Tensor.register_hook))


class Accepted(NamedTuple):
    '''What ran by its plain gradient because no rule is known for it.'''
    module: str
    function: str
    reason: str
    line: str


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
    '''
    def __init__(self, root, stabilizer=1e-9, unknown='raise'):
        super().__init__()
        self.root = root
        self.stabilizer = Stabilizer.ensure(stabilizer)
        self.unknown = unknown
        self.families = set()
        self.where = Whereabouts(root)
        self.ruled = {}
        self.operator_hooks = {}
        self.ruled_kinds = frozenset()
        self.override = {}
        self.recorder = None
        self.accepted = []
        self.source = None
        self.thread = None
        self.rests = 0
        self.direct = False
        self.last_gate = None
        self.plain = Tag(None)
        self.fixed = Tag(None, 'constant')
        self.entries = Entries()

    # ---- finding the rules -------------------------------------------------------------------------------------------

    def survey(self):
        '''Look up which modules and operators have been given rules, and what they are called.'''
        self.where.survey()
        self.ruled, self.operator_hooks = {}, {}
        for name, module in self.where.modules:
            hooks = zennit_hooks(module)
            if isinstance(module, OperatorModule) and hooks:
                parent = name.rpartition('.')[0]
                key = id(module) if is_layer(module) else (id(self.root.get_submodule(parent)), module.kind)
                self.operator_hooks[key] = (module, hooks[0])
            elif hooks:
                self.ruled[id(module)] = (module, hooks)
            if len(hooks) > 1:
                raise UnsupportedRule(f'module {name!r} has {len(hooks)} Zennit rules; attach one')
        self.ruled_kinds = frozenset(module.kind for module, _ in self.operator_hooks.values())

    @contextmanager
    def overriding(self, rules):
        '''Replace the default rules of some kinds of operators.'''
        before = self.override, self.direct
        self.override, self.direct = {**self.override, **rules}, False
        try:
            yield
        finally:
            self.override, self.direct = before

    # ---- one forward -------------------------------------------------------------------------------------------------

    def run(self, function, args, kwargs):
        '''Run the root's forward, with relevance at its inputs and outputs.'''
        self.check_transforms()
        self.survey()
        self.check_modules()
        self.check_rules()
        self.plain = Tag(object())
        self.fixed = Tag(self.plain.forward, 'constant')
        self.direct = not (self.ruled or self.ruled_kinds or self.override or self.recorder)
        self.last_gate = None
        carrying = [tensor for tensor in tensors_of((args, kwargs)) if tensor.requires_grad]
        if not carrying and self.source is None:
            raise NoRelevance(
                f'no input of {self.where.name_of(self.root)}.forward requires a gradient: nothing to explain; '
                'pass a floating point input with requires_grad=True, explain integers from their embedding '
                '(zennit_attn.attribution.TokenGradient), or wrap a plain prediction in torch.no_grad()'
            )
        args, kwargs = rebuilt((args, kwargs), self._enter)
        with self._running(), disable_saved_tensors_hooks(_CHECKPOINTING), self:
            output = function(*args, **kwargs)
        return self._leave(output)

    @contextmanager
    def _running(self):
        self.thread = threading.get_ident()
        try:
            yield
        except RuntimeError as error:
            if _CHECKPOINTING not in str(error):
                raise
            where = self.where.name_of(self.where.module_in(error.__traceback__))
            raise UnsupportedModule(f'module {where!r}: {_CHECKPOINTING}') from error
        finally:
            self.thread = None

    @contextmanager
    def resting(self):
        '''Let modules that the engine has taken over run as they are, e.g. in the backward pass of their rule.'''
        self.rests += 1
        try:
            yield
        finally:
            self.rests -= 1

    @property
    def running(self):
        '''Whether the root's forward runs, in this thread.'''
        if self.thread is None:
            return False
        if self.thread != threading.get_ident():
            raise ContextError(f'{self.where.name_of(self.root)} is being explained in another thread; call it there, '
                               'or give each thread a copy of the model')
        return True

    def _enter(self, tensor):
        if tensor.requires_grad and tensor.is_complex():
            raise UnsupportedOperator(
                f'{self.where.name_of(self.root)}: a complex input has no relevance of its own; pass what '
                'torch.view_as_real makes of it, and make it complex inside')
        return self.to_gradient(tensor) if tensor.requires_grad else tensor

    def _leave(self, output):
        if not any(tensor.requires_grad for tensor in tensors_of(output)):
            raise NoRelevance(self._explain_loss(leaves(output)))
        self.check_output(self.root, output)
        return rebuilt(output, partial(self.to_relevance, where='output'))

    def check_transforms(self):
        '''Refuse to run under what sees other tensors than the engine does.'''
        tracing = torch.jit.is_tracing()
        if tracing or torch._C._functorch.peek_interpreter_stack() is not None:
            under = 'torch.jit.trace' if tracing else 'a torch.func transform (grad, vjp, jvp, vmap)'
            raise ContextError(
                f'{self.where.name_of(self.root)} is called under {under} while a context is open on it, where no rule '
                'can follow; call it on plain tensors and use torch.autograd.grad, or leave the context first'
            )

    def check_modules(self):
        '''Refuse modules that mix the samples of a batch.'''
        for name, module in self.where.modules:
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
                raise UnsupportedModule(
                    f'module {name!r}: batch_norm in training mode mixes the samples of a batch, so no sample has a '
                    'relevance of its own; call model.eval() first'
                )

    def check_rules(self):
        '''Refuse rules that have been switched off: the conversions around them would stay on.'''
        hooks = [(module, hook) for module, hooks in self.ruled.values() for hook in hooks]
        for module, hook in [*hooks, *self.operator_hooks.values()]:
            if not hook.active:
                raise ContextError(
                    f'rule {type(hook).__name__} on module {self.where.name_of(module)!r} is inactive: '
                    'composite.inactive() does not work with AttentionCanonizer; leave the context for a plain gradient'
                )

    # ---- the two domains ---------------------------------------------------------------------------------------------

    def mark(self, output, role=None, twin=None):
        '''Tag what an operator returned.'''
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                self._mark(output, role, twin and partial(twin.resolve, 0))
        elif isinstance(output, (tuple, list)):
            for index, item in enumerate(output):
                if isinstance(item, torch.Tensor):
                    if item.requires_grad:
                        self._mark(item, role, twin and partial(twin.resolve, index))
                else:
                    self.mark(item)
        return output

    def _mark(self, tensor, role, twin):
        if not torch.is_grad_enabled():
            # A view that is made without gradients claims to require one all the same, but none ever reaches its base.
            tensor.lrp_tag = self.fixed
        elif role is None and twin is None:
            tensor.lrp_tag = self.plain
        else:
            tensor.lrp_tag = Tag(self.plain.forward, role, twin, tensor._version)

    def role(self, tensor):
        '''Return the name of the activation a tensor came from, or None.'''
        tag = getattr(tensor, 'lrp_tag', None)
        if tag is None or (tag.role not in (None, 'constant') and tag.version != tensor._version):
            return None
        return tag.role

    def to_gradient(self, tensor):
        '''Convert a tensor of the relevance domain for operator code; its twin stays known.'''
        output = ToGradient.apply(tensor, self.entries)
        self._mark(output, None, Source(tensor).resolve)
        return output

    def to_relevance(self, tensor, where):
        '''Return a tensor of operator code in the relevance domain: its twin, or else converted.'''
        if not tensor.requires_grad:
            return tensor
        self.check_tag(tensor, where)
        twin = twin_of(tensor)
        if twin is not None:
            return twin
        if tensor.is_complex():
            raise UnsupportedOperator(
                f'{where}: a complex tensor has no relevance of its own; split it with torch.view_as_real')
        report = self.recorder and self.recorder.stabilizer(where)
        return ToRelevance.apply(tensor, self.stabilizer, report, self.entries)

    def check_output(self, module, output):
        '''Refuse what a module returns if it comes from code that the engine cannot see.'''
        for tensor in tensors_of(output):
            tag = getattr(tensor, 'lrp_tag', None)
            known = tag is not None and tag is not self.fixed and tag.forward is self.plain.forward
            if not known and tensor.requires_grad:
                self.check_tag(tensor, self.where.name_of(module))

    def check_tag(self, tensor, where=None):
        '''Refuse a carrying tensor that the engine has not produced in this forward.'''
        tag = getattr(tensor, 'lrp_tag', None)
        inside = tag is self.fixed and isinstance(tensor.grad_fn, BackwardCFunction)
        if tag is not None and tag.forward is self.plain.forward and not inside:
            return
        if inside and type(tensor.grad_fn).__name__ == 'BackwardHookFunctionBackward':
            # The identity around a module with a backward hook of the user, whose result is a view that it made itself.
            tensor.lrp_tag = self.plain
            return
        base = None if inside else getattr(tensor._base, 'lrp_tag', None)
        if base is not None and base.forward is self.plain.forward:
            tensor.lrp_tag = self.plain
            return
        if self.unknown == 'gradient':
            if self.recorder is not None:
                self._accept(type(tensor.grad_fn).__name__, 'it is used here, and its code cannot be seen', where)
            tensor.lrp_tag = self.plain
            return
        raise UntrackedTensor(self._explain_untracked(tensor, tag, where))

    # ---- one operator ------------------------------------------------------------------------------------------------

    def __torch_function__(self, func, types, args=(), kwargs=None):
        operator = TABLE.get(func) or lookup(func)
        if operator is not None and operator.kind is Kind.PLAIN and not operator.inplace:
            if func in _GRADIENTS:
                return self._run_watched(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))
        tensors = tensors_in(args, kwargs) if kwargs else tensors_in(*args)
        operands = [tensor for tensor in tensors if tensor.requires_grad]
        if not operands:
            return func(*args, **(kwargs or {}))
        if self.direct and len(operands) <= DIRECT.get(func, 0) and self._are_plain(operands):
            return self._run_directly(func, args, kwargs or {}, operands)
        return self.dispatch(operator, func, args, kwargs or {}, operands)

    def _are_plain(self, operands):
        for operand in operands:  # noqa: SIM110 - a generator for all() would take longer than the rest of the engine
            if getattr(operand, 'lrp_tag', None) is not self.plain:
                return False
        return True

    def _run_directly(self, func, args, kwargs, operands):
        '''The common case without detours: no rules of modules, and autograd is the rule.'''
        output = func(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            # Inside the forward of an autograd function, nothing requires a gradient, and nothing must be tagged.
            if output is not operands[0] and output.requires_grad:
                output.lrp_tag = self.plain if torch.is_grad_enabled() else self.fixed
            return output
        return self.mark(output)

    def dispatch(self, operator, func, args, kwargs, operands):
        '''Run a function on operands that carry relevance.'''
        unneeded = self._unneeded(operator, args)
        for operand in operands:
            if not (isinstance(operand, torch.nn.Parameter) or any(operand is tensor for tensor in unneeded)):
                self.check_tag(operand)
        if any(self._is_constant(operand) for operand in operands):
            if operator is not None and operator.name.endswith('__set__'):
                return func(*args, **kwargs)
            args, kwargs = self._detach_constants(operator, args, kwargs)
            operands = [tensor for tensor in tensors_in(args, kwargs) if tensor.requires_grad]
            if not operands:
                return func(*args, **kwargs)
        if operator is None or operator.kind in (Kind.REFUSED, Kind.PLAIN):
            return self._run_unknown(operator, func, args, kwargs)
        call = Call(self, operator, func, args, kwargs, operands)
        if not torch.is_grad_enabled():
            return self._run_without_grad(call)
        if kwargs.get('out') is not None:
            raise UnsupportedOperator(self._explain_out(operator.name))
        if operator.name == 'scaled_dot_product_attention':
            call.plain_mask()
        if call.inplace and self.role(call.args[0]) == 'constant' and operator.kind not in (
                Kind.REARRANGE, Kind.SELECT, Kind.PLAIN):
            return self._write_into_constant(call)
        roles = [self.role(operand) for operand in operands]
        module, hook = self._rule_for(operator.kind)
        record = call.record = self.recorder.begin(call, module, hook) if self.recorder is not None else None
        if hook is not None:
            output = self._apply_hook(call, module, hook)
        else:
            output = self.override.get(operator.kind, RULES[operator.kind])(call)
        self._tag_output(call, output, record, roles)
        if record is not None:
            call.record = None
            record.returned(output)
        return output

    def _write_into_constant(self, call):
        '''Write into what carries nothing: it stays so, unless what is written carries relevance.'''
        target, *rest = call.args
        if not any(operand is not target for operand in call.operands):
            with torch.no_grad():
                call.run()
            return target
        with self:
            output = out_of_place(call.func, call.operator.name)(target.detach().clone(), *rest, **call.kwargs)
        target.copy_(output)
        tag = output.lrp_tag
        return self.mark(target, role=tag.role)

    def _unneeded(self, operator, args):
        '''Operands that receive no relevance by the default rule, so that it does not matter where they come from.'''
        gate = operator is not None and operator.kind in (Kind.SOFTMAX, Kind.GATE, Kind.ATTENTION) and (
            operator.name not in ('var_mean', 'std_mean') and not operator.inplace)
        if not gate or operator.kind in self.override or self._rule_for(operator.kind)[1] is not None:
            return ()
        first = args[:2] if operator.kind is Kind.ATTENTION else args[:1]
        return [arg for arg in first if isinstance(arg, torch.Tensor) and not any(arg is other for other in args[2:])]

    def _detach_constants(self, operator, args, kwargs):
        target = args[0] if operator is not None and operator.inplace and args else None

        def detached(tensor):
            constant = tensor is not target and tensor.requires_grad and self._is_constant(tensor)
            return tensor.detach() if constant else tensor
        return tree_map_only(torch.Tensor, detached, (args, kwargs))

    def _is_constant(self, tensor):
        '''Whether a tensor that requires a gradient carries nothing: a gate written in place, a foreign parameter.'''
        return self.role(tensor) == 'constant' or isinstance(tensor, torch.nn.Parameter)

    def _run_unknown(self, operator, func, args, kwargs):
        name = getattr(func, '__name__', str(func)) if operator is None else operator.name
        if operator is not None and operator.kind is Kind.PLAIN and name in ('detach', 'requires_grad', 'retain_grad'):
            return func(*args, **kwargs)
        why = reason(name, operator)
        if self.unknown == 'gradient':
            if self.recorder is not None:
                self._accept(name, why)
            return self.mark(func(*args, **kwargs))
        module, line = self.where.locate()
        raise UnsupportedOperator(
            f'module {module!r} calls {name} on a tensor that carries relevance, and no rule is known for it: {why}\n'
            f'  {line}\n'
            "use AttentionCanonizer(unknown='gradient') to accept the plain gradient, or "
            'zennit_attn.operators.register_operator to give it a kind'
        )

    def _accept(self, name, why, module=None):
        '''Note for the ledger what has no rule, and runs by its plain gradient.'''
        running, line = self.where.locate()
        entry = Accepted(module or running, name, why, line)
        if entry not in self.accepted:
            self.accepted.append(entry)

    def _run_watched(self, func, args, kwargs):
        '''Refuse gradients taken while the model runs: they would be those of the rules. Hooks may only look.'''
        if not any(tensor.requires_grad for tensor in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        module, line = self.where.locate()
        if func is torch.Tensor.register_hook:
            hook = args[1] if len(args) > 1 else kwargs['hook']
            return func(args[0], watching(hook, f'a tensor hook of module {module!r}\n  {line}\n'))
        raise UnsupportedOperator(
            f'module {module!r} takes gradients by {func.__name__} while it is explained, and would get those of the '
            f'rules, not its own\n  {line}\n'
            'explain the part of the model before or after it'
        )

    def _run_without_grad(self, call):
        if not call.inplace or not call.carries(call.args[0]):
            return self.mark(call.run())
        module, line = self.where.locate()
        raise UnsupportedOperator(
            f'module {module!r} writes with {call.operator.name} into a tensor that carries relevance under '
            f'torch.no_grad, where no relevance can follow\n  {line}\ntake the write out of torch.no_grad'
        )

    def _tag_output(self, call, output, record, roles):
        kind, role = call.operator.kind, None
        if kind is Kind.ACTIVATION:
            role = call.operator.name
        elif len(call.operands) == 1 and (kind is Kind.REARRANGE or _scales(call)):
            role = roles[0]
        if output is None or call.inplace:
            target = call.args[0]
            if call.operator.name in _OVERWRITES and len(call.operands) == 1 and call.carries(target):
                self.mark(target, role='constant')
            elif self.role(target) != 'constant' or (kind is Kind.REARRANGE and len(call.operands) > 1):
                self.mark(target, None if role == 'constant' or kind is Kind.ACTIVATION else role)
            if target._base is not None and target._base.requires_grad:
                self.mark(target._base)
            return
        if call.carries(output):
            return
        moves = kind in (Kind.REARRANGE, Kind.SELECT) and not call.accumulates and not (
            any(operand.is_complex() for operand in call.operands))  # of which some are conjugated
        twin = Reindexed(call, record) if self.ruled and moves else None
        self.mark(output, role, twin)

    # ---- rules of the composite --------------------------------------------------------------------------------------

    def _rule_for(self, kind):
        '''Find the operator module, and its rule, of the module whose code is running.'''
        if kind not in self.ruled_kinds and self.recorder is None:
            return None, None
        module = self.where.running_module()
        operator_module = module if is_layer(module) else getattr(module, '_modules', {}).get(f'canonizer_{kind.value}')
        key = id(module) if is_layer(module) else (id(module), kind)
        return self.operator_hooks.get(key, (operator_module, None))

    def expands(self, module):
        '''Whether the products of a module follow their Taylor expansion, so that its queries and keys are no gates.'''
        _, hook = self.operator_hooks.get((id(module), Kind.EINSUM), (None, None))
        return expansion in (getattr(hook, 'operate', None), self.override.get(Kind.EINSUM))

    def _apply_hook(self, call, module, hook):
        if hasattr(hook, 'operate'):
            return hook.operate(call)
        if len(call.operands) > 1:
            return self._refuse_in_backward(call, module, hook)
        bound = type(module).bind(call) if not is_layer(module) else OPERATOR_MODULES[module.kind].bind(call)
        output = self.apply_rule(bound, bound.forward, hook, tuple(call.operands), {}, self.where.name_of(module))
        return call.write_back(output)

    def _refuse_in_backward(self, call, module, hook):
        name, operands = self.where.name_of(module), len(call.operands)

        def refuse(grad):
            raise UnsupportedRule(
                f'rule {type(hook).__name__} on operator {name!r}: {call.operator.name} has {operands} operands that '
                'carry relevance, and the rule can serve one only; use zennit_attn.rules.Uniform there, or leave the '
                'operator without a rule'
            )
        output = call.run()
        for tensor in tensors_in(output):
            tensor.register_hook(refuse)
        return output

    def call_ruled(self, module, hooks, function, args, kwargs):
        '''Call a module that has a Zennit rule: a leaf, of whose inside the engine stays out.'''
        name = self.where.name_of(module)
        if hasattr(hooks[0], 'call_module'):
            output = hooks[0].call_module(self, module, function, args, kwargs)
            if output is not NotImplemented:
                return output
        args, kwargs = to_positional(module, args, kwargs)
        if not any(tensor.requires_grad for tensor in tensors_of((args, kwargs))):
            return function(*args, **kwargs)
        nested = [arg for arg in args if not isinstance(arg, torch.Tensor)]
        if any(tensor.requires_grad for tensor in tensors_of((kwargs, nested))):
            raise UnsupportedRule(
                f'rule {type(hooks[0]).__name__} on module {name!r}: an input that carries relevance is not a plain '
                'positional tensor; give the rule to the modules inside'
            )
        return self.apply_rule(module, function, hooks[0], args, kwargs, name)

    def apply_rule(self, module, function, hook, args, kwargs, name):
        '''Run one call of a module through its Zennit rule, and convert on both sides.'''
        carrying = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
        target = carrying[0] if carrying and getattr(module, 'inplace', False) is True else None
        if len(carrying) > 1 and isinstance(hook, (BasicHook, Pass)):
            raise UnsupportedRule(
                f'rule {type(hook).__name__} on module {name!r}: the module has {len(carrying)} inputs that carry '
                'relevance, and the rule can serve one only; leave the module without a rule, or give it '
                'zennit_attn.rules.Uniform'
            )
        args = tuple(self.to_relevance(arg, name) if isinstance(arg, torch.Tensor) else arg for arg in args)
        report = self.recorder and self.recorder.rule(name, module, hook)
        call = RuledCall(self, module, function, hook, args, kwargs, report)
        outputs = iter(Ruled.apply(call, *(args[position] for position in call.positions)))
        structure, call.structure = call.structure, None
        if not (isinstance(structure, torch.Tensor) or (tensors_of(structure) and not isinstance(hook, BasicHook))):
            raise UnsupportedRule(
                f'rule {type(hook).__name__} on module {name!r}: the module returns {type(structure).__name__}, and '
                'the rule can serve a tensor only; give it to the modules inside'
            )
        result = rebuilt(
            structure, lambda tensor: self.to_gradient(next(outputs)) if tensor.is_floating_point() else tensor)
        return result if target is None else self._put_in_place(target, result)

    def _put_in_place(self, target, result):
        '''What a module has computed in place is what everybody sees who holds its input.'''
        twin = result.lrp_tag.twin
        target.copy_(result)
        if target._base is not None and target._base.requires_grad:
            self.mark(target._base)
        self._mark(target, None, twin)
        return target

    # ---- words for errors ------------------------------------------------------------------------------------------

    def note_gate(self, call, output=None):
        '''Remember the last gate, to name it if the output turns out to carry nothing.'''
        reference = weakref.ref(output) if isinstance(output, torch.Tensor) else None
        self.last_gate = (call.operator.name, *self.where.locate(), reference)

    def _explain_out(self, name):
        module, line = self.where.locate()
        return (f'module {module!r} calls {name} with out=, past autograd, on a tensor that carries relevance\n'
                f'  {line}\nassign what it returns instead')

    def _explain_loss(self, outputs):
        opaque = [type(output).__name__ for output in outputs if hasattr(output, '__dict__')
                  and not isinstance(output, torch.Tensor)]
        if opaque:
            return (f'the output of {self.where.name_of(self.root)} is of type {opaque[0]}, in which no tensor can be '
                    'seen; return tensors, or lists, tuples, dicts or dataclasses of them')
        reason = 'no operator between input and output passes relevance on'
        if self.last_gate is not None:
            name, module, line, reference = self.last_gate
            ends = reference is not None and any(reference() is output for output in outputs)
            position = 'which it ends with' if ends else 'the last gate before it'
            reason = f'the operator {name} of module {module!r}, {position}, is viewed as a constant\n  {line}'
        return (f'the output of {self.where.name_of(self.root)} carries no relevance: {reason}\n'
                'explain the logits, i.e. what goes into a final softmax or sigmoid, or give that operator another '
                'rule')

    def _explain_untracked(self, tensor, tag, where):
        module, line = self.where.locate()
        if tensor.grad_fn is None:
            return (
                f'module {where or module!r}: a tensor of shape {tuple(tensor.shape)} requires a gradient, but is '
                f'neither an input that the engine has seen nor a parameter\n  {line}\n'
                'pass inputs as tensors, or in lists, tuples, dicts and dataclasses; for constants, set requires_grad '
                'to False or use torch.nn.Parameter'
            )
        origin = type(tensor.grad_fn).__name__
        at = where or module
        if 'Checkpoint' in origin:
            return f'module {at!r}: {_CHECKPOINTING}\n  {line}'
        if tag is not None and tag.forward is not self.plain.forward:
            return (
                f'module {at!r}: a tensor of shape {tuple(tensor.shape)} is kept from an earlier forward ({origin}), '
                f'as caches do, and relevance cannot go back there\n  {line}\n'
                'run all that is to be explained in one forward, or compute what is kept under torch.no_grad()'
            )
        return (
            f'module {at!r}: a tensor of shape {tuple(tensor.shape)} requires a gradient but comes from code that the '
            f'engine cannot see ({origin}): a custom torch.autograd.Function, TorchScript, torch.func, a compiled '
            f'function or kernel\n'
            f'  {line}\n'
            'write the computation with torch functions, put it in a module and give that module a Zennit rule, or use '
            "AttentionCanonizer(unknown='gradient') to accept its plain gradient"
        )


def is_layer(module):
    '''Whether a module is an operator module that stands for a layer of the model, such as torch.nn.Softmax.'''
    return isinstance(module, OperatorModule) and type(module).forward is not OperatorModule.forward


def _scales(call):
    return call.operator.name in (
        'mul', 'multiply', 'rmul', 'imul', 'itruediv', 'idiv', 'div', 'true_divide', 'truediv', 'neg', 'negative')
