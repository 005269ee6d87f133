'''An image and its relevance in one line.'''
import numpy as np
import pytest
import torch

from zennit_attn.heatmap import show


@pytest.mark.parametrize('shape', [(3, 6, 8), (1, 3, 6, 8), (6, 8)])
def test_the_image_its_relevance_and_both(shape, tmp_path):
    image, relevance = torch.rand(3, 6, 8), torch.randn(shape)
    drawn = show(image, relevance, 'a $title$', clip=0.)
    drawn.savefig(tmp_path / 'shown.png')
    summed = relevance.reshape(-1, 6, 8).sum(0)
    assert np.allclose(drawn.axes[0].images[0].get_array(), image.permute(1, 2, 0))
    middle = drawn.axes[1].images[0]
    assert np.allclose(middle.get_array(), summed)
    assert middle.norm.vmax == -middle.norm.vmin == pytest.approx(float(summed.abs().max()))
    over = drawn.axes[2].images[1]
    strongest = np.unravel_index(np.abs(summed.numpy()).argmax(), summed.shape)
    assert over.get_alpha()[strongest] == over.get_alpha().max() == pytest.approx(.85)
    assert [axis.get_title() for axis in drawn.axes[:3]] == ['image', 'relevance', 'both']
    assert len(drawn.axes) == 4  # and the colour bar


def test_relevance_of_patches_lies_over_all_of_the_image():
    drawn = show(torch.rand(3, 32, 16), torch.randn(4, 2))
    assert all(tuple(image.get_extent()) == (-.5, 15.5, 31.5, -.5) for axis in drawn.axes[:3] for image in axis.images)


def test_a_normalized_image_needs_its_mean_and_deviation():
    image = torch.rand(3, 4, 4)
    with pytest.warns(UserWarning, match='pass the mean and std'):
        show((image - .5) / .1, torch.ones(4, 4))
    drawn = show((image - .5) / .1, torch.ones(4, 4), mean=.5, std=.1)
    assert np.allclose(drawn.axes[0].images[0].get_array(), image.permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(('image', 'relevance', 'message'), [
    (torch.rand(2, 4, 4), torch.ones(4, 4), 'an image has shape'),
    (torch.rand(3, 4, 4), torch.ones(4), 'height, width'),
    (torch.rand(3, 4, 4), torch.full((4, 4), float('nan')), 'not a number'),
    (torch.rand(3, 4, 4), torch.ones(2, 3, 4, 4), 'height, width')])
def test_what_is_no_image_is_refused(image, relevance, message):
    with pytest.raises(ValueError, match=message):
        show(image, relevance)
