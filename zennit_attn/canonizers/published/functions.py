'''What is known of published functions: by what name they are called, and what runs in their place.'''
import inspect
import re
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from ...trees import substitute, tensors_of

#: Packages whose functions are what their names say. Those of others may have other parameters, and are compared with
#: what replaces them.
PACKAGES = frozenset({
    'transformers', 'fla', 'mamba_ssm', 'causal_conv1d', 'xlstm', 'mlstm_kernels', 'flash_attn', 'flash_attn_interface',
    'xformers', 'liger_kernel',
})
#: Keywords that change how a function computes, and not what.
HOW = frozenset({
    'autocast_kernel_dtype', 'autotune_interval', 'backend', 'checkpoint_level', 'chunk_indices', 'chunk_size',
    'cu_seqlens_cpu', 'disable_recompute', 'dtype_state', 'enable_logging', 'max_num_seqs', 'mlstm_chunkwise_kernel',
    'mlstm_sequence_kernel', 'mlstm_step_kernel', 'output_attentions', 'residual_in_fp32', 'safe_gate',
    'use_associative_scan', 'use_graph', 'use_mambapy',
})


class Published(NamedTuple):
    '''A function of published code, of which there are several that compute the same, some in kernels.

    Attributes
    ----------
    pattern: str
        A regular expression for its whole name.
    needs: frozenset of str
        Names that its arguments have.
    run: callable
        Takes its arguments by name and returns what it returns, from operators that can be followed, or
        NotImplemented. Its own parameters are in the order of the published ones. What it writes in place it returns
        too, see `writes`.
    aliases: dict
        Other names of arguments, by those that `run` has.
    writes: tuple of str
        The arguments that the function writes in place: `run` returns a pair of its result and of these.
    packages: frozenset of str
        The only packages in which the name means this function. Default is any.
    '''
    pattern: str
    needs: frozenset
    run: Callable
    aliases: dict = {}  # to which nobody writes
    writes: tuple = ()
    packages: frozenset = frozenset()


#: What users have said stands for functions.
_REGISTERED = WeakKeyDictionary()


def register_kernel(kernel, reference):
    '''Say what code stands for a kernel, or for any function whose code cannot be seen, while a model is explained.

    It runs wherever the forward of a module finds the kernel: under a name of its code's module, in its methods, in
    functions of its package, or as an attribute. Predictions outside of contexts still run the kernel.

    Parameters
    ----------
    kernel: callable or type
        The function, or a class of :py:class:`torch.autograd.Function`, whose ``apply`` the code calls.
    reference: callable
        Takes the same arguments and returns the same, computed by functions of torch.

    Raises
    ------
    TypeError
        If one of them is not callable.

    Examples
    --------
    >>> register_kernel(my_package.fused_norm, lambda x, weight: torch.nn.functional.rms_norm(x, x.shape[-1:], weight))
    '''
    for name, value in (('kernel', kernel), ('reference', reference)):
        if not callable(value):
            raise TypeError(f'register_kernel needs functions, but the {name} is a {type(value).__name__}')
    _REGISTERED[kernel] = reference


def registered(value):
    '''What a user has said stands for a function, or None.'''
    try:
        return _REGISTERED.get(value)
    except TypeError:  # what nobody can watch, or compare
        return None


def name_of(function):
    '''The name of a function, or that of an autograd function whose ``apply`` it is.'''
    owner = getattr(function, '__self__', None)
    if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
        return owner.__name__
    return getattr(function, '__name__', '')


def package_of(function):
    '''The package that a function is from.'''
    owner = getattr(function, '__self__', function)
    return (getattr(owner, '__module__', None) or '').split('.')[0]


@cache
def _named(rows, *names):
    '''The rows whose pattern is one of the names.'''
    return [row for row in rows if any(re.fullmatch(row.pattern, name) for name in names)]


class Rows(tuple):
    '''Rows of published functions, compared by identity.'''
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def find(self, name, function):
        '''The row of what code calls by a name, or None.'''
        for row in _named(self, name, name_of(function)):
            package = package_of(function)
            if row.packages and package not in row.packages:
                continue
            if package not in PACKAGES or row.needs <= _names(row, function):
                return row
        return None


def parameters_of(function):
    '''The parameters of a function by name, or None if that can not be told.'''
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of what is not written in Python
        return None


def _names(row, function):
    '''The names of the arguments of a function, of which one that is not written in Python says nothing.'''
    return {row.aliases.get(name, name) for name in parameters_of(function) or ()}


def _arguments(row, function, args, kwargs):
    '''What a call gives by name, with all defaults, or None if that can not be told or changes what is computed.'''
    alike = bool(row.needs) and row.needs <= _names(row, function)
    signature = inspect.signature(function if alike else row.run)
    if not alike:
        kwargs = {row.aliases.get(name, name): value for name, value in kwargs.items()}
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    given = dict(bound.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(name))
    given = {row.aliases.get(name, name): value for name, value in given.items()}
    if given.get('head_first'):  # which older releases have by default
        return None
    known = inspect.signature(row.run).parameters
    others = [name for name in given if name not in known]
    defaults = {row.aliases.get(name, name): each.default for name, each in signature.parameters.items()}
    if any(name not in HOW and given[name] is not defaults.get(name) and given[name] not in (None, False)
           for name in others):
        return None
    return {name: value for name, value in given.items() if name in known}


