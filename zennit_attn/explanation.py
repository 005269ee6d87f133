'''One call that explains what a model says of an input.'''
from base64 import b64encode
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import torch

from . import seeds
from .attribution import Relevance
from .composites import as_composite
from .conservation import audit
from .engine.uncompiled import uncompiled
from .errors import NoRelevance
from .inputs import encoded
from .pictures import normalization_of
from .plain import PlainForward, copied, restored
from .question import Question
from .recommendation import recommended
from .sources import call, resolve
from .trees import tensors_of

#: The name under which :py:func:`explain` finds a composite by the kind of the model.
RECOMMENDED = 'recommended'


@dataclass
class Explanation:
    '''What made a model say what it says.

    Attributes
    ----------
    relevance: :py:class:`torch.Tensor` or dict
        Relevance of what is explained, of its shape: a tensor, or by name where several things are explained.
    output: :py:class:`torch.Tensor`
        What is explained, one number for each sample, of shape [batch].
    target: list of str
        For each sample, what was asked: the class, with its name if the model knows one, or the name of the seed.
    note: str
        What the reader has to know, such as that a softmax at the end was left out; or empty.
    probability: :py:class:`torch.Tensor` or None
        For a class of several of which a softmax would make probabilities, its own, of shape [batch].
    '''
    relevance: object
    output: torch.Tensor
    target: list
    note: str = ''
    probability: object = None
    _inputs: dict = field(default_factory=dict, repr=False)
    _audit: object = field(default=None, repr=False)
    _tokenizer: object = field(default=None, repr=False)
    _processor: object = field(default=None, repr=False)

    def audit(self):
        '''Measure where all relevance went.

        Returns
        -------
        :py:class:`~zennit_attn.conservation.Audit`

        Raises
        ------
        ValueError
            If it was loaded from a file.
        '''
        if self._audit is None:
            raise ValueError('an explanation from a file has no model to audit: explain again')
        return self._audit()

    def tokens(self):
        '''Return the relevance of each token or number: for what an embedding returns, its sum over features.

        Returns
        -------
        :py:class:`torch.Tensor` or dict
            Of shape [batch, tokens] where relevance has shape [batch, tokens, features].
        '''
        def summed(relevance):
            if isinstance(relevance, tuple):
                return tuple(map(summed, relevance))
            return relevance.sum(-1) if relevance.ndim == 3 else relevance
        if isinstance(self.relevance, dict):
            return {name: summed(relevance) for name, relevance in self.relevance.items()}
        return summed(self.relevance)

    def title(self, sample=0):
        '''Say what was asked of a sample, and what the model said.

        Parameters
        ----------
        sample: int, optional

        Returns
        -------
        str
            E.g. ``'positive (1): 3.21, probability 0.96'``.
        '''
        said = f'{self.target[sample]}: {float(self.output[sample]):.3g}'
        return said if self.probability is None else f'{said}, probability {float(self.probability[sample]):.2g}'

    def show(self, name=None, tokens=None, sample=0, mean=None, std=None):
        '''Draw relevance: an image beside its map, or a text whose tokens are coloured.

        Parameters
        ----------
        name: str, optional
            Which of several things that are explained. Default is the first.
        tokens: list of str, optional
            The tokens of a text. Default are those of the tokenizer that was given, or else their numbers.
        sample: int, optional
            Which sample.
        mean, std: float or sequence of float, optional
            What was subtracted from an image, and what it was then divided by. Default is what the processor that was
            given says.

        Returns
        -------
        :py:class:`matplotlib.figure.Figure` or :py:class:`~zennit_attn.heatmap.Text`
            For images of shape [batch, channels, height, width] a figure, else a text. A notebook shows both.

        Raises
        ------
        ValueError
            If there is no such name, or relevance that is neither of an image nor of tokens.

        Warns
        -----
        UserWarning
            If an image is normalized, and nothing says by what.
        '''
        from .heatmap import Text, show, token_texts
        maps = self.relevance if isinstance(self.relevance, dict) else {'': self.relevance}
        name = next(iter(maps)) if name is None else name
        if name not in maps:
            raise ValueError(f'nothing was explained under the name {name!r}; there is {", ".join(maps)}')
        relevance, input = maps[name], self._inputs.get(name)
        relevance = relevance[0] if isinstance(relevance, tuple) else relevance
        if relevance.ndim == 4:
            image = relevance[sample].abs().sum(0) / relevance[sample].abs().sum(0).max() if input is None else input[
                sample]
            if mean is None and std is None and input is not None and self._processor is not None:
                mean, std = normalization_of(self._processor) or (None, None)
            return show(image, relevance[sample], self.title(sample), mean, std)
        if relevance.ndim not in (2, 3):
            raise ValueError(f'relevance has shape {tuple(relevance.shape)}, neither that of an image nor of tokens; '
                             'draw it with zennit_attn.heatmap or matplotlib')
        values = relevance[sample].sum(-1) if relevance.ndim == 3 else relevance[sample]
        if tokens is None:
            known = input is not None and input[sample].shape == values.shape
            tokens = token_texts(self._tokenizer, input[sample]) if known and self._tokenizer is not None else [
                f' {value:.4g}' for value in (input[sample] if known else range(len(values)))]
        return Text(list(tokens), values, self.title(sample))

    def save(self, path, **kwargs):
        '''Write the explanation to a file.

        Parameters
        ----------
        path: str or :py:class:`pathlib.Path`
            A file for :py:meth:`load` (``.pt``), a page (``.html``), or a picture (``.png``, ``.pdf``, ``.svg``).
        kwargs: optional
            For pages and pictures, as for :py:meth:`show`.

        Raises
        ------
        ValueError
            If the suffix is another one.
        '''
        path = Path(path)
        if path.suffix == '.pt':
            torch.save({'relevance': self.relevance, 'output': self.output, 'target': self.target, 'note': self.note,
                        'probability': self.probability, 'inputs': self._inputs}, path)
        elif path.suffix == '.html':
            self.to_html(path, **kwargs)
        elif path.suffix in ('.png', '.pdf', '.svg'):
            shown = self.show(**kwargs)
            (shown if hasattr(shown, 'savefig') else shown.figure()).savefig(path)
        else:
            raise ValueError(f'{path.name} has to end in .pt, .html, .png, .pdf or .svg')

    @classmethod
    def load(cls, path):
        '''Read what :py:meth:`save` has written to a ``.pt`` file. It can be shown, but has no model to audit.

        Parameters
        ----------
        path: str or :py:class:`pathlib.Path`

        Returns
        -------
        :py:class:`Explanation`
        '''
        found = torch.load(path, weights_only=True)
        return cls(_inputs=found.pop('inputs', {}), **found)

    def to_html(self, path=None, **kwargs):
        '''Return the explanation as HTML, or write it as a page of its own, which needs nothing else.

        Parameters
        ----------
        path: str or :py:class:`pathlib.Path`, optional
            Where to write the page.
        kwargs: optional
            As for :py:meth:`show`.

        Returns
        -------
        str
            The HTML, which can be a part of a page.
        '''
        shown = self.show(**kwargs)
        html = shown.html() if not hasattr(shown, 'savefig') else _picture(shown)
        html += f'<p>{escape(self.note)}</p>' if self.note else ''
        if path is not None:
            Path(path).write_text('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
                                  'content="width=device-width"><title>Explanation</title>' + html, encoding='utf-8')
        return html

    def _repr_html_(self):
        return self.to_html()


