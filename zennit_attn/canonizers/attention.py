'''The canonizer that makes any code explainable, and on which all others build.'''
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import Module, ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from torch.nn.parameter import is_lazy
from zennit.canonizers import Canonizer
from zennit.core import Stabilizer

from ..engine import Engine, is_layer
from ..errors import ContextError, NoRelevance, UnsupportedModule
from ..layers import OPERATOR_MODULES, OperatorModule, softmax_type
from ..structures import tensors_of
from .families import FAMILIES
from .takeover import Takeover, replace_method, undo_all

_CONTAINERS = (Sequential, ModuleList, ModuleDict, ParameterList, ParameterDict)
#: Types without operators of their own: what they contain is watched.
_IDLE = (*_CONTAINERS, torch.nn.Identity)
_SOFTMAX = (torch.nn.Softmax, torch.nn.Softmin, torch.nn.Softmax2d, torch.nn.LogSoftmax)
#: The attribute by which a module knows the engine of the context that is open on it.
_ENGINE = '_canonizer_engine'


def engine_of(module):
    '''Return the engine of the context that is open on a module, or None.'''
    return module.__dict__.get(_ENGINE)


@contextmanager
def explained_output(model, module):
    '''Explain a model from the output of one of its modules, in place of its input.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, with or without an open context.
    module: :py:class:`torch.nn.Module`
        The part of the model whose output is explained, e.g. an embedding. It must be called once.

    Yields
    ------
    list of :py:class:`torch.Tensor`
        After the model was called: the leaf that took the place of the output, whose gradient is its relevance.
    '''
    leaves, engine = [], engine_of(model)
    if isinstance(module, type(model)) and module is model:
        raise NoRelevance(f'{type(model).__name__} is the model itself; name the embedding inside')

    def take(module, args, output):
        if not isinstance(output, torch.Tensor):
            raise NoRelevance(f'{type(module).__name__} returns {type(output).__name__}, and a model can be explained '
                              'from a tensor; name the embedding inside')
        with torch._C.DisableTorchFunction():
            leaves.append(output.detach().requires_grad_())
            return leaves[-1] if engine is None or not engine.running else engine.to_gradient(leaves[-1])

    handle = module.register_forward_hook(take)
    if engine is not None:
        engine.source = module
    try:
        yield leaves
    except NoRelevance as error:
        if leaves:
            raise
        raise NoRelevance(f'{type(module).__name__}, from whose output the model was to be explained, was not called '
                          'in its forward; name a module that is') from error
    finally:
        handle.remove()
        if engine is not None:
            engine.source = None


