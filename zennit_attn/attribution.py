'''Attributors: what Zennit's do, for models whose input cannot carry relevance.'''
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from zennit.attribution import Gradient

from .canonizers.attention import AttentionCanonizer, engine_of
from .composites import as_composite
from .errors import NoRelevance
from .plain import PlainForward
from .sources import as_given, call, explained_outputs, resolve
from .trees import tensors_of


def call_model(model, input, embedding=None, select=None):
    '''Call a model that is to be explained.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    input: :py:class:`torch.Tensor`, tuple or mapping
        The model's input, or its positional or its keyword arguments.
    embedding: :py:class:`torch.nn.Module` or dict, optional
        The module of the model from whose output it is explained, which is called once; or by name modules and which of
        their calls, as the ``outputs`` of :py:class:`~zennit_attn.sources.Sources` are.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain. Default is what the model returns.

    Returns
    -------
    output: :py:class:`torch.Tensor`
        What is explained.
    leaves: dict
        By name, the tensors whose gradient is relevance, if there is an embedding.

    Raises
    ------
    NoRelevance
        If an embedding was not called, or more than once, or what is selected carries no relevance.
    TypeError
        If there is no tensor to explain.
    '''
    engine = engine_of(model)
    outputs = {'': (embedding, None)} if isinstance(embedding, torch.nn.Module) else embedding or {}
    # Inside of the forward, where what is computed of the output is explained too.
    inside = nullcontext() if engine is None else engine.selecting(select)
    with inside, explained_outputs(model, engine, outputs) as leaves:
        output = call(model, input)
    if isinstance(embedding, torch.nn.Module) and len(leaves['']) != 1:
        raise NoRelevance(f'the embedding ({type(embedding).__name__}) was called {len(leaves[""])} times in a forward '
                          'of the model; relevance can be explained from a module that is called once')
    output = select(output) if engine is None and select is not None else output
    if not isinstance(output, torch.Tensor):
        raise TypeError(f'{type(model).__name__} returns {type(output).__name__}, not a tensor; pass select, e.g. '
                        'select=lambda output: output.logits, or wrap the model in a module that returns the tensor')
    return output, leaves


def flat(leaves):
    '''Return the tensors of all names in order.'''
    return [leaf for own in leaves.values() for leaf in own]


def plain_forward(model, composite, input, embedding=None, select=None, carries=True):
    '''Run a model on which no context is open, to compare an explanation with.

    Parameters
    ----------
    model, input, embedding, select
        As for :py:func:`call_model`.
    composite: :py:class:`zennit.core.Composite`
        With what it is compared. Canonizers of others may change what a model computes a little: Zennit's merge of
        batch norms does not take their ``eps`` as it is.
    carries: bool, optional
        Whether the input requires a gradient, where there is no embedding.

    Returns
    -------
    :py:class:`~zennit_attn.plain.PlainForward`
    '''
    def run(input):
        return call_model(model, input, embedding, select)[0]
    input = dict(input) if isinstance(input, Mapping) else input
    others = [canonizer for canonizer in getattr(composite, 'canonizers', None) or ()
              if not isinstance(canonizer, AttentionCanonizer)]
    return PlainForward(model, run, input, carries and embedding is None, 1e-3 if others else 0.)


def output_relevance(output, attr_output=None):
    '''Return the relevance of an output.

    Parameters
    ----------
    output: :py:class:`torch.Tensor`
        The output.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        Its relevance, or a function of it. Default is the output itself.

    Returns
    -------
    :py:class:`torch.Tensor`
        Of the shape and type of the output.

    Raises
    ------
    TypeError
        If `attr_output` is or returns something else than a tensor, e.g. the index of a class.
    ValueError
        If `attr_output` has not the shape of the output.
    '''
    relevance = output if attr_output is None else attr_output(output) if callable(attr_output) else attr_output
    return _for_output(relevance, output).detach().to(output.dtype)