def replacement(row, function, otherwise=None):
    '''Return what is called in the place of a published function.

    Where it turns out to be another, it runs itself, or what is given as the same code with operators in it.
    '''
    return partial(_run, row, function, otherwise or function)


#: What functions return, of those that were compared with what replaces them: by function, and by how it is called.
_COMPARED = WeakKeyDictionary()


def _run(row, function, otherwise, *args, **kwargs):
    given = _arguments(row, function, args, kwargs)
    if given is None:
        return otherwise(*args, **kwargs)
    double = any(tensor.dtype is torch.float64 for tensor in tensors_of(given))
    known, settings = package_of(function) in PACKAGES, _settings(given)
    forms = {} if known else _forms_of(function)
    form = forms.get(settings)
    checked = double or not known and form is None
    copies = copied((args, kwargs)) if checked else None
    try:
        result = row.run(**given)
    except (ValueError, TypeError, RuntimeError, IndexError):
        if known:
            raise
        result = NotImplemented  # another function of the same name
    if result is NotImplemented:
        return otherwise(*args, **kwargs)
    others = _published(row, function, copies) if checked else None
    if others is not None:
        if not _agree(result, others):
            return otherwise(*args, **kwargs)
        form = substitute(others, lambda _: TENSOR)
        if not known:
            forms[settings] = form
    if form is not None:  # what is not from a package may return the output alone
        result = _in_form(form, iter(tensors_of(result)))
    if double and others is not None and _rounds(function):
        result = exact(result, others)
    if not row.writes:
        return result
    result, written = result
    for tensor, value in zip((given[name] for name in row.writes), written, strict=True):
        tensor.copy_(value.to(tensor.dtype))
    return result


class _Tensor:
    '''Stands for a tensor in what a function returns.'''


TENSOR = _Tensor()


def _forms_of(function):
    try:
        return _COMPARED.setdefault(function, {})
    except TypeError:  # what nobody can watch is compared each time
        return {}


def _in_form(form, tensors):
    if form is TENSOR:
        return next(tensors)
    if isinstance(form, dict):
        return {key: _in_form(item, tensors) for key, item in form.items()}
    return type(form)(_in_form(item, tensors) for item in form) if isinstance(form, (list, tuple)) else form


def _settings(given):
    '''How a function is called: what it is given beside tensors, and which of these.'''
    return tuple((name, value.ndim if isinstance(value, torch.Tensor) else repr(value)) for name, value in given.items()
                 if not isinstance(value, (list, tuple, dict)))


def _published(row, function, copies):
    '''What a function itself returns, or None if it is a kernel that does not run here.'''
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            others = function(*copies[0], **copies[1])
    except (RuntimeError, AssertionError, TypeError, ValueError):
        if package_of(function) in PACKAGES:
            return None
        raise
    if not row.writes:
        return others
    given = _arguments(row, function, *copies)
    return others, tuple(given[name] for name in row.writes)


#: How much an operator may differ from a function, of the largest value. Functions compute in float32 at most.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4}


def _agree(ours, theirs):
    pairs = list(zip(tensors_of(ours), tensors_of(theirs), strict=False))
    if len(tensors_of(ours)) != len(tensors_of(theirs)) or any(a.shape != b.shape for a, b in pairs):
        return False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return all(bool((a.double() - b.double()).abs().max() <= _ROUNDING.get(b.dtype, 0.02) * b.double().abs().max())
                   for a, b in pairs if b.numel())


def exact(ours, theirs):
    '''Outputs of operators as published functions have them, which may compute in float32 whatever they are given.

    In a model in float64 what they round off is added, as a constant: its output is the model's own to the last digits.
    Where nothing was, nothing is added: a normalized zero of a reference would be as large as any other.
    '''
    if isinstance(ours, torch.Tensor):
        if _differ_least(ours, theirs):
            return ours
        return ours + (theirs - ours.detach()).to(ours.dtype)
    if isinstance(ours, (tuple, list)):
        return type(ours)(exact(one, other) for one, other in zip(ours, theirs, strict=True))
    return ours


def _differ_least(ours, theirs):
    with torch.no_grad(), torch._C.DisableTorchFunction():
        return not theirs.numel() or bool((ours - theirs).abs().max() <= 1e-12 * theirs.abs().max())


def _rounds(function):
    '''Whether a function may round. A test says that none does, to see that the operators are what they stand for.'''
    return True


def copied(tree):
    '''Return new lists, tuples and dicts with copies of the tensors, which carry nothing.'''
    return substitute(tree, lambda tensor: tensor.detach().clone())
