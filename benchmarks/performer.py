'''The causal Performer (FAVOR+) against the number of tokens: our whole explanation, and its own forward and backward.

The package computes the causal product without its CUDA extension by running sums of outer products, whose memory grows
fast: it is left out from the number of tokens on at which it would need more than ``--limit``.
'''
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from statistics import median

import measure
import torch
from explaining import explain, frozen, gradient_times_input
from measure import Row, always, growth_row, memory_row, peak, rounds, seconds, size, time_row

from zennit_attn.composites import CPLRP

THEIRS = 'its own forward and backward'
#: Features of a token, and of a head; two heads, one layer.
WIDTHS = {'narrow': (32, 16), 'usual': (128, 64)}


def build(width, length, device):
    '''A causal Performer of one layer, and a sequence.'''
    from performer_pytorch import Performer
    dim, head = WIDTHS[width]
    torch.manual_seed(0)
    with redirect_stdout(StringIO()):  # it says that its extension is missing
        model = Performer(dim=dim, depth=1, heads=2, dim_head=head, causal=True)
    return frozen(model).to(device), torch.randn(1, length, dim, device=device)


def works(width, length, options):
    '''Both works.'''
    model, input = build(width, length, options.device)
    return {'ours': partial(explain, CPLRP, model, input), THEIRS: partial(gradient_times_input, model, input)}


def rows_of(options, width):
    '''The lines of one width.'''
    lengths = [64, 128] if options.quick else [2 ** power for power in range(10, 17) if 2 ** power <= options.max_n]
    sizes, times = {'ours': {}, THEIRS: {}}, {}
    for length in lengths:
        work = f'causal Performer, heads of {WIDTHS[width][1]}, {length} tokens'
        both = works(width, length, options)
        expected = 2 * sizes[THEIRS].get(length // 2, 0 if length == lengths[0] else 1e30)
        if expected > options.limit * 1e9:
            del both[THEIRS]
        for name, function in both.items():
            sizes[name][length] = peak(function, options.device)
        taken = rounds({name: always(function) for name, function in both.items()}, options, min(
            options.repeats, max(3, 2 ** 15 // length)))
        times[length] = median(taken['ours'])
        if THEIRS not in both:
            reason = f'left out: more than {options.limit:g} GB'
            yield Row(work, 'time', seconds(times[length]), THEIRS, reason)
            yield Row(work, 'peak memory', size(sizes['ours'][length]), THEIRS, reason)
            continue
        yield time_row(work, THEIRS, taken['ours'], taken[THEIRS], 1.)
        yield memory_row(work, THEIRS, sizes['ours'][length], sizes[THEIRS][length])
    work = f'causal Performer, heads of {WIDTHS[width][1]}'
    yield growth_row(work, 'time', times, seconds, 1.25)
    yield growth_row(work, 'peak memory', sizes['ours'], size, 1.1)


def rows(options):
    '''All widths.'''
    try:
        import performer_pytorch  # noqa: F401 - only whether it is there
    except ImportError as error:
        return [Row('causal Performer', 'time', '', THEIRS, f'not importable: {error}')]
    return [row for width in WIDTHS for row in rows_of(options, width)]


if __name__ == '__main__':
    parser = measure.parser(__doc__, repeats=7)
    parser.add_argument('--max-n', type=int, default=65536, help='largest number of tokens (65536)')
    parser.add_argument('--limit', type=float, default=3., help='gigabytes that their side may need (3)')
    measure.main(parser, rows)