def _for_output(relevance, output):
    if not isinstance(relevance, torch.Tensor):
        index = relevance if isinstance(relevance, int) else 0
        raise TypeError(
            f'attr_output gives {type(relevance).__name__}, not a tensor of the shape of the output, '
            f'{tuple(output.shape)}; to explain index {index} of the last dimension, use zennit_attn.explain(..., '
            f'target={index}), pass select=seeds.logit({index}), or pass attr_output='
            f'lambda output: output * (torch.arange(output.shape[-1], device=output.device) == {index})')
    if relevance.shape != output.shape:
        raise ValueError(f'attr_output has shape {tuple(relevance.shape)}, but the output has {tuple(output.shape)}; '
                         'pass relevance for every element of the output, e.g. a one-hot target')
    return relevance


class Relevance(Gradient):
    '''Explain what a model is given: any of its arguments, and outputs of its modules.

    It takes the composites of Zennit's attributors and does what :py:class:`~zennit.attribution.Gradient` does for a
    model of one tensor; and it explains models with several arguments, models that take integers, and models that
    return more than a tensor.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    composite: :py:class:`~zennit.core.Composite`, type or str, optional
        The composite, its class, or its name. Default is none, for the plain gradient, as for
        :py:class:`zennit.attribution.Gradient`.
    wrt: str, :py:class:`torch.nn.Module`, or list of these, optional
        What is explained (with respect to what): names of arguments, modules or their dotted names. An argument that
        holds integers is explained at the output of the embedding that takes it. Default is every argument that is
        floating point or goes through an embedding, but masks, positions, types of tokens and labels.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        The default output attribution, as for :py:class:`zennit.attribution.Gradient`.
    create_graph, retain_graph: bool, optional
        As for :py:class:`zennit.attribution.Gradient`.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain, e.g. ``lambda output: output.logits`` or what
        :py:mod:`zennit_attn.seeds` makes. It runs as a part of the model. Default is what the model returns.
    compare: bool, optional
        Whether to run the model once more in the first call after the context was opened, without the context, and to
        refuse where it computes something else in it. Its state and random numbers are given back after it.
    '''
    def __init__(self, model, composite=None, wrt=None, attr_output=None, create_graph=False, retain_graph=None,
                 select=None, compare=True):
        composite = composite if composite is None else as_composite(composite)
        super().__init__(model, composite, attr_output, create_graph, retain_graph)
        self.wrt = wrt
        self.select = select
        self.compare = compare
        self._is_new = False
        self._found = {}

    def __enter__(self):
        '''Register the composite, if there is one.'''
        self._is_new = True
        return super().__enter__()

    def __call__(self, input, attr_output=None):
        '''Explain an input.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`, tuple or mapping
            Input of the model, or its positional or keyword arguments, e.g. what a tokenizer returns.
        attr_output: :py:class:`torch.Tensor` or callable, optional
            Relevance of what is explained, of its shape, or a function of it. Default is that of the attributor.

        Returns
        -------
        output: :py:class:`torch.Tensor`
            What is explained of the model's output.
        relevance: :py:class:`torch.Tensor` or dict
            Of the shape of what is explained: a tensor for a model of one tensor and where `wrt` is one name, else by
            name. A module that is called several times has a tuple, with a tensor for each call.

        Raises
        ------
        ChangedForward
            If the model computes something else in the context than without.
        NoRelevance
            If nothing that is explained can carry relevance.
        TypeError
            If there is no tensor to explain, or `attr_output` is none.
        ValueError
            If there is no argument and no module of a name in `wrt`.
        '''
        return super().__call__(input, attr_output)

    def sources(self, input):
        '''Find what is explained of an input.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`, tuple or mapping
            The input.

        Returns
        -------
        :py:class:`~zennit_attn.sources.Sources`
        '''
        names = input if isinstance(input, Mapping) else ()
        key = (*names, *(tensor.dtype for tensor in tensors_of(as_given(input))))
        if key not in self._found:
            self._found[key] = resolve(self.model, input, self.wrt, self._outside)
        return self._found[key]

    def forward(self, input, attr_output_fn):
        '''Compute the relevance; called by :py:meth:`__call__`.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`, tuple or mapping
            The input.
        attr_output_fn: callable
            The function of the output that gives its relevance.

        Returns
        -------
        output, relevance
            As for :py:meth:`__call__`.
        '''
        sources = self.sources(input)
        given, arguments = sources.prepared(input)
        plain = self._plain_forward(given, sources.outputs)
        with torch.enable_grad():
            output, outputs = call_model(self.model, given, sources.outputs, self.select)
            leaves = {**{name: [leaf] for name, leaf in arguments.items()}, **outputs}
            found = torch.autograd.grad(
                (output,), flat(leaves), grad_outputs=(_for_output(attr_output_fn(output), output),),
                create_graph=self.create_graph, retain_graph=self.retain_graph, allow_unused=True,
                materialize_grads=True,
            )
        self._check(plain, output)
        each = iter(found)
        relevance = {name: tuple(next(each) for _ in own) for name, own in leaves.items()}
        relevance = {name: maps[0] if len(maps) == 1 else maps for name, maps in relevance.items()}
        relevance = {name: maps.transpose(0, 1) if name in sources.turned else maps for name, maps in relevance.items()}
        return output, next(iter(relevance.values())) if sources.alone else relevance

    def _plain_forward(self, input, outputs):
        '''The forward without a context, once for each context that was opened here, and that nobody watches.'''
        is_new, self._is_new = self._is_new, False
        engine = engine_of(self.model)
        if not (self.compare and is_new and self.composite is not None) or (engine is not None and engine.observer):
            return None
        with self._outside():
            return plain_forward(self.model, self.composite, input, outputs or None, self.select)

    def _check(self, plain, output):
        if plain is not None and (plain.error is not None or plain.difference(output) is not None):
            with self._outside():
                plain.check(output)

    @contextmanager
    def _outside(self):
        '''Close the context for a while, if one is open.'''
        if self.composite is None or engine_of(self.model) is None:
            yield
            return
        self.composite.remove()
        try:
            yield
        finally:
            self.composite.register(self.model)


