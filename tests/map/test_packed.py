'''Sequences of several lengths: padded and packed, they have the maps that each has by itself.'''
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    pad_sequence,
    unpack_sequence,
)
from zennit.attribution import Gradient

from helpers import Snapshot, assert_closed, assert_restored, epsilon, one_hot, stock
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit

LENGTHS = torch.tensor([4, 7, 2])
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'epsilon': epsilon, 'stock': stock}
NETWORKS = {
    'lstm': lambda: nn.LSTM(6, 5, batch_first=True),
    'lstm, two layers, both directions': lambda: nn.LSTM(6, 5, 2, bidirectional=True, batch_first=True),
    'lstm, projected': lambda: nn.LSTM(6, 5, bidirectional=True, batch_first=True, proj_size=3),
    'gru, two layers, both directions': lambda: nn.GRU(6, 5, 2, bidirectional=True, batch_first=True, bias=False),
    'rnn of tanh': lambda: nn.RNN(6, 5, batch_first=True),
    'rnn of relu': lambda: nn.RNN(6, 5, bidirectional=True, batch_first=True, nonlinearity='relu'),
}
each_composite = pytest.mark.parametrize('make', COMPOSITES.values(), ids=COMPOSITES)


class Network(nn.Module):
    '''Outputs and last states of a recurrent network over packed sequences, or over one sequence as it is.'''
    def __init__(self, network, sort=False, padding=0.):
        super().__init__()
        self.embed, self.network, self.sort, self.padding = nn.Linear(6, 6), network, sort, padding
        self.head = nn.LazyLinear(3)

    def forward(self, x, lengths=None):
        x = self.embed(x)
        if lengths is None:
            output, states = self.network(x)
            output = torch.cat([output, torch.full_like(output, self.padding)[:, :1]], 1).sum(1)
        else:
            packed, states = self.network(pack_padded_sequence(x, lengths, True, enforce_sorted=self.sort))
            output, found = pad_packed_sequence(packed, True, self.padding, total_length=8)
            assert found.tolist() == lengths.tolist()
            there = torch.arange(8) <= found[:, None]
            output = (output * there[..., None]).sum(1)
        last = torch.cat([state.transpose(0, 1).flatten(1) for state in (
            states if isinstance(states, tuple) else (states,))], -1)
        return self.head(torch.cat([output, last], -1))


def built(name, **options):
    torch.manual_seed(0)
    model, x = Network(NETWORKS[name](), **options), torch.randn(3, 7, 6)
    model(x)
    return model.double().eval(), x.double()


@pytest.mark.filterwarnings('ignore:LSTM with projections is not supported')
@each_composite
@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('padding', [0., .5])
def test_packed_sequences_are_explained_as_each_by_itself(name, padding, make):
    model, x = built(name, padding=padding)
    before, wanted = Snapshot(model), model(x, LENGTHS).detach()
    target = one_hot(wanted)
    with Gradient(model, make()) as attributor:
        output = model(leaf := x.clone().requires_grad_(), LENGTHS)
        relevance, = torch.autograd.grad(output, leaf, target)
        alone = [attributor(x[i:i + 1, :n].clone(), target[i:i + 1]) for i, n in enumerate(LENGTHS)]
    assert_restored(before, model)
    assert torch.allclose(output, wanted, rtol=1e-10)
    for i, (single, own) in enumerate(alone):
        assert torch.allclose(single, wanted[i:i + 1], rtol=1e-10)
        assert torch.allclose(relevance[i, :LENGTHS[i]], own[0], rtol=1e-8, atol=1e-10)
        assert not relevance[i, LENGTHS[i]:].any()
    ledger = audit(model, make(), (x, LENGTHS), target)
    if make is not stock:
        assert_closed(ledger)
    if padding and make is CPLRP:
        assert any(sink.operator == 'masked_fill' and '0.5' in sink.name for sink in ledger.sinks), str(ledger)


class Moves(nn.Module):
    '''Between modules with rules, sequences are packed and unpacked by functions of torch.'''
    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.head, self.how = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), how

    def forward(self, sequences):
        sequences = [self.first(sequence) for sequence in sequences]
        if self.how == 'padded':
            padded = self.second(pad_sequence(sequences, batch_first=True, padding_value=.1))
            sequences = [row[:len(sequence)] for row, sequence in zip(padded, sequences, strict=True)]
        elif self.how == 'padded by keyword':
            padded = self.second(pad_sequence(sequences=sequences))
            sequences = [row[:len(sequence)] for row, sequence in zip(padded.unbind(1), sequences, strict=True)]
        elif self.how == 'packed':
            packed = pack_sequence(sequences, enforce_sorted=False)
            sequences = unpack_sequence(packed._replace(data=self.second(packed.data)))
        else:
            sequences = [self.second(sequence) for sequence in sequences]
        return torch.stack([self.head(sequence).sum(0) for sequence in sequences])


@each_composite
@pytest.mark.parametrize('how', ['padded', 'padded by keyword', 'packed'])
def test_moving_keeps_the_domain(how, make):
    torch.manual_seed(0)
    model, plain = Moves(how).double(), Moves('').double()
    plain.load_state_dict(model.state_dict())
    sequences = [torch.randn(n, 6, dtype=torch.float64) for n in LENGTHS]
    maps = []
    for each in (model, plain):
        leaves = [sequence.clone().requires_grad_() for sequence in sequences]
        with make().context(each):
            output = each(leaves)
            maps.append(torch.cat(torch.autograd.grad(output, leaves, one_hot(output))))
    assert torch.allclose(*maps, rtol=1e-10, atol=1e-12)
    if make is not stock:
        assert_closed(audit(model, make(), (sequences,)))


def test_values_that_pad_are_a_sink():
    class Pads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, sequences):
            return self.head(pad_sequence(sequences, batch_first=True, padding_value=2.)).sum(1)

    torch.manual_seed(0)
    ledger = audit(Pads().double(), CPLRP(), ([torch.randn(n, 6, dtype=torch.float64) for n in LENGTHS],))
    assert_closed(ledger)
    assert any(sink.operator == 'pad_sequence' and sink.kind == 'constant' for sink in ledger.sinks)


@each_composite
def test_packed_sequence_as_the_input(make):
    '''Its data are what is explained.'''
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.head = nn.LSTM(6, 5), nn.Linear(5, 3)

        def forward(self, packed):
            assert isinstance(packed, PackedSequence)
            return self.head(self.network(packed)[1][0][-1])

    torch.manual_seed(0)
    model = Last().double()
    packed = pack_sequence([torch.randn(n, 6, dtype=torch.float64) for n in LENGTHS], enforce_sorted=False)
    packed = packed._replace(data=packed.data.requires_grad_())
    with make().context(model):
        output = model(packed)
        found, = torch.autograd.grad(output, packed.data, one_hot(output))
    assert found.isfinite().all()
    assert found.abs().sum() > 0
    assert torch.allclose(output, model(packed), rtol=1e-12)
