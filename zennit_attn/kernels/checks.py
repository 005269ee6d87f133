'''What the reference modules ask of their inputs, with errors that say what was given and what is needed.'''
from importlib import import_module

import torch


def shapes(**tensors):
    '''Name the shapes of tensors for an error message.'''
    return ', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in tensors.items())


def check_heads(dim, heads):
    '''Refuse a width that can not be split evenly into heads.'''
    if heads < 1 or dim % heads:
        raise ValueError(f'dimension {dim} is not divisible by the number of heads {heads}')


def check_features(tensor, ndim, features, name='x'):
    '''Refuse a tensor that has not ``ndim`` axes with ``features`` entries along the last.'''
    if tensor.ndim != ndim or tensor.shape[-1] != features:
        raise ValueError(f'{name} has shape {tuple(tensor.shape)}, expected {ndim} axes, the last of length {features}')


def check_length(length, limit, name='sequence'):
    '''Refuse a sequence that is longer than its position table.'''
    if length > limit:
        raise ValueError(f'{name} has {length} tokens, but there are only {limit} positions')


def check_mask(mask, shape, name='mask'):
    '''Refuse a mask that is not boolean or not of ``shape``; no mask at all is fine.'''
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f'{name} has dtype {mask.dtype}, expected torch.bool (True for tokens to keep)')
    if mask.shape != shape:
        raise ValueError(f'{name} has shape {tuple(mask.shape)}, expected {tuple(shape)}')


def check_constant(function, **gates):
    '''Refuse gates that require a gradient which will not be computed.'''
    carrying = [name for name, gate in gates.items() if torch.is_grad_enabled() and gate.requires_grad]
    if carrying:
        raise ValueError(
            f'{function} takes {", ".join(gates)} as constants, but {" and ".join(carrying)} require grad: '
            f'detach them, or use {function.removesuffix("_values")} for all gradients'
        )


def optional(module, name, purpose):
    '''Import ``name`` of an optional dependency, or say how to install it.'''
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f'{purpose} need the package {module.replace("_", "-")}: pip install zennit-attn[zoo]'
        ) from error
