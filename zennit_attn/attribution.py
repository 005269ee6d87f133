'''Attributors: what Zennit's do, for models whose input cannot carry relevance.'''
import torch
from zennit.attribution import Gradient

from .canonizers.attention import explained_output
from .errors import NoRelevance


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

    Raises
    ------
    ValueError
        If `embedding` is not a part of `model`.
    '''
    def __init__(self, model, embedding, composite=None, attr_output=None, create_graph=False, retain_graph=None):
        super().__init__(model, composite, attr_output, create_graph, retain_graph)
        if not any(embedding is module for module in model.modules()):
            raise ValueError(f'the embedding ({type(embedding).__name__}) is not a module of {type(model).__name__}')
        self.embedding = embedding

    def forward(self, input, attr_output_fn):
        '''Compute the relevance of the embedding's output.

        Parameters
        ----------
        input: :py:class:`torch.Tensor`
            Input of the model, e.g. token ids of shape [batch, tokens].
        attr_output_fn: callable
            The function of the model's output that gives its relevance.

        Returns
        -------
        output: :py:class:`torch.Tensor`
            Output of the model.
        relevance: :py:class:`torch.Tensor`
            Relevance of the embedding's output, of its shape, e.g. [batch, tokens, features].

        Raises
        ------
        NoRelevance
            If the embedding was not called exactly once.
        '''
        with explained_output(self.model, self.embedding) as leaves:
            output = self.model(input)
        if len(leaves) != 1:
            raise NoRelevance(f'the embedding ({type(self.embedding).__name__}) was called {len(leaves)} times in a '
                              'forward of the model; TokenGradient explains a module that is called once')
        relevance, = torch.autograd.grad(
            (output,), leaves, grad_outputs=(attr_output_fn(output),), create_graph=self.create_graph,
            retain_graph=self.retain_graph,
        )
        return output, relevance
