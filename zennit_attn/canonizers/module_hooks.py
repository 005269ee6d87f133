'''How the engine takes over the modules that a composite gave a Zennit rule, and gives them back.'''
from functools import partial

import torch
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..engine.domains import watching
from ..engine.module_calls import call_module, modifies_parameters
from ..engine.veil import rule_of
from ..errors import UnsupportedRule
from ..layers import OperatorModule
from .methods import like_method
from .undo import replace_method, undo_all


class ModuleHooks:
    '''The modules with a Zennit rule, whose calls the engine takes over.

    Zennit keeps the state of a rule per module. Inside the engine's forward its hooks are hidden, and each call runs
    through a copy of the rule.
    '''
    def __init__(self, engine):
        self.engine = engine
        self.undo = []
        self.seen = set()

    def update(self):
        '''Take over modules that were given a rule since the last forward.'''
        location = self.engine.location
        for _, module in location.modules:
            self._watch_backward(module)
        for _, module, hooks in location.ruled:
            if id(module) not in self.seen:
                self._stand_back(module)
                if not isinstance(module, OperatorModule) and id(module) not in location.veil.layers:
                    self._take_over(module, hooks)
                self.seen.add(id(module))

    def _watch_backward(self, module):
        for registry in (module._backward_hooks, module._backward_pre_hooks):
            for key, hook in registry.items():
                if not hasattr(hook, 'watched'):
                    name = self.engine.location.name_of(module)
                    self._replace(registry, key, hook, watching(hook, f'a backward hook of module {name!r}'))

    def _replace(self, registry, key, hook, replacement):
        self.undo.append(partial(_put_back, registry, key, hook))
        registry[key] = replacement

    def _stand_back(self, module):
        for registry in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in registry.items():
                if rule_of(hook) is not None and not hasattr(hook, 'zennit_hook'):
                    self._replace(registry, key, hook, _standing_back(self.engine, hook))

    def _take_over(self, module, hooks):
        engine = self.engine
        _check_weights(engine, module, hooks[0])
        function = replace_method(module, 'forward', self.undo)

        def forward(*args, **kwargs):
            inside = engine.running and not engine.rests and torch._C._is_torch_function_enabled()
            if not inside or not torch.is_grad_enabled():
                return function(*args, **kwargs)
            if hasattr(hooks[0], 'rules_inside'):
                with engine.forward.overriding(hooks[0].rules_inside()):
                    return function(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                return call_module(engine.forward, module, hooks, function, args, kwargs)
        module.__dict__['forward'] = like_method(module, function, forward)

    def remove(self):
        '''Give the modules back to Zennit.'''
        undo_all(self.undo)


def _put_back(registry, key, hook):
    if key in registry:
        registry[key] = hook


def _standing_back(engine, hook):
    def wrapper(*args):
        return None if engine.running or not torch.is_grad_enabled() else hook(*args)
    wrapper.zennit_hook = hook.__self__
    return wrapper


def _check_weights(engine, module, hook):
    '''Refuse rules that modify parameters where these are not what the module computes with.'''
    computed = is_parametrized(module) or any(
        isinstance(each, (WeightNorm, SpectralNorm, BasePruningMethod)) for each in module._forward_pre_hooks.values())
    if modifies_parameters(hook) and computed:
        raise UnsupportedRule(
            f'rule {type(hook).__name__} on module {engine.location.name_of(module)!r} modifies parameters, but the '
            'weight of the module is computed from others (parametrization, weight or spectral norm, pruning); make it '
            'plain first, e.g. with torch.nn.utils.parametrize.remove_parametrizations, or give the module another rule'
        )