class AttentionCanonizer(Canonizer):
    '''Make any attention code explainable: the only canonizer of this package that a user needs.

    While it is applied, every torch function called below the model's forward is routed through a rule: einsum, matmul,
    softmax, rearrange, ``+`` and all others, in whatever module, helper function or library they are called. Modules
    whose own code may run operators get operator modules as children (:py:mod:`zennit_attn.layers`), so that a
    composite can give operators other rules by type or name. Parameters are frozen. :py:meth:`remove` restores the
    model exactly.

    Parameters
    ----------
    unknown: {'raise', 'gradient'}, optional
        What to do when a tensor that carries relevance meets a function that the table of operators does not know, or
        comes from code that cannot be seen: refuse with an error that names it, or accept the plain gradient.
    stabilizer: callable or float, optional
        Stabilization ``eps`` where relevance turns into relevance per unit, ``g = R / (x + eps sign(x))``: before a
        module with a Zennit rule and at the model's output. If a float, it is added with the sign of each entry. See
        :py:class:`zennit.core.Stabilizer`.
    '''
    #: The families of blocks that the canonizer recognises and helps the engine with.
    families = FAMILIES
    #: Whether modules of no family get operator modules too.
    everywhere = True
    _undo = ()

    def __init__(self, unknown='raise', stabilizer=1e-9):
        super().__init__()
        if unknown not in ('raise', 'gradient'):
            raise ValueError(f"unknown must be 'raise' or 'gradient', got {unknown!r}")
        self.unknown = unknown
        self.stabilizer = Stabilizer.ensure(stabilizer)
        self.root = None
        self.engine = None
        self._undo = []

    def apply(self, root_module):
        '''Apply the canonizer to a model.

        Parameters
        ----------
        root_module: :py:class:`torch.nn.Module`
            The model whose forward is to be explained.

        Returns
        -------
        list of :py:class:`AttentionCanonizer`
            The one applied instance.

        Raises
        ------
        ContextError
            If a context is already open on the model or a part of it.
        UnsupportedModule
            If the model has parts whose code cannot be seen (TorchScript, compiled). All of them are named.
        '''
        instance = self.copy()
        instance.register(root_module)
        return [instance]

    def copy(self):
        '''Return a copy of this canonizer, with its arguments.'''
        return type(self)(unknown=self.unknown, stabilizer=self.stabilizer)

    def register(self, root_module):
        '''Check the model, then change it; whatever fails, nothing is left behind.

        Parameters
        ----------
        root_module: :py:class:`torch.nn.Module`
        '''
        _check_visible(root_module)
        try:
            if not self._claim(root_module):
                self._freeze(root_module)
                self._guard(root_module)
                self._replace_softmax(root_module)
                self._wrap_forward(root_module)
            blocks = self._find_blocks(root_module)
            self._insert_operators(root_module, blocks)
            for module, family in blocks:
                family.help(self, module)
            self.engine.where.survey()
        except BaseException:
            self.remove()
            raise

    def remove(self):
        '''Restore the model exactly.'''
        try:
            undo_all(self._undo)
        finally:
            undo_all(self._undo)
            self.engine = None

    def __del__(self):
        # Zennit's own composites forget their canonizers when a later one, or a rule, fails to register.
        if self._undo:
            self.remove()

    def _claim(self, root_module):
        '''Open the model, or join the context that canonizers of other families have opened on it just now.'''
        self.engine = engine_of(root_module)
        joins = self.engine is not None and self.engine.root is root_module and not (
            self.engine.families & set(self.families))
        if not joins:
            self.engine = engine = Engine(root_module, stabilizer=self.stabilizer, unknown=self.unknown)
            self._undo.append(lambda: _release(engine))
            # One step that no thread or interrupt can come between, unlike what a lock would guard.
            taken = [name for name, module in root_module.named_modules()
                     if module.__dict__.setdefault(_ENGINE, engine) is not engine]
            if taken:
                raise ContextError(
                    f'a context is already open on {type(root_module).__name__} (module {taken[0]!r}), in this thread '
                    'or another; leave it, or call remove() on its composite, before opening a second one'
                )
        self.engine.families |= set(self.families)
        return joins

    def _freeze(self, root_module):
        for module in root_module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._undo.append(_restoring_parameter(module, name, parameter, parameter.requires_grad))
                    parameter.requires_grad_(False)
            # Zennit 1.0 merges batch norms into plain attributes that hide the parameters.
            for attributes in (module.__dict__, module._buffers):
                for name, tensor in list(attributes.items()):
                    if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                        replacement = tensor.detach()
                        self._undo.append(_restoring(attributes, name, replacement, tensor))
                        attributes[name] = replacement

    def _guard(self, root_module):
        for module in root_module.modules():
            self._set(module, '__reduce_ex__', partial(_refuse_copy, module))
            self._set(module, '_replicate_for_data_parallel', partial(_refuse_copy, module))
            if module is not root_module and type(module) not in _IDLE:
                self._hook(module, _checking(self.engine))

    def _hook(self, module, hook):
        self._undo.append(lambda: _unhook(module, hook))
        module.register_forward_hook(hook)

    def _set(self, module, name, value):
        replace_method(module, name, self._undo)
        module.__dict__[name] = value

    def _find_blocks(self, root_module):
        modules = [module for module in root_module.modules() if not isinstance(module, OperatorModule)]
        found = [(module, next((family for family in self.families if family.matches(module)), None))
                 for module in modules]
        return [(module, family) for module, family in found if family is not None]

    def _insert_operators(self, root_module, blocks):
        inside = {inner for block, _ in blocks for inner in block.modules()}
        for module in list(root_module.modules()):
            if _runs_operators(module) and (self.everywhere or module in inside):
                for kind, operator_type in OPERATOR_MODULES.items():
                    self.insert(module, f'canonizer_{kind.value}', operator_type())
                self._hide_operators(module)

    def _hide_operators(self, module):
        attributes, walks = module.__dict__, ('named_children', 'named_modules')
        before = {name: attributes[name] for name in walks if name in attributes}
        functions = {name: partial(_without_operators, self.engine, getattr(module, name)) for name in walks}
        self._undo.append(lambda: [attributes.pop(name, None) for name in walks] and attributes.update(before))
        attributes.update(functions)

    def insert(self, module, name, operator_module):
        '''Give a module a child until the canonizer is removed.'''
        if isinstance(module._modules.get(name), OperatorModule):
            raise ContextError(f'{type(module).__name__} is a copy of a module that a context was open on, and still '
                               'has its operator modules; copy models outside of contexts')
        if name in module._modules or name in module.__dict__ or hasattr(type(module), name):
            raise UnsupportedModule(f'{type(module).__name__} already has an attribute {name!r}; rename it')
        operator_module.training = module.training
        self._undo.append(lambda: module._modules.pop(name, None))
        module._modules[name] = operator_module

    def _replace_softmax(self, root_module):
        # Zennit counts softmax modules as elementwise activations and would give them Pass.
        for module in list(root_module.modules()):
            if type(module) in _SOFTMAX:
                self.replace_type(module, softmax_type(type(module)))

    def replace_type(self, module, cls):
        '''Give a module another class until the canonizer is removed.'''
        before = type(module)
        self._undo.append(lambda: setattr(module, '__class__', before))
        module.__class__ = cls

    def replace_call(self, module, make):
        '''Replace a module's forward, while the engine runs, by ``make(forward)`` until the canonizer is removed.'''
        engine = self.engine
        function = replace_method(module, 'forward', self._undo)
        replacement = make(function)

        def forward(*args, **kwargs):
            return (replacement if engine.running else function)(*args, **kwargs)
        module.__dict__['forward'] = forward

    def replace_attribute(self, module, name, value):
        '''Give a module's instance another attribute until the canonizer is removed.'''
        before = module.__dict__[name]
        self._undo.append(lambda: module.__dict__.__setitem__(name, before))
        module.__dict__[name] = value

    def _wrap_forward(self, root_module):
        engine = self.engine
        takeover = Takeover(engine)
        # The call and not only the forward, because hooks of the user on the root may compute something too.
        for name in ('forward', '_call_impl'):
            function = replace_method(root_module, name, self._undo)
            root_module.__dict__[name] = partial(_run, engine, takeover, function)
        # Undone first: it may have replaced the forward of the root in its turn.
        self._undo.append(takeover.remove)


