'''Published functions of state spaces: Mamba, Mamba-2, and the kernels that run a whole layer.'''
import torch
from einops import rearrange
from torch.nn import functional
from torch.nn.functional import silu, softplus

from ...kernels import gated_linear_attention, selective_scan
from .functions import Published
from .layers import causal_convolution, gated_norm

NAMES = {'hidden_states': 'x', 'u': 'x', 'delta': 'dt', 'conv1d_weights': 'conv1d_weight'}


def _steps(dt, bias, is_softplus, limit=None):
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    dt = softplus(dt) if is_softplus else dt
    return dt if limit is None else torch.clamp(dt, min=limit[0], max=limit[1])


# ---- Mamba-2: a rate of each head ------------------------------------------------------------------------------------

def _state_space(x, steps, rates, keys, queries, skip, gate, state, cu_seqlens=None, starts=None):
    '''The state space of Mamba-2, from its values `x (b, n, h, p)`, `steps (b, n, h)`, `rates (h,)`, and `B` and `C` of
    shape `(b, n, g, s)`, its keys and queries.'''
    keys, queries = (each.repeat_interleave(x.shape[2] // each.shape[2], dim=2).transpose(1, 2)
                     for each in (keys, queries))
    steps = steps.transpose(1, 2)
    decay = rates[:, None] * steps
    if starts is not None:
        decay = decay.masked_fill(starts[:, None], -torch.inf)
    out, last = gated_linear_attention(
        queries, keys * steps[..., None], x.transpose(1, 2), decay, output_final_state=True, cu_seqlens=cu_seqlens,
        initial_state=None if state is None else state.mT)
    out = out.transpose(1, 2).to(x.dtype).contiguous()  # some view it in another shape
    if skip is not None:
        out = out + x * (skip if skip.ndim == 2 else skip[:, None])
    return out if gate is None else out * silu(gate), last.mT


def _starts(seq_idx):
    '''Which tokens are the first of a sequence that is packed with others in a row.'''
    if seq_idx is None:
        return None
    return torch.cat([torch.zeros_like(seq_idx[:, :1], dtype=torch.bool), seq_idx[:, 1:] != seq_idx[:, :-1]], 1)


def chunk_scan(x, dt, A, B, C, chunk_size=None, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None,
               cu_seqlens=None, dt_softplus=False, dt_limit=None, return_final_states=False,
               return_varlen_states=False):
    '''All tokens of Mamba-2.'''
    if x.ndim != 4 or A.ndim != 1 or return_varlen_states:
        return NotImplemented
    out, last = _state_space(x, _steps(dt, dt_bias, dt_softplus, dt_limit), A, B, C, D, z, initial_states,
                             starts=_starts(seq_idx))
    return (out, last) if return_final_states else out


def chunk_scan_of_all(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size=None, initial_states=None,
                      seq_idx=None, dt_limit=None, return_final_states=False, activation='silu', rmsnorm_weight=None,
                      rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1,
                      norm_before_gate=True):
    '''A layer of Mamba-2 behind its first projection: convolution, scan, norm and last projection.'''
    if seq_idx is not None:
        return NotImplemented
    heads, width = (len(D), headdim) if D.ndim == 1 else D.shape
    inner = heads * width
    states = (zxbcdt.shape[-1] - 2 * inner - heads) // (2 * ngroups)
    z, mixed, dt = zxbcdt.split([inner, inner + 2 * ngroups * states, heads], dim=-1)
    mixed = causal_convolution(mixed.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation).transpose(1, 2)
    x, keys, queries = mixed.split([inner, ngroups * states, ngroups * states], dim=-1)
    x = rearrange(x, 'b n (h p) -> b n h p', h=heads)
    keys, queries = (rearrange(each, 'b n (g s) -> b n g s', g=ngroups) for each in (keys, queries))
    gate = rearrange(z, 'b n (h p) -> b n h p', h=heads) if rmsnorm_weight is None else None
    out, last = _state_space(x, _steps(dt, dt_bias, True, dt_limit), A, keys, queries, D, gate, initial_states)
    out = rearrange(out, 'b n h p -> b n (h p)')
    if rmsnorm_weight is not None:
        out = gated_norm(out, rmsnorm_weight, None, z, rmsnorm_eps, None, norm_before_gate)
    if outproj_weight is not None:
        out = functional.linear(out, outproj_weight, outproj_bias)
    return (out, last) if return_final_states else out


# ---- Mamba: a rate of each state -------------------------------------------------------------------------------------

def _per_token(tensor, groups_of=None):
    '''`B` or `C` with tokens before states: of `(b, s, n)`, or of `(b, g, s, n)` for each of `groups_of` features.'''
    if tensor.ndim == 3:
        return tensor.transpose(1, 2)
    return rearrange(tensor, 'b g s n -> b n g s').repeat_interleave(groups_of // tensor.shape[1], dim=2)


def scan(x, dt, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    '''All tokens of Mamba, with features before tokens: `x (b, d, n)`.'''
    if A.is_complex() or A.ndim != 2 or B.ndim < 3 or C.ndim < 3:
        return NotImplemented
    dt = softplus(dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[:, None]) if delta_softplus else (
        dt if delta_bias is None else dt + delta_bias.to(dt.dtype)[:, None])
    out, last = selective_scan(x.transpose(1, 2), dt.transpose(1, 2), A, _per_token(B, x.shape[1]),
                               _per_token(C, x.shape[1]), output_final_state=True)
    out = out.transpose(1, 2).to(x.dtype)
    if D is not None:
        out = out + x * D[:, None]
    if z is not None:
        out = out * silu(z)
    return (out, last) if return_last_state else out


def whole_layer(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias, A,
                B=None, C=None, D=None, delta_bias=None, delta_softplus=True, b_rms_weight=None,
                c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6):
    '''A layer of Mamba behind its first projection.'''
    if A.is_complex() or B is not None or C is not None or (
            any(each is not None for each in (b_rms_weight, c_rms_weight, dt_rms_weight))):
        return NotImplemented
    x, z = xz.chunk(2, dim=1)
    x = causal_convolution(x, conv1d_weight.squeeze(1), conv1d_bias, activation='silu')
    mixed = functional.linear(x.transpose(1, 2), x_proj_weight)
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    dt, keys, queries = mixed.split([rank, states, states], dim=-1)
    dt = functional.linear(dt, delta_proj_weight).transpose(1, 2)
    out = scan(x, dt, A, keys.transpose(1, 2), queries.transpose(1, 2), D, z, delta_bias, delta_softplus)
    return functional.linear(out.transpose(1, 2), out_proj_weight, out_proj_bias)


def state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    '''One token of either: Mamba-2 with heads, `x (b, h, p)` and `state (b, h, p, s)`, or Mamba without.'''
    steps = _steps(dt, dt_bias, dt_softplus)
    if state.ndim == 3:
        out, last = selective_scan(x[:, None], steps[:, None], A, B[:, None], C[:, None], initial_state=state,
                                   output_final_state=True)
        out = out[:, 0].to(x.dtype)
        out = out if D is None else out + x * D
        return out if z is None else out * silu(z), (last,)
    out, last = _state_space(x[:, None], steps[:, None, :, 0], A[:, 0, 0], B[:, None], C[:, None], D,
                             None if z is None else z[:, None], state)
    return out[:, 0], (last,)


_SCAN = frozenset({'dt', 'A', 'B', 'C'})
ROWS = (
    Published(r'.*chunk_scan(_combined)?', _SCAN | {'x', 'chunk_size'}, chunk_scan, NAMES),
    Published(r'.*split_conv1d_scan_combined', frozenset({'zxbcdt', 'conv1d_weight', 'A', 'D'}), chunk_scan_of_all,
              NAMES),
    Published(r'.*selective_scan(_fn|_ref)?', _SCAN | {'x', 'delta_softplus'}, scan, NAMES),
    Published(r'mamba_inner_(fn|ref)', frozenset({'xz', 'conv1d_weight', 'x_proj_weight', 'A'}), whole_layer, NAMES),
    Published(r'.*selective_state_update(_ref)?', _SCAN | {'state', 'x', 'dt_softplus'}, state_update, NAMES,
              ('state',)),
)
