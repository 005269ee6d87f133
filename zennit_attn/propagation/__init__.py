'''How relevance flows through one call of an operator: the rules by kind, and what each leaves over.

What flows backward in operator code is relevance per unit, ``g`` with ``R_x = x * g``, so that autograd is the rule of
whatever is linear. A rule takes a :py:class:`Call` and runs it; it may ask the forward that runs for no more than
:py:class:`~zennit_attn.propagation.call.Running` says.
'''
from .call import Call, Running
from .difference import DIFFERENCES, NORMALIZERS_NOW
from .reference import Reference
from .rule import HIDDEN_BIAS, Absorbed, Rule, rule
from .rules import (
    RULES,
    activation,
    add,
    attention,
    constant,
    decomposed,
    gate,
    linear,
    multiply,
    normalization,
    picked,
    proportional,
    rearrange,
    scaled,
    select,
    uniform,
)
from .taylor import EXPANDED, expanded, softmax_dim, taylor, taylor_softmax, whole

__all__ = [
    'DIFFERENCES', 'EXPANDED', 'HIDDEN_BIAS', 'NORMALIZERS_NOW', 'RULES', 'Absorbed', 'Call', 'Reference', 'Rule',
    'Running', 'activation', 'add', 'attention', 'constant', 'decomposed', 'expanded', 'gate', 'linear', 'multiply',
    'normalization', 'picked', 'proportional', 'rearrange', 'rule', 'scaled', 'select', 'softmax_dim', 'taylor',
    'taylor_softmax', 'uniform', 'whole',
]
