'''Writes ``docs/zoo.md``: what closes of all published models that the tests know, and what is refused and why.

``python docs/tables/zoo.py`` takes some minutes. It needs the packages of the extras `test` and `zoo`.
'''
import argparse
import sys
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

from helpers import largest  # noqa: E402 - after the path to it
from zennit_attn.conservation import audit  # noqa: E402 - after the path to it
from zennit_attn.errors import AttributionError  # noqa: E402 - after the path to it
from zoo.models import COMPOSITES, MODELS  # noqa: E402 - after the path to it
from zoo.test_zoo import DOUBLE, SINGLE, built, their_warnings, tolerance  # noqa: E402 - after the path to it

TITLES = {'cp_lrp': 'CPLRP', 'attn_lrp': 'AttnLRP'}
INTRODUCTION = '''# The zoo

<!-- written by docs/tables/zoo.py -->

Published models with attention, and some without, each small and with random weights, explained without a line of code
for any of them. A model *closes* when `|unaccounted|` is at most {double:.0e} of the relevance of the output in double
precision, or {single:.0e} where the model itself computes in single precision inside. The tables give the larger share
of two samples. The tests marked `zoo` check the same, and that the forward is unchanged, the map finite and the model
restored.

`python docs/tables/zoo.py` wrote this page, with torch {torch} and zennit {zennit}.
'''


def share(name, composite, options):
    '''The largest unaccounted share of the samples of a model, in units of the output's relevance.'''
    model, input = built(name)
    with their_warnings():
        ledger = audit(model, COMPOSITES[composite](**options), input, largest)
    return float((ledger.unaccounted.abs() / ledger.output.abs()).max())


def result(name, composite, options=None):
    '''What to print for a model: the share, that it is open, or that it is refused; and the error's first line.'''
    try:
        value = share(name, composite, options or {})
    except AttributionError as error:
        return 'refused', str(error).splitlines()[0]
    text = f'{value:.0e}' if value else '0'
    return (text if value <= tolerance(name, composite) else f'open: {text}'), ''


def explain_all(names):
    '''The results of all models, by name and composite.'''
    results = {}
    for index, name in enumerate(names):
        results[name] = {composite: result(name, composite) for composite in COMPOSITES}
        print(f'{index + 1}/{len(names)} {name}: {", ".join(text for text, _ in results[name].values())}', flush=True)
    return results


def closes(text):
    '''Whether what is printed for a model says that it closes.'''
    return text[0].isdigit()


def summary(results):
    '''How many models close.'''
    lines = ['| composite | models | close | share |', '| --- | ---: | ---: | ---: |']
    for composite, title in TITLES.items():
        closed = sum(closes(row[composite][0]) for row in results.values())
        lines.append(f'| {title} | {len(results)} | {closed} | {closed / len(results):.1%} |')
    return lines


def exceptions(results):
    '''Why models are refused or open, and what makes them close.'''
    lines = []
    for name, row in results.items():
        failed = [composite for composite, (text, _) in row.items() if not closes(text)]
        for reason in dict.fromkeys(row[composite][1] for composite in failed):
            composites = [composite for composite in failed if row[composite][1] == reason]
            known = MODELS[name].broken.get(composites[0], 'not known why')
            why = f'refused. {reason}.' if reason else f'open: {known}.'
            lines.append(f'* **{name}**, {" and ".join(map(TITLES.get, composites))}: {why}{remedy(name, composites)}')
    return lines or ['None.']


def remedy(name, composites):
    '''Say under which composites a model closes with the remedy in the list of models.'''
    tried = {composite: result(name, composite, MODELS[name].remedy[composite]())[0]
             for composite in composites if composite in MODELS[name].remedy}
    closed = [f'{TITLES[composite]} ({text})' for composite, text in tried.items() if closes(text)]
    return f' It closes under {" and ".join(closed)} with the remedy in `tests/zoo/models.py`.' if closed else ''


def table(results):
    '''What is left unaccounted of each model.'''
    yield '| model | CPLRP | AttnLRP | package | computes in single precision |'
    yield '| --- | --- | --- | --- | --- |'
    for name, row in results.items():
        texts = ' | '.join(row[composite][0] for composite in TITLES)
        yield f'| {name} | {texts} | {package_of(MODELS[name])} | {MODELS[name].single} |'


@cache
def distributions():
    '''The names of distributions by that of their packages.'''
    return packages_distributions()


def package_of(model):
    '''The package of a model, with its version.'''
    name = distributions()[model.package][0]
    return f'{name} {version(name)}'


def main(args=None):
    '''Write the page.'''
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=ROOT / 'docs' / 'zoo.md', help='default: docs/zoo.md')
    parser.add_argument('--only', default='', help='explain only models whose name contains this')
    arguments = parser.parse_args(args)
    results = explain_all([name for name in MODELS if arguments.only in name])
    introduction = INTRODUCTION.format(double=DOUBLE, single=SINGLE, torch=version('torch'),
                                       zennit=version('zennit'))
    arguments.output.write_text('\n'.join([
        introduction, *summary(results), '', '## What does not close', '', *exceptions(results), '',
        '## All models', '', *table(results), '']))


if __name__ == '__main__':
    main()
