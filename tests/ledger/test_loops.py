'''Recurrences that are written out: the audit says that their map depends on how, and which operator has one map.'''
import pytest
import torch
from torch import nn

from cases.families import COMPOSITES
from zennit_attn.attention import gated_linear_attention
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit

BATCH, LENGTH, DIM = 2, 8, 4


class Loop(nn.Module):
    '''A layer whose memory is computed by a function.'''
    def __init__(self, compute):
        super().__init__()
        self.qkv, self.gate, self.compute = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), compute

    def forward(self, x):
        return self.compute(*self.qkv(x).chunk(3, -1), self.gate(x))


def linear(q, k, v, gate):
    memory, outs = 0., []
    for i in range(LENGTH):
        memory = memory + torch.einsum('bd,be->bde', k[:, i], v[:, i])
        outs.append(torch.einsum('bd,bde->be', q[:, i], memory))
    return torch.stack(outs, 1)


def decayed(q, k, v, gate):
    memory, outs = q.new_zeros(BATCH, DIM, DIM), []
    for query, key, value, forget in zip(*(each.unbind(1) for each in (q, k, v, gate)), strict=True):
        memory = forget.sigmoid()[..., None] * memory + key[..., None] * value[:, None]
        outs.append((query[:, None] @ memory).squeeze(1))
    return torch.stack(outs, 1)


def delta(q, k, v, gate):
    memory, outs = q.new_zeros(BATCH, DIM, DIM), []
    for i in range(LENGTH):
        error = v[:, i] - (memory * k[:, i, :, None]).sum(1)
        memory = memory + k[:, i, :, None] * error[:, None]
        outs.append((memory * q[:, i, :, None]).sum(1))
    return torch.stack(outs, 1)


def in_chunks(q, k, v, gate, size=2):
    memory, outs = 0., []
    for query, key, value in zip(*(each.split(size, 1) for each in (q, k, v)), strict=True):
        outs.append(query @ memory if outs else 0. * query)
        outs[-1] = outs[-1] + (query @ key.mT).tril() @ value
        memory = memory + key.mT @ value
    return torch.cat(outs, 1)


def elementwise(q, k, v, gate):
    state, outs = v[:, 0], []
    for i in range(LENGTH):
        state = k[:, i] * state + v[:, i]
        outs.append(state)
    return torch.stack(outs, 1)


def in_place(q, k, v, gate):
    memory, out = q.new_zeros(BATCH, DIM, DIM), torch.zeros_like(v)
    for i in range(LENGTH):
        memory = memory + k[:, i, :, None] * v[:, i, None]
        out[:, i] = (q[:, i, None] @ memory)[:, 0]
    return out


def gated(q, k, v, gate):
    '''Only by gates: nothing is shared.'''
    state, outs = v[:, 0], []
    for i in range(LENGTH):
        state = gate[:, i].sigmoid() * state + v[:, i]
        outs.append(state)
    return torch.stack(outs, 1)


def by_head(q, k, v, gate):
    '''A loop without a memory.'''
    return torch.stack([q[..., i] * k[..., i] for i in range(DIM)], -1)


def recurrent(q, k, v, gate):
    '''A memory that is no linear one.'''
    state, outs = v[:, 0], []
    for i in range(LENGTH):
        state = (k[:, i] * state.tanh() + v[:, i]).relu()
        outs.append(state)
    return torch.stack(outs, 1)


LINEAR, DELTA, SINGLE = 'gated_linear_attention', 'gated_delta_rule', 'linear_recurrence'
WRITTEN = {linear: LINEAR, decayed: LINEAR, in_chunks: LINEAR, in_place: LINEAR, delta: DELTA, elementwise: SINGLE}


def ledger_of(compute, composite=CPLRP):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, DIM), Loop(compute)).double()
    return audit(model, composite(), torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64))


@pytest.mark.parametrize('compute', WRITTEN, ids=lambda compute: compute.__name__)
@pytest.mark.parametrize('composite', [COMPOSITES[name] for name in ('cp_lrp', 'attn_lrp')])
def test_says_where_a_loop_is_and_what_to_use(compute, composite):
    ledger = ledger_of(compute, composite)
    assert ledger.loops
    for loop in ledger.loops:
        assert loop.module == '1'
        assert WRITTEN[compute] in loop.operators
        assert 'test_loops.py' in loop.line
    text = str(ledger)
    assert 'depends on how a recurrence is written' in text
    assert WRITTEN[compute] in text
    assert text.endswith(ledger.table())


@pytest.mark.parametrize('compute', [gated, by_head, recurrent, lambda q, k, v, gate: gated_linear_attention(q, k, v)],
                         ids=['gated', 'by_head', 'recurrent', 'operator'])
def test_says_nothing_of_other_loops(compute):
    ledger = ledger_of(compute)
    assert not ledger.loops
    assert ledger.spelled() is None


class Shared(nn.Module):
    '''A layer that runs several times, one after the other, which is no recurrence of tokens.'''
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM, bias=False), nn.LayerNorm(DIM)

    def forward(self, x):
        for _ in range(3):
            q, k, v = self.qkv(x).chunk(3, -1)
            x = self.norm(x + self.out(q @ k.mT @ v))
        return x


class Rolled(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.layer = cls(DIM, DIM, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize('make', [Shared, lambda: Rolled(nn.LSTM), lambda: Rolled(nn.GRU)],
                         ids=['shared', 'lstm', 'gru'])
@pytest.mark.parametrize('composite', [COMPOSITES[name] for name in ('cp_lrp', 'attn_lrp')])
def test_says_nothing_of_layers_that_run_again(make, composite):
    torch.manual_seed(0)
    ledger = audit(make().double(), composite(), torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64))
    assert not ledger.loops


def test_names_some_and_counts_the_rest():
    torch.manual_seed(0)
    model = nn.Sequential(*[Loop(linear) for _ in range(5)]).double()
    text = str(audit(model, CPLRP(), torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)))
    assert text.count('for gated_linear_attention') == 3
    assert 'and 2 more' in text
