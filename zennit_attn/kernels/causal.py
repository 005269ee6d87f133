'''The causal product of linear attention in linear time, forward and backward.

Axis letters: ``b`` batch (all leading axes in one), ``n`` tokens, ``d`` key features, ``e`` value features.
'''
from contextlib import nullcontext
from importlib import import_module
from math import prod

import torch
from torch.nn.functional import pad
from torch.overrides import wrap_torch_function

from .checks import check_constant, shapes

CHUNK = 64  # of 32 to 256 the fastest on a CPU for d and e from 64 to 256
PIECES = 128  # the number, not the size, of the pieces in the article's reference


def _masked(scores, reverse):
    '''Keep the scores of a query with its past, or with its future if ``reverse``.'''
    return scores.triu_() if reverse else scores.tril_()


def _loop(q, k, v, reverse):
    '''One chunk after another with a running state: the least memory, and the fastest on a CPU.'''
    state = q.new_zeros(len(q), q.shape[2], v.shape[2])
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    spans = [slice(start, start + CHUNK) for start in range(0, q.shape[1], CHUNK)]
    for span in reversed(spans) if reverse else spans:
        query, key, value = q[:, span], k[:, span], v[:, span]
        out[:, span] = torch.baddbmm(query @ state, _masked(query @ key.mT, reverse), value)
        state.baddbmm_(key.mT, value)
    return out


def _before(states, reverse):
    '''Sum of the states of all earlier chunks: shifted, not subtracted, so that the future is exactly absent.'''
    if reverse:
        return _before(states.flip(1), False).flip(1)
    return pad(states.cumsum(1)[:, :-1], (0, 0, 0, 0, 1, 0))


