'''The one table: every torch function that a rule is known for, with its kind.

A newcomer who wants to teach the package an operator adds one name to :py:obj:`NAMES`, or calls
:py:func:`register_operator` for a function of their own.
'''
from enum import Enum
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.overrides import get_overridable_functions, resolve_name

from .attention import causal_dot_product, delta_rule
from .refusals import REASONS as REASONS


class Kind(Enum):
    '''What an operator does to relevance. The value is the role of the operator module that runs it.'''
    PLAIN = 'plain'                  # shapes, comparisons, new tensors: nothing flows
    REARRANGE = 'rearrange'          # moves values without changing them
    SELECT = 'select'                # picks values depending on the data: max, clamp, sort
    ADD = 'add'                      # sums: the gradient is the linear rule
    LINEAR = 'linear'                # weights times input plus bias
    EINSUM = 'einsum'                # contractions of several operands
    MULTIPLY = 'multiply'            # elementwise products and quotients
    SOFTMAX = 'softmax'
    ATTENTION = 'attention'          # fused softmax attention
    GATE = 'gate'                    # a(0) != 0, deviations, reciprocals: viewed as constants
    ACTIVATION = 'activation'        # a(0) = 0
    NORMALIZATION = 'normalization'
    COMPOSED = 'composed'            # a torch function whose own Python code is run under the engine's eyes
    REFUSED = 'refused'


class Operator(NamedTuple):
    '''An entry of the table: the base name of a function, its kind, and whether it writes into its first argument.'''
    name: str
    kind: Kind
    inplace: bool = False

    @property
    def is_plain_sum(self):
        '''Whether autograd is the rule however many operands depend on the input.'''
        return self.kind in (Kind.REARRANGE, Kind.SELECT, Kind.ADD) and self.name not in _NOT_SUMS and (
            self.name not in WRITES)

    @property
    def is_plain_product(self):
        '''Whether autograd is the rule if one operand alone depends on the input.'''
        return self.kind is Kind.EINSUM or self.name in ('mul', 'multiply', 'rmul')


