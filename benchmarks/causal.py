'''Time and memory of the causal product and of the delta rule against the number of tokens.

Each row compares two implementations of the same work: forward, and gradients either of the values alone, as relevance
needs them (queries and keys are constants then), or of all operands, as training does. The reference of the causal
product is the article's (a running sum of outer products) with the gradients that autograd makes of it; that of the
delta rule is its loop. EPFL's extension takes part where it is installed.
'''
from functools import partial
from statistics import median

import measure
import torch
from measure import Row, always, growth_row, memory_row, peak, rounds, seconds, size, time_row

from zennit_attn.attention import backends, causal_dot_product, delta_rule
from zennit_attn.kernels.causal import BACKENDS


def differentiate(function, operands):
    '''A forward pass, and the gradients of those operands that require them.'''
    out = function(*operands)
    torch.autograd.grad(out, [operand for operand in operands if operand.requires_grad], torch.ones_like(out))


def sequences(length, options, widths, trained):
    '''Positive features that sum up to one, as after a feature map, and values.'''
    torch.manual_seed(length)
    q, k, v = (torch.rand(options.heads, length, width, device=options.device) for width in widths)
    features = [(each / each.sum(dim=-1, keepdim=True)).requires_grad_(trained) for each in (q, k)]
    return [*features, v.requires_grad_()]


def causal(reference, trained, length, options):
    '''The chunked causal product, and the article's as it stands or EPFL's extension.'''
    operands = sequences(length, options, (options.dim,) * 3, trained)
    function = BACKENDS['cumsum'] if reference == 'cumsum' else partial(causal_dot_product, backend=reference)
    fits = not trained or 4 * operands[2].numel() * options.dim < 1e9 * options.limit
    ours, theirs = (partial(differentiate, each, operands) for each in (causal_dot_product, function))
    return ours, theirs if fits else None


def delta(reference, trained, length, options):
    '''The chunked delta rule, and its loop, with the features that DPFP makes.'''
    operands = sequences(length, options, (2 * options.dim, 2 * options.dim, options.dim), trained)
    beta = torch.rand(options.heads, length, device=options.device)
    return [partial(differentiate, partial(delta_rule, beta=beta, backend=backend), operands)
            for backend in ('chunked', reference)]


def rows_of(options, title, lengths, make, reference, trained=False, goal=None):
    '''The lines of one work.'''
    times, sizes = {}, {}
    for length in lengths:
        work = f'{title}, {length} tokens'
        ours, theirs = make(reference, trained, length, options)
        both = {'ours': ours} | ({reference: theirs} if theirs else {})
        taken = rounds({name: always(function) for name, function in both.items()}, options)
        times[length], sizes[length] = median(taken['ours']), peak(ours, options.device)
        if theirs:
            yield time_row(work, reference, taken['ours'], taken[reference], goal if length == 4096 else None)
            yield memory_row(work, reference, sizes[length], peak(theirs, options.device))
        else:
            yield Row(work, 'time', seconds(times[length]), reference, f'left out: more than {options.limit:g} GB')
    yield growth_row(title, 'time', times, seconds)
    yield growth_row(title, 'peak memory', sizes, size, 1.1)


def rows(options):
    '''All works.'''
    lengths = [2 ** power for power in range(4, 30) if options.min_n <= 2 ** power <= options.max_n]
    lengths = [128, 256] if options.quick else lengths
    values, everything = 'causal product and value gradient', 'causal product and all gradients'
    for reference in backends(options.device)[1:]:
        yield from rows_of(options, values, lengths, causal, reference, goal=.2 if reference == 'cumsum' else None)
    yield from rows_of(options, everything, lengths, causal, 'cumsum', trained=True)
    shorter = [length // 4 for length in lengths]
    yield from rows_of(options, 'delta rule and value gradient', shorter, delta, 'loop')


if __name__ == '__main__':
    parser = measure.parser(__doc__, repeats=7)
    parser.add_argument('--min-n', type=int, default=1024, help='least number of tokens (1024)')
    parser.add_argument('--max-n', type=int, default=65536, help='largest number of tokens (65536)')
    parser.add_argument('--heads', type=int, default=2, help='number of heads (2)')
    parser.add_argument('--dim', type=int, default=64, help='features of keys and of values in a head (64)')
    parser.add_argument('--limit', type=float, default=2.,
                        help='gigabytes of outer products above which training with the reference is left out (2)')
    measure.main(parser, rows)