def in_chunks(tensor, size):
    '''Cut ``tensor (b, n, ...)`` into chunks ``(b, m, size, ...)``, the last of them filled up with zeros.'''
    missing = -tensor.shape[1] % size
    whole = pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, missing)) if missing else tensor
    return whole.unflatten(1, (whole.shape[1] // size, size))


def _parallel(q, k, v, reverse):
    '''All chunks at once: few calls, as an accelerator needs, for ``n (CHUNK + d e / CHUNK)`` numbers of memory.'''
    length = q.shape[1]
    q, k, v = (in_chunks(tensor, CHUNK) for tensor in (q, k, v))
    out = _masked(q @ k.mT, reverse) @ v + q @ _before(k.mT @ v, reverse)
    return out.flatten(1, 2)[:, :length]


def _chunked(q, k, v, reverse=False):
    '''Masked products inside chunks of tokens, a running state of shape ``(d, e)`` between them.'''
    product = _loop if q.device.type == 'cpu' or q.shape[1] <= CHUNK else _parallel
    return product(q, k, v, reverse)


def _cumsum(q, k, v, reverse=False):
    '''The article's reference: a running sum of the outer products of every token.'''
    if reverse:
        return _cumsum(q.flip(1), k.flip(1), v.flip(1)).flip(1)
    state, outs = 0, []
    for query, key, value in zip(*(tensor.chunk(PIECES, dim=1) for tensor in (q, k, v)), strict=True):
        context = state + torch.einsum('bnd,bne->bnde', key, value).cumsum(1)
        outs.append(torch.einsum('bnde,bnd->bne', context, query))
        state = context[:, -1:]
    return torch.cat(outs, dim=1)


def _extension(device):
    '''EPFL's kernel for a type of device.'''
    try:
        kernel = import_module('fast_transformers.causal_product').CausalDotProduct.dot[device]
    except (ImportError, KeyError):
        kernel = None
    if kernel is None:
        raise ImportError(
            f"backend 'fast_transformers' has no kernel for {device!r} here: "
            'pip install --no-build-isolation --no-deps pytorch-fast-transformers'
        )
    return kernel


def _fast_transformers(q, k, v, reverse=False):
    '''EPFL's extension, which reads raw pointers: only float32, and contiguous along the last axis.'''
    if q.dtype != torch.float32:
        raise TypeError(f"backend 'fast_transformers' computes in float32 only, not in {q.dtype}")
    if reverse:
        return _fast_transformers(q.flip(1), k.flip(1), v.flip(1)).flip(1)
    kernel = _extension(q.device.type)
    q, k, v = (tensor[:, None].contiguous() for tensor in (q, k, v))
    out = torch.zeros_like(v)
    kernel(q.detach(), k.detach(), v.detach(), out)
    return out[:, 0]


BACKENDS = {'chunked': _chunked, 'cumsum': _cumsum, 'fast_transformers': _fast_transformers}


def backends(device='cpu'):
    '''Names of the backends of :func:`causal_dot_product` that work here; the first is the default.

    Parameters
    ----------
    device: str, optional
        Type of device, ``'cpu'`` or ``'cuda'``.

    Returns
    -------
    list of str
    '''
    try:
        _extension(device)
    except ImportError:
        return [name for name in BACKENDS if name != 'fast_transformers']
    return list(BACKENDS)


def select(backend, table):
    '''Look up a backend by name; ``None`` is the first of the table.'''
    backend = next(iter(table)) if backend is None else backend
    if backend not in table:
        raise ValueError(f'unknown backend {backend!r}, choose one of {", ".join(table)}')
    return table[backend]


def plain_precision(device):
    '''Context in which autocast does not lower the precision of running sums.'''
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def check_sequences(function, q, k, v):
    '''Refuse anything but real floating point ``q`` and ``k (..., n, d)`` and ``v (..., n, e)``.'''
    if q.ndim < 2 or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f'{function} needs q (..., n, d), k (..., n, d) and v (..., n, e), but got {shapes(q=q, k=k, v=v)}'
        )
    if not all(tensor.is_floating_point() for tensor in (q, k, v)):
        raise TypeError(f'{function} needs floating point tensors, but got {q.dtype}, {k.dtype} and {v.dtype}')


def working_dtype(*tensors):
    '''The common dtype of tensors, and the one to sum in: at least float32.'''
    common = tensors[0].dtype
    for tensor in tensors[1:]:
        common = torch.promote_types(common, tensor.dtype)
    return common, torch.promote_types(common, torch.float32)


def fold(tensor, dtype, axes=2):
    '''Put all leading axes into one, and keep the last ``axes``.'''
    return tensor.to(dtype).reshape(prod(tensor.shape[:-axes]), *tensor.shape[-axes:])


class CausalProduct(torch.autograd.Function):
    r'''The causal product by any forward kernel, whose three gradients are causal products themselves.

    With :math:`P(q, k, v)_i = \sum_{j \leq i} (q_i \cdot k_j) v_j` and :math:`P^\top` the same sum over
    :math:`j \geq i`, the gradients for an output gradient :math:`g` are

    .. math:: \bar v = P^\top(k, q, g) \qquad \bar q = P(g, v, k) \qquad \bar k = P^\top(v, g, q) .

    Only those that are asked for are computed: with constant ``q`` and ``k`` the backward pass is one product.
    Nothing but the inputs is kept in between.
    '''
    @staticmethod
    def forward(ctx, q, k, v, kernel, reverse):
        '''Causal product of ``q (b, n, d)``, ``k (b, n, d)`` and ``v (b, n, e)``.'''
        ctx.save_for_backward(q, k, v if any(ctx.needs_input_grad[:2]) else None)
        ctx.kernel, ctx.reverse = kernel, reverse
        with plain_precision(q.device.type):
            return kernel(q, k, v, reverse)

    @staticmethod
    def backward(ctx, grad):
        '''Gradients as causal products, which can be differentiated again.'''
        (q, k, v), (kernel, reverse) = ctx.saved_tensors, (ctx.kernel, ctx.reverse)
        need_q, need_k, need_v = ctx.needs_input_grad[:3]
        return (
            CausalProduct.apply(grad, v, k, kernel, reverse) if need_q else None,
            CausalProduct.apply(v, grad, q, kernel, not reverse) if need_k else None,
            CausalProduct.apply(k, q, grad, kernel, not reverse) if need_v else None,
            None,
            None,
        )


@wrap_torch_function(lambda q, k, v, backend=None: (q, k, v))
def causal_dot_product(q, k, v, backend=None):
    r'''Causal product of linear attention, in time and memory linear in the number of tokens.

    .. math:: o_i = \sum_{j \leq i} (q_i \cdot k_j) \, v_j

    It is trainable in all three operands, and the gradient of a constant operand costs nothing. A torch function mode
    sees a call as one operator.

    Parameters
    ----------
    q, k: torch.Tensor
        Queries and keys of shape ``(..., n, d)``, after their feature maps.
    v: torch.Tensor
        Values of shape ``(..., n, e)``.
    backend: str, optional
        ``'chunked'`` (the default, plain torch), ``'cumsum'`` (the article's reference, which needs ``d e`` numbers a
        token) or ``'fast_transformers'`` (EPFL's extension, float32 only).

    Returns
    -------
    torch.Tensor
        Outputs of shape ``(..., n, e)``. Half precision is summed in float32.
    '''
    kernel = select(backend, BACKENDS)
    check_sequences('causal_dot_product', q, k, v)
    common, working = working_dtype(q, k, v)
    out = CausalProduct.apply(*(fold(tensor, working) for tensor in (q, k, v)), kernel, False)
    return out.reshape(v.shape).to(common)


def causal_dot_product_values(q, k, v, backend=None):
    '''The causal product as a linear map of the values alone, with queries and keys as constant gates.

    Parameters and result are those of :func:`causal_dot_product`. The backward pass is a single transposed product,
    and ``q`` or ``k`` that require grad are refused.
    '''
    check_constant('causal_dot_product_values', q=q, k=k)
    return causal_dot_product(q, k, v, backend)
