'''Where the time of an explanation goes: CP-LRP of ViT-B/16, beside plain gradient x input.

Times of operators are what torch's profiler counts for themselves. What is left of the whole is Python: the model's,
that of autograd functions, and the engine's, whose share is the number of calls that it looks at times what the goal
allows for one.
'''
from collections import Counter
from re import search
from statistics import median

import measure
import torch
import vit
from explaining import attributed, first_class, plain
from measure import parse, preamble, rounds, seconds, table, write
from registration import open_and_close
from torch.profiler import ProfilerActivity, profile

from zennit_attn.composites import CPLRP
from zennit_attn.engine import Engine

PLAIN, RUNS = 'gradient x input', 3
#: Which part of the work an operator belongs to, by its name; the first that fits.
PARTS = {
    'attention': 'bmm|softmax|scaled_dot|flash',
    'products of linear layers': 'mm$|conv',
    'activations': 'gelu|div$',
    'norms': 'norm',
    'looking for zeros': 'amax|amin|nonzero|any|ne$|gt$',
    'moving, adding and the rest': '',
}


def operators(work):
    '''Seconds of each operator, and of all of a run, by name.'''
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(RUNS):
            work()
    return {event.key: event.self_cpu_time_total / 1e6 / RUNS for event in profiler.key_averages()
            if event.key.startswith('aten::')}


def parts(times):
    '''Seconds by part of the work.'''
    result = Counter()
    for name, value in times.items():
        result[next(title for title, pattern in PARTS.items() if search(pattern, name))] += value
    return result


def phases(model, images):
    '''Seconds of the forward and of the backward pass.'''
    images = images.clone().requires_grad_()
    outputs = []
    forward = measure.timed(lambda: outputs.append(model(images)))
    gradient = first_class(torch.ones_like(outputs[0]))
    return forward, measure.timed(lambda: torch.autograd.grad(outputs[0], images, gradient))


def phase_rows(model, images, options):
    '''Forward and backward passes of both, in turns.'''
    taken = {'CPLRP': [], PLAIN: []}
    for _ in range(options.repeats + 1):
        taken[PLAIN].append(phases(model, images))
        composite = CPLRP()
        composite.register(model)
        try:
            taken['CPLRP'].append(phases(model, images))
        finally:
            composite.remove()
    medians = {name: [median(column) for column in zip(*times[1:], strict=True)] for name, times in taken.items()}
    for index, phase in enumerate(('forward pass', 'backward pass')):
        yield phase, *(seconds(medians[name][index]) for name in ('CPLRP', PLAIN))


def calls(model, images):
    '''How many torch functions the engine looks at in an explanation.'''
    seen, original = [], Engine.__torch_function__

    def counting(self, func, *args, **kwargs):
        seen.append(func)
        return original(self, func, *args, **kwargs)
    Engine.__torch_function__ = counting
    try:
        with attributed(CPLRP, model, images)() as work:
            work()
    finally:
        Engine.__torch_function__ = original
    return len(seen)


def section(options, name, batch):
    '''Tables of one model.'''
    model, images = vit.build(name, vit.shape(options), batch, options.device)
    opened = {'CPLRP': attributed(CPLRP, model, images), PLAIN: plain(model, images)}
    whole = {key: median(times) for key, times in rounds(opened, options).items()}
    times = {}
    for key, open_work in opened.items():
        with open_work() as work:
            times[key] = operators(work)
    grouped = {key: parts(value) for key, value in times.items()}
    lines = [('whole explanation', *map(seconds, whole.values())), *phase_rows(model, images, options)]
    lines += [(f'operators: {title}', *(seconds(grouped[key][title]) for key in opened))
              for title in sorted(grouped['CPLRP'], key=grouped['CPLRP'].get, reverse=True)]
    left = [max(0., whole[key] - sum(times[key].values())) for key in opened]
    lines.append(('left: Python, and what the profiler does not see', *map(seconds, left)))
    looked_at = calls(model, images)
    opening = median(measure.timed(lambda: open_and_close(model)) for _ in range(options.repeats))
    lines += [(f'engine: {looked_at} calls looked at, at 3 µs', seconds(3e-6 * looked_at), ''),
              ('opening and closing the context, once', seconds(opening), '')]
    top = sorted(times['CPLRP'], key=times['CPLRP'].get, reverse=True)[:12]
    rows = [(key.removeprefix('aten::'), *(seconds(times[each].get(key, 0.)) for each in opened)) for key in top]
    return (f'### {vit.TITLES[vit.shape(options)]} of {name}, batch {batch}\n\n{table(lines, ("part", *opened))}\n'
            f'{table(rows, ("operator", *opened))}')


def main():
    '''Print the page, and write it where asked.'''
    options = parse(vit.add_arguments(measure.parser(__doc__, repeats=5), batch=[1]))
    sections = [section(options, name, batch) for name in options.models for batch in options.batch]
    write('\n'.join([preamble('python benchmarks/breakdown.py', options), *sections]), options.output)


if __name__ == '__main__':
    main()
