'''What a language model answers, token by token: which tokens made it say each of them.'''
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from . import seeds
from .attribution import call_model, plain_forward
from .conservation import audit
from .explanation import composite_of
from .inputs import encoded, positions
from .plain import copied
from .sources import resolve, takes


@dataclass
class Generation:
    '''An answer, with a map for each of its tokens.

    Attributes
    ----------
    ids: :py:class:`torch.Tensor`
        The tokens of the answer, of shape [batch, answer].
    relevance: dict
        By the name of what is explained, relevance of shape [batch, answer, tokens]: a row for each token of the answer
        over the tokens that the model was given, those of the answer included. A token has none of itself and of later
        ones. Of sound and images, of shape [batch, answer, ...] with the shape of these.
    output: :py:class:`torch.Tensor`
        What is explained, of shape [batch, answer]: the logits of the answer's tokens.
    prompt: int
        How many of the tokens that the decoder was given are not of the answer.
    probability: :py:class:`torch.Tensor`
        Of each token of the answer, after all that stands before it, of shape [batch, answer].
    '''
    ids: torch.Tensor
    relevance: dict
    output: torch.Tensor
    prompt: int
    probability: torch.Tensor = None
    _inputs: dict = field(default_factory=dict, repr=False)
    _audit: object = field(default=None, repr=False)
    _tokenizer: object = field(default=None, repr=False)

    def audit(self):
        '''Measure where all relevance went: that of the whole answer, which is the sum of the rows.

        Returns
        -------
        :py:class:`~zennit_attn.conservation.Audit`
        '''
        return self._audit()

    def span(self, start=0, stop=None):
        '''Return one map for several tokens of the answer: the sum of their rows.

        Parameters
        ----------
        start, stop: int, optional
            The first, and the one after the last. Default is the whole answer.

        Returns
        -------
        dict
            By name, relevance of shape [batch, tokens].
        '''
        return {name: rows[:, start:stop].sum(1) for name, rows in self.relevance.items()}

    def show(self, name=None, source=None, answer=None, sample=0):
        '''Draw the matrix: a row for each token of the answer, a column for each token that the model was given.

        Parameters
        ----------
        name: str, optional
            Which of several things that are explained. Default is the first.
        source, answer: list of str, optional
            The tokens. Default are those of the tokenizer that was given, or else their ids.
        sample: int, optional
            Which sample.

        Returns
        -------
        :py:class:`matplotlib.figure.Figure`

        Raises
        ------
        ValueError
            If there is no such name, what has it is not made of tokens, or the tokens do not fit.
        '''
        from .heatmap import sequence_figure
        name = self._named(name)
        rows = self.relevance[name][sample]
        source = self.tokens(name, sample) if source is None else list(source)
        answer = self.texts(self.ids[sample]) if answer is None else list(answer)
        if rows.shape != (len(answer), len(source)):
            raise ValueError(f'there are {len(answer)} tokens of the answer and {len(source)} that the model was '
                             f'given, but a matrix of {tuple(rows.shape)}')
        return sequence_figure(rows, source, answer, 'answer')

    def text(self, start=0, stop=None, name=None, sample=0):
        '''Return the text that the model was given, coloured by what made it say some tokens of the answer.

        Parameters
        ----------
        start, stop: int, optional
            The first of these, and the one after the last. Default is the whole answer.
        name: str, optional
            Which of several things that are explained. Default is the first.
        sample: int, optional
            Which sample.

        Returns
        -------
        :py:class:`~zennit_attn.heatmap.Text`
        '''
        from .heatmap import Text
        name = self._named(name)
        said = ''.join(self.texts(self.ids[sample, start:stop])).strip()
        return Text(self.tokens(name, sample), self.span(start, stop)[name][sample], f'answer: {said}')

    def tokens(self, name=None, sample=0):
        '''Return the texts of the tokens that the model was given.

        Parameters
        ----------
        name: str, optional
            Which of several things that are explained. Default is the first that is made of tokens.
        sample: int, optional
            Which sample.

        Returns
        -------
        list of str
        '''
        return self.texts(self._inputs[self._named(name)][sample])

    def texts(self, ids):
        '''Return the texts of tokens, or their ids if no tokenizer was given.

        Parameters
        ----------
        ids: :py:class:`torch.Tensor`
            Of shape [tokens].

        Returns
        -------
        list of str
        '''
        from .heatmap.tokens import token_texts
        return [f' {int(each)}' for each in ids] if self._tokenizer is None else token_texts(self._tokenizer, ids)

    def _named(self, name):
        of_tokens = [key for key, rows in self.relevance.items() if rows.ndim == 3]
        if name is None and of_tokens:
            return of_tokens[0]
        name = next(iter(self.relevance)) if name is None else name
        if name not in self.relevance:
            raise ValueError(f'nothing was explained under the name {name!r}; there is {", ".join(self.relevance)}')
        if name not in of_tokens:
            raise ValueError(f'{name} is not made of tokens; draw .span()[{name!r}] as you draw such an input')
        return name

    def _repr_html_(self):
        return self.text().html()


