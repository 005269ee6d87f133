'''Pixels: an image beside the heatmap of each method.'''
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from zennit.image import imgify, palette

from .colors import COLORS, colorize, limit_of, to_array
from .titles import share, wrapped

_FOOTNOTE = (
    'red speaks for the class, blue against it; unaccounted: relevance found neither at the input nor in a named sink, '
    "as a share of the output's"
)


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
        return f'unaccounted {share(self.unaccounted, self.output)}'


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


def pixel_image(relevance, limit=None, clip=0., cmap=COLORS):
    '''Draw relevance as an image with a pixel for each entry, by :py:func:`zennit.image.imgify`.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(height, width)``, or with channels, ``(channels, height, width)``, which are summed.
    limit: float, optional
        The absolute relevance from which on the colour is full, e.g. to give several images one scale.
    clip: float
        If there is no `limit`, the share of the entries with the largest absolute relevance that get the full colour.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`PIL.Image.Image`
        The image, of `width` times `height`. ``save`` writes it.
    '''
    array = to_array(relevance)
    array = array.sum(axis=0) if array.ndim == 3 else to_array(relevance, 2, '(height, width) or with channels first')
    limit = limit_of([array], clip) if limit is None else limit
    if not limit > 0.:
        raise ValueError(f'limit is the relevance with the full colour and has to be positive, got {limit!r}.')
    # imgify rounds down to 256 steps, of which the middle one, 128, is white
    image = imgify(array, vmin=-128.5 / 127. * limit, vmax=126.5 / 127. * limit, cmap=cmap)
    # Pillow resizes and saves images with a palette of bytes, not of an array, which Zennit gives it
    image.putpalette(palette(cmap).tobytes())
    return image


def grey_or_rgb(image, limits=(0., 1.)):
    '''Return an image as colours.

    Parameters
    ----------
    image: :py:class:`torch.Tensor`
        Image of shape ``(channels, height, width)`` with 1 or 3 channels.
    limits: tuple[float, float]
        The values of the image that are black and white.

    Returns
    -------
    :py:class:`numpy.ndarray`
        Colours between 0 and 1, of shape ``(height, width, 3)``.
    '''
    low, high = limits
    if image.ndim != 3 or len(image) not in (1, 3) or not low < high:
        raise ValueError(f'An image of shape (1 or 3, height, width) and limits (black, white) are needed; got '
                         f'{tuple(image.shape)} and {limits}.')
    array = np.asarray(image.detach().to('cpu', torch.float64)).transpose(1, 2, 0)
    array = ((array - low) / (high - low)).clip(0., 1.)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def figure(rows, title='', shared=True, clip=.01, cmap=COLORS):
    '''Draw inputs beside their heatmaps.

    Parameters
    ----------
    rows: list[:py:class:`Row`]
        The rows, all with the same methods.
    title: str
        Written above.
    shared: bool
        Whether the heatmaps of a row share a scale. If not, each has its own, symmetric around 0, which compares where
        methods put relevance, but not how much.
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
    width = 1.75 * (1 + len(methods)) + .35
    title, note = wrapped(title, width, 11), wrapped(_FOOTNOTE + shared * '; maps of a row share a scale', width, 7)
    height = 1.8 * len(rows) + .38 + .2 * len(title.splitlines()) + .1 * bool(title) + .12 * len(note.splitlines())
    result = Figure((width, height), layout='constrained')
    result.suptitle(title, fontsize=11)
    result.supxlabel(note, fontsize=7, color='.3')
    for axes, row in zip(result.subplots(len(rows), 1 + len(methods), squeeze=False), rows, strict=True):
        maps = [to_array(row.heatmaps[name].relevance, 2, '(height, width)') for name in methods]
        limits = [limit_of(maps if shared else [array], clip) for array in maps]
        _draw_row(axes, row, methods, limits, cmap)
    for axis, name in zip(result.axes, ['input', *methods], strict=False):
        axis.set_title(name, fontsize=10)
    return result


def _draw_row(axes, row, methods, limits, cmap):
    _draw(axes[0], grey_or_rgb(row.image, row.limits))
    axes[0].set_ylabel(row.label, fontsize=10)
    for axis, name, limit in zip(axes[1:], methods, limits, strict=True):
        _draw(axis, colorize(row.heatmaps[name].relevance, limit, cmap))
        axis.set_xlabel(row.heatmaps[name].caption(), fontsize=8)


def _draw(axis, picture):
    axis.imshow(picture, interpolation='nearest')
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_color('.7')
