'''Pictures: as files and cameras have them, as models take them, and back.'''
import numpy as np
import torch

#: The largest value of the modes in which Pillow keeps 16 bits.
_DEEP = ('I;16', 'I;16B', 'I;16L', 'I;16N', 'I')


def upright(picture):
    '''Return a picture as one looks at it: turned as its camera says, and with no more than 8 bits a channel.

    Pillow clips what has 16 bits to 255 where it converts it, so that nearly all of it is white.

    Parameters
    ----------
    picture: :py:class:`PIL.Image.Image`

    Returns
    -------
    :py:class:`PIL.Image.Image`
    '''
    from PIL import Image, ImageOps
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _DEEP:
        array = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((array / (65535. if array.max() > 255. else 255.) * 255.).round().astype(np.uint8))
    elif picture.mode == 'F':
        array = np.asarray(picture)
        picture = Image.fromarray((array / max(float(array.max()), 1.) * 255.).round().clip(0., 255.).astype(np.uint8))
    return picture


def normalization_of(processor):
    '''Return what a processor of images subtracts from them and divides them by.

    Parameters
    ----------
    processor: object
        An image processor of ``transformers``, one that has such a processor beside a tokenizer, the transforms of
        torchvision's weights, or transforms of torchvision or ``timm`` that end in ``Normalize``.

    Returns
    -------
    mean, std: tuple of float
        One for each channel; or None, if it is not known that it does.
    '''
    processor = getattr(processor, 'image_processor', processor)
    if getattr(processor, 'do_normalize', True) is False:
        return (0.,), (1.,)
    for names in (('image_mean', 'image_std'), ('mean', 'std')):
        mean, std = (getattr(processor, name, None) for name in names)
        if mean is not None and std is not None:
            return tuple(map(float, _flat(mean))), tuple(map(float, _flat(std)))
    for step in reversed(getattr(processor, 'transforms', None) or []):
        found = normalization_of(step)
        if found is not None:
            return found
    return None


def _flat(values):
    return np.asarray(values, dtype=np.float64).reshape(-1)


def to_picture(image, mean=None, std=None):
    '''Return an image as one looks at it.

    Parameters
    ----------
    image: :py:class:`torch.Tensor`, :py:class:`numpy.ndarray` or :py:class:`PIL.Image.Image`
        Of shape [channels, height, width], [1, channels, height, width], [height, width], or [height, width, channels],
        with 1 or 3 channels: integers, or numbers between 0 and 1, or normalized ones with their `mean` and `std`.
    mean, std: float or sequence of float, optional
        What was subtracted from the image, and what it was then divided by.

    Returns
    -------
    picture: :py:class:`numpy.ndarray`
        Colours between 0 and 1, of shape [height, width, 3].
    known: bool
        False if the image is normalized and nobody said by what, so that its least value was made black and its largest
        white.

    Raises
    ------
    ValueError
        If it is no image.
    '''
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy() if image.dtype != torch.bfloat16 else image.detach().cpu().float().numpy()
    else:
        array = np.asarray(upright(image).convert('RGB') if hasattr(image, 'getexif') else image)
    shape = array.shape
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[-1] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or len(array) not in (1, 3) or not array.size:
        raise ValueError(f'an image has shape [channels, height, width] with 1 or 3 channels, and this one has '
                         f'{list(shape)}')
    whole = 1. if array.dtype.kind == 'f' else 65535. if array.max() > 255 else 255.
    array = array.astype(np.float64) / whole
    given = mean is not None or std is not None
    if given:
        mean = _flat(0. if mean is None else mean)[:, None, None]
        std = _flat(1. if std is None else std)[:, None, None]
        if len(array) == 1:  # of a model of colours that was given grey
            mean, std = mean.mean(0, keepdims=True), std.mean(0, keepdims=True)
        array = array * std + mean
    known = given or (float(array.min()) >= -.05 and float(array.max()) <= 1.05)
    if not known:
        array = (array - array.min()) / (array.max() - array.min())
    array = array.clip(0., 1.).transpose(1, 2, 0)
    return np.broadcast_to(array, (*array.shape[:2], 3)), known