# The kinds of all functions by base name: `add` stands for torch.add, Tensor.add, Tensor.add_ and Tensor.__add__.
NAMES = {
    Kind.PLAIN: '''
        all allclose any argmax argmin argsort argwhere array array_wrap backward bernoulli bincount bool bucketize
        byte char contains const_data_ptr count_nonzero data data_ptr deepcopy dense_dim detach detach_copy
        device dim dim_order dlpack dlpack_device dtype element_size empty_like eq equal
        format full_like ge get_device grad grad_fn greater greater_equal gt histc hash_tensor
        index int is_coalesced is_complex is_conj is_contiguous is_cpu is_cuda is_distributed is_floating_point
        is_inference is_leaf is_meta is_mkldnn is_mps is_neg is_nested is_nonzero is_pinned is_quantized is_same_size
        is_set_to is_shared is_signed is_sparse is_sparse_csr is_view isclose isfinite isin isinf isnan isneginf
        isposinf isreal item itemsize layout le len less less_equal logical_and logical_not logical_or logical_xor
        long lt multinomial name nbytes ndim ndimension ne nelement nested_tensor_from_mask_left_aligned nonzero
        nonzero_static not_equal numel numpy one_hot ones_like output_nr register_hook repr requires_grad retain_grad
        retains_grad searchsorted shape short signbit size storage storage_offset storage_type stride tolist unique
        unique_consecutive untyped_storage version zeros_like base rand_like randn_like new_empty new_full new_ones
        new new_tensor new_zeros new_empty_strided nextafter bitwise_and bitwise_or bitwise_not is_xpu is_ipu is_xla
        is_maia is_mtia is_vulkan and or xor invert lshift rshift iand ior ixor ilshift irshift rand ror rxor rlshift
        rrshift bitwise_xor bitwise_left_shift bitwise_right_shift gcd lcm histogram histogramdd matrix_rank
        unravel_index dimI dimV nnz sparse_dim qscheme cdata backward_hooks grad_dtype has_grad_dtype_override volatile
        autocast has_names names randint_like sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum
        ''',
    Kind.REARRANGE: '''
        T H mT mH adjoint alias_copy as_strided as_strided_copy atleast_1d atleast_2d atleast_3d bfloat16 block_diag
        broadcast_tensors broadcast_to cartesian_prod cat cdouble cfloat chalf channel_shuffle chunk clone column_stack
        complex concat concatenate conj conj_physical constant_pad_nd contiguous copy cpu cuda diag diag_embed diagflat
        diagonal diagonal_copy diagonal_scatter double dsplit dstack embedding expand expand_as expand_copy flatten flip
        fliplr flipud float gather getitem half hsplit hstack imag index_copy index_fill index_put index_select
        masked_fill masked_scatter masked_select meshgrid moveaxis movedim narrow narrow_copy native_channel_shuffle pad
        permute permute_copy pin_memory pixel_shuffle pixel_unshuffle positive ravel real repeat repeat_interleave
        reshape reshape_as resolve_conj resolve_neg reversed roll rot90 row_stack scatter select select_copy
        select_scatter setitem slice_copy slice_scatter split split_copy split_with_sizes split_with_sizes_copy
        squeeze squeeze_copy stack swapaxes swapdims t t_copy take take_along_dim tensor_split tile to transpose
        transpose_copy tril triu type type_as unbind unbind_copy unflatten unfold unfold_copy unsafe_chunk
        unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy view view_as view_as_complex view_as_real
        view_copy vsplit vstack where zero fill_diagonal ifftshift fftshift put combinations fill
        as_strided_scatter view_as_complex_copy view_as_real_copy ipu mtia xpu autocast_to_full_precision
        autocast_to_reduced_precision
        ''',
    Kind.SELECT: '''
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
        adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices amax amin aminmax clamp clamp_max clamp_min
        clip cummax cummin fmax fmin fractional_max_pool2d fractional_max_pool3d kthvalue max max_pool1d max_pool2d
        max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool1d max_unpool2d
        max_unpool3d maximum median min minimum msort nan_to_num nanmedian sort topk mode
        fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
        ''',
    Kind.ADD: '''
        add cumsum cumulative_trapezoid diff iadd isub lerp mean nanmean nansum neg negative radd rsub sub subtract sum
        sum_to_size trace trapezoid trapz index_add scatter_add embedding_bag deg2rad rad2deg gradient
        nanquantile quantile
        dropout dropout1d dropout2d dropout3d feature_dropout native_dropout alpha_dropout feature_alpha_dropout
        ''',
    Kind.LINEAR: '''
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d affine_grid avg_pool1d avg_pool2d avg_pool3d
        bilinear conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution fft fft2
        fftn fold grid_sample hfft hfft2 hfftn ifft ifft2 ifftn ihfft ihfft2 ihfftn interpolate irfft irfft2 irfftn
        istft linear rfft rfft2 rfftn stft addmm addmv addr addbmm baddbmm affine_grid_generator grid_sampler
        grid_sampler_2d grid_sampler_3d solve solve_ex solve_triangular tensorsolve cholesky_solve
        ''',
    Kind.EINSUM: '''
        bmm chain_matmul cross dot einsum ger grouped_mm inner kron matmul rmatmul mm multi_dot mv outer tensordot vdot
        vecdot spmm sparse_mm
        ''',
    Kind.MULTIPLY: '''
        mul multiply imul rmul div divide true_divide truediv itruediv rtruediv addcmul addcdiv prod cumprod ldexp
        ''',
    Kind.SOFTMAX: 'softmax softmin gumbel_softmax log_softmax',
    Kind.ATTENTION: 'scaled_dot_product_attention',
    Kind.GATE: '''
        acos acosh angle arccos arccosh cdist ceil cholesky cos cosh det digamma dist entr erfc erfcx exp exp2
        expit fix floor floor_divide floordiv frobenius_norm hardsigmoid heaviside hypot i0 i0e lgamma log log10 log2
        log_ndtr logaddexp logaddexp2 logcumsumexp logdet logit logsigmoid logsumexp matrix_norm ndtr norm
        norm_except_dim nuclear_norm pairwise_distance pdist polar reciprocal rfloordiv round rpow rsqrt sgn sigmoid
        sign sinc softplus sqrt std std_mean trunc var var_mean vector_norm
        airy_ai arctan2 atan2 bessel_j0 bessel_y0 bessel_y1 cholesky_ex cholesky_inverse cond gammaincc gammaln
        ifloordiv igammac inv inv_ex inverse modified_bessel_i0 modified_bessel_k0 modified_bessel_k1 multigammaln
        mvlgamma native_norm ndtri pinv pinverse polygamma psi scaled_modified_bessel_k0 scaled_modified_bessel_k1
        spherical_bessel_j0 tensorinv zeta
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss
        gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss linear_cross_entropy margin_ranking_loss
        mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss
        smooth_l1_loss soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss
        ''',
    Kind.ACTIVATION: '''
        abs absolute arcsin arcsinh arctan arctanh asin asinh atan atanh celu elu erf erfinv expm1 gelu hardshrink
        hardswish hardtanh leaky_relu log1p mish pow ipow float_power prelu relu relu6 rrelu selu silu
        sin sinh softshrink softsign square tan tanh tanhshrink copysign i1 i1e
        ''',
    Kind.NORMALIZATION: 'batch_norm group_norm instance_norm layer_norm rms_norm',
    Kind.COMPOSED: '''
        cosine_similarity glu local_response_norm multi_head_attention_forward normalize gru gru_cell lstm lstm_cell
        rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell renorm threshold scatter_reduce index_reduce
        ''',
}

