'''Sequences, with heads and layers.'''
import numpy as np
import pytest
import torch

from zennit_attn.heatmap import head_relevance, layer_relevance, sequence_figure


def test_heads_and_layers_are_sums_of_features():
    relevance = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    heads = head_relevance(relevance, 3)
    assert heads.shape == (2, 3, 5)
    torch.testing.assert_close(heads[1, 2, 4], relevance[1, 4, 4:].sum())
    layers = layer_relevance({'a': relevance, 'b': relevance[..., :2]})
    assert layers.shape == (2, 2, 5)
    torch.testing.assert_close(layers[0, 1, 3], relevance[0, 3, :2].sum())
    torch.testing.assert_close(layers, layer_relevance([relevance, relevance[..., :2]]))


def test_heads_and_layers_that_do_not_fit_are_refused():
    for heads in (0, 4):
        with pytest.raises(ValueError, match='heads'):
            head_relevance(torch.zeros(5, 6), heads)
    for layers in ([], [torch.zeros(3)], [torch.zeros(2, 3), torch.zeros(4, 3)]):
        with pytest.raises(ValueError, match='same tokens'):
            layer_relevance(layers)


def test_sequences_are_drawn_centred_at_zero():
    drawn = sequence_figure({'one': -torch.ones(2, 3), 'two': torch.full((2, 3), 4.)}, ['a', 'b\n', '$c$'],
                            ['first', 'second'], 'layer', 'a title', {'one': 'unaccounted 0'})
    first, second, *_ = drawn.axes
    assert [axis.images[0].norm.vmin for axis in (first, second)] == [-4., -4.]
    assert [axis.images[0].norm.vmax for axis in (first, second)] == [4., 4.]
    np.testing.assert_array_equal(first.images[0].get_array(), -np.ones((2, 3)))
    assert [tick.get_text() for tick in first.get_xticklabels()] == ['a', 'b\\n', '$c$']
    assert [tick.get_text() for tick in first.get_yticklabels()] == ['first', 'second']
    assert first.get_title() == 'one, unaccounted 0'
    assert first.get_ylabel() == 'layer'


def test_long_labels_keep_what_tells_them_apart():
    names = [f'transformer.encoder.layers.{index}.attention' for index in range(2)]
    drawn = sequence_figure(torch.zeros(2, 1), ['internationalization'], names).axes[0]
    labels = [tick.get_text() for tick in drawn.get_yticklabels()]
    assert [label.rpartition('encoder')[2] for label in labels] == ['.layers.0.attention', '.layers.1.attention']
    assert all(label.startswith('…') and len(label) == 28 for label in labels)
    assert drawn.get_xticklabels()[0].get_text() == 'internationaliz…'


@pytest.mark.parametrize('shape', [(1, 1), (2, 1000), (100, 4)])
def test_sequences_of_any_length_have_labels_that_can_be_read(shape, tmp_path):
    drawn = sequence_figure(torch.zeros(shape), [f'token {index}' for index in range(shape[1])])
    drawn.savefig(tmp_path / 'sequence.png')
    assert len(drawn.axes[0].get_xticklabels()) <= 64
    assert len(drawn.axes[0].get_yticklabels()) <= 32
    assert drawn.get_figwidth() < 15.


@pytest.mark.parametrize(('relevance', 'options', 'message'), [
    (torch.zeros(3), {}, 'choose a sample'), (torch.zeros(2, 3), {'tokens': ['a']}, '1 tokens'),
    (torch.zeros(2, 3), {'names': ['a']}, '1 names'),
    ({'a': torch.zeros(2, 3), 'b': torch.zeros(3, 2)}, {}, 'different'),
    (torch.full((2, 2), float('inf')), {}, 'infinite'),
])
def test_sequences_that_do_not_fit_are_refused(relevance, options, message):
    with pytest.raises(ValueError, match=message):
        sequence_figure(relevance, **options)
