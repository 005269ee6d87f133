'''Linear attention that forgets, and the delta rule that forgets, step by step and in chunks.

Axis letters: ``b`` batch (all leading axes in one), ``m`` chunks, ``c`` tokens of a chunk, ``n`` tokens, ``d`` key
features, ``e`` value features, ``w`` decays of a token: ``d``, or 1 for all features.
'''
import torch
from torch.nn.functional import pad
from torch.overrides import wrap_torch_function

from .causal import check_sequences, fold, in_chunks, plain_precision, select, working_dtype
from .checks import check_mask, shapes

CHUNK = 32  # a power of two


def _loop(q, k, v, decay, state, beta, bonus, a, b):
    '''The recurrence as it is written, one step a token.'''
    outs = []
    for i in range(v.shape[1]):
        query, key, value = q[:, i], k[:, i], v[:, i]
        before, state = state, decay[:, i].exp()[..., None] * state
        if beta is not None:
            value = beta[:, i, None] * (value - torch.einsum('bde,bd->be', state, key))
        write = torch.einsum('bd,be->bde', key, value)
        if a is not None:
            write = write + torch.einsum('bd,be->bde', b[:, i], torch.einsum('bde,bd->be', before, a[:, i]))
        state = state + write
        read = state if bonus is None else before + bonus[:, i, :, None] * write
        outs.append(torch.einsum('bde,bd->be', read, query))
    return torch.stack(outs, dim=1) if outs else torch.zeros_like(v), state


