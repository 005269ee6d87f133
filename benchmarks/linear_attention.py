'''Linear attention over an image of 64x64 features, with 128 channels, against plain gradient x input.'''
import measure
import torch
from explaining import attributed, frozen, plain
from measure import Row, memory_row, peaks, rounds, time_row

from zennit_attn.attention import LinearAttention
from zennit_attn.composites import CPLRP

PLAIN = 'gradient x input'


def published(dim):
    '''The block of denoising-diffusion-pytorch.'''
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import LinearAttention as Published
    return Published(dim)


MODELS = {'reference module': LinearAttention, 'denoising-diffusion-pytorch': published}


def rows(options):
    '''All models and batches.'''
    dim, side = (16, 8) if options.quick else (128, 64)
    for name, make in MODELS.items():
        for batch in (1, 4):
            work = f'LinearAttention of {name}, {side}x{side}, dim {dim}, batch {batch}'
            try:
                model = frozen(make(dim)).to(options.device)
            except ImportError as error:
                yield Row(work, 'time', '', PLAIN, f'not importable: {error}')
                continue
            input = torch.randn(batch, dim, side, side, device=options.device)
            opened = {'ours': attributed(CPLRP, model, input), PLAIN: plain(model, input)}
            times, sizes = rounds(opened, options), peaks(opened, options)
            yield time_row(work, PLAIN, times['ours'], times[PLAIN], .9)
            yield memory_row(work, PLAIN, sizes['ours'], sizes[PLAIN])


if __name__ == '__main__':
    measure.main(measure.parser(__doc__, repeats=31), rows)
