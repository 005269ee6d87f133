'''The words: base names of the functions of which their kind is all there is to say.

``roll`` stands for ``torch.roll`` and ``Tensor.roll``, ``cumsum`` for ``Tensor.cumsum_`` too. To teach the package a
function of torch, add its name here; if there is more to say of it, give it a row in
:py:mod:`zennit_attn.operators.facts`.
'''
from .kinds import Kind

WORDS = {
    Kind.PLAIN: '''
        all allclose any argmax argmin argsort argwhere array array_wrap backward bernoulli bincount bool
        bucketize byte char contains const_data_ptr count_nonzero data data_ptr deepcopy dense_dim detach_copy
        device dim dim_order dlpack dlpack_device dtype element_size empty_like eq equal format full_like ge
        get_device grad grad_fn greater greater_equal gt histc hash_tensor index int is_coalesced is_complex
        is_conj is_contiguous is_cpu is_cuda is_distributed is_floating_point is_inference is_leaf is_meta
        is_mkldnn is_mps is_neg is_nested is_nonzero is_pinned is_quantized is_same_size is_set_to is_shared
        is_signed is_sparse is_sparse_csr is_view isclose isfinite isin isinf isnan isneginf isposinf isreal
        item itemsize layout le len less less_equal logical_and logical_not logical_or logical_xor long lt
        multinomial name nbytes ndim ndimension ne nelement nested_tensor_from_mask_left_aligned nonzero
        nonzero_static not_equal numel numpy one_hot ones_like output_nr register_hook repr retain_grad
        retains_grad searchsorted shape short signbit size storage storage_offset storage_type stride tolist
        unique unique_consecutive untyped_storage version zeros_like base rand_like randn_like new_empty
        new_full new_ones new new_tensor new_zeros new_empty_strided nextafter bitwise_and bitwise_or
        bitwise_not is_xpu is_ipu is_xla is_maia is_mtia is_vulkan and or xor invert lshift rshift iand ior ixor
        ilshift irshift rand ror rxor rlshift rrshift bitwise_xor bitwise_left_shift bitwise_right_shift gcd lcm
        histogram histogramdd matrix_rank unravel_index dimI dimV nnz sparse_dim qscheme cdata backward_hooks
        grad_dtype has_grad_dtype_override volatile autocast sym_float sym_int sym_ite sym_max sym_min sym_not
        sym_sqrt sym_sum has_names names randint_like
        ''',
    Kind.REARRANGE: '''
        T H mT mH adjoint alias_copy as_strided as_strided_copy atleast_1d atleast_2d atleast_3d bfloat16
        broadcast_tensors broadcast_to cartesian_prod cdouble cfloat chalf channel_shuffle chunk clone conj
        conj_physical contiguous cpu cuda diag diagonal diagonal_copy double dsplit
        embedding expand expand_copy flatten flip fliplr flipud float gather getitem half hsplit imag
        index_select masked_select meshgrid moveaxis movedim narrow narrow_copy native_channel_shuffle
        pack_padded_sequence permute
        permute_copy pin_memory pixel_shuffle pixel_unshuffle positive ravel real repeat repeat_interleave
        reshape resolve_conj resolve_neg reversed roll rot90 select select_copy slice_copy split
        split_copy split_with_sizes split_with_sizes_copy squeeze squeeze_copy swapaxes swapdims t t_copy take
        take_along_dim tensor_split tile to transpose transpose_copy type unbind unbind_copy
        unflatten unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy view
        view_as_complex view_as_real view_copy vsplit ifftshift fftshift combinations
        view_as_complex_copy view_as_real_copy unsafe_view alias lift_fresh_copy to_copy slice ipu mtia
        xpu autocast_to_full_precision autocast_to_reduced_precision
        ''',
    Kind.SELECT: '''
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d adaptive_max_pool1d_with_indices
        adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices aminmax
        fractional_max_pool2d fractional_max_pool3d kthvalue max_pool1d max_pool2d max_pool3d
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_unpool1d max_unpool2d
        max_unpool3d median msort nanmedian sort topk mode fractional_max_pool2d_with_indices
        fractional_max_pool3d_with_indices
        ''',
    Kind.ADD: '''
        cumsum mean nanmean nansum sum sum_to_size trace deg2rad rad2deg gradient nanquantile quantile dropout
        dropout1d dropout2d dropout3d feature_dropout native_dropout
        ''',
    Kind.LINEAR: '''
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d affine_grid avg_pool1d avg_pool2d avg_pool3d
        fft fft2 fftn fold hfft hfft2 hfftn ifft ifft2 ifftn ihfft ihfft2 ihfftn interpolate irfft irfft2 irfftn
        istft rfft rfft2 rfftn stft affine_grid_generator
        ''',
    Kind.EINSUM: 'chain_matmul cross einsum inner kron matmul rmatmul vdot sparse_mm',
    Kind.GATE: '''
        angle cdist ceil cholesky det digamma dist entr fix floor floor_divide floordiv frobenius_norm heaviside
        hypot i0 i0e lgamma logdet matrix_norm norm_except_dim nuclear_norm pairwise_distance pdist polar
        rfloordiv round rsqrt sgn sign sqrt std trunc var airy_ai arctan2 atan2
        bessel_j0 bessel_y0 bessel_y1 cholesky_ex cholesky_inverse cond gammaincc gammaln ifloordiv igammac inv
        inv_ex inverse modified_bessel_i0 modified_bessel_k0 modified_bessel_k1 multigammaln mvlgamma
        native_norm ndtri pinv pinverse polygamma psi scaled_modified_bessel_k0 scaled_modified_bessel_k1
        spherical_bessel_j0 tensorinv zeta binary_cross_entropy binary_cross_entropy_with_logits
        cosine_embedding_loss cross_entropy ctc_loss gaussian_nll_loss hinge_embedding_loss huber_loss kl_div
        l1_loss linear_cross_entropy margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
        multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss soft_margin_loss
        triplet_margin_loss triplet_margin_with_distance_loss
        ''',
    Kind.ACTIVATION: '''
        arcsin arcsinh arctanh asin asinh atanh celu elu erfinv expm1 gelu hardshrink hardswish hardtanh log1p
        mish relu6 selu silu sin sinh softshrink square tan tanhshrink i1 i1e
        ''',
    Kind.COMPOSED: 'local_response_norm multi_head_attention_forward normalize',
}
