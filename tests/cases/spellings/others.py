'''Spellings whose maps differ from that of the one that is meant: why, and under which composites.

The groups are those of ``docs/mathematics/spellings.md``, in its order: a title, a text, and by function the spellings
with the composites under which they differ.
'''
from typing import NamedTuple

from versions import TORCH, release

ALL, CONSERVING, EXPANDED = 'CPLRP AttnLRP AttnTaylor', 'CPLRP AttnLRP', 'AttnTaylor'


class Group(NamedTuple):
    '''Spellings that differ for one reason.'''
    title: str
    why: str
    spellings: dict


GROUPS = (
    Group('A softmax by hand', '''
        Meant is `softmax`. Under `CPLRP` any spelling is a constant, and the maps are equal. `AttnLRP` and `AttnTaylor`
        expand a softmax as a whole, and find it where exponentials are divided by a sum of such
        ([Taylor expansions](taylor.md)). A denominator that was multiplied with values, as one of their columns, is not
        seen to be a sum of exponentials, and exponentials of views in place are constants. Where blocks with a softmax
        each are merged by another one, these are two softmaxes, and two products that share. A softmax of two is a
        sigmoid, which is a gate.
        ''', {
            'attention': {'ones beside values': 'AttnLRP AttnTaylor', 'blocks merged': 'AttnLRP'},
            'mix by a gate': {'softmax': 'AttnLRP'},
            'softmax, written out': {'exponentials of views in place': 'AttnLRP AttnTaylor'},
        }),
    Group('A softmax on the stream', '''
        Meant is `log_softmax`, which is of the kind of a softmax: a constant under `CPLRP`, an expansion under
        `AttnLRP`. In `x - logsumexp(x)` only the sum is a gate, and `x` goes on. The logarithm of a softmax is a gate
        of a gate.
        ''', {
            'log_softmax beside a residual': {'logsumexp': CONSERVING, 'log of softmax': 'AttnLRP'},
        }),
    Group('A function that vanishes at zero, written with such that do not', '''
        Meant is the function by its name. A gate less what it is at zero, as `exp(x) - 1`, is the activation that it
        makes (`expm1`), with views between and in place too. Gates of two tensors, `exp(x) - exp(-x)`, stay gates,
        although their difference vanishes as well; so do two of equal tensors that were computed each by itself, and a
        softmax, also one of two. The root of a square is a norm, a gate; `abs` is meant.
        ''', {
            'tanh': {'exp': CONSERVING, 'two sigmoids': CONSERVING, 'softmax of two': CONSERVING},
            'abs': {'root of square': ALL},
        }),
    Group('Numbers on the way to an activation', '''
        Meant is the function by its name, which follows the identity rule as a whole. By hand, the numbers that are
        added on the way absorb their share: in `relu(x - .5) - relu(-x - .5)` the halves do. The same holds for values
        that `where` puts in the place of others. A `clamp`, `minimum` and `maximum` with numbers on both sides of zero
        is known to be one function.
        ''', {
            'softshrink': {'two relus': CONSERVING, 'sign': CONSERVING},
            'hardtanh': {'where': CONSERVING},
        }),
    Group('Gates that are not seen', '''
        Meant is the function by its name, or an activation that is moved, scaled, shifted by a number and clamped. What
        is a gate is found by following a tensor back to an activation. This ends where `where` chooses among several
        values, at a maximum of two tensors, at a product with a matrix (also with one of ones), and at a tensor of
        equal numbers that is added to what is no activation, because that may as well be positions. That `tanh` and
        `softsign` saturate is known of their names, not of quotients.
        ''', {
            'tanh gate': {'sinh over cosh': CONSERVING},
            'softsign gate': {'quotient': CONSERVING},
            'scalar tanh gate': {'matrix': CONSERVING},
            'hard sigmoid gate': {'where': CONSERVING, 'tensor of numbers': CONSERVING},
            'elu + 1 gate': {'where': CONSERVING},
            'abs + 1 gate': {'maximum': CONSERVING},
        }),
    Group('Factors that carry relevance both', '''
        A product shares evenly, so what is a product of what counts. `x * (1 + s)` is a product of two, and the number
        absorbs its share; in `x + x * s` the first summand is no product. Where features carry relevance (a ReLU, or a
        softmax under `AttnLRP`), the order of association counts: each product halves. A bias that is multiplied gets
        its half inside the product, and none where it is multiplied apart. In the delta rule keys are multiplied with
        the state in another order, and the fused kernel takes queries and keys as gates. Under `AttnTaylor` the order
        does not matter. Neither spelling is wrong; write what is meant.
        ''', {
            'one plus a scale': {'distributed': CONSERVING, 'addcmul': CONSERVING},
            'linear attention of relus': {'map first': CONSERVING, 'einsum': CONSERVING},
            'linear attention of softmaxes': {'map first': 'AttnLRP', 'einsum': 'AttnLRP'},
            'soft mixture': {'weights first': 'AttnLRP'},
            'delta rule': {'transition': 'AttnLRP', 'kernel': 'AttnLRP'},
        }),
    Group('A variance', '''
        Meant is `var` or `std`, which are gates, as in a normalization. A mean of squares carries relevance where it is
        a factor. Where it is a denominator, as in a layer norm by hand, both are constants.
        ''', {
            'variance as a factor': {'by hand': ALL},
        }),
    Group('Denominators under AttnTaylor', '''
        `AttnTaylor` expands functions, and holds denominators constant, because with their derivative what a query
        receives cancels ([Taylor expansions](taylor.md)), unless these are made of exponentials alone. So a function by
        its name is expanded as a whole, and another quotient in its numerator only. Meant is the function by its name.
        A recurrence that is computed by cumulative sums over what was divided by the decay is such a quotient.
        ''', {
            'softsign': {'quotient': EXPANDED, 'reciprocal': EXPANDED, 'in place': EXPANDED},
            'tanh': {'sinh over cosh': EXPANDED},
            'tanh gate': {'sinh over cosh': EXPANDED},
            'softsign gate': {'quotient': EXPANDED},
            'gated recurrence': {'cumulative': EXPANDED},
        }),
    Group('A sixth in single precision', '''
        The derivative of `hardsigmoid` that torch has for a CPU multiplies by a sixth in single precision.
        ''', {
            'hardswish': {'hardsigmoid': EXPANDED, 'module of a gate': EXPANDED},
            'hard sigmoid gate': {'functional': EXPANDED, 'module': EXPANDED},
        }),
)


