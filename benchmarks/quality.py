'''Are the explanations good? Trains small models whose true evidence is known, and scores maps of relevance.

Every model is trained with three seeds, others than those that the recommendations were chosen on. Its parameters are
kept in a folder that git ignores.
'''
import shlex
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from time import perf_counter

import measure
import torch
from measure import table, write
from torch.nn.functional import one_hot, softmax
from torch.overrides import TorchFunctionMode
from zennit.attribution import Gradient, IntegratedGradients, Occlusion, SmoothGrad

from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor, CPLRPGamma, Difference
from zennit_attn.demo import DIGITS, HELD_OUT_SEED, SHAPES, Demo, Samples, digits, scenes
from zennit_attn.demo.models import LinearAttentionCNN, MultiheadClassifier, PerformerClassifier, ViT
from zennit_attn.demo.sequences import BLANK, CAUSAL, TASKS, sequences
from zennit_attn.demo.train import SEEDS, batches, fit
from zennit_attn.evaluation import (
    abpc,
    area,
    class_probability,
    deletion,
    insertion,
    mass_accuracy,
    on_channels,
    on_patches,
    patches,
    rank_accuracy,
)

CHECKPOINTS = Path(__file__).parent / '.checkpoints'
#: Height and width of scenes and of their patches, and the batch of training.
SIZE, PATCH, BATCH = 24, 4, 64
#: How many samples measure the accuracy; there are only 360 digits.
DRAWN = 1000


# ---- data and models -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Family:
    '''A model, its data, and how it is trained.'''
    data: str
    name: str
    title: str
    build: Callable
    steps: int
    rate: float

    @property
    def key(self):
        '''The name on the command line.'''
        return f'{self.data}-{self.name}'

    def batches(self, seed):
        '''The batches of a training; none is drawn twice.'''
        if self.data == 'sequences':
            return (mixed(BATCH, seed * SEEDS + step) for step in range(self.steps))
        classes = DIGITS if self.data == 'digits' else SHAPES
        demo = Demo(self.name, self.title, self.build, classes, self.steps, self.rate)
        return batches(demo, seed, BATCH, SIZE)

    @property
    def tasks(self):
        '''The tasks that the model solves.'''
        return TASKS if self.data == 'sequences' else (self.data,)


FAMILIES = [
    Family('scenes', 'vit', 'ViT', partial(ViT, image_size=SIZE, depth=2), 4000, 4e-3),
    Family('scenes', 'linear_attention', 'linear attention',
           partial(LinearAttentionCNN, channels=3, num_classes=len(SHAPES), stride=2), 1000, 4e-3),
    Family('scenes', 'performer', 'Performer', partial(PerformerClassifier, image_size=SIZE), 1600, 3e-3),
    Family('scenes', 'multihead', 'multi-head attention', partial(MultiheadClassifier, image_size=SIZE), 1000, 4e-3),
    Family('digits', 'linear_attention', 'linear attention', LinearAttentionCNN, 700, 4e-3),
    Family('digits', 'vit', 'ViT', partial(ViT, image_size=8, patch_size=2, num_classes=10, channels=1, depth=2),
           1800, 4e-3),
    Family('sequences', 'performer', 'causal Performer', CAUSAL['performer'], 1200, 5e-3),
    Family('sequences', 'multihead', 'causal multi-head attention', CAUSAL['multihead'], 600, 5e-3),
    Family('sequences', 'fast_weights', 'fast weights', CAUSAL['fast_weights'], 1400, 5e-3),
]
NAMES = {family.key: family for family in FAMILIES}


