'''The ledger of an explanation, and its text.'''
from dataclasses import dataclass, field
from html import escape

import torch

#: The share of relevance that has to reach the input, or the ledger says where it went.
DRAINED = .05
#: What rounding may leave unaccounted of the output's relevance.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}


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
    precision: :py:class:`torch.dtype`
        The type in which the output was computed.
    '''
    output: torch.Tensor
    input: torch.Tensor
    sinks: list
    operators: list
    accepted: list = field(default_factory=list)
    loops: list = field(default_factory=list)
    precision: torch.dtype = torch.float64

    @property
    def unaccounted(self):
        ''':py:class:`torch.Tensor` of shape [batch]: what is left of the output's relevance after input and sinks.'''
        return self.output - self.input - sum(sink.relevance for sink in self.sinks)

    @property
    def share(self):
        ''':py:class:`torch.Tensor` of shape [batch]: the share of the output's relevance that is found at the input.'''
        return self.input / self.output

    @property
    def tolerance(self):
        '''float: the share of the output's relevance that rounding may leave unaccounted: 1e-6 in float64, 1e-3 in
        float32, else .1.'''
        return TOLERANCES.get(self.precision, .1)

    @property
    def closed(self):
        '''bool: whether no more than :py:attr:`tolerance` is unaccounted, in every sample.'''
        return self.is_closed()

    def is_closed(self, tolerance=None):
        '''Whether all relevance is accounted for, in every sample.

        Parameters
        ----------
        tolerance: float, optional
            The share of the output's relevance that may be unaccounted. Default is :py:attr:`tolerance`.

        Returns
        -------
        bool
            False also if no relevance entered, of which there could be a share.
        '''
        tolerance = self.tolerance if tolerance is None else tolerance
        return bool(self.output.any()) and bool((self.unaccounted.abs() <= tolerance * self.output.abs()).all())

    def to_dict(self):
        '''Return the ledger as lists, numbers and strings, e.g. for JSON.

        Returns
        -------
        dict
            With the keys ``output``, ``input`` and ``unaccounted``, a number for each sample; ``closed``; ``sinks``,
            each a dict of its attributes; and ``operators``, the same.
        '''
        return {
            'output': self.output.tolist(), 'input': self.input.tolist(), 'unaccounted': self.unaccounted.tolist(),
            'closed': self.closed,
            'sinks': [{**vars(sink), 'relevance': sink.relevance.tolist()} for sink in self.sinks],
            'operators': [dict(vars(operation)) for operation in self.operators],
        }

    def _repr_html_(self):
        notes = ''.join(f'<p style="white-space:pre-wrap">{escape(note)}</p>' for note in self.notes())
        cells = (''.join(f'<td style="text-align:{"left" if place < 3 else "right"}">{escape(cell)}</td>'
                         for place, cell in enumerate(row)) for row in self._rows())
        return f'{notes}<table>{"".join(f"<tr>{row}</tr>" for row in cells)}</table>'

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
        header, *rows = self._rows()
        return _table(header, rows)

    def _rows(self):
        rows = [('', 'output', '', self.output), ('', 'input', '', self.input)]
        rows += [(sink.module, sink.operator, f'{sink.kind}: {sink.name}' if sink.name else sink.kind, sink.relevance)
                 for sink in self.sinks]
        header = ('module', 'operator', 'sink', *_sample_names(self.output))
        lines = [(*row[:3], *_samples(row[3])) for row in rows]
        return [header, *lines, ('', 'unaccounted', '', *_samples(self.unaccounted))]

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
