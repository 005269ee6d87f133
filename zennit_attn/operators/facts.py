'''The exceptions: one row for each function of which more than its kind is to be said, or for a few that share it.

A row names its functions by base name, or is given the functions themselves where several share a name.
'''
import torch
from torch.nn import functional

from .. import kernels
from . import decompositions as parts
from .kinds import ALL, Kind, Writes

#: Rows as pairs of functions and facts.
ROWS = []


def op(functions, kind, signature='', **facts):
    '''Enter a row. See :py:class:`~zennit_attn.operators.Operator` for what the facts are.

    Parameters
    ----------
    functions: str or callable
        Base names, or a function.
    kind: :py:class:`~zennit_attn.operators.Kind`
    signature: str, optional
        The names of the first positional arguments.
    **facts
    '''
    names = functions.split() if isinstance(functions, str) else [functions]
    ROWS.append((names, {'kind': kind, 'signature': tuple(signature.split()), **facts}))


def _numbers(target):
    return torch.arange(target.numel(), device=target.device).view(target.shape)


def _names_places(index):
    '''Whether an index holds tensors or arrays of numbers. Slices and masks name each place once.'''
    if isinstance(index, tuple):
        return any(isinstance(item, tuple) or _names_places(item) for item in index)
    is_tensor = isinstance(index, torch.Tensor)
    is_array = isinstance(index, list) or type(index).__module__ == 'numpy'
    return is_array or (is_tensor and index.ndim > 0 and index.dtype not in (torch.bool, torch.uint8))


def _filled(indices):
    '''Indices as Python has them: where a graph has none, all is meant.'''
    return tuple(slice(None) if index is None else index for index in indices)


def _item_places(target, index, *_):
    return _numbers(target)[index] if _names_places(index) else None


def _softmax_tangent(x, y, dim):
    return y * (x - (y * x).sum(dim, keepdim=True))


def _softmin_tangent(x, y, dim):
    return -_softmax_tangent(x, y, dim)


def _log_softmax_tangent(x, y, dim):
    return x - (y.exp() * x).sum(dim, keepdim=True)


# what carries nothing

op('detach requires_grad', Kind.PLAIN, harmless=True)
op(torch.Tensor.requires_grad_, Kind.PLAIN)
op(torch.Tensor.requires_grad.__set__, Kind.PLAIN)

# moving and picking values

op('''
   cat concat concatenate stack hstack vstack dstack column_stack row_stack complex select_scatter slice_scatter
   diagonal_scatter as_strided_scatter
   ''', Kind.REARRANGE, affine=True, joins=True)
op('''
   block_diag masked_fill masked_scatter index_fill pad constant_pad_nd fill_diagonal unfold pad_sequence im2col tril
   triu diag_embed diagflat
   ''', Kind.REARRANGE, affine=True)
op('where', Kind.REARRANGE, 'condition input other', affine=True)
op('copy fill zero', Kind.REARRANGE, affine=True, overwrites=True)
op('index_copy', Kind.REARRANGE, 'input dim index source', affine=True,
   writes=Writes(3, lambda target, dim, index, source: index))
op('index_put', Kind.REARRANGE, 'input indices values accumulate', affine=True,
   writes=Writes(2, lambda target, indices, *_: _numbers(target)[_filled(indices)]))
op('put', Kind.REARRANGE, 'input index source accumulate', affine=True,
   writes=Writes(2, lambda target, index, *_: index % target.numel()))
op('scatter', Kind.REARRANGE, 'input dim index src', affine=True,
   writes=Writes(3, lambda target, dim, index, *_: _numbers(target).gather(dim, index)))
op('setitem', Kind.REARRANGE, affine=True, writes=Writes(2, _item_places))
op('expand_as reshape_as type_as view_as', Kind.REARRANGE, lends=(1,))
op('clamp clamp_max clamp_min clip', Kind.SELECT, bounds=True, clamps=True)
op('fmax fmin maximum minimum', Kind.SELECT, 'input other', bounds=True, clamps=True, weighs='extremum')
op('max', Kind.SELECT, of_two=torch.maximum, weighs='extremum')
op('min', Kind.SELECT, of_two=torch.minimum, weighs='extremum')
op('amax amin cummax cummin', Kind.SELECT, weighs='extremum')
op('nan_to_num', Kind.SELECT, bounds=True)
for _dims in (2, 3):
    for _ending in ('', '_with_indices'):
        op(getattr(functional, f'fractional_max_pool{_dims}d{_ending}'), Kind.SELECT, draws=_dims)