def mixed(count, seed):
    '''Sequences of all tasks, in equal parts.'''
    parts = [sequences(count // len(TASKS), seed, task) for task in TASKS]
    return Samples(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))


def held_out(task, count, seed=HELD_OUT_SEED):
    '''Samples that no model was trained on.'''
    if task == 'digits':
        return digits('test')[:count]
    return scenes(count, seed, SIZE) if task == 'scenes' else sequences(count, seed, task)


def trained(family, seed, options):
    '''A model from its checkpoint, or trained now.'''
    path = options.checkpoints / f'{family.key}-{seed}.pt'
    torch.manual_seed(seed)
    model = family.build()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    start = perf_counter()
    with redirect_stdout(sys.stderr):
        print(f'training {path.stem}')
        fit(model, family.batches(seed), family.steps, family.rate)
    options.checkpoints.mkdir(exist_ok=True)
    (options.checkpoints / '.gitignore').write_text('*\n')
    torch.save(model.state_dict(), path)
    print(f'{path.stem}: {perf_counter() - start:.0f} s', file=sys.stderr, flush=True)
    return model


# ---- methods ---------------------------------------------------------------------------------------------------------

@dataclass
class Explained:
    '''A trained model with samples that it classifies correctly.

    What differentiates needs floating point inputs: `reader` reads `values`, which are the images, or the embeddings of
    the tokens, and `blank` is the value of nothing.
    '''
    family: Family
    task: str
    model: torch.nn.Module
    samples: Samples

    @property
    def tokens(self):
        '''Whether the inputs are token ids.'''
        return self.family.data == 'sequences'

    @property
    def reader(self):
        '''The model of floating point inputs.'''
        return Reader(self.model) if self.tokens else self.model

    @property
    def values(self):
        '''The floating point inputs.'''
        return self.model.embedding(self.samples.images).detach() if self.tokens else self.samples.images

    @property
    def blank(self):
        '''What stands for nothing: the embedding of the blank token, grey, or paper.'''
        return self.model.embedding.weight[BLANK].detach() if self.tokens else torch.tensor(0.)

    def target(self, logits):
        '''The logits of the classes, all others zero.'''
        return logits * self.one_hot(logits)

    def one_hot(self, logits):
        '''Ones at the classes.'''
        return one_hot(self.samples.labels, logits.shape[1]).to(logits.dtype)

    def units(self, relevance):
        '''Relevance of pixels or tokens.'''
        return relevance.sum(dim=-1 if self.tokens else 1)


class Reader(torch.nn.Module):
    '''A token model from its embeddings on.'''
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, values):
        return self.model.read(values)


def by_rule(build, explained):
    '''Relevance of a composite.'''
    if explained.tokens:
        attributor = TokenGradient(explained.model, explained.model.embedding, build())
    else:
        attributor = Gradient(explained.model, build())
    with attributor:
        return explained.units(attributor(explained.samples.images, explained.target)[1])


def gradient_times_input(explained):
    '''The gradient of the logit, times the input.'''
    gradient = Gradient(explained.reader)(explained.values, explained.one_hot)[1]
    return explained.units(gradient * explained.values)


def integrated_gradients(explained):
    '''Zennit's IntegratedGradients from the blank input, 20 steps.'''
    attributor = IntegratedGradients(explained.reader, baseline_fn=lambda values: explained.blank.expand_as(values))
    return explained.units(attributor(explained.values, explained.one_hot)[1])


def smooth_grad(explained):
    '''Zennit's SmoothGrad with noise of a tenth of the range, 20 draws, times the input.'''
    gradient = SmoothGrad(explained.reader)(explained.values, explained.one_hot)[1]
    return explained.units(gradient * explained.values)


def occlusion(explained):
    '''What the logit loses without a unit: a token, or a window of pixels through Zennit's Occlusion.'''
    model, samples = explained.model, explained.samples
    with torch.no_grad():
        whole = explained.target(model(samples.images)).sum(dim=1)
    if explained.tokens:
        return torch.stack([whole - without(explained, place) for place in range(samples.images.shape[1])], dim=1)
    window = (4, 4) if explained.task == 'scenes' else (2, 2)
    attributor = Occlusion(model, window=window, stride=window, occlusion_fn=occlude)
    return whole[:, None, None] - attributor(samples.images, explained.target)[1][:, 0]


def occlude(images, window):
    '''Make a window grey or paper.'''
    return images * ~window


