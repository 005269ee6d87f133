'''What relevance costs, in time and in memory, against plain gradient x input and against Zennit's own hooks.

Times are taken in interleaved rounds, in which every method explains the same input once in a context of its own, and
are compared within a round. Memory is taken in a fresh process for each method. Prints Markdown.
'''
import argparse
import gc
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import version
from math import comb
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torchvision.models import VisionTransformer
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Linear

from zennit_attn.composites import CPLRP, AttnLRP

try:
    from vit_pytorch import ViT
except ModuleNotFoundError:  # our twin of it, which computes the same
    from zennit_attn.attention.vit import NormViT as ViT


class Shape(NamedTuple):
    '''The size of a vision transformer.'''
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    mlp: int
    classes: int


class Times(NamedTuple):
    '''Seconds for one explanation, and for opening and closing its context.'''
    explain: float
    context: float


SHAPES = {'base': Shape(224, 16, 768, 12, 12, 3072, 1000), 'tiny': Shape(32, 8, 32, 2, 2, 64, 10)}
BASELINE = 'gradient x input'


# ---- what is compared ------------------------------------------------------------------------------------------------

def vit_pytorch(shape):
    '''The vision transformer of vit-pytorch.'''
    return ViT(image_size=shape.image, patch_size=shape.patch, num_classes=shape.classes, dim=shape.dim,
               depth=shape.depth, heads=shape.heads, mlp_dim=shape.mlp, dim_head=shape.dim // shape.heads)


def torchvision(shape):
    '''The vision transformer of torchvision, whose attention is ``nn.MultiheadAttention``.'''
    return VisionTransformer(image_size=shape.image, patch_size=shape.patch, num_layers=shape.depth,
                             num_heads=shape.heads, hidden_dim=shape.dim, mlp_dim=shape.mlp, num_classes=shape.classes)


@contextmanager
def plain(model):
    '''Gradient x input, as one writes it without any library.'''
    def explain(image, select):
        image = image.detach().requires_grad_()
        output = model(image)
        gradient, = torch.autograd.grad(output, image, select(torch.ones_like(output)))
        return image * gradient
    yield explain


def attributed(make_composite):
    '''A Zennit attributor with a composite.'''
    @contextmanager
    def opened(model):
        with Gradient(model, make_composite()) as attributor:
            yield lambda image, select: attributor(image, select)[1]
    return opened


def hooks():
    '''What Zennit alone offers for a vision transformer.'''
    return LayerMapComposite([(Linear, Epsilon()), (torch.nn.GELU, Pass())])


MODELS = {'vit-pytorch': vit_pytorch, 'torchvision': torchvision}
METHODS = {
    BASELINE: plain,
    'CPLRP': attributed(CPLRP),
    'AttnLRP': attributed(AttnLRP),
    'Zennit hooks': attributed(hooks),
}


def build(args, model_name):
    '''Return a frozen model with weights off their initialisation (torchvision's head starts at zero), and images.'''
    torch.manual_seed(0)
    shape = SHAPES[args.shape]
    model = MODELS[model_name](shape).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=.01)
    image = torch.randn(args.batch, 3, shape.image, shape.image)
    return model.to(args.device), image.to(args.device)


def first_class(output):
    '''Select what is explained: the first class.'''
    return torch.nn.functional.pad(output[:, :1], (0, output.shape[1] - 1))


# ---- time ------------------------------------------------------------------------------------------------------------

def now(device):
    '''Seconds, when the device has done all it was asked for.'''
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def time_once(method, model, image, device):
    '''Explain once in a context of its own.'''
    gc.collect()
    start = now(device)
    with METHODS[method](model) as explain:
        opened = now(device)
        explain(image, first_class)
        explained = now(device)
    return Times(explained - opened, opened - start + now(device) - explained)


def time_methods(args, model_name):
    '''Return the times of each method, round by round; each round begins with another method.'''
    model, image = build(args, model_name)
    names = list(METHODS)
    times = {name: [] for name in names}
    for index in range(-1, args.repeats):
        for name in names[index % len(names):] + names[:index % len(names)]:
            once = time_once(name, model, image, args.device)
            if index >= 0:  # the first round only warms up
                times[name].append(once)
    return times


def median_interval(values, coverage=.95):
    '''Return a distribution-free interval of the median by order statistics, and the coverage it has.'''
    values = sorted(values)
    tails = [2 * sum(comb(len(values), i) for i in range(cut + 1)) / 2 ** len(values)
             for cut in range((len(values) + 1) // 2)]
    cut = max((cut for cut, tail in enumerate(tails) if tail <= 1. - coverage), default=0)
    return values[cut], values[-1 - cut], max(0., 1. - tails[cut])


# ---- memory ----------------------------------------------------------------------------------------------------------

def status(field):
    '''Read a size of this process in bytes; unlike ``ru_maxrss`` it does not begin with that of the parent process.'''
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field + ':'))
    return 1024 * int(line.split()[1])


