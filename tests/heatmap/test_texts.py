'''Tokens of texts.'''
import re
from html.parser import HTMLParser

import pytest
import torch

from zennit_attn.heatmap import Text


class Spans(HTMLParser):
    '''Reads the tokens, colours and titles of the spans with a title, and finds tags that should not be there.'''
    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.styles, self.inside = set(), [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside = tag == 'span' and 'title' in dict(attrs)
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
    assert plain == 'a title\n-1       1\n' + ''.join(TOKENS).replace('\n', '\\n').replace('\x1b', '\\x1b')
    scale, token = Text(['a'], torch.tensor([-1.])).ansi().splitlines()
    assert token == '\x1b[48;2;0;0;255m\x1b[38;2;255;255;255ma\x1b[0m'
    assert scale.startswith('-1 \x1b[48;2;0;0;255m')
    assert scale.endswith('\x1b[0m 1')


def test_methods_share_a_scale():
    maps = {'one': torch.tensor([1.]), 'two': torch.tensor([2.])}
    shared, own = (Spans(Text(['a'], maps, shared=shared).html()).styles for shared in (True, False))
    assert 'background:#ff0000' in shared[1]['style']
    assert 'background:#ff0000' not in shared[0]['style']
    assert all('background:#ff0000' in style['style'] for style in own)


def test_the_scale_is_shown():
    maps = {'one': torch.tensor([1.]), 'two': torch.tensor([-2.])}
    for shared, scales in ((True, [2., 2.]), (False, [1., 2.])):
        text = Text(['a'], maps, shared=shared)
        assert re.findall(r'nowrap">-(\S+) <.*?</span> (\S+)</span>', text.html()) == [
            (f'{scale:g}', f'{scale:g}') for scale in scales]
        assert [label.get_text().split(', ')[1] for label in text.figure().axes[0].texts[::2]] == [
            f'full colour at {scale:g}' for scale in scales]


def test_lines_hold_each_token_and_its_numbers():
    assert Text(['a', ' b\n'], torch.tensor([.5, -2.])).lines() == 'a\t0.5\n b\\n\t-2'
    maps = {'one': torch.tensor([1.]), 'two': torch.tensor([1 / 3])}
    assert Text(['\x1b[31m'], maps).lines() == 'token\tone\ttwo\n\\x1b[31m\t1\t0.333333'


def letters(drawn):
    return ''.join(text.get_text() for axis in drawn.axes for text in axis.texts[1:])


@pytest.mark.parametrize('tokens', [['a'], [f' {index}' for index in range(700)], ['x' * 500], ['', 'a'], TOKENS])
def test_figures_of_texts_hold_every_letter_inside(tokens, tmp_path):
    drawn = Text(tokens, -torch.ones(len(tokens))).figure(5.)
    drawn.savefig(tmp_path / 'text.png')
    expected = ''.join(token or ' ' for token in tokens).replace('\n', '\\n').replace('\x1b', '\\x1b')
    assert letters(drawn) == expected
    (left, right), (bottom, top) = drawn.axes[0].get_xlim(), drawn.axes[0].get_ylim()
    places = [text.get_position() for text in drawn.axes[0].texts[1:]]
    assert all(left < x < right and top < y < bottom for x, y in places)
    assert len(set(places)) == len(places)


def test_figures_name_their_methods():
    drawn = Text(['a'], {'one': torch.ones(1), 'two': torch.zeros(1)}, 'a title', {'one': 'unaccounted 0'}).figure()
    assert [text.get_text() for text in drawn.axes[0].texts] == [
        'one, unaccounted 0, full colour at 1', 'a', 'two, full colour at 1', 'a']
    assert drawn.get_suptitle() == 'a title'


@pytest.mark.parametrize(('tokens', 'relevance', 'message'), [
    (['a', 'b'], torch.ones(3), 'There are 2 tokens'), (['a'], torch.ones(1, 1), 'one sample'),
    ([], torch.ones(0), 'empty'),
    (['a'], torch.tensor([float('nan')]), 'not a number'), (['a'], {}, 'empty'),
])
def test_texts_that_do_not_fit_are_refused(tokens, relevance, message):
    with pytest.raises(ValueError, match=message):
        Text(tokens, relevance)
