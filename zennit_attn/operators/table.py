'''The one table: every function that a rule is known for, and what is known of it.'''
import inspect
from dataclasses import fields
from functools import cache

import torch
from torch.nn import functional
from torch.overrides import resolve_name

from .facts import ROWS
from .kinds import PRODUCTS, Kind, Operator
from .names import WORDS

#: What :py:func:`register_operator` may be told of a function, beside its kind.
FACTS = tuple(field.name for field in fields(Operator) if field.name not in ('name', 'kind', 'direct', 'mixes'))

_BY_NAME = {name: facts for names, facts in ROWS for name in names if isinstance(name, str)}
_BY_FUNCTION = {name: facts for names, facts in ROWS for name in names if callable(name)}
#: The rows by function. A function of torch is entered when it is first looked up, by its name.
TABLE = {function: Operator(function.__name__, **facts) for function, facts in _BY_FUNCTION.items()}
#: The kinds of all functions of torch by base name.
KINDS = {name: kind for kind, words in WORDS.items() for name in words.split()} | {
    name: facts['kind'] for name, facts in _BY_NAME.items()}
#: The same as words by kind.
NAMES = {kind: ' '.join(name for name, own in KINDS.items() if own is kind)
         for kind in Kind if kind is not Kind.REFUSED}

#: What has another name in ATen, where the name is that of something else in torch: ``Tensor.__index__``.
_OF_ATEN = {'index': 'getitem'}


def base_name(dotted):
    '''Reduce a dotted function name to the name used in the table, e.g. ``torch.Tensor.__radd__`` to ``radd``.'''
    parts = [part for part in dotted.split('.') if part not in ('__get__', '__set__', '__delete__')]
    name = parts[-1]
    return name.strip('_') if name.startswith('_') else name.removesuffix('_')


def _is_inplace(dotted):
    name = dotted.split('.')[-1]
    dunder = ('__setitem__', '__iadd__', '__isub__', '__imul__', '__itruediv__', '__idiv__', '__ipow__',
              '__ifloordiv__')
    return name in dunder or (name.endswith('_') and not name.startswith('_'))


def _flag(function):
    '''The position of an argument that says whether a function writes into its first, or None.'''
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtin functions say nothing of their arguments
        return None
    return names.index('inplace') if 'inplace' in names else None


@cache
def _row(name, inplace, flag):
    facts = _BY_NAME.get(name) or {'kind': KINDS.get(name, Kind.REFUSED)}
    return Operator(name, inplace=inplace, flag=flag, **facts)


def _entry(function, dotted):
    if dotted.endswith(('__set__', '__delete__')):
        return Operator(dotted, Kind.REFUSED)
    return _row(base_name(dotted), _is_inplace(dotted), _flag(function) if inspect.isfunction(function) else None)


def dotted_name(function):
    '''Return the full name of a torch function, or None for a function from elsewhere.'''
    if isinstance(function, torch._ops.OpOverload):  # what graphs call that torch.export or make_fx have made
        function = function.overloadpacket
    if isinstance(function, torch._ops.OpOverloadPacket):
        space, name = str(function).split('.')
        return f'torch.ops.aten.{_OF_ATEN.get(name, name)}' if space == 'aten' else None
    owner = getattr(function, '__objclass__', None)
    module = getattr(owner, '__module__', None) or getattr(function, '__module__', None) or ''
    name = getattr(function, '__name__', None)
    return resolve_name(function) or (f'{module}.{name}' if module.split('.')[0] == 'torch' and name else None)


def lookup(function):
    '''Return the row of a function, or None when the table has none.

    Parameters
    ----------
    function: callable
        A function as :py:class:`torch.overrides.TorchFunctionMode` receives it.

    Returns
    -------
    :py:class:`Operator` or None
    '''
    entry = TABLE.get(function)
    if entry is None:
        dotted = dotted_name(function)
        if dotted is not None:
            entry = TABLE[function] = _entry(function, dotted)
    return entry


def register_operator(function, kind, inplace=False, **facts):
    '''Teach the table a function: its row.

    Parameters
    ----------
    function: callable
        A function that dispatches to :py:class:`torch.overrides.TorchFunctionMode`: one of torch, one of
        ``torch.ops``, or one written with :py:func:`torch.overrides.wrap_torch_function`.
    kind: :py:class:`Kind` or str
        What it does to relevance.
    inplace: bool, optional
        Whether it writes into its first argument.
    factors: tuple of int, optional
        The positions of the factors of a product, if not all operands are: ``(1, 2)`` for ``addmm``.
    steered: tuple of int, optional
        The positions of operands that steer the others and are viewed as constants, where the function is linear in
        the rest: ``(1,)`` for the grid of ``grid_sample``.
    affine: bool, optional
        Whether the function can add a constant, such as a bias. The ledger then books it as a sink.
    signature: str or tuple of str, optional
        The names of the first positional arguments, where operands may be given by keyword.
    **facts
        The other facts of an :py:class:`Operator`, by name.

    Raises
    ------
    TypeError
        If `function` is not callable, or there is no such fact.
    ValueError
        If `kind` is not the name of a kind, or a fact does not go with it.

    Examples
    --------
    A sampling that is linear in the image, with positions that depend on the input too:

    >>> register_operator(torch.ops.torchvision.roi_align, 'linear', steered=(1,))
    '''
    if not callable(function):
        raise TypeError(f'register_operator needs a function, got {type(function).__name__}')
    unknown = [name for name in facts if name not in FACTS]
    if unknown:
        raise TypeError(f'register_operator knows no fact {unknown[0]!r}; there are {", ".join(FACTS)}')
    kind = Kind(kind)
    for name in ('factors', 'steered', 'linear_outputs', 'decomposed_by'):
        if name in facts:
            facts[name] = _positions(name, facts[name])
    if facts.get('steered') and kind not in PRODUCTS:
        kinds = ', '.join(repr(kind.value) for kind in Kind if kind in PRODUCTS)
        raise ValueError(f'steered operands are those of a function that is linear in the others: its kind is one of '
                         f'{kinds}, not {kind.value!r}')
    if 'signature' in facts:
        names = facts['signature']
        facts['signature'] = tuple(names.split() if isinstance(names, str) else names)
    TABLE[function] = Operator(getattr(function, '__name__', str(function)), kind, inplace, **facts)


def _positions(name, value):
    positions = (value,) if isinstance(value, int) else value
    if not isinstance(positions, range) and not all(isinstance(position, int) for position in positions):
        raise ValueError(f'{name} are positions of arguments, counted from 0, got {value!r}')
    return positions if isinstance(positions, range) else tuple(positions)


def out_of_place(function, name):
    '''Return the function that computes the same as the in-place `function` without writing into its argument.'''
    if isinstance(function, torch._ops.OpOverload):
        return getattr(torch.ops.aten, name)
    owners = (torch.Tensor, torch)
    if 'functional' in (resolve_name(function) or ''):
        owners = (functional, *owners)
    dunders = {'iadd': 'add', 'isub': 'sub', 'imul': 'mul', 'itruediv': 'div', 'idiv': 'div', 'ipow': 'pow',
               'ifloordiv': 'floor_divide'}
    return next(getattr(owner, dunders.get(name, name)) for owner in owners if hasattr(owner, dunders.get(name, name)))
