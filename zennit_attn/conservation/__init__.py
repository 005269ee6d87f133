'''The ledger: where every unit of relevance went, measured.

For every sample, ``R_output = R_input + sum over sinks + unaccounted``. Each term on the right is measured on its own
(a sink by its own formula, such as ``sum(c * g)`` for a constant `c` that was added), so that `unaccounted` is a
check: it is zero only if every operator followed a rule that conserves.
'''
from .ledger import Audit, Operation, Sink
from .measure import audit
from .recorder import Accepted, Recorder

__all__ = ['Accepted', 'Audit', 'Operation', 'Recorder', 'Sink', 'audit']
