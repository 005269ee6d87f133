'''The pages by kind of model: their code runs as it stands there, on models of the same kinds.'''
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from helpers import assert_closed
from zennit_attn import Explanation, Generation

PAGES = Path(__file__).parents[2] / 'docs' / 'models'


def pictures():
    '''The script that draws the pictures.'''
    spec = spec_from_file_location('model_pictures', PAGES.parent / 'pictures.py')
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PICTURES = pictures()


def test_every_page_has_a_kind_and_every_picture_a_page():
    assert {path.stem for path in PAGES.glob('*.md')} == {*PICTURES.KINDS, 'index'}
    shown = ''.join(path.read_text() for path in PAGES.glob('*.md'))
    assert not [path.name for path in PAGES.glob('*.png') if f'({path.name})' not in shown]
    for kind in PICTURES.KINDS:
        assert len(PICTURES.code(kind).splitlines()) <= 18
        assert f'[]({kind}.md)' in (PAGES / 'index.md').read_text()


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', PICTURES.KINDS)
def test_the_code_of_a_page_runs_and_its_ledger_closes(kind, tmp_path, monkeypatch, capsys):
    for package in ('transformers', 'torchvision') if kind == 'vision' else ('transformers',):
        pytest.importorskip(package, reason=f'{package} is not installed (see the extra zoo in pyproject.toml)')
    monkeypatch.chdir(tmp_path)
    names = PICTURES.KINDS[kind](steps=0, real=False)
    exec(compile(PICTURES.code(kind), f'{kind}.md', 'exec'), names)
    made = [value for value in names.values() if isinstance(value, (Explanation, Generation))]
    assert made
    for each in made:
        each = each.audit()
        assert_closed(each, 2e-3)  # in float32, of small and random outputs
    assert {path.name for path in tmp_path.glob('*.png')} == {
        path.name for path in PAGES.glob('*.png') if f'({path.name})' in (PAGES / f'{kind}.md').read_text()}


def test_the_pictures_of_the_page_on_heatmaps_are_there():
    page = PAGES.parent / 'how-to' / 'heatmaps.md'
    shown = re.findall(r'!\[[^]]*\]\(([\w-]+\.png)\)', page.read_text())
    assert len(shown) > 3
    assert all(f"savefig('{name}')" in page.read_text() for name in shown)


def test_training_trains():
    model = torch.nn.Linear(1, 1)
    x = torch.linspace(-1., 1., 9)[:, None]
    trained = PICTURES.fitted(model, lambda model, step: ((model(x) - 3. * x) ** 2).mean(), 300, .1)
    assert not trained.training
    assert float(trained.weight.detach()) == pytest.approx(3., abs=.05)
