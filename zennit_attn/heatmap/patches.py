'''Patches: the relevance of tokens back on the image they were cut from.'''
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .colors import COLORS, by_method, colorize, is_dark, limit_of, to_array
from .pixels import grey_or_rgb, pixel_relevance
from .titles import wrapped


def patch_relevance(relevance, patch_size):
    '''Sum relevance over the channels and over patches.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of images, of shape ``(..., channels, height, width)``.
    patch_size: int or tuple[int, int]
        Height and width of a patch in pixels. They have to divide the sides of the image.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of patches, of shape ``(..., rows, columns)``.
    '''
    pixels = pixel_relevance(relevance)
    tall, wide = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    height, width = pixels.shape[-2:]
    if min(tall, wide) < 1 or height % tall or width % wide:
        raise ValueError(f'Patches of {tall} x {wide} pixels do not tile an image of {height} x {width}.')
    return pixels.unflatten(-1, (-1, wide)).unflatten(-3, (-1, tall)).sum(dim=(-3, -1))


@dataclass(frozen=True)
class Patches:
    '''The relevance of the tokens of an image.

    Attributes
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of patches, of shape ``(..., rows, columns)``.
    special: dict[str, :py:class:`torch.Tensor`]
        Relevance of the tokens that are no patches, such as ``cls`` and registers, by their names, each of shape
        ``(...)``.
    '''
    relevance: torch.Tensor
    special: dict = field(default_factory=dict)

    def __getitem__(self, index):
        '''Return the tokens of one sample.'''
        return Patches(self.relevance[index], {name: value[index] for name, value in self.special.items()})


def token_patches(relevance, grid=None, before=(), after=()):
    '''Sort the relevance of tokens into patches and named others.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of tokens, of shape ``(..., tokens)``. Sum over features first: ``relevance.sum(dim=-1)``.
    grid: tuple[int, int], optional
        Number of rows and columns of patches, row by row. Default is a square.
    before: list[str]
        Names of the tokens before the patches, e.g. ``['cls', 'register 1', 'register 2']``.
    after: list[str]
        Names of the tokens behind the patches.

    Returns
    -------
    :py:class:`Patches`

    Raises
    ------
    ValueError
        If the number of tokens is another.
    '''
    before, after = _names(before, 'before'), _names(after, 'after')
    tokens = relevance.shape[-1] if relevance.ndim else 0
    count = tokens - len(before) - len(after)
    rows, columns = grid if grid is not None else (round(max(count, 0) ** .5),) * 2
    if rows < 1 or columns < 1 or rows * columns != count:
        named = f'{len(before)} before and {len(after)} after'
        raise ValueError(
            f'The relevance of shape {tuple(relevance.shape)} has {tokens} tokens, which are not {rows} x {columns} '
            f'patches, {named}. Pass grid=(rows, columns), and the names of other tokens as before=, after=.')
    special = {name: relevance[..., index] for index, name in enumerate(before)}
    special.update((name, relevance[..., index - len(after)]) for index, name in enumerate(after))
    if len(special) < len(before) + len(after):
        raise ValueError(f'Each token that is no patch needs a name of its own, got {[*before, *after]}.')
    return Patches(relevance[..., len(before):tokens - len(after)].unflatten(-1, (rows, columns)), special)


def _names(names, argument):
    if isinstance(names, (str, int)):
        raise ValueError(f"{argument} is a list of names, e.g. ['cls'], got {names!r}.")
    return list(names)


def patch_figure(image, patches, title='', captions=None, limits=(0., 1.), shared=True, cmap=COLORS):
    '''Draw an image beside the relevance of its patches, with the other tokens named below.

    Parameters
    ----------
    image: :py:class:`torch.Tensor`
        The image, of shape ``(1 or 3, height, width)``.
    patches: :py:class:`Patches`, :py:class:`torch.Tensor` or dict
        The relevance of patches, with other tokens or alone, of shape ``(rows, columns)``, or several by the name of
        their method.
    title: str
        Written above, see :py:func:`~zennit_attn.heatmap.title`.
    captions: dict[str, str], optional
        Written below each method, e.g. what is unaccounted.
    limits: tuple[float, float]
        The values of the image that are black and white.
    shared: bool
        Whether the methods share a scale.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure. ``savefig`` writes it.
    '''
    maps = {name: item if isinstance(item, Patches) else Patches(item) for name, item in by_method(patches).items()}
    values = [_values(item) for item in maps.values()]
    picture = grey_or_rgb(image, limits)
    scales = [limit_of(values if shared else [array]) for array in values]
    inches = 2.2 * min(max(picture.shape[1] / picture.shape[0], .5), 3.)
    specials = max(len(item.special) for item in maps.values())
    width = (inches + .2) * (1 + len(maps))
    title = wrapped(title, width, 10)
    height = 2.6 + .25 * bool(captions) + .45 * bool(specials) + .1 * bool(title) + .2 * len(title.splitlines())
    result = Figure((width, height), layout='constrained')
    result.suptitle(title, fontsize=10)
    ratios = {'height_ratios': [8, 1]} if specials else {}
    axes = result.subplots(1 + bool(specials), 1 + len(maps), squeeze=False, gridspec_kw=ratios)
    _show(axes[0, 0], picture, 'input')
    for column, (name, item) in enumerate(maps.items(), start=1):
        _draw_patches(axes[0, column], picture, item, scales[column - 1], cmap, name, (captions or {}).get(name, ''))
    for axis in axes[1:].flat:
        axis.axis('off')
    for column, item in enumerate(maps.values(), start=1):
        if item.special:
            _draw_special(axes[1, column], item.special, scales[column - 1], cmap)
    return result


def _values(item):
    return np.concatenate([to_array(item.relevance, 2, '(rows, columns); choose a sample').ravel(),
                           *(to_array(value, 0, 'a number for each token').ravel() for value in item.special.values())])


def _show(axis, picture, name):
    axis.imshow(picture, interpolation='nearest')
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=10)
    for spine in axis.spines.values():
        spine.set_color('.7')


def _draw_patches(axis, picture, item, limit, cmap, name, caption):
    colours = colorize(item.relevance, limit, cmap)
    height, width = picture.shape[:2]
    rows = np.arange(height) * len(colours) // height
    columns = np.arange(width) * colours.shape[1] // width
    # the image shades the colours, so that one sees what lies under a patch, and white is still 0
    shade = .75 + .25 * picture.mean(axis=2, keepdims=True)
    _show(axis, colours[rows][:, columns] * shade, name)
    axis.set_xlabel(caption, fontsize=8)


def _draw_special(axis, special, limit, cmap):
    axis.set(xlim=(-.5, len(special) - .5), ylim=(-.5, .5))
    for index, (name, value) in enumerate(special.items()):
        colour = colorize(value, limit, cmap)
        axis.add_patch(_box(index, colour))
        dark = is_dark(colour)
        axis.text(index, 0., f'{name}\n{float(value):.2g}', ha='center', va='center', fontsize=7,
                  color='white' if dark else 'black')


def _box(index, colour):
    return Rectangle((index - .48, -.48), .96, .96, facecolor=colour, edgecolor='.7')
