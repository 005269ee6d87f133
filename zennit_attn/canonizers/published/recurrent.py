'''Published functions of recurrences of single features, and of xLSTM.'''
import torch

from ...attention.recurrences import mlstm
from ...kernels import linear_recurrence, wkv
from .functions import Published

GATES = {'query': 'q', 'key': 'k', 'value': 'v', 'i': 'igate', 'f': 'fgate', 'vecI': 'igate', 'vecF': 'fgate'}


#: What RWKV-4 keeps of the past.
STATES = ('initial_state', 'normalizer', 'maximum')


def hgrn(x, g, initial_state=None, output_final_state=False, cu_seqlens=None):
    '''HGRN, `x (b, n, d)`: what is added, and the logarithms of what is kept.'''
    state = initial_state if initial_state is None or cu_seqlens is None else initial_state[None]
    out, last = linear_recurrence(x, g.exp(), initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens)
    last = last if cu_seqlens is None else last[0]
    return out, last if output_final_state else None


def real_gated_unit(hidden_states, recurrent_gate, reset, recurrent_states, acc_dtype=None):
    '''The RG-LRU of Griffin: `reset` says where another document starts.'''
    if recurrent_states is None and hidden_states.shape[1] == 1:
        return hidden_states, hidden_states[:, 0]
    keep = recurrent_gate * ~reset
    state = None if recurrent_states is None else recurrent_states.to(hidden_states.dtype)
    out, last = linear_recurrence(hidden_states, keep, initial_state=state, output_final_state=True)
    return out.to(hidden_states.dtype), last


def root(x):
    '''A root whose gradient is bounded, for training.'''
    return x.sqrt()


def rwkv4(time_decay, time_first, key, value, state=None, return_state=False):
    '''RWKV-4 in transformers.'''
    first = {} if state is None else dict(zip(STATES, state, strict=True))
    out, *last = wkv(key, value, -time_decay.exp(), time_first, **first, output_final_state=True)
    return out.to(key.dtype), last if return_state or state is not None else None


def rwkv4_of_fla(w, u, k, v, state):
    '''RWKV-4 in fla, which has the three parts of a state in one tensor `(b, 3, 1, d)`.'''
    first = {name: each[:, 0] for name, each in zip(STATES, state.unbind(1), strict=True)}
    out, *last = wkv(k, v, -w.exp(), u, **first, output_final_state=True)
    return out, torch.stack(last, 1)[:, :, None]


def memory(q, k, v, igate, fgate, c_initial=None, n_initial=None, m_initial=None, return_last_states=False,
           eps=1e-6):
    '''The matrix memory of xLSTM, with heads before tokens.'''
    state = None if c_initial is None else (c_initial, n_initial, m_initial.reshape(*c_initial.shape[:2], 1))
    out, last = mlstm(q, k, v, igate, fgate, initial_state=state, eps=eps, output_final_state=True)
    out = out.to(q.dtype)
    return (out, last) if return_last_states else out


def memory_in_pieces(q, k, v, fgate, igate, c_initial=None, n_initial=None, m_initial=None, return_last_states=True,
                     eps=1e-6):
    '''What divides a sequence among several functions for the memory of xLSTM.'''
    return memory(q, k, v, igate, fgate, c_initial, n_initial, m_initial, return_last_states, eps)


def memory_of_one_token(q, k, v, igate, fgate, cstate, nstate, mstate, eps=1e-6):
    '''One token, `q (b, h, d)`.'''
    q, k, v = (each[:, :, None] for each in (q, k, v))
    out, last = mlstm(q, k, v, igate, fgate, initial_state=(cstate, nstate, mstate), eps=eps, output_final_state=True)
    return out[:, :, 0].to(q.dtype), last


_MEMORY = frozenset({'q', 'k', 'v', 'igate', 'fgate'})
ROWS = (
    Published(r'(chunk|fused_recurrent)_hgrn', frozenset('xg'), hgrn),
    Published(r'_?rnn_scan', frozenset({'hidden_states', 'recurrent_gate', 'reset', 'recurrent_states'}),
              real_gated_unit),
    Published(r'SqrtBoundDerivative', frozenset(), root, packages=frozenset({'transformers'})),
    Published(r'rwkv_linear_attention(_cpu)?', frozenset({'time_decay', 'time_first', 'key', 'value'}), rwkv4),
    Published(r'fused_recurrent_rwkv4', frozenset({'w', 'u', 'k', 'v', 'state'}), rwkv4_of_fla),
    Published(r'wrap_chunkwise_\w+', _MEMORY, memory_in_pieces, GATES),
    Published(r'mlstm_(chunkwise|parallel|recurrent_sequence)_\w*', _MEMORY, memory, GATES),
    Published(r'mlstm_recurrent_step_\w*', _MEMORY | {'cstate', 'nstate', 'mstate'}, memory_of_one_token, GATES),
)
