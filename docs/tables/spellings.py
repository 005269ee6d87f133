'''Writes ``docs/mathematics/spellings.md``: which spellings of one function get different maps, and why.

``python docs/tables/spellings.py`` takes seconds.
'''
import re
import sys
import textwrap
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))

from cases.spellings import SPELLINGS  # noqa: E402 - after the path to it
from cases.spellings.others import GROUPS, OTHER_GRAPHS, OTHER_MAPS  # noqa: E402 - after the path to it
from spelling.measure import COMPOSITES, difference_of, meant  # noqa: E402 - after the path to it

PAGE = ROOT / 'docs' / 'mathematics' / 'spellings.md'
INTRODUCTION = f'''# Spellings

<!-- written by docs/tables/spellings.py -->

A ledger that closes is not enough: two spellings of one function have to get one map. In `tests/cases/spellings` are
{len(SPELLINGS)} functions in {sum(map(len, SPELLINGS.values()))} spellings: as functions, methods and modules, in
place, with `einsum`, by hand, with keywords, out of order. Each runs between linear layers, beside a residual. Under
`CPLRP`, `AttnLRP` and `AttnTaylor` outputs and maps are equal and ledgers close, but for the maps of the spellings
below. A test holds them to it: one that stops being different has to leave this page.

What is [a gate](gates.md) is decided at the product, by what a factor is at zero, and not by the name of a function.
Below is what this does not reach, and where two spellings are two decisions. A number is the largest difference of two
maps, in units of the largest element of the one that is meant.

`python docs/tables/spellings.py` wrote this page, with torch {torch.__version__.partition('+')[0]}.
'''
GRAPHS = '''## Graphs of ATen

Models that `torch.export` or `make_fx` has taken apart are explained as they stand: their operators are those of ATen,
and the maps are those of the code that they were made of. Exceptions are functions that fall apart into one of the
spellings above.

{exceptions}

`make_fx` takes normalizations to operators that also return their statistics, which are refused. `torch.export` keeps
them whole.
'''


def size(function, spelling, composite):
    '''The difference, if it is listed.'''
    if (function, spelling, composite) not in OTHER_MAPS:
        return ''
    return f'{difference_of(function, spelling, composite):.0e}'


def table(group):
    '''Rows of the spellings of a group.'''
    yield f'| function | meant | spelling | {" | ".join(COMPOSITES)} |'
    yield f'| --- | --- | --- | {" | ".join("---" for _ in COMPOSITES)} |'
    for function, spellings in group.spellings.items():
        for spelling in spellings:
            sizes = ' | '.join(size(function, spelling, composite) for composite in COMPOSITES)
            yield f'| {function} | {meant(function)} | {spelling} | {sizes} |'


def section(group):
    '''The text and the table of a group.'''
    words = re.sub('`[^`]*`', lambda code: code[0].replace(' ', '\0'), ' '.join(group.why.split()))
    why = textwrap.fill(words, 120, break_on_hyphens=False).replace('\0', ' ')
    return '\n'.join([f'## {group.title}\n\n{why}\n', *table(group), ''])


def exceptions():
    '''Graphs whose maps differ, by reason.'''
    functions = {}
    for (function, *_), why in OTHER_GRAPHS.items():
        functions.setdefault(why, {})[function] = None
    return '\n'.join(f'* {why[0].upper()}{why[1:]}: {", ".join(names)}.' for why, names in functions.items())


def page():
    '''The text of the page.'''
    return '\n'.join([INTRODUCTION, *map(section, GROUPS), GRAPHS.format(exceptions=exceptions())])


if __name__ == '__main__':
    PAGE.write_text(page())