#: Positions of the factors of a product in functions that also add something.
FACTORS = {
    'linear': (0, 1), 'bilinear': (0, 1, 2), 'conv1d': (0, 1), 'conv2d': (0, 1), 'conv3d': (0, 1), 'conv_tbc': (0, 1),
    'conv_transpose1d': (0, 1), 'conv_transpose2d': (0, 1), 'conv_transpose3d': (0, 1), 'convolution': (0, 1),
    'addmm': (1, 2), 'addmv': (1, 2), 'addr': (1, 2), 'addbmm': (1, 2), 'baddbmm': (1, 2), 'addcmul': (1, 2),
    'grouped_mm': (0, 1),
}

#: Positions of operands that are gates, in functions that are linear in the others.
GATED = {
    'grid_sample': 1, 'grid_sampler': 1, 'grid_sampler_2d': 1, 'grid_sampler_3d': 1, 'solve': 0, 'solve_ex': 0,
    'solve_triangular': 0, 'tensorsolve': 0, 'cholesky_solve': 1,
}

#: Names of positional arguments, for functions whose operands may be given by keyword.
SIGNATURES = {
    'linear': ('input', 'weight', 'bias'), 'bilinear': ('input1', 'input2', 'weight', 'bias'),
    'addmm': ('input', 'mat1', 'mat2'), 'addmv': ('input', 'mat', 'vec'), 'addr': ('input', 'vec1', 'vec2'),
    'addbmm': ('input', 'batch1', 'batch2'), 'baddbmm': ('input', 'batch1', 'batch2'),
    'addcmul': ('input', 'tensor1', 'tensor2'), 'addcdiv': ('input', 'tensor1', 'tensor2'),
    'bmm': ('input', 'mat2'), 'mm': ('input', 'mat2'), 'mv': ('input', 'vec'), 'outer': ('input', 'vec2'),
    'ger': ('input', 'vec2'), 'dot': ('input', 'tensor'), 'tensordot': ('a', 'b'), 'vecdot': ('x', 'y'),
    'pow': ('input', 'exponent'), 'float_power': ('input', 'exponent'), 'lerp': ('input', 'end', 'weight'),
    'layer_norm': ('input', 'normalized_shape', 'weight', 'bias', 'eps'),
    'rms_norm': ('input', 'normalized_shape', 'weight', 'eps'),
    'group_norm': ('input', 'num_groups', 'weight', 'bias', 'eps'),
    'instance_norm': ('input', 'running_mean', 'running_var', 'weight', 'bias', 'use_input_stats', 'momentum', 'eps'),
    'batch_norm': ('input', 'running_mean', 'running_var', 'weight', 'bias', 'training', 'momentum', 'eps'),
    'scaled_dot_product_attention': ('query', 'key', 'value', 'attn_mask', 'dropout_p', 'is_causal'),
    'index_copy': ('input', 'dim', 'index', 'source'), 'index_put': ('input', 'indices', 'values', 'accumulate'),
    'put': ('input', 'index', 'source', 'accumulate'), 'scatter': ('input', 'dim', 'index', 'src'),
    'multi_dot': ('tensors',), 'where': ('condition', 'input', 'other'), 'grid_sample': ('input', 'grid'),
    'solve': ('A', 'B'), 'solve_triangular': ('A', 'B'),
    'causal_dot_product': ('q', 'k', 'v'), 'delta_rule': ('q', 'k', 'v', 'beta'),
} | {name: ('input', 'weight', 'bias') for name in (
    'conv1d', 'conv2d', 'conv3d', 'conv_transpose1d', 'conv_transpose2d', 'conv_transpose3d'
)}

#: Functions that can add a constant to what carries relevance: at zero operands their value is what they add.
AFFINE = frozenset('''
    add iadd sub isub radd rsub subtract lerp diff index_add scatter_add addmm addmv addr addbmm baddbmm addcmul addcdiv
    cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag where masked_fill masked_scatter
    index_copy index_fill index_put setitem copy fill zero pad constant_pad_nd scatter select_scatter slice_scatter
    diagonal_scatter fill_diagonal put complex unfold as_strided_scatter
    linear bilinear conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution
    batch_norm group_norm instance_norm layer_norm
'''.split())

#: Functions that write values to places that tensors of integers name, with the position of the values.
WRITES = {'index_copy': 3, 'index_put': 2, 'put': 2, 'scatter': 3, 'setitem': 2}

