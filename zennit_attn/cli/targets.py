'''Targets: which part of the output is explained.'''
import argparse
import re

import torch

from ..seeds import answer
from .usage import UsageError


def parse_target(text):
    '''Parse ``max``, ``last``, ``all``, indices such as ``-1,464``, or the name of a class.'''
    if re.fullmatch(r'[-\d, ]*', text) and not re.fullmatch(r'-?\d+(,-?\d+)*', text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a target: max, last, all, indices such as 3 or -1,464 '
                                         '(write --target=-1,464), or the name of a class')
    if not re.fullmatch(r'-?\d+(,-?\d+)*', text):
        return text
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


def index_of(name, labels, tokenizer=None):
    '''Return the index of a class by its name, or of a token by its text.'''
    found = [index for index, label in labels.items() if str(label).lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if tokenizer is not None and not labels:
        ids = tokenizer(name, add_special_tokens=False)['input_ids']
        if len(ids) != 1:
            raise UsageError(f'target {name!r} is {len(ids)} tokens, and not one: the first is '
                             f'{tokenizer.decode(ids[:1])!r}')
        return ids[0]
    there = ', '.join(map(str, list(labels.values())[:8])) + ', ...' * (len(labels) > 8)
    raise UsageError(f'there is no target {name!r}: write max, last, all, or indices such as 3 or -1,464'
                     + (f', or the name of a class: {there}' if labels else '; the model names no classes'))


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


def others(target, places, output):
    '''Return what each sample's target is explained against: the runner-up, or a class by its index.'''
    if places is None:
        raise UsageError('--contrast needs a target of one number, and not all of the output')
    if not all(places) or output.shape[-1] < 2:
        raise UsageError(f'--contrast needs an output of several classes, and not one of shape {tuple(output.shape)}')
    found = []
    for sample, place in zip(output.detach(), places, strict=True):
        row = sample[place[:-1]].clone()
        row[place[-1]] = -torch.inf
        found.append((*place[:-1], int(row.argmax()) if target is None else target % len(row)))
    if found == places:
        raise UsageError('--contrast names the target itself')
    return found


def relevance_of(places, against=None):
    '''Return the function of the output that keeps the target of each sample, and takes away what it is against.'''
    def keep(output):
        if places is None:
            return output
        kept = torch.zeros_like(output)
        for sign, chosen in ((1, places), (-1, against or ())):
            for sample, place in enumerate(chosen):
                kept[(sample, *place)] = sign * output.detach()[(sample, *place)]
        return kept
    return keep


def asked(places, against=None):
    '''Return the function of the output that returns the target of each sample, less what it is against.'''
    def ask(output):
        if places is None:
            return output.reshape(len(output), -1).sum(1)
        numbers = torch.stack([output[(sample, *place)] for sample, place in enumerate(places)])
        if against is None:
            return numbers
        return numbers - torch.stack([output[(sample, *place)] for sample, place in enumerate(against)])
    return ask


def describe(places, labels, against=None):
    '''Write the targets, with the names of the classes if they are known.'''
    if places is None:
        return 'all of the output'
    if not all(places):
        return 'the only number of each sample'
    def name(place):
        return f'{labels[place[-1]]} ({_write(place)})' if place[-1] in labels else _write(place)
    words = [name(place) for place in places]
    if against is not None:
        words = [f'{word} and not {name(other)}' for word, other in zip(words, against, strict=True)]
    return '; '.join(words[:3]) + ('; ...' if len(words) > 3 else '')