def _after(decay):
    '''Sums of the decays of all later tokens. Nothing is subtracted, so that a decay may be minus infinity.'''
    return pad(decay[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def _until(decay, early):
    '''Sums of the decays of all earlier tokens, and of the token itself if it forgets before it reads.'''
    return pad(decay[..., :-1, :], (0, 0, 1, 0)).cumsum(-2) if early else decay.cumsum(-2)


def _scores(rows, columns, decay, early=False):
    r'''Decayed products :math:`\sum_d x_{id} y_{jd} \exp \sum_{j<l\leq i} g_{ld}` for :math:`j \leq i`, else 0.

    Blocks of twice the size are put together from blocks: what lies below their diagonal is a product of rows that
    decay from the middle, and columns that decay up to it. All exponents are sums of decays, so none overflows.
    '''
    blocks = (rows * columns).sum(-1)[..., None, None]
    while blocks.shape[2] > 1:
        late, first = (tensor.unflatten(2, (blocks.shape[2] // 2, 2, -1))[:, :, :, half]
                       for tensor, half in ((rows, 1), (columns, 0)))
        forget = decay.unflatten(2, (blocks.shape[2] // 2, 2, -1))
        below = (late * _until(forget[:, :, :, 1], early).exp()) @ (first * _after(forget[:, :, :, 0]).exp()).mT
        upper, lower = blocks.unflatten(2, (-1, 2)).unbind(3)
        blocks = torch.cat([pad(upper, (0, upper.shape[-1])), torch.cat([below, lower], -1)], -2)
    return blocks[:, :, 0]


def _decayed(decay, early=False):
    '''A function for :func:`_scores` of rows and columns. With one decay for all features, these are decayed once.'''
    if decay.shape[-1] > 1:
        return lambda rows, columns: _scores(rows, columns, decay, early)
    one = torch.ones_like(decay)
    kept = _scores(one, one, decay, early)
    return lambda rows, columns: (rows @ columns.mT) * kept


def _gates(q, k, decay, beta, bonus, a, b):
    r'''All that weighs values and states in chunks of tokens, of which none depends on them.

    With the state :math:`S` at the start of a chunk and the values :math:`V`, a chunk is

    .. math:: U = T V - H S \qquad O = R S + A U \qquad S \leftarrow \mathrm{diag}(a) S + W^\top U .

    Returns :math:`A, R, W, a`, and for a delta rule :math:`T` and :math:`H`.
    '''
    if a is not None:
        return _general_gates(q, k, decay, a, b)
    early = bonus is not None
    products = _decayed(decay, early)
    scores = products(q, k)
    if early:
        scores = scores.tril(-1) + torch.diag_embed((q * bonus * k).sum(-1))
    gates = scores, q * _until(decay, early).exp(), k * _after(decay).exp(), decay.sum(2).exp()[..., None]
    if beta is None:
        return gates
    system = beta[..., None] * products(k, k)  # of which the diagonal and what is above are not read
    solution = torch.linalg.solve_triangular(system, torch.diag_embed(beta), upper=False, unitriangular=True)
    return (*gates, solution, solution @ (k * decay.cumsum(2).exp()))


def _general_gates(q, k, decay, a, b):
    r'''The same, where :math:`U` has the values of a chunk, and below them what its tokens read of the memory by `a`.

    The latter are :math:`P = \mathrm{tril}(a b^\top, -1) P + \mathrm{tril}(a k^\top, -1) V + a S`, a triangular system.
    '''
    size, written = q.shape[2], torch.cat([k, b], 2)
    late, early = _decayed(decay), _decayed(decay, True)
    scores = torch.cat([late(q, k), late(q, b)], -1)
    system, held = -early(a, b), a * _until(decay, True).exp()
    known = torch.cat([early(a, k).tril(-1), held], -1)
    known = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
    solution = torch.cat([torch.eye(size, dtype=q.dtype, device=q.device).expand_as(known[..., :size]),
                          known[..., :size]], 2)
    held = torch.cat([torch.zeros_like(held), -known[..., size:]], 2)
    return (scores, q * _until(decay, False).exp(), written * _after(decay).exp().repeat(1, 1, 2, 1),
            decay.sum(2).exp()[..., None], solution, held)


def _product(v, state, scores, reads, writes, keeps, solution=None, held=None):
    '''Outputs and the last state, from the first chunk to the last. See :func:`_gates`.'''
    written, outs = v if solution is None else solution @ v, []
    for chunk in range(v.shape[1]):
        write = written[:, chunk]
        if held is not None:
            write = torch.baddbmm(write, held[:, chunk], state, alpha=-1)
        outs.append(torch.baddbmm(reads[:, chunk] @ state, scores[:, chunk], write))
        state = torch.baddbmm(keeps[:, chunk] * state, writes[:, chunk].mT, write)
    return torch.stack(outs, dim=1), state


def _transposed(grad, state, scores, reads, writes, keeps, solution=None, held=None):
    r'''The transpose of :func:`_product`, from the last chunk to the first.

    .. math:: \bar U = A^\top \bar O + W \bar S \qquad
              \bar S \leftarrow \mathrm{diag}(a) \bar S + R^\top \bar O - H^\top \bar U \qquad \bar V = T^\top \bar U
    '''
    outputs, states, outs = scores.mT @ grad, reads.mT @ grad, []
    for chunk in reversed(range(grad.shape[1])):
        outs.append(torch.baddbmm(outputs[:, chunk], writes[:, chunk], state))
        state = keeps[:, chunk] * state + states[:, chunk]
        if held is not None:
            state = torch.baddbmm(state, held[:, chunk].mT, outs[-1], alpha=-1)
    written = torch.stack(outs[::-1], dim=1)
    return written if solution is None else solution.mT @ written, state


class _Values(torch.autograd.Function):
    '''A recurrence in chunks as a linear map of values and first state, and its transpose.'''
    @staticmethod
    def forward(ctx, v, state, transposed, *gates):
        '''Apply the map, or its transpose, to ``v (b, m, c, e)`` and ``state (b, d, e)``.'''
        ctx.save_for_backward(*gates)
        ctx.transposed = transposed
        with plain_precision(v.device.type):
            return (_transposed if transposed else _product)(v, state, *gates)

    @staticmethod
    def backward(ctx, grad, state):
        '''The other direction.'''
        gates = ctx.saved_tensors
        return *_Values.apply(grad, state, not ctx.transposed, *gates), None, *[None for _ in gates]


def _chunked(q, k, v, decay, state, *others):
    '''The recurrence over chunks of tokens. Zeros that fill the last chunk write nothing and forget nothing.'''
    length = v.shape[1]
    if not length:
        return torch.zeros_like(v), state
    q, k, v, decay, *others = (None if tensor is None else in_chunks(tensor, CHUNK)
                               for tensor in (q, k, v, decay, *others))
    gates = _gates(q, k, decay, *others)
    if any(gate.requires_grad for gate in gates):
        out, state = _product(v, state, *gates)
    else:
        out, state = _Values.apply(v, state, False, *gates)
    return out.flatten(1, 2)[:, :length], state


BACKENDS = {'chunked': _chunked, 'loop': _loop}


def _check(function, q, k, v, decay, state, bonus, mask, bounds):
    check_sequences(function, q, k, v)
    if decay is not None and decay.shape not in (v.shape[:-1], q.shape):
        raise ValueError(f'{function} needs decay (..., n) or (..., n, d) beside q (..., n, d), but got '
                         f'{shapes(decay=decay, q=q)}')
    lead = v.shape[:-2] if bounds is None else (*v.shape[:-2], len(bounds) - 1)
    expected = (*lead, q.shape[-1], v.shape[-1])
    if state is not None and state.shape != expected:
        raise ValueError(f'{function} needs initial_state {expected}, but got {shapes(initial_state=state)}')
    if bonus is not None and torch.broadcast_shapes(bonus.shape, q.shape) != q.shape:
        raise ValueError(f'{function} needs a bonus that broadcasts to q, but got {shapes(bonus=bonus, q=q)}')
    check_mask(mask, v.shape[:-1])


def bounds_of(function, cu_seqlens, length):
    '''Where packed sequences start and end, as numbers, or None.'''
    if cu_seqlens is None:
        return None
    bounds = cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else list(cu_seqlens)
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != length or bounds != sorted(bounds):
        raise ValueError(f'{function} needs cu_seqlens that ascend from 0 to the number of tokens, {length}, but got '
                         f'{bounds}')
    return bounds


def _run(function, q, k, v, decay, initial_state, mask, cu_seqlens, output_final_state, backend, beta=None, bonus=None,
         a=None, b=None):
    kernel, bounds = select(backend, BACKENDS), bounds_of(function, cu_seqlens, v.shape[-2] if v.ndim > 1 else 0)
    _check(function, q, k, v, decay, initial_state, bonus, mask, bounds)
    given = [tensor for tensor in (q, k, v, decay, beta, bonus, a, b, initial_state) if tensor is not None]
    common, working = working_dtype(*given)
    decay = q.new_zeros(v.shape[:-1]) if decay is None else decay
    decay = decay[..., None] if decay.shape == v.shape[:-1] else decay
    if mask is not None:
        k, decay, b = (None if each is None else each.masked_fill(~mask[..., None], 0.) for each in (k, decay, b))
    lead, (length, features), width = v.shape[:-2], q.shape[-2:], v.shape[-1]
    bounds = [0, length] if bounds is None else bounds
    states = q.new_zeros(*lead, len(bounds) - 1, features, width, dtype=working) if initial_state is None else (
        initial_state.to(working).reshape(*lead, len(bounds) - 1, features, width))
    bonus = None if bonus is None else fold(bonus.expand_as(q), working)
    q, k, v, decay = (fold(tensor, working) for tensor in (q, k, v, decay))
    a, b = (None if each is None else fold(each, working) for each in (a, b))
    beta = None if beta is None else fold(beta, working, axes=1)
    states = states.reshape(len(v), len(bounds) - 1, features, width)
    outs, lasts = [], []
    with plain_precision(v.device.type):
        for state, start, end in zip(states.unbind(1), bounds, bounds[1:], strict=False):
            out, last = kernel(q[:, start:end], k[:, start:end], v[:, start:end], decay[:, start:end], state,
                               *(None if each is None else each[:, start:end] for each in (beta, bonus, a, b)))
            outs.append(out)
            lasts.append(last)
    out = (outs[0] if len(outs) == 1 else torch.cat(outs, 1)).reshape(*lead, length, width).to(common)
    if not output_final_state:
        return out
    last = torch.stack(lasts, 1).reshape(*lead, len(lasts), features, width)
    return out, last if cu_seqlens is not None else last.squeeze(-3)


@wrap_torch_function(lambda q, k, v, decay=None, bonus=None, *, initial_state=None, **_: (
    q, k, v, decay, bonus, initial_state))
def gated_linear_attention(q, k, v, decay=None, bonus=None, *, initial_state=None, mask=None, cu_seqlens=None,
                           output_final_state=False, backend=None):
    r'''Linear attention whose memory decays: retention, GLA, lightning attention, Mamba-2 (SSD), RWKV-5 and -6.

    .. math:: S_i = \mathrm{diag}(e^{g_i}) S_{i-1} + k_i v_i^\top \qquad o_i = S_i^\top q_i

    With a bonus :math:`u` a token reads the memory from before it, and itself:
    :math:`o_i = (S_{i-1} + \mathrm{diag}(u) k_i v_i^\top)^\top q_i`, as RWKV does.

    It is trainable in all operands, in time and memory linear in the number of tokens. With the other operands constant
    it is a linear map of the values and the first state, whose backward pass is the transposed recurrence alone. A
    torch function mode sees a call as one operator.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, scaled and after their feature maps.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    decay: torch.Tensor, optional
        The logarithms :math:`g` of what a token keeps of the memory, at most 0, of shape ``(..., n)``, or
        ``(..., n, d)`` for each key feature. Minus infinity forgets all. Without it nothing is forgotten.
    bonus: torch.Tensor, optional
        Weights :math:`u` of a token's own key, of any shape that broadcasts to ``q``.
    initial_state: torch.Tensor, optional
        The memory before the first token, shape ``(..., d, e)``; with ``cu_seqlens`` ``(..., s, d, e)``, one for each
        of ``s`` sequences.
    mask: torch.Tensor, optional
        Of booleans, shape ``(..., n)``: the others write nothing and forget nothing.
    cu_seqlens: torch.Tensor or list of int, optional
        Where packed sequences start, and the last ends: ``[0, 3, 10]`` for two of 3 and 7 tokens.
    output_final_state: bool, optional
        Whether to return the memory after the last token too.
    backend: str, optional
        ``'chunked'`` (the default) or ``'loop'`` (one step a token, the reference).

    Returns
    -------
    torch.Tensor, or a tuple of two
        Outputs of shape ``(..., n, e)``, and the last memory. Half precision is summed in float32, which is also the
        type of the memory.

    Raises
    ------
    ValueError
        For shapes that do not fit together, ``cu_seqlens`` that do not cover the tokens, and an unknown backend.
    TypeError
        For queries, keys or values that are not floating point, and a mask that is not boolean.
    '''
    return _run('gated_linear_attention', q, k, v, decay, initial_state, mask, cu_seqlens, output_final_state, backend,
                bonus=bonus)


@wrap_torch_function(lambda q, k, v, beta, decay=None, *, initial_state=None, **_: (
    q, k, v, beta, decay, initial_state))
def gated_delta_rule(q, k, v, beta, decay=None, *, initial_state=None, mask=None, cu_seqlens=None,
                     output_final_state=False, backend=None):
    r'''Delta rule whose memory decays: gated delta nets, and Kimi delta attention with a decay for each key feature.

    .. math:: \tilde S_i = \mathrm{diag}(e^{g_i}) S_{i-1} \qquad
              S_i = \tilde S_i + \beta_i k_i (v_i - \tilde S_i^\top k_i)^\top \qquad o_i = S_i^\top q_i

    The memory decays first, and is corrected then. All else is as in :func:`gated_linear_attention`.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, normalized and scaled.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    beta: torch.Tensor
        How much of the held value is replaced, shape ``(..., n)``.
    decay: torch.Tensor, optional
        The logarithms :math:`g` of what a token keeps of the memory, at most 0, of shape ``(..., n)`` or
        ``(..., n, d)``. Without it this is :func:`delta_rule`.
    initial_state, mask, cu_seqlens, output_final_state, backend
        As in :func:`gated_linear_attention`.

    Returns
    -------
    torch.Tensor, or a tuple of two
        Outputs of shape ``(..., n, e)``, and the last memory.

    Raises
    ------
    ValueError, TypeError
        As in :func:`gated_linear_attention`, and for betas of another shape.
    '''
    if beta.shape != v.shape[:-1]:
        raise ValueError(f'gated_delta_rule needs beta (..., n) beside v (..., n, e), but got {shapes(beta=beta, v=v)}')
    return _run('gated_delta_rule', q, k, v, decay, initial_state, mask, cu_seqlens, output_final_state, backend,
                beta=beta)


@wrap_torch_function(lambda q, k, v, a, b, decay=None, *, initial_state=None, **_: (
    q, k, v, a, b, decay, initial_state))
def general_delta_rule(q, k, v, a, b, decay=None, *, initial_state=None, mask=None, cu_seqlens=None,
                       output_final_state=False, backend=None):
    r'''Delta rule that reads the memory by one key and corrects it under another: RWKV-7, DPLR and IPLR.

    .. math:: S_i = (\mathrm{diag}(e^{g_i}) + b_i a_i^\top) S_{i-1} + k_i v_i^\top \qquad o_i = S_i^\top q_i

    What is read by :math:`a` is the memory before it decays. With :math:`a_i = e^{g_i} k_i` and
    :math:`b_i = -\beta_i k_i`, and :math:`\beta_i k_i` in the place of the key, this is :func:`gated_delta_rule`. All
    else is as in :func:`gated_linear_attention`.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, scaled.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    a, b: torch.Tensor
        By what the memory is read, and under what that is written back, shape ``(..., n, d)``.
    decay: torch.Tensor, optional
        The logarithms :math:`g` of what a token keeps of the memory, at most 0, of shape ``(..., n)`` or
        ``(..., n, d)``.
    initial_state, mask, cu_seqlens, output_final_state, backend
        As in :func:`gated_linear_attention`.

    Returns
    -------
    torch.Tensor, or a tuple of two
        Outputs of shape ``(..., n, e)``, and the last memory.

    Raises
    ------
    ValueError, TypeError
        As in :func:`gated_linear_attention`, and for ``a`` and ``b`` of another shape than ``q``.
    '''
    if not q.shape == a.shape == b.shape:
        raise ValueError('general_delta_rule needs a (..., n, d) and b (..., n, d) beside q (..., n, d), but got '
                         f'{shapes(a=a, b=b, q=q)}')
    return _run('general_delta_rule', q, k, v, decay, initial_state, mask, cu_seqlens, output_final_state, backend,
                a=a, b=b)
