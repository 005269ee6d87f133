'''Methods that say how much each unit of an input counts, each with its cost in passes.

A method takes a :py:class:`~benchmarks.real.reader.Reader` and a :py:class:`~benchmarks.real.tasks.Sample`, and returns
relevance of shape ``(1, *units)``, or None where it does not apply. All of them start from what the embedding makes of
the input; for images that is the image.
'''
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import one_hot

from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor, CPLRPGamma, Difference
from zennit_attn.recommendation import recommended

#: Steps of integrated gradients, and draws of SmoothGrad.
STEPS = 20
#: How many inputs go through a model at once.
BATCH = 4


@dataclass(frozen=True)
class Method:
    '''A method, with its passes: forwards and backwards counted each, as a text.'''
    name: str
    relevance: Callable
    passes: str


def seed(sample, scores, contrast=False):
    '''What is explained of the scores: ones at the target, and with `contrast` minus one at the best of the others.'''
    target = torch.tensor([sample.target]).expand(len(scores))
    ones = one_hot(target, scores.shape[1]).to(scores)
    if not contrast or scores.shape[1] == 1:
        return ones
    others = scores.detach().masked_fill(ones.bool(), -torch.inf)
    return ones - one_hot(others.argmax(dim=1), scores.shape[1]).to(scores)


def by_rule(build, reader, sample, contrast=False):
    '''Relevance of a composite: of the sum over the features of each unit.

    Parameters
    ----------
    build: callable
        Makes the composite of the reader and a sample. One that explains against a reference takes the sample's.
    reader, sample
        What is explained.
    contrast: bool, optional
        Whether the best of the other classes is subtracted; None is returned where there is no other.
    '''
    composite = build(reader, sample)
    attributor = TokenGradient(reader.network, reader.embedding, composite, select=reader.select, compare=False)
    with attributor:
        inputs = reader.arguments(sample.input, sample.extra)
        scores, relevance = attributor(inputs, lambda scores: scores * seed(sample, scores, contrast))
    return None if contrast and scores.shape[1] == 1 else relevance.sum(dim=-1)


def gradients(reader, sample, values):
    '''Gradients of the target's score at values of shape ``(batch, *units, features)``.'''
    found = []
    for part in values.split(BATCH):
        part = part.detach().requires_grad_()
        scores = reader.scores(sample.input, sample.extra, part)[0]
        found.append(torch.autograd.grad((scores * seed(sample, scores)).sum(), part)[0])
    return torch.cat(found)


def gradient_times_input(reader, sample):
    '''The gradient times what the embedding makes of the input.'''
    values = reader.values(sample.input, sample.extra)
    return (gradients(reader, sample, values) * values).sum(dim=-1)


def integrated_gradients(reader, sample):
    '''Gradients at the midpoints of equal steps from the reference, times the way.'''
    values, start = (reader.values(input, sample.extra) for input in (sample.input, sample.reference))
    steps = ((torch.arange(STEPS) + .5) / STEPS).view(-1, *[1] * (values.ndim - 1))
    path = start + steps * (values - start)
    return (gradients(reader, sample, path).mean(dim=0, keepdim=True) * (values - start)).sum(dim=-1)


def smooth_grad(reader, sample):
    '''Gradients with noise of a tenth of the range of the values, times the values.'''
    values = reader.values(sample.input, sample.extra)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(STEPS, *values.shape[1:], generator=generator) * .1 * (values.max() - values.min())
    return (gradients(reader, sample, values + noise).mean(dim=0, keepdim=True) * values).sum(dim=-1)


def occlusion(reader, sample):
    '''What the score loses when the reference takes the place of a unit.'''
    values, start = (reader.values(input, sample.extra) for input in (sample.input, sample.reference))
    return leave_one_out(reader, sample, values, start)


