'''Softmax attention with a constant map, as an autograd function that keeps no map.'''
import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from .causal import plain_precision
from .outputs import owned
from .secants import log_ratio_of_softmax, logarithmic_mean, softmax_gradient


class ConstantAttention(Function):
    '''Softmax attention ``o = A v`` with a constant map `A`, whose backward pass is ``g_v = A^T g_o``.

    The backward pass computes the map again, some rows at a time. So no map is kept, whatever kernel torch chooses for
    the forward pass, and of the five products in torch's own backward pass only two are left.
    '''
    @staticmethod
    def forward(ctx, value, query, key, mask, causal, scale, grouped):
        ctx.save_for_backward(query, key, mask)
        ctx.shape, ctx.dtype, ctx.causal = value.shape, value.dtype, causal
        ctx.scale = query.shape[-1] ** -.5 if scale is None else scale
        ctx.group = query.shape[-3] // key.shape[-3] if grouped else 1
        return owned(functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=grouped))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, mask = ctx.saved_tensors
        working = torch.promote_types(query.dtype, torch.float32)
        query, key = query.to(working) * ctx.scale, key.to(working)
        key = key.repeat_interleave(ctx.group, -3) if ctx.group > 1 else key
        with plain_precision(grad.device.type):
            result = _transposed_attention(query, key, mask, ctx.causal, grad.to(working))
        result = result.unflatten(-3, (-1, ctx.group)).sum(-3) if ctx.group > 1 else result
        return result.sum_to_size(ctx.shape).to(ctx.dtype), *[None] * 6


def _transposed_attention(query, key, mask, causal, grad):
    '''``A^T g`` for the softmax `A` of queries times keys, with a block of its rows in memory at a time.'''
    result = grad.new_zeros(*grad.shape[:-2], key.shape[-2], grad.shape[-1])
    for rows in _blocks_of_rows(grad, key.shape[-2]):
        seen = slice(rows.stop if causal else None)
        scores = query[..., rows, :] @ key[..., seen, :].mT
        if causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1 + rows.start)
            scores.masked_fill_(future, -torch.inf)
        weights = _softmax(scores, mask if mask is None or mask.shape[-2] == 1 else mask[..., rows, :])
        result[..., seen, :] += weights.mT @ grad[..., rows, :]
    return result


class SecantAttention(Function):
    r'''Softmax attention, and the secant from a reference to the input of all that it consists of.

    With bars for means of the two and `L` the logarithmic mean of the maps `A` and :math:`A_0`,

    .. math:: g_v = \bar A^\top g \qquad
              g_s = L \left( g_A - \frac{\sum L g_A}{\sum L} \right) \;\text{with}\; g_A = g \bar v^\top \qquad
              g_q = g_s \bar k \qquad g_k = g_s^\top \bar q .

    No map is kept: the backward pass computes both again, some rows at a time.
    '''
    @staticmethod
    def forward(ctx, query, key, value, output, references, mask, causal, scale, grouped):
        # New tensors, which code cannot write to between forward and backward.
        ctx.inputs = [tensor.detach().clone() for tensor in (query, key, value)]
        ctx.references = [tensor.clone() for tensor in references]
        ctx.mask, ctx.causal = mask, causal
        ctx.scale = query.shape[-1] ** -.5 if scale is None else scale
        ctx.group = query.shape[-3] // key.shape[-3] if grouped else 1
        return owned(output[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        shapes, dtype = [tensor.shape for tensor in ctx.inputs], grad.dtype
        working = torch.promote_types(dtype, torch.float32)
        triples = [[tensor.to(working) for tensor in triple] for triple in (ctx.inputs, ctx.references)]
        triples = [(query * ctx.scale, *(
            tensor.repeat_interleave(ctx.group, -3) if ctx.group > 1 else tensor for tensor in (key, value)))
            for query, key, value in triples]
        with plain_precision(grad.device.type):
            query, *rest = _secant_attention(*triples, ctx.mask, ctx.causal, grad.to(working))
        if ctx.group > 1:
            rest = [each.unflatten(-3, (-1, ctx.group)).sum(-3) for each in rest]
        found = zip((query * ctx.scale, *rest), shapes, strict=True)
        return *(each.sum_to_size(shape).to(dtype) for each, shape in found), *[None] * 6


def _secant_attention(triple, triple0, mask, causal, grad):
    '''The gradients of query, key and value, with a block of rows of the maps in memory at a time.'''
    query, key, value = (torch.lerp(other, one, .5) for one, other in zip(triple, triple0, strict=True))
    grad_query, grad_key, grad_value = (grad.new_zeros(*grad.shape[:-2], *tensor.shape[-2:]) for tensor in (
        query, key, value))
    for rows in _blocks_of_rows(grad, key.shape[-2]):
        seen, own = slice(rows.stop if causal else None), grad[..., rows, :]
        scores, weights = zip(*(_map(*both[:2], mask, rows, seen, causal) for both in (triple, triple0)), strict=True)
        mean = logarithmic_mean(*weights, log_ratio_of_softmax(*scores, *weights, -1))
        if mask is not None:
            mean.masked_fill_(masked_rows(scores[0], -1) & masked_rows(scores[1], -1), 0.)
        grad_value[..., seen, :] += (weights[0] + weights[1]).mul_(.5).mT @ own
        inner = softmax_gradient(own @ value[..., seen, :].mT, mean, -1)
        grad_query[..., rows, :] = inner @ key[..., seen, :]
        grad_key[..., seen, :] += inner.mT @ query[..., rows, :]
    return grad_query, grad_key, grad_value


def _map(query, key, mask, rows, seen, causal):
    '''Scores and softmax of some rows.'''
    scores = query[..., rows, :] @ key[..., seen, :].mT
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1 + rows.start)
        scores.masked_fill_(future, -torch.inf)
    if mask is not None:
        mask = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    weights = scores.softmax(-1)
    return scores, weights if mask is None else weights.masked_fill_(blank_rows(scores, -1), 0.)


def _softmax(scores, mask):
    if mask is None:
        return scores.softmax(-1)
    scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return scores.softmax(-1).masked_fill_(blank_rows(scores, -1), 0.)


#: Numbers of the map that are in memory at a time: what a CPU's cache holds, and what keeps an accelerator busy.
BLOCK = {'cpu': 2 ** 19, 'cuda': 2 ** 26}
#: Rows that a block has at least, so that its products are worth a call.
BLOCK_ROWS = 32


def _blocks_of_rows(grad, columns):
    row = grad.shape[:-2].numel() * columns
    size = max(BLOCK_ROWS, BLOCK.get(grad.device.type, 2 ** 20) // max(1, row))
    return [slice(start, min(start + size, grad.shape[-2])) for start in range(0, grad.shape[-2], size)]


#: A score to which such a number was added is that number: nothing is left of it in any precision.
MASKED = -1e30


def masked_rows(scores, dim):
    '''Mark the rows of which nothing but a mask is left, by infinities or by numbers that are as good as these.

    Their softmax is the same whatever the scores were, so that it has no derivative.
    '''
    if not scores.numel():
        return scores.isneginf().all(dim, keepdim=True)
    return scores.amax(dim, keepdim=True) <= max(MASKED, torch.finfo(scores.dtype).min / 2)


def blank_rows(scores, dim):
    '''Mark the rows that are masked as a whole: their softmax is undefined, so nothing flows through them.'''
    return scores.amax(dim, keepdim=True).isneginf() if scores.numel() else scores.isneginf().all(dim, keepdim=True)
