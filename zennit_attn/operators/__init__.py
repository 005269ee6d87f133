'''What is known of functions: the one table, with the kind of every function of torch.

To teach the package a function of torch, add its name to :py:mod:`~zennit_attn.operators.names`, or a row to
:py:mod:`~zennit_attn.operators.facts` if its kind is not all there is to say. For a function of your own, call
:py:func:`register_operator`.
'''
from .kinds import ALL, Kind, Operator, Writes
from .refusals import REASONS, reason
from .table import FACTS, KINDS, NAMES, TABLE, base_name, lookup, out_of_place, register_operator

__all__ = [
    'ALL', 'FACTS', 'KINDS', 'NAMES', 'REASONS', 'TABLE', 'Kind', 'Operator', 'Writes', 'base_name', 'lookup',
    'out_of_place', 'reason', 'register_operator',
]
