'''Replacements for methods of a module that look like the methods that they replace.'''
from functools import cache, update_wrapper
from inspect import signature
from types import MethodType


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
    return MethodType(forward, module)


@cache
def _signature(function):
    try:
        return signature(function)
    except (TypeError, ValueError):  # of what is not written in Python
        return None
