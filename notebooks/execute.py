'''Execute the notebooks, and check that their cells still return what they were committed with; see ``--help``.

Cells assert what they claim, so a notebook that runs through is a test that has passed. Numbers may differ from machine
to machine, and are not compared. Kinds of outputs may not: a new warning or a missing figure is an error here.
'''
import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS = 120


def executed(path):
    '''Return a notebook, executed from top to bottom in a new kernel, without times and versions.'''
    notebook = nbformat.read(path, as_version=4)
    metadata = dict(notebook.metadata)
    NotebookClient(notebook, timeout=SECONDS, kernel_name='python3', record_timing=False).execute()
    notebook.metadata = metadata
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def kinds(notebook):
    '''Return for each cell what kinds of outputs it has.'''
    return {cell.id: {output.get('name') or ', '.join(sorted(output.get('data', [output.output_type])))
                      for output in cell.get('outputs', [])} for cell in notebook.cells}


def main(args=None):
    '''Execute the notebooks that are named, or all.'''
    parser = argparse.ArgumentParser(prog='python notebooks/execute.py', description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', type=Path, metavar='NOTEBOOK', help='paths (default: all)')
    parser.add_argument('--write', action='store_true', help='store the outputs, rather than to compare their kinds')
    options = parser.parse_args(args)
    differ = []
    for path in options.notebooks or sorted(FOLDER.glob('*.ipynb')):
        print(path.name, flush=True)
        notebook = executed(path)
        if options.write:
            path.write_text(nbformat.writes(notebook, indent=1) + '\n')
        committed, now = kinds(nbformat.read(path, as_version=4)), kinds(notebook)
        differ += [f'{name}: {committed[name] or "nothing"} committed, {now[name] or "nothing"} now'
                   for name in committed if committed[name] != now[name]]
    for line in differ:
        print(line)
    return bool(differ)


if __name__ == '__main__':
    sys.exit(main())
