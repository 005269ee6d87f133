'''Attributors: what Zennit's do, for models whose input cannot carry relevance.'''
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from zennit.attribution import Gradient

from .canonizers.attention import AttentionCanonizer, engine_of
from .errors import NoRelevance
from .plain import PlainForward


@contextmanager
def explained_output(model, module):
    '''Explain a model from the output of one of its modules, in place of its input.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, with or without an open context.
    module: :py:class:`torch.nn.Module`
        The part of the model whose output is explained, e.g. an embedding. It must be called once.

    Yields
    ------
    list of :py:class:`torch.Tensor`
        After the model was called: the leaf that took the place of the output, whose gradient is its relevance.
    '''
    leaves, called, engine = [], [], engine_of(model)
    source = nullcontext() if engine is None else engine.explaining_from(module)
    if isinstance(module, type(model)) and module is model:
        raise NoRelevance(f'{type(model).__name__} is the model itself; name the embedding inside')

    def take(module, args, output):
        called.append(module)
        if not isinstance(output, torch.Tensor):
            raise NoRelevance(f'{type(module).__name__} returns {type(output).__name__}, and a model can be explained '
                              'from a tensor; name the embedding inside')
        with torch._C.DisableTorchFunction():
            leaves.append(output.detach().requires_grad_())
            return leaves[-1] if engine is None or not engine.running else engine.forward.start(
                leaves[-1], module, args)

    handle = module.register_forward_hook(take)
    try:
        with source:
            yield leaves
    except NoRelevance as error:
        if called:
            raise
        raise NoRelevance(f'{type(module).__name__}, from whose output the model was to be explained, was not called '
                          'in its forward; name a module that is') from error
    finally:
        handle.remove()


def call_model(model, input, embedding=None, select=None):
    '''Call a model that is to be explained.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    input: :py:class:`torch.Tensor`, tuple or mapping
        The model's input, or its positional or its keyword arguments.
    embedding: :py:class:`torch.nn.Module`, optional
        The module of the model from whose output it is explained.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain. Default is what the model returns.

    Returns
    -------
    output: :py:class:`torch.Tensor`
        What is explained.
    leaves: list of :py:class:`torch.Tensor`
        The tensors whose gradient is relevance, if there is an embedding.

    Raises
    ------
    NoRelevance
        If the embedding was not called exactly once, or what is selected carries no relevance.
    TypeError
        If there is no tensor to explain.
    '''
    kwargs = dict(input) if isinstance(input, Mapping) else {}
    args = () if isinstance(input, Mapping) else input if isinstance(input, tuple) else (input,)
    engine = engine_of(model)
    # Inside of the forward, where what is computed of the output is explained too.
    inside = nullcontext() if engine is None else engine.selecting(select)
    with inside, nullcontext([]) if embedding is None else explained_output(model, embedding) as leaves:
        output = model(*args, **kwargs)
    if embedding is not None and len(leaves) != 1:
        raise NoRelevance(f'the embedding ({type(embedding).__name__}) was called {len(leaves)} times in a forward '
                          'of the model; relevance can be explained from a module that is called once')
    output = select(output) if engine is None and select is not None else output
    if not isinstance(output, torch.Tensor):
        raise TypeError(f'{type(model).__name__} returns {type(output).__name__}, not a tensor; pass select, e.g. '
                        'select=lambda output: output.logits, or wrap the model in a module that returns the tensor')
    return output, leaves


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
    def call(input):
        return call_model(model, input, embedding, select)[0]
    input = dict(input) if isinstance(input, Mapping) else input
    others = [canonizer for canonizer in getattr(composite, 'canonizers', None) or ()
              if not isinstance(canonizer, AttentionCanonizer)]
    return PlainForward(model, call, input, carries and embedding is None, 1e-3 if others else 0.)


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
    ValueError
        If `attr_output` has not the shape of the output.
    '''
    relevance = output if attr_output is None else attr_output(output) if callable(attr_output) else attr_output
    if relevance.shape != output.shape:
        raise ValueError(f'attr_output has shape {tuple(relevance.shape)}, but the output has {tuple(output.shape)}; '
                         'pass relevance for every element of the output, e.g. a one-hot target')
    return relevance.detach().to(output.dtype)


class TokenGradient(Gradient):
    '''Explain a token model from the output of its embedding.

    The gradient, and with a composite the relevance, is that of the embedding's output: one vector per token, whose sum
    is the relevance of the token.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model. It is called with the input as it is, e.g. token ids of shape [batch, tokens].
    embedding: :py:class:`torch.nn.Module`
        The module of the model whose output is explained, called once in a forward.
    composite: :py:class:`~zennit.core.Composite`, optional
        The composite, as for :py:class:`zennit.attribution.Gradient`.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        The default output attribution, as for :py:class:`zennit.attribution.Gradient`.
    create_graph, retain_graph: bool, optional
        As for :py:class:`zennit.attribution.Gradient`.
    select: callable, optional
        Takes what the model returns and returns the tensor to explain, e.g. ``lambda output: output.logits``. Default
        is what the model returns.
    compare: bool, optional
        Whether to run the model once more in the first call after the context was opened, without the context, and to
        refuse where it computes something else in it. Its state and random numbers are given back after it.

    Raises
    ------
    ValueError
        If `embedding` is not a part of `model`.
    '''
    def __init__(self, model, embedding, composite=None, attr_output=None, create_graph=False, retain_graph=None,
                 select=None, compare=True):
        super().__init__(model, composite, attr_output, create_graph, retain_graph)
        if not any(embedding is module for module in model.modules()):
            raise ValueError(f'the embedding ({type(embedding).__name__}) is not a module of {type(model).__name__}')
        self.embedding = embedding
        self.select = select
        self.compare = compare
        self._is_new = False

    def __enter__(self):
        '''Register the composite, if there is one.'''
        self._is_new = True
        return super().__enter__()

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
        plain = self._plain_forward(input)
        output, leaves = call_model(self.model, input, self.embedding, self.select)
        relevance, = torch.autograd.grad(
            (output,), leaves, grad_outputs=(attr_output_fn(output),), create_graph=self.create_graph,
            retain_graph=self.retain_graph,
        )
        if plain is not None and (plain.error is not None or plain.difference(output) is not None):
            with self._outside():
                plain.check(output)
        return output, relevance

    def _plain_forward(self, input):
        '''The forward without a context, once for each context that was opened here, and that nobody watches.'''
        is_new, self._is_new = self._is_new, False
        engine = engine_of(self.model)
        if not (self.compare and is_new and self.composite is not None) or (engine is not None and engine.observer):
            return None
        with self._outside():
            return plain_forward(self.model, self.composite, input, self.embedding, self.select)

    @contextmanager
    def _outside(self):
        self.composite.remove()
        try:
            yield
        finally:
            self.composite.register(self.model)