# sums

op('add iadd radd rsub', Kind.ADD, affine=True, pairwise=True)
op('sub isub subtract', Kind.ADD, affine=True, pairwise=True, subtracts=True)
op('diff index_add scatter_add', Kind.ADD, affine=True)
op('lerp', Kind.ADD, 'input end weight', affine=True, decomposition=parts.lerp, decomposed_by=(2,))
op('neg negative', Kind.ADD, scales=True)
op('trapezoid trapz cumulative_trapezoid embedding_bag', Kind.ADD, factors=ALL)
op('alpha_dropout feature_alpha_dropout', Kind.ADD, trains='shifts its input at random')

# products

op('linear', Kind.LINEAR, 'input weight bias', factors=(0, 1), affine=True)
op('bilinear', Kind.LINEAR, 'input1 input2 weight bias', factors=(0, 1, 2), affine=True)
op('trilinear', Kind.LINEAR, factors=(0, 1, 2))
op('conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d', Kind.LINEAR, 'input weight bias',
   factors=(0, 1), affine=True)
op('conv_tbc convolution', Kind.LINEAR, factors=(0, 1), affine=True)
op('addmm', Kind.LINEAR, 'input mat1 mat2', factors=(1, 2), affine=True)
op('addmv', Kind.LINEAR, 'input mat vec', factors=(1, 2), affine=True)
op('addr', Kind.LINEAR, 'input vec1 vec2', factors=(1, 2), affine=True)
op('addbmm baddbmm', Kind.LINEAR, 'input batch1 batch2', factors=(1, 2), affine=True)
op('grid_sample', Kind.LINEAR, 'input grid', steered=(1,))
op('grid_sampler grid_sampler_2d grid_sampler_3d', Kind.LINEAR, steered=(1,))
op('solve solve_triangular linalg_solve_triangular', Kind.LINEAR, 'A B', steered=(0,))
op('solve_ex tensorsolve', Kind.LINEAR, steered=(0,))
op('cholesky_solve', Kind.LINEAR, steered=(1,))

op('bmm mm spmm', Kind.EINSUM, 'input mat2')  # torch.spmm is torch.mm
op('mv', Kind.EINSUM, 'input vec')
op('outer ger', Kind.EINSUM, 'input vec2')
op('dot', Kind.EINSUM, 'input tensor')
op('tensordot', Kind.EINSUM, 'a b')
op('vecdot', Kind.EINSUM, 'x y')
op('multi_dot', Kind.EINSUM, 'tensors')
op('grouped_mm', Kind.EINSUM, factors=(0, 1))

op('mul multiply imul rmul', Kind.MULTIPLY, scales=True)
op('div divide true_divide truediv itruediv', Kind.MULTIPLY, scales=True, steered=(1,))
op('rtruediv', Kind.MULTIPLY, steered=(0,))
op('ldexp', Kind.MULTIPLY, steered=(1,))
op('addcmul', Kind.MULTIPLY, 'input tensor1 tensor2', factors=(1, 2), affine=True)
op('addcdiv', Kind.MULTIPLY, 'input tensor1 tensor2', decomposition=parts.addcdiv, decomposed_by=ALL)
op('prod', Kind.MULTIPLY, over='dimension')
op('cumprod', Kind.MULTIPLY, over='prefix')

# attention

op('softmax safe_softmax', Kind.SOFTMAX, tangent=_softmax_tangent, weighs='exponential')
op('softmin', Kind.SOFTMAX, tangent=_softmin_tangent, weighs='exponential')
op('log_softmax', Kind.SOFTMAX, tangent=_log_softmax_tangent, weighs='logarithm')
op('gumbel_softmax', Kind.SOFTMAX, random=True)
op('scaled_dot_product_attention', Kind.ATTENTION, 'query key value attn_mask dropout_p is_causal', mask=3,
   decomposition=parts.attention)
op(kernels.causal_dot_product, Kind.ATTENTION, 'q k v', factors=(0, 1, 2))
op(kernels.delta_rule, Kind.ATTENTION, 'q k v beta')
op(kernels.gated_linear_attention, Kind.ATTENTION, 'q k v decay bonus', states=('initial_state',))
op(kernels.gated_delta_rule, Kind.ATTENTION, 'q k v beta decay', states=('initial_state',))
op(kernels.general_delta_rule, Kind.ATTENTION, 'q k v a b decay', states=('initial_state',))
op(kernels.linear_recurrence, Kind.ATTENTION, 'x keep', values=0, states=('initial_state',))
op(kernels.wkv, Kind.ATTENTION, 'k v decay bonus', values=1, states=('initial_state',))
op(kernels.selective_scan, Kind.ATTENTION, 'x dt A B C', values=0, states=('initial_state',))

