'''Are the maps of trained models right? Scores of methods on tasks whose evidence is known.

    python -m benchmarks.real.run [--models ...] [--tasks ...] [--methods ...] [--samples N] [--output FILE]

Fetch the models first: python -m benchmarks.real.fetch. It is not part of .ci, because it needs these downloads;
`tests/tools/test_real.py` runs the same code on a tiny random model.
'''
import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path
from statistics import mean
from time import perf_counter

import torch

from ..measure import preamble, table, write
from . import methods, tasks
from .fetch import PACKAGES
from .measure import SCORES, Measured, bootstrap, split

#: What was measured, below the head of the results.
SETTING = '''
Of each sample that the model answers correctly, the score of its answer is explained. *mass*: share of the positive
relevance on the evidence; *rank*: share of the evidence among as many units of most relevance; *top*: how often the
unit of most relevance is evidence. *ABPC*: area between the curves of the answer's probability (of the score itself
where it is the only one) while the units of least and of most relevance are removed first, by the reference; *ABPC
mean*: the same by the mean of the sample's own embeddings. Less is better for *deletion* alone. *Pearson*:
correlation with what the score loses without each unit, removed by the mean (*occlusion* removes by the reference).
*sign*: share of the words with human valence whose relevance has its sign. Intervals of 95 % by bootstrap over the
samples. Two thirds of the samples may choose defaults; the others are held out. Passes: forwards and backwards,
counted each.
'''


def measured(task, reader, chosen, count, seed=0):
    '''Scores of each method and sample, seconds of each method, and the share of samples that the model answers.

    Parameters
    ----------
    task: :py:class:`~benchmarks.real.tasks.Task`
    reader: :py:class:`~benchmarks.real.reader.Reader`
    chosen: list of :py:class:`~benchmarks.real.methods.Method`
    count, seed: int
        How many samples, and which.
    '''
    samples, right = task.samples(reader, count, seed)
    found, seconds = {method.name: [] for method in chosen}, dict.fromkeys((method.name for method in chosen), 0.)
    for index, sample in enumerate(samples):
        case = Measured(reader, sample, task.steps)
        for method in chosen:
            start = perf_counter()
            relevance = method.relevance(reader, sample)
            seconds[method.name] += (perf_counter() - start) / len(samples)
            if relevance is not None:
                found[method.name].append(case.scores(relevance))
        print(f'{task.name}: {index + 1} of {len(samples)}', file=sys.stderr, flush=True)
    return {name: scores for name, scores in found.items() if scores}, seconds, right


def cell(values):
    '''Text of a mean with its interval.'''
    low, high = bootstrap(values)
    return f'{mean(values):.2f} ({low:.2f} to {high:.2f})'


def section(task, found, seconds, right):
    '''The tables of a task: the samples that choose, and those held out.'''
    names = [name for name in SCORES if name in next(iter(found.values()))[0]]
    count = len(next(iter(found.values())))
    texts = [f'## {task.name} ({task.model}, {task.kind})\n\nEvidence: {task.evidence}. {count} samples; the model '
             f'answers {right:.0%} of those drawn.\n']
    for title, part in zip(('choose', 'held out'), split(count), strict=True):
        if not part:
            continue
        rows = [
            (name, methods.NAMES[name].passes, f'{seconds[name]:.2f}',
             *(cell([scores[index][score] for index in part]) for score in names))
            for name, scores in found.items()
        ]
        texts.append(f'{title}, {len(part)} samples\n\n{table(rows, ("method", "passes", "seconds", *names))}')
    return '\n'.join(texts)


def main():
    '''Measure, print the tables and write them where asked.'''
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', nargs='+', choices=list(PACKAGES), default=list(PACKAGES))
    parser.add_argument('--tasks', nargs='+', choices=list(tasks.NAMES), default=list(tasks.NAMES))
    parser.add_argument('--methods', nargs='+', choices=list(methods.NAMES), default=list(methods.NAMES))
    parser.add_argument('--samples', type=int, default=12, help='samples of each task (12)')
    parser.add_argument('--seed', type=int, default=0, help='which samples (0)')
    parser.add_argument('--quick', action='store_true', help='two samples of each task, to see that it runs')
    parser.add_argument('--output', type=Path, help='also write the tables to this file')
    options = parser.parse_args()
    from .models import MODELS  # needs the extra; what else is here does not
    options.samples, options.device = 2 if options.quick else options.samples, 'cpu'
    if options.samples < 1:
        parser.error('--samples has to be at least 1')
    command = f'python -m benchmarks.real.run {shlex.join(sys.argv[1:])}'.strip()
    texts = [preamble(command, options) + SETTING]
    for name in options.tasks:
        task = tasks.NAMES[name]
        if task.model in options.models:
            torch.manual_seed(options.seed)
            chosen = [methods.NAMES[method] for method in options.methods]
            texts.append(section(task, *measured(task, MODELS[task.model](), chosen, options.samples, options.seed)))
    write('\n'.join(texts), options.output)


if __name__ == '__main__':
    main()
