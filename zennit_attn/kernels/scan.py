'''Linear recurrences of single features: RG-LRU, HGRN, minGRU, the sums of RWKV-4, and the selective scan of Mamba.

Axis letters: ``b`` batch (all leading axes in one), ``m`` chunks, ``c`` tokens of a chunk, ``n`` tokens, ``d``
features, ``s`` states of a feature.
'''
from math import isqrt

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.overrides import wrap_torch_function

from .causal import fold, in_chunks, plain_precision, select, working_dtype
from .checks import check_mask, shapes
from .recurrent import bounds_of


def _loop(x, keep, state):
    '''The recurrence as it is written, one step a token.'''
    outs = []
    for value, factor in zip(x.unbind(1), keep.unbind(1), strict=True):
        state = factor * state + value
        outs.append(state)
    return torch.stack(outs, 1) if outs else torch.zeros_like(x)


def _scan(x, keep, state):
    '''As many chunks as tokens in a chunk: first all chunks at once from an empty state, then what each is left.'''
    length = x.shape[1]
    x, keep = (in_chunks(tensor, isqrt(max(length - 1, 0)) + 1) for tensor in (x, keep))
    own, kept = [x[:, :, 0]], [keep[:, :, 0]]
    for token in range(1, x.shape[2]):
        own.append(torch.addcmul(x[:, :, token], keep[:, :, token], own[-1]))
        kept.append(keep[:, :, token] * kept[-1])
    starts = [state]
    for chunk in range(x.shape[1] - 1):
        starts.append(torch.addcmul(own[-1][:, chunk], kept[-1][:, chunk], starts[-1]))
    out = torch.addcmul(torch.stack(own, 2), torch.stack(kept, 2), torch.stack(starts, 1)[:, :, None])
    return out.flatten(1, 2)[:, :length]


class _Values(torch.autograd.Function):
    '''The recurrence as a linear map of what is added and of the first state. Backward in time it is its transpose.'''
    @staticmethod
    def forward(ctx, x, state, keep):
        '''Apply the map to ``x (b, n, d)`` and ``state (b, d)``.'''
        ctx.save_for_backward(keep)
        with plain_precision(x.device.type):
            return _scan(x, keep, state)

    @staticmethod
    def backward(ctx, grad):
        '''What arrives at a token is what it is read by, and what its heir has kept of it.'''
        keep, = ctx.saved_tensors
        later = pad(keep[:, 1:], (0, 0, 0, 1)).flip(1)
        arrived = _Values.apply(grad.flip(1), torch.zeros_like(grad[:, 0]), later).flip(1)
        return arrived, keep[:, 0] * arrived[:, 0], None


def _chunked(x, keep, state):
    if not x.shape[1]:
        return torch.zeros_like(x)
    return _scan(x, keep, state) if keep.requires_grad else _Values.apply(x, state, keep)


BACKENDS = {'chunked': _chunked, 'loop': _loop}


