'''Published kernels of softmax attention: FlashAttention, xformers. Heads are behind tokens: `q (b, n, h, d)`.'''
import torch
from torch.nn.functional import scaled_dot_product_attention

from .functions import Published

FLASH = frozenset({'flash_attn', 'flash_attn_interface', 'flash_attn_2_cuda'})
XFORMERS = frozenset({'xformers'})


def _attend(q, k, v, scale, mask=None, is_causal=False):
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    shared = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, **(
        {'enable_gqa': True} if shared else {}))
    return out.transpose(1, 2)


def _visible(queries, keys, causal, window, device):
    '''Which keys a query may see, aligned at the last of both, or None for all.'''
    left, right = window
    right = 0 if causal else right
    if left < 0 and right < 0:
        return None
    distance = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] - (keys - queries)
    visible = torch.ones_like(distance, dtype=torch.bool)
    if right >= 0:
        visible &= distance <= right
    if left >= 0:
        visible &= distance >= -left
    return visible


def flash_attention(q, k, v, dropout_p=0., softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.,
                    alibi_slopes=None, return_attn_probs=False):
    '''FlashAttention.'''
    if dropout_p or softcap or alibi_slopes is not None or return_attn_probs:
        return NotImplemented
    window = tuple(window_size)
    if causal and q.shape[1] == k.shape[1] and window == (-1, -1):
        return _attend(q, k, v, softmax_scale, is_causal=True)
    return _attend(q, k, v, softmax_scale, _visible(q.shape[1], k.shape[1], causal, window, q.device))


def flash_attention_of_qkv(qkv, dropout_p=0., softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.,
                           alibi_slopes=None, return_attn_probs=False):
    '''The same of one tensor `(b, n, 3, h, d)`.'''
    return flash_attention(*qkv.unbind(2), dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                           return_attn_probs)


def flash_attention_of_kv(q, kv, dropout_p=0., softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.,
                          alibi_slopes=None, return_attn_probs=False):
    '''The same of queries, and keys and values in one tensor `(b, n, 2, h, d)`.'''
    return flash_attention(q, *kv.unbind(2), dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                           return_attn_probs)


def flash_attention_of_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=None, max_seqlen_k=None, dropout_p=0.,
                              softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0., alibi_slopes=None,
                              return_attn_probs=False, block_table=None):
    '''The same of sequences that are packed one after the other, `q (n, h, d)`.'''
    if block_table is not None:
        return NotImplemented
    outs, queries, keys = [], cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for start, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        out = flash_attention(q[None, start:end], k[None, first:last], v[None, first:last], dropout_p, softmax_scale,
                              causal, window_size, softcap, alibi_slopes, return_attn_probs)
        if out is NotImplemented:
            return NotImplemented
        outs.append(out[0])
    return torch.cat(outs)


def memory_efficient_attention(query, key, value, attn_bias=None, p=0., scale=None, op=None):
    '''Attention of xformers, with or without an axis of heads.'''
    causal = type(attn_bias).__name__ == 'LowerTriangularMask'
    if p or not (causal or attn_bias is None or isinstance(attn_bias, torch.Tensor)) or query.ndim > 4:
        return NotImplemented
    given = [each[:, :, None] if each.ndim == 3 else each for each in (query, key, value)]
    mask = None if causal else attn_bias
    if mask is not None and query.ndim == 3 and mask.ndim == 3:
        mask = mask[:, None]
    if causal and query.shape[1] != key.shape[1]:
        causal, mask = False, torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).tril()
    out = _attend(*given, scale, mask, causal)
    return out[:, :, 0] if query.ndim == 3 else out


_QKV = frozenset('qkv')
ROWS = (
    Published(r'flash_attn_func', _QKV, flash_attention, packages=FLASH),
    Published(r'flash_attn_qkvpacked_func', frozenset({'qkv'}), flash_attention_of_qkv, packages=FLASH),
    Published(r'flash_attn_kvpacked_func', frozenset({'q', 'kv'}), flash_attention_of_kv, packages=FLASH),
    Published(r'flash_attn_varlen_func', _QKV | {'cu_seqlens_q', 'cu_seqlens_k'}, flash_attention_of_packed,
              packages=FLASH),
    Published(r'memory_efficient_attention', frozenset({'query', 'key', 'value'}), memory_efficient_attention,
              packages=XFORMERS),
)
