'''Scores of a map against evidence, removal and leave-one-out; the two parts of the samples; intervals.'''
from dataclasses import dataclass
from random import Random
from statistics import mean

import torch

from zennit_attn.evaluation import abpc, area, deletion, insertion, mass_accuracy, rank_accuracy

from .methods import leave_one_out

#: The scores, in the order of the table.
SCORES = ('mass', 'rank', 'top', 'ABPC', 'insertion', 'deletion', 'ABPC mean', 'Pearson', 'sign')


@dataclass
class Measured:
    '''A sample with what all methods are measured by: two ways to remove, and what is lost without each unit.'''
    reader: object
    sample: object
    steps: int

    def __post_init__(self):
        reader, sample = self.reader, self.sample
        self.values, blank = (reader.values(input, sample.extra) for input in (sample.input, sample.reference))
        kept = (self.values == blank).all(dim=-1, keepdim=True)
        average = self.values.flatten(0, -2).mean(dim=0)
        #: By the reference, and by the mean of what the embedding makes of the input's own units.
        self.removed = {'ABPC': blank, 'ABPC mean': torch.where(kept, self.values, average)}
        self.lost = leave_one_out(reader, sample, self.values, self.removed['ABPC mean'])

    def probability(self, values):
        '''The probability of the target, or the score itself where it is the only one: a sigmoid of it saturates.'''
        scores = self.reader.scores(self.sample.input, self.sample.extra, values)[0]
        return scores[:, 0] if scores.shape[1] == 1 else scores.softmax(dim=1)[:, self.sample.target]

    def scores(self, relevance):
        '''The scores of a map by name; those that do not apply are missing.'''
        relevance, sample = relevance.detach().double(), self.sample
        found = {
            'mass': mass_accuracy(relevance, sample.mask).item(),
            'rank': rank_accuracy(relevance, sample.mask).item(),
            'top': float(sample.mask.flatten()[relevance.argmax()]),
        }
        steps = min(self.steps, relevance[0].numel())
        for name, start in self.removed.items():
            curves = [curve(self.probability, self.values, start, relevance, steps, lambda units: units[..., None])
                      for curve in (insertion, deletion)]
            found[name] = abpc(*curves).item()
            if name == 'ABPC':
                found.update(insertion=area(curves[0]).item(), deletion=area(curves[1]).item())
        found['Pearson'] = pearson(relevance.flatten(), self.lost.double().flatten())
        if sample.valence is not None:
            told = sample.valence != 0
            found['sign'] = (relevance[told].sign() == sample.valence[told].sign()).double().mean().item()
        return found


def pearson(left, right):
    '''Correlation of two vectors; 0 where one of them is constant.'''
    left, right = left - left.mean(), right - right.mean()
    norms = left.norm() * right.norm()
    return (left @ right / norms).item() if norms > 0. else 0.


def split(count, seed=0):
    '''Two parts of the samples, in their order: two thirds that may choose, and a third that is only measured.'''
    order = list(range(count))
    Random(seed).shuffle(order)
    chosen = round(count * 2 / 3)
    return sorted(order[:chosen]), sorted(order[chosen:])


def bootstrap(values, draws=1000, coverage=.95, seed=0):
    '''Interval of the mean, by drawing the samples again.'''
    random, count = Random(seed), len(values)
    means = sorted(mean(random.choices(values, k=count)) for _ in range(draws))
    cut = round(draws * (1 - coverage) / 2)
    return means[cut], means[-1 - cut]
