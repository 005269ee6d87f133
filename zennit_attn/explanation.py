'''One call that explains what a model says of an input.'''
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import torch
from zennit.core import Composite

from . import seeds
from .attribution import Relevance
from .canonizers.attention import engine_of
from .composites import AttentionComposite
from .conservation import audit
from .plain import PlainForward
from .recommendation import continues_texts, recommended
from .sources import call, resolve

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
    '''
    relevance: object
    output: torch.Tensor
    target: list
    note: str = ''
    _inputs: dict = field(default_factory=dict, repr=False)
    _audit: object = field(default=None, repr=False)
    _tokenizer: object = field(default=None, repr=False)

    def audit(self):
        '''Measure where all relevance went.

        Returns
        -------
        :py:class:`~zennit_attn.conservation.Audit`
        '''
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

    def show(self, name=None, tokens=None, sample=0):
        '''Draw relevance: an image beside its map, or a text whose tokens are coloured.

        Parameters
        ----------
        name: str, optional
            Which of several things that are explained. Default is the first.
        tokens: list of str, optional
            The tokens of a text. Default are those of the tokenizer that was given, or else their numbers.
        sample: int, optional
            Which sample.

        Returns
        -------
        :py:class:`matplotlib.figure.Figure` or :py:class:`~zennit_attn.heatmap.Text`
            For images of shape [batch, channels, height, width] a figure, else a text. A notebook shows both.

        Raises
        ------
        ValueError
            If there is no such name, or relevance that is neither of an image nor of tokens.
        '''
        from .heatmap import Heatmap, Row, Text, figure, pixel_relevance, token_texts
        maps = self.relevance if isinstance(self.relevance, dict) else {'': self.relevance}
        name = next(iter(maps)) if name is None else name
        if name not in maps:
            raise ValueError(f'nothing was explained under the name {name!r}; there is {", ".join(maps)}')
        relevance, input = maps[name], self._inputs.get(name)
        relevance = relevance[0] if isinstance(relevance, tuple) else relevance
        title = f'{self.target[sample]}: {float(self.output[sample]):.3g}'
        if relevance.ndim == 4:
            image = relevance[sample].abs().sum(0, keepdim=True) if input is None else input[sample]
            limits = float(image.min()), max(float(image.max()), float(image.min()) + 1e-6)
            row = Row(image, {'relevance': Heatmap(pixel_relevance(relevance[sample]))}, limits=limits)
            return figure([row], title)
        if relevance.ndim not in (2, 3):
            raise ValueError(f'relevance has shape {tuple(relevance.shape)}, neither that of an image nor of tokens; '
                             'draw it with zennit_attn.heatmap or matplotlib')
        values = relevance[sample].sum(-1) if relevance.ndim == 3 else relevance[sample]
        if tokens is None:
            known = input is not None and input[sample].shape == values.shape
            tokens = token_texts(self._tokenizer, input[sample]) if known and self._tokenizer is not None else [
                f' {value:.4g}' for value in (input[sample] if known else range(len(values)))]
        return Text(list(tokens), values, title)

    def save(self, path, **kwargs):
        '''Write the explanation to a file.

        Parameters
        ----------
        path: str or :py:class:`pathlib.Path`
            A file for ``torch.load`` (``.pt``), a page (``.html``), or a picture (``.png``, ``.pdf``, ``.svg``).
        kwargs: optional
            For pages and pictures, as for :py:meth:`show`.

        Raises
        ------
        ValueError
            If the suffix is another one.
        '''
        path = Path(path)
        if path.suffix == '.pt':
            torch.save({'relevance': self.relevance, 'output': self.output, 'target': self.target, 'note': self.note},
                       path)
        elif path.suffix == '.html':
            path.write_text(f'<!doctype html><meta charset="utf-8"><title>Explanation</title>{self.html(**kwargs)}')
        elif path.suffix in ('.png', '.pdf', '.svg'):
            shown = self.show(**kwargs)
            (shown if hasattr(shown, 'savefig') else shown.figure()).savefig(path)
        else:
            raise ValueError(f'{path.name} has to end in .pt, .html, .png, .pdf or .svg')

    def html(self, **kwargs):
        '''Return the explanation as HTML.

        Parameters
        ----------
        kwargs: optional
            As for :py:meth:`show`.

        Returns
        -------
        str
        '''
        shown = self.show(**kwargs)
        note = f'<p>{escape(self.note)}</p>' if self.note else ''
        if not hasattr(shown, 'savefig'):
            return shown.html() + note
        with BytesIO() as buffer:
            shown.savefig(buffer, format='png', dpi=150)
            picture = b64encode(buffer.getvalue()).decode()
        return f'<img alt="relevance" src="data:image/png;base64,{picture}">{note}'

    def _repr_html_(self):
        return self.html()


def explain(model, inputs, target=None, composite='cp_lrp', select=None, wrt=None, compare=True, tokenizer=None):
    '''Explain what a model says of an input.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, in eval mode.
    inputs: :py:class:`torch.Tensor`, tuple or mapping
        Its input of shape [batch, ...], or its positional or its keyword arguments, e.g. what a tokenizer returns.
    target: optional
        What is asked. Default is the class with the largest logit, of the last token where there are logits for each;
        for a model that returns one number for each sample, that number. Else the index of a class, the name of a class
        that the model's ``config`` knows, indices of shape [batch], or a function of the output that returns one number
        for each sample, such as those of :py:mod:`zennit_attn.seeds`.
    composite: str, type or :py:class:`zennit.core.Composite`, optional
        A composite of this package or of Zennit: its name (``'attn_lrp'``), its class, or an instance; or
        ``'recommended'``, see :py:func:`~zennit_attn.recommendation.recommended`.
    select: callable, optional
        Takes what the model returns and returns the part of which `target` is asked. Default is what the model returns,
        or its ``logits``.
    wrt: str, :py:class:`torch.nn.Module`, or list of these, optional
        What is explained (with respect to what): names of arguments, modules or their dotted names. Default is every
        argument that is floating point or goes through an embedding, but masks, positions, types of tokens and labels.
        Explained together, two inputs share relevance where they meet; under composites that explain queries and keys,
        that is another question than one after the other, where the other is a constant.
    compare: bool, optional
        Whether to run the model once more without a context, and to refuse where it computes something else in it.
    tokenizer: optional
        The tokenizer of a model of texts, as those of ``transformers``: for what is recommended, and to show tokens as
        text.

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
        If there is no tensor of which `target` can be asked, or `target` or `composite` is none.
    ValueError
        If the model is in training mode, or there is no argument, module, class or composite of a name.

    Examples
    --------
    >>> explanation = explain(model, tokenizer(text, return_tensors='pt'), target='positive', composite='attn_lrp')
    >>> explanation.tokens()
    '''
    if any(module.training for module in model.modules()):
        raise ValueError(f'{type(model).__name__} is in training mode, in which dropout and batch norm change what it '
                         'says; call model.eval() first')
    sources = resolve(model, inputs, wrt)
    composite = composite_of(composite, model, sources, tokenizer)
    question = _Question(model, target, select)
    attributor = Relevance(model, composite, sources, select=question, compare=False)
    plain = PlainForward(model, lambda input: question.spoken(call(model, input)), inputs, False)
    if plain.error is not None:
        raise plain.error from None
    with attributor:
        output, relevance = attributor(inputs)
    if compare:
        plain.check(question.said)
    return Explanation(
        relevance, output.detach(), question.words(len(output), tokenizer), question.note, sources.given(inputs),
        lambda: audit(model, composite, inputs, select=_Question(model, target, select), compare=False, wrt=sources),
        tokenizer)


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
    from zennit.composites import COMPOSITES
    if isinstance(given, Composite):
        return given
    if isinstance(given, type) and issubclass(given, Composite):
        return given()
    if isinstance(given, str) and given == RECOMMENDED:
        return recommended(model, tokenizer, tokens=bool(sources.taken) and not sources.arguments)
    ours = [RECOMMENDED, *(name for name, kind in COMPOSITES.items() if issubclass(kind, AttentionComposite))]
    if not isinstance(given, str):
        raise TypeError(f'{given!r} is no composite; pass one, its class, or its name: {", ".join(ours)}')
    if given not in COMPOSITES:
        raise ValueError(f'there is no composite {given!r}; there are {", ".join(ours)}, and those of Zennit')
    if given in ours:
        return COMPOSITES[given]()
    from .canonizers import AttentionCanonizer
    return COMPOSITES[given](canonizers=[AttentionCanonizer()])


class _Question:
    '''What is asked of the output: it runs as a part of the model, and sees what the model says.'''
    def __init__(self, model, target, select):
        self.model, self.target, self.select = model, target, select
        self.said = self.classes = None
        self.note = ''
        if isinstance(target, str):
            self.target = _index_of(model, target)
        elif target is not None and not callable(target) and (
                isinstance(target, bool) or not isinstance(target, (int, torch.Tensor, list, tuple))):
            raise TypeError(f'{target!r} is no target: pass the index of a class, its name, indices for the samples, '
                            'or a function of the output such as zennit_attn.seeds.contrast()')

    def part(self, output):
        '''What `target` is asked of: what is selected, or the likely part.'''
        part = output if self.select is None else self.select(output)
        return part if callable(self.target) else seeds.answer(part)

    def spoken(self, output):
        '''What a model says, with which that in a context is compared.'''
        part = self.part(output)
        said = seeds.answer(part)
        return said if isinstance(said, torch.Tensor) else self._asked(part)

    def __call__(self, output):
        part = self.part(output)
        said = seeds.answer(part)
        if isinstance(said, torch.Tensor):
            self.said = said.detach()
            engine = engine_of(self.model)
            entered = None if engine is None or not engine.running else engine.forward.entered(said)
            if entered is not None:
                part, gate = entered
                self.note = f'The model ends in {gate}: what is explained is what enters it.'
        asked = self._asked(part)
        self.said = asked.detach() if self.said is None else self.said
        return asked

    def _asked(self, part):
        if not callable(self.target):
            logits = seeds.logits_of(part)
            self.classes = logits.detach().argmax(1) if self.target is None else torch.as_tensor(self.target)
            return seeds.logit(self.classes)(part)
        asked = self.target(part)
        if not isinstance(asked, torch.Tensor) or asked.ndim != 1:
            shape = f'shape {tuple(asked.shape)}' if isinstance(asked, torch.Tensor) else type(asked).__name__
            raise ValueError(f'target is a function that returns {shape}; it needs one number for each sample, of '
                             'shape [batch]')
        return asked

    def words(self, count, tokenizer=None):
        '''What was asked of each sample.'''
        if self.classes is None:
            return [getattr(self.target, '__qualname__', type(self.target).__name__).split('.')[0]] * count
        indices = self.classes.expand(count).tolist()
        if tokenizer is not None and continues_texts(self.model):
            from .heatmap.tokens import token_texts
            return [repr(token_texts(tokenizer, [index])[0]) for index in indices]
        return [_name_of(self.model, index) for index in indices]


def _labels(model):
    labels = getattr(getattr(model, 'config', None), 'id2label', None)
    if not isinstance(labels, Mapping):
        return {}
    # A config without names has LABEL_0 and so on, also that of a model that has no classes.
    return {int(index): str(name) for index, name in labels.items() if not re.fullmatch(r'LABEL_\d+', str(name))}


def _index_of(model, name):
    labels = _labels(model)
    found = [index for index, label in labels.items() if label.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    there = f'it has {", ".join(list(labels.values())[:8])}' if labels else 'its config names none; pass an index'
    raise ValueError(f'{type(model).__name__} has no class {name!r}; {there}')


def _name_of(model, index):
    label = _labels(model).get(index)
    return str(index) if label is None else f'{label} ({index})'
