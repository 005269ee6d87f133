'''The pages of the docs: their code runs and prints what they say, and their links lead somewhere.'''
import contextlib
import io
import json
import math
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from zennit_attn.__main__ import main
from zoo.models import MODELS

from .test_house import MODULES, PACKAGE, PROJECT, PUBLIC

ROOT = Path(__file__).parents[2]
DOCS = ROOT / 'docs'
ROOMS = [room for room in [*PUBLIC, 'attention', 'operators'] if f'{PACKAGE}.{room}' in MODULES]
PAGES = sorted(path for pattern in ('*.md', '*.rst') for path in DOCS.rglob(pattern)
               if not {'_build', 'notebooks'} & set(path.relative_to(DOCS).parts))
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
FENCE = re.compile(r'^(```+|:::+)(\S*)[^\n]*\n(.*?)^\1\s*?$', re.DOTALL | re.MULTILINE)

NUMBER = re.compile(r'-?\d+(?:\.\d*)?(?:e[-+]?\d+)?')

each_page = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def blocks(text):
    '''The language, text and line of each fenced block of Markdown, or of each code block of reStructuredText.'''
    found = [(match[2], match[3], match.start(3)) for match in FENCE.finditer(text)]
    for match in re.finditer(r'^\.\. code-block:: (\w+)\n\n((?: {4}[^\n]*\n|\n)+)', text, re.MULTILINE):
        found.append((match[1], re.sub('^ {4}', '', match[2], flags=re.MULTILINE), match.start(2)))
    return [(language, block, text[:start].count('\n')) for language, block, start in sorted(found, key=lambda f: f[2])]


def prose(text):
    '''A page without its fenced blocks.'''
    return FENCE.sub('', text)


def same_output(actual, expected):
    '''Whether two texts have the same words and, but for rounding, the same numbers; layout does not count.'''
    (words, numbers), (expected_words, expected_numbers) = (_parts(text) for text in (actual, expected))
    return words == expected_words and all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6) for a, b in zip(numbers, expected_numbers, strict=True))


def _parts(text):
    '''A text without spaces and numbers, and its numbers.'''
    return ' '.join(NUMBER.sub(' # ', text).split()), [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize(('actual', 'expected', 'same'), [
    ('a  0.12345', 'a 0.12344\n', True), ('a 0.12345', 'a 0.124', False), ('a 1', 'b 1', False),
    ('unaccounted 3e-17', 'unaccounted -1e-16', True), ('a', 'a b', False), ('', 'a', False),
    ('[1., 2]', '[1.0, 2.]', True), ('[1., 2]', '[1., 2, 3]', False), ('[1]', '1', False), ('2x6', '2x7', False),
])
def test_outputs_are_compared(actual, expected, same):
    assert same_output(actual, expected) is same


def test_blocks_are_found():
    markdown = 'a\n```python\nx = 1\n```\n\n````md\n```python\n```\n````\n:::{note}\nb\n:::\n'
    assert blocks(markdown) == [
        ('python', 'x = 1\n', 2), ('md', '```python\n```\n', 6), ('{note}', 'b\n', 10)]
    assert blocks('a\n\n.. code-block:: python\n\n    x = 1\n    y = 2\n\nb\n') == [('python', 'x = 1\ny = 2\n\n', 4)]


def run_python(block, names, origin):
    '''What a block prints. If its first line is a comment with the name of a file, it is written to that file too.'''
    if file := re.match(r'# (\w+\.py)\n', block):
        Path(file[1]).write_text(block)
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        exec(compile('\n' * origin[1] + block, str(origin[0]), 'exec'), names)
    return stream.getvalue()


def run_shell(block):
    '''What the command line prints about the files that a page has written; None if a block is not about them.'''
    if not any(path.name in block for path in Path().glob('*.py')):
        return None
    program, *arguments = shlex.split(block)
    assert program == 'zennit-attn'
    with contextlib.redirect_stdout(io.StringIO()) as stream, contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main(arguments) == 0, errors.getvalue()
    return stream.getvalue()


@each_page
def test_code_runs_and_prints_what_the_page_says(page, table, tmp_path, monkeypatch):
    '''The Python blocks of a page share their names; a text block right after one is what it prints.'''
    names, printed = {'__name__': 'page'}, None
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for language, block, line in blocks(page.read_text()):
        if language == 'text' and printed is not None:
            assert same_output(printed, block), f'{page}:{line}: the block before it prints\n{printed}'
        printed = None
        if language == 'python':
            printed = run_python(block, names, (page, line))
        elif language == 'sh':
            printed = run_shell(block)


def test_pages_have_code():
    languages = [language for page in PAGES for language, *_ in blocks(page.read_text())]
    assert languages.count('python') > 20
    assert languages.count('text') > 5


def slugs(text):
    '''The anchors of a page's headings.'''
    headings = re.findall(r'^#+ (.*)', prose(text), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


def leads_somewhere(page, target):
    '''Whether a link from a page finds its file, and the heading in it.'''
    path, _, anchor = target.partition('#')
    file = Path(os.path.normpath(page.parent / path)) if path else page
    if not file.exists() and file.is_relative_to(DOCS / 'notebooks'):
        return (ROOT / file.relative_to(DOCS)).exists()
    return file.exists() and (not anchor or anchor in slugs(file.read_text()))


LINK = re.compile(r'\]\((?![a-z]+:)([^)\s]+)\)')


@each_page
def test_links_lead_somewhere(page):
    assert not [target for target in LINK.findall(prose(page.read_text())) if not leads_somewhere(page, target)]


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_links_of_notebooks_lead_somewhere(notebook):
    '''In the repository; where they are copied to, in the docs, their links are changed.'''
    cells = json.loads(notebook.read_text())['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    assert not [target for target in LINK.findall(prose(text)) if not leads_somewhere(notebook, target)]
    copied = prose(text).replace('](../docs/', '](../')
    assert not [target for target in LINK.findall(copied)
                if not leads_somewhere(DOCS / 'notebooks' / notebook.name, target)]


@each_page
def test_directives_find_their_files(page):
    wanted = []
    for language, block, _ in blocks(page.read_text()):
        lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(':')]
        if language == '{toctree}':
            wanted += [page.parent / f'{line}{ending}' for line in lines if '*' not in line
                       for ending in ('.md', '.rst')]
    found = {path.with_suffix('') for path in wanted if path.exists()}
    assert found == {path.with_suffix('') for path in wanted}
    files = re.findall(r'^(?:`{3,}|:{3,})\{(?:include|image|figure)\} (\S+)', page.read_text(), re.MULTILINE)
    assert not [path for path in files if not (page.parent / path).exists()]


@each_page
def test_files_named_in_the_text_exist(page):
    named = re.findall(r'`([\w./-]+\.(?:py|md|ipynb|toml|bib|png))`', prose(page.read_text()))
    written = re.findall(r'^# (\w+\.py)$', page.read_text(), re.MULTILINE)
    missing = [name for name in named if not (ROOT / name).exists() and not list((ROOT / 'tests').rglob(name))
               and name not in written]
    assert not missing


def commands():
    '''The commands of the command line, and the scripts, that any page calls.'''
    shell = '\n'.join(block for page in PAGES for language, block, _ in blocks(page.read_text()) if language == 'sh')
    return set(re.findall(r'\bzennit-attn (\w+)', shell)), set(re.findall(r'\bpython ([\w/]+\.py)', shell))


def test_commands_exist(capsys):
    subcommands, scripts = commands()
    assert 'demo' in subcommands
    for command in subcommands:
        with pytest.raises(SystemExit, match='^0$'):
            main([command, '--help'])
    assert not [script for script in scripts if not (ROOT / script).exists()]


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / 'index'}
    for page in PAGES:
        for language, block, _ in blocks(page.read_text()):
            if language == '{toctree}':
                lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(':')]
                listed |= {page.parent / line for line in lines}
                listed |= {path.with_suffix('') for line in lines for path in page.parent.glob(line) if '*' in line}
        entries = re.findall(r'^ {4}(\w+)$', page.read_text(), re.MULTILINE) if page.suffix == '.rst' else []
        listed |= {page.parent / entry for entry in entries}
    assert not [page for page in PAGES if page.with_suffix('') not in listed]


