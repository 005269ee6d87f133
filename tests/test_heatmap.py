'''Heatmaps: sums, shares and colours on arrays whose answers are known, and what a figure says.'''
import numpy as np
import pytest
import torch

from zennit_attn.heatmap import Heatmap, Row, colorize, figure, patch_relevance, pixel_relevance, positive_share

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


@pytest.mark.parametrize('size', [0, 3, 4, 5])
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


def row(scale=1., channels=3, limits=(0., 1.)):
    image = torch.tensor([0., .5, 1., 2.]).reshape(1, 2, 2).expand(channels, 2, 2)
    maps = {'one': Heatmap(torch.tensor([[1., -1.], [0., .5]]), 2., .5), 'two': Heatmap(scale * torch.ones(2, 2))}
    return Row(image, maps, 'a label', limits)


def pictures(drawn):
    return [axis.images[0].get_array() for axis in drawn.axes]


def test_figure_says_what_it_shows():
    drawn = figure([row(), row()], 'a title')
    assert len(drawn.axes) == 6
    assert [axis.get_title() for axis in drawn.axes] == ['input', 'one', 'two', '', '', '']
    assert [axis.get_ylabel() for axis in drawn.axes] == ['a label', '', ''] * 2
    assert [axis.get_xlabel() for axis in drawn.axes] == ['', 'unaccounted 25.0%', ''] * 2
    assert drawn.get_suptitle() == 'a title'


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(('limits', 'expected'), [((0., 1.), [0., .5, 1., 1.]), ((-1., 1.), [.5, .75, 1., 1.])])
def test_figure_shows_the_input(channels, limits, expected):
    shown = pictures(figure([row(channels=channels, limits=limits)]))[0]
    np.testing.assert_allclose(shown, np.array(expected).reshape(2, 2, 1).repeat(3, axis=2))


def test_figure_scales_each_method_alone_or_all_together():
    alone, together = (pictures(figure([row(scale=2.)], shared=shared)) for shared in (False, True))
    np.testing.assert_allclose(alone[1], colorize(torch.tensor([[1., -1.], [0., .5]])))
    np.testing.assert_allclose(alone[2], np.broadcast_to([1., 0., 0.], (2, 2, 3)))
    np.testing.assert_allclose(together[1], colorize(torch.tensor([[1., -1.], [0., .5]]), limit=2.))
    np.testing.assert_allclose(together[2], alone[2])


def test_one_strong_pixel_does_not_hide_the_others():
    relevance = torch.ones(20, 20)
    relevance[0, 0] = -1000.
    shown, unclipped = (pictures(figure([Row(torch.zeros(1, 20, 20), {'one': Heatmap(relevance)})], clip=clip))[1]
                        for clip in (.01, 0.))
    np.testing.assert_allclose(shown[5, 5], [1., 0., 0.])
    np.testing.assert_allclose(shown[0, 0], [0., 0., 1.])
    np.testing.assert_allclose(unclipped[5, 5], [1., 1., 1.], atol=.005)


def test_figure_is_written_as_a_picture(tmp_path):
    figure([row()]).savefig(tmp_path / 'row.png')
    assert (tmp_path / 'row.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('rows', [[], [row(), Row(torch.zeros(1, 2, 2), {'one': Heatmap(torch.zeros(2, 2))})]])
def test_figure_needs_the_same_methods_in_each_row(rows):
    with pytest.raises(ValueError, match='same methods'):
        figure(rows)
