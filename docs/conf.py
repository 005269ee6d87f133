'''Settings of Sphinx: ``python -m sphinx -W --keep-going -b html docs docs/_build``. Nothing is fetched.'''
import os
import re
import shutil
from pathlib import Path

DOCS = Path(__file__).parent
NOTEBOOKS = DOCS.parent / 'notebooks'

project = 'zennit-attn'
author = 'the authors of zennit-attn'
copyright = author
release = version = re.search(r"^version = '(.+)'", (DOCS.parent / 'pyproject.toml').read_text(), re.MULTILINE)[1]

extensions = [
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinxcontrib.bibtex',
    'sphinx_copybutton',
    'sphinx_rtd_theme',
    'myst_nb',
]
exclude_patterns = ['_build', 'tables']

html_theme = 'sphinx_rtd_theme'
html_static_path = ['static']
html_css_files = ['tables.css']
html_title = f'zennit-attn {release}'
pygments_style = 'sphinx'

myst_enable_extensions = ['amsmath', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'off'  # notebooks are committed with their outputs

bibtex_bibfiles = ['references.bib']
bibtex_default_style = 'unsrt'
bibtex_reference_style = 'author_year'

autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
napoleon_google_docstring = False
napoleon_use_ivar = True

# References to our own names must resolve; those of other projects only can where their indices are fetched.
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!zennit_attn\.).*')]
if os.environ.get('ZENNIT_ATTN_DOCS_ONLINE'):
    extensions.append('sphinx.ext.intersphinx')
    intersphinx_mapping = {
        'python': ('https://docs.python.org/3', None),
        'torch': ('https://pytorch.org/docs/stable', None),
        'zennit': ('https://zennit.readthedocs.io/en/stable', None),
    }


def copy_notebooks():
    '''Sphinx reads below its own folder only, so that the notebooks are copied there.'''
    copies = DOCS / 'notebooks'
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    for path in sorted(NOTEBOOKS.glob('*.ipynb')):
        # In the repository a notebook finds the docs beside its own folder, and here it is in them.
        text = path.read_text(encoding='utf-8').replace('](../docs/', '](../')
        (copies / path.name).write_text(text, encoding='utf-8')


def name_footnotes(app, what, name, obj, options, lines):
    '''Docstrings number their references from 1, but share a page: give each docstring labels of its own.'''
    label = name.replace('_', '-')
    lines[:] = [re.sub(r'(?<=\[)(\d+)(?=\](_| ))', rf'#{label}-\1', line) for line in lines]


def public_bases(app, name, obj, options, bases):
    '''Show the public classes that a private base class is derived from in its place.'''
    while private := [base for base in bases if getattr(base, '__name__', '').startswith('_')]:
        index = bases.index(private[0])
        bases[index:index + 1] = private[0].__bases__


def setup(app):
    '''Called by Sphinx.'''
    app.connect('autodoc-process-bases', public_bases)
    app.connect('autodoc-process-docstring', name_footnotes, priority=400)  # before napoleon


copy_notebooks()