@wrap_torch_function(lambda x, keep, *, initial_state=None, **_: (x, keep, initial_state))
def linear_recurrence(x, keep, *, initial_state=None, mask=None, cu_seqlens=None, output_final_state=False,
                      backend=None):
    r'''Linear recurrence of single features: RG-LRU (Griffin), HGRN, minGRU, S5 and LRU with real states.

    .. math:: h_i = a_i \odot h_{i-1} + x_i

    It is trainable in all operands, in time and memory linear in the number of tokens. With :math:`a` constant it is a
    linear map of :math:`x` and the first state, whose backward pass is the same recurrence backward in time. A torch
    function mode sees a call as one operator.

    Parameters
    ----------
    x: torch.Tensor
        What is added, of shape ``(..., n, d)``.
    keep: torch.Tensor
        The factors :math:`a`, of shape ``(..., n, d)``. These are no logarithms: zero forgets all.
    initial_state: torch.Tensor, optional
        The state before the first token, shape ``(..., d)``; with ``cu_seqlens`` ``(..., s, d)``.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others add nothing and forget nothing.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends.
    output_final_state: bool, optional
        Whether to return the state after the last token too.
    backend: str, optional
        ``'chunked'`` (the default) or ``'loop'`` (one step a token, the reference).

    Returns
    -------
    torch.Tensor, or a tuple of two
        States of shape ``(..., n, d)``, and the last state. Half precision is summed in float32, which is also the type
        of the last state.

    Raises
    ------
    ValueError
        For shapes that do not fit together, ``cu_seqlens`` that do not cover the tokens, and an unknown backend.
    TypeError
        For what is not floating point, and a mask that is not boolean.
    '''
    kernel = select(backend, BACKENDS)
    if x.ndim < 2 or x.shape != keep.shape:
        raise ValueError('linear_recurrence needs x (..., n, d) and keep (..., n, d), but got '
                         f'{shapes(x=x, keep=keep)}')
    if not (x.is_floating_point() and keep.is_floating_point()):
        raise TypeError(f'linear_recurrence needs floating point tensors, but got {x.dtype} and {keep.dtype}')
    check_mask(mask, x.shape[:-1])
    lead, (length, width) = x.shape[:-2], x.shape[-2:]
    bounds = bounds_of('linear_recurrence', cu_seqlens, length)
    expected = (*lead, width) if bounds is None else (*lead, len(bounds) - 1, width)
    if initial_state is not None and initial_state.shape != expected:
        raise ValueError(f'linear_recurrence needs initial_state {expected}, but got '
                         f'{shapes(initial_state=initial_state)}')
    given = [tensor for tensor in (x, keep, initial_state) if tensor is not None]
    common, working = working_dtype(*given)
    if mask is not None:
        x, keep = x.masked_fill(~mask[..., None], 0.), keep.masked_fill(~mask[..., None], 1.)
    bounds = [0, length] if bounds is None else bounds
    states = x.new_zeros(expected) if initial_state is None else initial_state
    states = fold(states.reshape(*lead, len(bounds) - 1, width), working)
    x, keep, outs, lasts = fold(x, working), fold(keep, working), [], []
    with plain_precision(x.device.type):
        for state, start, end in zip(states.unbind(1), bounds, bounds[1:], strict=False):
            outs.append(kernel(x[:, start:end], keep[:, start:end], state))
            lasts.append(outs[-1][:, -1] if end > start else state)
    out = (outs[0] if len(outs) == 1 else torch.cat(outs, 1)).reshape(*lead, length, width).to(common)
    return (out, torch.stack(lasts, 1).reshape(expected)) if output_final_state else out


BLOCK = 2 ** 21  # of the numbers that the states of some features have over all tokens


def _states(x, dt, rates, keys, state):
    '''All states, shape ``(b, n, d, s)``, and what of each is kept.'''
    keep = (dt[..., None] * rates).exp()
    written = (dt * x)[..., None] * keys
    return _scan(written.flatten(2), keep.flatten(2), state.flatten(1)).unflatten(2, keep.shape[2:]), keep


def _read(x, dt, rates, keys, queries, state):
    states, _ = _states(x, dt, rates, keys, state)
    return (states * queries).sum(-1), states[:, -1]


