'''The command does what it says.'''
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from zennit_attn.__main__ import main
from zennit_attn.demo import DEMOS

pytest.importorskip('sklearn')

NAMES = list(DEMOS)
README = Path(__file__).parents[2] / 'README.md'


def test_demo_writes_a_picture_and_prints_the_ledger(tmp_path, capsys):
    assert main(['demo', '--model', 'vit', '--samples', '1', '--output', str(tmp_path / 'new' / 'folder')]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / 'new' / 'folder' / 'vit.png'
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height > 0
    assert f'written to {path}' in printed
    assert len(re.findall(r'(?:CP-LRP|AttnLRP) +unaccounted +-?\d', printed)) == 2
    shares = dict(re.findall(r'(CP-LRP|AttnLRP|gradient x input) (\d+)%', printed))
    # a map without knowledge has the object's share of the pixels, 10 %
    assert int(shares['CP-LRP']) > 30
    assert shares.keys() == {'CP-LRP', 'AttnLRP', 'gradient x input'}


def test_demo_says_why_two_maps_are_equal(tmp_path, capsys):
    assert main(['demo', '-m', 'performer', '-m', 'vit', '-n', '1', '-o', str(tmp_path)]) == 0
    performer, vit = capsys.readouterr().out.split('ViT on')
    assert 'the same maps' in performer
    assert 'the same maps' not in vit


def test_demo_of_digits_has_no_masks(tmp_path, capsys):
    assert main(['demo', '-m', 'linear_attention_digits', '-n', '2', '-o', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert 'handwritten digits' in printed
    assert 'on the object' not in printed
    assert {path.name for path in tmp_path.iterdir()} == {'linear_attention_digits.png', 'scene.png'}


def test_the_commands_of_the_readme_run_after_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    block = re.search(r'## On the command line\n\n```sh\n(.*?)```', README.read_text(), re.DOTALL)[1]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) > 2
    assert main(['demo', '-m', 'performer', '-n', '1']) == 0
    for program, *arguments in commands:
        assert program == 'zennit-attn'
        assert main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / 'scene.png').stat().st_size > 10_000


def test_demo_writes_the_picture_of_the_readme(tmp_path, capsys):
    assert main(['demo', '--picture', str(tmp_path / 'docs' / 'picture.png')]) == 0
    assert [path.name for path in tmp_path.rglob('*.png')] == ['picture.png']
    assert 'picture.png' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [
    ['--output', 'file'], ['--output', 'file/folder'], ['--picture', 'file/picture.png'],
])
def test_output_into_a_file_is_an_error(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    assert main(['demo', '--model', 'vit', *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('zennit-attn: error: can not write into file')
    assert captured.out == ''


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'COMMAND'),
    (['dmeo'], 'dmeo'),
    (['demo', '--model', 'resnet'], 'linear_attention'),
    (['demo', '--samples', '0'], 'from 1 to 20'),
    (['demo', '--samples', '21'], 'from 1 to 20'),
    (['demo', '--samples', 'two'], 'from 1 to 20'),
    (['demo', '--picture', 'picture.bmp'], 'end in .png'),
])
def test_wrong_usage_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'expected'), [
    (['--help'], ['demo', 'relevance']), (['demo', '--help'], ['--output', '--model', '--picture', 'example', *NAMES]),
])
def test_help(arguments, expected, capsys):
    with pytest.raises(SystemExit, match='0'):
        main(arguments)
    printed = capsys.readouterr().out
    assert all(word in printed for word in expected)


def test_the_package_runs_as_a_module():
    run = subprocess.run([sys.executable, '-m', 'zennit_attn', '--version'], capture_output=True, text=True, check=True)
    assert run.stdout.startswith('zennit-attn ')
