'''Recurrences that are put together from the operators of linear attention: mLSTM, Based and ReBased.

The rules of what they are put together from are theirs: values carry relevance, and all that weighs them is constant.
'''
import torch
from torch.nn.functional import logsigmoid

from ..kernels.causal import causal_dot_product
from ..kernels.checks import check_mask, shapes
from ..kernels.recurrent import bounds_of, gated_linear_attention
from ..kernels.scan import running_maximum


def mlstm(q, k, v, input_gate, forget_gate, *, initial_state=None, mask=None, cu_seqlens=None, eps=1e-6,
          output_final_state=False):
    r'''The matrix memory of xLSTM: linear attention with exponential input gates and a normalizer that is bounded.

    .. math::
        C_i = \sigma(f_i) C_{i-1} + e^{z_i} k_i v_i^\top \qquad n_i = \sigma(f_i) n_{i-1} + e^{z_i} k_i \qquad
        h_i = \frac{C_i^\top q_i}{\max(|n_i^\top q_i|, 1)}

    with all of it scaled by :math:`e^{-m_i}`, where :math:`m_i = \max(\log \sigma(f_i) + m_{i-1}, z_i)`. The normalizer
    is a denominator, so a gate, and what remains is linear in the values.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``. Queries are scaled by ``d ** -0.5`` here, as published code does.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    input_gate, forget_gate: torch.Tensor
        The gates :math:`z` and :math:`f` before any function, of shape ``(..., n)``.
    initial_state: tuple of torch.Tensor, optional
        The memory ``(..., d, e)``, the normalizer ``(..., d)`` and the stabilizer ``(..., 1)`` before the first token.
        Default is zero. With ``cu_seqlens`` they have an axis of sequences before their last ones.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others write nothing and forget nothing.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends.
    eps: float, optional
        Added to the normalizer.
    output_final_state: bool, optional
        Whether to return the three after the last token too.

    Returns
    -------
    torch.Tensor, or a tuple of two
        Outputs of shape ``(..., n, e)``, and the last state.

    Raises
    ------
    ValueError
        For gates of another shape, and as :func:`gated_linear_attention`.
    '''
    if not input_gate.shape == forget_gate.shape == v.shape[:-1]:
        raise ValueError('mlstm needs gates of shape (..., n) beside v (..., n, e), but got '
                         f'{shapes(input_gate=input_gate, forget_gate=forget_gate, v=v)}')
    check_mask(mask, v.shape[:-1])
    if mask is not None:
        input_gate = input_gate.masked_fill(~mask, -torch.inf)
        forget_gate = forget_gate.masked_fill(~mask, torch.inf)
    bounds = bounds_of('mlstm', cu_seqlens, v.shape[-2])
    if bounds is not None:
        return _packed_mlstm(bounds, q, k, v, input_gate, forget_gate, initial_state, eps, output_final_state)
    state = _empty(q, v) if initial_state is None else initial_state
    memory, normalizer, first = state
    if not v.shape[-2]:
        return (torch.zeros_like(v), state) if output_final_state else torch.zeros_like(v)
    first = first[..., 0]
    loss = logsigmoid(forget_gate)
    maximum = running_maximum(input_gate, loss, first)
    before = torch.cat([first.detach().double()[..., None], maximum[..., :-1]], -1)
    decay = (loss.double() + before - maximum).clamp(max=0.).to(v.dtype)
    keys = k * (input_gate.double() - maximum).exp().to(k.dtype)[..., None]
    q = q * q.shape[-1] ** -0.5
    out, memory = gated_linear_attention(q, keys, v, decay, initial_state=memory, output_final_state=True)
    total, normalizer = gated_linear_attention(
        q, keys, torch.ones_like(v[..., :1]).detach(), decay, output_final_state=True,
        initial_state=normalizer[..., None])
    least = (-maximum).exp().to(total.dtype)[..., None]
    out = out / (torch.maximum(total.abs(), least) + eps)
    if not output_final_state:
        return out
    return out, (memory, normalizer[..., 0], maximum[..., -1:].to(memory.dtype))


def _empty(q, v):
    '''The state of no tokens.'''
    lead, features = v.shape[:-2], q.shape[-1]
    return q.new_zeros(*lead, features, v.shape[-1]), q.new_zeros(*lead, features), q.new_zeros(*lead, 1)


def _packed_mlstm(bounds, q, k, v, input_gate, forget_gate, initial_state, eps, output_final_state):
    '''One sequence after the other.'''
    axes, outs, lasts = (-3, -2, -2), [], []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        state = None if initial_state is None else tuple(
            part.select(axis, number) for part, axis in zip(initial_state, axes, strict=True))
        out, last = mlstm(*(each[..., start:end, :] for each in (q, k, v)), input_gate[..., start:end],
                          forget_gate[..., start:end], initial_state=state, eps=eps, output_final_state=True)
        outs.append(out)
        lasts.append(last)
    out = torch.cat(outs, -2)
    if not output_final_state:
        return out
    return out, tuple(torch.stack(parts, axis) for parts, axis in zip(zip(*lasts, strict=True), axes, strict=True))


def polynomial_attention(q, k, v, coefficients=(1., 1., 0.5), *, mask=None, cu_seqlens=None, normalize=True, eps=1e-6):
    r'''Causal linear attention whose weights are a polynomial of degree 2: Based and ReBased.

    .. math:: o_i = \frac{\sum_{j \leq i} p(q_i \cdot k_j) v_j}{\sum_{j \leq i} p(q_i \cdot k_j) + \epsilon}
              \qquad p(s) = c_0 + c_1 s + c_2 s^2

    with products of features as features, :math:`(q \cdot k)^2 = (q \otimes q) \cdot (k \otimes k)`.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, scaled.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    coefficients: tuple of three float, optional
        :math:`c_0, c_1, c_2`. Default is the exponential's expansion, as in Based; ``(0, 0, 1)`` is ReBased.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others write nothing.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends.
    normalize: bool, optional
        Whether to divide by the sum of the weights.
    eps: float, optional
        Added to it.

    Returns
    -------
    torch.Tensor
        Outputs of shape ``(..., n, e)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`causal_dot_product`, for a mask that is not boolean or of another shape, and for ``cu_seqlens`` that
        do not cover the tokens.
    '''
    check_mask(mask, v.shape[:-1])
    bounds = bounds_of('polynomial_attention', cu_seqlens, v.shape[-2])
    if bounds is not None:
        spans = [slice(start, end) for start, end in zip(bounds, bounds[1:], strict=False)]
        return torch.cat([polynomial_attention(
            *(each[..., span, :] for each in (q, k, v)), coefficients, normalize=normalize, eps=eps,
            mask=None if mask is None else mask[..., span]) for span in spans], -2)
    constant, linear, square = coefficients

    def features(x, weights):
        parts = [x.new_ones(*x.shape[:-1], 1), x, (x[..., :, None] * x[..., None, :]).flatten(-2)]
        return torch.cat([part * weight for part, weight in zip(parts, weights, strict=True) if weight], -1)
    q, k = features(q, (constant, linear, square)), features(k, (bool(constant), bool(linear), bool(square)))
    k = k if mask is None else k.masked_fill(~mask[..., None], 0.)
    out = causal_dot_product(q, k, v)
    if not normalize:
        return out
    return out / (causal_dot_product(q, k, torch.ones_like(v[..., :1]).detach()) + eps)
