'''Nested containers: walks over the arguments of functions, and over the inputs and outputs of modules.

Arguments of torch functions nest in lists, tuples and dicts; :py:func:`tensors_in` and :py:func:`substitute` are for
them, and run for every call. What modules take and return may also be dataclasses, and subclasses of all of these that
have to stay what they are; :py:func:`leaves`, :py:func:`tensors_of` and :py:func:`rebuilt` are for these.
'''
from copy import copy
from dataclasses import fields, is_dataclass

import torch


def tensors_in(*trees):
    '''Return the tensors in nested lists, tuples and dicts, in order.'''
    found = []
    for tree in trees:
        if isinstance(tree, torch.Tensor):
            found.append(tree)
        elif isinstance(tree, (list, tuple)):
            found.extend(tensors_in(*tree))
        elif isinstance(tree, dict):
            found.extend(tensors_in(*tree.values()))
    return found


def substitute(tree, function):
    '''Return new lists, tuples and dicts, nested as those given, with `function` applied to every tensor.'''
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: substitute(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [substitute(item, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, '_fields') else type(tree)(items)
    return tree


def items_of(tree):
    '''Return the parts of a container by their keys, or None for anything else.'''
    if isinstance(tree, dict):
        return dict(tree)
    if isinstance(tree, (list, tuple)):
        return dict(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return {field.name: getattr(tree, field.name, None) for field in fields(tree)}
    return None


def leaves(tree):
    '''Return what nested containers hold, in order: tensors, and whatever is no container.'''
    items = items_of(tree)
    return [tree] if items is None else [leaf for item in items.values() for leaf in leaves(item)]


def tensors_of(tree):
    '''Return the tensors in nested containers, in order.'''
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def rebuilt(tree, function):
    '''Return nested containers with `function` applied to every tensor; what does not change stays the same object.'''
    if isinstance(tree, torch.Tensor):
        return function(tree)
    items = items_of(tree) or {}
    return with_items(tree, items, {key: rebuilt(item, function) for key, item in items.items()})


def with_items(tree, items, changed):
    '''Return a container with other parts than those of :py:func:`items_of`; the same object if nothing changes.'''
    if all(changed[key] is items[key] for key in changed):
        return tree
    if isinstance(tree, tuple):
        return type(tree)(*changed.values()) if hasattr(tree, '_fields') else type(tree)(changed.values())
    return _updated(copy(tree), changed)


def _updated(container, items):
    for key, item in items.items():
        if isinstance(container, (dict, list)):
            container[key] = item
        else:
            object.__setattr__(container, key, item)
    return container


def address(tensor, shared=False):
    '''Return what tells apart where tensors are: the place of the values, and for those that consist of others, theirs.

    Parameters
    ----------
    tensor: :py:class:`torch.Tensor`
        Of any subclass, such as a quantized or a distributed one, which may have no memory of its own.
    shared: bool, optional
        Whether views of the same memory are at the same place.

    Returns
    -------
    object
        To be compared only.
    '''
    try:
        place = tensor.untyped_storage().data_ptr() if shared else tensor.data_ptr()
    except RuntimeError:  # sparse tensors, and subclasses that only stand for others
        place = 0
    if place or is_plain(tensor):
        return place
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, '__tensor_flatten__') else ()
    parts = [getattr(tensor, name) for name in names]
    return tuple(address(part, shared) for part in parts if isinstance(part, torch.Tensor)) or id(tensor)


def gathered(tensor):
    '''Return what a distributed tensor holds as a plain one, and any other as it is.'''
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def is_plain(tensor):
    '''Whether torch's own functions run on a tensor, and not those that a subclass has put in their place.'''
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
