'''Colours: diverging, centred at 0, on a scale that maps share.'''
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from zennit.image import get_cmap

#: Diverging and white at its centre: red speaks for the target, blue against it.
COLORS = 'bwr'


def to_array(relevance, ndim=None, axes=''):
    '''Return relevance as a NumPy array of doubles, after checks.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor` or array_like
        Relevance.
    ndim: int, optional
        Number of dimensions that it has to have.
    axes: str
        What these are, for the error.

    Returns
    -------
    :py:class:`numpy.ndarray`

    Raises
    ------
    ValueError
        If it has another number of dimensions, is empty, or has entries that are not finite.
    '''
    if isinstance(relevance, torch.Tensor):
        relevance = relevance.detach().to('cpu', torch.float64)
    array = np.asarray(relevance, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f'The relevance has shape {array.shape}; expected {axes}.')
    if not array.size:
        raise ValueError(f'The relevance of shape {array.shape} is empty.')
    if not np.isfinite(array).all():
        raise ValueError(
            f'The relevance has {np.sum(~np.isfinite(array))} of {array.size} entries that are infinite or not a '
            'number: look for overflow or 0 / 0 in the model (torch.autograd.set_detect_anomaly(True) names the '
            'operator, float64 may do), or decide with torch.nan_to_num what such entries count as.'
        )
    return array


def limit_of(arrays, clip=0.):
    '''Return the absolute relevance from which on the colour is full, for maps that share a scale.

    Parameters
    ----------
    arrays: list of :py:class:`numpy.ndarray`
        The maps.
    clip: float
        Share of each map's entries, those with the largest absolute relevance, that get the full colour.

    Returns
    -------
    float
        1 if all entries are 0.
    '''
    if not 0. <= clip < 1.:
        raise ValueError(f'clip is a share of the entries, at least 0 and less than 1, got {clip!r}.')
    # a map that is zero but for few entries has a quantile of zero, and is scaled to its largest entry
    limits = [float(np.quantile(np.abs(array), 1. - clip)) or float(np.abs(array).max()) for array in arrays]
    return max(limits) or 1.


def colorize(relevance, limit=None, cmap=COLORS):
    '''Colour relevance, with the centre of the colour map at 0.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of any shape, e.g. ``(height, width)``.
    limit: float, optional
        The absolute relevance from which on the colour is full. Default is the largest in the map.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`numpy.ndarray`
        Colours between 0 and 1, of the shape of `relevance` and 3.
    '''
    array = to_array(relevance)
    limit = limit_of([array]) if limit is None else limit
    # any limit shows an empty map white; the clip is for the last digit, matplotlib warns of it
    return get_cmap(cmap)((array / (limit or 1.) + 1.) / 2.).clip(0., 1.)


def is_dark(colour):
    '''Return whether white is easier to read on a colour than black.

    Parameters
    ----------
    colour: :py:class:`numpy.ndarray`
        Red, green and blue between 0 and 1.

    Returns
    -------
    bool
    '''
    return float(colour @ np.array([.299, .587, .114])) < .5


def matplotlib_cmap(cmap):
    '''Return a colour map of Zennit as one of matplotlib, e.g. for a colour bar.

    Parameters
    ----------
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`matplotlib.colors.ListedColormap`
    '''
    return ListedColormap(get_cmap(cmap)(np.linspace(0., 1., 256)).clip(0., 1.))


def by_method(maps):
    '''Return maps by the name of their method: one alone has the empty name.

    Parameters
    ----------
    maps: mapping or any
        Maps by the name of their method, or a single one.

    Returns
    -------
    dict
    '''
    maps = dict(maps) if isinstance(maps, Mapping) else {'': maps}
    if not maps:
        raise ValueError('There is no relevance to draw: the dictionary of methods is empty.')
    return maps
