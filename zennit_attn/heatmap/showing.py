'''One line that shows an image and its relevance.'''
import warnings

from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ..pictures import to_picture
from .colors import COLORS, colorize, limit_of, matplotlib_cmap, to_array
from .titles import wrapped


def show(image, relevance, title='', mean=None, std=None, clip=.01, cmap=COLORS):
    '''Draw an image, its relevance, and the one over the other, with a colour bar.

    Parameters
    ----------
    image: :py:class:`torch.Tensor`, :py:class:`numpy.ndarray` or :py:class:`PIL.Image.Image`
        The image that the model was given, of shape [channels, height, width] or [1, channels, height, width] with 1 or
        3 channels; or a picture.
    relevance: :py:class:`torch.Tensor`
        Its relevance, of shape [channels, height, width], [1, channels, height, width], or summed over the channels,
        [height, width]. With fewer pixels than the image, e.g. one for each patch, it is drawn over all of the image.
    title: str, optional
        Written above.
    mean, std: float or sequence of float, optional
        What was subtracted from the image, and what it was then divided by, e.g. ``processor.image_mean``.
    clip: float, optional
        Share of the pixels with the largest absolute relevance that get the full colour.
    cmap: str or :py:class:`zennit.cmap.ColorMap`, optional
        Colour map as in :py:func:`zennit.image.get_cmap`.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        A notebook shows it; ``savefig`` writes it.

    Raises
    ------
    ValueError
        If it is no image, or no relevance of one.

    Warns
    -----
    UserWarning
        If the image is normalized, but neither `mean` nor `std` are given.

    Examples
    --------
    >>> show(images[0], explanation.relevance[0], mean=processor.image_mean, std=processor.image_std)
    '''
    picture, known = to_picture(image, mean, std)
    if not known:
        warnings.warn('the image has values that are not between 0 and 1: it is drawn from its least to its largest '
                      'value; pass the mean and std that it was normalized by, to see what the model saw', stacklevel=2)
    array = to_array(relevance)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = to_array(array.sum(0) if array.ndim == 3 else array, 2, '[height, width], or with channels before these')
    limit = limit_of([array], clip)
    height, width = picture.shape[:2]
    size = 2.2 * min(max(width / height, .4), 4.)
    whole = 3. * size + 1.
    heading = wrapped(title, whole, 11)
    result = Figure((whole, 2.6 + .2 * len(heading.splitlines())), layout='constrained')
    result.suptitle(heading, fontsize=11)
    axes = result.subplots(1, 3)
    place = {'extent': (-.5, width - .5, height - .5, -.5), 'interpolation': 'nearest'}
    # The overlay is as strong as the relevance, over a pale and grey picture: colours are of the relevance alone.
    pale = (.5 + .5 * picture.mean(2, keepdims=True)).repeat(3, 2)
    for axis, name, drawn in ((axes[0], 'image', picture), (axes[2], 'both', pale)):
        axis.imshow(drawn, **place)
        axis.set_title(name, fontsize=10)
    axes[1].set_title('relevance', fontsize=10)
    bar = axes[1].imshow(array, cmap=matplotlib_cmap(cmap), norm=Normalize(-limit, limit), **place)
    strength = (abs(array) / limit).clip(0., 1.) ** .5
    axes[2].imshow(colorize(array, limit, cmap), alpha=.85 * strength, **place)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    result.colorbar(bar, ax=axes, fraction=.04, pad=.01).ax.tick_params(labelsize=7)
    return result
