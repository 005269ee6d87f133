'''Figures of ledgers.'''
import re

import pytest

from zennit_attn.conservation import Sink
from zennit_attn.heatmap import ledger_figure, ledger_shares

from .helpers import ledger

SINKS = [
    ('a', 'linear', 'bias', 'a.bias', (.5, 0.)), ('b', 'linear', 'bias', 'b.bias', (.25, 0.)),
    ('', 'add', 'parameter', 'pos_embedding', (-.5, 0.)), ('', 'cat', 'parameter', 'cls_token', (.125, 0.)),
    ('', 'add', 'buffer', 'embeddings.position_ids', (.0625, 0.)), ('', 'mul', 'constant', '2.0', (1., 0.)),
    ('output', 'to relevance', 'stabilizer', '', (1e-9, 1e-9)), ('c', 'Gamma', 'rule', '', (2., 0.)),
    ('d', 'softmax', 'taylor', 'hidden bias', (-3., 0.)),
]


def test_ledger_shares_are_groups_that_add_up():
    shares = ledger_shares(ledger(sinks=SINKS))
    assert shares == {
        'input': 3., 'biases': .75, 'positions': -.4375, 'other parameters': .125, 'constants': 1., 'stabilizers': 1e-9,
        'rules': 2., 'hidden biases': -3., 'unaccounted': pytest.approx(.5625)}
    assert sum(shares.values()) == pytest.approx(4.)
    with pytest.raises(ValueError, match='there is no sample 2'):
        ledger_shares(ledger(), 2)


def test_every_kind_of_sink_has_a_group():
    kinds = re.findall(r'\w+', re.search(r'kind: {(.*?)}', Sink.__doc__)[1])
    for kind in kinds:
        shares = ledger_shares(ledger(sinks=[('a', 'b', kind, 'name', (1., 0.))]))
        assert list(shares) == ['input', next(name for name in shares if shares[name] == 1.), 'unaccounted']


def test_ledger_figure_shows_shares_of_the_output(tmp_path):
    drawn = ledger_figure({'CP-LRP': ledger(sinks=SINKS), 'other': ledger()}, title='a title', most=2)
    drawn.savefig(tmp_path / 'ledger.png')
    bars = dict(zip([tick.get_text() for tick in drawn.axes[0].get_yticklabels()],
                    [bar.get_width() for bar in drawn.axes[0].patches], strict=True))
    assert bars['input'] == .75
    assert bars['biases'] == .1875
    assert bars['hidden biases'] == -.75
    assert [text.get_text() for text in drawn.axes[0].texts][:2] == ['75.0%', '18.8%']
    assert [axis.get_title() for axis in drawn.axes[:2]] == ['CP-LRP: output 4', 'other: output 4']
    largest = [tick.get_text() for tick in drawn.axes[2].get_yticklabels()]
    assert largest == ['d, softmax', 'c, Gamma']


def test_ledger_figure_of_an_output_of_zero_and_without_sinks(tmp_path):
    drawn = ledger_figure(ledger((0.,), (1.,)), most=0)
    drawn.savefig(tmp_path / 'ledger.png')
    assert [bar.get_width() for bar in drawn.axes[0].patches] == [1., -1.]
