'''How the engine takes over the modules that a composite gave a Zennit rule, and gives them back.'''
import torch
from zennit.core import Hook

from ..layers import OperatorModule
from ..ruled import zennit_hooks


class Takeover:
    '''The modules with a Zennit rule, whose calls the engine takes over.

    Zennit keeps the state of a rule per module. Inside the engine's forward its hooks stand back, and each call runs
    through a copy of the rule.
    '''
    def __init__(self, engine):
        self.engine = engine
        self.undo = []
        self.seen = set()

    def update(self):
        '''Take over modules that were given a rule since the last forward.'''
        for module in self.engine.root.modules():
            hooks = zennit_hooks(module)
            if hooks and id(module) not in self.seen:
                self.seen.add(id(module))
                self._stand_back(module)
                if not isinstance(module, OperatorModule):
                    self._take_over(module, hooks)

    def _stand_back(self, module):
        for registry in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in registry.items():
                if zennit_hook(hook) is not None:
                    registry[key] = _standing_back(self.engine, hook)
                    self.undo.append(lambda registry=registry, key=key, hook=hook: key in registry
                                     and registry.__setitem__(key, hook))

    def _take_over(self, module, hooks):
        engine = self.engine
        function = replace_method(module, 'forward', self.undo)

        def forward(*args, **kwargs):
            inside = engine.running and not engine.rests and torch._C._is_torch_function_enabled()
            if not inside or not torch.is_grad_enabled():
                return function(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                return engine.call_ruled(module, hooks, function, args, kwargs)
        module.__dict__['forward'] = forward

    def remove(self):
        '''Give the modules back to Zennit.'''
        while self.undo:
            self.undo.pop()()


def zennit_hook(hook):
    '''Return the Zennit rule that a registered hook belongs to, or None.'''
    owner = getattr(hook, '__self__', None)
    return owner if isinstance(owner, Hook) else None


def _standing_back(engine, hook):
    def wrapper(*args):
        return None if engine.running else hook(*args)
    wrapper.zennit_hook = hook.__self__
    return wrapper


def replace_method(module, name, undo):
    '''Return a method of a module, and remember to restore what its instance had.'''
    had = name in module.__dict__
    function = getattr(module, name)

    def restore():
        if had:
            module.__dict__[name] = function
        else:
            module.__dict__.pop(name, None)
    undo.append(restore)
    return function