#: Why the map of each spelling differs, by function, spelling and composite.
OTHER_MAPS = {(function, spelling, composite): group.title for group in GROUPS
              for function, spellings in group.spellings.items()
              for spelling, composites in spellings.items() for composite in composites.split()}

#: An older torch takes views of what an index is assigned to.
WRITTEN_TO_VIEWS = {} if release('2.8') <= TORCH else {
    'attention with a mask': {'exp filled in place': 'AttnLRP AttnTaylor'}}

#: Graphs of ATen whose map is not that of their code: they have other operators, which are spellings.
OTHER_GRAPHS = {
    (function, spelling, composite): why for why, functions in {
        'softsign is a quotient there': {
            'softsign': {'functional': EXPANDED, 'module': EXPANDED},
            'softsign gate': {'functional': ALL, 'module': ALL}},
        'an einsum of three is two products there': {
            'linear attention of relus': {'einsum': CONSERVING},
            'linear attention of softmaxes': {'einsum': 'AttnLRP'}},
        'the fused kernel is written out there': {'delta rule': {'kernel': 'AttnLRP'}},
        'exponentials are written to views of a buffer there, and are not followed through them': {
            'softmax, written out': {'written to a buffer': 'AttnLRP AttnTaylor'},
            **WRITTEN_TO_VIEWS},
    }.items() for function, spellings in functions.items()
    for spelling, composites in spellings.items() for composite in composites.split()}

#: Graphs of ATen that are refused, with words of the error; ``torch.export`` keeps these functions whole.
REFUSED_GRAPHS = {
    **dict.fromkeys([
        ('layer norm', 'module'), ('layer norm', 'functional'), ('layer norm', 'keywords'),
        ('layer norm', 'affine by hand'), ('group norm', 'layer norm of groups')], 'native_layer_norm'),
    **dict.fromkeys([('layer norm', 'group norm'), ('group norm', 'module'), ('group norm', 'functional'),
                     ('instance norm', 'group norm')], 'native_group_norm'),
    **dict.fromkeys([('batch norm', 'module'), ('batch norm', 'functional'), ('instance norm', 'module'),
                     ('instance norm', 'functional')], 'native_batch_norm'),
}
#: Graphs of ATen that write in place to what a backward pass needs: torch itself refuses their gradient.
WITHOUT_GRADIENT = {('causal linear attention', 'kernel')}
