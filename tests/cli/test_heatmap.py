'''Heatmaps on the command line.'''
import argparse
import io
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from zennit_attn.__main__ import main
from zennit_attn.cli.inputs import normalized
from zennit_attn.cli.inputs import pixels as pixels_of
from zennit_attn.cli.models import Loaded
from zennit_attn.cli.targets import asked, indices, others, relevance_of
from zennit_attn.demo import DEMOS

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


def test_heatmap_of_a_text_on_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>', '-c', 'cp_lrp', '-c',
                                   'attn_lrp')
    assert (code, complaint) == (0, '')
    plain = re.sub('\x1b\\[[0-9;]*m', '', printed)
    assert plain.splitlines()[-4].startswith('cp_lrp, unaccounted ')
    assert [plain.splitlines()[-3], plain.splitlines()[-1]] == ['a <b>', 'a <b>']


def test_a_program_that_reads_a_text_gets_tokens_and_numbers_alone(capsys):
    code, printed, aside = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>', '-c', 'cp_lrp', '-c',
                               'attn_lrp')
    head, *rows = (line.split('\t') for line in printed.splitlines())
    assert (code, head, [row[0] for row in rows]) == (0, ['token', 'cp_lrp', 'attn_lrp'], list('a <b>'))
    assert all(float(number) == float(number) for row in rows for number in row[1:])
    assert 'target' in aside


class Terminal(io.StringIO):
    '''A stream that says it is a terminal.'''
    def isatty(self):
        return True


@pytest.mark.parametrize(('variables', 'terminal', 'coloured'), [
    ({}, True, True), ({'NO_COLOR': '1'}, True, False), ({}, False, False), ({'FORCE_COLOR': '1'}, False, True)])
