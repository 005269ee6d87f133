'''The gamma composite for vision transformers against the same composite with Zennit's own Gamma.'''
import measure
import vit
from explaining import attributed, explain
from measure import Row, memory_row, peaks, rounds, time_row
from torch import nn
from zennit.rules import Gamma
from zennit.types import Convolution

from zennit_attn.composites import CPLRPGamma

LINEAR, CONVOLUTION = .05, .25
#: Small, because Zennit's rule needs one more where relevance enters and leaves it, so that the maps differ by them.
STABILIZER = 1e-12


class StockGamma(CPLRPGamma):
    '''The composite with the rules of Zennit at the same modules.'''
    def __init__(self):
        super().__init__(stabilizer=STABILIZER)
        self.gamma_map = [(Convolution, Gamma(gamma=CONVOLUTION, stabilizer=STABILIZER)),
                          (nn.Linear, Gamma(gamma=LINEAR, stabilizer=STABILIZER))]


def ours():
    '''The composite as it is.'''
    return CPLRPGamma(linear_gamma=LINEAR, conv_gamma=CONVOLUTION, stabilizer=STABILIZER)


COMPOSITES = {'ours': ours, 'stock': StockGamma}


def difference(model, images):
    '''Largest difference of the two maps in float64, in parts of the largest relevance.'''
    maps = [explain(make, model.double(), images.double()) for make in COMPOSITES.values()]
    model.float()
    return ((maps[0] - maps[1]).abs().max() / maps[1].abs().max()).item()


def rows(options):
    '''All models and batches.'''
    for name in options.models:
        for batch in options.batch:
            model, images = vit.build(name, vit.shape(options), batch, options.device)
            work = f'CPLRPGamma, {vit.TITLES[vit.shape(options)]} of {name}, batch {batch}'
            opened = {key: attributed(make, model, images) for key, make in COMPOSITES.items()}
            times, sizes = rounds(opened, options), peaks(opened, options)
            yield time_row(work, "Zennit's Gamma", times['ours'], times['stock'], .6)
            yield memory_row(work, "Zennit's Gamma", sizes['ours'], sizes['stock'])
            apart = difference(model, images[:1]) / 1e-6
            yield Row(work, 'difference of the maps, in 1e-6', f'{apart:.2g}', "Zennit's Gamma", '', apart, goal=1.)


if __name__ == '__main__':
    measure.main(vit.add_arguments(measure.parser(__doc__, repeats=5), batch=[1]), rows)