@torch.inference_mode(False)
def explain_generation(model, inputs, max_new_tokens=20, answer=None, composite='cp_lrp', contrast=False,
                       tokenizer=None, processor=None, **options):
    '''Explain each token of what a language model answers.

    The answer is given to the model as a whole, so that one forward is enough for all its tokens; each has a backward
    pass of its own. In a causal model that is the same as one token after the other.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        A model of ``transformers`` that generates: a decoder, or an encoder and a decoder.
    inputs: :py:class:`torch.Tensor`, mapping, str or list
        The prompt: token ids of shape [batch, tokens], or what a tokenizer or a processor returns, also that of sound
        or images. With a `tokenizer`, a text, a list of texts, or a chat, a list of mappings with ``role`` and
        ``content``. Pad at the left. A decoder beside an encoder begins with its start token, or with
        ``decoder_input_ids``.
    max_new_tokens: int, optional
        The length of the answer, which the model generates with the largest logit of each step.
    answer: :py:class:`torch.Tensor` or str, optional
        Token ids of an answer of shape [batch, answer], or with a `tokenizer` its text for a single prompt, in place of
        one that the model generates.
    composite, tokenizer, processor: optional
        As for :py:func:`~zennit_attn.explanation.explain`.
    contrast: bool, optional
        Whether each token is explained against the one with the largest logit of all others.
    options: optional
        For ``model.generate``, e.g. ``pad_token_id``.

    Returns
    -------
    :py:class:`Generation`

    Raises
    ------
    ChangedForward
        If the model computes something else in the context than without.
    TypeError
        If there is no answer, and the model can not generate one, or a text comes without a tokenizer.
    ValueError
        If the model is in training mode, the prompt is padded at the right, or the answer has no tokens, or another
        batch than the prompt.
    '''
    if any(module.training for module in model.modules()):
        raise ValueError(f'{type(model).__name__} is in training mode; call model.eval() first')
    inputs = copied(encoded(inputs, tokenizer, processor, model))
    prompt = dict(inputs) if isinstance(inputs, Mapping) else {_main(model, inputs): inputs}
    encodes = bool(getattr(getattr(model, 'config', None), 'is_encoder_decoder', False))
    begins = 'decoder_input_ids' if encodes else 'input_ids'
    mask = prompt.get('attention_mask')
    if not encodes and isinstance(mask, torch.Tensor) and mask.ndim == 2 and not mask[:, -1].all():
        raise ValueError("the prompt is padded at the right, where its answer has to begin; pad at the left: "
                         "tokenizer.padding_side = 'left'")
    if answer is None:
        start, answer = _generated(model, prompt, encodes, max_new_tokens, options)
    else:
        start, answer = prompt.get(begins), _ids_of(answer, tokenizer)
        if start is None:
            start = decoder_start(model, answer)
    batch = len(next(value for value in prompt.values() if isinstance(value, torch.Tensor)))
    if answer.ndim != 2 or not answer.numel() or len(answer) != batch:
        raise ValueError(f'the answer has shape {tuple(answer.shape)}, and needs [batch, answer] for a prompt of '
                         f'{batch} sample{"s" * (batch > 1)}')
    given = {**prompt, begins: torch.cat([start, answer[:, :-1] if encodes else answer], 1)}
    if not encodes and 'input_ids' in prompt:
        _continue_masks(model, given, prompt, answer)
    # From the end, as what a model sees may stand before the tokens.
    count = answer.shape[1]
    said = slice(-count, None) if encodes else slice(-count - 1, -1)
    probability = []

    def select(output):
        logits = seeds.answer(output)[:, said]
        chosen = logits.gather(2, answer[..., None])[..., 0]
        others = logits.detach().scatter(2, answer[..., None], -torch.inf)
        probability[:] = [(chosen.detach() - logits.detach().logsumexp(2)).exp()]
        return chosen if not contrast else chosen - logits.gather(2, others.argmax(2)[..., None])[..., 0]
    sources = resolve(model, given)
    composite = composite_of(composite, model, sources, tokenizer)
    plain = plain_forward(model, composite, given, sources.outputs, select)
    if plain.error is not None:
        raise plain.error from None
    rows = {name: [] for name in sources.names}
    with composite.context(model), torch.enable_grad():
        tensors, arguments = sources.prepared(given)
        output, outputs = call_model(model, tensors, sources.outputs, select)
        leaves = {**arguments, **{name: own[0] for name, own in outputs.items()}}
        for step in range(count):
            seed = torch.zeros_like(output)
            seed[:, step] = output.detach()[:, step]
            found = torch.autograd.grad(output, list(leaves.values()), seed, retain_graph=step + 1 < count,
                                        allow_unused=True, materialize_grads=True)
            for name, relevance in zip(leaves, found, strict=True):
                relevance = relevance.transpose(0, 1) if name in sources.turned else relevance
                rows[name].append((relevance.sum(-1) if name in outputs else relevance).detach())
    plain.check(output)
    return Generation(answer, {name: torch.stack(own, 1) for name, own in rows.items()}, output.detach(),
                      start.shape[1], probability[0].detach(), {name: given[name] for name in rows},
                      lambda: audit(model, composite, given, select=lambda output: select(output).sum(1), compare=False,
                                    wrt=sources), tokenizer)


