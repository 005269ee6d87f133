'''Train the demo's models and write their weights: ``python -m zennit_attn.demo.train``.'''
import argparse
import time

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from . import DEMOS, DIGITS
from .data import Samples, digits, scenes
from .recall import RECALLS

BATCH = 128
#: Distance of the seeds of the scenes of two trainings.
SEEDS = 10 ** 6


def jittered(samples, generator):
    '''Return samples with each image moved by up to one pixel in each direction, and with noise.'''
    padded = torch.nn.functional.pad(samples.images, (1, 1, 1, 1))
    size = samples.images.shape[-1]
    rows, columns = torch.randint(3, (2, len(samples), 1, 1), generator=generator)
    index = torch.arange(size)
    images = padded[torch.arange(len(samples))[:, None, None], 0, rows + index[:, None], columns + index]
    return Samples(images[:, None] + .15 * torch.randn(samples.images.shape, generator=generator), samples.labels)


def batches(demo, seed=0, batch=BATCH, size=32):
    '''Yield the batches of a training: scenes that are never seen twice, or digits in random order and place.'''
    if demo.classes is not DIGITS:
        yield from (scenes(batch, seed * SEEDS + step, size) for step in range(demo.steps))
        return
    source, generator = digits('train'), torch.Generator().manual_seed(seed)
    for _ in range(demo.steps):
        chosen = torch.randint(len(source), (batch,), generator=generator)
        yield jittered(source[chosen], generator)


def train(demo, seed=0):
    '''Train a model of the demo.

    Parameters
    ----------
    demo: :py:class:`~zennit_attn.demo.Demo`
        Which model, for how many steps.
    seed: int
        Seed of the initial parameters and of the batches.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The trained model.
    '''
    torch.manual_seed(seed)
    return fit(demo.build(), batches(demo, seed), demo.steps, demo.rate)


def fit(model, samples, steps, rate):
    '''Train a classifier.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, which is changed.
    samples: iterable of :py:class:`~zennit_attn.demo.data.Samples`
        The batches, one for each step.
    steps: int
        Number of training steps.
    rate: float
        Peak learning rate.

    Returns
    -------
    :py:class:`torch.nn.Module`
        The trained model, in evaluation mode.
    '''
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=.15)
    for step, batch in enumerate(samples):
        loss = cross_entropy(model(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f'  step {step:4d} of {steps}  loss {loss.item():.3f}', flush=True)
    return model.eval()


def accuracy(model, samples):
    '''Return the share of the samples whose highest logit is that of their class.'''
    with torch.no_grad():
        logits = model(samples.images.to(next(model.parameters()).dtype))
    return (logits.argmax(dim=1) == samples.labels).float().mean().item()


def save(model, path):
    '''Write a model's parameters and buffers in half precision.'''
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save(half, path)


def main(args=None):
    '''Train the models that are named, or all.'''
    parser = argparse.ArgumentParser(prog='python -m zennit_attn.demo.train', description=__doc__)
    known = [*DEMOS, *RECALLS]
    parser.add_argument('models', nargs='*', metavar='MODEL', help=f'{", ".join(known)} (default: all)')
    names = parser.parse_args(args).models or known
    if unknown := set(names) - set(known):
        parser.error(f'no such model: {", ".join(sorted(unknown))}; choose from {", ".join(known)}')
    for name in names:
        print(name, flush=True)
        start = time.perf_counter()
        demo = RECALLS.get(name) or DEMOS[name]
        if name in RECALLS:
            save(demo.train(), demo.weights)
            score = demo.accuracy(demo.load(torch.float32))
        else:
            save(train(demo), demo.weights)
            score = accuracy(demo.load(torch.float32), demo.held_out(4000))
        print(f'  held-out accuracy {score:.1%} with the stored weights, {demo.weights.stat().st_size / 1024:.0f} KiB, '
              f'{time.perf_counter() - start:.0f} s', flush=True)


if __name__ == '__main__':
    main()
