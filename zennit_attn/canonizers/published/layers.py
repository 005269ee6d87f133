'''Published kernels of what stands beside linear attention: convolutions, norms, gates, shifts.'''
import torch
from torch.nn import functional

from .functions import Published

ACTIVATIONS = {'silu': functional.silu, 'swish': functional.silu, 'sigmoid': torch.sigmoid, 'relu': torch.relu,
               'gelu': functional.gelu}
FLA = frozenset({'fla'})
KERNELS = frozenset({'fla', 'mamba_ssm', 'causal_conv1d'})


def causal_convolution(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                       final_states_out=None, activation=None):
    '''A convolution of each feature with its past, `x (b, d, n)` and `weight (d, w)`.'''
    if seq_idx is not None or final_states_out is not None:
        return NotImplemented
    width = weight.shape[1] - 1
    past = functional.pad(x, (width, 0)) if initial_states is None else torch.cat([initial_states, x], -1)
    out = functional.conv1d(past, weight[:, None], bias, groups=len(weight))
    out = out if activation is None else ACTIVATIONS[activation](out)
    return (out, past[..., past.shape[-1] - width:]) if return_final_states else out


def convolution_of_one_token(x, conv_state, weight, bias=None, activation=None):
    '''The same for the next token, or some: the state has the tokens before.'''
    tokens = x[..., None] if x.ndim == 2 else x
    past = torch.cat([conv_state.to(x.dtype), tokens], -1)
    out = functional.conv1d(past, weight[:, None], bias, groups=len(weight))[..., -tokens.shape[-1]:]
    out = out if activation is None else ACTIVATIONS[activation](out)
    return out[..., 0] if x.ndim == 2 else out, (past[..., -conv_state.shape[-1]:],)


def convolution_with_tokens_first(x, weight=None, bias=None, residual=None, initial_state=None,
                                  output_final_state=False, activation=None, cu_seqlens=None):
    '''A convolution of each feature with its past, `x (b, n, d)`, and what is added to it.'''
    if weight is None or cu_seqlens is not None or initial_state is not None or output_final_state:
        return NotImplemented
    out = causal_convolution(x.transpose(1, 2), weight, bias, activation=activation).transpose(1, 2)
    return out if residual is None else out + residual, None


def _normalized(x, weight, bias, eps, is_rms, groups=1):
    if groups > 1:
        out = _normalized(x.unflatten(-1, (groups, -1)), None, None, eps, is_rms).flatten(-2)
        out = out if weight is None else out * weight
        return out if bias is None else out + bias
    shape = x.shape[-1:]
    if not is_rms:
        return functional.layer_norm(x, shape, weight, bias, eps)
    out = functional.rms_norm(x, shape, weight, eps)
    return out if bias is None else out + bias


def _norm(x, weight, bias, residual, eps, prenorm, is_rms, groups=1):
    x = x if residual is None else x + residual
    out = _normalized(x, weight, bias, eps, is_rms, groups)
    return (out, x) if prenorm else out


def layer_norm(x, weight, bias=None, residual=None, eps=1e-5, prenorm=False, is_rms_norm=False, num_groups=1):
    '''A layer norm, of a sum if a residual is given, which is returned on request.'''
    return _norm(x, weight, bias, residual, eps, prenorm, is_rms_norm, num_groups)


def rms_norm(x, weight, bias=None, residual=None, eps=1e-5, prenorm=False):
    '''The same without a mean.'''
    return _norm(x, weight, bias, residual, eps, prenorm, True)


def layer_norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias=None, residual=None, eps=1e-5,
                      prenorm=False, is_rms_norm=False, num_groups=1):
    '''A norm and a linear layer.'''
    out, total = _norm(x, norm_weight, norm_bias, residual, eps, True, is_rms_norm, num_groups)
    out = functional.linear(out, linear_weight, linear_bias)
    return (out, total) if prenorm else out


def rms_norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias=None, residual=None, eps=1e-5,
                    prenorm=False):
    '''The same without a mean.'''
    return layer_norm_linear(x, norm_weight, norm_bias, linear_weight, linear_bias, residual, eps, prenorm, True)


