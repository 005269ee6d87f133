'''Calls of modules that have a Zennit rule: a copy of the rule for each, so that a module may be called many times.'''
import inspect
from contextlib import contextmanager, nullcontext
from copy import copy

import torch
from torch.autograd.function import Function
from zennit.core import BasicHook
from zennit.rules import NoMod, Pass

from ..errors import ContextError, UnsupportedRule
from ..layers import OPERATOR_MODULES, weights_of
from ..propagation.contraction import with_one_weight
from ..trees import address, rebuilt, substitute, tensors_in, tensors_of
from . import messages
from .domains import first_order


class Hooked(Function):
    '''One call of a module with a Zennit rule; the rule's state lives here and nowhere else.'''
    @staticmethod
    def forward(ctx, call, *inputs):
        outputs = call.forward(inputs)
        ctx.call = call
        return tuple(outputs)

    @staticmethod
    @first_order
    def backward(ctx, *grads):
        return None, *ctx.call.backward(grads)


class HookedCall:
    '''One call of a module through a copy of its Zennit rule.'''
    def __init__(self, engine, module, function, hook, args, kwargs, report, references=None):
        self.engine = engine
        self.module = module
        self.function = function
        self.source = hook
        self.hook = copy(hook)
        self.hook.stored_tensors = {}
        self.args = args
        self.kwargs = kwargs
        self.report = report
        self.references = references  # of the arguments, if relevance is that of differences
        self.positions = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor) and arg.requires_grad]
        self.structure = None
        self.autocast = self.versions = self.addresses = self.reference = None

    def _fill(self, tensors):
        args = list(self.args)
        for position, tensor in zip(self.positions, tensors, strict=True):
            args[position] = tensor
        return tuple(args)

    def forward(self, inputs):
        '''Run the module and let the rule store what it needs. Returns the outputs as a list of tensors.'''
        self.autocast = _autocast_of(inputs[0].device.type)
        self.versions = [(tensor, tensor._version) for tensor in inputs]
        self.addresses = addresses(self.module)
        args = self._fill([tensor.detach() for tensor in inputs])
        private = tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)
        with torch._C.DisableTorchFunction():
            output = self.function(*private, **self.kwargs)
            seen, result = (args, output) if self.references is None else self._differences(args, output)
            info = (self.kwargs,) if len(inspect.signature(self.hook.forward).parameters) == 4 else ()
            self.hook.forward(self.module, seen, *info, result)
        self.structure = output
        self.args = self._fill([None] * len(self.positions))
        self.inputs = seen
        return [tensor.clone() for tensor in tensors_of(output) if tensor.is_floating_point()]

    def _differences(self, args, output):
        '''What the rule sees of the module: how its input and its output differ from the reference, without a bias.'''
        reference = self.function(*(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in self.references),
                                  **self.kwargs)
        self.reference = [tensor.detach().clone() for tensor in tensors_of(reference)]
        seen = tuple(arg - other if position in self.positions else arg
                     for position, (arg, other) in enumerate(zip(args, self.references, strict=True)))
        result = _filled(output, [one - other for one, other in zip(
            tensors_of(output), self.reference, strict=True)])
        if not isinstance(self.hook, Pass):
            self._check_linear(seen, result)
        return seen, result

    def _check_linear(self, seen, result):
        with without_bias(self.module):
            linear = self.function(*(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in seen),
                                   **self.kwargs)
        for one, other in zip(tensors_of(linear), tensors_of(result), strict=True):
            scale = max(float(tensor.abs().max()) if tensor.numel() else 0. for tensor in (*self.reference, other))
            if not torch.allclose(one, other, rtol=0., atol=1e3 * torch.finfo(other.dtype).eps * scale):
                raise UnsupportedRule(messages.no_difference(
                    self.engine.location.name_of(self.module), type(self.module).__name__, type(self.hook).__name__))

    def backward(self, relevance):
        '''Return the relevance of the inputs, given that of the outputs.'''
        name = self.engine.location.name_of(self.module)
        check_active(self.source)
        if any(tensor._version != version for tensor, version in self.versions):
            raise ContextError(f'the input of the model, which module {name!r} has used, was written to between '
                               'forward and backward; write to a clone of it')
        check_parameters(self.module, self.addresses, name, self.source)
        hidden = nullcontext() if self.references is None else without_bias(self.module)
        with self.engine.resting(self.module), self.autocast, hidden:
            return self._backward(relevance)

    def _backward(self, relevance):
        grads = self._gradient(relevance) if self._needs_gradient() else [None] * len(self.positions)
        self.hook.pre_backward(self.module, None, relevance)
        # Most rules only look at the shape of the plain gradient, so the input stands in where it is not needed.
        stand_in = dict(zip(self.positions, grads, strict=True))
        grad_input = [arg if stand_in.get(position) is None else stand_in[position]
                      for position, arg in enumerate(self.inputs)]
        result = self.hook.backward(self.module, tuple(grad_input), relevance)
        result = grads if result is None else [result[position] for position in self._result_positions(result)]
        if self.report is not None:
            self.report(relevance, result)
        return result

    def _result_positions(self, result):
        return self.positions if len(result) == len(self.inputs) else range(len(self.positions))

    def _needs_gradient(self):
        return type(self.hook).backward not in (BasicHook.backward, Pass.backward)

    def _gradient(self, relevance):
        inputs = [self.inputs[position].clone().requires_grad_() for position in self.positions]
        with torch.enable_grad():
            output = self.function(*self._fill([tensor.clone() for tensor in inputs]), **self.kwargs)
            outputs = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
        return torch.autograd.grad(outputs, inputs, relevance, allow_unused=True)


