'''Published functions of linear attention and delta rules, which have heads behind tokens: `q (b, n, h, d)`.'''
import torch
from torch.nn.functional import sigmoid, softplus

from ...attention.recurrences import polynomial_attention
from ...kernels import gated_delta_rule, gated_linear_attention, general_delta_rule
from .functions import Published
from .layers import FLA

NAMES = {'query': 'q', 'key': 'k', 'value': 'v', 'r': 'q'}


def _heads_first(*tensors):
    return [None if tensor is None else tensor.transpose(1, 2) for tensor in tensors]


def _repeated(tensor, heads):
    '''Heads that several others share, once for each of these.'''
    if tensor is None or tensor.shape[2] == heads:
        return tensor
    return tensor.repeat_interleave(heads // tensor.shape[2], dim=2)


def _normalized(*tensors):
    return (each * (each * each).sum(-1, keepdim=True).add(1e-6).rsqrt() for each in tensors)


def _scaled(q, scale):
    return q * (q.shape[-1] ** -0.5 if scale is None else scale)


def _applied(function, inputs, initial_state, cu_seqlens, output_final_state, state_v_first=False):
    '''Run an operator on sequences with heads behind tokens.'''
    dtype, state = inputs[2].dtype, initial_state
    inputs = _heads_first(*inputs)
    if state is not None:
        state = state.mT if state_v_first else state
        state = state if cu_seqlens is None else state.transpose(0, 1)[None]
    out, last = function(*inputs, initial_state=state, cu_seqlens=cu_seqlens, output_final_state=True)
    last = last if cu_seqlens is None else last[0].transpose(0, 1)
    last = last.mT if state_v_first else last
    return out.transpose(1, 2).to(dtype), last if output_final_state else None


def _decay_of_heads(g_gamma, v):
    return g_gamma.to(v.dtype).expand(*v.shape[:3])


def linear_attention(q, k, v, g=None, gk=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False,
                     state_v_first=False, cu_seqlens=None):
    '''GLA with a decay of each key feature, and retention and its like with one of each head.'''
    decay = g if gk is None else gk
    if decay is None and g_gamma is not None:
        decay = _decay_of_heads(g_gamma, v)
    if decay is not None and (gk is not None and g is not None or g_gamma is not None and g is not None):
        return NotImplemented
    heads = max(each.shape[2] for each in (q, k, v))
    q, k, v, decay = (_repeated(each, heads) for each in (q, k, v, decay))
    return _applied(gated_linear_attention, (_scaled(q, scale), k, v, decay), initial_state, cu_seqlens,
                    output_final_state, state_v_first)


def weights_of_linear_attention(q, k, v, g=None, scale=None, cu_seqlens=None):
    '''A function that computes the weights of all pairs of tokens, and returns them on request.'''
    return linear_attention(q, k, v, g=g, scale=scale, cu_seqlens=cu_seqlens)[0], None


def retention(q, k, v, scale=None, initial_state=None, output_final_state=False, state_v_first=False,
              cu_seqlens=None):
    '''Retention: the decays are those of its article, by the number of the head.'''
    rates = (1 - 2. ** (-5. - torch.arange(q.shape[2], dtype=torch.float64, device=q.device))).log()
    return linear_attention(q, k, v, g_gamma=rates, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
                            output_final_state=output_final_state, state_v_first=state_v_first)


def weights_of_retention(q, k, v, scale=None, cu_seqlens=None):
    '''Retention by the weights of all pairs of tokens.'''
    return retention(q, k, v, scale, cu_seqlens=cu_seqlens)[0], None


def lightning_attention(q, k, v, layer_idx, num_layers, scale=None, initial_state=None, output_final_state=False,
                        cu_seqlens=None):
    '''Lightning attention: decays by the number of the head and of the layer.'''
    heads = torch.arange(q.shape[2], dtype=torch.float64, device=q.device)
    rates = -(8 / q.shape[2] * (1 - layer_idx / num_layers)) * heads
    return linear_attention(q, k, v, g_gamma=rates, scale=scale, initial_state=initial_state, cu_seqlens=cu_seqlens,
                            output_final_state=output_final_state)


def plain_linear_attention(q, k, v, scale=None, initial_state=None, output_final_state=False, normalize=True,
                           cu_seqlens=None):
    '''Linear attention that forgets nothing, divided by the sum of its weights.'''
    if cu_seqlens is not None and normalize:
        return NotImplemented
    state, total = initial_state if isinstance(initial_state, (tuple, list)) else (initial_state, None)
    q = _scaled(q, scale)
    out, last = linear_attention(q, k, v, scale=1., initial_state=state, output_final_state=output_final_state,
                                 cu_seqlens=cu_seqlens)
    if not normalize:
        return out, last
    totals = k.detach().cumsum(1) + (0. if total is None else total)
    out = out / ((q.detach() * totals).sum(-1, keepdim=True) + 1e-10)
    return out, (last, totals[:, -1:])


def rwkv6(q, k, v, w, u, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    '''RWKV-6: a token reads before it forgets, and itself by a bonus.'''
    dtype = v.dtype
    q, k, v, w = _heads_first(_scaled(q, scale), k, v, w)
    state = initial_state if initial_state is None or cu_seqlens is None else initial_state.transpose(0, 1)[None]
    out, last = gated_linear_attention(q, k, v, w, u[..., None, :], initial_state=state, cu_seqlens=cu_seqlens,
                                       output_final_state=True)
    last = last if cu_seqlens is None else last[0].transpose(0, 1)
    return out.transpose(1, 2).to(dtype), last if output_final_state else None


def delta_rule(q, k, v, beta, g=None, gk=None, scale=None, initial_state=None, output_final_state=False,
               use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False,
               allow_neg_eigval=False, A_log=None, dt_bias=None, lower_bound=None, state_v_first=False,
               cu_seqlens=None):
    '''The delta rule, gated delta nets with a decay of each head, and Kimi's with one of each key feature.'''
    decay = g if gk is None else gk
    if g is not None and gk is not None:
        return NotImplemented
    if use_gate_in_kernel:
        decay = _gate(decay, A_log, dt_bias, lower_bound)
    beta = torch.ones_like(v[..., 0]) if beta is None else beta
    if beta.ndim != 3:
        return NotImplemented
    if use_beta_sigmoid_in_kernel:
        beta = sigmoid(beta) * (2. if allow_neg_eigval else 1.)
    heads = v.shape[2]
    q, k = (_repeated(each, heads) for each in (q, k))
    if use_qk_l2norm_in_kernel:
        q, k = _normalized(q, k)
    return _applied(gated_delta_rule, (_scaled(q, scale), k, v, beta, decay), initial_state, cu_seqlens,
                    output_final_state, state_v_first)


def _gate(g, rates, bias, bound):
    '''The decay of Kimi's delta attention and of gated delta nets, from what the network computes for it.'''
    heads = g.shape[2]
    by_key = g.ndim == 4
    if bias is not None:
        g = g + (bias.view(heads, -1) if by_key else bias)
    rates = None if rates is None else (rates.view(heads, 1) if by_key else rates.view(heads)).exp()
    if bound is not None:
        return bound * sigmoid(g if rates is None else rates * g)
    return -rates * softplus(g)


def general(q, k, v, a, b, gk=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None,
            lower_bound=None):
    '''The delta rule with one key to read and another to write by, and with or without a decay of each key feature.

    The bound of the decays is a hint for the kernel.
    '''
    return _applied(general_delta_rule, (_scaled(q, scale), k, v, a, b, gk), initial_state, cu_seqlens,
                    output_final_state)


def comba(q, k, v, p, g, beta=None, scale=None, initial_state=None, output_final_state=False,
          use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    '''Comba reads what it corrects by another key than it writes by.'''
    if use_qk_l2norm_in_kernel:
        q, k, p = _normalized(q, k, p)
    written = k if beta is None else k * beta[..., None]
    return _applied(general_delta_rule, (_scaled(q, scale), written, v, p * g.exp()[..., None], -written, g),
                    initial_state, cu_seqlens, output_final_state)


def delta_product(q, k, v, g, beta, num_householder, scale=None, initial_state=None, output_final_state=False,
                  use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    '''Several steps of the delta rule for each token, of which the first forgets, and the last reads.'''
    if use_qk_l2norm_in_kernel:
        q, k = _normalized(q, k)

    def at_step(tensor, step):
        steps = [torch.zeros_like(tensor) for _ in range(num_householder)]
        steps[step] = tensor
        return torch.stack(steps, 2).flatten(1, 2)
    q, g = at_step(_scaled(q, scale), num_householder - 1), None if g is None else at_step(g, 0)
    bounds = None if cu_seqlens is None else [number * num_householder for number in cu_seqlens.tolist()]
    out, last = _applied(gated_delta_rule, (q, k, v, beta, g), initial_state, bounds, output_final_state)
    return out[:, num_householder - 1::num_householder], last


def rwkv7(q, w, k, v, a, b, scale=1., initial_state=None, output_final_state=True, cu_seqlens=None, lower_bound=None):
    '''RWKV-7 is the general delta rule.'''
    return general(q, k, v, a, b, w, scale, initial_state, output_final_state, cu_seqlens)


def rwkv7_of_two(q, w, k, v, kk, a, scale=1., initial_state=None, output_final_state=False, cu_seqlens=None):
    '''The same, which multiplies two of its arguments itself.'''
    return general(q, k, v, -kk, kk * a, w, scale, initial_state, output_final_state, cu_seqlens)


def rwkv7_mixed(hidden_states, delta, xr, xw, xk, xv, xa, xg=None):
    '''The inputs of the projections of RWKV-7: each token, and some of the difference to the one before.'''
    return tuple(None if each is None else hidden_states + delta * each for each in (xr, xw, xk, xv, xa, xg))


def rwkv7_keys(k, a, ka):
    '''The keys of RWKV-7.'''
    return k + k * (a - 1) * ka


def rwkv7_output(o, q, k, r_k, v, g):
    '''What a token of RWKV-7 says of itself, and its gate. Only the value carries relevance.'''
    own = _heads_first((q * r_k), k, v)
    forgets = torch.full_like(own[2][..., 0], -torch.inf)
    own = gated_linear_attention(*own, forgets).transpose(1, 2)
    return (o + own.reshape(o.shape)) * g


def rwkv7_channels(x, x_prev, x_k, key_weight, value_weight):
    '''The other half of a block of RWKV-7.'''
    before = torch.cat([x_prev.reshape(len(x), 1, -1), x[:, :-1]], 1)
    hidden = (x + (before - x) * x_k) @ key_weight
    return hidden.relu() ** 2 @ value_weight, x[-1, :]


def additive_gate(x, initial_state=None, cu_seqlens=None, output_dtype=None, gate_dtype=None):
    '''Keys that are divided by the sum of all so far, the logarithm of what is kept then, and that of the sum.'''
    if cu_seqlens is not None:
        return NotImplemented
    x = x if initial_state is None else torch.cat([initial_state, x], 1)
    total = x.logcumsumexp(1)
    keys, gates = (x - total).exp(), total[:, :-1] - total[:, 1:]
    if initial_state is None:
        gates = torch.cat([torch.zeros_like(total[:, :1]).detach(), gates], 1)
    else:
        keys = keys[:, 1:]
    return keys.to(output_dtype or x.dtype), gates.to(gate_dtype or x.dtype), total[:, -1:]


def light_net(q, k, v, scale=None, initial_state=None, output_final_state=False, state_v_first=False, cu_seqlens=None):
    '''LightNet: gated linear attention with these.'''
    state, total = (None, None) if initial_state is None else initial_state
    gates = additive_gate(k, total, cu_seqlens)
    if gates is NotImplemented:
        return NotImplemented
    keys, decay, total = gates
    out, last = linear_attention(q, keys, v, decay, scale=scale, initial_state=state, state_v_first=state_v_first,
                                 output_final_state=output_final_state)
    return out, (last, total)


def based(q, k, v, scale=None, use_norm=True):
    '''Based: weights that are the expansion of an exponential.'''
    q, k, v = _heads_first(_scaled(q, scale), k, v)
    return polynomial_attention(q, k, v, normalize=use_norm).transpose(1, 2)


def rebased(q, k, v, eps=1e-5, use_scale=True, use_normalize=True):
    '''ReBased: weights that are squares.'''
    q, k, v = _heads_first(_scaled(q, None if use_scale else 1.), k, v)
    return polynomial_attention(q, k, v, (0., 0., 1.), normalize=use_normalize, eps=eps).transpose(1, 2)


def slots(q, k, v, s, initial_state=None, output_final_state=False):
    '''Attention with bounded memory control.'''
    return gated_slots(q, k, v, s, None, initial_state=initial_state, output_final_state=output_final_state)


def gated_slots(q, k, v, s, g=None, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    '''Gated slot attention: the scores of slots, which decay, and after a softmax what is written to them.'''
    heads = q.shape[2]
    if g is None:
        s, g, _ = additive_gate(s)
    k, v, s, g = (_repeated(each, heads) for each in (k, v, s, g))
    if initial_state is not None or cu_seqlens is not None or output_final_state:
        return NotImplemented
    # Each slot is a head of one value that decays by itself.
    q, k, v, s, g = _heads_first(_scaled(q, scale), k, v, s, g)
    slots = s.shape[-1]
    by_slot = (each[:, :, None].expand(-1, -1, slots, -1, -1) for each in (q, k))
    scores = gated_linear_attention(*by_slot, s.mT[..., None], g.mT)[..., 0].mT
    return gated_linear_attention(scores.softmax(-1), s, v, g).transpose(1, 2), None


_QKV = frozenset('qkv')
ROWS = (
    Published(r'.*_comba', _QKV | {'p', 'g', 'beta'}, comba, NAMES),
    Published(r'.*_gated_delta_product', _QKV | {'g', 'beta', 'num_householder'}, delta_product, NAMES),
    Published(r'.*_(dplr|iplr)_delta_rule', _QKV | {'a', 'b'}, general, NAMES),
    Published(r'.*(gated_delta_rule|delta_attention|_kda|_delta_rule)', _QKV | {'beta'}, delta_rule, NAMES),
    Published(r'.*_mul_recurrent_rwkv7', _QKV | {'w', 'kk', 'a'}, rwkv7_of_two, NAMES),
    Published(r'.*_rwkv7', _QKV | {'w', 'a', 'b'}, rwkv7, NAMES),
    Published(r'.*_rwkv6', _QKV | {'w', 'u'}, rwkv6, NAMES),
    Published(r'(fused_)?(chunk|recurrent)_(simple_)?gla|fused_(chunk|recurrent)_(simple_)?gla', _QKV, linear_attention,
              NAMES),
    Published(r'parallel_simple_gla', _QKV, weights_of_linear_attention, NAMES),
    Published(r'(fused_)?(chunk|recurrent)_retention', _QKV, retention, NAMES),
    Published(r'parallel_retention', _QKV, weights_of_retention, NAMES),
    Published(r'(fused_)?(chunk|recurrent)_lightning_attn', _QKV | {'layer_idx', 'num_layers'}, lightning_attention,
              NAMES),
    Published(r'(fused_)?(chunk|recurrent)_linear_attn', _QKV, plain_linear_attention, NAMES),
    Published(r'fused_addcmul_rwkv7', frozenset({'hidden_states', 'delta', 'xr'}), rwkv7_mixed),
    Published(r'fused_k_rwkv7', frozenset({'k', 'a', 'ka'}), rwkv7_keys, packages=FLA),
    Published(r'gate_output_correction', frozenset({'o', 'q', 'k', 'r_k', 'v', 'g'}), rwkv7_output, NAMES),
    Published(r'channel_mixing_rwkv7', frozenset({'x', 'x_prev', 'x_k'}), rwkv7_channels, packages=FLA),
    Published(r'fused_additive_gate', frozenset({'x', 'gate_dtype'}), additive_gate, packages=FLA),
    Published(r'chunk_lightnet', _QKV, light_net, NAMES, packages=FLA),
    Published(r'(parallel|fused_chunk)_based', _QKV, based, NAMES),
    Published(r'parallel_rebased', _QKV, rebased, NAMES),
    Published(r'chunk_abc', _QKV | {'s'}, slots, packages=FLA),
    Published(r'(chunk|fused_recurrent)_gsa', _QKV | {'s', 'g'}, gated_slots, NAMES),
)
