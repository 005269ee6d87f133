'''What a context adds to a model, and how it is kept out of the sight of the model's own code while that runs.'''
from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from zennit.core import Hook

from ..layers import OperatorModule
from ..operators import Kind

#: The attribute by which a module knows the engine of the context that is open on it.
ENGINE = '_canonizer_engine'
#: Where torch keeps the hooks of a call; the last three name some of those in the first two.
_REGISTRIES = ('_forward_pre_hooks', '_forward_hooks', '_forward_pre_hooks_with_kwargs', '_forward_hooks_with_kwargs',
               '_forward_hooks_always_called')


def engine_of(module: torch.nn.Module) -> Any:
    '''Return the engine of the context that is open on a module, or None.'''
    return module.__dict__.get(ENGINE)


class Veil:
    '''Takes out of a model what a context has added to it, while the model's own code runs, and puts it back after.

    A composite finds operator modules among the children of a module, and hooks and classes where Zennit has them. The
    model's own code must find none of that: it may count its children or hooks, or ask for the class of a module. What
    the engine needs of it is kept here.

    Attributes
    ----------
    inserted: list of tuple
        The children that modules were given: owner, name, child.
    operators: dict
        The operator modules, by the ``id`` of their owner and their kind.
    layers: dict
        The types of operator modules that modules of the model stand for, such as :py:class:`torch.nn.Softmax`, by the
        ``id`` of the module.
    '''
    def __init__(self) -> None:
        self.inserted: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []
        self.operators: dict[tuple[int, Kind], torch.nn.Module] = {}
        self.layers: dict[int, type[OperatorModule]] = {}
        self._classes: list[tuple[torch.nn.Module, type, type]] = []
        self._children: list[tuple[dict, str, torch.nn.Module]] = []
        self._hooks: list[tuple[dict, int, Any]] = []
        self._rules: dict[int, list[Hook]] = {}
        self._inside = self._without_hooks = 0
        self._lock = threading.RLock()

    # ---- what there is to hide ---------------------------------------------------------------------------------------

    def add_child(self, owner: torch.nn.Module, name: str, child: torch.nn.Module) -> None:
        '''Note a child that a module was given.'''
        self.inserted.append((owner, name, child))
        if isinstance(child, OperatorModule):
            self.operators[id(owner), child.kind] = child

    def add_class(self, module: torch.nn.Module, own: type, other: type) -> None:
        '''Note that a module of the class `own` has another one, so that a composite takes it for what it is.'''
        self._classes.append((module, own, other))
        if issubclass(other, OperatorModule):
            self.layers[id(module)] = other

    def close(self) -> None:
        '''Forget everything: what is hidden now is not put back.'''
        for kept in (self.inserted, self.operators, self.layers, self._classes, self._children, self._hooks,
                     self._rules):
            kept.clear()

    def rules_of(self, module: torch.nn.Module) -> list[Hook]:
        '''Return the Zennit rules of a module, also while they are hidden.'''
        return self._rules.get(id(module)) or zennit_hooks(module)

    # ---- hiding it ---------------------------------------------------------------------------------------------------

    @contextmanager
    def drawn(self, ruled: Callable[[], Iterable[torch.nn.Module]] | None = None) -> Iterator[None]:
        '''Hide what the context has added. May be entered again, also in other threads: who leaves last shows it.

        Parameters
        ----------
        ruled: callable, optional
            Returns the modules whose Zennit hooks are hidden too. It is called behind the veil.
        '''
        try:
            with self._lock:
                self._inside += 1
                if self._inside == 1:
                    self._hide()
            if ruled is None:
                yield
            else:
                with self._hooks_hidden(ruled()):
                    yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._show()

    def _hide(self):
        for owner, name, child in self.inserted:
            if owner._modules.get(name) is child:
                self._children.append((owner._modules, name, child))
                del owner._modules[name]
        for module, own, _ in self._classes:
            module.__class__ = own

    def _show(self):
        for module, _, other in self._classes:
            module.__class__ = other
        _put_back(self._children)

    @contextmanager
    def _hooks_hidden(self, modules):
        try:
            with self._lock:
                self._without_hooks += 1
                if self._without_hooks == 1:
                    self._hide_hooks(modules)
            yield
        finally:
            with self._lock:
                self._without_hooks -= 1
                if self._without_hooks == 0:
                    _put_back(self._hooks)
                    self._rules.clear()

    def _hide_hooks(self, modules):
        for module in modules:
            self._rules[id(module)] = zennit_hooks(module)
            keys = [key for name in _REGISTRIES[:2] for key, hook in getattr(module, name).items()
                    if rule_of(hook) is not None]
            for registry in (getattr(module, name) for name in _REGISTRIES):
                for key in keys:
                    if key in registry:
                        self._hooks.append((registry, key, registry[key]))
                        del registry[key]


def _put_back(taken):
    for registry, key, value in taken:
        registry[key] = value
    taken.clear()


def rule_of(hook: Callable) -> Hook | None:
    '''Return the Zennit rule that a registered hook belongs to, or None.'''
    owner = getattr(hook, '__self__', None) or getattr(hook, 'zennit_hook', None)
    return owner if isinstance(owner, Hook) else None


def zennit_hooks(module: torch.nn.Module) -> list[Hook]:
    '''Return the Zennit rules registered on a module.'''
    hooks: list[Hook] = []
    for hook in module._forward_hooks.values():
        owner = rule_of(hook)
        if owner is not None and owner not in hooks:
            hooks.append(owner)
    return hooks
