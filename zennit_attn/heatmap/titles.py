'''Titles: model, target, composite, and what is unaccounted.'''
import textwrap

import torch


def share(value, whole):
    '''Write a part of the output's relevance in units of it: as per cent, or in powers of ten where it is tiny.

    Parameters
    ----------
    value: float
        Relevance.
    whole: float
        The output's relevance. If it is 0, `value` is written as it is.

    Returns
    -------
    str
    '''
    value = float(value) / abs(float(whole)) if whole else float(value)
    if value == 0.:
        return '0'
    return f'{value:.0e}' if abs(value) < 1e-3 else f'{value:.1%}'


def worst(ledger, sample=None):
    '''Write what a ledger has unaccounted, as :py:func:`share` of the output.

    Parameters
    ----------
    ledger: :py:class:`~zennit_attn.conservation.Audit`
        The ledger.
    sample: int, optional
        The sample. Default is the one with the largest share.

    Returns
    -------
    str
    '''
    unaccounted, output = ledger.unaccounted.double(), ledger.output.double()
    if sample is None:
        sample = int(torch.where(output == 0., unaccounted, unaccounted / output).abs().argmax())
    return share(unaccounted[sample], output[sample])


def title(model=None, target=None, composite=None, ledger=None, sample=None):
    '''Write a title that says what is seen.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module` or str, optional
        The model, or its name.
    target: str or int, optional
        The class, token or output that is explained.
    composite: :py:class:`zennit.core.Composite`, type or str, optional
        The composite, or the name of the method.
    ledger: :py:class:`~zennit_attn.conservation.Audit`, optional
        The ledger, of which `unaccounted` is written.
    sample: int, optional
        The sample of the ledger. Default is the worst one.

    Returns
    -------
    str
        E.g. ``'ViT, target cat, CPLRP, unaccounted 2e-13'``.
    '''
    parts = [_name(model), None if target is None else f'target {target}', _name(composite),
             None if ledger is None else f'unaccounted {worst(ledger, sample)}']
    return ', '.join(part for part in parts if part)


def wrapped(text, width, size):
    '''Break a text into lines that fit a figure.

    Parameters
    ----------
    text: str
        The text.
    width: float
        Width of the figure in inches.
    size: float
        Size of the letters in points.

    Returns
    -------
    str
    '''
    # a letter is some half as wide as it is high
    return '\n'.join(textwrap.wrap(text, max(int(width * 72. / (.54 * size)), 8)))


def visible(text):
    '''Write what would break a line or steer a terminal by its escape sequence in Python; spaces stay.

    Parameters
    ----------
    text: str
        The text.

    Returns
    -------
    str
    '''
    return ''.join(letter if letter.isprintable() else letter.encode('unicode_escape').decode() for letter in str(text))


def _name(thing):
    if thing is None or isinstance(thing, str):
        return thing
    return thing.__name__ if isinstance(thing, type) else type(thing).__name__
