'''Explaining a model while all that relevance does is recorded.'''
from collections.abc import Mapping

import torch

from ..attribution import call_model, flat, output_relevance, plain_forward
from ..canonizers.attention import engine_of
from ..composites import as_composite
from ..errors import NoRelevance
from ..plain import copied
from ..sources import resolve
from ..trees import gathered, tensors_in
from .ledger import Audit
from .recorder import recorded


def audit(model, composite, input, attr_output=None, embedding=None, select=None, compare=True, wrt=None):
    '''Explain a model and measure where all relevance went.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    composite: :py:class:`zennit.core.Composite`, type or str
        Any composite of Zennit or of this package, its class, or its name.
    input: :py:class:`torch.Tensor`, tuple or mapping
        Input of the model, of shape [batch, ...], or its positional or keyword arguments. Those that are floating point
        are explained.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        Relevance of the output, of the output's shape, or a function of the output. Default is the output itself.
    embedding: :py:class:`torch.nn.Module`, optional
        The module of the model from whose output it is explained, in place of its input, as by
        :py:class:`~zennit_attn.attribution.TokenGradient`.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain, e.g. ``lambda output: output.logits``.
    compare: bool, optional
        Whether to run the model once more, before the context is opened, and to refuse where it computes something else
        in the context. Its state and random numbers are given back after it.
    wrt: optional
        What is explained, in place of `embedding`, as for :py:class:`~zennit_attn.attribution.Relevance`.

    Returns
    -------
    :py:class:`Audit`
        For each sample one backward pass is run, with the relevance of the other samples set to zero.

    Raises
    ------
    ChangedForward
        If the model computes something else in the context than without.
    NoRelevance
        If the input is not floating point.
    TypeError, ValueError
        If the model's output is not a tensor, or `attr_output` has not its shape.
    '''
    composite = as_composite(composite)
    input = copied(dict(input) if isinstance(input, Mapping) else input)
    if wrt is not None:
        chosen = resolve(model, input, wrt)
        input, arguments = chosen.prepared(input)
        embedding, sources = chosen.outputs, list(arguments.values())
    else:
        sources = [] if embedding is not None else _sources(model, input)
    plain = plain_forward(model, composite, input, embedding, select) if compare else None
    with composite.context(model), torch.enable_grad(), recorded(model, engine_of(model)) as recorder:
        output, leaves = call_model(model, input, embedding, select)
        if output.ndim == 0:
            raise ValueError('the output is a single number; it needs a first dimension for the samples')
        relevance = output_relevance(output, attr_output)
        found = [recorder.backward(output, [*sources, *flat(leaves)], relevance, i) for i in range(len(relevance))]
    if plain is not None:
        plain.check(output)
    found = torch.stack(found).cpu() if found else _per_sample(relevance)
    return Audit(_per_sample(relevance), found, recorder.sinks(len(relevance)), recorder.operations(),
                 recorder.functions_accepted, recorder.loops.found(), output.dtype)


def _sources(model, input):
    '''The tensors of an input that can carry relevance, from now on requiring a gradient.'''
    sources = [tensor.requires_grad_() for tensor in tensors_in(input) if tensor.is_floating_point()]
    if not sources:
        types = ', '.join(str(tensor.dtype) for tensor in tensors_in(input)) or type(input).__name__
        raise NoRelevance(f'the input of {type(model).__name__} ({types}) has no floating point tensor that could '
                          'receive relevance; explain token ids from the embedding: audit(..., embedding=module)')
    return sources


def _per_sample(relevance):
    relevance = gathered(relevance.detach()).double()
    return (relevance.flatten(1).sum(1) if relevance.ndim > 1 else relevance).cpu()