def _picture(figure):
    with BytesIO() as buffer:
        figure.savefig(buffer, format='png', dpi=150)
        picture = b64encode(buffer.getvalue()).decode()
    return f'<img alt="relevance" style="max-width:100%" src="data:image/png;base64,{picture}">'


@torch.inference_mode(False)
def explain(model, inputs, target=None, composite='cp_lrp', select=None, wrt=None, compare=True, tokenizer=None,
            processor=None):
    '''Explain what a model says of an input.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, in eval mode.
    inputs: :py:class:`torch.Tensor`, tuple, mapping, str, list or :py:class:`PIL.Image.Image`
        Its input of shape [batch, ...], or its positional or its keyword arguments, e.g. what a tokenizer returns. With
        a `tokenizer`, a text, a list of texts, a pair of texts as a tuple, or a chat, a list of mappings with ``role``
        and ``content``; with a `processor`, a picture or a list of these.
    target: optional
        What is asked. Default is the class with the largest logit, of the last token where there are logits for each
        (the last one that is no padding, if there is an ``attention_mask``);
        for a model that returns one number for each sample, that number. Else the index of a class, the name of a class
        that the model's ``config`` knows, indices of shape [batch], or a function of the output that returns one number
        for each sample, such as those of :py:mod:`zennit_attn.seeds`.
    composite: str, type or :py:class:`zennit.core.Composite`, optional
        A composite of this package or of Zennit: its name (``'attn_lrp'``), its class, or an instance; or
        ``'recommended'``, see :py:func:`~zennit_attn.recommendation.recommended`.
    select: callable or str, optional
        Takes what the model returns and returns the part of which `target` is asked, or its name. Default is what the
        model returns, or its ``logits``.
    wrt: str, :py:class:`torch.nn.Module`, or list of these, optional
        What is explained (with respect to what): names of arguments, modules or their dotted names. Default is every
        argument that is floating point or goes through an embedding, but masks, positions, types of tokens and labels.
        Explained together, two inputs share relevance where they meet; under composites that explain queries and keys,
        that is another question than one after the other, where the other is a constant.
    compare: bool, optional
        Whether to run the model once more without a context, and to refuse where it computes something else in it.
    tokenizer: optional
        The tokenizer of a model of texts, as those of ``transformers``: for inputs that are texts, for what is
        recommended, and to show tokens as text.
    processor: optional
        What makes the input of pictures, an image processor of ``transformers`` or transforms of torchvision or
        ``timm``: for inputs that are pictures, and to show what the model saw.

    Returns
    -------
    :py:class:`Explanation`
        A model that ends in a softmax, a sigmoid or another gate is explained at what enters it, and the note says so.

    Raises
    ------
    ChangedForward
        If the model computes something else in the context than without.
    NoRelevance
        If nothing that is explained can carry relevance.
    TypeError
        If there is no tensor of which `target` can be asked, or `target` or `composite` is none, the model is no
        module, or a text comes without a tokenizer or a picture without a processor.
    ValueError
        If the model is in training mode, or there is no argument, module, class or composite of a name.

    Examples
    --------
    >>> explanation = explain(model, 'what a film', target='positive', composite='attn_lrp', tokenizer=tokenizer)
    >>> explanation.tokens()
    '''
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f'the model is a {type(model).__name__}, and rules are attached to a torch.nn.Module: pass '
                        'that')
    if any(module.training for module in model.modules()):
        raise ValueError(f'{type(model).__name__} is in training mode, in which dropout and batch norm change what it '
                         'says; call model.eval() first')
    inputs = copied(encoded(inputs, tokenizer, processor, model))  # also of what was made without gradients
    sources = resolve(model, inputs, wrt)
    composite = composite_of(composite, model, sources, tokenizer)
    question = Question(model, target, select, inputs, tokenizer=tokenizer)
    attributor = Relevance(model, composite, sources, select=question, compare=False)
    _check_batch(inputs, model)
    plain = PlainForward(model, lambda input: question.spoken(call(model, input)), inputs, False)
    if plain.error is not None:
        raise plain.error from None
    try:
        with attributor:
            output, relevance = attributor(copied(inputs))
    except NoRelevance:
        # What is asked for may be made by a gate that is not the last: of several parts of an output, or boxes.
        question.ask_every_end()
        try:
            with attributor:
                output, relevance = attributor(copied(inputs))
        except NoRelevance as error:
            if not callable(target) or question.gates:
                raise
            raise NoRelevance(f'{error}\nif it is a softmax or a gate of what the model returns, ask for what enters '
                              'it, by seeds.logit or seeds.log_probability, or take a composite that carries relevance '
                              'through gates: attn_taylor or difference') from None
    if compare:
        plain.check(question.said)

    @torch.inference_mode(False)
    def measured():
        again = Question(model, target, select, inputs, question.of_every_end, tokenizer)
        return audit(model, composite, inputs, select=again, compare=False, wrt=sources)
    note = ' '.join(filter(None, (question.note, _warning(relevance, output))))
    return Explanation(
        relevance, output.detach(), question.words(len(output), tokenizer), note, question.probability,
        sources.given(inputs), measured, tokenizer, processor)


