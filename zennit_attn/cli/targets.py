'''Targets: which part of the output is explained.'''
import argparse
import re

import torch

from ..seeds import answer
from .usage import UsageError


def parse_target(text):
    '''Parse ``max``, ``last``, ``all`` or indices such as ``-1,464``.'''
    if text in ('max', 'last', 'all'):
        return text
    if not re.fullmatch(r'-?\d+(,-?\d+)*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a target: max, last, all, or indices such as 3 or -1,464 '
                                         '(write --target=-1,464)')
    return tuple(int(part) for part in text.split(','))


def select(name=None):
    '''Return a function that takes what a model returns and returns the tensor to explain.'''
    def pick(output):
        if name is not None:
            output = _part(output, name)
        elif not isinstance(output, torch.Tensor):
            output = answer(output)
        if not isinstance(output, torch.Tensor):
            raise UsageError(f'what is explained is a {type(output).__name__}, not a tensor; name a part of the '
                             'output by --output')
        return output
    return pick


def _part(output, name):
    if isinstance(output, (tuple, list)) and re.fullmatch(r'-?\d+', name) and -len(output) <= int(name) < len(output):
        return output[int(name)]
    if isinstance(output, dict) and name in output:
        return output[name]
    if hasattr(output, name):
        return getattr(output, name)
    there = list(output) if isinstance(output, dict) else [key for key in dir(output) if not key.startswith('_')]
    if isinstance(output, (tuple, list)):
        there = list(range(len(output)))
    raise UsageError(f'the output, a {type(output).__name__}, has no part {name!r}; it has '
                     f'{", ".join(map(str, there[:8]))}')


def indices(target, output):
    '''Return the index of the target in each sample of an output, or None if all of it is explained.'''
    shape = tuple(output.shape[1:])
    if target == 'all':
        return None
    if target == 'last' and len(shape) < 2:
        raise UsageError(f'the output has shape {tuple(output.shape)}, not (batch, ..., tokens, classes): there is no '
                         'last token; use --target max')
    if target in ('max', 'last'):
        return [_highest(sample, target) for sample in output.detach()]
    if len(target) != len(shape):
        raise UsageError(f'target {_write(target)} has {len(target)} indices, but the output has shape '
                         f'{tuple(output.shape)}: {len(shape)} are needed after the batch')
    if any(not -size <= index < size for index, size in zip(target, shape, strict=True)):
        raise UsageError(f'target {_write(target)} is out of range: the output has shape {tuple(output.shape)}')
    return [tuple(index % size for index, size in zip(target, shape, strict=True))] * len(output)


def _write(target):
    return ','.join(map(str, target))


def _highest(sample, target):
    if target == 'last':
        row = sample[..., -1, :]
        *before, index = _unravel(int(row.argmax()), row.shape)
        return (*before, sample.shape[-2] - 1, index)
    return _unravel(int(sample.argmax()), sample.shape)


def _unravel(index, shape):
    return tuple(int(part) for part in torch.unravel_index(torch.tensor(index), tuple(shape)))


def relevance_of(places):
    '''Return the function of the output that keeps the target of each sample.'''
    def keep(output):
        if places is None:
            return output
        kept = torch.zeros_like(output)
        for sample, place in enumerate(places):
            kept[(sample, *place)] = output.detach()[(sample, *place)]
        return kept
    return keep


def describe(places, labels):
    '''Write the targets, with the names of the classes if they are known.'''
    if places is None:
        return 'all of the output'
    if not all(places):
        return 'the only number of each sample'
    words = [f'{labels[place[-1]]} ({_write(place)})' if place[-1] in labels else _write(place) for place in places]
    return '; '.join(words[:3]) + ('; ...' if len(words) > 3 else '')