# gates and activations

op('''
   acos acosh arccos arccosh cos cosh erfc erfcx expit hardsigmoid log10 log2 log_ndtr logaddexp2 logit logsigmoid
   ndtr sigmoid sinc softplus
   ''', Kind.GATE, smooth=True)
op('exp exp2 rpow', Kind.GATE, smooth=True, weighs='exponential')
op('log', Kind.GATE, smooth=True, weighs='log')
op('logaddexp', Kind.GATE, smooth=True, weighs='logarithm')
op('logcumsumexp logsumexp', Kind.GATE, smooth=True, joint=True, weighs='logarithm')
op('reciprocal', Kind.GATE, weighs='inverse')
op('norm vector_norm linalg_vector_norm', Kind.GATE, joint=True, weighs='norm')
op('var_mean std_mean', Kind.GATE, linear_outputs=(1,))
op('abs absolute copysign leaky_relu prelu prelu_kernel relu rrelu', Kind.ACTIVATION, homogeneous=True)
op('atan arctan erf softsign tanh', Kind.ACTIVATION, saturating=True)
op('pow float_power ipow', Kind.ACTIVATION, 'input exponent', exponent=1, weighs='power')

# normalizations

op('layer_norm', Kind.NORMALIZATION, 'input normalized_shape weight bias eps', affine=True,
   normalize=kernels.layer_norm, decomposition=parts.layer_norm, decomposed_by=(2, 3))
op('rms_norm', Kind.NORMALIZATION, 'input normalized_shape weight eps',
   normalize=kernels.rms_norm, decomposition=parts.rms_norm, decomposed_by=(2,))
op('group_norm', Kind.NORMALIZATION, 'input num_groups weight bias eps', affine=True,
   normalize=kernels.group_norm, decomposition=parts.group_norm, decomposed_by=(2, 3))
op(functional.instance_norm, Kind.NORMALIZATION,
   'input running_mean running_var weight bias use_input_stats momentum eps', affine=True,
   normalize=kernels.instance_norm, decomposition=parts.conditional_instance_norm, decomposed_by=(1, 2, 3, 4))
op(functional.batch_norm, Kind.NORMALIZATION,
   'input running_mean running_var weight bias training momentum eps', affine=True,
   normalize=kernels.batch_norm, decomposition=parts.conditional_batch_norm, decomposed_by=(1, 2, 3, 4))
op('instance_norm', Kind.NORMALIZATION,
   'input weight bias running_mean running_var use_input_stats momentum eps cudnn_enabled',
   decomposition=parts.instance_norm, decomposed_by=ALL)
op('batch_norm', Kind.NORMALIZATION, 'input weight bias running_mean running_var training momentum eps cudnn_enabled',
   decomposition=parts.batch_norm, decomposed_by=ALL)

# what is run step by step

op('log_sigmoid_forward', Kind.COMPOSED, decomposition=parts.log_sigmoid_forward)
op('glu', Kind.COMPOSED, decomposition=parts.glu)
op('cosine_similarity', Kind.COMPOSED, decomposition=parts.cosine_similarity)
op('threshold', Kind.COMPOSED, decomposition=parts.threshold)
op('renorm', Kind.COMPOSED, decomposition=parts.renorm)
op('scatter_reduce', Kind.COMPOSED, decomposition=parts.scatter_reduce)
op('index_reduce', Kind.COMPOSED, decomposition=parts.index_reduce)
op('pad_packed_sequence', Kind.COMPOSED, decomposition=parts.pad_packed_sequence)
op('lstm', Kind.COMPOSED, decomposition=parts.lstm)
op('lstm_cell', Kind.COMPOSED, decomposition=parts.lstm_cell)
op('gru', Kind.COMPOSED, decomposition=parts.gru)
op('gru_cell', Kind.COMPOSED, decomposition=parts.gru_cell)
op('rnn_tanh', Kind.COMPOSED, decomposition=parts.rnn_tanh)
op('rnn_tanh_cell', Kind.COMPOSED, decomposition=parts.rnn_tanh_cell)
op('rnn_relu', Kind.COMPOSED, decomposition=parts.rnn_relu)
op('rnn_relu_cell', Kind.COMPOSED, decomposition=parts.rnn_relu_cell)