def without(explained, place):
    '''The logits of the classes without a token.'''
    tokens = explained.samples.images.clone()
    tokens[:, place] = BLANK
    with torch.no_grad():
        return explained.target(explained.model(tokens)).sum(dim=1)


class SoftmaxRecorder(TorchFunctionMode):
    '''Keeps what every softmax returns.'''
    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in (torch.softmax, torch.Tensor.softmax, softmax):
            self.maps.append(output)
        return output


def rollout(explained):
    '''Attention rollout: the product of the layers' attention, averaged over heads, half of it the residual stream.'''
    with torch.no_grad(), SoftmaxRecorder() as recorder:
        explained.model(explained.samples.images)
    result = torch.eye(recorder.maps[0].shape[-1])
    for attention in recorder.maps:
        result = (attention.mean(dim=1) + torch.eye(attention.shape[-1])) / 2. @ result
    if explained.tokens:
        return result[:, -1]
    result = result[:, 0, 1:] if explained.family.name == 'vit' else result.mean(dim=1)
    side = round(result.shape[1] ** .5)
    size = explained.samples.images.shape[-1] // side
    return on_patches(size)(result.view(-1, side, side))[:, 0]


def random_map(explained):
    '''Noise.'''
    generator = torch.Generator().manual_seed(0)
    return torch.rand(explained.units(explained.values).shape, generator=generator)


def nothing(source):
    '''The reference of differences: blank tokens, grey, or paper.'''
    return torch.zeros_like(source) if source.is_floating_point() else torch.full_like(source, BLANK)


COMPOSITES = {
    'CPLRP': CPLRP,
    'AttnLRP': AttnLRP,
    'AttnTaylor': AttnTaylor,
    'CPLRPGamma': CPLRPGamma,
    'AttnLRPGamma': AttnLRPGamma,
    'AttnLRPGamma(0.25)': partial(AttnLRPGamma, linear_gamma=.25),
    'Difference': partial(Difference, nothing),
    'Difference, gammas 0.25': partial(Difference, nothing, linear_gamma=.25, conv_gamma=.25),
    'Difference now, gammas 0.25': partial(Difference, nothing, norm='now', linear_gamma=.25, conv_gamma=.25),
}
METHODS = {
    **{name: partial(by_rule, composite) for name, composite in COMPOSITES.items()},
    'gradient x input': gradient_times_input,
    'integrated gradients': integrated_gradients,
    'SmoothGrad': smooth_grad,
    'occlusion': occlusion,
    'rollout': rollout,
    'random': random_map,
}
#: The composite to use for each family on images, chosen on models of the seeds 0 to 2. The table has those of others.
RECOMMENDED = {
    'vit': 'Difference, gammas 0.25',
    'multihead': 'Difference now, gammas 0.25',
    'linear_attention': 'Difference now, gammas 0.25',
    'performer': 'CPLRPGamma',
}
#: The same where a token is looked up.
RECOMMENDED_FOR_SEQUENCES = {
    'performer': 'AttnTaylor',
    'multihead': 'Difference now, gammas 0.25',
    'fast_weights': 'Difference',
}
#: The families with maps of attention from tokens to tokens.
ATTENTION_MAPS = ('vit', 'multihead')


# ---- scores ----------------------------------------------------------------------------------------------------------

def explained(family, task, count, model, seed=HELD_OUT_SEED):
    '''A model with as many correctly classified samples as asked for, or as there are, and its accuracy.'''
    samples = held_out(task, DRAWN, seed)
    correct = right(model, samples)
    return Explained(family, task, model, samples[correct][:count]), correct.float().mean().item()


def right(model, samples):
    '''Which samples are classified correctly.'''
    with torch.no_grad():
        return model(samples.images).argmax(dim=1) == samples.labels


