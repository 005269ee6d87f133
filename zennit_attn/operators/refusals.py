'''Why functions of torch have no rule, and what to use instead: the names that the one table refuses, by reason.'''

# A reason is one clause, which ends an error message; the names are base names, as in the one table.
GROUPS = {
    'it draws at random; draw from a tensor that does not depend on the input, and add or multiply that': '''
        binomial cauchy exponential geometric log_normal normal poisson random uniform
        ''',
    'a quantized tensor has no gradient; explain the model before it was quantized': '''
        choose_qparams_optimized dequantize fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
        fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight
        fbgemm_linear_int8_weight_fp32_activation fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16
        fbgemm_pack_quantized_matrix fused_moving_avg_obs_fake_quant int_repr q_per_channel_axis q_per_channel_scales
        q_per_channel_zero_points q_scale q_zero_point quantize_per_channel quantize_per_tensor
        quantize_per_tensor_dynamic quantized_batch_norm quantized_gru_cell quantized_lstm_cell quantized_max_pool1d
        quantized_max_pool2d quantized_max_pool3d quantized_rnn_relu_cell quantized_rnn_tanh_cell scaled_mm scaled_mm_v2
        scaled_grouped_mm scaled_grouped_mm_v2 scaled_addmm
        ''',
    'relevance is not followed through sparse tensors; use dense tensors, e.g. x.index_select and index_add': '''
        ccol_indices ccol_indices_copy coalesce coalesced col_indices col_indices_copy crow_indices crow_indices_copy
        hspmm indices indices_copy resize_as_sparse row_indices row_indices_copy sampled_addmm smm sparse_bsc_tensor
        sparse_bsr_tensor sparse_compressed_tensor sparse_coo_tensor sparse_csc_tensor sparse_csr_tensor sparse_mask
        sparse_mask_projection sparse_resize sparse_resize_and_clear spdiags spsolve sspaddmm to_dense
        to_sparse to_sparse_semi_structured values values_copy
        ''',
    'relevance is not followed through nested tensors; pad to one length and mask': '''
        nested_from_padded nested_from_padded_and_nested_example nested_get_values
        nested_get_values_copy nested_tensor_from_mask nested_tensor_from_tensor_list nested_tensor_size
        nested_tensor_softmax_with_shape nested_tensor_storage_offsets nested_tensor_strides nested_view_from_buffer
        nested_view_from_buffer_copy nested_view_from_jagged nested_view_from_jagged_copy
        ''',
    'relevance is not followed through named tensors, which newer versions of torch lack; use permute, unsqueeze': '''
        align_as align_to refine_names rename update_names
        ''',
    'the kernel is that of one device; use the functions of torch.nn.functional': '''
        miopen_batch_norm miopen_convolution miopen_convolution_add_relu miopen_convolution_relu
        miopen_convolution_transpose miopen_depthwise_convolution
        ''',
    'the kernel is that of one device; use torch.nn.RNN, torch.nn.LSTM or torch.nn.GRU': 'miopen_rnn',
    'the layout is that of one library; leave the tensor as it is': 'to_mkldnn',
    'it is a step of batch normalization in training, which mixes the samples of a batch; call model.eval()': '''
        batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt batch_norm_gather_stats
        batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats
        ''',
    'it also returns the statistics of a normalization; use the function of torch.nn.functional': '''
        native_batch_norm native_group_norm native_layer_norm
        ''',
    'a decomposition of a matrix is not linear in it; detach the matrix where its factors only weigh other tensors': '''
        eig eigh eigvals eigvalsh geqrf householder_product ldl_factor ldl_factor_ex lobpcg lu lu_factor lu_factor_ex
        lu_unpack matrix_sqrth orgqr pca_lowrank qr slogdet svd svd_lowrank svdvals
        ''',
    'the solution of equations is not linear in their matrix; use torch.linalg.solve, whose matrix is a gate': '''
        ldl_solve lu_solve triangular_solve
        ''',
    'the solution of least squares is not linear in their matrix; use @ and torch.linalg.pinv, which is a gate':
        'lstsq',
    'the reflections that it multiplies by are not linear in their vectors; use @ and '
    'torch.linalg.householder_product of the detached vectors': 'ormqr',
    'the matrix exponential is not linear in its argument; detach the argument where the result only weighs': '''
        matrix_exp
        ''',
    'powers of a matrix are products of as many factors as the exponent says; write them with @': '''
        matrix_power
        ''',
    'its columns are different powers of one tensor; write them with ** and torch.stack': '''
        vander
        ''',
    'it is a product of the centred tensor with itself; write it with mean and @': 'cov',
    'it is a product of the centred tensor with itself, divided by deviations; write it with mean, std and @':
        'corrcoef',
    'torch has no derivative for it, and whether it vanishes at zero depends on its degree; write the polynomial with '
    '* and +': '''
        chebyshev_polynomial_t chebyshev_polynomial_u chebyshev_polynomial_v chebyshev_polynomial_w
        hermite_polynomial_h hermite_polynomial_he laguerre_polynomial_l legendre_polynomial_p
        shifted_chebyshev_polynomial_t shifted_chebyshev_polynomial_u shifted_chebyshev_polynomial_v
        shifted_chebyshev_polynomial_w
        ''',
    'it vanishes at zero, and torch has no derivative for it; detach its argument where it only weighs others': '''
        bessel_j1 modified_bessel_i1
        ''',
    'it vanishes at zero in one of its arguments, not in the other; detach both where it only weighs others': '''
        gammainc igamma
        ''',
    'a remainder is its argument less a step function; write x - n * (x / n).floor(), with trunc for fmod and frac': '''
        fmod frac imod mod remainder rmod
        ''',
    'it is a product with a logarithm; write it with * and torch.log or torch.log1p': '''
        xlog1py xlogy
        ''',
    'it splits a number into a mantissa and an exponent; take the exponent of x.detach(), and the mantissa as '
    'torch.ldexp(x, -exponent)': 'frexp',
    'a p-norm over a window is neither linear nor elementwise; use average or max pooling': '''
        lp_pool1d lp_pool2d lp_pool3d
        ''',
    'it runs Python code for every element, which the engine cannot see; use torch functions on whole tensors': '''
        apply map map2
        ''',
    'it changes the memory of a tensor behind autograd; use reshape, slices or clone': '''
        resize resize_as set setstate module_load share_memory
        ''',
    'it is a form for compilers; use the tensor that the slice was taken from': 'slice_inverse',
    'it hands memory to code that the engine cannot see; call it on x.detach()': '''
        clear_non_serializable_cached_data cuda_array_interface record_stream reduce_ex
        ''',
    'it hands gradients to code that may change them; use x.register_hook, whose hooks may look at them': '''
        post_accumulate_grad_hooks register_post_accumulate_grad_hook
        ''',
}
#: The reasons by name.
REASONS = {name: reason for reason, names in GROUPS.items() for name in names.split()}

#: What code in C++ that writes into a tensor sets, as the only sign of it that Python sees.
UNSEEN_WRITE = 'torch.Tensor._backward_hooks.__set__'
UNKNOWN = 'it is not in the table of operators'
_SETTER = 'assigning to an attribute of a tensor goes past autograd; make a new tensor instead'
_OVERWRITES = 'it writes what does not depend on the input into a tensor that does; call the form without underscore '\
    'on detached tensors'


def reason(name, operator=None):
    '''Return why a function has no rule.

    Parameters
    ----------
    name: str
        Its base name, or the dotted name of a setter.
    operator: :py:class:`~zennit_attn.operators.Operator`, optional
        Its entry in the table.

    Returns
    -------
    str
    '''
    if name == UNSEEN_WRITE:
        return 'it writes in place, and its code cannot be seen'
    if name.endswith(('.__set__', '.__delete__')):
        return _SETTER
    if operator is not None and operator.inplace and operator.kind.value == 'plain':
        return _OVERWRITES
    return REASONS.get(name, UNKNOWN)
