'''The command ``list``: the composites, canonizers and operators that there are.'''
import inspect
import re
import textwrap

import zennit.canonizers
from zennit.composites import COMPOSITES

from .. import canonizers
from ..operators import NAMES, REASONS, Kind
from .options import formatter
from .usage import UsageError

_EXAMPLES = '''\
examples:
  zennit-attn list                         everything
  zennit-attn list composites              what --composite takes
  zennit-attn list operators --kind gate   all that is viewed as a constant
  zennit-attn list operators soft          operators whose name holds "soft", with their kinds
'''


def add_parser(commands):
    '''Add the command.'''
    parser = commands.add_parser(
        'list', help='list composites, canonizers and operators', formatter_class=formatter, epilog=_EXAMPLES,
        description='List composites (of Zennit and of this package), canonizers and operators with their kinds.')
    parser.add_argument('what', nargs='?', choices=('composites', 'canonizers', 'operators', 'all'), default='all',
                        metavar='WHAT', help='composites, canonizers, operators or all (default: %(default)s)')
    parser.add_argument('word', nargs='?', default='', metavar='WORD', help='only names that hold this')
    parser.add_argument('--kind', choices=[kind.value for kind in Kind], metavar='KIND',
                        help=f'only operators of this kind: {", ".join(kind.value for kind in Kind)}')
    parser.set_defaults(run=run)


def run(options):
    '''Run the command and return its exit code.'''
    rooms = {'composites': _composites, 'canonizers': _canonizers, 'operators': _operators}
    chosen = ['operators'] if options.kind and options.what == 'all' else [options.what]
    parts = {name: room(options) for name, room in rooms.items() if name in chosen or chosen == ['all']}
    if not any(parts.values()):
        raise UsageError(f'nothing that is listed holds {options.word!r}')
    print('\n\n'.join(f'{name}\n{text}' for name, text in parts.items() if text))
    return 0


def _holds(name, options):
    return options.word.lower() in name.lower()


def _summary(cls):
    text = (inspect.getdoc(cls) or '').split('\n\n')[0].replace('\n', ' ')
    text = re.sub(r' ?:cite:p:`[^`]*`', '', text)
    return re.sub(r':py:\w+:`([^`]*)`', r'\1', text).replace('``', '')


def _origin(cls):
    return 'zennit_attn' if cls.__module__.startswith('zennit_attn') else 'zennit'


def _composites(options):
    rows = [(name, f'{_origin(cls)}: {_summary(cls)}') for name, cls in COMPOSITES.items() if _holds(name, options)]
    return '\n'.join(_entry(*row) for row in sorted(rows, key=lambda row: (row[1].startswith('zennit:'), row[0])))


def _canonizers(options):
    stock = [cls for _, cls in inspect.getmembers(zennit.canonizers, inspect.isclass)
             if issubclass(cls, zennit.canonizers.Canonizer) and cls is not zennit.canonizers.Canonizer]
    classes = [getattr(canonizers, name) for name in canonizers.__all__] + stock
    return '\n'.join(_entry(cls.__name__, f'{_origin(cls)}: {_summary(cls)}')
                     for cls in classes if _holds(cls.__name__, options))


def _operators(options):
    names = {kind: [name for name in text.split() if _holds(name, options)] for kind, text in NAMES.items()}
    names[Kind.REFUSED] = [name for name in REASONS if _holds(name, options)]
    kinds = [kind for kind in Kind if names.get(kind) and options.kind in (None, kind.value)]
    return '\n'.join(_paragraph(kind, sorted(names[kind])) for kind in kinds)


def _entry(name, text):
    return textwrap.fill(f'{name:32}{text}', 118, initial_indent='  ', subsequent_indent=' ' * 34)


def _paragraph(kind, names):
    if kind is Kind.REFUSED:
        return '\n'.join([f'  {kind.value}: {kind.sentence}', *(f'      {name}: {REASONS[name]}' for name in names)])
    listed = textwrap.fill(' '.join(names), 118, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
    return f'  {kind.value}: {kind.sentence}\n{listed}'
