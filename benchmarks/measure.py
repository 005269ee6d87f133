'''What all benchmarks share: paired runs, ratios of medians with their intervals, peak memory, and the table.'''
import gc
import json
import os
import platform
import shlex
import sys
from argparse import ArgumentParser
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

HEADER = ('work', 'quantity', 'ours', 'against', 'theirs', 'ratio', 'goal', 'met')
PACKAGES = ('torch', 'torchvision', 'zennit', 'einops', 'vit-pytorch', 'performer-pytorch', 'labml-nn',
            'denoising-diffusion-pytorch', 'lxt', 'transformers')


@dataclass
class Row:
    '''A line of the table. `ratio` is that of ours to theirs, or a number that stands for itself.'''
    work: str
    quantity: str
    ours: str
    against: str
    theirs: str
    ratio: float | None = None
    interval: tuple | None = None
    goal: float | None = None

    @property
    def met(self):
        '''Whether the goal is reached, where there is one.'''
        if self.goal is None:
            return ''
        return 'no' if self.ratio is None or self.ratio > self.goal else 'yes'

    def cells(self):
        '''The texts of the line.'''
        ratio = '' if self.ratio is None else f'{self.ratio:.2f}'
        ratio += ' ({:.2f} to {:.2f})'.format(*self.interval) if self.interval else ''
        goal = '' if self.goal is None else f'<= {self.goal:.2f}'
        return self.work, self.quantity, self.ours, self.against, self.theirs, ratio, goal, self.met


# ---- time ------------------------------------------------------------------------------------------------------------

def wait(device='cpu'):
    '''Let the device finish.'''
    if device == 'cuda':
        torch.cuda.synchronize()


def timed(work, device='cpu'):
    '''Seconds that a piece of work takes.'''
    wait(device)
    start = perf_counter()
    work()
    wait(device)
    return perf_counter() - start


def rounds(opened, options, repeats=None):
    '''Times of each of several works, round by round; each round begins with another one, and the first warms up.

    Works are given by name as functions that return a context manager of a function, whose time is taken.
    '''
    names, times = list(opened), {name: [] for name in opened}
    with small_heap():
        for index in range(-1, options.repeats if repeats is None else repeats):
            for name in names[index % len(names):] + names[:index % len(names)]:
                gc.collect()
                with opened[name]() as work:
                    seconds = timed(work, options.device)
                if index >= 0:
                    times[name].append(seconds)
    return times


@contextmanager
def small_heap():
    '''Let collections of garbage pass over what there is by now.'''
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def always(work):
    '''A work for :func:`rounds` that needs no context.'''
    return lambda: nullcontext(work)


def bootstrap(ours, theirs, draws=1000, coverage=.95):
    '''Interval of the ratio of medians by drawing rounds again, both times of a round together.'''
    random, count = Random(0), len(ours)
    ratios = []
    for _ in range(draws):
        drawn = random.choices(range(count), k=count)
        ratios.append(median(ours[i] for i in drawn) / median(theirs[i] for i in drawn))
    cut = round(draws * (1 - coverage) / 2)
    ratios.sort()
    return ratios[cut], ratios[-1 - cut]


def seconds(value):
    '''Text of a time.'''
    scale, unit = next((pair for pair in ((1, 's'), (1e3, 'ms')) if value * pair[0] >= 1), (1e6, 'µs'))
    return f'{value * scale:.3g} {unit}'


def time_row(work, against, ours, theirs, goal=None):
    '''Compare paired times.'''
    ratio = median(ours) / median(theirs)
    return Row(work, 'time', seconds(median(ours)), against, seconds(median(theirs)), ratio,
               bootstrap(ours, theirs), goal)


# ---- memory ----------------------------------------------------------------------------------------------------------

def _allocations(work):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    # The public events attribute memory to functions; a peak needs allocations and frees in their order.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    held = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    del result
    return held or [0]


def peak(work, device='cpu'):
    '''Largest number of bytes that torch has allocated at once during a piece of work, beyond those before it.'''
    gc.collect()
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    return max(_allocations(work))


def kept(work, device='cpu'):
    '''Number of bytes that are still allocated when a piece of work has returned its result.'''
    gc.collect()
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        result = work()
        return torch.cuda.memory_allocated() - before if result is not None else 0
    return _allocations(work)[-1]


def peaks(opened, options):
    '''Peak memory of several works by name, given as for :func:`rounds`.'''
    sizes = {}
    for name, open_work in opened.items():
        with open_work() as work:
            sizes[name] = peak(work, options.device)
    return sizes


def size(value):
    '''Text of a number of bytes.'''
    return f'{value / 2 ** 20:.3g} MiB'


def memory_row(work, against, ours, theirs, goal=None, quantity='peak memory'):
    '''Compare numbers of bytes.'''
    return Row(work, quantity, size(ours), against, size(theirs), ours / theirs, goal=goal)


def growth_row(work, quantity, figures, text, goal=None):
    '''How much a figure per token grows from the least to the largest number of tokens; one that is linear does not.'''
    (least, first), (most, last) = min(figures.items()), max(figures.items())
    return Row(work, f'{quantity} per token', f'{text(last / most)} at {most}', 'itself',
               f'{text(first / least)} at {least}', last / most / (first / least), goal=goal)


# ---- the command and its table ---------------------------------------------------------------------------------------

def processor(device):
    '''Name what computes.'''
    if device == 'cuda':
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    names = [line.partition(':')[2].strip() for line in info.read_text().splitlines()
             if line.startswith('model name')] if info.exists() else []
    return f'{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'


def versions():
    '''The packages that take part, with their versions.'''
    found = []
    for name in PACKAGES:
        try:
            found.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            continue
    return ', '.join(found)


def preamble(command, options):
    '''Say what was run and on what.'''
    return (f'`{command}`\n\n{platform.system()}, {processor(options.device)}; Python {platform.python_version()}, '
            f'{versions()}.\n')


def table(rows, header=HEADER):
    '''Lay rows of texts out as a Markdown table.'''
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def parser(doc, repeats=9):
    '''The options that all benchmarks have.'''
    result = ArgumentParser(description=doc.partition('\n')[0])
    result.add_argument('--quick', action='store_true', help='tiny shapes and one round, to see that it runs')
    result.add_argument('--repeats', type=int, default=repeats, help=f'rounds ({repeats})')
    result.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    result.add_argument('--threads', type=int, help='threads of torch; default: its own')
    result.add_argument('--output', type=Path, help='also write the table to this file')
    result.add_argument('--json', action='store_true', help='print the rows for another program')
    return result


def parse(arguments):
    '''Read the options, and follow those that concern torch.'''
    options = arguments.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    if min(options.repeats, options.threads or 1) < 1:
        arguments.error('--repeats and --threads have to be at least 1')
    if options.device == 'cuda' and not torch.cuda.is_available():
        arguments.error('there is no GPU here')
    if options.threads:
        torch.set_num_threads(options.threads)
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    return options


def write(text, path=None):
    '''Print a text, and put it into a file where asked.'''
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main(arguments, rows):
    '''Run a benchmark: a function that makes rows of options. Tiny shapes have no goals.'''
    options = parse(arguments)
    tiny = options.quick or getattr(options, 'shape', None) == 'tiny'
    results = [replace(row, goal=None) if tiny else row for row in rows(options)]
    if options.json:
        print(json.dumps([asdict(row) for row in results]))
        return
    command = f'python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}'.strip()
    write(f'{preamble(command, options)}\n{table(row.cells() for row in results)}', options.output)
