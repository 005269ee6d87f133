'''Sequences: the relevance of every token in every head or layer.'''
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .colors import COLORS, by_method, limit_of, matplotlib_cmap, to_array
from .titles import visible, wrapped

#: Most labels on an axis; of more, every second, third... is written.
_LABELS = {'x': 64, 'y': 32}


def layer_relevance(relevances):
    '''Stack the relevance of tokens in several layers.

    Parameters
    ----------
    relevances: dict[str, :py:class:`torch.Tensor`] or list
        Relevance in each layer, of shape ``(..., tokens, features)``, e.g. from
        :py:func:`~zennit_attn.heatmap.relevance_at`.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of shape ``(..., layers, tokens)``, summed over the features.
    '''
    layers = list(relevances.values()) if isinstance(relevances, dict) else list(relevances)
    shapes = {tuple(layer.shape[:-1]) for layer in layers}
    if len(shapes) != 1 or any(layer.ndim < 2 for layer in layers):
        found = [tuple(layer.shape) for layer in layers]
        raise ValueError(f'Layers of shape (..., tokens, features) with the same tokens are needed, got {found}.')
    return torch.stack([layer.sum(dim=-1) for layer in layers], dim=-2)


def head_relevance(relevance, heads):
    '''Split the relevance of features into heads.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(..., tokens, heads * features)``, with the features of a head side by side, as they enter
        the output projection of an attention block.
    heads: int
        Number of heads.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of shape ``(..., heads, tokens)``, summed over the features of each head.
    '''
    if relevance.ndim < 2 or heads < 1 or relevance.shape[-1] % heads:
        raise ValueError(f'Relevance of shape (..., tokens, features) with features in {heads} heads is needed, got '
                         f'{tuple(relevance.shape)}.')
    return relevance.unflatten(-1, (heads, -1)).sum(dim=-1).transpose(-2, -1)


def sequence_figure(relevance, tokens=None, names=None, axis='head', title='', captions=None, shared=True, cmap=COLORS):
    '''Draw the relevance of a sequence, with a row for each head or layer.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor` or dict[str, :py:class:`torch.Tensor`]
        Relevance of shape ``(rows, tokens)``, e.g. of one sample from :py:func:`head_relevance` or
        :py:func:`layer_relevance`, or several by the name of their method.
    tokens: list[str], optional
        The tokens. Default is their positions.
    names: list[str], optional
        Names of the rows. Default is their indices.
    axis: str
        What the rows are: ``'head'``, ``'layer'``.
    title: str
        Written above, see :py:func:`~zennit_attn.heatmap.title`.
    captions: dict[str, str], optional
        Written below the name of each method, e.g. what is unaccounted.
    shared: bool
        Whether the methods share a scale.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure. ``savefig`` writes it.
    '''
    maps = {name: to_array(item, 2, '(heads or layers, tokens); choose a sample')
            for name, item in by_method(relevance).items()}
    if len({array.shape for array in maps.values()}) > 1:
        raise ValueError(f'The methods have different shapes: {[array.shape for array in maps.values()]}.')
    rows, count = next(iter(maps.values())).shape
    for labels, number, what in ((tokens, count, 'tokens'), (names, rows, 'names')):
        if labels is not None and len(labels) != number:
            raise ValueError(f'There are {len(labels)} {what} for relevance of shape {(rows, count)}.')
    width, height = min(max(.22 * count, 2.5), 12.), min(max(.22 * rows, .6), 8.)
    # of long tokens, turned by 90 degrees, a letter takes .07 inches
    below = .3 if tokens is None else .3 + .07 * min(max(map(len, map(str, tokens))), 16)
    title = wrapped(title, width + 1.6, 10)
    size = (width + 1.6, .2 * bool(title) + .2 * len(title.splitlines()) + (height + below + .45) * len(maps))
    result = Figure(size, layout='constrained')
    result.suptitle(title, fontsize=10)
    for panel, (name, array) in zip(result.subplots(len(maps), 1, squeeze=False)[:, 0], maps.items(), strict=True):
        limit = limit_of(list(maps.values()) if shared else [array])
        drawn = panel.imshow(array, cmap=matplotlib_cmap(cmap), norm=Normalize(-limit, limit), aspect='auto',
                             interpolation='nearest')
        panel.set_title(', '.join(filter(None, (name, (captions or {}).get(name)))), fontsize=9)
        panel.set_ylabel(axis, fontsize=8)
        _label(panel, 'x', count, tokens, rotation=90 if tokens is not None else 0)
        _label(panel, 'y', rows, names)
        result.colorbar(drawn, ax=panel, pad=.01, fraction=.05).ax.tick_params(labelsize=7)
    panel.set_xlabel('token', fontsize=8)
    return result


def _label(panel, side, count, labels, rotation=0):
    step = -(-count // _LABELS[side])
    places = list(range(0, count, step))
    texts = [str(place if labels is None else _short(labels[place], side)) for place in places]
    getattr(panel, f'set_{side}ticks')(places, texts, fontsize=7, rotation=rotation, parse_math=False)


def _short(label, side):
    '''Keep the beginning of a long token, and the end of a long name of a module.'''
    label = visible(label)
    if side == 'x':
        return label if len(label) <= 16 else f'{label[:15]}…'
    return label if len(label) <= 28 else f'…{label[-27:]}'
