'''CP-LRP and AttnLRP of vision transformers against plain gradient x input, LXT's CP-LRP and Zennit's own hooks.

Every round explains the same images once by each method, in an open context. LXT changes classes of torch; here it does
so around each of its own runs only. Its newest release does not import beside a transformers of today, so it is taken
from a directory of its own:

    pip install --target lxt --no-deps lxt==2.1 transformers==4.52.4 huggingface-hub==0.34.4 tokenizers==0.21.4
    PYTHONPATH=lxt python benchmarks/attribution.py
'''
from contextlib import contextmanager
from functools import partial

import measure
import vit
from explaining import attributed, gradient_times_input, plain
from measure import Row, memory_row, peaks, rounds, time_row
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Linear

from zennit_attn.composites import CPLRP, AttnLRP

try:
    from lxt.efficient import monkey_patch
    MISSING = None
except ImportError as error:
    MISSING = f'not importable: {error}'
PLAIN, HOOKS, LXT = 'gradient x input', 'Zennit hooks', 'LXT'
#: What is compared: ours, theirs, and the goals for time and memory.
COMPARED = [
    ('CPLRP', PLAIN, 1., 1.),
    ('CPLRP', LXT, 1., None),
    ('CPLRP', HOOKS, .6, None),
    ('AttnLRP', PLAIN, 1.1, None),
]


def hooks():
    '''What Zennit alone offers for a vision transformer.'''
    return LayerMapComposite([(Linear, Epsilon()), (nn.GELU, Pass())])


def patched(model, images):
    '''A work: LXT's efficient CP-LRP, whose changes of torch's classes are taken back after it.'''
    @contextmanager
    def opened():
        from torchvision.models import vision_transformer
        classes = (nn.GELU, nn.LayerNorm, nn.MultiheadAttention)
        before = {cls: cls.forward for cls in classes}
        monkey_patch(vision_transformer)
        try:
            yield lambda: gradient_times_input(model, images)
        finally:
            for cls, forward in before.items():
                cls.forward = forward
                if 'original_forward' in vars(cls):
                    del cls.original_forward
    return opened


METHODS = {
    PLAIN: plain,
    'CPLRP': partial(attributed, CPLRP),
    'AttnLRP': partial(attributed, AttnLRP),
    HOOKS: partial(attributed, hooks),
    LXT: patched,
}


def chosen(options, name):
    '''The comparisons that were asked for and concern a model.'''
    return [compared for compared in COMPARED
            if {*compared[:2]} - {PLAIN} <= {*options.methods} and (compared[1] != LXT or name == 'torchvision')]


def rows_of(options, name, batch):
    '''Time and memory of the methods that explain a batch by one model.'''
    model, images = vit.build(name, vit.shape(options), batch, options.device)
    compared = chosen(options, name)
    needed = {method for pair in compared for method in pair[:2]} - ({LXT} if MISSING else set())
    opened = {method: METHODS[method](model, images) for method in METHODS if method in needed}
    times, sizes = rounds(opened, options), peaks(opened, options)
    for ours, theirs, time_goal, memory_goal in compared:
        work = f'{ours}, {vit.TITLES[vit.shape(options)]} of {name}, batch {batch}'
        if theirs not in times:
            yield Row(work, 'time', '', theirs, MISSING, goal=time_goal)
            continue
        yield time_row(work, theirs, times[ours], times[theirs], time_goal)
        yield memory_row(work, theirs, sizes[ours], sizes[theirs], memory_goal)


def rows(options):
    '''All models and batches.'''
    batches = [1] if options.quick else options.batch
    return [row for name in options.models for batch in batches for row in rows_of(options, name, batch)]


if __name__ == '__main__':
    parser = vit.add_arguments(measure.parser(__doc__, repeats=7))
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS), help='what to compare')
    measure.main(parser, rows)
