'''Outputs and maps of spellings, each computed once.'''
from functools import cache

from cases.spellings import SPELLINGS, build
from helpers import explain, largest
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor

COMPOSITES = {'CPLRP': CPLRP, 'AttnLRP': AttnLRP, 'AttnTaylor': AttnTaylor}


@cache
def built(function, spelling):
    '''The host of a spelling, which contexts leave as it was, and its input.'''
    return build(SPELLINGS[function][spelling])


@cache
def explained(function, spelling, composite):
    '''Output and map of a spelling.'''
    return explain(*built(function, spelling), COMPOSITES[composite], largest)


def meant(function):
    '''The spelling that the others are compared with.'''
    return next(iter(SPELLINGS[function]))


def difference(map, other):
    '''The largest difference of two maps, in units of the largest element.'''
    return ((map - other).abs().max() / other.abs().max()).item()


def difference_of(function, spelling, composite):
    '''How far the map of a spelling is from that of the one that is meant.'''
    return difference(explained(function, spelling, composite)[1], explained(function, meant(function), composite)[1])