def _with_gate(x, g, weight, bias, activation, residual, prenorm, eps, is_rms):
    out, total = _norm(x, weight, bias, residual, eps, True, is_rms)
    out = out * ACTIVATIONS[activation](g)
    return (out, total) if prenorm else out


def layer_norm_with_gate(x, g, weight, bias=None, activation='swish', residual=None, prenorm=False, eps=1e-6):
    '''A layer norm times the activation of a gate.'''
    return _with_gate(x, g, weight, bias, activation, residual, prenorm, eps, False)


def rms_norm_with_gate(x, g, weight, bias=None, activation='swish', residual=None, prenorm=False, eps=1e-6):
    '''The same without a mean.'''
    return _with_gate(x, g, weight, bias, activation, residual, prenorm, eps, True)


def layer_norm_gate_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias=None, residual=None,
                           prenorm=False, eps=1e-6):
    '''A layer norm times the activation of a gate, and a linear layer.'''
    return _with_gate_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, eps, False)


def rms_norm_gate_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias=None, residual=None, prenorm=False,
                         eps=1e-6):
    '''The same without a mean.'''
    return _with_gate_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, eps, True)


def _with_gate_linear(x, g, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm, eps, is_rms):
    out, total = _with_gate(x, g, norm_weight, norm_bias, 'swish', residual, True, eps, is_rms)
    out = functional.linear(out, linear_weight, linear_bias)
    return (out, total) if prenorm else out


def gated_norm(x, weight, bias=None, z=None, eps=1e-6, group_size=None, norm_before_gate=True, is_rms_norm=True):
    '''The norm of Mamba-2: of groups of features, before or after it is multiplied by the activation of a gate.'''
    if z is not None and not norm_before_gate:
        x = x * functional.silu(z)
    groups = 1 if group_size is None else x.shape[-1] // group_size
    out = _normalized(x, weight, bias, eps, is_rms_norm, groups)
    return out * functional.silu(z) if z is not None and norm_before_gate else out


def length_one(x, eps=1e-6, output_dtype=None):
    '''Vectors of length one.'''
    out = x * (x * x).sum(-1, keepdim=True).add(eps).rsqrt()
    return out if output_dtype is None else out.to(output_dtype)


def shift(x, cache=None, output_cache=False, cu_seqlens=None):
    '''What is the token before, less the token.'''
    if cache is not None or cu_seqlens is not None:
        return NotImplemented
    out = functional.pad(x[:, :-1], (0, 0, 1, 0)) - x
    return (out, x[:, -1:]) if output_cache else out


def rotary_embedding(x, cos, sin, interleaved=False, inplace=False, seqlen_offsets=0, cu_seqlens=None):
    '''Positions as rotations of pairs of features, `x (b, n, h, d)`.'''
    if inplace or cu_seqlens is not None or not isinstance(seqlen_offsets, int):
        return NotImplemented
    angles, width = slice(seqlen_offsets, seqlen_offsets + x.shape[1]), 2 * cos.shape[1]
    cos, sin = (each[angles, None] for each in (cos, sin))
    turned = x[..., :width]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = first * cos - second * sin, second * cos + first * sin
    out = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([out, x[..., width:]], -1)


def swiglu(x, y):
    '''The activation of one tensor times another.'''
    return functional.silu(x) * y


def swiglu_linear(x, y, weight, bias=None):
    '''The same, and a linear layer.'''
    return functional.linear(swiglu(x, y), weight, bias)


def squared_relu(x):
    '''Squares of what is positive.'''
    return functional.relu(x) ** 2


# ---- Liger ----------------------------------------------------------------------------------------------------------

def liger_rms_norm(X, W, eps, offset=0., casting_mode='llama', in_place=True, row_mode=None):
    '''A norm whose weight is relative to an offset.'''
    weight = None if W is None else W + offset if offset else W
    return functional.rms_norm(X, X.shape[-1:], weight, eps)


def liger_layer_norm(X, W, B, eps):
    '''A layer norm.'''
    return functional.layer_norm(X, X.shape[-1:], W, B, eps)


