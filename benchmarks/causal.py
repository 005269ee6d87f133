'''Time and memory of the causal product and of the delta rule against the number of tokens, as a Markdown table.

Each row compares two implementations of the same work: forward, and gradients either of the values alone, as relevance
needs them (queries and keys are constants then), or of all operands, as training does. The reference of the causal
product is the article's (a running sum of outer products) with the gradients that autograd makes of it; that of the
delta rule is its loop. Runs alternate, ratios are medians over pairs of runs, with quartiles in brackets. Memory is the
peak of what is allocated beyond the inputs.
'''
import os
from argparse import ArgumentParser
from functools import partial
from itertools import accumulate
from pathlib import Path
from platform import machine
from statistics import median, quantiles
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from zennit_attn.attention import backends, causal_dot_product, delta_rule
from zennit_attn.attention.causal import BACKENDS

HEADER = ('tokens', 'ours ms', 'ours MB', 'ours KB/token', 'reference ms', 'reference MB', 'time ratio', 'memory ratio')


def arguments():
    '''Command line.'''
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--min-n', type=int, default=1024, help='least number of tokens (1024)')
    parser.add_argument('--max-n', type=int, default=65536, help='largest number of tokens (65536)')
    parser.add_argument('--heads', type=int, default=2, help='number of heads (2)')
    parser.add_argument('--dim', type=int, default=64, help='features of keys and of values in a head (64)')
    parser.add_argument('--repeats', type=int, default=7, help='pairs of runs (7)')
    parser.add_argument('--threads', type=int, default=1, help='threads on a CPU (1)')
    parser.add_argument('--limit', type=float, default=2.,
                        help='gigabytes of outer products above which training with the reference is left out (2)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (cpu)')
    parser.add_argument('--output', type=Path, help='file to write the tables to, besides printing them')
    return parser.parse_args()


def wait(device):
    '''Let the device finish.'''
    if device == 'cuda':
        torch.cuda.synchronize()


def timed(work, device):
    '''Seconds that a piece of work takes.'''
    wait(device)
    start = perf_counter()
    work()
    wait(device)
    return perf_counter() - start


def peak(work, device):
    '''Largest number of bytes allocated at once during a piece of work, beyond those before it.'''
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    # The public events attribute memory to functions; a peak needs allocations and frees in their order.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def differentiate(function, operands):
    '''A forward pass, and the gradients of those operands that require them.'''
    out = function(*operands)
    torch.autograd.grad(out, [operand for operand in operands if operand.requires_grad], torch.ones_like(out))


def compare(ours, reference, options):
    '''Seconds of both, and their ratios, over pairs of runs in alternating order.'''
    pairs = []
    ours(), reference()
    for repeat in range(options.repeats):
        order = (ours, reference) if repeat % 2 else (reference, ours)
        taken = {work: timed(work, options.device) for work in order}
        pairs.append((taken[ours], taken[reference]))
    return [median(column) for column in zip(*pairs, strict=True)], [second / first for first, second in pairs]


def row(length, ours, reference, options):
    '''A row of the table; a reference of ``None`` does not fit into memory.'''
    own_peak = peak(ours, options.device)
    cells = [length, None, own_peak / 1e6, own_peak / 1e3 / length]
    if reference is None:
        ours()
        cells[1] = 1e3 * median(timed(ours, options.device) for _ in range(options.repeats))
        return [*cells, *['-'] * 4]
    other_peak = peak(reference, options.device)
    (own, other), ratios = compare(ours, reference, options)
    low, middle, high = quantiles(ratios, n=4, method='inclusive')
    cells[1] = 1e3 * own
    return [*cells, 1e3 * other, other_peak / 1e6, f'{middle:.1f} [{low:.1f}, {high:.1f}]', other_peak / own_peak]


def sequences(length, options, widths, trained):
    '''Positive features that sum up to one, as after a feature map, and values.'''
    torch.manual_seed(length)
    q, k, v = (torch.rand(options.heads, length, width, device=options.device) for width in widths)
    features = [(each / each.sum(dim=-1, keepdim=True)).requires_grad_(trained) for each in (q, k)]
    return [*features, v.requires_grad_()]


def causal_row(length, options, reference, trained=False):
    '''The chunked causal product against the article's as it stands, or against EPFL's extension.'''
    operands = sequences(length, options, (options.dim,) * 3, trained)
    outer_products = 4 * operands[2].numel() * options.dim
    function = BACKENDS['cumsum'] if reference == 'cumsum' else partial(causal_dot_product, backend=reference)
    fits = not trained or outer_products < 1e9 * options.limit
    ours, other = (partial(differentiate, each, operands) for each in (causal_dot_product, function))
    return row(length, ours, other if fits else None, options)


def delta_row(length, options):
    '''The chunked delta rule against its loop, with the features that DPFP makes.'''
    operands = sequences(length, options, (2 * options.dim, 2 * options.dim, options.dim), False)
    rule = partial(delta_rule, beta=torch.rand(options.heads, length, device=options.device))
    ours, loop = (partial(differentiate, each, operands) for each in (rule, partial(rule, backend='loop')))
    return row(length, ours, loop, options)


def cell(value):
    '''Text of a value: whole tokens, three digits of a number.'''
    return str(value) if isinstance(value, (int, str)) else f'{value:.0f}' if value >= 1000 else f'{value:.3g}'


def table(title, rows):
    '''A Markdown table, and how much the memory per token of ours varies over the rows.'''
    lines = [f'### {title}', '', '| ' + ' | '.join(HEADER) + ' |', '|' + ' ---: |' * len(HEADER)]
    lines += ['| ' + ' | '.join(map(cell, cells)) + ' |' for cells in rows]
    spread = max(cells[3] for cells in rows) / min(cells[3] for cells in rows) - 1
    return '\n'.join([*lines, '', f'Memory per token of ours varies by {spread:.1%} over these lengths.', ''])


def main():
    '''Measure, print, and write where asked.'''
    options = arguments()
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.device == 'cuda' else f'{machine()} CPU, {options.threads} thread(s)'
    lengths = [2 ** power for power in range(4, 30) if options.min_n <= 2 ** power <= options.max_n]
    tables = [f'torch {torch.__version__}, {name}, float32, {options.heads} heads of {options.dim} features, '
              f'medians of {options.repeats} pairs\n']
    for reference in backends(options.device)[1:]:
        rows = [causal_row(length, options, reference) for length in lengths]
        tables.append(table(f'Causal product, forward and value gradient: chunked against {reference}', rows))
    rows = [causal_row(length, options, 'cumsum', trained=True) for length in lengths]
    tables.append(table('Causal product, forward and all gradients: chunked against cumsum', rows))
    rows = [delta_row(length // 4, options) for length in lengths]
    tables.append(table('Delta rule of fast weights, forward and value gradient: chunked against loop', rows))
    print('\n'.join(['', *tables]))
    if options.output:
        options.output.write_text('\n'.join(tables))


if __name__ == '__main__':
    main()
