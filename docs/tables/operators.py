'''Writes ``docs/operators.md``: the kinds of all functions of torch, and why some are refused.

``python docs/tables/operators.py`` takes seconds.
'''
import textwrap
from pathlib import Path

import torch

from zennit_attn.operators import NAMES
from zennit_attn.operators.refusals import GROUPS

PAGE = Path(__file__).parents[1] / 'operators.md'
INTRODUCTION = f'''# Operators

<!-- written by docs/tables/operators.py -->

Every function of torch by base name: `add` stands for `torch.add`, `Tensor.add_` and `+`. Functions that are missing
here hand over to others that are not, or are refused as unknown. Not every supported version of torch has all of them.

`python docs/tables/operators.py` wrote this page, with torch {torch.__version__.partition('+')[0]}.
'''


def names(words):
    '''Sorted names as a paragraph of code.'''
    return textwrap.fill(' '.join(f'`{name}`' for name in sorted(words.split())), 120, break_on_hyphens=False)


def page():
    '''The text of the page.'''
    parts = [INTRODUCTION, '## Kinds\n']
    parts += [f'### {kind.value}\n\n{textwrap.fill(kind.sentence, 120)}\n\n{names(words)}\n'
              for kind, words in NAMES.items()]
    parts.append('## Refused\n\nWhere a tensor that carries relevance meets one of these, the error says why.\n')
    parts += [f'{textwrap.fill(why[0].upper() + why[1:] + ".", 120)}\n\n{names(words)}\n'
              for why, words in GROUPS.items()]
    return '\n'.join(parts)


if __name__ == '__main__':
    PAGE.write_text(page())
