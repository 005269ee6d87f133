'''A model as the methods see it: called with an input, or with values in place of what its embedding makes of it.'''
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Reader:
    '''A model that can be explained.

    Attributes
    ----------
    network: :py:class:`torch.nn.Module`
        The model. It is called with keyword arguments.
    embedding: :py:class:`torch.nn.Module`
        The module whose output carries relevance: one vector for each unit.
    argument: str
        The name of the argument that holds the input.
    select: callable
        Takes what the network returns, and returns scores of shape ``(batch, classes)``.
    constants: dict
        Further arguments of every call.
    tokenizer: object, optional
        What makes inputs of texts.
    attends: bool
        Whether the network returns its maps of attention when it is asked for ``output_attentions``.
    read: int
        The token from which the answer is read, for methods that follow attention: the first, or the last.
    '''
    network: torch.nn.Module
    embedding: torch.nn.Module
    argument: str
    select: Callable
    constants: dict = field(default_factory=dict)
    tokenizer: object = None
    attends: bool = True
    read: int = 0

    def arguments(self, input, extra):
        '''The arguments of a call, where those of one sample are repeated for a batch.'''
        extra = {name: value.expand(len(input), *value.shape[1:]) for name, value in extra.items()}
        return {self.argument: input, **extra, **self.constants}

    def scores(self, input, extra, values=None, **options):
        '''Scores of an input, or of values in place of what the embedding makes of it, and what the network returned.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`
            Of shape ``(1, ...)``.
        extra: dict
            Further arguments of the sample.
        values: :py:class:`torch.Tensor`, optional
            Of shape ``(batch, *units, features)``.
        options
            Further arguments of the network.
        '''
        if values is None:
            output = self.network(**self.arguments(input, extra), **options)
            return self.select(output), output
        with replaced(self.embedding, values):
            output = self.network(**self.arguments(input.expand(len(values), *input.shape[1:]), extra), **options)
        return self.select(output), output

    def values(self, input, extra):
        '''What the embedding makes of an input.'''
        found = []
        handle = self.embedding.register_forward_hook(lambda module, args, output: found.append(output.detach()))
        try:
            with torch.no_grad():
                self.scores(input, extra)
        finally:
            handle.remove()
        return found[0]


@contextmanager
def replaced(module, output):
    '''Put a tensor in place of what a module returns.'''
    handle = module.register_forward_hook(lambda module, args, made: output)
    try:
        yield
    finally:
        handle.remove()


def vector(reader, text):
    '''The vector of a text.'''
    ids = reader.tokenizer(text, return_tensors='pt').input_ids
    with torch.no_grad():
        return reader.scores(ids, {'other': torch.zeros(1, 1)})[1].vector
