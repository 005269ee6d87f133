'''Fast weights: our whole explanation against the model's own forward pass, which is a Python loop over the tokens.'''
from functools import partial

import measure
import torch
from explaining import explain, frozen
from measure import Row, always, memory_row, peak, rounds, time_row

from zennit_attn import attention
from zennit_attn.composites import CPLRP

THEIRS = 'own forward pass, a loop'
DIM, HEADS = 128, 4


def published():
    '''The layer of labml-nn.'''
    from labml_nn.transformers.fast_weights import DPFP, FastWeightsAttention
    model = FastWeightsAttention(HEADS, DIM, 0., DPFP(nu=1))
    return model, model


def reference():
    '''Our reference module as it is, which is explained, and run as the loop that it is defined by.'''
    phi = attention.DPFP(nu=1)
    return [attention.FastWeightsAttention(HEADS, DIM, 0., phi, backend=backend) for backend in (None, 'loop')]


MODELS = {'labml-nn': published, 'reference module': reference}


def predict(model, input):
    '''A forward pass without gradients.'''
    with torch.no_grad():
        return model(input)


def rows_of(options, name):
    '''The lines of one model.'''
    for length in [32, 64] if options.quick else [256, 512, 1024, 2048, 4096]:
        work = f'fast weights of {name}, {length} tokens'
        try:
            model, loop = (frozen(each).to(options.device) for each in MODELS[name]())
        except ImportError as error:
            yield Row(work, 'time', '', THEIRS, f'not importable: {error}')
            return
        input = torch.randn(length, 1, DIM, device=options.device)
        works = {'ours': partial(explain, CPLRP, model, input), THEIRS: partial(predict, loop, input)}
        times = rounds({key: always(value) for key, value in works.items()}, options)
        yield time_row(work, THEIRS, times['ours'], times[THEIRS], 1. if length >= 512 else None)
        yield memory_row(work, THEIRS, *(peak(value, options.device) for value in works.values()))


def rows(options):
    '''All models.'''
    return [row for name in MODELS for row in rows_of(options, name)]


if __name__ == '__main__':
    measure.main(measure.parser(__doc__, repeats=7), rows)
