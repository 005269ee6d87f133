'''The ledger of an explanation, and its text.'''
from dataclasses import dataclass, field

import torch


@dataclass
class Sink:
    '''Relevance that left on the way.

    Attributes
    ----------
    module: str
        Dotted name of the module whose code ran.
    operator: str
        The function, or the rule of the module.
    kind: {'bias', 'parameter', 'buffer', 'constant', 'stabilizer', 'rule', 'taylor'}
        What absorbed it.
    name: str
        The parameter's name, or a word for the constant.
    relevance: :py:class:`torch.Tensor`
        Of shape [batch].
    '''
    module: str
    operator: str
    kind: str
    name: str
    relevance: torch.Tensor


@dataclass(frozen=True)
class Operation:
    '''An operator that ran: the module whose code called it, its type, function, details, rule and number of calls.'''
    module: str
    type: str
    function: str
    detail: str
    rule: str
    calls: int = field(default=1, compare=False)


@dataclass
class Audit:
    '''The ledger of one explanation.

    Attributes
    ----------
    output: :py:class:`torch.Tensor`
        Relevance that entered at the output, of shape [batch].
    input: :py:class:`torch.Tensor`
        Relevance found at the input, of shape [batch].
    sinks: list of :py:class:`Sink`
        Relevance that left on the way, largest first.
    operators: list of :py:class:`Operation`
        Which operators ran where, with which rule, in the order of their first call.
    accepted: list
        With ``AttentionCanonizer(unknown='gradient')``, what ran by its plain gradient because no rule is known for it,
        each with its module, function, reason and line.
    '''
    output: torch.Tensor
    input: torch.Tensor
    sinks: list
    operators: list
    accepted: list = field(default_factory=list)

    @property
    def unaccounted(self):
        ''':py:class:`torch.Tensor` of shape [batch]: what is left of the output's relevance after input and sinks.'''
        return self.output - self.input - sum(sink.relevance for sink in self.sinks)

    def __str__(self):
        rows = [('', 'output', '', self.output), ('', 'input', '', self.input)]
        rows += [(sink.module, sink.operator, f'{sink.kind}: {sink.name}' if sink.name else sink.kind, sink.relevance)
                 for sink in self.sinks]
        header = ('module', 'operator', 'sink', *_sample_names(self.output))
        lines = [(*row[:3], *_samples(row[3])) for row in rows]
        last = ('', 'unaccounted', '', *_samples(self.unaccounted))
        return _table(header, [*lines, last])

    def operator_table(self):
        '''Return a table of the operators that ran: what was rewritten into what.

        Returns
        -------
        str
        '''
        return _table(('module', 'type', 'function', 'detail', 'rule', 'calls'), [
            (row.module, row.type, row.function, row.detail, row.rule, str(row.calls)) for row in self.operators])


def _sample_names(relevance):
    return [f'sample {i}' for i in range(min(len(relevance), 4))] + (['...'] if len(relevance) > 4 else [])


def _samples(relevance):
    return [f'{value: .6g}' for value in relevance[:4].tolist()] + (['...'] if len(relevance) > 4 else [])


def _table(header, rows):
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in (header, *rows))
