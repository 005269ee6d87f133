'''Explain the demo's models: a relevance map for each method, its ledger, and the figure's rows.'''
import torch
from torch.nn.functional import one_hot
from zennit.attribution import Gradient

from ..composites import CPLRP, AttnLRP
from ..conservation import audit
from ..heatmap import Heatmap, Row, pixel_relevance

#: The methods with a ledger, in the order of the figures.
COMPOSITES = {'CP-LRP': CPLRP, 'AttnLRP': AttnLRP}
GRADIENT = 'gradient x input'


def highest(logits):
    '''The highest logit of each sample, all others zero: what is explained.'''
    return logits * one_hot(logits.argmax(dim=-1), logits.shape[-1])


def relevance_maps(model, images):
    '''Explain the class that a model sees in each image.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    images: :py:class:`torch.Tensor`
        Images of shape ``(count, channels, height, width)``, of the model's type.

    Returns
    -------
    dict[str, :py:class:`torch.Tensor`]
        Relevance of pixels, of shape ``(count, height, width)``, by the name of the method.
    '''
    maps = {}
    for name, composite in COMPOSITES.items():
        with Gradient(model, composite()) as attributor:
            maps[name] = attributor(images, highest)[1]
    with Gradient(model) as attributor:
        maps[GRADIENT] = images * attributor(images, lambda logits: (highest(logits) != 0).to(logits.dtype))[1]
    return {name: pixel_relevance(relevance) for name, relevance in maps.items()}


def ledgers(model, images):
    '''Measure for each method with a ledger where the relevance went.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model.
    images: :py:class:`torch.Tensor`
        Images as in :py:func:`relevance_maps`.

    Returns
    -------
    dict[str, :py:class:`~zennit_attn.conservation.Audit`]
        The ledgers by the name of the method.
    '''
    return {name: audit(model, composite(), images, highest) for name, composite in COMPOSITES.items()}


def spread(samples, count):
    '''Return the first sample of each class, then the second of each, and so on, until there are `count`.'''
    labels = samples.labels
    turns = torch.stack([(labels[:index] == label).sum() for index, label in enumerate(labels)])
    return samples[turns.argsort(stable=True)[:count]]


def rows(demo, model, samples, maps, audits):
    '''Return a figure's rows.

    Parameters
    ----------
    demo: :py:class:`~zennit_attn.demo.Demo`
        What is explained.
    model: :py:class:`torch.nn.Module`
        Its model.
    samples: :py:class:`~zennit_attn.demo.data.Samples`
        The inputs, one a row.
    maps: dict[str, :py:class:`torch.Tensor`]
        As from :py:func:`relevance_maps`.
    audits: dict[str, :py:class:`~zennit_attn.conservation.Audit`]
        As from :py:func:`ledgers`.

    Returns
    -------
    list[:py:class:`~zennit_attn.heatmap.Row`]
        A row for each sample, labelled with its class, and with what the model took it for if it erred.
    '''
    with torch.no_grad():
        logits = highest(model(samples.images))
    outputs, seen = logits.sum(dim=-1), logits.abs().argmax(dim=-1)
    # gradient x input names no sinks, so all that does not arrive is unaccounted
    missing = {GRADIENT: outputs - maps[GRADIENT].sum(dim=(-2, -1))}
    missing.update({name: ledger.unaccounted for name, ledger in audits.items()})
    return [Row(
        image=samples.images[index],
        heatmaps={name: Heatmap(maps[name][index], outputs[index], missing[name][index]) for name in maps},
        label=_label(demo.classes, samples.labels[index], seen[index]),
        limits=demo.limits,
    ) for index in range(len(samples))]


def _label(classes, label, seen):
    return classes[label] if label == seen else f'{classes[label]}, seen as {classes[seen]}'