def _warning(relevance, output):
    '''What has to be said of a map whose numbers cancel to what is explained.'''
    total, whole = (sum(float(tensor.detach().abs().sum()) for tensor in tensors_of(tree))
                    for tree in (relevance, output))
    if not whole or total <= 1e6 * whole:
        return ''
    return ('Relevance is more than a million times what is explained, so that rounding may be most of the map: look '
            'at the audit, and take another composite, or for Difference a reference that the model could be given.')


def _check_batch(inputs, model):
    '''Refuse an input that is one sample, of which the numbers would be taken for samples.'''
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 1 and inputs.is_floating_point():
        with torch.no_grad(), restored(model), uncompiled():
            output = seeds.answer(call(model, copied(inputs)))
        if isinstance(output, torch.Tensor) and output.ndim == 1 and len(output) != len(inputs):
            raise ValueError(f'the input, of shape {list(inputs.shape)}, has no dimension for the samples: pass '
                             'input[None]')


def composite_of(given, model, sources, tokenizer=None):
    '''Return a composite by its name or its class, or the one that is recommended.

    Parameters
    ----------
    given: str, type or :py:class:`zennit.core.Composite`
    model: :py:class:`torch.nn.Module`
        What is explained.
    sources: :py:class:`~zennit_attn.sources.Sources`
        Of what in its input.
    tokenizer: optional
        That of a language model.

    Returns
    -------
    :py:class:`zennit.core.Composite`

    Raises
    ------
    TypeError, ValueError
        If it is none, with the names that there are.
    '''
    if isinstance(given, str) and given == RECOMMENDED:
        return recommended(model, tokenizer, tokens=bool(sources.taken) and not sources.arguments)
    return as_composite(given, [RECOMMENDED])
