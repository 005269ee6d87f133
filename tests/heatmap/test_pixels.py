'''Relevance of pixels: sums, shares and colours.'''
import numpy as np
import pytest
import torch

from zennit_attn.heatmap import Heatmap, colorize, patch_relevance, pixel_image, pixel_relevance, positive_share

RELEVANCE = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).reshape(2, 3, 4, 6)


def test_pixel_relevance_sums_channels():
    expected = RELEVANCE[:, 0] + RELEVANCE[:, 1] + RELEVANCE[:, 2]
    torch.testing.assert_close(pixel_relevance(RELEVANCE), expected)
    torch.testing.assert_close(pixel_relevance(RELEVANCE[0]), expected[0])


def test_patch_relevance_sums_channels_and_patches():
    patches = patch_relevance(RELEVANCE, 2)
    assert patches.shape == (2, 2, 3)
    for row in range(2):
        for column in range(3):
            block = RELEVANCE[:, :, 2 * row:2 * row + 2, 2 * column:2 * column + 2]
            torch.testing.assert_close(patches[:, row, column], block.sum(dim=(1, 2, 3)))


def test_patches_need_not_be_square():
    patches = patch_relevance(RELEVANCE, (4, 2))
    assert patches.shape == (2, 1, 3)
    torch.testing.assert_close(patches[1, 0, 2], RELEVANCE[1, :, :, 4:].sum())


@pytest.mark.parametrize('size', [0, 3, 4, 5, (2, 4), (3, 2)])
def test_patches_have_to_tile_the_image(size):
    with pytest.raises(ValueError, match='do not tile an image of 4 x 6'):
        patch_relevance(RELEVANCE, size)


def test_relevance_without_channels_is_refused():
    with pytest.raises(ValueError, match=r'shape \(4, 6\)'):
        pixel_relevance(RELEVANCE[0, 0])


def test_positive_share():
    relevance = torch.tensor([[[3., -9.], [1., 0.]], [[-1., -2.], [0., 0.]], [[1., 1.], [1., 1.]]])
    mask = torch.tensor([[True, True], [False, False]]).expand(3, 2, 2)
    torch.testing.assert_close(positive_share(relevance, mask), torch.tensor([.75, 0., .5]))
    with pytest.raises(ValueError, match='mask of shape'):
        positive_share(relevance, mask[0])


def test_colours_are_centred_at_zero():
    colours = colorize(torch.tensor([[-2., -1., 0.], [1., 2., 4.]]))
    assert colours.shape == (2, 3, 3)
    # half and a quarter of the largest absolute relevance: blue below 0, white at 0, red above
    expected = [[[.5, .5, 1.], [.75, .75, 1.], [1., 1., 1.]], [[1., .75, .75], [1., .5, .5], [1., 0., 0.]]]
    np.testing.assert_allclose(colours, expected, atol=.005)


def test_colours_take_a_limit_and_a_colour_map():
    colours = colorize(torch.tensor([[-1., 8.]]), limit=4.)
    np.testing.assert_allclose(colours, [[[.75, .75, 1.], [1., 0., 0.]]], atol=.005)
    np.testing.assert_allclose(colorize(torch.tensor([[-1., 1.]]), cmap='coldnhot'), [[[0., 1., 1.], [1., 1., 1.]]])


def test_colours_do_not_depend_on_magnitude():
    relevance = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(colorize(relevance), colorize(1e-12 * relevance), atol=1e-9)


def test_an_empty_map_is_white():
    np.testing.assert_allclose(colorize(torch.zeros(2, 2)), np.ones((2, 2, 3)), atol=.005)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_relevance_that_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match='infinite or not a number'):
        colorize(torch.tensor([[1., value]]))


@pytest.mark.parametrize(('output', 'unaccounted', 'expected'), [
    (4., 1e-12, 'unaccounted 2e-13'),
    (-4., -1e-12, 'unaccounted -2e-13'),
    (-4., 2., 'unaccounted 50.0%'),
    (4., 0., 'unaccounted 0'),
    (0., 1e-9, 'unaccounted 1e-09'),
    (4., None, ''),
])
def test_captions_are_shares_of_the_output(output, unaccounted, expected):
    assert Heatmap(torch.zeros(1, 1), output, unaccounted).caption() == expected


# ---- pixels by Zennit ------------------------------------------------------------------------------------------------

def test_pixel_image_is_centred_at_zero(tmp_path):
    picture = pixel_image(torch.tensor([[-4., 0.], [2., 4.]]))
    assert picture.size == (2, 2)
    colours = np.asarray(picture.convert('RGB')) / 255.
    np.testing.assert_allclose(colours, colorize(torch.tensor([[-4., 0.], [2., 4.]])), atol=.01)
    picture.resize((8, 8)).save(tmp_path / 'pixels.png')


def test_pixel_image_sums_channels_and_takes_a_limit():
    relevance = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    colours = np.asarray(pixel_image(relevance, limit=7.).convert('RGB')) / 255.
    np.testing.assert_allclose(colours, colorize(relevance.sum(dim=0), limit=7.), atol=.01)


def test_pixel_image_of_nothing_is_white():
    assert np.asarray(pixel_image(torch.zeros(2, 2)).convert('RGB')).min() == 255


@pytest.mark.parametrize(('relevance', 'options', 'message'), [
    (torch.zeros(4), {}, r'shape \(4,\)'), (torch.zeros(0, 4), {}, 'empty'),
    (torch.zeros(2, 2), {'limit': 0.}, 'positive'),
    (torch.tensor([[float('nan')]]), {}, 'nan_to_num'), (torch.zeros(2, 2, 2, 2), {}, 'channels'),
])
def test_pixel_image_refuses(relevance, options, message):
    with pytest.raises(ValueError, match=message):
        pixel_image(relevance, **options)
