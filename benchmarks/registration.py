'''What it costs to open a context on a vision transformer and to close it, against one forward pass of one image.'''
from functools import partial

import measure
import torch
import vit
from measure import always, rounds, time_row

from zennit_attn.composites import CPLRP


def open_and_close(model):
    '''Register the composite, and remove it.'''
    composite = CPLRP()
    composite.register(model)
    composite.remove()


def predict(model, images):
    '''A forward pass without gradients.'''
    with torch.no_grad():
        model(images)


def rows(options):
    '''All models.'''
    for name in options.models:
        model, images = vit.build(name, vit.shape(options), 1, options.device)
        works = {'ours': partial(open_and_close, model), 'forward': partial(predict, model, images)}
        times = rounds({key: always(value) for key, value in works.items()}, options)
        work = f'register and remove, {vit.TITLES[vit.shape(options)]} of {name}'
        yield time_row(work, 'one forward pass, batch 1', times['ours'], times['forward'], .05)


if __name__ == '__main__':
    measure.main(vit.add_arguments(measure.parser(__doc__, repeats=25), batch=[1]), rows)