#: Activations that are linear on each side of zero: autograd's gradient already is y / x.
HOMOGENEOUS = frozenset('abs absolute copysign leaky_relu prelu relu rrelu'.split())
#: Activations that serve as gates when they multiply another tensor that carries relevance.
SATURATING = frozenset('atan arctan erf softsign tanh'.split())

#: Gates that are smooth functions of each element, or of all, but no deviations: an expansion can follow them.
SMOOTH = frozenset('''
    acos acosh arccos arccosh cos cosh erfc erfcx exp exp2 expit hardsigmoid log log10 log2 log_ndtr logaddexp
    logaddexp2 logcumsumexp logit logsigmoid logsumexp ndtr sigmoid sinc softplus
'''.split())

#: Functions among the sums that look at their operands before they are called.
_NOT_SUMS = frozenset('''
    lerp alpha_dropout feature_alpha_dropout trapezoid trapz cumulative_trapezoid embedding_bag
'''.split())

TABLE = {}
#: How many operands that depend on the input a function may have for plain autograd to be its rule.
DIRECT = {}


def base_name(dotted):
    '''Reduce a dotted function name to the name used in the table, e.g. ``torch.Tensor.__radd__`` to ``radd``.'''
    parts = [part for part in dotted.split('.') if part not in ('__get__', '__set__', '__delete__')]
    name = parts[-1]
    return name.strip('_') if name.startswith('_') else name.removesuffix('_')


def _is_inplace(dotted):
    name = dotted.split('.')[-1]
    dunder = ('__setitem__', '__iadd__', '__isub__', '__imul__', '__itruediv__', '__idiv__', '__ipow__',
               '__ifloordiv__')
    return name in dunder or (name.endswith('_') and not name.startswith('_'))


@cache
def _kinds():
    return {name: kind for kind, names in NAMES.items() for name in names.split()}


def _dotted(function):
    '''The full name of a torch function, or None for a function from elsewhere.'''
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return f'torch.ops.{function}' if str(function).startswith('aten.') else None
    owner = getattr(function, '__objclass__', None)
    module = getattr(owner, '__module__', None) or getattr(function, '__module__', None) or ''
    name = getattr(function, '__name__', None)
    return resolve_name(function) or (f'{module}.{name}' if module.split('.')[0] == 'torch' and name else None)


def _entry(dotted):
    if dotted.endswith(('__set__', '__delete__')):
        return Operator(dotted, Kind.REFUSED)
    name = base_name(dotted)
    return Operator(name, _kinds().get(name, Kind.REFUSED), _is_inplace(dotted))


def _build():
    for functions in get_overridable_functions().values():
        for function in functions:
            if resolve_name(function) is not None:
                _set(function, _entry(resolve_name(function)))


def _set(function, operator):
    TABLE[function] = operator
    DIRECT.pop(function, None)
    if not operator.inplace and (operator.is_plain_sum or operator.is_plain_product):
        DIRECT[function] = 2 if operator.is_plain_sum else 1


def lookup(function):
    '''Return the entry of a function, or None when the table has none.

    Parameters
    ----------
    function: callable
        A function as :py:class:`torch.overrides.TorchFunctionMode` receives it.

    Returns
    -------
    :py:obj:`Operator` or None
    '''
    entry = TABLE.get(function)
    if entry is None and _dotted(function) is not None:
        entry = _entry(_dotted(function))
        _set(function, entry)
    return entry


def register_operator(function, kind, inplace=False):
    '''Teach the table a function.

    Parameters
    ----------
    function: callable
        A function that dispatches to :py:class:`torch.overrides.TorchFunctionMode`, e.g. one of torch, or one written
        with :py:func:`torch.overrides.handle_torch_function`.
    kind: :py:obj:`Kind` or str
        What it does to relevance.
    inplace: bool, optional
        Whether it writes into its first argument.

    Raises
    ------
    TypeError
        If `function` is not callable.
    ValueError
        If `kind` is not the name of a kind.
    '''
    if not callable(function):
        raise TypeError(f'register_operator needs a function, got {type(function).__name__}')
    _set(function, Operator(getattr(function, '__name__', str(function)), Kind(kind), inplace))


def out_of_place(function, name):
    '''Return the function that computes the same as the in-place `function` without writing into its argument.'''
    owners = (torch.Tensor, torch)
    if 'functional' in (resolve_name(function) or ''):
        owners = (functional, *owners)
    dunders = {'iadd': 'add', 'isub': 'sub', 'imul': 'mul', 'itruediv': 'div', 'idiv': 'div', 'ipow': 'pow',
               'ifloordiv': 'floor_divide'}
    return next(getattr(owner, dunders.get(name, name)) for owner in owners if hasattr(owner, dunders.get(name, name)))


_build()
for _function in (causal_dot_product, delta_rule):
    register_operator(_function, Kind.ATTENTION)
