'''Which composite to take for which kind of model, by what was measured on trained ones.'''
from .composites import CPLRP, AttnLRP, AttnLRPGamma, Difference
from .references import blank_tokens


def recommended(model, tokenizer=None, tokens=True):
    '''Return the composite that did best for a kind of model.

    Chosen on two thirds of the samples of trained models and confirmed on the rest
    (``benchmarks/results/real-llm.md``, ``real-encoders.md``, ``real-sentiment.md``, ``real-images.md``); but for the
    blank of language models, for which all of them were looked at, and which other samples confirm
    (``python -m benchmarks.real.run --seed 1``). What is best for a task may be another one: measure where you can.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    tokenizer: optional
        The tokenizer of a language model, as those of ``transformers``: it knows what a blank is.
    tokens: bool, optional
        Whether what is explained are tokens, and not an image or other numbers.

    Returns
    -------
    :py:class:`zennit.core.Composite`
        For a language model, :py:class:`~zennit_attn.composites.Difference` from a text of line breaks that keeps the
        first and all special tokens; without a tokenizer, or with one that has no token for a line break,
        :py:class:`~zennit_attn.composites.CPLRP`. For other models of tokens
        :py:class:`~zennit_attn.composites.AttnLRP`. Else :py:class:`~zennit_attn.composites.AttnLRPGamma`.
    '''
    if not tokens:
        return AttnLRPGamma()
    if not continues_texts(model):
        return AttnLRP()
    if tokenizer is None:
        return CPLRP()
    blank = tokenizer('\n', add_special_tokens=False)['input_ids']
    if not blank:
        return CPLRP()
    padding = getattr(tokenizer, 'pad_token_id', None)
    return Difference(reference=blank_tokens(blank[-1], keep_ids=tokenizer.all_special_ids, padding=padding))


def continues_texts(model):
    '''Whether a model of ``transformers`` is a decoder that generates.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`

    Returns
    -------
    bool
    '''
    can = getattr(model, 'can_generate', None)
    return can is not None and can() and not getattr(getattr(model, 'config', None), 'is_encoder_decoder', False)
