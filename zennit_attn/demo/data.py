'''The demo's two data sets: scikit-learn's handwritten digits, and drawn scenes whose true evidence is known.'''
import math
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import interpolate

SHAPES = ('ring', 'square', 'triangle', 'cross')
DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True)
class Samples:
    '''Images with their classes and, where it is known, the evidence. A slice of samples is again samples.

    Attributes
    ----------
    images: :py:obj:`torch.Tensor`
        Float images of shape ``(count, channels, height, width)``.
    labels: :py:obj:`torch.Tensor`
        Class indices of shape ``(count,)``.
    masks: :py:obj:`torch.Tensor` or None
        True where the object is that decides the class, of shape ``(count, height, width)``. None if unknown.
    '''
    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        masks = None if self.masks is None else self.masks[index]
        return Samples(self.images[index], self.labels[index], masks)

    def to(self, dtype):
        '''Return the samples with images of another type.'''
        return replace(self, images=self.images.to(dtype))


def digits(split='test'):
    '''Scikit-learn's 1,797 handwritten digits: 8 x 8 pixels, one channel, 0 (paper) to 1 (ink).

    Every fifth digit is held out, so the same writers are in both splits.

    Parameters
    ----------
    split: str
        ``'train'`` or ``'test'``.

    Returns
    -------
    :py:obj:`Samples`
        The digits of the split, without masks.
    '''
    if split not in ('train', 'test'):
        raise ValueError(f"The split has to be 'train' or 'test', not {split!r}.")
    source = _load_digits()
    held_out = torch.arange(len(source.target)) % 5 == 0
    chosen = held_out if split == 'test' else ~held_out
    images = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16.
    return Samples(images[chosen], torch.tensor(source.target, dtype=torch.int64)[chosen])


def _load_digits():
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'zennit-attn[demo]'") from error
    return load_digits()


def scenes(count, seed, size=32):
    '''Draw scenes: a flat shape, which is the class, on a textured ground with soft blobs and a thin line.

    Values lie in [-1, 1] around grey, and colours say nothing about the class. The shape is drawn last, so its mask
    is exact.

    Parameters
    ----------
    count: int
        Number of scenes.
    seed: int
        The same seed and count draw the same scenes. The global random state is neither used nor changed.
    size: int
        Height and width in pixels.

    Returns
    -------
    :py:obj:`Samples`
        RGB images, labels as indices into `SHAPES`, and the masks of the shapes.
    '''
    draw = _Draw(count, seed, size)
    images = draw.ground()
    for _ in range(3):
        images = _paint(images, draw.blob(), draw.colour())
    images = _paint(images, draw.line(), draw.colour())
    labels, masks = draw.shape()
    images = _paint(images, masks.float(), draw.colour())
    return Samples((images + draw.noise(.06)).clamp(-1., 1.), labels, masks)


def inside(label, u, v):
    '''Whether points lie in a shape of about unit radius.

    Parameters
    ----------
    label: int
        Index into `SHAPES`.
    u: :py:obj:`torch.Tensor`
        Coordinates to the right of the centre.
    v: :py:obj:`torch.Tensor`
        Coordinates below the centre.

    Returns
    -------
    :py:obj:`torch.Tensor`
        True for the points inside.
    '''
    return {
        'ring': ((u ** 2 + v ** 2).sqrt() - .7).abs() <= .25,
        'square': torch.maximum(u.abs(), v.abs()) <= .8,
        'triangle': (v <= .8) & (u.abs() <= .6 * (v + 1.)),
        'cross': (torch.minimum(u.abs(), v.abs()) <= .32) & (torch.maximum(u.abs(), v.abs()) <= 1.),
    }[SHAPES[label]]


def _paint(images, cover, colour):
    '''Lay a colour over images where `cover` (count, height, width) is 1, and mix where it is between 0 and 1.'''
    return images + cover[:, None] * (colour - images)


class _Draw:
    '''The random parts of scenes, each for a whole batch.'''
    def __init__(self, count, seed, size):
        self.count, self.size = count, size
        self.generator = torch.Generator().manual_seed(seed)
        axis = torch.arange(size) + .5
        self.rows, self.columns = torch.meshgrid(axis, axis, indexing='ij')

    def uniform(self, low, high, *shape):
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)

    def noise(self, scale):
        return scale * torch.randn(self.count, 3, self.size, self.size, generator=self.generator)

    def ground(self):
        '''Smooth colour clouds and a grain.'''
        clouds = self.uniform(-.4, .4, 3, 5, 5)
        return interpolate(clouds, (self.size, self.size), mode='bicubic', align_corners=True) + self.noise(.06)

    def colour(self):
        '''A bright colour of any hue, its strongest channel 0.8 to 1 above grey.'''
        hue = self.uniform(0., 1., 3, 1, 1)
        return hue / hue.amax(1, keepdim=True) * self.uniform(.8, 1., 1, 1, 1)

    def local(self, margin):
        '''Pixel coordinates relative to a random centre that keeps `margin` from the border.'''
        column, row = (margin + self.uniform(0., 1., 1, 1) * (self.size - 2. * margin) for _ in range(2))
        return self.columns - column, self.rows - row

    def turned(self, u, v, limit):
        '''Coordinates turned by a random angle of at most `limit`.'''
        angle = self.uniform(-limit, limit, 1, 1)
        return u * angle.cos() + v * angle.sin(), v * angle.cos() - u * angle.sin()

    def blob(self):
        '''A soft spot, opaque only in its centre.'''
        u, v = self.local(0.)
        return torch.exp(-(u ** 2 + v ** 2) / (2. * self.uniform(1.5, 3.5, 1, 1) ** 2))

    def line(self):
        '''A thin stroke.'''
        u, v = self.turned(*self.local(0.), math.pi)
        return ((v.abs() <= .8) & (u.abs() <= self.uniform(5., 12., 1, 1))).float()

    def shape(self):
        '''A shape of random class, place, size and slight turn.'''
        labels = torch.randint(len(SHAPES), (self.count,), generator=self.generator)
        radius = self.uniform(.18, .24, 1, 1) * self.size
        u, v = (axis / radius for axis in self.turned(*self.local(1.05 * radius), .1))
        members = torch.stack([inside(label, u, v) for label in range(len(SHAPES))])
        return labels, members[labels, torch.arange(self.count)]