def leave_one_out(reader, sample, values, start):
    '''What the score loses when other values take the place of a unit, one unit after another.'''
    units = values.shape[1:-1]
    single = torch.eye(units.numel(), dtype=torch.bool).view(-1, *units, 1)
    lost = []
    with torch.no_grad():
        whole = reader.scores(sample.input, sample.extra, values)[0][:, sample.target]
        for part in single.split(BATCH):
            scores = reader.scores(sample.input, sample.extra, torch.where(part, start, values))[0]
            lost.append(whole - scores[:, sample.target])
    return torch.cat(lost).view(1, *units)


def attention(reader, sample):
    '''Maps of attention of all layers, with the target's score.'''
    values = reader.values(sample.input, sample.extra).requires_grad_()
    scores, output = reader.scores(sample.input, sample.extra, values, output_attentions=True)
    return output.attentions, (scores * seed(sample, scores)).sum()


def rollout(reader, sample):
    '''Attention rollout (Abnar & Zuidema, 2020): the product of the layers' maps, half of each the residual stream.'''
    if not reader.attends:
        return None
    maps, _ = attention(reader, sample)
    identity = torch.eye(maps[0].shape[-1]).to(maps[0])
    product = identity
    for weights in maps:
        product = (weights.detach().mean(dim=1) + identity) / 2. @ product
    return product[:, reader.read]


def attention_gradient(reader, sample):
    '''Generic attention explainability (Chefer et al., ICCV 2021): rollout of the positive part of map x gradient.'''
    if not reader.attends:
        return None
    maps, score = attention(reader, sample)
    identity = torch.eye(maps[0].shape[-1]).to(maps[0])
    product = identity
    for weights, gradient in zip(maps, torch.autograd.grad(score, maps), strict=True):
        product = product + (weights * gradient).clamp(min=0.).mean(dim=1).detach() @ product
    return (product - identity)[:, reader.read]


def random_map(reader, sample):
    '''Noise.'''
    return torch.rand(sample.mask.shape, generator=torch.Generator().manual_seed(int(sample.input.float().sum())))


def composite(name, build, contrast=False):
    '''A method of a composite, which takes one forward and one backward.'''
    return Method(name, partial(by_rule, build, contrast=contrast), '2')


def difference(name, contrast=False, **settings):
    '''Differences from the sample's reference, which take two forwards and one backward.'''
    def build(reader, sample):
        return Difference(reader.values(sample.reference, sample.extra), **settings)
    return Method(name, partial(by_rule, build, contrast=contrast), '3')


def best(reader, sample):
    '''What the package recommends for the kind of the model.'''
    return recommended(reader.network, reader.tokenizer, tokens=not sample.input.is_floating_point())


METHODS = [
    composite('CPLRP', lambda reader, sample: CPLRP()),
    composite('CPLRP, contrast', lambda reader, sample: CPLRP(), contrast=True),
    composite('CPLRPGamma', lambda reader, sample: CPLRPGamma()),
    composite('AttnLRP', lambda reader, sample: AttnLRP()),
    composite('AttnLRPGamma', lambda reader, sample: AttnLRPGamma()),
    composite('AttnLRPGamma(.25)', lambda reader, sample: AttnLRPGamma(linear_gamma=.25)),
    composite('AttnTaylor', lambda reader, sample: AttnTaylor()),
    Method('recommended', partial(by_rule, best), '2 or 3'),
    difference('Difference'),
    difference('Difference, contrast', contrast=True),
    difference('Difference now', norm='now'),
    difference('Difference, gammas', linear_gamma=.25, conv_gamma=.25),
    Method('gradient x input', gradient_times_input, '2'),
    Method('integrated gradients', integrated_gradients, f'{2 * STEPS}'),
    Method('SmoothGrad', smooth_grad, f'{2 * STEPS}'),
    Method('occlusion', occlusion, 'units'),
    Method('rollout', rollout, '1'),
    Method('attention x gradient', attention_gradient, '2'),
    Method('random', random_map, '0'),
]
NAMES = {method.name: method for method in METHODS}
