'''Attention from many papers, each in a small package of its own that nothing here was written for.'''
from functools import partial
from importlib import import_module

import torch
from torch import nn

from zennit_attn.errors import NoRelevance, UntrackedTensor

from .published import FROZEN_BAG, TOKENS, Model, construct

MAP = (2, 16, 8, 8)
IMAGE = (2, 3, 32, 32)
VIDEO = (2, 4, 3, 16, 16)
HEADS = {'dim': 32, 'heads': 4, 'dim_head': 8}


class FromEmbedding(nn.Module):
    '''A token model as a function of what its first embedding returns.'''
    def __init__(self, model, length, number=50):
        super().__init__()
        path = next(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))
        parent, _, name = path.rpartition('.')
        self.model = model
        self.given = Given()
        setattr(model.get_submodule(parent), name, self.given)
        self.register_buffer('tokens', torch.randint(number, (2, length)))

    def forward(self, x):
        self.given.value = x
        output = self.model(self.tokens)
        self.given.value = None
        return output


class Given(nn.Module):
    '''Stands for an embedding: returns what it was given.'''
    value = None

    def forward(self, tokens):
        return self.value


def from_embedding(module, name, options, length):
    '''Import the class of a token model and make an instance that takes embeddings.'''
    return FromEmbedding(construct(module, name, options), length)


def paper(package, name, options, shape=TOKENS, call=None, **expected):
    '''A module of a package.'''
    module = package.replace('-', '_').lower()
    return Model(f'{package} {name}', module, partial(construct, module, name, options, call), shape, **expected)


def tokens(package, name, options, length=16, **expected):
    '''A token model of a package, from its embedding.'''
    module = package.replace('-', '_').lower()
    build = partial(from_embedding, module, name, options, length)
    return Model(f'{package} {name}', module, build, (2, length, 32), **expected)


def beside(*shape, **options):
    '''Call a model with a second tensor, which is a constant.'''
    other = torch.randn(*shape, dtype=torch.float64)
    return lambda model, x: model(x, other, **options)


def first(model, x):
    '''Call a model that returns more than what is of interest.'''
    return model(x)[0]


