'''Which rule is on what: those that the composite gave to modules and operators, and those that replace defaults.'''
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from zennit.core import Hook

from ..errors import ContextError, UnsupportedRule
from ..layers import OperatorModule
from ..operators import Kind
from ..propagation import DIFFERENCES, RULES, taylor
from .location import Location


class Assignments:
    '''The rules of one forward, looked up when it starts.

    Parameters
    ----------
    location: :py:class:`~zennit_attn.engine.location.Location`
        Knows the modules of the model.
    rules: dict, optional
        Rules by kind of operator that replace the defaults.

    Attributes
    ----------
    modules: dict
        Modules with rules, and these, by the ``id`` of the module.
    kinds: frozenset of :py:class:`~zennit_attn.operators.Kind`
        The kinds of operators of which at least one has a rule.
    '''
    def __init__(self, location: Location, rules: Mapping[Kind, Callable] | None = None):
        self._location = location
        self._replaced = dict(rules or {})
        self._operators: dict[Any, tuple[torch.nn.Module, Hook]] = {}
        self.modules: dict[int, tuple[torch.nn.Module, list[Hook]]] = {}
        operators = {id(module): key for key, module in location.veil.operators.items()}
        for name, module, hooks in location.ruled:
            if len(hooks) > 1:
                raise UnsupportedRule(f'module {name!r} has {len(hooks)} Zennit rules; attach one')
            if id(module) in location.veil.layers:
                self._operators[id(module)] = (module, hooks[0])
            elif isinstance(module, OperatorModule):
                self._operators[operators[id(module)]] = (module, hooks[0])
            else:
                self.modules[id(module)] = (module, hooks)
        self.kinds = frozenset(location.veil.layers.get(id(module), module).kind
                               for module, _ in self._operators.values())

    @property
    def any(self) -> bool:
        '''Whether there is a rule that is no default.'''
        return bool(self.modules or self._operators or self._replaced)

    def check_active(self) -> None:
        '''Refuse rules that have been switched off: the conversions around them would stay on.'''
        hooks = [(module, hook) for module, hooks in self.modules.values() for hook in hooks]
        for module, hook in [*hooks, *self._operators.values()]:
            if not hook.active:
                raise ContextError(
                    f'rule {type(hook).__name__} on module {self._location.name_of(module)!r} is inactive: '
                    'composite.inactive() does not work with AttentionCanonizer; leave the context for a plain gradient'
                )

    @contextmanager
    def overriding(self, rules: Mapping[Kind, Callable]) -> Iterator[None]:
        '''Replace the default rules of some kinds of operators.'''
        before = self._replaced
        self._replaced = {**before, **rules}
        try:
            yield
        finally:
            self._replaced = before

    def of_operator(self, kind: Kind) -> tuple[torch.nn.Module | None, Hook | None]:
        '''Return the operator module of the module whose code runs, and the rule that it was given.'''
        module = self._location.running_module()
        veil, key = self._location.veil, (id(module), kind)
        if id(module) in veil.layers:
            return self._operators.get(id(module), (module, None))
        return self._operators.get(key, (veil.operators.get(key), None))

    def default(self, kind: Kind) -> Callable:
        '''Return the rule of an operator to which the composite gave none.'''
        return self._replaced.get(kind) or RULES[kind]

    def may_have(self, kind: Kind) -> bool:
        '''Whether operators of a kind follow another rule than that of the package, in any module.'''
        return kind in self.kinds or kind in self._replaced

    def is_default(self, kind: Kind) -> bool:
        '''Whether operators of a kind follow the package's own rule in the module whose code runs.'''
        return kind not in self._replaced and (kind not in self.kinds or self.of_operator(kind)[1] is None)

    def expands(self, module: torch.nn.Module) -> bool:
        '''Whether products in a module follow their expansion or secant, so that its queries and keys are no gates.'''
        _, hook = self._operators.get((id(module), Kind.EINSUM), (None, None))
        replaced = self._replaced.get(Kind.EINSUM)
        return taylor in (getattr(hook, 'operate', None), replaced) or replaced is DIFFERENCES[Kind.EINSUM]
