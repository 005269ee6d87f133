'''The data has the evidence that it claims.'''
import pytest
import torch

from zennit_attn.demo import SHAPES, Samples, digits, scenes
from zennit_attn.demo.data import inside
from zennit_attn.demo.explain import spread

pytest.importorskip('sklearn')


def same(one, two):
    return all(torch.equal(*pair) for pair in zip(vars(one).values(), vars(two).values(), strict=True))


def test_scenes_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = scenes(4, 0), scenes(4, 0), scenes(4, 1)
    assert same(first, again)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.random.get_rng_state())


def test_scenes_have_shapes_types_and_all_classes():
    samples = scenes(100, 0)
    assert samples.images.shape == (100, 3, 32, 32)
    assert samples.masks.shape == (100, 32, 32)
    assert samples.masks.dtype == torch.bool
    assert samples.images.abs().max() <= 1.
    assert sorted(set(samples.labels.tolist())) == list(range(len(SHAPES)))


def test_masks_cover_one_flat_object_that_stands_out():
    samples = scenes(100, 0)
    for image, mask in zip(samples.images, samples.masks, strict=True):
        object_, ground = image[:, mask], image[:, ~mask]
        # one colour and the grain of 0.06, with a channel near the top; clouds, blobs and a line vary far more
        assert object_.std(dim=1).max() < .08
        assert object_.mean(dim=1).max() > .7
        assert ground.std(dim=1).min() > .1


def test_the_object_ends_where_its_mask_ends():
    samples = scenes(100, 0)
    padded = torch.nn.functional.max_pool2d(samples.masks.float()[:, None], 3, stride=1, padding=1)[:, 0].bool()
    rim = padded & ~samples.masks
    means = torch.stack([image[:, mask].mean(dim=1) for image, mask in zip(samples.images, samples.masks, strict=True)])
    distance = (samples.images - means[:, :, None, None]).abs().amax(dim=1)
    assert distance[samples.masks].median() < .15
    assert distance[rim].median() > .4


@pytest.mark.parametrize(('name', 'members', 'others'), [
    ('ring', [(.7, 0.), (0., -.7), (.5, .5)], [(0., 0.), (.9, .9), (.3, 0.)]),
    ('square', [(0., 0.), (.75, .75), (-.75, .75)], [(.9, 0.), (0., -.9)]),
    ('triangle', [(0., 0.), (.9, .75), (0., -.9)], [(.5, -.5), (-.5, -.5), (0., .9)]),
    ('cross', [(0., 0.), (.95, 0.), (0., -.95), (.3, .9)], [(.5, .5), (-.5, .5), (0., 1.1)]),
])
def test_shapes(name, members, others):
    label = SHAPES.index(name)
    assert inside(label, *torch.tensor(members).T).all()
    assert not inside(label, *torch.tensor(others).T).any()


def test_colour_says_nothing_about_the_class():
    samples = scenes(2000, 0)
    means = torch.stack([image[:, mask].mean(dim=1) for image, mask in zip(samples.images, samples.masks, strict=True)])
    by_class = torch.stack([means[samples.labels == label].mean(dim=0) for label in range(len(SHAPES))])
    # some 500 a class with a deviation of 0.26: four standard errors of a difference
    assert (by_class - means.mean(dim=0)).abs().max() < 4 * .26 / 500 ** .5


def test_digits_are_split_without_overlap():
    training, test = digits('train'), digits('test')
    assert (len(training), len(test)) == (1437, 360)
    assert test.images.shape == (360, 1, 8, 8)
    assert (test.images.min(), test.images.max()) == (0., 1.)
    assert test.masks is None
    assert sorted(set(test.labels.tolist())) == list(range(10))
    assert not {tuple(image.flatten().tolist()) for image in training.images} & {
        tuple(image.flatten().tolist()) for image in test.images}
    with pytest.raises(ValueError, match="'valid'"):
        digits('valid')


def test_spread_takes_each_class_in_turn():
    samples = Samples(torch.arange(6.), torch.tensor([3, 3, 1, 3, 1, 0]))
    assert spread(samples, 5).images.tolist() == [0., 2., 5., 1., 4.]
    assert spread(samples, 5).labels.tolist() == [3, 1, 0, 3, 1]
