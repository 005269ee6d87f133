'''Heatmaps: relevance as pictures, an input beside the map of each method.'''
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from zennit.image import get_cmap

_FOOTNOTE = (
    'red speaks for the class, blue against it; unaccounted: relevance found neither at the input nor in a named sink, '
    "as a share of the output's"
)
#: Diverging and white at its centre: red speaks for the target, blue against it.
COLORS = 'bwr'


@dataclass(frozen=True)
class Heatmap:
    '''The relevance of an image by one method.

    Attributes
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of pixels or patches, of shape ``(height, width)``, see :py:func:`pixel_relevance`.
    output: float, optional
        Relevance at the model's output.
    unaccounted: float, optional
        What of it is found neither at the input nor in a named sink.
    '''
    relevance: torch.Tensor
    output: float | None = None
    unaccounted: float | None = None

    def caption(self):
        '''Return `unaccounted` in units of the output's relevance, or an empty string if it is not known.'''
        if self.unaccounted is None:
            return ''
        unaccounted = float(self.unaccounted) / abs(float(self.output)) if self.output else float(self.unaccounted)
        if unaccounted == 0.:
            return 'unaccounted 0'
        return f'unaccounted {unaccounted:.0e}' if abs(unaccounted) < 1e-3 else f'unaccounted {unaccounted:.1%}'


@dataclass(frozen=True)
class Row:
    '''An input and its heatmaps, a row of a figure.

    Attributes
    ----------
    image: :py:class:`torch.Tensor`
        The input, of shape ``(channels, height, width)`` with 1 or 3 channels.
    heatmaps: dict[str, :py:class:`Heatmap`]
        The heatmaps by the name of their method. In a figure all rows have the same methods.
    label: str
        What the row is, written at its left.
    limits: tuple[float, float]
        The values of the image that are black and white.
    '''
    image: torch.Tensor
    heatmaps: dict = field(default_factory=dict)
    label: str = ''
    limits: tuple = (0., 1.)


def pixel_relevance(relevance):
    '''Sum relevance over the channels.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of images, of shape ``(..., channels, height, width)``.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of pixels, of shape ``(..., height, width)``.
    '''
    if relevance.ndim < 3:
        raise ValueError(f'An image has channels, height and width; the relevance has shape {tuple(relevance.shape)}.')
    return relevance.sum(dim=-3)


def patch_relevance(relevance, patch_size):
    '''Sum relevance over the channels and over square patches.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of images, of shape ``(..., channels, height, width)``.
    patch_size: int
        Height and width of a patch in pixels. Has to divide both sides of the image.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of patches, of shape ``(..., height / patch_size, width / patch_size)``.
    '''
    pixels = pixel_relevance(relevance)
    height, width = pixels.shape[-2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f'Patches of {patch_size} x {patch_size} pixels do not tile an image of {height} x {width}.')
    return pixels.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size)).sum(dim=(-3, -1))


def positive_share(relevance, mask):
    '''Share of the positive relevance that lies on a mask: 1 if all evidence for the target is found on the object.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of pixels, of shape ``(..., height, width)``.
    mask: :py:class:`torch.Tensor`
        True on the object, of the same shape.

    Returns
    -------
    :py:class:`torch.Tensor`
        Shares of shape ``(...)``, 0 where no relevance is positive.
    '''
    if relevance.shape != mask.shape:
        raise ValueError(f'Relevance of shape {tuple(relevance.shape)} has a mask of shape {tuple(mask.shape)}.')
    positive = relevance.clamp(min=0.)
    total = positive.sum(dim=(-2, -1))
    return torch.where(total > 0., (positive * mask).sum(dim=(-2, -1)) / total, 0.)


def colorize(relevance, limit=None, cmap=COLORS):
    '''Colour relevance, with the centre of the colour map at 0.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(height, width)``.
    limit: float, optional
        The absolute relevance from which on the colour is full. Default is the largest in the map.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`numpy.ndarray`
        Colours between 0 and 1, of shape ``(height, width, 3)``.
    '''
    array = np.asarray(relevance.detach().to('cpu', torch.float64))
    if not np.isfinite(array).all():
        raise ValueError('The relevance has entries that are infinite or not a number.')
    limit = float(np.abs(array).max()) if limit is None else limit
    # any limit shows an empty map white; the clip is for the last digit, matplotlib warns of it
    return get_cmap(cmap)((array / (limit or 1.) + 1.) / 2.).clip(0., 1.)


def _grey_or_rgb(image, limits):
    low, high = limits
    array = np.asarray(image.detach().to('cpu', torch.float64)).transpose(1, 2, 0)
    array = ((array - low) / (high - low)).clip(0., 1.)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def figure(rows, title='', shared=False, clip=.01, cmap=COLORS):
    '''Draw inputs beside their heatmaps.

    Parameters
    ----------
    rows: list[:py:class:`Row`]
        The rows, all with the same methods.
    title: str
        Written above.
    shared: bool
        Whether the heatmaps of a row share a scale. Default is that each has its own, symmetric around 0, because
        methods differ in magnitude.
    clip: float
        Share of the pixels with the largest absolute relevance that get the full colour, so that one strong pixel does
        not hide all others.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure, with a row of axes for each row. ``savefig`` writes it.
    '''
    if not rows or any(row.heatmaps.keys() != rows[0].heatmaps.keys() for row in rows):
        raise ValueError('A figure needs rows, and the same methods in each of them.')
    methods = list(rows[0].heatmaps)
    # sizes in inches: 1.5 for a picture, above it room for the title and a line of names
    result = Figure((1.75 * (1 + len(methods)) + .35, 1.8 * len(rows) + .5 + .3 * bool(title)), layout='constrained')
    result.suptitle(title, fontsize=11)
    result.supxlabel(_FOOTNOTE, fontsize=7, color='.3')
    for axes, row in zip(result.subplots(len(rows), 1 + len(methods), squeeze=False), rows, strict=True):
        limits = [_limit(row.heatmaps[name].relevance, clip) for name in methods]
        _draw_row(axes, row, methods, [max(limits)] * len(limits) if shared else limits, cmap)
    for axis, name in zip(result.axes, ['input', *methods], strict=False):
        axis.set_title(name, fontsize=10)
    return result


def _limit(relevance, clip):
    return float(relevance.detach().double().abs().flatten().quantile(1. - clip))


def _draw_row(axes, row, methods, limits, cmap):
    _draw(axes[0], _grey_or_rgb(row.image, row.limits))
    axes[0].set_ylabel(row.label, fontsize=10)
    for axis, name, limit in zip(axes[1:], methods, limits, strict=True):
        _draw(axis, colorize(row.heatmaps[name].relevance, limit, cmap))
        axis.set_xlabel(row.heatmaps[name].caption(), fontsize=8)


def _draw(axis, picture):
    axis.imshow(picture, interpolation='nearest')
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color('.7')