def call_module(forward, module, hooks, function, args, kwargs):
    '''Call a module that has a Zennit rule: a leaf, of whose inside the engine stays out.'''
    name, hook = forward.location.name_of(module), hooks[0]
    forward.parameters.ran.add(id(module))
    if forward.normalizes:
        args, kwargs = rebuilt((args, kwargs), forward.without_way_back)
    if hasattr(hook, 'call_module'):
        output = hook.call_module(forward, module, function, args, kwargs)
        if output is not NotImplemented:
            return output
    args, kwargs = to_positional(module, args, kwargs)
    if not any(tensor.requires_grad for tensor in tensors_of((args, kwargs))):
        return function(*args, **kwargs)
    nested = [arg for arg in args if not isinstance(arg, torch.Tensor)]
    if any(tensor.requires_grad for tensor in tensors_of((kwargs, nested))):
        raise UnsupportedRule(
            f'rule {type(hook).__name__} on module {name!r}: an input that carries relevance is not a plain '
            'positional tensor; give the rule to the modules inside'
        )
    return apply_rule(forward, module, function, hook, args, kwargs, name)


def apply_rule(forward, module, function, hook, args, kwargs, name):
    '''Run one call of a module through its Zennit rule, and convert on both sides.'''
    carrying = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
    target = carrying[0] if carrying and getattr(module, 'inplace', False) is True else None
    if len(carrying) > 1 and isinstance(hook, (BasicHook, Pass)):
        raise UnsupportedRule(
            f'rule {type(hook).__name__} on module {name!r}: the module has {len(carrying)} inputs that carry '
            'relevance, and the rule can serve one only; leave the module without a rule, or give it '
            'zennit_attn.rules.Uniform'
        )
    references = None if forward.references is None else substitute(args, forward.references.of)
    args = tuple(forward.to_relevance(arg, name) if isinstance(arg, torch.Tensor) else arg for arg in args)
    report = forward.observer and forward.observer.rule(name, module, hook)
    call = HookedCall(forward.engine, module, function, hook, args, kwargs, report, references)
    outputs = iter(Hooked.apply(call, *(args[position] for position in call.positions)))
    structure, call.structure = call.structure, None
    if not (isinstance(structure, torch.Tensor) or (tensors_of(structure) and not isinstance(hook, BasicHook))):
        raise UnsupportedRule(
            f'rule {type(hook).__name__} on module {name!r}: the module returns {type(structure).__name__}, and '
            'the rule can serve a tensor only; give it to the modules inside'
        )
    others = iter(call.reference or ())
    result = rebuilt(structure, lambda tensor: forward.to_gradient(
        next(outputs), next(others, None)) if tensor.is_floating_point() else tensor)
    return result if target is None else forward.memory.put_in_place(target, result)


