'''Layers of today's linear attention: an explanation against the layer's own forward and backward pass.

The layers run their recurrences in chunks, or token by token, in torch. They are those of the demo, and those of
transformers where it is installed.
'''
from functools import partial
from importlib import import_module
from statistics import median

import measure
import torch
from explaining import explain, frozen, gradient_times_input
from measure import Row, always, growth_row, memory_row, peak, rounds, seconds, size, time_row
from torch import nn

from zennit_attn.composites import CPLRP
from zennit_attn.demo.recall import GatedDeltaNet, Mamba2

THEIRS = 'own forward and backward'
DIM = 128
#: What a layer of the length is explained in at most, of its own passes.
GOAL = .6


class Alone(nn.Module):
    '''A layer that returns a tensor.'''
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        output = self.layer(x)
        return output[0] if isinstance(output, tuple) else output


def published(package, layer, config, **options):
    '''A layer of transformers.'''
    def make():
        path = f'transformers.models.{package}'
        settings = getattr(import_module(f'{path}.configuration_{package}'), config)(hidden_size=DIM, **options)
        return Alone(getattr(import_module(f'{path}.modeling_{package}'), layer)(settings, layer_idx=0))
    return make


TYPES = {'num_hidden_layers': 2, 'layer_types': ['linear_attention', 'full_attention']}
LAYERS = {
    'gated delta net of the demo': lambda: GatedDeltaNet(DIM, 4, chunk_size=64),
    'Mamba-2 of the demo': lambda: Mamba2(DIM, 4, 32, chunk_size=64),
    'gated delta net of Qwen3-Next': published(
        'qwen3_next', 'Qwen3NextGatedDeltaNet', 'Qwen3NextConfig', **TYPES, linear_num_value_heads=4,
        linear_num_key_heads=4, linear_key_head_dim=32, linear_value_head_dim=32),
    'Kimi delta attention': published(
        'kimi_linear', 'KimiLinearDeltaAttention', 'KimiLinearConfig', **TYPES, linear_num_heads=4, linear_head_dim=32),
    'Mamba-2 of transformers': published(
        'mamba2', 'Mamba2Mixer', 'Mamba2Config', state_size=32, num_heads=8, head_dim=32, n_groups=1, expand=2),
    'Mamba of transformers': published('mamba', 'MambaMixer', 'MambaConfig', state_size=16, expand=2),
}


def lengths(name, options):
    '''How many tokens a layer is given. The own passes of some take a time that grows with their square.'''
    if options.quick:
        return [64, 128]
    slow = {'Mamba of transformers': 1024, 'Kimi delta attention': 4096}
    most = slow.get(name, 65536 if 'demo' in name else 16384)
    return [length for length in (1024, 2048, 4096, 16384, 65536) if length <= min(most, options.max_n)]


def rows_of(options, name):
    '''The lines of one layer.'''
    times, sizes = {}, {}
    for length in lengths(name, options):
        work = f'{name}, {length} tokens'
        try:
            layer = frozen(LAYERS[name]()).to(options.device)
        except ImportError as error:
            yield Row(work, 'time', '', THEIRS, f'not importable: {error}')
            return
        input = torch.randn(1, length, DIM, device=options.device)
        works = {'ours': partial(explain, CPLRP, layer, input), THEIRS: partial(gradient_times_input, layer, input)}
        taken = rounds({key: always(value) for key, value in works.items()}, options)
        times[length] = median(taken['ours'])
        yield time_row(work, THEIRS, taken['ours'], taken[THEIRS], GOAL)
        sizes[length], theirs = (peak(value, options.device) for value in works.values())
        yield memory_row(work, THEIRS, sizes[length], theirs)
    yield growth_row(name, 'time', times, seconds)
    yield growth_row(name, 'peak memory', sizes, size, 1.1)


def rows(options):
    '''All layers.'''
    return [row for name in LAYERS for row in rows_of(options, name)]


if __name__ == '__main__':
    parser = measure.parser(__doc__, repeats=3)
    parser.add_argument('--max-n', type=int, default=65536, help='largest number of tokens (65536)')
    measure.main(parser, rows)
