'''What stands for :py:class:`torch.nn.MultiheadAttention` while a canonizer is applied.'''
from functools import cache

import torch
from torch.nn import Module, Parameter


class MultiheadAttention(Module):
    '''The type that a module of :py:class:`torch.nn.MultiheadAttention` gets while a canonizer is applied.

    The packed projections are :py:class:`torch.nn.Linear` children ``canonizer_q``, ``canonizer_k`` and
    ``canonizer_v``, which share the memory of the packed weights, and ``out_proj`` is called as a module, so that a
    rule for ``Linear`` reaches all four. While the model's forward runs, the module is of its own class, and
    :py:func:`attend` takes the place of its forward.
    '''
    def forward(self, query, key, value, *args, **kwargs):
        '''See :py:meth:`torch.nn.MultiheadAttention.forward`.'''
        return attend(self, projections_of(self), query, key, value, *args, **kwargs)


def projections_of(module):
    '''Return the packed projections as linear modules, by the name of the child.'''
    size = module.embed_dim
    packed = (None,) * 3 if module.in_proj_weight is None else module.in_proj_weight.split(size)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.split(size)
    own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    weights = [weight if shared is None else shared for weight, shared in zip(own, packed, strict=True)]
    linears = (Projection(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return dict(zip(('canonizer_q', 'canonizer_k', 'canonizer_v'), linears, strict=True))


def attend(module, projections, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
           average_attn_weights=True, is_causal=False):
    '''Run the forward of :py:class:`torch.nn.MultiheadAttention` through projections that are modules.

    It is the same function (axes: `b` batch, `h` heads, `n` queries, `m` keys, `d` head).
    '''
    if is_causal and attn_mask is None:
        raise ValueError('is_causal is a hint on an attn_mask, which is missing')
    batched = query.ndim == 3
    inputs = [x if batched else x.unsqueeze(0 if module.batch_first else 1) for x in (query, key, value)]
    inputs = [x if module.batch_first else x.transpose(0, 1) for x in inputs]
    heads = [x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in _extended(module, projections, *inputs)]
    padding = key_padding_mask if batched else _batch_of_one(key_padding_mask)
    mask = _mask(module, heads[0], heads[1], attn_mask, padding)
    # As torch does, which matters where keys were added: the hint replaces the mask where it can.
    causal = is_causal and key_padding_mask is None and not need_weights
    output, weights = _attend(module, *heads, None if causal else mask, need_weights, causal)
    output = module.out_proj(output.transpose(1, 2).flatten(2))
    output = output if module.batch_first else output.transpose(0, 1)
    output = output if batched else output.squeeze(0 if module.batch_first else 1)
    if weights is not None:
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    return output, weights


def _extended(module, projections, query, key, value):
    query, key, value = (projection(x) for projection, x in zip(projections.values(), (query, key, value), strict=True))
    if module.bias_k is not None:
        key = torch.cat([key, module.bias_k.expand(len(key), 1, -1)], 1)
        value = torch.cat([value, module.bias_v.expand(len(value), 1, -1)], 1)
    if module.add_zero_attn:
        key, value = (torch.cat([x, x.new_zeros(len(x), 1, x.shape[-1])], 1) for x in (key, value))
    return query, key, value


def _mask(module, query, key, attn_mask, key_padding_mask):
    '''Return the sum of all masks, broadcastable to b h n m, or None.'''
    b, h, n, _ = query.shape
    m, masks = key.shape[2] - (module.bias_k is not None) - bool(module.add_zero_attn), []
    _check_mask('attn_mask', attn_mask, [(n, m), (b * h, n, m)])
    _check_mask('key_padding_mask', key_padding_mask, [(b, m)])
    if attn_mask is not None:
        attn_mask = _additive(attn_mask, query)
        masks.append(attn_mask.view(b, h, n, -1) if attn_mask.ndim == 3 else attn_mask)
    if key_padding_mask is not None:
        masks.append(_additive(key_padding_mask, query)[:, None, None, :])
    extra = (module.bias_k is not None) + bool(module.add_zero_attn)
    masks = [torch.nn.functional.pad(mask, (0, extra)) for mask in masks]
    return sum(masks) if masks else None


def _attend(module, query, key, value, mask, need_weights, causal):
    dropout = module.dropout if module.training else 0.
    if not need_weights:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout, causal), None
    scores = query * module.head_dim ** -.5 @ key.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = torch.nn.functional.dropout(weights, dropout) if dropout else weights
    return weights @ value, weights


@cache
def multihead_type(cls):
    '''Return the type that a module gets whose class is torch's, derived from it, or a copy of it.'''
    if cls is torch.nn.MultiheadAttention:
        return MultiheadAttention
    own = {}
    for base in reversed(cls.__mro__[:cls.__mro__.index(Module)]):
        own.update(vars(base))
    kept = {name: value for name, value in own.items() if name != 'forward' and not name.startswith('__')}
    return type(cls.__name__, (MultiheadAttention,), {**kept, '__module__': __name__})


class Projection(torch.nn.Linear):
    '''A linear layer that shares the memory of given weights, here a packed projection.

    Parameters
    ----------
    weight: :py:class:`torch.Tensor`
        Weights of shape ``(outputs, inputs)``.
    bias: :py:class:`torch.Tensor` or None
        Biases of shape ``(outputs,)``.
    '''
    def __init__(self, weight, bias):
        Module.__init__(self)  # that of a linear layer draws weights, which takes longer than all of registering
        self.out_features, self.in_features = weight.shape
        self.weight = Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else Parameter(bias.detach(), requires_grad=False)


def _check_mask(name, mask, shapes):
    if mask is None:
        return
    if tuple(mask.shape) not in shapes:
        raise ValueError(f'{name} has shape {tuple(mask.shape)}, expected {" or ".join(map(str, shapes))}')
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f'{name} has dtype {mask.dtype}, expected torch.bool or floating point')


def _batch_of_one(mask):
    return None if mask is None else mask.unsqueeze(0)


def _additive(mask, like):
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)
