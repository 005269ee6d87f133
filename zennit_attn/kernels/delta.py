'''The delta rule of fast weights (Schlag et al., 2021), step by step and in chunks.

Axis letters: ``b`` batch (all leading axes in one), ``m`` chunks, ``c`` tokens of a chunk, ``n`` tokens, ``d`` key
features, ``e`` value features.
'''
import torch
from torch.overrides import wrap_torch_function

from .causal import check_sequences, fold, in_chunks, plain_precision, select, working_dtype
from .checks import check_constant, shapes

CHUNK = 32  # of 16 to 128 the fastest on a CPU for d from 64 to 256


def _loop(q, k, v, beta):
    '''The recurrence as it is written, one step a token.'''
    state, outs = q.new_zeros(len(q), q.shape[2], v.shape[2]), []
    for query, key, value, gate in zip(*(tensor.unbind(1) for tensor in (q, k, v, beta)), strict=True):
        write = gate[:, None] * (value - torch.einsum('bde,bd->be', state, key))
        state = state + torch.einsum('bd,be->bde', key, write)
        outs.append(torch.einsum('bde,bd->be', state, query))
    return torch.stack(outs, dim=1) if outs else torch.zeros_like(v)


def _solve(k, beta):
    r'''What a chunk writes for its values, :math:`T = (I + \mathrm{tril}(\beta K K^\top, -1))^{-1} \beta`.

    A token writes :math:`u_i = \beta_i (v_i - S^\top k_i - \sum_{j<i} (k_j \cdot k_i) u_j)`, a triangular system with
    the solution :math:`U = T (V - K S)` for the state :math:`S` at the start of the chunk.
    '''
    system = beta[..., None] * (k @ k.mT)  # of which the diagonal and what is above are not read
    return torch.linalg.solve_triangular(system, torch.diag_embed(beta), upper=False, unitriangular=True)


def _product(v, q, k, solution):
    r'''Outputs :math:`O = Q S + \mathrm{tril}(Q K^\top) U` of chunks, which leave :math:`S + K^\top U` to the next.'''
    scores, reads, writes = (q @ k.mT).tril(), solution @ k, solution @ v
    state, outs = v.new_zeros(len(v), k.shape[-1], v.shape[-1]), []
    for chunk in range(v.shape[1]):
        write = torch.baddbmm(writes[:, chunk], reads[:, chunk], state, alpha=-1)
        outs.append(torch.baddbmm(q[:, chunk] @ state, scores[:, chunk], write))
        state = torch.baddbmm(state, k[:, chunk].mT, write)
    return torch.stack(outs, dim=1)


def _transposed(grad, q, k, solution):
    r'''The transpose of :func:`_product`, from the last chunk to the first.

    .. math:: \bar U = \mathrm{tril}(Q K^\top)^\top \bar O + K \bar S \qquad
              \bar S \leftarrow \bar S + Q^\top \bar O - (T K)^\top \bar U \qquad \bar V = T^\top \bar U
    '''
    scores, reads = (q @ k.mT).tril(), solution @ k
    writes, states = scores.mT @ grad, q.mT @ grad
    state, outs = torch.zeros_like(states[:, 0]), []
    for chunk in reversed(range(grad.shape[1])):
        outs.append(torch.baddbmm(writes[:, chunk], k[:, chunk], state))
        state = torch.baddbmm(state + states[:, chunk], reads[:, chunk].mT, outs[-1], alpha=-1)
    return solution.mT @ torch.stack(outs[::-1], dim=1)


class _Values(torch.autograd.Function):
    '''The chunked delta rule as a linear map of the values, and its transpose.'''
    @staticmethod
    def forward(ctx, v, q, k, solution, transposed):
        '''Apply the map, or its transpose, to ``v (b, m, c, e)``.'''
        ctx.save_for_backward(q, k, solution)
        ctx.transposed = transposed
        with plain_precision(v.device.type):
            return (_transposed if transposed else _product)(v, q, k, solution)

    @staticmethod
    def backward(ctx, grad):
        '''The other direction.'''
        return _Values.apply(grad, *ctx.saved_tensors, not ctx.transposed), None, None, None, None


def _chunked(q, k, v, beta):
    '''The recurrence over chunks of tokens, each solved at once. Zeros that fill the last chunk write nothing.'''
    length = v.shape[1]
    if not length:
        return torch.zeros_like(v)
    q, k, v, beta = (in_chunks(tensor, CHUNK) for tensor in (q, k, v, beta))
    solution = _solve(k, beta)
    constant = not (q.requires_grad or solution.requires_grad)
    out = _Values.apply(v, q, k, solution, False) if constant else _product(v, q, k, solution)
    return out.flatten(1, 2)[:, :length]


BACKENDS = {'chunked': _chunked, 'loop': _loop}


@wrap_torch_function(lambda q, k, v, beta, backend=None: (q, k, v, beta))
def delta_rule(q, k, v, beta, backend=None):
    r'''Delta rule of fast weights: each token corrects what the memory holds for its key, then reads its query.

    .. math:: S_i = S_{i-1} + \beta_i k_i (v_i - S_{i-1}^\top k_i)^\top \qquad o_i = S_i^\top q_i

    It is trainable in all operands. With constant ``q``, ``k`` and ``beta`` it is a linear map of the values, whose
    backward pass is the transposed recurrence alone. A torch function mode sees a call as one operator.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, after their feature maps.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    beta: torch.Tensor
        How much of the held value is replaced, shape ``(..., n)``.
    backend: str, optional
        ``'chunked'`` (the default) or ``'loop'`` (one step a token, the reference).

    Returns
    -------
    torch.Tensor
        Outputs of shape ``(..., n, e)``. Half precision is summed in float32.
    '''
    kernel = select(backend, BACKENDS)
    check_sequences('delta_rule', q, k, v)
    if beta.shape != v.shape[:-1]:
        raise ValueError(f'delta_rule needs beta (..., n) beside v (..., n, e), but got {shapes(beta=beta, v=v)}')
    common, working = working_dtype(q, k, v, beta)
    with plain_precision(v.device.type):
        out = kernel(*(fold(tensor, working) for tensor in (q, k, v)), fold(beta, working, axes=1))
    return out.reshape(v.shape).to(common)


def delta_rule_values(q, k, v, beta, backend=None):
    '''The delta rule as a linear map of the values alone, with queries, keys and betas as constant gates.

    Parameters and result are those of :func:`delta_rule`. The backward pass is the transposed recurrence, and gates
    that require grad are refused.
    '''
    check_constant('delta_rule_values', q=q, k=k, beta=beta)
    return delta_rule(q, k, v, beta, backend)