def _main(model, inputs):
    '''The name of a prompt that is a tensor alone.'''
    return 'input_ids' if not inputs.is_floating_point() else getattr(model, 'main_input_name', 'input_ids')


def _ids_of(answer, tokenizer):
    '''The ids of an answer that is a text.'''
    if isinstance(answer, (list, tuple)) and not any(isinstance(each, str) for each in answer):
        return torch.as_tensor(answer)
    if isinstance(answer, list) and len(answer) == 1:
        answer, = answer
    if isinstance(answer, torch.Tensor):
        return answer
    if not isinstance(answer, str):
        raise TypeError(f'the answer is a {type(answer).__name__}: pass ids of shape [batch, answer], or a text')
    if tokenizer is None:
        raise TypeError('the answer is a text, which the tokenizer makes ids of: pass tokenizer=, that of the model')
    return tokenizer(answer, add_special_tokens=False, return_tensors='pt')['input_ids']


def _generated(model, prompt, encodes, count, options):
    '''What a decoder starts with, and its answer.'''
    if not hasattr(model, 'generate'):
        raise TypeError(f'{type(model).__name__} has no method generate; pass the answer, ids of shape [batch, answer]')
    starts = []

    def watch(module, args, kwargs):
        starts.append(kwargs.get('decoder_input_ids' if encodes else 'input_ids'))
    # What a decoder starts with, language and task too, is known to the method alone: it is what comes first.
    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with torch.no_grad():
            ids = model.generate(**prompt, **{'max_new_tokens': count, 'do_sample': False, **options})
    finally:
        handle.remove()
    if 'input_ids' in prompt and not encodes:
        return prompt['input_ids'], ids[:, prompt['input_ids'].shape[1]:]
    start = next((ids for ids in starts if ids is not None), None)
    start = decoder_start(model, ids) if start is None else start
    repeated = ids.shape[1] >= start.shape[1] and torch.equal(ids[:, :start.shape[1]], start)
    return start, ids[:, start.shape[1]:] if repeated else ids


def decoder_start(model, like):
    '''Return what a decoder beside an encoder starts with.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    like: :py:class:`torch.Tensor`
        Token ids of shape [batch, tokens].

    Returns
    -------
    :py:class:`torch.Tensor`
        Ids of shape [batch, 1].
    '''
    encodes = bool(getattr(model.config, 'is_encoder_decoder', False))
    names = ['decoder_start_token_id', 'bos_token_id'][not encodes:]  # one that does not begins with its first token
    starts = (getattr(getattr(model, config, None), name, None)
              for name in names for config in ('config', 'generation_config'))
    return torch.full_like(like[:, :1], next((start for start in starts if start is not None), 0))


def _continue_masks(model, given, prompt, answer):
    '''Make masks and types of tokens as long as the prompt and the answer.'''
    shape = prompt['input_ids'].shape
    for name, value in prompt.items():
        if name != 'input_ids' and isinstance(value, torch.Tensor) and value.shape == shape:
            given[name] = torch.cat([value, value[:, -1:].expand_as(answer)], 1)
    mask = given.get('attention_mask')
    # Positions count what is no padding, as in generate. Without padding the model knows them best.
    if mask is not None and not mask.all() and 'position_ids' not in given and takes(model, 'position_ids'):
        given['position_ids'] = positions(mask)
