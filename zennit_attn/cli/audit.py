'''The command ``audit``: which operators and rules ran, where the relevance went, and what is not supported.'''
from collections import Counter

from ..errors import AttributionError
from ..heatmap import ledger_figure, title
from ..heatmap.titles import worst
from . import inputs
from .cases import Case, heading, model_of
from .options import MODELS, add_explanation, add_input, add_model, formatter
from .progress import Progress
from .usage import first_line, writable

#: Sinks that are printed without --all.
MOST = 15

_EXAMPLES = f'''\
{MODELS}

examples:
  zennit-attn audit torchvision:swin_t --input 1x3x224x224
  zennit-attn audit timm:deit_tiny_patch16_224 --input cat.jpg --checkpoint deit.pt --composite attn_lrp
  zennit-attn audit transformers:distilgpt2-folder --tokens 1x12 --target last
  zennit-attn audit mymodels.py:build --set depth=2 --input sample.pt --target 3 --composite epsilon_plus_flat
  zennit-attn audit mymodels.py:build --input 2x16x32 --all

reading it: a ledger is closed if what is unaccounted is rounding. An operator without a rule is listed with the module
and the line that call it; give it a kind (zennit_attn.operators.register_operator), or accept its plain gradient with
--unknown gradient.

exit codes: 0 closed, 1 open or not supported, 2 wrong usage.
'''


def add_parser(commands):
    '''Add the command.'''
    parser = commands.add_parser(
        'audit', help="check a model: its operators, rules and ledger, and what isn't supported",
        formatter_class=formatter,
        usage='%(prog)s MODEL (--input SHAPE|FILE | --tokens SHAPE | --text TEXT) [options]',
        description='Explain a model and print which operators ran by which rules, where all relevance went (the\n'
                    'ledger), and all that is not supported, with module and line.', epilog=_EXAMPLES)
    parser.add_argument('model', metavar='MODEL', help='see below')
    group = parser.add_argument_group('input')
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument('-i', '--input', action='append', dest='inputs', metavar='SHAPE|FILE',
                       help='shape of a random input (1x3x224x224), or a tensor (.pt, .npy), tuple or dict (.pt, .npz) '
                            'or image; several are several arguments')
    given.add_argument('--tokens', metavar='SHAPE', help='shape of random token ids, e.g. 1x16')
    given.add_argument('--text', help="a text for the model's tokenizer")
    group.add_argument('--tokenizer', metavar='FOLDER', help='tokenizer of transformers, or "bytes"')
    add_input(parser, group)
    add_model(parser)
    add_explanation(parser)
    parser.add_argument('--all', action='store_true', help='print every operator and sink')
    parser.add_argument('--ledger', metavar='FILE', help='write the ledger of the first sample as a figure too')
    parser.set_defaults(run=run)


def run(options):
    '''Run the command and return its exit code.'''
    path = writable(options.ledger, ('.png', '.pdf', '.svg')) if options.ledger else None
    with Progress(3) as progress:
        progress.step(f'loading {options.model}')
        case = _case(options)
        options.composite = case.named(options.composite)
        progress.step('explaining')
        ledger, refusal = _audit(case, options)
        progress.step('explaining, what has no rule by its gradient')
        ledger, why = _accepting(case, options) if refusal is not None else (ledger, None)
    print(heading(case, options))
    if ledger is None:
        print(f'\nNOT SUPPORTED: {why}')
        return 1
    print(f'rules    {options.composite}\n\n{_operators(ledger, options.all)}\n\n{_ledger(ledger, options.all)}\n')
    if path is not None:
        figure_title = title(case.loaded.model, case.target, options.composite, ledger)
        ledger_figure(ledger, title=figure_title).savefig(path, dpi=150)
        print(f'written to {path}')
    return _verdict(case, ledger, refusal)


def _case(options):
    loaded = model_of(options)
    if options.inputs is None or not inputs.carries(given := _inputs(options.inputs, loaded, options)):
        embedding = inputs.embedding_of(loaded.model, options.embedding)
        if options.text is not None:
            given = inputs.with_decoder(inputs.tokens(options.text, loaded, options, embedding[1])[0], loaded.model)
        elif options.tokens is not None:
            given = inputs.with_decoder(inputs.random_tokens(options.tokens, embedding[1], options), loaded.model)
        return Case(loaded, given, embedding, options)
    embedding = inputs.embedding_of(loaded.model, options.embedding) if options.embedding else None
    return Case(loaded, given, embedding, options)


def _inputs(texts, loaded, options):
    given = [inputs.read(text, loaded, options) for text in texts]
    return given[0] if len(given) == 1 else tuple(given)


def _audit(case, options):
    '''Return the ledger, or what refused it.'''
    try:
        return case.audit(options.composite), None
    except AttributionError as error:
        return None, error


def _accepting(case, options):
    '''Accept all that has no rule, so that all of it is found and not only the first.'''
    try:
        return case.audit(options.composite, unknown='gradient'), None
    except AttributionError as error:
        return None, error


def _operators(ledger, everything):
    if everything:
        return ledger.operator_table()
    calls, modules = Counter(), {}
    for row in ledger.operators:
        key = row.type, row.function, row.rule
        calls[key] += row.calls
        modules.setdefault(key, set()).add(row.module)
    rows = [('kind', 'function', 'rule', 'calls', 'modules')]
    rows += [(*key, str(count), str(len(modules[key]))) for key, count in sorted(calls.items())]
    return _aligned(rows)


def _aligned(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return '\n'.join(map(str.rstrip, lines))


def _ledger(ledger, everything):
    lines = ledger.table().splitlines()
    if not everything and len(ledger.sinks) > MOST:
        hidden = len(ledger.sinks) - MOST
        lines = [*lines[:3 + MOST], f'... and {hidden} smaller sinks (--all)', lines[-1]]
    return '\n\n'.join([*ledger.notes(), '\n'.join(lines)])


def _verdict(case, ledger, refusal):
    if ledger.accepted:
        print('no rule is known for' + (', and the figures above take their plain gradient:' if refusal else ':'))
        for entry in ledger.accepted:
            print(f'  {entry.function} in module {entry.module!r}: {entry.reason}\n    {entry.line}')
    if refusal is not None:
        found = f'{len(ledger.accepted)} without a rule' if ledger.accepted else first_line(refusal)
        print(f'NOT SUPPORTED: {found}')
        return 1
    if not ledger.output.any():
        print('nothing to check: the relevance of the output is 0; choose another --target, or trained weights')
        return 1
    state = 'OPEN' if case.is_open(ledger) else 'closed'
    print(f'the ledger is {state}: unaccounted {worst(ledger)} of the output, tolerance {case.tolerance:g}')
    return int(state == 'OPEN')