def liger_swiglu(a, b, gate_multiplier=1., down_multiplier=1.):
    '''The activation of one tensor times another.'''
    out = functional.silu(a if gate_multiplier == 1 else a * gate_multiplier) * b
    return out if down_multiplier == 1 else out * down_multiplier


def liger_geglu(a, b):
    '''The same with the approximation of a GELU.'''
    return functional.gelu(a, approximate='tanh') * b


def liger_rotary(q, k, cos, sin, position_ids=None, unsqueeze_dim=1, rotary_dim=None):
    '''Positions as rotations of the two halves of features, `q (b, h, n, d)`.'''
    if rotary_dim is not None or cos.shape[-1] != q.shape[-1]:
        return NotImplemented
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)

    def turned(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin
    return turned(q), turned(k)


LIGER = frozenset({'liger_kernel'})
ROWS = (
    Published(r'LigerRMSNormFunction', frozenset(), liger_rms_norm, packages=LIGER),
    Published(r'LigerLayerNormFunction', frozenset(), liger_layer_norm, packages=LIGER),
    Published(r'LigerSiLUMulFunction', frozenset(), liger_swiglu, packages=LIGER),
    Published(r'LigerGELUMulFunction', frozenset(), liger_geglu, packages=LIGER),
    Published(r'liger_rotary_pos_emb', frozenset({'q', 'k', 'cos', 'sin'}), liger_rotary, packages=LIGER),
    Published(r'causal_conv1d_fn', frozenset({'x', 'weight'}), causal_convolution, {'hidden_states': 'x'},
              packages=KERNELS),
    Published(r'causal_conv1d_update', frozenset({'x', 'conv_state', 'weight'}), convolution_of_one_token,
              {'hidden_states': 'x'}, ('conv_state',), KERNELS),
    Published(r'causal_conv1d', frozenset({'x', 'weight', 'residual'}), convolution_with_tokens_first, packages=FLA),
    Published(r'layer_norm(_fn)?', frozenset({'x', 'weight', 'bias', 'prenorm'}), layer_norm, packages=KERNELS),
    Published(r'rms_norm(_fn)?', frozenset({'x', 'weight', 'bias', 'prenorm'}), rms_norm, packages=KERNELS),
    Published(r'group_norm', frozenset({'x', 'weight', 'bias', 'num_groups'}), layer_norm, packages=FLA),
    Published(r'(layer|group)_norm_linear', frozenset({'x', 'norm_weight', 'linear_weight'}), layer_norm_linear,
              packages=FLA),
    Published(r'rms_norm_linear', frozenset({'x', 'norm_weight', 'linear_weight'}), rms_norm_linear, packages=FLA),
    Published(r'layer_norm_swish_gate_linear', frozenset({'x', 'g', 'norm_weight'}), layer_norm_gate_linear,
              packages=FLA),
    Published(r'rms_norm_swish_gate_linear', frozenset({'x', 'g', 'norm_weight'}), rms_norm_gate_linear, packages=FLA),
    Published(r'rotary_embedding', frozenset({'x', 'cos', 'sin', 'seqlen_offsets'}), rotary_embedding, packages=FLA),
    Published(r'layer_norm_gated', frozenset({'x', 'g', 'weight'}), layer_norm_with_gate, packages=FLA),
    Published(r'rms_norm_gated', frozenset({'x', 'g', 'weight'}), rms_norm_with_gate, packages=FLA),
    Published(r'layernorm_fn', frozenset({'x', 'z', 'weight', 'is_rms_norm'}), gated_norm, packages=KERNELS),
    Published(r'rmsnorm_fn', frozenset({'x', 'z', 'weight'}), gated_norm, packages=KERNELS),
    Published(r'l2_?norm', frozenset('x'), length_one, packages=FLA),
    Published(r'token_shift', frozenset('x'), shift, packages=FLA),
    Published(r'swish|SwishFunction', frozenset(), functional.silu, packages=FLA),
    Published(r'swiglu|SwiGLUFunction', frozenset(), swiglu, packages=FLA),
    Published(r'swiglu_linear|SwiGLULinearFunction', frozenset(), swiglu_linear, packages=FLA),
    Published(r'sqrelu|SquaredReLUFunction', frozenset(), squared_relu, packages=FLA),
)
