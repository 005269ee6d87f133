'''What figures and titles say.'''
import re

import numpy as np
import pytest
import torch
from torch import nn

from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.heatmap import Heatmap, Row, colorize, figure, title

from .helpers import ledger


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


def test_rows_share_a_scale_unless_told_otherwise():
    shared, stated = (pictures(figure([row(scale=2.)], **options)) for options in ({}, {'shared': True}))
    np.testing.assert_allclose(shared[1], stated[1])


def test_a_map_of_few_entries_is_scaled_to_the_largest():
    relevance = torch.zeros(30, 30)
    relevance[3, 4], relevance[5, 6] = 1e-6, -1e-6
    shown = pictures(figure([Row(torch.zeros(1, 30, 30), {'one': Heatmap(relevance)})]))[1]
    np.testing.assert_allclose(shown[3, 4], [1., 0., 0.])
    np.testing.assert_allclose(shown[5, 6], [0., 0., 1.])


def test_long_titles_are_broken_to_the_width():
    drawn = figure([row()], 'a long title ' * 20)
    assert max(map(len, drawn.get_suptitle().splitlines())) < 80


@pytest.mark.parametrize(('image', 'limits'), [
    (torch.zeros(2, 4, 4), (0., 1.)), (torch.zeros(4, 4), (0., 1.)), (torch.zeros(1, 4, 4), (1., 1.)),
])
def test_images_of_other_shapes_are_refused(image, limits):
    with pytest.raises(ValueError, match='limits'):
        figure([Row(image, {'one': Heatmap(torch.zeros(4, 4))}, limits=limits)])


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=re.escape('shape (3, 4, 4); expected (height, width)')):
        figure([Row(torch.zeros(1, 4, 4), {'one': Heatmap(torch.zeros(3, 4, 4))})])


@pytest.mark.parametrize('clip', [-.1, 1.])
def test_clip_is_a_share(clip):
    with pytest.raises(ValueError, match='clip'):
        figure([row()], clip=clip)


def test_title_says_model_target_composite_and_unaccounted():
    assert title(nn.Linear(2, 2), 'cat', CPLRP(), ledger()) == 'Linear, target cat, CPLRP, unaccounted 25.0%'
    assert title('ViT', 3, AttnLRP, ledger(), sample=1) == 'ViT, target 3, AttnLRP, unaccounted 0'
    assert title() == ''
    assert title(target=0) == 'target 0'


def test_title_takes_the_worst_sample_and_an_output_of_zero():
    assert title(ledger=ledger((4., 2.), (4., 1.))) == 'unaccounted 50.0%'
    assert title(ledger=ledger((0.,), (-1e-9,))) == 'unaccounted 1e-09'