def test_colours_are_for_people_who_want_them(monkeypatch, variables, terminal, coloured):
    for name in ('NO_COLOR', 'FORCE_COLOR'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('sys.stdout', Terminal() if terminal else io.StringIO())
    assert main(['heatmap', 'cli_models:Words', '--text', 'a <b>']) == 0
    assert ('\x1b[48;2;' in sys.stdout.getvalue()) == coloured
    assert ('weights' in sys.stdout.getvalue()) == coloured


def test_whoever_interrupts_sees_no_traceback(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr('zennit_attn.cli.heatmap.model_of', interrupted)
    command = ['heatmap', 'cli_models:Words', '--text', 'a']
    assert refused(capsys, *command, code=130, start='\nzennit-attn: ') == 'interrupted'


@pytest.mark.parametrize('name', ['vit', 'linear_attention_digits'])
def test_a_model_of_the_demo_is_explained_and_knows_its_classes(capsys, folder, name):
    sample = DEMOS[name].held_out(1)
    black, white = DEMOS[name].limits
    pixels = ((sample.images[0] - black) / (white - black) * 255.).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / 'sample.png')
    seen = DEMOS[name].classes[int(sample.labels[0])]
    code, printed, complaint = run(capsys, 'heatmap', f'demo:{name}', '--image', 'sample.png', '--target', seen)
    assert (code, complaint) == (0, '')
    assert f'target   {seen} (' in printed
    assert float(re.search(r'probability (\S+)', printed)[1]) > .5
    assert run(capsys, 'heatmap', f'demo:{name}', '--image', 'sample.png')[1].count(f'target   {seen} (') == 1


def test_a_contrast_has_a_class_against(capsys, photo):
    model = ['heatmap', 'cli_models:picture', '--image', photo, '--size', '16']
    code, printed, _ = run(capsys, *model, '--contrast')
    target, other = re.search(r'target   (\d) and not (\d) of', printed).groups()
    assert (code, target != other) == (0, True)
    assert f'target   {target} and not {other} of' in run(capsys, *model, '--target', target, '--contrast', other)[1]
    assert 'names the target itself' in refused(capsys, *model, '--target', '1', '--contrast', '1')
    assert '--contrast 7 is out of range' in refused(capsys, *model, '--contrast', '7')
    assert 'a target of one number' in refused(capsys, *model, '-t', 'all', '--contrast')
    assert "there is no target 'cat'" in refused(capsys, *model, '-t', 'cat')


def test_a_contrast_is_the_difference_of_two_maps():
    output = torch.tensor([[1., 3., 2.], [5., 4., 0.]])
    places = indices('max', output)
    assert others(None, places, output) == [(2,), (1,)]
    assert others(0, [(1,), (2,)], output) == [(0,), (0,)]
    assert asked(places, [(2,), (1,)])(output).tolist() == [1., 1.]
    assert relevance_of(places, [(2,), (1,)])(output).tolist() == [[0., 3., -2.], [5., -4., 0.]]
    assert asked(None)(output).tolist() == [6., 9.]


def test_pictures_are_turned_as_the_camera_says_and_cropped(capsys, folder):
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    plain, turned = Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2)[::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned.save(folder / 'turned.png', exif=exif)
    plain.save(folder / 'plain.png')
    options = argparse.Namespace(size=(8, 8), grey=False, normalize=None)
    seen = [pixels_of(name, Loaded(torch.nn.Identity(), ''), options)[1] for name in ('plain.png', 'turned.png')]
    assert torch.equal(*seen)
    assert seen[0].shape == (3, 8, 8)
    assert seen[0][:, :, 0].max() < .1 < .9 < seen[0][:, :, -1].min()


def test_sixteen_bits_are_kept(folder):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(folder / 'deep.png')
    options = argparse.Namespace(size=None, grey=True, normalize=None)
    seen = pixels_of('deep.png', Loaded(torch.nn.Identity(), ''), options)[1]
    assert torch.allclose(seen[0], torch.tensor(ramp / 65535.), atol=1 / 255)


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
    code, _, aside = run(capsys, 'heatmap', 'cli_models:Words', '--set', 'every=True', '--text', 'abcd')
    assert code == 0
    assert re.search(r'target   3,\d of output 1x4x3', aside)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['cli_models:picture', '--image', 'absent.png'], 'there is no image absent.png'),
    (['cli_models:picture', '--image', 'cli_models.py'], 'is no image that can be read'),
    (['cli_models:picture', '--image', 'photo.png'], 'the model does not take this input (1x3x20x30'),
    (['cli_models:picture', '--image', 'photo.png', '--size', '16', '--patches', '5'], '--patches: Patches of 5 x 5'),
    (['cli_models:picture', '--image', 'photo.png', '-o', 'heatmap.html'], 'has to end in .png, .pdf, .svg'),
    (['cli_models:picture', '--text', 'words'], 'has 0 embeddings (none)'),
    (['cli_models:Words', '--text', ''], 'the text is empty'),
    (['cli_models:Words', '--text', ' \n'], 'the text is empty'),
    (['cli_models:Words', '--text', 'a', '--generate', '3'], 'has no method generate'),
    (['cli_models:Words', '--text', 'a', '--answer', 'b'], 'there is no tokenizer'),
    (['cli_models:Words', '--text', 'a', '--generate', '3', '-t', '1'], '--target does not go with --generate'),
    (['cli_models:picture', '--image', 'photo.png', '--generate', '3'], 'are for models of texts: pass --text'),
    (['demo:vitt', '--image', 'photo.png'], "no model of the demo 'vitt'; did you mean vit"),
    (['cli_models:Words', '--text', 'words', '--set', 'rows=90'], 'too few for the bytes'),
    (['cli_models:Words', '--text', 'words', '--embedding', 'word'], "no module 'word'; did you mean words"),
])
def test_heatmaps_that_can_not_be(capsys, photo, arguments, message):
    assert message in refused(capsys, 'heatmap', *arguments)


def test_a_softmax_at_the_end_is_left_out_and_said(capsys, photo):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:gated', '--image', photo, '--size', '2')
    assert code == 0
    assert 'note     The model ends in softmax of 2: what is explained is what enters it.' in printed


def test_heatmap_of_what_is_not_supported(capsys, photo):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:refused', '--image', photo, '--size', '2')
    assert (code, printed) == (1, '')
    assert complaint.startswith("zennit-attn: error: module '0' calls matrix_exp")