class TokenGradient(Relevance):
    '''Explain a token model from the output of its embedding.

    The gradient, and with a composite the relevance, is that of the embedding's output: one vector per token, whose sum
    is the relevance of the token.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model. It is called with the input as it is, e.g. token ids of shape [batch, tokens].
    embedding: :py:class:`torch.nn.Module`
        The module of the model whose output is explained, called once in a forward.
    composite, attr_output, create_graph, retain_graph, select, compare
        As for :py:class:`Relevance`.

    Raises
    ------
    ValueError
        If `embedding` is not a part of `model`.
    '''
    def __init__(self, model, embedding, composite=None, attr_output=None, create_graph=False, retain_graph=None,
                 select=None, compare=True):
        if not any(embedding is module for module in model.modules()):
            raise ValueError(f'the embedding ({type(embedding).__name__}) is not a module of {type(model).__name__}')
        super().__init__(model, composite, embedding, attr_output, create_graph, retain_graph, select, compare)
        self.embedding = embedding

    def forward(self, input, attr_output_fn):
        '''Compute the relevance of the embedding's output.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`, tuple or mapping
            Input of the model, e.g. token ids of shape [batch, tokens], or its positional or keyword arguments, e.g.
            what a tokenizer returns.
        attr_output_fn: callable
            The function of the output that gives its relevance.

        Returns
        -------
        output: :py:class:`torch.Tensor`
            What is explained of the model's output.
        relevance: :py:class:`torch.Tensor`
            Relevance of the embedding's output, of its shape, e.g. [batch, tokens, features].

        Raises
        ------
        ChangedForward
            If the model computes something else in the context than without.
        NoRelevance
            If the embedding was not called exactly once.
        TypeError
            If there is no tensor to explain.
        '''
        output, relevance = super().forward(input, attr_output_fn)
        if isinstance(relevance, tuple):
            raise NoRelevance(f'the embedding ({type(self.embedding).__name__}) was called {len(relevance)} times in a '
                              'forward of the model; Relevance(model, composite, embedding) has a map for each call')
        return output, relevance
