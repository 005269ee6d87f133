'''Tokens of images.'''
import numpy as np
import pytest
import torch

from zennit_attn.heatmap import Patches, colorize, patch_figure, token_patches


def test_tokens_become_patches_and_named_others():
    relevance = torch.arange(2 * 9.).reshape(2, 9)
    patches = token_patches(relevance, (2, 3), ['cls', 'register 1'], ['end'])
    torch.testing.assert_close(patches.relevance, relevance[:, 2:8].reshape(2, 2, 3))
    assert {name: value.tolist() for name, value in patches.special.items()} == {
        'cls': [0., 9.], 'register 1': [1., 10.], 'end': [8., 17.]}
    assert patches[1].special['end'] == 17.
    total = patches.relevance.sum() + sum(value.sum() for value in patches.special.values())
    assert total == relevance.sum()


def test_a_square_grid_is_found():
    assert token_patches(torch.zeros(10), before=['cls']).relevance.shape == (3, 3)


@pytest.mark.parametrize(('shape', 'options'), [
    ((10,), {}), ((10,), {'grid': (2, 4)}), ((1,), {'before': ['cls']}), ((), {}), ((10,), {'grid': (3, 3)}),
    ((3,), {'before': ['cls', 'cls'], 'grid': (1, 1)}), ((10,), {'before': 'cls'}), ((10,), {'before': 1}),
])
def test_tokens_that_do_not_fit_are_refused(shape, options):
    with pytest.raises(ValueError, match='tokens|names|name of its own'):
        token_patches(torch.zeros(shape), **options)


@pytest.mark.parametrize('grid', [(4, 2), (2, 4), (1, 1), (3, 5)])
def test_patches_are_drawn_over_the_image(grid):
    relevance = torch.linspace(-1., 2., grid[0] * grid[1]).reshape(grid)
    drawn = patch_figure(torch.ones(3, 15, 20), {'a': Patches(relevance, {'cls': torch.tensor(-4.)}), 'b': relevance},
                         'a title', {'a': 'unaccounted 0'})
    shown = drawn.axes[1].images[0].get_array()
    # on a white image colours are those of the patches, on the scale that cls sets
    np.testing.assert_allclose(shown[0, 0], colorize(relevance, limit=4.)[0, 0], atol=1e-6)
    np.testing.assert_allclose(shown[-1, -1], colorize(relevance, limit=4.)[-1, -1], atol=1e-6)
    texts = [text.get_text() for axis in drawn.axes for text in axis.texts]
    assert texts == ['cls\n-4']
    assert [axis.get_title() for axis in drawn.axes[:3]] == ['input', 'a', 'b']
    assert drawn.axes[1].get_xlabel() == 'unaccounted 0'
    assert drawn.get_suptitle() == 'a title'


def test_patches_of_a_batch_are_refused():
    with pytest.raises(ValueError, match='choose a sample'):
        patch_figure(torch.ones(1, 4, 4), torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match='a number for each token'):
        patch_figure(torch.ones(1, 4, 4), Patches(torch.zeros(2, 2), {'cls': torch.zeros(2)}))