def scores(explained, relevance):
    '''All scores of a map, by name, as means over the samples.'''
    samples, found = explained.samples, {}
    if samples.masks is not None:
        found['mass'] = mass_accuracy(relevance, samples.masks)
        found['rank'] = rank_accuracy(relevance, samples.masks)
    units, steps, spread = relevance, relevance[0].numel() // 4, on_channels
    if explained.tokens:
        steps, spread = relevance.shape[1], None
    elif explained.task == 'scenes':
        units, spread = patches(relevance, PATCH), on_patches(PATCH)
        steps = units[0].numel() // 4
    score = class_probability(explained.model, samples.labels)
    blank = BLANK if explained.tokens else 0.
    curves = [curve(score, samples.images, blank, units, steps, spread) for curve in (insertion, deletion)]
    found.update(ABPC=abpc(*curves), insertion=area(curves[0]), deletion=area(curves[1]))
    return {name: values.mean().item() for name, values in found.items()}


def measured(family, seed, options):
    '''Scores of every task and method, and the accuracies, of one trained model.'''
    model, result, accuracies = trained(family, seed, options), {}, {}
    for task in family.tasks:
        case, accuracies[task] = explained(family, task, options.samples, model)
        for name, method in METHODS.items():
            if name == 'rollout' and family.name not in ATTENTION_MAPS:
                continue
            torch.manual_seed(seed)
            result[task, name] = scores(case, method(case))
    return result, accuracies


def all_measured(options):
    '''Each family with the scores and accuracies of all its seeds, one after the other or in several processes.'''
    if options.jobs == 1:
        for family in options.families:
            yield family, [measured(family, seed, options) for seed in options.seeds]
        return
    with ProcessPoolExecutor(options.jobs, get_context('spawn')) as pool:
        submitted = [(family, [pool.submit(measured_by_key, family.key, family.steps, seed, options.samples,
                                           options.checkpoints) for seed in options.seeds])
                     for family in options.families]
        for family, futures in submitted:
            yield family, [future.result() for future in futures]


def measured_by_key(key, steps, seed, samples, checkpoints):
    '''The same in a process of its own, which has one thread, as the results say.'''
    torch.set_num_threads(1)
    return measured(replace(NAMES[key], steps=steps), seed, Namespace(samples=samples, checkpoints=checkpoints))


# ---- the table -------------------------------------------------------------------------------------------------------

@dataclass
class Line:
    '''The scores of all methods in one row of the table: for each method one number for every seed.'''
    task: str
    family: Family
    metric: str
    values: dict

    @property
    def first(self):
        '''The best method on average.'''
        best = min if self.metric == 'deletion' else max
        return best(self.values, key=lambda method: mean(self.values[method]))

    @property
    def ours(self):
        '''The recommended composite.'''
        chosen = RECOMMENDED_FOR_SEQUENCES if self.family.data == 'sequences' else RECOMMENDED
        return chosen[self.family.name]

    @property
    def reached(self):
        '''Whether the recommended composite is first, or its mean lies within the interval of the first.'''
        ours, best = mean(self.values[self.ours]), self.values[self.first]
        return ours <= max(best) if self.metric == 'deletion' else ours >= min(best)

    @property
    def loss(self):
        '''Text of what the recommended composite loses to.'''
        ours, best = mean(self.values[self.ours]), mean(self.values[self.first])
        return f'{self.task} {self.metric} {ours:.3f} to {best:.3f} of {self.first}'

    def cells(self):
        '''The texts of the row.'''
        verdict = 'first' if self.first == self.ours else 'within' if self.reached else 'no'
        cells = {method: interval(self.values[method]) if method in self.values else '' for method in METHODS}
        cells[self.first] = f'**{cells[self.first]}**'
        return self.task, self.family.title, self.metric, *cells.values(), f'{self.ours}: {verdict}'


def interval(values):
    '''Text of a mean with its least and largest value.'''
    low, high = min(values), max(values)
    return f'{mean(values):.3f} ({low:.3f} to {high:.3f})'