def measure_memory(args, model_name, method):
    '''Return by how many bytes memory grows while a method explains in this process.'''
    model, image = build(args, model_name)
    gc.collect()
    if args.device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        Path('/proc/self/clear_refs').write_text('5')  # forget the peak of building the model
        before, peak = status('VmRSS'), lambda: status('VmHWM')
    for _ in range(2):
        with METHODS[method](model) as explain:
            explain(image, first_class)
    return peak() - before


def probe_memory(args, model_name, method):
    '''Measure memory in a fresh process; None where the system does not tell.'''
    if args.device != 'cuda' and not Path('/proc/self/clear_refs').exists():
        return None
    command = [sys.executable, __file__, *args.passed, '--probe', model_name, method]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


# ---- the table -------------------------------------------------------------------------------------------------------

def rows(args, model_name):
    '''Return the table's rows of one model.'''
    memory = {name: probe_memory(args, model_name, name) for name in METHODS}
    times = time_methods(args, model_name)
    baseline = [once.explain for once in times[BASELINE]]
    for name in METHODS:
        ratios = [once.explain / plain for once, plain in zip(times[name], baseline, strict=True)]
        low, high, _ = median_interval(ratios)
        milliseconds = [f'{1000 * median(getattr(once, field) for once in times[name]):.0f}' for field in Times._fields]
        spread = '' if name == BASELINE else f' ({low:.2f} to {high:.2f})'
        size, share = ('?', '?') if memory[name] is None else (
            f'{memory[name] / 2 ** 20:.0f}', f'{memory[name] / memory[BASELINE]:.2f}')
        yield [model_name, name, milliseconds[0], f'{median(ratios):.2f}{spread}', milliseconds[1], size, share]


def processor(device):
    '''Name what computes.'''
    if device == 'cuda':
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in info.read_text().splitlines()
             if line.startswith('model name')] if info.exists() else []
    return f'{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def preamble(args):
    '''Say what was run, on what, and what the columns mean.'''
    packages = ['torch', 'torchvision', 'zennit', 'einops']
    packages += ['vit-pytorch'] if ViT.__module__.startswith('vit_pytorch') else []
    versions = ', '.join(f'{name} {version(name)}' for name in packages)
    coverage = median_interval(range(args.repeats))[2]
    return (
        f'`python benchmarks/attribution.py {shlex.join(args.passed)}`\n\n'
        f'{platform.system()}, {processor(args.device)}; Python {platform.python_version()}, {versions}.\n\n'
        f'Shape {args.shape!r}, batch {args.batch}, float32, {args.repeats} rounds. Times are medians. Shares of time '
        f'are medians of the ratios to {BASELINE} in the same round, with an interval of {100 * coverage:.0f} %. '
        'Memory is the peak while explaining, above the loaded model.\n'
    )


def table(lines):
    '''Lay rows out as a Markdown table.'''
    head = ['model', 'method', 'time, ms', 'share of time', 'context, ms', 'memory, MiB', 'share of memory']
    lines = [head, ['---'] * 2 + ['---:'] * 5, *lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def parse(passed):
    '''Read the command line.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS), help='which models to explain')
    parser.add_argument('--shape', choices=SHAPES, default='base', help="'base' is ViT-B/16, 'tiny' only tries it out")
    parser.add_argument('--batch', type=int, default=2, help='images explained at once')
    parser.add_argument('--repeats', type=int, default=12, help='rounds; at least 6 for an interval of 95 %%')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help='threads of torch; default: its own')
    parser.add_argument('--output', type=Path, help='also write the table here, e.g. benchmarks/results/attribution.md')
    parser.add_argument('--probe', nargs=2, metavar=('MODEL', 'METHOD'), help=argparse.SUPPRESS)
    args = parser.parse_args(passed)
    if min(args.batch, args.repeats, args.threads or 1) < 1:
        parser.error('--batch, --repeats and --threads have to be at least 1')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error('there is no GPU here')
    args.passed = passed
    return args


def main(passed):
    '''Run the benchmark.'''
    args = parse(passed)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.probe:
        print(json.dumps(measure_memory(args, *args.probe)))
        return
    text = preamble(args) + '\n' + table([row for name in args.models for row in rows(args, name)])
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)


if __name__ == '__main__':
    main(sys.argv[1:])
