'''Heatmaps: sums, shares and colours on arrays whose answers are known, what figures say, relevance inside models.'''
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES, LayerMapComposite
from zennit.rules import Epsilon

from cases.problems import PROBLEMS, build
from helpers import one_hot, stock
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma
from zennit_attn.conservation import Audit, Sink, audit
from zennit_attn.heatmap import (
    Heatmap,
    Patches,
    Row,
    Text,
    colorize,
    figure,
    head_relevance,
    layer_relevance,
    ledger_figure,
    ledger_shares,
    patch_figure,
    patch_relevance,
    pixel_image,
    pixel_relevance,
    positive_share,
    relevance_at,
    sequence_figure,
    title,
    token_patches,
)

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


# ---- titles ----------------------------------------------------------------------------------------------------------

def ledger(output=(4., -2.), input=(3., -2.), sinks=()):
    entries = [Sink(*entry[:4], torch.tensor(entry[4], dtype=torch.float64)) for entry in sinks]
    return Audit(*(torch.tensor(part, dtype=torch.float64) for part in (output, input)), entries, [])


def test_title_says_model_target_composite_and_unaccounted():
    assert title(nn.Linear(2, 2), 'cat', CPLRP(), ledger()) == 'Linear, target cat, CPLRP, unaccounted 25.0%'
    assert title('ViT', 3, AttnLRP, ledger(), sample=1) == 'ViT, target 3, AttnLRP, unaccounted 0'
    assert title() == ''
    assert title(target=0) == 'target 0'


def test_title_takes_the_worst_sample_and_an_output_of_zero():
    assert title(ledger=ledger((4., 2.), (4., 1.))) == 'unaccounted 50.0%'
    assert title(ledger=ledger((0.,), (-1e-9,))) == 'unaccounted 1e-09'


# ---- tokens of images ------------------------------------------------------------------------------------------------

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


# ---- text ------------------------------------------------------------------------------------------------------------

