'''Stand-ins for kernels: functions with their names and signatures, whose code the engine cannot see.'''
import functools
import inspect

import torch

from zennit_attn.trees import items_of, tensors_of, with_items


class Hidden(torch.autograd.Function):
    '''Runs a function without a way back: what is explained must not go through it.'''
    @staticmethod
    def forward(ctx, run, *tensors):
        result = run(*(tensor.detach() for tensor in tensors))
        return tuple(each if any(each is tensor for tensor in tensors) else each.clone() for each in result)

    @staticmethod
    def backward(ctx, *grads):
        raise AssertionError('a kernel ran backward')


def hidden(reference, like=None, package=None):
    '''Return a function that computes what a reference does, in code that cannot be seen.

    Parameters
    ----------
    reference: callable
    like: callable, optional
        A function whose name, signature and package it has. Default is the reference.
    package: str, optional
        Another package.
    '''
    like = reference if like is None else like

    @functools.wraps(like)
    def kernel(*args, **kwargs):
        given = tensors_of((args, kwargs))
        shape = []

        def run(*tensors):
            tensors = iter(tensors)
            new_args, new_kwargs = _rebuilt((args, kwargs), tensors)
            shape.append(reference(*new_args, **new_kwargs))
            return tuple(tensors_of(shape[0]))
        results = iter(Hidden.apply(run, *given))
        return _rebuilt(shape[0], results)
    kernel.__module__ = package or like.__module__
    kernel.__signature__ = inspect.signature(like)
    return kernel


def _rebuilt(tree, tensors):
    if isinstance(tree, torch.Tensor):
        return next(tensors)
    items = items_of(tree)
    if items is None:
        return tree
    return with_items(tree, items, {key: _rebuilt(item, tensors) for key, item in items.items()})
