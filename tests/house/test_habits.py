'''What stands around the code: the front door, the workflow, the citation, hooks before a commit.'''
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest

import zennit_attn

from .test_house import FLOORS, PROJECT, PUBLIC, ROOT

PAGES = ('CONTRIBUTING.md', 'docs/architecture.md')
#: A path of the repository: with a folder before it, or the name of a file at the top.
PATH = re.compile(r'(?<![\w./*<-])((?:\.?\w[\w-]*/)+(?:\w[\w.-]*)?|\w+\.(?:py|md|toml|cff))(?![\w/*])')
#: What a page makes, and who uses it has not yet.
MADE = ('docs/_build', 'dist/', '.venv/')


def missing(page):
    '''The files and folders that a page names, in text or in commands, which do not exist.'''
    text = re.sub(r'\bhttps?:\S+', '', page)
    made = [*MADE, *re.findall(r'^# (\S+\.py)$', text, re.MULTILINE)]
    named = {path.rstrip('.') for path in PATH.findall(text)}
    return sorted(path for path in named if not (ROOT / path).exists() and not path.startswith(tuple(made)))


def test_missing_files_are_found():
    text = 'see `zennit_attn/rules.py`, `zennit_attn/rulez.py`, (docs/nothing.md#there), tests/map and NOWHERE.md.'
    assert missing(text) == ['NOWHERE.md', 'docs/nothing.md', 'zennit_attn/rulez.py']
    assert missing('.venv/bin/pytest tests/new.py') == ['tests/new.py']
    assert not missing('# tests/new.py\n.venv/bin/pytest tests/new.py')


@pytest.mark.parametrize('page', PAGES)
def test_pages_name_files_that_exist(page):
    text = (ROOT / page).read_text()
    assert len(PATH.findall(text)) > 20
    base = (ROOT / page).parent
    links = re.findall(r'\]\((?!https?:|#)([^)#]+)', text)
    assert not [link for link in links if not (base / link).exists()]
    assert not missing(re.sub(r'\]\([^)]*\)', ']', text))


@pytest.mark.parametrize('page', PAGES)
def test_links_within_pages_lead_to_headings(page):
    text = (ROOT / page).read_text()
    slugs = {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
             for heading in re.findall(r'^#+ (.*)', text, re.MULTILINE)}
    assert not {anchor for anchor in re.findall(r'\]\(#([^)]+)\)', text)} - slugs


def test_the_page_on_architecture_has_the_floors():
    table = re.findall(r'^\| (\d) \| `(\w+)` \|', (ROOT / 'docs' / 'architecture.md').read_text(), re.MULTILINE)
    assert {'' if room == '__init__' else room: int(floor) for floor, room in table} == FLOORS


def printed(code):
    '''What a fresh Python prints that runs ``code``.'''
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    result = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True,
                            env={**os.environ, 'PYTHONPATH': path})
    return result.stdout.split()


def test_importing_the_package_registers_composites_and_draws_nothing():
    found = printed('import sys, zennit.composites; print("cp_lrp" in zennit.composites.COMPOSITES)\n'
                    'import zennit_attn; print("matplotlib" in sys.modules, "cp_lrp" in zennit.composites.COMPOSITES)\n'
                    'import zennit_attn.heatmap; print("matplotlib" in sys.modules)')
    assert found == ['False', 'False', 'True', 'True']


def test_the_front_door_shows_what_is_public():
    shown = dir(zennit_attn)
    assert {*zennit_attn.__all__, '__version__', *PUBLIC, 'attention', 'operators'} <= set(shown)
    assert all(getattr(zennit_attn, name) is not None for name in shown)


def test_version_is_the_installed_one():
    assert zennit_attn.__version__ == version('zennit-attn')


def test_the_workflow_runs_all_that_has_to_pass_and_nothing_else():
    workflow = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
    assert re.findall(r'^ *-? *run: *(.*)$', workflow, re.MULTILINE) == ['.ci/run']
    assert os.access(ROOT / '.ci' / 'run', os.X_OK)


def test_the_citation_is_that_of_this_version():
    cited, = re.findall(r'^version: (.+)$', (ROOT / 'CITATION.cff').read_text(), re.MULTILINE)
    assert cited == re.match(r'\d+\.\d+\.\d+', PROJECT['version'])[0]


def test_the_citation_has_the_licence_and_the_authors_of_the_project():
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'license: {PROJECT["license"]}\n' in citation
    assert re.findall(r'^  - name: (.+)$', citation, re.MULTILINE) == [each['name'] for each in PROJECT['authors']]


def test_hooks_before_a_commit_lint_with_the_same_ruff():
    hooks = (ROOT / '.pre-commit-config.yaml').read_text()
    ruff, = (requirement for requirement in PROJECT['optional-dependencies']['test'] if requirement.startswith('ruff'))
    assert f"additional_dependencies: ['{ruff}']" in hooks
