'''The canonizer that makes any code explainable, and on which all others build.'''
from functools import partial

import torch
from zennit.canonizers import Canonizer
from zennit.core import Stabilizer

from ..engine import Engine, engine_of
from ..engine.messages import outside_of_forward
from ..engine.veil import ENGINE
from ..errors import ContextError, UnsupportedModule
from ..layers import OPERATOR_MODULES, OperatorModule, softmax_type
from ..trees import tensors_of
from .families import FAMILIES
from .methods import like_method
from .module_hooks import ModuleHooks
from .originals import run_originals
from .undo import Frozen, put_back, replace_method, restoring, undo_all
from .visibility import IDLE, check_visible, runs_operators

_SOFTMAX = (torch.nn.Softmax, torch.nn.Softmin, torch.nn.Softmax2d, torch.nn.LogSoftmax)


class AttentionCanonizer(Canonizer):
    '''Make any attention code explainable: the only canonizer of this package that a user needs.

    While it is applied, every torch function called below the model's forward is routed through a rule: einsum, matmul,
    softmax, rearrange, ``+`` and all others, in whatever module, helper function or library they are called. Modules
    whose own code may run operators get operator modules as children (:py:mod:`zennit_attn.layers`), so that a
    composite can give operators other rules by type or name. Parameters are frozen. While the model's forward runs, its
    own code sees nothing of this, but that no parameter requires a gradient. :py:meth:`remove` restores the model
    exactly.

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
            If the model has parts whose code cannot be seen (TorchScript, quantized). All of them are named.
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
        check_visible(root_module)
        try:
            if not self._claim(root_module):
                run_originals(root_module, self._undo)
                self._freeze(root_module)
                self._guard(root_module)
                self._replace_softmax(root_module)
                self._wrap_forward(root_module)
            blocks = self._find_blocks(root_module)
            self._insert_operators(root_module, blocks)
            for module, family in blocks:
                family.help(self, module)
            with self.engine.veil.drawn():
                self.engine.location.survey()
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
            modules = list(root_module.named_modules())
            # Of the modules that are there now: what is replaced while the context is open has to be free again too.
            self._undo.append(partial(_release, engine, modules))
            self._undo.append(engine.veil.close)
            # One step that no thread or interrupt can come between, unlike what a lock would guard.
            taken = [name for name, module in modules if module.__dict__.setdefault(ENGINE, engine) is not engine]
            if taken:
                raise ContextError(
                    f'a context is already open on {type(root_module).__name__} (module {taken[0]!r}), in this thread '
                    'or another; leave it, or call remove() on its composite, before opening a second one'
                )
        self.engine.join(self.families)
        return joins

    def _freeze(self, root_module):
        for module in root_module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    frozen = Frozen(module, name, parameter)
                    self._undo.append(frozen.release)
                    frozen.hold()
            # Zennit 1.0 merges batch norms into plain attributes that hide the parameters.
            for attributes in (module.__dict__, module._buffers):
                for name, tensor in list(attributes.items()):
                    if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                        replacement = tensor.detach()
                        self._undo.append(restoring(attributes, name, replacement, tensor))
                        attributes[name] = replacement

    def _guard(self, root_module):
        for module in root_module.modules():
            refuse, attributes = partial(_refuse_copy, module), module.__dict__
            own = {'__reduce_ex__': refuse, '_replicate_for_data_parallel': refuse}
            if module is not root_module and type(module) not in IDLE:
                # Around the call, and not a hook, because the model may look at its hooks.
                own['_call_impl'] = partial(_checked, self.engine, module, module._call_impl)
            before = {name: attributes[name] for name in own if name in attributes}
            self._undo.append(partial(put_back, attributes, own, before))
            attributes.update(own)

    def _find_blocks(self, root_module):
        modules = [module for module in root_module.modules() if not isinstance(module, OperatorModule)]
        found = [(module, next((family for family in self.families if family.matches(module)), None))
                 for module in modules]
        return [(module, family) for module, family in found if family is not None]

    def _insert_operators(self, root_module, blocks):
        inside = {inner for block, _ in blocks for inner in block.modules()}
        for module in list(root_module.modules()):
            if runs_operators(module) and (self.everywhere or module in inside):
                for kind, operator_type in OPERATOR_MODULES.items():
                    self.insert(module, f'canonizer_{kind.value}', operator_type())

    def insert(self, module, name, operator_module):
        '''Give a module a child until the canonizer is removed.'''
        if isinstance(module._modules.get(name), OperatorModule):
            raise ContextError(f'{type(module).__name__} is a copy of a module that a context was open on, and still '
                               'has its operator modules; copy models outside of contexts')
        if name in module._modules or name in module.__dict__ or hasattr(type(module), name):
            raise UnsupportedModule(f'{type(module).__name__} already has an attribute {name!r}; rename it')
        operator_module.training = module.training
        self._undo.append(partial(module._modules.pop, name, None))
        self.engine.veil.add_child(module, name, operator_module)
        module._modules[name] = operator_module

    def _replace_softmax(self, root_module):
        # Zennit counts softmax modules as elementwise activations and would give them Pass.
        for module in list(root_module.modules()):
            if type(module) in _SOFTMAX:
                self.replace_type(module, softmax_type(type(module)))

    def replace_type(self, module, cls):
        '''Give a module another class until the canonizer is removed, but while the model's forward runs.'''
        before = type(module)
        self._undo.append(lambda: setattr(module, '__class__', before))
        self.engine.veil.add_class(module, before, cls)
        module.__class__ = cls

    def replace_call(self, module, make, name='forward'):
        '''Replace a module's method, while the engine runs, by ``make(method)`` until the canonizer is removed.'''
        engine = self.engine
        if module is engine.root and name == 'forward':
            before = engine.root_forward
            self._undo.append(partial(engine.run_as_root, before))
            engine.run_as_root(make(before))
            return
        function = replace_method(module, name, self._undo)
        replacement = make(function)

        def forward(*args, **kwargs):
            return (replacement if engine.running else function)(*args, **kwargs)
        module.__dict__[name] = like_method(module, function, forward)

    def replace_attribute(self, module, name, value):
        '''Give a module's instance another attribute until the canonizer is removed.'''
        before = module.__dict__[name]
        self._undo.append(lambda: module.__dict__.__setitem__(name, before))
        module.__dict__[name] = value

    def _wrap_forward(self, root_module):
        engine = self.engine
        module_hooks = ModuleHooks(engine)
        engine.before_forwards(module_hooks.update)
        # The call and not only the forward, because hooks of the user on the root may compute something too.
        call = replace_method(root_module, '_call_impl', self._undo)
        root_module.__dict__['_call_impl'] = like_method(root_module, call, partial(_run, engine, call))
        function = replace_method(root_module, 'forward', self._undo)
        engine.run_as_root(function)

        def forward(*args, **kwargs):
            return (engine.root_forward if engine.running else function)(*args, **kwargs)
        root_module.__dict__['forward'] = like_method(root_module, function, partial(_run, engine, forward))
        # Undone first: it may have replaced the forward of the root in its turn.
        self._undo.append(module_hooks.remove)


def _release(engine, modules):
    for _, module in modules:
        if engine_of(module) is engine:
            del module.__dict__[ENGINE]


def _refuse_copy(module, *args):
    raise ContextError(f'{type(module).__name__} cannot be copied, replicated or pickled while a context is open on '
                       'it; do that outside of the context')


def _run(engine, function, *args, **kwargs):
    if engine.running or engine.rests:
        return function(*args, **kwargs)
    return (engine.run if torch.is_grad_enabled() else engine.predict)(function, args, kwargs)


def _checked(engine, module, call, *args, **kwargs):
    output, forward = call(*args, **kwargs), engine.forward
    # The common case first, as this runs after every module.
    if forward is not None and isinstance(output, torch.Tensor) and (
            getattr(output, 'lrp_tag', None) is forward.carrying_tag):
        return output
    if engine.running and torch._C._is_torch_function_enabled():
        forward.check_output(module, output)
        if forward.observed:
            forward.observer.module_returned(engine.location.name_of(module), output)
    elif not engine.running and not engine.rests and _carries(output):
        raise ContextError(outside_of_forward(engine.location.name_of(module), type(engine.root).__name__))
    return output


def _carries(output):
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(output))
