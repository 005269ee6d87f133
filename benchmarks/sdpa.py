'''Fused softmax attention against the number of tokens: time and memory of an explanation, and what is kept of the map.

Where values have the width of queries and keys, torch's kernel never has the whole map in memory. Where they are wider,
it has for a moment, and its own backward pass keeps it.
'''
import measure
import torch
from explaining import attributed, frozen, plain
from measure import growth_row, kept, memory_row, peaks, rounds, time_row
from torch import nn
from torch.nn import functional

from zennit_attn.composites import CPLRP

PLAIN, HEADS, WIDTH = 'gradient x input', 4, 64
KERNELS = {'fused kernel': WIDTH, 'explicit kernel': WIDTH + 16}


class Attention(nn.Module):
    '''Self-attention through the fused function, with a residual.'''
    def __init__(self, values):
        super().__init__()
        dim = HEADS * WIDTH
        self.query, self.key, self.value = (nn.Linear(dim, HEADS * width) for width in (WIDTH, WIDTH, values))
        self.out = nn.Linear(HEADS * values, dim)

    def forward(self, x):
        '''Attend among the tokens of ``x (b, n, d)``.'''
        heads = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return x + self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


def kept_after_forward(composite, model, input, options):
    '''Bytes that an explanation holds between its forward and its backward pass.'''
    composite.register(model)
    try:
        return kept(lambda: model(input.detach().requires_grad_()), options.device)
    finally:
        composite.remove()


def rows_of(options, kernel):
    '''The lines of one kernel.'''
    lengths = [32, 64] if options.quick else [1024, 2048, 4096] + [8192] * (kernel == 'fused kernel')
    main = lengths[-1] if options.quick else 4096
    model = frozen(Attention(KERNELS[kernel])).to(options.device)
    at_most, held = {}, {}
    for length in lengths:
        input = torch.randn(1, length, HEADS * WIDTH, device=options.device)
        opened = {'ours': attributed(CPLRP, model, input), PLAIN: plain(model, input)}
        sizes = peaks(opened, options)
        at_most[length] = sizes['ours']
        held[length] = kept_after_forward(CPLRP(), model, input, options)
        if length != main:
            continue
        work, map_size = f'softmax attention, {kernel}, {length} tokens', 4 * HEADS * length ** 2
        times = rounds(opened, options)
        yield time_row(work, PLAIN, times['ours'], times[PLAIN], 1.)
        yield memory_row(work, PLAIN, sizes['ours'], sizes[PLAIN], 1.)
        yield memory_row(work, 'the attention map', held[length], map_size, 1., quantity='kept after the forward pass')
    yield growth_row(f'softmax attention, {kernel}', 'kept', held, measure.size, 1.1)
    yield growth_row(f'softmax attention, {kernel}', 'peak memory', at_most, measure.size,
                     1.1 if kernel == 'fused kernel' else None)


def rows(options):
    '''Both kernels.'''
    return [row for kernel in KERNELS for row in rows_of(options, kernel)]


if __name__ == '__main__':
    measure.main(measure.parser(__doc__, repeats=9), rows)
