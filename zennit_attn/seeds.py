'''Seeds: what is asked of the output of a model, as functions that run as a part of it.

Each returns a function for ``target`` of :py:func:`~zennit_attn.explanation.explain`, or for ``select`` of
:py:class:`~zennit_attn.attribution.Relevance` and :py:func:`~zennit_attn.conservation.audit`. It takes what the model
returns and returns one number for each sample, of shape [batch]. Because it runs inside of the model, a difference of
two logits is explained as a difference.

The logits are the tensor that the model returns, or its ``logits``: of shape [batch, classes], or [batch, tokens,
classes], of which one token is asked, the last by default. :py:func:`~zennit_attn.explanation.explain` takes the last
one that is no padding.
'''
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

#: Where models with outputs of several parts keep what is explained, in this order.
PARTS = ('logits', 'out', 'last_hidden_state', 'sample', 'prediction_logits')


def part_named(name, output):
    '''Return a part of what a model returns by its name, or None.

    Parameters
    ----------
    name: str
    output: object

    Returns
    -------
    object
    '''
    return output.get(name) if isinstance(output, dict) else getattr(output, name, None)


def answer(output):
    '''Return what a model answers: the tensor that it returns, or the likely one of the parts that it returns.

    Parameters
    ----------
    output: :py:class:`torch.Tensor`, tuple, mapping or object
        What a model returns.

    Returns
    -------
    object
        A tensor, if there is one under one of the usual names.
    '''
    if isinstance(output, torch.Tensor):
        return output
    for name in PARTS:
        part = part_named(name, output)
        if isinstance(part, torch.Tensor):
            return part
    return output[0] if isinstance(output, (tuple, list)) and output else output


def logits_of(output, position=None):
    '''Return the logits of each sample.

    Parameters
    ----------
    output: object
        What a model returns.
    position: int or :py:class:`torch.Tensor`, optional
        Of which token, where there are logits for each, or of which one in each sample, of shape [batch]. Default is
        the last.

    Returns
    -------
    :py:class:`torch.Tensor`
        Of shape [batch, classes].

    Raises
    ------
    TypeError
        If there is no tensor of which to ask.
    ValueError
        If the tensor has another shape.
    '''
    logits = answer(output)
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f'the output, a {type(output).__name__}, has no part with logits ({", ".join(PARTS)}); pass a '
                        'function of the output that returns one number for each sample')
    if logits.ndim == 1:
        return logits[:, None]
    if logits.ndim == 3:
        if isinstance(position, torch.Tensor):
            return logits[torch.arange(len(logits), device=logits.device), position.to(logits.device)]
        return logits[:, -1 if position is None else position]
    if logits.ndim != 2:
        raise ValueError(f'the output has shape {tuple(logits.shape)}, and logits have [batch, classes] or [batch, '
                         'tokens, classes]; pass a function of the output that returns one number for each sample')
    return logits


def _picked(logits, index=None):
    '''One logit of each sample, by default the largest.'''
    if isinstance(index, str):
        raise TypeError(f'seeds take the index of a class, and {index!r} is a name: model.config.label2id has its '
                        'index, or pass the name itself as target')
    index = torch.as_tensor(logits.detach().argmax(1) if index is None else index, device=logits.device)
    index = index.expand(len(logits)) if index.ndim == 0 else index
    classes = logits.shape[1]
    fits = index.shape == (len(logits),) and not index.is_floating_point()
    if not fits or not ((-classes <= index) & (index < classes)).all():
        raise ValueError(f'target {index.tolist()} does not fit {classes} classes and {len(logits)} samples; it takes '
                         'the index of a class, or an integer for each sample (of one-hot rows their argmax(1))')
    return logits.gather(1, (index % classes)[:, None])[:, 0]


@dataclass(frozen=True)
class Seed:
    '''What is asked of the logits of each sample.

    Attributes
    ----------
    name: str
        What it is, in a word or two.
    ask: callable
        Takes logits of shape [batch, classes], and returns one number for each sample, of shape [batch].
    position: int, :py:class:`torch.Tensor` or None
        Of which token, where there are logits for each: one for all samples, or one for each, of shape [batch]. None is
        the last token.
    '''
    name: str
    ask: Callable
    position: object = None

    def __call__(self, output):
        '''Return what is asked.

        Parameters
        ----------
        output: object
            What a model returns.

        Returns
        -------
        :py:class:`torch.Tensor`
            Of shape [batch].
        '''
        return self.ask(logits_of(output, self.position))

    def at(self, position):
        '''Return the same question about another token.

        Parameters
        ----------
        position: int or :py:class:`torch.Tensor`
            Of which token, for all samples, or for each, of shape [batch].

        Returns
        -------
        :py:class:`Seed`
        '''
        return replace(self, position=position)


