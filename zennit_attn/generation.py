'''What a language model answers, token by token: which tokens made it say each of them.'''
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from . import seeds
from .attribution import call_model, plain_forward
from .explanation import composite_of
from .sources import resolve


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
        ones.
    output: :py:class:`torch.Tensor`
        What is explained, of shape [batch, answer]: the logits of the answer's tokens.
    prompt: int
        How many of the tokens of ``input_ids`` are not of the answer.
    '''
    ids: torch.Tensor
    relevance: dict
    output: torch.Tensor
    prompt: int
    _inputs: dict = field(default_factory=dict, repr=False)
    _tokenizer: object = field(default=None, repr=False)

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
        '''
        from matplotlib.figure import Figure

        from .heatmap.colors import COLORS, limit_of, matplotlib_cmap, to_array
        name = next(iter(self.relevance)) if name is None else name
        rows = to_array(self.relevance[name][sample], 2, '(answer, tokens)')
        source = self._texts(self._inputs[name][sample]) if source is None else list(source)
        answer = self._texts(self.ids[sample]) if answer is None else list(answer)
        if rows.shape != (len(answer), len(source)):
            raise ValueError(f'there are {len(answer)} tokens of the answer and {len(source)} that the model was '
                             f'given, but a matrix of {rows.shape}')
        result = Figure((2. + .3 * len(source), 1.5 + .3 * len(answer)), layout='constrained')
        axes = result.subplots()
        limit = limit_of([rows])
        axes.imshow(rows, cmap=matplotlib_cmap(COLORS), vmin=-limit, vmax=limit, aspect='auto')
        axes.set_xticks(range(len(source)), source, rotation=90, parse_math=False)
        axes.set_yticks(range(len(answer)), answer, parse_math=False)
        axes.set_xlabel('given')
        axes.set_ylabel('answer')
        return result


    def _texts(self, ids):
        from .heatmap.tokens import token_texts
        return [str(int(each)) for each in ids] if self._tokenizer is None else [
            text.replace('\n', '\\n') for text in token_texts(self._tokenizer, ids)]


def explain_generation(model, inputs, max_new_tokens=20, answer=None, composite='cp_lrp', contrast=False,
                       tokenizer=None, **options):
    '''Explain each token of what a language model answers.

    The answer is given to the model as a whole, so that one forward is enough for all its tokens; each has a backward
    pass of its own. In a causal model that is the same as one token after the other.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        A model of ``transformers`` that generates: a decoder, or an encoder and a decoder.
    inputs: :py:class:`torch.Tensor` or mapping
        The prompt: token ids of shape [batch, tokens], or what a tokenizer returns. Pad at the left.
    max_new_tokens: int, optional
        The length of the answer, which the model generates with the largest logit of each step.
    answer: :py:class:`torch.Tensor`, optional
        Token ids of an answer of shape [batch, answer], in place of one that the model generates.
    composite, tokenizer: optional
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
        If there is no answer, and the model can not generate one.
    ValueError
        If the model is in training mode, or the answer has no tokens, or another batch than the prompt.
    '''
    if any(module.training for module in model.modules()):
        raise ValueError(f'{type(model).__name__} is in training mode; call model.eval() first')
    prompt = dict(inputs) if isinstance(inputs, Mapping) else {'input_ids': inputs}
    encodes = bool(getattr(getattr(model, 'config', None), 'is_encoder_decoder', False))
    if answer is None:
        answer = _generated(model, prompt, encodes, max_new_tokens, options)
    if answer.ndim != 2 or not answer.numel() or len(answer) != len(prompt['input_ids']):
        raise ValueError(f'the answer has shape {tuple(answer.shape)}, and needs [batch, answer] for a prompt of shape '
                         f'{tuple(prompt["input_ids"].shape)}')
    given, length = (_with_decoder if encodes else _continued)(model, prompt, answer)
    count = answer.shape[1]

    def select(output):
        logits = seeds.answer(output)[:, -count:] if encodes else seeds.answer(output)[:, -count - 1:-1]
        chosen = logits.gather(2, answer[..., None])[..., 0]
        if not contrast:
            return chosen
        others = logits.detach().scatter(2, answer[..., None], -torch.inf).argmax(2)
        return chosen - logits.gather(2, others[..., None])[..., 0]
    sources = resolve(model, given)
    composite = composite_of(composite, model, sources, tokenizer)
    plain = plain_forward(model, composite, given, sources.outputs, select)
    rows = {name: [] for name in sources.names}
    with composite.context(model), torch.enable_grad():
        tensors, _ = sources.prepared(given)
        output, leaves = call_model(model, tensors, sources.outputs, select)
        for step in range(count):
            seed = torch.zeros_like(output)
            seed[:, step] = output.detach()[:, step]
            found = torch.autograd.grad(
                output, [own[0] for own in leaves.values()], seed, retain_graph=step + 1 < count, allow_unused=True,
                materialize_grads=True)
            for name, relevance in zip(rows, found, strict=True):
                rows[name].append(relevance.sum(-1).detach())
    plain.check(output)
    return Generation(answer, {name: torch.stack(own, 1) for name, own in rows.items()}, output.detach(), length,
                      {name: given[name] for name in rows}, tokenizer)


def _generated(model, prompt, encodes, count, options):
    if not hasattr(model, 'generate'):
        raise TypeError(f'{type(model).__name__} has no method generate; pass the answer, ids of shape [batch, answer]')
    with torch.no_grad():
        ids = model.generate(**prompt, max_new_tokens=count, do_sample=False, **options)
    return ids[:, 1:] if encodes else ids[:, prompt['input_ids'].shape[1]:]


def _continued(model, prompt, answer):
    '''A decoder gets the prompt and the answer.'''
    ids = torch.cat([prompt['input_ids'], answer], 1)
    given = {**prompt, 'input_ids': ids}
    for name, value in prompt.items():  # masks, and types of tokens
        if name != 'input_ids' and isinstance(value, torch.Tensor) and value.shape == prompt['input_ids'].shape:
            given[name] = torch.cat([value, value[:, -1:].expand_as(answer)], 1)
    if 'attention_mask' in given and 'position_ids' not in given:
        given['position_ids'] = (given['attention_mask'].long().cumsum(1) - 1).clamp(min=0)
    return given, prompt['input_ids'].shape[1]


def _with_decoder(model, prompt, answer):
    '''A decoder beside an encoder gets the answer, one place later.'''
    start = getattr(model.config, 'decoder_start_token_id', None)
    start = getattr(model.generation_config, 'decoder_start_token_id', 0) if start is None else start
    first = torch.full_like(answer[:, :1], start)
    return {**prompt, 'decoder_input_ids': torch.cat([first, answer[:, :-1]], 1)}, 0