def apply_to_operator(forward, call, module, hook):
    '''Run a call of an operator by the rule that its operator module was given.'''
    if hasattr(hook, 'operate'):
        return hook.operate(call)
    name = forward.location.name_of(module)
    if len(call.operands) > 1:
        return _refuse_in_backward(call, name, hook)
    if modifies_parameters(hook) and len(weights_of(call)) > 1:
        call = _with_one_weight(call, name, hook)
    bound = OPERATOR_MODULES[call.operator.kind].bind(call)
    return call.write_back(apply_rule(forward, bound, bound.forward, hook, tuple(call.operands), {}, name))


def _with_one_weight(call, name, hook):
    found = with_one_weight(call)
    if found is None:
        raise UnsupportedRule(messages.several_weights(type(hook).__name__, name, call.operator.name))
    return found


def _refuse_in_backward(call, name, hook):
    message = messages.several_operands(type(hook).__name__, name, call.operator.name, len(call.operands))

    def refuse(grad):
        raise UnsupportedRule(message)
    output = call.run()
    for tensor in tensors_in(output):
        tensor.register_hook(refuse)
    return output


def check_parameters(module, expected, name, hook):
    '''Refuse a backward pass through a rule that would use other parameters than the forward did.'''
    if addresses(module) != expected:
        raise ContextError(f'module {name!r} has other parameters than in the forward, e.g. because of '
                           f'torch.func.functional_call around it, and its rule {type(hook).__name__} would use them; '
                           'put these into the model')


def addresses(module):
    '''Where the parameters of a module are, by which a rule knows that they are the same.'''
    # The attribute, because Zennit 1.0 hides a parameter behind one when it merges batch norms. Projections that a
    # context has given to a module share the memory of its own parameters, and are hidden in the forward.
    return [address(getattr(owner, name)) for path, owner in module.named_modules()
            if not path.rpartition('.')[2].startswith('canonizer_')
            for name, parameter in owner._parameters.items() if parameter is not None]


def _filled(structure, tensors):
    tensors = iter(tensors)
    return rebuilt(structure, lambda tensor: next(tensors))


@contextmanager
def without_bias(module):
    '''Let a module run without what it adds, as it acts on differences.'''
    holders = [holder for holder in (module._parameters, module.__dict__) if holder.get('bias') is not None]
    kept = [(holder, holder['bias']) for holder in holders]
    try:
        for holder in holders:
            holder['bias'] = None
        yield
    finally:
        for holder, bias in kept:
            holder['bias'] = bias


def _autocast_of(device):
    '''The precision of the forward, which a rule computes in again, also where only the forward ran under autocast.'''
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


def modifies_parameters(hook):
    '''Whether a rule looks at weights one by one, and not only at what a module computes with them.'''
    return isinstance(hook, BasicHook) and any(
        not isinstance(modifier, NoMod) or modifier.zero_params for modifier in hook.param_modifiers)


def check_active(hook):
    '''Refuse a backward pass through a rule that its composite has made inactive.'''
    if not hook.active:
        raise ContextError(f'rule {type(hook).__name__} is inactive in the backward pass: '
                           'composite.inactive() does not work with AttentionCanonizer')


def to_positional(module, args, kwargs):
    '''Move keyword arguments that carry relevance to their positions, where Zennit's rules look.'''
    if not any(tensor.requires_grad for tensor in tensors_of(kwargs)):
        return args, kwargs
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    return bound.args[1:], bound.kwargs
