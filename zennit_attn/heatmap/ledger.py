'''The ledger: where the relevance of the output went.'''
import re

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .colors import by_method
from .titles import share, wrapped

#: What absorbs relevance, in the order of the figure.
_GROUPS = ('biases', 'positions', 'other parameters', 'constants', 'stabilizers', 'rules', 'hidden biases',
           'reference')
_KINDS = {'bias': 'biases', 'parameter': 'other parameters', 'buffer': 'other parameters', 'constant': 'constants',
          'stabilizer': 'stabilizers', 'rule': 'rules', 'taylor': 'hidden biases', 'reference': 'reference'}
_POSITION = re.compile(r'(^|[._])(w?pos|position|time)', re.IGNORECASE)
_COLOURS = {'input': '#c0392b', 'unaccounted': '#000000'}


def ledger_shares(ledger, sample=0):
    '''Return where the relevance of a sample went, in groups.

    Parameters
    ----------
    ledger: :py:class:`~zennit_attn.conservation.Audit`
        The ledger.
    sample: int
        The sample.

    Returns
    -------
    dict[str, float]
        Relevance by where it went: ``input``, the groups of sinks that there are (biases, positions, other
        parameters, constants, stabilizers, rules, hidden biases, reference) and ``unaccounted``. They add up to the
        output's.
    '''
    batch = len(ledger.output)
    if not -batch <= sample < batch:
        raise ValueError(f'The ledger has {batch} samples, there is no sample {sample}.')
    groups = {}
    for sink in ledger.sinks:
        group = _group(sink)
        groups[group] = groups.get(group, 0.) + float(sink.relevance[sample])
    sinks = {group: groups[group] for group in _GROUPS if group in groups}
    return {'input': float(ledger.input[sample]), **sinks, 'unaccounted': float(ledger.unaccounted[sample])}


def _group(sink):
    if sink.kind in ('parameter', 'buffer') and _POSITION.search(sink.name):
        return 'positions'
    return _KINDS[sink.kind]


def ledger_figure(ledger, sample=0, title='', most=8):
    '''Draw where the relevance of a sample went: to the input, to the kinds of sinks, and what is unaccounted.

    Parameters
    ----------
    ledger: :py:class:`~zennit_attn.conservation.Audit` or dict[str, :py:class:`~zennit_attn.conservation.Audit`]
        The ledger, or several by the name of their method.
    sample: int
        The sample.
    title: str
        Written above, see :py:func:`~zennit_attn.heatmap.title`.
    most: int
        How many of the largest sinks are named below; 0 for none.

    Returns
    -------
    :py:class:`matplotlib.figure.Figure`
        The figure. ``savefig`` writes it.
    '''
    ledgers = by_method(ledger)
    shares = {name: ledger_shares(item, sample) for name, item in ledgers.items()}
    largest = {name: _largest(item, sample, most) for name, item in ledgers.items()}
    groups = [group for group in ('input', *_GROUPS, 'unaccounted') if any(group in item for item in shares.values())]
    below = max(map(len, largest.values()))
    tall, short = .27 * len(groups) + .5, .22 * below + .55 * bool(below)
    width = 4.6 * len(ledgers) + .4
    title = wrapped(title, width, 10)
    result = Figure((width, tall + short + .65 + .2 * len(title.splitlines())), layout='constrained')
    result.suptitle(title, fontsize=10)
    ratios = {'height_ratios': [tall, short]} if below else {}
    axes = result.subplots(1 + bool(below), len(ledgers), squeeze=False, sharex='row', gridspec_kw=ratios)
    for column, (name, item) in enumerate(ledgers.items()):
        output = float(item.output[sample])
        values = {group: shares[name].get(group, 0.) for group in groups}
        _bars(axes[0, column], values, output, len(groups))
        axes[0, column].set_title(f'{name}: output {output:.4g}' if name else f'output {output:.4g}', fontsize=9)
        if below:
            _bars(axes[1, column], largest[name], output, below)
            axes[1, column].set_title('largest sinks', fontsize=8)
    return result


def _largest(ledger, sample, most):
    amounts = {}
    for sink in ledger.sinks:
        is_named = sink.kind in ('bias', 'parameter', 'buffer')
        where = sink.name if is_named else f'{sink.module or "model"}, {sink.operator}'
        amounts[where] = amounts.get(where, 0.) + float(sink.relevance[sample])
    kept = sorted((item for item in amounts.items() if item[1]), key=lambda item: -abs(item[1]))[:most]
    return {where if len(where) <= 40 else f'…{where[-39:]}': value for where, value in kept}


def _bars(axis, values, output, count):
    '''Draw values as shares of the output, each with its number, where there is room for `count`.'''
    whole = abs(output) or 1.
    parts = [value / whole for value in values.values()]
    colours = [_COLOURS.get(name, '#2c6fbb') for name in values]
    axis.barh(range(len(values)), parts, color=colours, height=.65)
    axis.axvline(0., color='.3', linewidth=.8)
    axis.set_yticks(range(len(values)), list(values), fontsize=8, parse_math=False)
    axis.set_ylim(count - .5, -.5)
    for place, (part, value) in enumerate(zip(parts, values.values(), strict=True)):
        axis.annotate(share(value, output), (max(part, 0.), place), (3., 0.), textcoords='offset points', fontsize=7,
                      va='center')
    axis.margins(x=.22)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(PercentFormatter(1.) if output else '{x:g}')
    axis.tick_params(axis='x', labelsize=7)
    axis.spines[['top', 'right', 'left']].set_visible(False)