class _Scan(torch.autograd.Function):
    '''The selective scan as a linear map of its input and the first state. States are not kept, but computed again.'''
    @staticmethod
    def forward(ctx, x, state, dt, rates, keys, queries):
        '''Apply the map to ``x (b, n, d)`` and ``state (b, d, s)``.'''
        ctx.save_for_backward(dt, rates, keys, queries)
        with plain_precision(x.device.type):
            return _read(x, dt, rates, keys, queries, state)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, state):
        '''The recurrence backward in time, from what arrives at the last state.'''
        dt, rates, keys, queries = ctx.saved_tensors
        keep = (dt[..., None] * rates).exp()
        arriving = grad[..., None] * queries
        arriving[:, -1] += state
        later = pad(keep[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1).flatten(2)
        with plain_precision(grad.device.type):
            arrived = _scan(arriving.flip(1).flatten(2), later, torch.zeros_like(later[:, 0]))
        arrived = arrived.unflatten(2, keep.shape[2:]).flip(1)
        return dt * (arrived * keys).sum(-1), keep[:, 0] * arrived[:, 0], None, None, None, None


def _in_blocks(x, dt, rates, keys, queries, state):
    '''Some features after the other.'''
    constant = not any(tensor.requires_grad for tensor in (dt, rates, keys, queries))
    size = max(1, BLOCK // max(1, len(x) * x.shape[1] * rates.shape[1]))
    parts = [(x[..., span], state[:, span], dt[..., span], rates[span],
              *(each if each.shape[2] == 1 else each[:, :, span] for each in (keys, queries)))
             for start in range(0, x.shape[2], size) for span in [slice(start, start + size)]]
    results = [_Scan.apply(*part) if constant else _read(part[0], *part[2:], part[1]) for part in parts]
    outs, lasts = zip(*results, strict=True)
    return torch.cat(outs, 2), torch.cat(lasts, 1)


def _token_by_token(x, dt, rates, keys, queries, state):
    outs = []
    for token in range(x.shape[1]):
        write = (dt * x)[:, token, :, None] * keys[:, token]
        state = (dt[:, token, :, None] * rates).exp() * state + write
        outs.append((state * queries[:, token]).sum(-1))
    return torch.stack(outs, 1), state


SCANS = {'chunked': _in_blocks, 'loop': _token_by_token}


@wrap_torch_function(lambda x, dt, A, B, C, *, initial_state=None, **_: (x, dt, A, B, C, initial_state))
def selective_scan(x, dt, A, B, C, *, initial_state=None, mask=None, cu_seqlens=None, output_final_state=False,
                   backend=None):
    r'''Selective scan of Mamba: each feature has `s` states, with one rate of decay each.

    .. math:: h_i = e^{\Delta_i A} \odot h_{i-1} + \Delta_i x_i B_i \qquad y_i = C_i^\top h_i

    It is trainable in all operands, in time and memory linear in the number of tokens. With the other operands constant
    it is a linear map of :math:`x` and the first state, whose backward pass is the same recurrence backward in time. A
    torch function mode sees a call as one operator. The skip connection `D` and the gate `z` are not a part of it.

    Parameters
    ----------
    x: torch.Tensor
        Inputs of shape ``(..., n, d)``.
    dt: torch.Tensor
        Steps of shape ``(..., n, d)``, after their softplus.
    A: torch.Tensor
        Rates of shape ``(d, s)``, at most 0.
    B, C: torch.Tensor
        Keys and queries of shape ``(..., n, s)``, or ``(..., n, d, s)`` for each feature.
    initial_state: torch.Tensor, optional
        The states before the first token, shape ``(..., d, s)``; with ``cu_seqlens`` ``(..., p, d, s)`` for `p`
        sequences.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others write nothing and forget nothing.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends.
    output_final_state: bool, optional
        Whether to return the states after the last token too.
    backend: str, optional
        ``'chunked'`` (the default) or ``'loop'`` (one step a token, the reference).

    Returns
    -------
    torch.Tensor, or a tuple of two
        Outputs of shape ``(..., n, d)``, and the last states. Half precision is summed in float32, which is also the
        type of the states.

    Raises
    ------
    ValueError
        For shapes that do not fit together, and an unknown backend.
    TypeError
        For what is not floating point.
    '''
    kernel = select(backend, SCANS)
    if x.ndim < 2 or x.shape != dt.shape or A.ndim != 2 or len(A) != x.shape[-1]:
        raise ValueError('selective_scan needs x (..., n, d), dt (..., n, d) and A (d, s), but got '
                         f'{shapes(x=x, dt=dt, A=A)}')
    lead, (length, width), states = x.shape[:-2], x.shape[-2:], A.shape[1]
    if any(each.shape not in ((*lead, length, states), (*lead, length, width, states)) for each in (B, C)):
        raise ValueError('selective_scan needs B and C of shape (..., n, s) or (..., n, d, s), but got '
                         f'{shapes(B=B, C=C)} beside {shapes(x=x, A=A)}')
    check_mask(mask, x.shape[:-1])
    bounds = bounds_of('selective_scan', cu_seqlens, length)
    expected = (*lead, width, states) if bounds is None else (*lead, len(bounds) - 1, width, states)
    if initial_state is not None and initial_state.shape != expected:
        raise ValueError(f'selective_scan needs initial_state {expected}, but got '
                         f'{shapes(initial_state=initial_state)}')
    given = [tensor for tensor in (x, dt, A, B, C, initial_state) if tensor is not None]
    if not all(tensor.is_floating_point() for tensor in given):
        raise TypeError('selective_scan needs floating point tensors, but got '
                        f'{", ".join(str(tensor.dtype) for tensor in given)}')
    common, working = working_dtype(*given)
    dt = dt if mask is None else dt.masked_fill(~mask[..., None], 0.)
    bounds = [0, length] if bounds is None else bounds
    firsts = x.new_zeros(expected) if initial_state is None else initial_state
    firsts = fold(firsts.reshape(*lead, len(bounds) - 1, width, states), working, axes=3)
    keys, queries = (fold(each if each.ndim > x.ndim else each[..., None, :], working, axes=3) for each in (B, C))
    values, steps, rates, outs, lasts = fold(x, working), fold(dt, working), A.to(working), [], []
    with plain_precision(x.device.type):
        for first, start, end in zip(firsts.unbind(1), bounds, bounds[1:], strict=False):
            span = [each[:, start:end] for each in (values, steps, keys, queries)]
            out, last = kernel(span[0], span[1], rates, *span[2:], first) if span[0].numel() else (
                torch.zeros_like(span[0]), first)
            outs.append(out)
            lasts.append(last)
    out = (outs[0] if len(outs) == 1 else torch.cat(outs, 1)).reshape(x.shape).to(common)
    return (out, torch.stack(lasts, 1).reshape(expected)) if output_final_state else out


def running_maximum(gain, loss, first):
    r'''The stabilizer :math:`m_i = \max(f_i + m_{i-1}, z_i)` of tokens along the last axis, in float64.

    As :math:`m_i = F_i + \max(m_0, \max_{j \leq i} z_j - F_j)` with the sums :math:`F` of the :math:`f`. It divides
    numerator and denominator alike, so it is a constant.
    '''
    gain, loss, first = (each.detach().double() for each in (gain, loss, first))
    total = loss.cumsum(-1)
    return total + torch.maximum((gain - total).cummax(-1).values, first[..., None])


@wrap_torch_function(lambda k, v, decay, bonus, *, initial_state=None, normalizer=None, maximum=None, **_: (
    k, v, decay, bonus, initial_state, normalizer, maximum))
def wkv(k, v, decay, bonus, *, initial_state=None, normalizer=None, maximum=None, mask=None, cu_seqlens=None,
        output_final_state=False):
    r'''The attention of RWKV-4: a weighted mean of the values, of each feature by itself.

    .. math:: o_i = \frac{\sum_{j<i} e^{(i - 1 - j) w + k_j} v_j + e^{u + k_i} v_i}
                         {\sum_{j<i} e^{(i - 1 - j) w + k_j} + e^{u + k_i}}

    Numerator and denominator are scaled by :math:`e^{-m_i}` with the running maximum :math:`m` of the exponents. With
    keys and weights constant it is a linear map of the values and of the first numerator. A torch function mode sees a
    call as one operator.

    Parameters
    ----------
    k, v: torch.Tensor
        Keys and values of shape ``(..., n, d)``.
    decay, bonus: torch.Tensor
        The weights :math:`w`, below 0, and :math:`u`, of shape ``(d,)``.
    initial_state, normalizer, maximum: torch.Tensor, optional
        The numerator, the denominator and :math:`m` before the first token, each of shape ``(..., d)``; all or none.
        With ``cu_seqlens`` they are of shape ``(..., s, d)`` for `s` sequences.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others write nothing and forget nothing, and return zero.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends.
    output_final_state: bool, optional
        Whether to return these three after the last token too.

    Returns
    -------
    torch.Tensor, or a tuple of four
        Outputs of shape ``(..., n, d)``, and the last numerator, denominator and maximum.

    Raises
    ------
    ValueError
        For shapes that do not fit together, and some but not all of the first three.
    '''
    if k.shape != v.shape or not decay.shape == bonus.shape == k.shape[-1:]:
        raise ValueError('wkv needs k and v (..., n, d), decay and bonus (d,), but got '
                         f'{shapes(k=k, v=v, decay=decay, bonus=bonus)}')
    check_mask(mask, v.shape[:-1])
    bounds = bounds_of('wkv', cu_seqlens, v.shape[-2])
    lead, width = v.shape[:-2], v.shape[-1]
    shape = (*lead, width) if bounds is None else (*lead, len(bounds) - 1, width)
    given = [each for each in (initial_state, normalizer, maximum) if each is not None]
    if given and (len(given) < 3 or any(each.shape != shape for each in given)):
        raise ValueError(f'wkv needs initial_state, normalizer and maximum of shape {shape}, or none of them')
    states = given or [v.new_zeros(shape), v.new_zeros(shape), v.new_full(shape, -1e38)]
    bounds, axis = ([0, v.shape[-2]], None) if bounds is None else (bounds, -2)
    outs, lasts = [], []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        state = states if axis is None else [each.select(axis, number) for each in states]
        out, *last = _weighted_means(*(each[..., start:end, :] for each in (k, v)), decay, bonus, state,
                                     None if mask is None else mask[..., start:end]) if end > start else (
            torch.zeros_like(v[..., start:end, :]), *state)
        outs.append(out)
        lasts.append(last)
    out = torch.cat(outs, -2)
    if not output_final_state:
        return out
    return out, *(lasts[0] if axis is None else (torch.stack(parts, axis) for parts in zip(*lasts, strict=True)))


def _weighted_means(k, v, decay, bonus, state, mask):
    numerator, denominator, first = state
    loss = decay[:, None].expand(*k.mT.shape)
    if mask is not None:
        k, loss = k.masked_fill(~mask[..., None], -torch.inf), loss.masked_fill(~mask[..., None, :], 0.)
    highest = running_maximum(k.mT, loss, first).mT
    before = torch.cat([first.detach().double()[..., None, :], highest[..., :-1, :]], -2)
    keep, write = ((each - highest).exp().to(v.dtype) for each in (before + loss.mT.double(), k.double()))
    numerators, last = linear_recurrence(write * v, keep, initial_state=numerator, output_final_state=True)
    denominators, total = linear_recurrence(write, keep, initial_state=denominator, output_final_state=True)
    larger = torch.maximum(before, k.double() + bonus.double())
    held, own = ((each - larger).exp().to(v.dtype) for each in (before, k.double() + bonus.double()))
    above, below = (torch.cat([each.to(v.dtype)[..., None, :], rest[..., :-1, :]], -2)
                    for each, rest in ((numerator, numerators), (denominator, denominators)))
    above, below = held * above + own * v, held * below + own
    if mask is not None:
        above, below = above.masked_fill(~mask[..., None], 0.), below.masked_fill(~mask[..., None], 1.)
    return above / below, last, total, highest[..., -1, :].to(last.dtype)