def seeded(model, x):
    '''Call a model that draws random projections.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(x)


def mamba(pscan):
    '''Mamba in plain torch, its scan parallel or one step after the other.'''
    package = import_module('mambapy.mamba')
    return package.Mamba(package.MambaConfig(d_model=32, n_layers=2, pscan=pscan))


def refused(error, message):
    '''Both composites refuse a model.'''
    return {'refused': {'cp_lrp': (error, message), 'attn_lrp': (error, message)}}


KERNEL = refused(UntrackedTensor, 'PScanBackward')

PAPERS = [
    # fewer keys, or cheaper maps
    paper('linformer', 'Linformer', {'dim': 32, 'seq_len': 9, 'depth': 2, 'heads': 4, 'k': 4, 'share_kv': True}),
    paper('nystrom-attention', 'Nystromformer', {**HEADS, 'depth': 2, 'num_landmarks': 4}, (2, 16, 32)),
    paper('agent-attention-pytorch', 'AgentSelfAttention', {**HEADS, 'num_agent_tokens': 4}),
    paper('isab-pytorch', 'ISAB', {'dim': 32, 'heads': 4, 'num_latents': 6, 'latent_self_attend': True}, call=first),
    paper('kronecker-attention-pytorch', 'KroneckerSelfAttention', {'dim': 16, 'heads': 2, 'dim_heads': 8}, MAP),
    paper('memory-efficient-attention-pytorch', 'Attention', {**HEADS, 'causal': True, 'memory_efficient': False}),
    paper('memory-efficient-attention-pytorch', 'CosineSimAttention', {**HEADS, 'seq_len': 9}),
    # hashed, sorted, in blocks, over axes
    paper('reformer-pytorch', 'LSHSelfAttention', {'dim': 32, 'heads': 4, 'bucket_size': 4, 'n_hashes': 2}, (2, 16, 32),
          call=seeded),
    paper('sinkhorn-transformer', 'SinkhornTransformer', {'dim': 32, 'heads': 4, 'depth': 1, 'bucket_size': 4},
          (2, 16, 32), call=seeded),
    tokens('h-transformer-1d', 'HTransformer1D', {
        **HEADS, 'num_tokens': 50, 'depth': 1, 'causal': True, 'max_seq_len': 16, 'block_size': 4}),
    paper('axial-attention', 'AxialAttention', {'dim': 16, 'dim_index': 1, 'heads': 2, 'num_dimensions': 2}, MAP),
    paper('halonet-pytorch', 'HaloAttention', {
        'dim': 16, 'block_size': 4, 'halo_size': 2, 'dim_head': 8, 'heads': 2}, MAP),
    paper('bottleneck-transformer-pytorch', 'BottleStack', {
        'dim': 16, 'fmap_size': 8, 'dim_out': 32, 'proj_factor': 4, 'heads': 2, 'dim_head': 8, 'rel_pos_emb': True,
        'downsample': True, 'num_layers': 2}, MAP),
    # no attention map at all
    paper('lambda-networks', 'LambdaLayer', {'dim': 16, 'dim_out': 16, 'r': 7, 'dim_k': 8, 'heads': 4, 'dim_u': 2},
          MAP),
    paper('g-mlp-pytorch', 'gMLPVision', {
        'image_size': 32, 'patch_size': 8, 'num_classes': 10, 'dim': 32, 'depth': 2}, IMAGE),
    tokens('g-mlp-pytorch', 'gMLP', {
        'num_tokens': 50, 'dim': 32, 'depth': 2, 'seq_len': 16, 'causal': True, 'circulant_matrix': True, 'heads': 1,
        'attn_dim': 8}),
    paper('mlp-mixer-pytorch', 'MLPMixer', {
        'image_size': 32, 'channels': 3, 'patch_size': 8, 'dim': 32, 'depth': 2, 'num_classes': 10}, IMAGE),
    paper('mlp-mixer-pytorch', 'Permutator', {
        'image_size': 32, 'patch_size': 8, 'dim': 32, 'depth': 2, 'num_classes': 10, 'segments': 4}, IMAGE),
    paper('res-mlp-pytorch', 'ResMLP', {
        'image_size': 32, 'patch_size': 8, 'dim': 32, 'depth': 2, 'num_classes': 10}, IMAGE),
    paper('Mega-pytorch', 'MegaLayer', {
        'dim': 32, 'ema_heads': 4, 'attn_dim_qk': 16, 'attn_dim_value': 32, 'laplacian_attn_fn': True}),
    tokens('token-shift-gpt', 'TokenShiftGPT', {
        'num_tokens': 50, 'dim': 32, 'max_seq_len': 16, 'depth': 2, 'ff_mult': 2}),
    # latents, slots, experts
    paper('perceiver-pytorch', 'Perceiver', {
        'input_channels': 3, 'input_axis': 2, 'num_freq_bands': 4, 'max_freq': 10., 'depth': 3, 'num_latents': 8,
        'latent_dim': 32, 'cross_heads': 1, 'latent_heads': 4, 'cross_dim_head': 8, 'latent_dim_head': 8,
        'num_classes': 10, 'weight_tie_layers': True}, (2, 8, 8, 3)),
    paper('soft-moe-pytorch', 'SoftMoE', {'dim': 32, 'seq_len': 9, 'num_experts': 4, 'geglu': True}),
    paper('mixture-of-experts', 'MoE', {
        'dim': 32, 'num_experts': 4, 'hidden_dim': 32, 'second_policy_eval': 'all', 'capacity_factor_eval': 9.},
        call=first),
    # memories and recurrence
    tokens('feedback-transformer-pytorch', 'FeedbackTransformer', {
        **HEADS, 'num_tokens': 50, 'depth': 2, 'seq_len': 2, 'mem_len': 8}),
    tokens('hourglass-transformer-pytorch', 'HourglassTransformerLM', {
        **HEADS, 'num_tokens': 50, 'max_seq_len': 16, 'depth': (1, (1, 1, 1), 1), 'shorten_factor': 2, 'causal': True,
        'attn_resampling': True, 'updown_sample_type': 'linear'}),
    tokens('rela-transformer', 'ReLATransformer', {**HEADS, 'num_tokens': 50, 'depth': 2, 'max_seq_len': 16}),
    Model('mambapy Mamba, step by step', 'mambapy', partial(mamba, pscan=False), TOKENS),
    Model('mambapy Mamba, parallel scan', 'mambapy', partial(mamba, pscan=True), TOKENS, **KERNEL),
    # speech, clouds, molecules, films, segments
    paper('conformer', 'ConformerBlock', {**HEADS, 'ff_mult': 2, 'conv_expansion_factor': 2, 'conv_kernel_size': 7}),
    paper('point-transformer-pytorch', 'PointTransformerLayer', {
        'dim': 32, 'pos_mlp_hidden_dim': 16, 'attn_mlp_hidden_mult': 2, 'num_neighbors': 4}, call=beside(2, 9, 3)),
    paper('timesformer-pytorch', 'TimeSformer', {
        **HEADS, 'image_size': 16, 'patch_size': 8, 'num_frames': 4, 'num_classes': 10, 'depth': 2}, VIDEO),
    paper('STAM-pytorch', 'STAM', {
        'dim': 32, 'image_size': 16, 'patch_size': 8, 'num_frames': 4, 'num_classes': 10, 'space_depth': 1,
        'space_heads': 4, 'space_mlp_dim': 32, 'time_depth': 1, 'time_heads': 4, 'time_mlp_dim': 32,
        'space_dim_head': 8, 'time_dim_head': 8}, VIDEO),
    paper('segformer-pytorch', 'Segformer', {
        'dims': (8, 16, 24, 32), 'heads': (1, 2, 2, 4), 'ff_expansion': (2,) * 4, 'reduction_ratio': (4, 2, 1, 1),
        'num_layers': 1, 'decoder_dim': 16, 'num_classes': 4}, (2, 3, 64, 64)),
    paper('bidirectional-cross-attention', 'BidirectionalCrossAttention', {**HEADS, 'context_dim': 24},
          call=lambda model, x: model(x, x[..., :24])[0]),
    paper('product-key-memory', 'PKM', {'dim': 32, 'heads': 2, 'dim_head': 8, 'num_keys': 16, 'topk': 4},
          refused={'cp_lrp': (NoRelevance, 'softmax')}, needs=FROZEN_BAG),
]
