'''Does a map change when the model forgets what it has learned, and stay when the input hardly changes?

    python -m benchmarks.real.sanity [--tasks ...] [--methods ...] [--samples N] [--output FILE]

Fetch the models first: python -m benchmarks.real.fetch.
'''
import shlex
import sys
from argparse import ArgumentParser
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from ..measure import preamble, table, write
from . import methods, tasks
from .measure import pearson
from .run import cell

METHODS = 'CPLRP', 'AttnLRP', 'AttnTaylor', 'recommended', 'Difference', 'gradient x input', 'rollout'
TASKS = 'facts', 'rerank', 'similar-bge', 'reaction', 'sentiment', 'reading'
#: Of the deviation of what the embedding makes of the input.
NOISE = .01
SETTING = f'''
*forgotten*: correlation of the map of a sample with that of the same sample and answer where every parameter above the
embedding has its entries in random order. A map that stays is one of the input, not of the model (Adebayo et al.,
2018). *noise*: correlation with the map where noise of {NOISE:.0%} of their deviation is added to the embeddings, or to
the image. *arrives*: the sum of the map as a share of what is explained; what is missing went to sinks (biases,
positions, hidden biases, the answer to the reference), or was never meant to add up. *first*: share of the absolute
relevance on the first unit, of a text the token at which attention rests that looks at nothing. *kept*: the same on all
units that are as in the reference: special tokens, a template, white paper. Intervals of 95 % by bootstrap over the
samples.
'''


def forgetful(reader):
    '''The reader of a copy of a model that has forgotten all that it learned above the embedding.'''
    network, embedding = deepcopy((reader.network, reader.embedding))
    kept = {id(parameter) for parameter in embedding.parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if id(parameter) not in kept:
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
    return replace(reader, network=network, embedding=embedding)


def off(tensor):
    '''A tensor with a little noise.'''
    return tensor + torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)) * tensor.std() * NOISE


def noisy(reader, samples):
    '''A reader and samples of which the embeddings, or the images, are a little off.'''
    if samples[0].input.is_floating_point():
        return reader, [replace(sample, input=off(sample.input)) for sample in samples]
    network, embedding = deepcopy((reader.network, reader.embedding))
    embedding.weight.data = off(embedding.weight.data)
    return replace(reader, network=network, embedding=embedding), samples


def seen(method, reader, other, near, sample, moved):
    '''The scores of one method and sample by name, or None where it does not apply.'''
    relevance = method.relevance(reader, sample)
    if relevance is None:
        return None
    relevance = relevance.detach().double()
    values, blank = (reader.values(input, sample.extra) for input in (sample.input, sample.reference))
    with torch.no_grad():
        score = reader.scores(sample.input, sample.extra)[0][0, sample.target].double()
    size = relevance.abs() / relevance.abs().sum().clamp(min=torch.finfo(torch.float64).tiny)
    forgotten = method.relevance(other, sample).detach().double()
    return {
        'forgotten': pearson(relevance.flatten(), forgotten.flatten()),
        'noise': pearson(relevance.flatten(), method.relevance(near, moved).detach().double().flatten()),
        'arrives': (relevance.sum() / score).item(), 'first': size.flatten()[0].item(),
        'kept': size[(values == blank).all(dim=-1)].sum().item(),
    }


def section(task, reader, chosen, count, seed):
    '''The table of a task.'''
    samples, _ = task.samples(reader, count, seed)
    other, rows = forgetful(reader), []
    near, moved = noisy(reader, samples)
    for method in chosen:
        found = [seen(method, reader, other, near, *both) for both in zip(samples, moved, strict=True)]
        found = [scores for scores in found if scores is not None]
        if found:
            rows.append((method.name, *(cell([scores[name] for scores in found]) for name in found[0])))
        print(f'{task.name}: {method.name}', file=sys.stderr, flush=True)
    head = ('method', 'forgotten', 'noise', 'arrives', 'first', 'kept')
    return f'## {task.name} ({task.model})\n\n{len(samples)} samples\n\n{table(rows, head)}'


def main():
    '''Measure, print the tables and write them where asked.'''
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--tasks', nargs='+', choices=list(tasks.NAMES), default=list(TASKS))
    parser.add_argument('--methods', nargs='+', choices=list(methods.NAMES), default=list(METHODS))
    parser.add_argument('--samples', type=int, default=9, help='samples of each task (9)')
    parser.add_argument('--seed', type=int, default=0, help='which samples (0)')
    parser.add_argument('--output', type=Path, help='also write the tables to this file')
    options = parser.parse_args()
    from .models import MODELS  # needs the extra; what else is here does not
    options.device = 'cpu'
    texts = [preamble(f'python -m benchmarks.real.sanity {shlex.join(sys.argv[1:])}'.strip(), options) + SETTING]
    for name in options.tasks:
        task, chosen = tasks.NAMES[name], [methods.NAMES[method] for method in options.methods]
        texts.append(section(task, MODELS[task.model](), chosen, options.samples, options.seed))
    write('\n'.join(texts), options.output)


if __name__ == '__main__':
    main()
