'''The notebooks as they are committed. That their cells still run is checked by ``notebooks/execute.py``.'''
import copy
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
NAMES = ['1-linear-attention', '2-multi-head-attention', '3-vit', '4-performer', '5-fast-weights', '6-your-own-code',
         '7-linear-attention-of-today']
#: Bytes of all of them: figures have to stay small.
LIMIT = 1_200_000
#: What only holds on the machine it was written on: paths, addresses of objects, temporary files of cells.
PRIVATE = re.compile(
    r'(?<![\w/.:<])/(?:tmp|home|root|usr|work|opt|var|mnt|Users)/|\\Users\\|site-packages|ipykernel_|0x[0-9a-f]{6,}')


def load(path):
    return json.loads(path.read_text())


def code_of(notebook):
    return [cell for cell in notebook['cells'] if cell['cell_type'] == 'code']


def text_of(output):
    '''All text of an output, pictures left out.'''
    data = {kind: value for kind, value in output.get('data', {}).items() if not kind.startswith('image/')}
    parts = [output.get('text', ''), *data.values(), *output.get('traceback', [])]
    return '\n'.join(''.join(part) for part in parts)


def problems(notebook, stem):
    '''What is wrong with a notebook that is to be committed.'''
    cells, found = code_of(notebook), []
    outputs = [output for cell in cells for output in cell['outputs']]
    if [cell['execution_count'] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append('not executed from top to bottom')
    if any(output['output_type'] == 'error' for output in outputs):
        found.append('error')
    if any(output.get('name') == 'stderr' for output in outputs):
        found.append('warning')
    if any(re.search(r'^ *print\(|\bfigure\(|plt\.show', ''.join(cell['source']), re.MULTILINE)
           and not cell['outputs'] for cell in cells):
        found.append('missing output')
    if any(PRIVATE.search(text_of(output)) for output in outputs):
        found.append('path or address')
    if any(cell['metadata'] for cell in notebook['cells']) or notebook['metadata']['kernelspec']['name'] != 'python3':
        found.append('metadata')
    if [cell['id'] for cell in notebook['cells']] != [f'{stem}-{i + 1:02d}' for i in range(len(notebook['cells']))]:
        found.append('ids')
    return found


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_all_notebooks_are_there_and_small():
    assert [path.stem for path in NOTEBOOKS] == NAMES
    assert sum(path.stat().st_size for path in NOTEBOOKS) < LIMIT


def test_notebook_is_fit_to_be_committed(path):
    assert problems(load(path), path.stem) == []


def test_notebook_has_a_title_figures_and_claims_that_it_checks(path):
    notebook = load(path)
    title = ''.join(notebook['cells'][0]['source'])
    assert title.startswith('# ')
    assert re.search(r'\]\(\.\./[\w/-]+\.md\)', title)
    assert any('image/png' in output.get('data', {}) for cell in code_of(notebook) for output in cell['outputs'])
    assert sum('assert ' in ''.join(cell['source']) for cell in code_of(notebook)) >= len(code_of(notebook)) / 2


def stream(name, text):
    return {'output_type': 'stream', 'name': name, 'text': [text]}


def with_outputs(*outputs):
    def change(notebook):
        code_of(notebook)[-1]['outputs'] = list(outputs)
    return change


def unordered(notebook):
    code_of(notebook)[1]['execution_count'] = 99


def emptied(notebook):
    for cell in code_of(notebook):
        cell['outputs'] = []


def timed(notebook):
    code_of(notebook)[0]['metadata'] = {'execution': {'iopub.status.idle': '2020-01-01T00:00:00Z'}}


def inserted(notebook):
    notebook['cells'].insert(1, {'cell_type': 'markdown', 'id': 'b7f1', 'metadata': {}, 'source': []})


@pytest.mark.parametrize(('change', 'problem'), [
    (unordered, 'not executed from top to bottom'),
    (emptied, 'missing output'),
    (timed, 'metadata'),
    (inserted, 'ids'),
    (with_outputs({'output_type': 'error', 'ename': 'E', 'evalue': '', 'traceback': []}), 'error'),
    (with_outputs(stream('stderr', 'UserWarning: old')), 'warning'),
    (with_outputs(stream('stdout', '  /tmp/ipykernel_1/2.py:16: x')), 'path or address'),
    (with_outputs(stream('stdout', '<torch._C.Generator at 0x7ff904f8e730>')), 'path or address'),
])
def test_problems_are_seen(path, change, problem):
    notebook = copy.deepcopy(load(path))
    change(notebook)
    assert problem in problems(notebook, path.stem)
