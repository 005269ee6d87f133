'''Relevance inside of a model: what arrives at the inputs, the outputs and the operators of its modules.'''
import re
from collections import Counter
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches

import torch

from ..attribution import call_model, flat, output_relevance, plain_forward
from ..canonizers.attention import engine_of
from ..engine import twin_of
from ..observer import Observer, OperatorObserver
from ..trees import rebuilt, tensors_of


def relevance_at(model, composite, input, modules, attr_output=None, at='output', embedding=None, select=None,
                 compare=True):
    '''Explain a model and return the relevance that arrives inside of it.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    composite: :py:class:`zennit.core.Composite`
        The composite.
    input: :py:class:`torch.Tensor`, tuple or mapping
        Input of the model, as for :py:func:`~zennit_attn.conservation.audit`.
    modules: str or list[str]
        Dotted names of modules, in which ``*`` stands for any one part, such as ``'blocks.*.attn.proj'``.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        Relevance of the output, or a function of the output. Default is the output itself.
    at: str
        ``'output'`` is what arrives at the tensor that a module returns, ``'input'`` what a module passes on to the
        tensor that it takes. The name of a function as in the operator table of an audit, such as ``'matmul'`` or
        ``'scaled_dot_product_attention'``, is what arrives at what it returns in the modules' own code.
    embedding, select, compare: optional
        As for :py:func:`~zennit_attn.conservation.audit`.

    Returns
    -------
    dict[str, :py:class:`torch.Tensor`]
        Relevance by the name of the module, in the order of the calls, each of the shape of the tensor. What ran more
        than once has ``[0]``, ``[1]``... after its name.

    Raises
    ------
    ChangedForward
        If the model computes something else in the context than without.
    ValueError
        If no module has such a name, or there is not one tensor that carries relevance.
    '''
    input = rebuilt(input, lambda tensor: tensor.detach().clone())
    patterns = [modules] if isinstance(modules, str) else list(modules)
    names = {pattern: _matching(model, pattern) for pattern in patterns}
    plain = plain_forward(model, composite, input, embedding, select) if compare else None
    with composite.context(model), torch.enable_grad(), _watching(
            model, engine_of(model), set().union(*names.values()), at) as watch:
        output = _explain(model, input, attr_output, embedding, select)
    if plain is not None:
        plain.check(output)
    for pattern, matches in names.items():
        if not any(slot.name in matches for slot in watch.slots):
            raise ValueError(f'No relevance passes the {at} of {pattern!r}: it did not run, is viewed as a constant, '
                             'or lies inside a module that has a rule. audit(...).operator_table() says what ran.')
    return watch.relevances()


def _matching(model, pattern):
    expression = re.compile('[^.]*'.join(map(re.escape, pattern.split('*'))))
    names = [name for name, _ in model.named_modules()]
    matches = {name for name in names if expression.fullmatch(name)}
    if not matches:
        close = get_close_matches(pattern, names, n=3) or list(filter(None, names))[:3]
        raise ValueError(f'{type(model).__name__} has no module {pattern!r}; it has, among others, '
                         f'{", ".join(map(repr, close))}.')
    return matches


def _explain(model, input, attr_output, embedding, select):
    sources = [] if embedding is not None else [
        tensor.requires_grad_() for tensor in tensors_of(input) if tensor.is_floating_point()]
    output, leaves = call_model(model, input, embedding, select)
    torch.autograd.grad(output, flat(leaves) or sources, output_relevance(output, attr_output), allow_unused=True)
    return output