class Spans(HTMLParser):
    '''Reads the tokens, colours and titles of the spans, and finds tags that should not be there.'''
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.styles, self.inside = set(), [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside = tag == 'span'
        if self.inside:
            self.styles.append(dict(attrs))
            self.texts.append('')

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


TOKENS = ['<script>alert(1)</script>', ' &amp; "quoted"', ' $x_1$', '\n', '\x1b[31m', 'Größe']


def test_html_shows_tokens_and_interprets_none():
    text = Text(TOKENS, torch.arange(6.) - 3., '<i>title</i>', {'': '<b>caption</b>'})
    spans = Spans(text.html())
    assert spans.tags == {'div', 'b', 'span'}
    assert spans.texts == [*TOKENS[:3], '\\n', '\\x1b[31m', 'Größe']
    assert '<script' not in text.html()
    assert '<i>' not in text.html()
    assert text._repr_html_() == text.html()


def test_colours_of_tokens():
    spans = Spans(Text(['a', 'b', 'c'], torch.tensor([-2., 0., 4.])).html())
    backgrounds = [re.search('background:(#[0-9a-f]{6})', style['style'])[1] for style in spans.styles]
    assert backgrounds[2] == '#ff0000'
    assert backgrounds[1][1:3] > 'fc'
    assert backgrounds[0][5:] == 'ff'
    assert '7c' < backgrounds[0][1:3] < '83'
    assert [style['title'] for style in spans.styles] == ['-2', '0', '4']


def test_ansi_resets_every_token_and_carries_no_escape_of_a_token():
    plain = re.sub('\x1b\\[[0-9;]*m', '', Text(TOKENS, torch.ones(6), 'a title').ansi())
    assert plain == 'a title\n' + ''.join(TOKENS).replace('\n', '\\n').replace('\x1b', '\\x1b')
    assert Text(['a'], torch.tensor([-1.])).ansi() == '\x1b[48;2;0;0;255m\x1b[38;2;255;255;255ma\x1b[0m'


def test_methods_share_a_scale():
    maps = {'one': torch.tensor([1.]), 'two': torch.tensor([2.])}
    shared, own = (Spans(Text(['a'], maps, shared=shared).html()).styles for shared in (True, False))
    assert 'background:#ff0000' in shared[1]['style']
    assert 'background:#ff0000' not in shared[0]['style']
    assert all('background:#ff0000' in style['style'] for style in own)


def letters(drawn):
    return ''.join(text.get_text() for axis in drawn.axes for text in axis.texts)


@pytest.mark.parametrize('tokens', [['a'], [f' {index}' for index in range(700)], ['x' * 500], ['', 'a'], TOKENS])
def test_figures_of_texts_hold_every_letter_inside(tokens, tmp_path):
    drawn = Text(tokens, -torch.ones(len(tokens))).figure(5.)
    drawn.savefig(tmp_path / 'text.png')
    expected = ''.join(token or ' ' for token in tokens).replace('\n', '\\n').replace('\x1b', '\\x1b')
    assert letters(drawn) == expected
    (left, right), (bottom, top) = drawn.axes[0].get_xlim(), drawn.axes[0].get_ylim()
    places = [text.get_position() for text in drawn.axes[0].texts]
    assert all(left < x < right and top < y < bottom for x, y in places)
    assert len(set(places)) == len(places)


def test_figures_name_their_methods():
    drawn = Text(['a'], {'one': torch.ones(1), 'two': torch.zeros(1)}, 'a title', {'one': 'unaccounted 0'}).figure()
    assert [text.get_text() for text in drawn.axes[0].texts] == ['one, unaccounted 0', 'a', 'two', 'a']
    assert drawn.get_suptitle() == 'a title'


@pytest.mark.parametrize(('tokens', 'relevance', 'message'), [
    (['a', 'b'], torch.ones(3), 'There are 2 tokens'), (['a'], torch.ones(1, 1), 'one sample'),
    ([], torch.ones(0), 'empty'),
    (['a'], torch.tensor([float('nan')]), 'not a number'), (['a'], {}, 'empty'),
])
def test_texts_that_do_not_fit_are_refused(tokens, relevance, message):
    with pytest.raises(ValueError, match=message):
        Text(tokens, relevance)


# ---- sequences -------------------------------------------------------------------------------------------------------

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


# ---- the ledger ------------------------------------------------------------------------------------------------------

SINKS = [
    ('a', 'linear', 'bias', 'a.bias', (.5, 0.)), ('b', 'linear', 'bias', 'b.bias', (.25, 0.)),
    ('', 'add', 'parameter', 'pos_embedding', (-.5, 0.)), ('', 'cat', 'parameter', 'cls_token', (.125, 0.)),
    ('', 'add', 'buffer', 'embeddings.position_ids', (.0625, 0.)), ('', 'mul', 'constant', '2.0', (1., 0.)),
    ('output', 'to relevance', 'stabilizer', '', (1e-9, 1e-9)), ('c', 'Gamma', 'rule', '', (2., 0.)),
    ('d', 'softmax', 'taylor', 'hidden bias', (-3., 0.)),
]


def test_ledger_shares_are_groups_that_add_up():
    shares = ledger_shares(ledger(sinks=SINKS))
    assert shares == {
        'input': 3., 'biases': .75, 'positions': -.4375, 'other parameters': .125, 'constants': 1., 'stabilizers': 1e-9,
        'rules': 2., 'hidden biases': -3., 'unaccounted': pytest.approx(.5625)}
    assert sum(shares.values()) == pytest.approx(4.)
    with pytest.raises(ValueError, match='there is no sample 2'):
        ledger_shares(ledger(), 2)


def test_every_kind_of_sink_has_a_group():
    kinds = re.findall(r'\w+', re.search(r'kind: {(.*?)}', Sink.__doc__)[1])
    for kind in kinds:
        shares = ledger_shares(ledger(sinks=[('a', 'b', kind, 'name', (1., 0.))]))
        assert list(shares) == ['input', next(name for name in shares if shares[name] == 1.), 'unaccounted']


def test_ledger_figure_shows_shares_of_the_output(tmp_path):
    drawn = ledger_figure({'CP-LRP': ledger(sinks=SINKS), 'other': ledger()}, title='a title', most=2)
    drawn.savefig(tmp_path / 'ledger.png')
    bars = dict(zip([tick.get_text() for tick in drawn.axes[0].get_yticklabels()],
                    [bar.get_width() for bar in drawn.axes[0].patches], strict=True))
    assert bars['input'] == .75
    assert bars['biases'] == .1875
    assert bars['hidden biases'] == -.75
    assert [text.get_text() for text in drawn.axes[0].texts][:2] == ['75.0%', '18.8%']
    assert [axis.get_title() for axis in drawn.axes[:2]] == ['CP-LRP: output 4', 'other: output 4']
    largest = [tick.get_text() for tick in drawn.axes[2].get_yticklabels()]
    assert largest == ['d, softmax', 'c, Gamma']


def test_ledger_figure_of_an_output_of_zero_and_without_sinks(tmp_path):
    drawn = ledger_figure(ledger((0.,), (1.,)), most=0)
    drawn.savefig(tmp_path / 'ledger.png')
    assert [bar.get_width() for bar in drawn.axes[0].patches] == [1., -1.]


# ---- relevance inside of models --------------------------------------------------------------------------------------

INSIDE = {'attn_lrp': AttnLRP, 'attn_lrp_gamma': AttnLRPGamma,
          'epsilon_plus_flat': stock}


def passing(model, composite, input, name, at):
    '''Relevance of all samples at a module, or None where it has not one tensor.'''
    try:
        found = relevance_at(model, composite(), input, name, one_hot, at)
    except ValueError:
        return None
    return float(sum(relevance.sum() for relevance in found.values()))


@pytest.mark.parametrize('composite', INSIDE)
@pytest.mark.parametrize('name', PROBLEMS)
def test_a_module_loses_what_its_sinks_take(name, composite):
    model, input = build(name)
    sinks = audit(model, INSIDE[composite](), input, one_hot).sinks
    children = [child for child, _ in model.named_children() if child != 'output']
    lost = {}
    for child in children:
        ends = [passing(model, INSIDE[composite], input, child, at) for at in ('output', 'input')]
        if None not in ends:
            lost[child] = ends[0] - ends[1]
    taken = {child: sum(float(sink.relevance.sum()) for sink in sinks if f'{sink.module}.'.startswith(f'{child}.'))
             for child in lost}
    assert lost == pytest.approx(taken, rel=1e-9, abs=1e-8)


class Residual(nn.Module):
    '''Two blocks of attention with heads, a residual that is written in place, and an identity.'''
    def __init__(self, heads=2, dim=6):
        super().__init__()
        self.heads = heads
        self.embed, self.to_qkv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.drop, self.head = nn.Dropout(.5), nn.Linear(dim, 3)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(2):
            q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            out = (q @ k.mT).softmax(dim=-1) @ v
            out = self.drop(self.proj(out.transpose(1, 2).flatten(2)))
            out += x
            x = out
        return self.head(x.mean(dim=1))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    return Residual().double().eval(), torch.randn(2, 4, 6, dtype=torch.float64)


def by_hand(model, input):
    '''Gates as constants, written out: relevance of the embedding, the heads and the projections.'''
    x = model.embed(input)
    kept = {'embed': x}
    for index in range(2):
        q, k, v = model.to_qkv(x).unflatten(-1, (3, model.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = (q @ k.mT).softmax(dim=-1).detach() @ v
        out = model.proj(heads.transpose(1, 2).flatten(2))
        kept.update({f'heads[{index}]': heads, f'proj[{index}]': out})
        x = out + x
    output = model.head(x.mean(dim=1))
    grads = torch.autograd.grad(output, list(kept.values()), one_hot(output) / output)
    return {name: (tensor * grad).detach() for (name, tensor), grad in zip(kept.items(), grads, strict=True)}


def test_relevance_at_outputs_inputs_and_operators_is_that_of_the_formula(residual):
    model, input = residual
    expected = by_hand(model, input)

    def found(modules, at):
        return relevance_at(model, CPLRP(), input, modules, one_hot, at)
    close = {'rtol': 1e-6, 'atol': 1e-9}
    outputs = found(['embed', 'proj'], 'output')
    assert list(outputs) == ['embed', 'proj[0]', 'proj[1]']
    for name, relevance in outputs.items():
        torch.testing.assert_close(relevance, expected[name], **close)
    # the identity returns its input, which the residual takes too
    for name, relevance in found('drop', 'output').items():
        torch.testing.assert_close(relevance, expected[name.replace('drop', 'proj')], **close)
    for index, relevance in enumerate(found('proj', 'input').values()):
        heads = expected[f'heads[{index}]'].sum(dim=-1)
        torch.testing.assert_close(head_relevance(relevance, 2), heads, **close)
    products = list(found('', 'matmul').values())
    torch.testing.assert_close(products[1], expected['heads[0]'], **close)
    torch.testing.assert_close(products[3], expected['heads[1]'], **close)
    assert not products[0].any()


@pytest.mark.parametrize('composite', INSIDE)
def test_the_explanation_is_the_same_with_and_without_looking(residual, composite):
    model, input = residual
    found = relevance_at(model, INSIDE[composite](), input, 'embed', one_hot, at='input')['embed']
    with Gradient(model, INSIDE[composite]()) as attributor:
        relevance = attributor(input, one_hot)[1]
    torch.testing.assert_close(found, relevance, rtol=1e-9, atol=1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_relevance_in_stock_zennit_is_what_takes_the_place_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    input = torch.randn(2, 3, dtype=torch.float64)
    composite = LayerMapComposite([(nn.Linear, Epsilon()), (nn.ReLU, COMPOSITES['epsilon_plus']().layer_map[0][1])])
    found = relevance_at(model, composite, input, ['0', '2'], one_hot)
    hidden = model[:2](input).detach().requires_grad_()
    output = model[2](hidden)
    expected = hidden * torch.autograd.grad(output, hidden, one_hot(output) / (output + 1e-6 * output.sign()))[0]
    torch.testing.assert_close(found['2'], one_hot(output))
    torch.testing.assert_close(found['0'], expected.detach())


def test_relevance_at_explains_token_models_from_the_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), Residual(), nn.Identity()).double().eval()
    ids = torch.randint(9, (2, 4))
    found = relevance_at(model, CPLRP(), ids, '1.embed', one_hot, at='input', embedding=model[0])['1.embed']
    with TokenGradient(model, model[0], CPLRP()) as attributor:
        torch.testing.assert_close(found, attributor(ids, one_hot)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('modules', 'options', 'message'), [
    ('blocks', {}, "no module 'blocks'"), ('proy', {}, "'proj'"), (['embed', 'nope.*'], {}, "'nope.*'"),
    ('embed', {'at': 'softmax'}, "No relevance passes the softmax of 'embed'"),
    ('embed', {'attr_output': torch.ones(2)}, 'attr_output has shape'),
])
def test_relevance_at_refuses_what_is_not_there(residual, modules, options, message):
    model, input = residual
    with pytest.raises(ValueError, match=re.escape(message)):
        relevance_at(model, CPLRP(), input, modules, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_relevance_at_refuses_modules_of_several_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return 2. * x, 3. * x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            return sum(self.two(x))
    with pytest.raises(ValueError, match="2 tensors at the output of 'two'"):
        relevance_at(Outer(), CPLRP(), torch.ones(1, 2), 'two')


def test_operators_need_the_engine():
    composite = LayerMapComposite([(nn.Linear, Epsilon())])
    with pytest.raises(ValueError, match='AttentionCanonizer'):
        relevance_at(nn.Sequential(nn.Linear(2, 2)), composite, torch.ones(1, 2), '0', at='linear')
