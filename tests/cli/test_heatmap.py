'''Heatmaps on the command line.'''
import argparse
import re

import pytest
import torch
from PIL import Image

from zennit_attn.cli.inputs import normalized
from zennit_attn.cli.models import Loaded

from .helpers import refused, run


@pytest.mark.parametrize('extra', [
    [], ['-c', 'cp_lrp', '-c', 'attn_lrp_gamma'], ['--patches', '4'], ['--patches', '8x4', '--own-scale'],
    ['--normalize', '0.5,0.25', '--ledger', 'ledger.pdf'],
])
def test_heatmap_of_an_image(capsys, folder, photo, extra):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:picture', '--image', photo, '--size', '16', *extra,
                                   '-o', 'out/heatmap.png')
    assert (code, complaint) == (0, '')
    assert 'input    1x3x16x16 float64' in printed
    assert printed.count('unaccounted') == 1 + ('attn_lrp_gamma' in extra)
    with Image.open(folder / 'out' / 'heatmap.png') as picture:
        assert picture.width > picture.height > 100
    assert (folder / 'ledger.pdf').exists() == ('--ledger' in extra)


def test_grey_images(capsys, photo):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:picture', '--set', 'channels=1', '--image', photo, '--size',
                           '16')
    assert (code, '1x1x16x16' in printed, 'written to heatmap.png' in printed) == (0, True, True)


def test_images_are_normalized():
    loaded, options = Loaded(None, '', mean=(.5, 0., 1.), std=(1., 2., 4.)), argparse.Namespace(normalize=None)
    image = torch.tensor([1., 1., 1.])[:, None, None]
    assert normalized(image, loaded, options).flatten().tolist() == [.5, .5, 0.]
    options.normalize = (.5,), (.25,)
    assert normalized(image, loaded, options).flatten().tolist() == [2., 2., 2.]


def test_heatmap_of_a_text_on_the_terminal(capsys):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>', '-c', 'cp_lrp', '-c',
                                   'attn_lrp')
    assert (code, complaint) == (0, '')
    plain = re.sub('\x1b\\[[0-9;]*m', '', printed)
    assert plain.splitlines()[-4].startswith('cp_lrp, unaccounted ')
    assert [plain.splitlines()[-3], plain.splitlines()[-1]] == ['a <b>', 'a <b>']


@pytest.mark.parametrize('name', ['text.html', 'text.png', 'text.svg'])
def test_heatmap_of_a_text_in_a_file(capsys, folder, name):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>é', '-o', name)
    assert (code, f'written to {name}' in printed) == (0, True)
    if name.endswith('.html'):
        page = (folder / name).read_text(encoding='utf-8')
        assert page.startswith('<!DOCTYPE html>')
        assert '&lt;' in page
        assert '<b>é' not in page


def test_texts_are_explained_at_their_last_token(capsys):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:Words', '--set', 'every=True', '--text', 'abcd')
    assert code == 0
    assert re.search(r'target   3,\d of output 1x4x3', printed)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['cli_models:picture', '--image', 'absent.png'], 'there is no image absent.png'),
    (['cli_models:picture', '--image', 'cli_models.py'], 'is no image that can be read'),
    (['cli_models:picture', '--image', 'photo.png'], 'the model does not take this input (1x3x20x30'),
    (['cli_models:picture', '--image', 'photo.png', '--size', '16', '--patches', '5'], '--patches: Patches of 5 x 5'),
    (['cli_models:picture', '--image', 'photo.png', '-o', 'heatmap.html'], 'has to end in .png, .pdf, .svg'),
    (['cli_models:picture', '--text', 'words'], 'has 0 embeddings (none)'),
    (['cli_models:Words', '--text', ''], 'the text is empty'),
    (['cli_models:Words', '--text', 'words', '--set', 'rows=90'], 'too few for the bytes'),
    (['cli_models:Words', '--text', 'words', '--embedding', 'word'], "no module 'word'; did you mean words"),
])
def test_heatmaps_that_can_not_be(capsys, photo, arguments, message):
    assert message in refused(capsys, 'heatmap', *arguments)


def test_heatmap_of_what_is_not_supported(capsys, photo):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:gated', '--image', photo, '--size', '2')
    assert (code, printed) == (1, '')
    assert complaint.startswith('zennit-attn: error: the output of Sequential carries no relevance')