def _without_operators(engine, function, *args, **kwargs):
    '''Children or modules as the model knows them, where its own code walks over them while it is explained.'''
    found = function(*args, **kwargs)
    return ((name, module) for name, module in found if not isinstance(module, OperatorModule) or is_layer(module)) if (
        engine.running) else found


def _unhook(module, hook):
    for key, registered in list(module._forward_hooks.items()):
        if registered is hook:
            del module._forward_hooks[key]


def _release(engine):
    for module in engine.root.modules():
        if engine_of(module) is engine:
            del module.__dict__[_ENGINE]


def _restoring(attributes, name, replacement, tensor):
    def restore():
        current = attributes.get(name)
        # Weight norm and its like compute the attribute again in every forward.
        if current is replacement or (isinstance(current, torch.Tensor) and torch.equal(current, replacement)):
            attributes[name] = tensor
    return restore


def _restoring_parameter(module, name, parameter, requires_grad):
    def restore():
        # Zennit 1.0 replaces Parameter objects while a rule runs, so the object itself is put back too.
        current = module._parameters.get(name)
        if current is not None and current.data_ptr() == parameter.data_ptr():
            module._parameters[name] = parameter
        parameter.requires_grad_(requires_grad)
    return restore


def _refuse_copy(module, *args):
    raise ContextError(f'{type(module).__name__} cannot be copied, replicated or pickled while a context is open on '
                       'it; do that outside of the context')


def _run(engine, takeover, function, *args, **kwargs):
    if engine.running or engine.rests:
        return function(*args, **kwargs)
    takeover.update()
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    return engine.run(function, args, kwargs)


def _checking(engine):
    def hook(module, args, output):
        # The common case first, as this runs after every module.
        if isinstance(output, torch.Tensor) and getattr(output, 'lrp_tag', None) is engine.plain:
            return
        if engine.running and torch._C._is_torch_function_enabled():
            engine.check_output(module, output)
        elif not engine.running and not engine.rests and _carries(output):
            raise ContextError(
                f'module {engine.where.name_of(module)!r} is called outside of the forward of '
                f'{type(engine.root).__name__}, on which the context is open, where no rule can follow; open the '
                'context on that module, or put the computation into the forward of a module of its own'
            )
    return hook


def _carries(output):
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(output))


def _runs_operators(module):
    '''Whether a module's own code may run operators, and it can be given children.'''
    cls = type(module)
    if isinstance(module, (*_CONTAINERS, OperatorModule)) or cls.forward is Module.forward:
        return False
    code = getattr(cls.forward, '__code__', None)
    # Code that walks over its own children must not meet ours, which other ways to walk hide.
    if code is not None and '_modules' in code.co_names:
        return False
    if cls.__module__.startswith('torch.nn.modules.'):
        return bool(module._modules)
    return not cls.__module__.startswith('einops.')


def _check_visible(root_module):
    problems = [f'module {name!r} {problem}' for name, module in root_module.named_modules()
                if (problem := _problem_of(module)) is not None]
    call = type(root_module).__call__
    if call is not Module.__call__ and not (getattr(call, '__module__', None) or '').startswith('torch.'):
        problems.append(f'{type(root_module).__name__} overrides __call__, whose code runs outside of its forward: '
                        'wrap it, e.g. in torch.nn.Sequential(model), and open the context on that')
    if problems:
        raise UnsupportedModule('\n'.join(problems))


def _problem_of(module):
    if isinstance(module, torch.jit.ScriptModule):
        return 'is TorchScript, whose code cannot be seen: use the module it was made from'
    if type(module).__name__ == 'OptimizedModule' or getattr(module, '_compiled_call_impl', None) is not None or (
            hasattr(type(module).forward, '_torchdynamo_orig_callable')
            and not getattr(type(module).forward, '_torchdynamo_disable', False)):
        return ('is compiled, so its code cannot be seen: explain the original module (model._orig_mod for '
                'torch.compile), or build the model again if it was compiled in place by model.compile()')
    if isinstance(module, torch.nn.DataParallel) and len(module.device_ids) > 1:
        return 'runs copies of its module in threads, where no rule can follow: explain model.module'
    if '.quantized.' in type(module).__module__:
        return 'is quantized, and has no gradient: explain the model that it was made from'
    if any(is_lazy(parameter) for parameter in module._parameters.values()):
        return 'is lazy, and has no parameters yet: call the model once on an input'
    return None
