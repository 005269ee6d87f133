'''Replacements for methods of a module that look like the methods that they replace.'''
from functools import update_wrapper
from inspect import signature
from types import MethodType
from weakref import WeakKeyDictionary, WeakSet


def like_method(module, method, replacement):
    '''Return a callable with the signature, the name and the documentation of a method of a module, and bound like it.

    Code that filters keywords by ``inspect.signature(module.forward)`` must find what is there without a context.

    Parameters
    ----------
    module: :py:class:`torch.nn.Module`
        The module.
    method: callable
        The method, or what an instance has in its place.
    replacement: callable
        Takes the same arguments.

    Returns
    -------
    callable
    '''
    if not isinstance(method, MethodType) or method.__self__ is not module:
        def function(*args, **kwargs):
            return replacement(*args, **kwargs)
        return update_wrapper(function, method)

    def forward(self, /, *args, **kwargs):
        return replacement(*args, **kwargs)
    update_wrapper(forward, method.__func__)
    found = _signature(method.__func__)
    if found is not None:
        forward.__signature__ = found
    _OURS.add(forward)
    return MethodType(forward, module)


#: The functions that stand for those of a class.
_OURS = WeakSet()


def has_own(module, name):
    '''Whether an instance has another method than its class, from somebody else.'''
    return name in module.__dict__ and getattr(module.__dict__[name], '__func__', None) not in _OURS


#: Found once for each function. Those that replace others come and go with a context.
_SIGNATURES = WeakKeyDictionary()


def _signature(function):
    if function not in _SIGNATURES:
        try:
            _SIGNATURES[function] = signature(function)
        except (TypeError, ValueError):  # of what is not written in Python
            _SIGNATURES[function] = None
    return _SIGNATURES[function]