class _Slot:
    '''The tensors of one call of a module, and the relevance that arrives at them.'''
    def __init__(self, name):
        self.name = name
        self.values = []
        self.arrived = {}

    def watch(self, tensor, engine):
        '''Keep what arrives at a tensor; without an engine, relevance takes the place of the gradient.'''
        index, value = len(self.values), tensor.detach().clone()
        self.values.append(value)
        value = value if engine is None else engine.forward.contribution(tensor).clone()
        if engine is None:
            tensor.register_hook(lambda relevance: self.add(index, relevance))
            return
        tensor.register_hook(lambda grad: self.add(index, torch.where(grad == 0, 0., value * grad)))
        # what the next module's rule takes in the relevance domain does not pass the tensor, but its twin
        twin = twin_of(tensor)
        if twin is not None:
            twin.register_hook(lambda relevance: self.add(index, relevance))

    def add(self, index, relevance):
        self.arrived[index] = self.arrived.get(index, 0.) + relevance.detach()

    def relevance(self, at):
        '''Return what arrived at the one tensor of the call.'''
        if len(self.arrived) > 1:
            raise ValueError(f'Relevance passes {len(self.arrived)} tensors at the {at} of {self.name!r}, not one; '
                             'choose modules that take or return one tensor that carries relevance.')
        index, relevance = next(iter(self.arrived.items()), (0, None))
        return torch.zeros_like(self.values[index]) if relevance is None else relevance


@contextmanager
def _watching(model, engine, names, at):
    '''Yield a watch over modules, by hooks, or over operators, as an observer of the engine.'''
    watch = _Watch(engine, names, at)
    if at in ('input', 'output'):
        with ExitStack() as stack:
            for name, module in model.named_modules():
                if name in names:
                    watch.hook(stack, name, module)
            yield watch
        return
    if engine is None:
        raise ValueError(f'at={at!r} names an operator, which takes a composite with AttentionCanonizer.')
    with engine.observed_by(watch):
        yield watch


class _Watch(Observer):
    '''Keeps the relevance that passes modules or operators.'''
    def __init__(self, engine, names, at):
        self.engine = engine
        self.names = names
        self.at = at
        self.slots = []

    def hook(self, stack, name, module):
        '''Watch what a module takes or returns, until the stack closes.'''
        if self.at == 'output':
            stack.callback(module.register_forward_hook(
                lambda module, args, output: self._replaced(name, output)).remove)
        else:
            stack.callback(module.register_forward_pre_hook(
                lambda module, args, kwargs: self._replaced(name, (args, kwargs)), with_kwargs=True).remove)

    def begin(self, call, module, hook):
        '''An operator runs; return what is told its results.'''
        location = self.engine.location
        running = location.running_module()
        name = '' if running is self.engine.root else location.name_of(running)
        return _Operator(self, name, call) if call.operator.name == self.at and name in self.names else None

    def _replaced(self, name, tree):
        '''Watch clones of all tensors that carry relevance: who else uses a tensor does not count.'''
        slot, clones = _Slot(name), {}

        def replace(tensor):
            if not tensor.requires_grad:
                return tensor
            if id(tensor) not in clones:
                clones[id(tensor)] = tensor.clone()
                self.watch(slot, clones[id(tensor)])
            return clones[id(tensor)]
        return rebuilt(tree, replace)

    def watch(self, slot, tensor):
        '''Keep what arrives at a tensor.'''
        with torch._C.DisableTorchFunction():
            slot.watch(tensor, self.engine)
        if slot not in self.slots:
            self.slots.append(slot)

    def relevances(self):
        '''Return the relevance of each call by the name of its module.'''
        calls, seen, found = Counter(slot.name for slot in self.slots), Counter(), {}
        for slot in self.slots:
            key = slot.name if calls[slot.name] == 1 else f'{slot.name}[{seen[slot.name]}]'
            seen[slot.name] += 1
            found[key] = slot.relevance(self.at)
        return found


class _Operator(OperatorObserver):
    '''One call of a watched operator.'''
    def __init__(self, watch, name, call):
        self.watch = watch
        self.name = name
        self.call = call
        self.slot = _Slot(name)

    def returned(self, output):
        '''The operator has returned, in the gradient domain.'''
        output = self.call.args[0] if output is None or self.call.inplace else output
        for tensor in tensors_of(output):
            if tensor.requires_grad:
                self.watch.watch(self.slot, tensor)