def logit(index, position=None):
    r'''The logit of a class, :math:`z_c`.

    Parameters
    ----------
    index: int or :py:class:`torch.Tensor`
        The class, or one for each sample, of shape [batch].
    position: int or :py:class:`torch.Tensor`, optional
        Of which token, where there are logits for each. Default is the last.

    Returns
    -------
    :py:class:`Seed`
    '''
    return Seed('logit', lambda logits: _picked(logits, index), position)


def predicted(position=None):
    r'''The largest logit of each sample, :math:`\max_c z_c`.

    Parameters
    ----------
    position: int or :py:class:`torch.Tensor`, optional
        Of which token, where there are logits for each. Default is the last.

    Returns
    -------
    :py:class:`Seed`
    '''
    return Seed('predicted', _picked, position)


def contrast(index=None, other=None, position=None):
    r'''A logit less another, :math:`z_c - z_d`: why this one and not that one?

    Parameters
    ----------
    index: int or :py:class:`torch.Tensor`, optional
        The class, or one for each sample. Default is the one with the largest logit.
    other: int, :py:class:`torch.Tensor` or ``'mean'``, optional
        The other class, or the mean of all others. Default is the one with the largest logit of all others.
    position: int or :py:class:`torch.Tensor`, optional
        Of which token, where there are logits for each. Default is the last.

    Returns
    -------
    :py:class:`Seed`
    '''
    def ask(logits):
        first = logits.detach().argmax(1) if index is None else index
        mine = _picked(logits, first)
        if isinstance(other, str) and other == 'mean':
            return mine - (logits.sum(1) - mine) / (logits.shape[1] - 1)
        if other is not None:
            return mine - _picked(logits, other)
        rest = logits.detach().clone()
        rest.scatter_(1, torch.as_tensor(first, device=rest.device).expand(len(rest))[:, None], -torch.inf)
        return mine - _picked(logits, rest.argmax(1))
    return Seed('contrast', ask, position)


def log_probability(index=None, position=None):
    r'''The logarithm of a probability, :math:`z_c - \ln \sum_d e^{z_d}`. The sum is a gate, and so a constant.

    Parameters
    ----------
    index: int or :py:class:`torch.Tensor`, optional
        The class, or one for each sample. Default is the one with the largest logit.
    position: int or :py:class:`torch.Tensor`, optional
        Of which token, where there are logits for each. Default is the last.

    Returns
    -------
    :py:class:`Seed`
    '''
    return Seed('log_probability', lambda logits: _picked(logits, index) - logits.logsumexp(1), position)


def similarity_to(vector, pool=None):
    r'''The cosine of the embedding of each sample and a given vector, :math:`\sum_i a_i b_i / (|a| |b|)`, as of two
    texts that go through one encoder one after the other.

    Parameters
    ----------
    vector: :py:class:`torch.Tensor`
        Of shape [features], or one for each sample, of shape [batch, features].
    pool: callable, optional
        Takes what the model returns, and returns an embedding for each sample, of shape [batch, features]. Default is
        the ``pooler_output`` or the tensor of such a shape that it returns.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If there is no embedding of such a shape.
    '''
    def pooled(output):
        part = part_named('pooler_output', output)
        return answer(output) if part is None else part

    def similarity_to(output):
        found = (pool or pooled)(output)
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or found.shape[1] != vector.shape[-1]:
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise ValueError(f'the embedding is {shape}, and the vector has {vector.shape[-1]} features; pass pool, '
                             'e.g. pool=lambda output: output.last_hidden_state.mean(1)')
        other = vector.detach() / vector.detach().norm(dim=-1, keepdim=True)
        return (found / found.norm(dim=-1, keepdim=True) * other).sum(-1)
    return similarity_to


def similarity(one='image_embeds', other='text_embeds'):
    r'''The cosine of two embeddings that a model returns, :math:`\sum_i a_i b_i / (|a| |b|)`, of sample by sample.

    Parameters
    ----------
    one, other: str or int
        The names of the parts of the output, or their places.

    Returns
    -------
    callable
    '''
    def part(output, name):
        found = output[name] if isinstance(output, (tuple, list)) else part_named(name, output)
        if not isinstance(found, torch.Tensor):
            raise ValueError(f'the output, a {type(output).__name__}, has no embedding {name!r}; name its parts, as in '
                             "seeds.similarity('image_embeds', 'text_embeds')")
        return found / found.norm(dim=-1, keepdim=True)
    return lambda output: (part(output, one) * part(output, other)).sum(-1)
