'''The ledger of an explanation, and its text.'''
from dataclasses import dataclass, field

import torch

#: The share of relevance that has to reach the input, or the ledger says where it went.
DRAINED = .05


@dataclass
class Sink:
    '''Relevance that left on the way.

    Attributes
    ----------
    module: str
        Dotted name of the module whose code ran.
    operator: str
        The function, or the rule of the module.
    kind: {'bias', 'parameter', 'buffer', 'constant', 'stabilizer', 'rule', 'taylor', 'reference'}
        What absorbed it; ``reference`` is what the output is for the reference already.
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
        Relevance that entered at the output, of shape [batch], in double precision on the CPU, as all of the ledger.
    input: :py:class:`torch.Tensor`
        Relevance found at the input, of shape [batch].
    sinks: list of :py:class:`Sink`
        Relevance that left on the way, largest first.
    operators: list of :py:class:`Operation`
        Which operators ran where, with which rule, in the order of their first call.
    accepted: list
        With ``AttentionCanonizer(unknown='gradient')``, what ran by its plain gradient because no rule is known for it,
        each with its module, function, reason and line.
    loops: list of :py:class:`~zennit_attn.conservation.loops.Loop`
        Recurrences that are written out as loops, or in chunks, whose map depends on how.
    '''
    output: torch.Tensor
    input: torch.Tensor
    sinks: list
    operators: list
    accepted: list = field(default_factory=list)
    loops: list = field(default_factory=list)

    @property
    def unaccounted(self):
        ''':py:class:`torch.Tensor` of shape [batch]: what is left of the output's relevance after input and sinks.'''
        return self.output - self.input - sum(sink.relevance for sink in self.sinks)

    @property
    def share(self):
        ''':py:class:`torch.Tensor` of shape [batch]: the share of the output's relevance that is found at the input.'''
        return self.input / self.output

    def drained(self, least=DRAINED):
        '''Say where relevance went if little of it reaches the input, in which case a closed ledger says little.

        Parameters
        ----------
        least: float, optional
            The share that has to reach the input for nothing to be said.

        Returns
        -------
        str or None
        '''
        shares = self.share.abs()
        if not len(shares) or not (shares < least).any():
            return None
        sample = int(shares.nan_to_num(torch.inf).argmin())
        largest = sorted(self.sinks, key=lambda sink: -sink.relevance[sample].abs())[:3]
        words = ', '.join(f'{float(sink.relevance[sample] / self.output[sample]):.0%} at {sink.kind} {sink.name} '
                          f'({sink.operator} of {sink.module or "the model"})'.replace('  ', ' ') for sink in largest)
        return (f'Little reaches the input: {float(self.share[sample]):.1%} of the relevance of sample {sample}. '
                f'Most is at: {words}.\nA map of so little may show rounding more than reasons. Look at these sinks '
                'first: a constant that is added where an activation is meant, or a gate that is none; compare '
                'composites, or give these operators another rule (docs/how-to/audit.md).')

    def spelled(self):
        '''Say which recurrences are written out, so that the map depends on how.

        Returns
        -------
        str or None
        '''
        if not self.loops:
            return None
        places = '\n'.join(f'  {loop.module or "the model"}: {loop.function}, {loop.line.strip()}\n'
                           f'    for {loop.operators}' for loop in self.loops[:3])
        more = f'\n  and {len(self.loops) - 3} more' if len(self.loops) > 3 else ''
        return ('The map depends on how a recurrence is written: in a loop or in chunks, a memory that carries '
                f'relevance\nis multiplied by what carries it too, and each product shares evenly.\n{places}{more}\n'
                'An operator of zennit_attn.attention in its place has one map (docs/how-to/linear-attention.md).')

    def notes(self):
        '''Return what has to be said of the map beside its ledger: :py:meth:`drained` and :py:meth:`spelled`.

        Returns
        -------
        list of str
        '''
        return [note for note in (self.drained(), self.spelled()) if note is not None]

    def __str__(self):
        return '\n\n'.join([*self.notes(), self.table()])

    def table(self):
        '''Return the table of the output, the input, all sinks, and what is unaccounted.

        Returns
        -------
        str
        '''
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
