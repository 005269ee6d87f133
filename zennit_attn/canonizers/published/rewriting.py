'''Code that finds other functions under the names that it calls.'''
import dis
from functools import cache, partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, SimpleNamespace
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from ..methods import has_own
from .functions import name_of, package_of, registered, replacement


def with_functions(function, others):
    '''Return a function like another, below all its decorators, that finds others under names of its module.

    Parameters
    ----------
    function: callable
        The function as its module or class has it.
    others: dict
        What it shall find, by name.

    Returns
    -------
    callable or None
        None if what a decorator calls can not be told.
    '''
    inner = getattr(function, '__wrapped__', None)
    closure, scope = function.__closure__, function.__globals__
    if inner is None:
        scope = {**scope, **others}
    else:
        changed = with_functions(inner, others)
        if changed is None or not any(_holds(cell, inner) for cell in closure or ()):
            return None
        closure = tuple(CellType(changed) if _holds(cell, inner) else cell for cell in closure)
    copy = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _holds(cell, value):
    try:
        return cell.cell_contents is value
    except ValueError:  # an empty cell
        return False


@cache
def _names(code):
    '''What code calls by name, and whether it writes to a name of its module.'''
    names, writes = {*code.co_names}, any(each.opname == 'STORE_GLOBAL' for each in dis.get_instructions(code))
    for inner in code.co_consts:
        if hasattr(inner, 'co_names'):
            more, write = _names(inner)
            names, writes = names | more, writes or write
    return names, writes


#: Types of modules whose code calls no published function, with the rows, what was found under the names that it calls,
#: and its methods.
_FREE = WeakKeyDictionary()


#: What an attribute is that code may call. The `apply` of an autograd function is the last of these.
_FUNCTIONS = (FunctionType, MethodType, partial, BuiltinMethodType)


def _is_free_of_them(rows, cls):
    known, looked_up, methods = _FREE.get(cls, (None, (), {}))
    return known is rows and all(_static(cls, name) is method() for name, method in methods.items()) and (
        all(scope.get(name) is value and registered(value) is None for scope, name, value in looked_up))


class Rewriting:
    '''The code that runs for a module, with operators in the place of published functions.

    Followed is what the forward calls of its module's own methods, and of functions of its own package.

    Parameters
    ----------
    rows: :py:class:`~zennit_attn.canonizers.published.functions.Rows`
    module: :py:class:`torch.nn.Module`
    '''
    def __init__(self, rows, module):
        self._rows, self._done, self._looked_up, self._followed = rows, {}, [], {}
        self._type, self._package = type(module), package_of(type(module))
        #: The methods that are to be replaced, by name, as functions of the module or, for published ones, of the rest.
        self.methods, self.bound = {}, {}
        #: The attributes of the instance that are to be replaced, by name.
        self.attributes = {}
        if has_own(module, 'forward') or type(module).forward is nn.Module.forward:
            return
        if not _is_free_of_them(rows, self._type):
            self._follow_method('forward')
            if not self.methods and not self.bound:
                _FREE[self._type] = rows, self._looked_up, self._followed
        for name, value in list(module.__dict__.items()):
            if isinstance(value, _FUNCTIONS) and package_of(getattr(value, 'func', value)) != 'zennit_attn':
                found = self._found(name, value)
                if found is not None:
                    self.attributes[name] = found

    def __bool__(self):
        return bool(self.methods or self.bound or self.attributes)

    def _follow_method(self, name):
        method = _static(self._type, name)
        if not isinstance(method, FunctionType) or name in self._followed or name in self.bound:
            return
        row = self._rows.find(name, method) if name != 'forward' else None
        if row is not None:
            self.bound[name] = row
            return
        self._followed[name] = ref(method)
        changed = self._rewritten(method)
        if changed is not None:
            self.methods[name] = changed

    def _rewritten(self, function):
        '''A function with others in the place of published ones, or None if it calls none.'''
        if function in self._done:
            return self._done[function]
        self._done[function] = None
        base = function
        while hasattr(base, '__wrapped__'):
            base = base.__wrapped__
        if not isinstance(base, FunctionType) or not isinstance(function, FunctionType):
            return None
        names, writes = _names(base.__code__)
        others = {}
        for name in names:
            if name in base.__globals__:
                self._looked_up.append((base.__globals__, name, base.__globals__[name]))
                found = self._found(name, base.__globals__[name])
                if found is not None:
                    others[name] = found
            elif name != 'forward' and isinstance(_static(self._type, name), FunctionType):
                self._follow_method(name)
        if others and not writes:
            self._done[function] = with_functions(function, others)
        return self._done[function]

    def _found(self, name, value):
        '''What is to be called in the place of a value that code finds under a name, or None.'''
        reference = registered(value) if callable(value) else None
        if reference is not None:
            return SimpleNamespace(apply=reference) if isinstance(value, type) else reference
        if isinstance(value, type):
            if issubclass(value, torch.autograd.Function):
                row = self._rows.find(value.__name__, value.apply)
                return None if row is None else SimpleNamespace(apply=replacement(row, value.apply))
            return None
        if not callable(value) or isinstance(value, nn.Module):
            return None
        if isinstance(value, partial):
            found = self._found(name_of(value.func), value.func)
            return None if found is None else type(value)(found, *value.args, **value.keywords)
        own = isinstance(value, FunctionType) and package_of(value) == self._package
        written = self._rewritten(value) if own else None
        row = self._rows.find(name, value)
        return written if row is None else replacement(row, value, written)


def _static(cls, name):
    for each in cls.__mro__:
        if each is nn.Module:
            return None
        if name in each.__dict__:
            return each.__dict__[name]
    return None
