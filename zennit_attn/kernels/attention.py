'''Softmax attention with a constant map, as an autograd function that keeps no map.'''
import torch
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional

from .causal import plain_precision
from .outputs import owned


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


def blank_rows(scores, dim):
    '''Mark the rows that are masked as a whole: their softmax is undefined, so nothing flows through them.'''
    return scores.amax(dim, keepdim=True).isneginf() if scores.numel() else scores.isneginf().all(dim, keepdim=True)