def test_every_result_is_shown():
    page = (DOCS / 'benchmarks.md').read_text()
    results = sorted((ROOT / 'benchmarks' / 'results').glob('*.md'))
    assert results
    assert not [path.name for path in results if f'../benchmarks/results/{path.name}' not in page]


@pytest.mark.parametrize('room', ROOMS)
def test_every_public_room_is_in_the_reference(room):
    assert f'.. automodule:: {PACKAGE}.{room}\n' in (DOCS / 'reference' / f'{room}.rst').read_text()


def test_the_table_of_the_zoo_is_that_of_its_models():
    '''Else it has to be written again: ``python docs/tables/zoo.py``.'''
    table = (DOCS / 'zoo.md').read_text().partition('## All models')[2]
    assert re.findall(r'^\| ([^|]+?) \| (?:\d|refused|open)', table, re.MULTILINE) == list(MODELS)


def test_the_page_of_the_zoo_can_be_written(tmp_path, capsys):
    names = {'__name__': 'zoo_page', '__file__': str(DOCS / 'tables' / 'zoo.py')}
    exec(compile(Path(names['__file__']).read_text(), names['__file__'], 'exec'), names)
    names['main'](['--only', 'TransformerDecoder', '--output', str(tmp_path / 'zoo.md')])
    written = (tmp_path / 'zoo.md').read_text()
    assert written.count('| 1 | 1 | 100.0% |') == 2
    assert re.search(r'^\| torch TransformerDecoder \| \d', written, re.MULTILINE)
    assert '1/1 torch TransformerDecoder' in capsys.readouterr().out


def test_the_docs_need_what_their_settings_load():
    extra = ' '.join(PROJECT['optional-dependencies']['docs'])
    loaded = re.search(r'^extensions = \[(.*?)\]', (DOCS / 'conf.py').read_text(), re.DOTALL | re.MULTILINE)[1]
    packages = {name.replace('_', '-').replace('sphinxcontrib.', 'sphinxcontrib-')
                for name in re.findall(r"'([\w.]+)'", loaded) if not name.startswith('sphinx.ext.')}
    assert packages
    assert not [name for name in packages if name not in extra]