def lines(family, results):
    '''Rows of the table for one family, from the scores of each seed.'''
    for task in family.tasks:
        metrics = results[0][task, 'random']
        for metric in metrics:
            yield Line(task, family, metric, {
                method: [result[task, method][metric] for result in results]
                for method in METHODS if (task, method) in results[0]
            })


def summary(rows):
    '''The recommendation for each family, with its losses.'''
    for title in dict.fromkeys(row.family.title for row in rows):
        own = [row for row in rows if row.family.title == title]
        losses = '; '.join(row.loss for row in own if not row.reached) or 'none'
        yield title, own[0].ours, f'{sum(row.reached for row in own)} of {len(own)}', losses


#: What was measured, below the head of the results.
SETTING = '''
Mass and rank accuracy (Arras et al., 2022) are taken of pixels or tokens, against the object or against the three
tokens that the answer depends on. The curves follow the probability of the class: over patches of 4 x 4 pixels that
are made grey (scenes), four pixels at a time that are made paper (digits), single tokens that are made blank
(sequences). With one baseline for both, ABPC is insertion minus deletion. Occlusion removes units in the same way, one
window or token at a time, and watches the same class, so it is close to what the curves measure; it costs a forward
pass a unit. SmoothGrad is multiplied by the input. AttnLRPGamma(0.25) is `AttnLRPGamma(linear_gamma=0.25)`.

Less is better for deletion only. Cells are means over seeds (least to largest), in bold the best mean of a row. The
last column says whether the recommended composite is first, or has its mean within the interval of the first, or not.
'''


def report(rows, accuracies, options):
    '''The text of the results.'''
    command = f'python benchmarks/quality.py {shlex.join(sys.argv[1:])}'.strip()
    return '\n'.join([
        measure.preamble(command, options),
        f'Seeds of training: {", ".join(map(str, options.seeds))}. {options.samples} samples for each, all of them '
        'classified correctly.',
        SETTING,
        f'The recommended composite is first or within the interval of the first in {sum(row.reached for row in rows)} '
        f'of {len(rows)} rows:\n',
        table(summary(rows), ('family', 'recommended', 'rows', 'losses')),
        table([row.cells() for row in rows], ('task', 'family', 'metric', *METHODS, 'recommended')),
        'Test accuracy of every seed:\n',
        table(accuracies, ('task', 'family', 'accuracy')),
    ])


def main():
    '''Train, explain, score, and write the table.'''
    options = parsed()
    rows, accuracies = [], []
    with tempfile.TemporaryDirectory() as scratch:
        options.checkpoints = Path(scratch) if options.quick else CHECKPOINTS
        for family, results in all_measured(options):
            rows += lines(family, [result for result, _ in results])
            accuracies += [(task, family.title, ', '.join(f'{found[task]:.3f}' for _, found in results))
                           for task in family.tasks]
            print(f'{family.data} {family.title}: done', file=sys.stderr, flush=True)
            if options.output:  # what is done is not lost when a long run is stopped
                options.output.write_text(report(rows, accuracies, options))
    write(report(rows, accuracies, options))


def parsed():
    '''The options.'''
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--quick', action='store_true', help='hardly trained models, to see that it runs')
    parser.add_argument('--seeds', type=int, nargs='+', default=[3, 4, 5],
                        help='seeds of training (3 4 5; the recommendations were chosen on 0 1 2)')
    parser.add_argument('--samples', type=int, default=200, help='samples for each seed (200)')
    parser.add_argument('--only', nargs='+', metavar='DATA-FAMILY', choices=list(NAMES), default=list(NAMES),
                        help=', '.join(NAMES))
    parser.add_argument('--jobs', type=int, default=1, help='processes that share the models (1)')
    parser.add_argument('--output', type=Path, help='also write the results to this file')
    options = parser.parse_args()
    options.families, options.device = [NAMES[name] for name in options.only], 'cpu'
    torch.set_num_threads(1)
    if options.quick:
        options.families = [replace(family, steps=20) for family in options.families]
        options.seeds, options.samples = options.seeds[:1], 4
    return options


if __name__ == '__main__':
    main()
