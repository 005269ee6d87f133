'''The five attention families, ours and as published, each with the options that its authors gave it.'''
from functools import partial

import pytest
import torch
from torch import nn

from attention.helpers import perturbed, published
from cases.problems.vision import ViT as PastedViT
from helpers import explain, largest
from zennit_attn import attention as ours
from zennit_attn.attention.fast_weights import FeedForward
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor

BATCH, LENGTH, DIM, HEADS, TOKENS = 2, 9, 12, 3, 11
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'attn_taylor': AttnTaylor}
PROBLEMS = {}


def problem(name, make, shape=(LENGTH, DIM), origins=('reference', 'published'), zoo=False):
    '''Enter what ``make`` builds for each origin; ``zoo`` if even ours needs an optional package.'''
    for origin in origins:
        marks = [pytest.mark.zoo] if zoo or origin == 'published' else []
        PROBLEMS[name, origin] = make, (BATCH, *shape), marks


class Call(nn.Module):
    '''A model called by a function of it and the explained input.'''
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)


def constant(*shape):
    '''Numbers that are the same in every call.'''
    return torch.linspace(-1., 1., torch.Size(shape).numel(), dtype=torch.float64).sin().reshape(shape)


def padding(length):
    '''A mask that keeps all tokens of the first, and all but three of the second sequence.'''
    return torch.arange(length) < torch.tensor([[length], [length - 3]])


# Linear attention

def linear_attention(origin, **options):
    package = published('denoising_diffusion_pytorch.denoising_diffusion_pytorch') if origin == 'published' else None
    return (package.LinearAttention if package else ours.MemoryLinearAttention)(8, 2, 5, **options)


def unet(origin):
    package = published('denoising_diffusion_pytorch.denoising_diffusion_pytorch')
    model = package.Unet(8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4)
    return Call(model, lambda model, x: model(x, torch.ones(len(x), dtype=x.dtype)))


problem('linear', lambda origin: ours.LinearAttention(8, 2, 5), (8, 3, 4), ('reference',))
problem('linear_memory', linear_attention, (8, 3, 4))
problem('linear_no_memory', partial(linear_attention, num_mem_kv=0), (8, 3, 4))
problem('linear_unet', unet, (3, 4, 4), ('published',))


# Performer

CONTEXT = 6
PERFORMERS = {
    'favor': {}, 'favor_causal': {'causal': True}, 'favor_features': {'nb_features': 11},
    'generalized': {'generalized_attention': True},
    'generalized_causal': {'generalized_attention': True, 'causal': True},
    'generalized_softplus': {'generalized_attention': True, 'kernel_fn': nn.Softplus()},
    'no_projection': {'no_projection': True}, 'no_projection_causal': {'no_projection': True, 'causal': True},
    'rezero': {'use_rezero': True}, 'scalenorm': {'use_scalenorm': True}, 'chunks': {'ff_chunks': 4},
    'glu': {'ff_glu': True}, 'shift': {'shift_tokens': True}, 'shift_causal': {'shift_tokens': True, 'causal': True},
    'no_biases': {'qkv_bias': False, 'attn_out_bias': False},
    'reversible': {'reversible': True}, 'reversible_causal': {'reversible': True, 'causal': True},
    'reversible_all': {'reversible': True, 'shift_tokens': True, 'ff_glu': True, 'ff_chunks': 3, 'use_scalenorm': True},
}
LOCAL = {
    'local': {'local_attn_heads': 1}, 'local_causal': {'local_attn_heads': (2, 1), 'causal': True},
    'local_only': {'local_attn_heads': 3}, 'local_reversible': {'local_attn_heads': 1, 'reversible': True},
}
MASKED = {
    'favor': {}, 'causal': {'causal': True}, 'shift': {'shift_tokens': True}, 'reversible': {'reversible': True},
}
CROSS = {
    'cross': {}, 'cross_causal': {'causal': True}, 'cross_generalized': {'generalized_attention': True},
    'cross_reversible': {'reversible': True},
}
POSITIONS = {
    'rotary': {}, 'absolute': {'rotary_position_emb': False},
    'axial': {'rotary_position_emb': False, 'axial_position_emb': True, 'axial_position_shape': (4, 4)},
}


def performer(origin, kind='Performer', **options):
    '''A performer whose causal product is plain torch, also where EPFL's float32 extension is installed.'''
    for needed, option in (('local_attention', 'local_attn_heads'),
                           ('axial_positional_embedding', 'axial_position_emb')):
        if options.get(option):
            published(needed)
    if options.get('local_attn_heads'):
        options['local_window_size'] = 4
    package = published('performer_pytorch.performer_pytorch') if origin == 'published' else ours
    model = getattr(package, kind)(dim=DIM, depth=2, heads=HEADS, dim_head=4, **options)
    for module in model.modules():
        if origin == 'published' and getattr(module, 'causal_linear_fn', None):
            module.causal_linear_fn = package.causal_linear_attention_noncuda
    return model


def masked_performer(origin, **options):
    return Call(performer(origin, **options), lambda model, x: model(x, mask=padding(LENGTH)))


def cross_performer(origin, masked=False, explain='x', **options):
    masks = {'mask': padding(LENGTH), 'context_mask': padding(CONTEXT)} if masked else {}

    def call(model, x):
        if explain == 'context':
            return model(constant(BATCH, LENGTH, DIM), context=x, **masks)
        return model(x, context=constant(BATCH, CONTEXT, DIM), **masks)
    return Call(performer(origin, cross_attend=True, **options), call)


class Embedded(nn.Module):
    '''A language model as a function of its embedding's output, so that a ledger can be read there.'''
    def __init__(self, model, **kwargs):
        super().__init__()
        self.model, self.kwargs = model, kwargs
        self.ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) ** 2 % TOKENS

    def forward(self, x):
        handle = self.model.token_emb.register_forward_hook(lambda module, args, output: x.clone())
        try:
            return self.model(self.ids, **self.kwargs)
        finally:
            handle.remove()


def language_model(origin, masked=False, **options):
    model = performer(origin, 'PerformerLM', num_tokens=TOKENS, max_seq_len=16, **options)
    return Embedded(model, **({'mask': padding(LENGTH)} if masked else {}))


for name, options in PERFORMERS.items():
    problem(f'performer_{name}', partial(performer, **options))
for name, options in LOCAL.items():
    problem(f'performer_{name}', partial(performer, **options), zoo=True)
for name, options in MASKED.items():
    problem(f'performer_masked_{name}', partial(masked_performer, **options))
problem('performer_masked_local', partial(masked_performer, local_attn_heads=1), zoo=True)
for name, options in CROSS.items():
    problem(f'performer_{name}', partial(cross_performer, **options))
    problem(f'performer_{name}_masked', partial(cross_performer, masked=True, **options))
problem('performer_cross_context', partial(cross_performer, explain='context'), (CONTEXT, DIM))
for name, options in POSITIONS.items():
    problem(f'lm_{name}', partial(language_model, **options), zoo='axial' in name)
    problem(f'lm_{name}_causal', partial(language_model, causal=True, tie_embed=True, **options), zoo='axial' in name)
problem('lm_masked', partial(language_model, masked=True, qkv_bias=True, attn_out_bias=True))
problem('lm_local', partial(language_model, local_attn_heads=1, causal=True), zoo=True)


# Multi-head attention

MULTIHEADS = {
    'plain': {}, 'no_bias': {'bias': False}, 'bias_kv': {'add_bias_kv': True}, 'zero_attn': {'add_zero_attn': True},
    'bias_kv_zero_attn': {'add_bias_kv': True, 'add_zero_attn': True}, 'widths': {'kdim': 8, 'vdim': 7},
}
FUTURE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
SCORES = constant(LENGTH, LENGTH)
MASKS = {
    'weights': {}, 'no_weights': {'need_weights': False}, 'weights_per_head': {'average_attn_weights': False},
    'boolean': {'attn_mask': FUTURE}, 'additive': {'attn_mask': SCORES, 'need_weights': False},
    'per_head': {'attn_mask': torch.stack([FUTURE, FUTURE.T] * HEADS)},
    'padding': {'key_padding_mask': ~padding(LENGTH), 'need_weights': False},
    'additive_padding': {'key_padding_mask': constant(BATCH, LENGTH), 'attn_mask': SCORES},
    'causal': {'attn_mask': FUTURE, 'is_causal': True, 'need_weights': False},
}


def multihead(origin, mask, cross=False, batch_first=True, **options):
    def call(model, x):
        inputs = [x[:, :5] if cross else x, x[..., :model.kdim], x[..., -model.vdim:]]
        kwargs = {**MASKS[mask], **({'attn_mask': MASKS[mask]['attn_mask'][:5]} if cross and mask == 'boolean' else {})}
        if not batch_first:
            inputs = [each.transpose(0, 1) for each in inputs]
        out, weights = model(*inputs, **kwargs)
        out = out if batch_first else out.transpose(0, 1)
        # Attention maps that are returned are gates, so they may weigh others and still the ledger closes.
        return out if weights is None else out * (1 + weights.mean(dim=tuple(range(1, weights.ndim)))[:, None, None])
    kind = nn if origin == 'torch' else ours
    return Call(kind.MultiheadAttention(DIM, HEADS, batch_first=batch_first, **options), call)


def torch_layer(origin, kind='Encoder', depth=0, call=None, **options):
    model = getattr(nn, f'Transformer{kind}Layer')(DIM, HEADS, 16, batch_first=True, **options)
    nested = {'enable_nested_tensor': False} if kind == 'Encoder' else {}
    return Call(getattr(nn, f'Transformer{kind}')(model, depth, **nested) if depth else model, call)


ENCODE = {
    'plain': lambda model, x: model(x),
    'causal': lambda model, x: model(x, FUTURE, is_causal=True),
    'padding': lambda model, x: model(x, src_key_padding_mask=~padding(LENGTH)),
}
DECODE = {
    'plain': lambda model, x: model(x[:, :5], x),
    'memory': lambda model, x: model(constant(BATCH, 5, DIM), x),
    'masks': lambda model, x: model(x[:, :5], x, tgt_mask=FUTURE[:5, :5], memory_key_padding_mask=~padding(LENGTH)),
}
for option, options in MULTIHEADS.items():
    for mask in MASKS if option in ('plain', 'bias_kv_zero_attn') else ('weights', 'no_weights', 'boolean'):
        problem(f'multihead_{option}_{mask}', partial(multihead, mask=mask, **options), origins=('reference', 'torch'))
    for mask in ('boolean', 'padding'):
        problem(f'multihead_cross_{option}_{mask}', partial(multihead, mask=mask, cross=True, **options),
                origins=('reference', 'torch'))
problem('multihead_length_first', partial(multihead, mask='padding', batch_first=False), origins=('reference', 'torch'))
for kind, calls in (('Encoder', ENCODE), ('Decoder', DECODE)):
    for name, call in calls.items():
        for options in ({}, {'norm_first': True, 'activation': 'gelu'}, {'depth': 2}):
            problem('_'.join(['torch', kind.lower(), name, *options]), origins=('torch',),
                    make=partial(torch_layer, kind=kind, call=call, **options))


# Vision transformers

VIT = {'image_size': 8, 'patch_size': 4, 'num_classes': 5, 'dim': DIM, 'depth': 2, 'heads': HEADS, 'mlp_dim': 20,
       'dim_head': 4}


def vit(origin, **options):
    kind = published('vit_pytorch.vit').ViT if origin == 'published' else ours.NormViT
    return kind(**VIT, **options)


for pool in ('cls', 'mean'):
    problem(f'vit_{pool}', partial(vit, pool=pool), (3, 8, 8))
    problem(f'vit_prenorm_{pool}', lambda origin, pool=pool: ours.ViT(**VIT, pool=pool), (3, 8, 8), ('reference',))
    problem(f'vit_own_{pool}', lambda origin, pool=pool: PastedViT(pool), (3, 8, 8), ('pasted',))


# Fast weights

def fast_weights(origin, nu=1, gated=False, depth=0):
    package = published('labml_nn.transformers.fast_weights') if origin == 'published' else ours
    forward = package.FeedForward if origin == 'published' else FeedForward
    model = package.FastWeightsAttention(HEADS, DIM, 0.1, package.DPFP(nu))
    if depth:
        layer = package.FastWeightsAttentionTransformerLayer(
            d_model=DIM, attn=model, feed_forward=forward(DIM, 16, is_gated=gated), dropout_prob=0.1)
        model = package.FastWeightsAttentionTransformer(layer, depth)
    return Call(model, lambda model, x: model(x.transpose(0, 1)).transpose(0, 1))


problem('fast_weights', fast_weights)
problem('fast_weights_nu', partial(fast_weights, nu=3))
problem('fast_weights_transformer', partial(fast_weights, depth=2))
problem('fast_weights_gated', partial(fast_weights, nu=2, depth=2, gated=True))


def build(name, origin):
    '''The float64 model of a problem in eval mode, away from its initialization, and a batch of inputs.'''
    make, shape, _ = PROBLEMS[name, origin]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(make(origin)).double().eval(), torch.randn(shape, dtype=torch.float64)


def explain_largest(model, input, composite=CPLRP, target=largest):
    '''The largest outputs are explained, so that nothing cancels.'''
    return explain(model, input, composite, target)


every_problem = pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=marks, id='-'.join(key)) for key, (_, _, marks) in PROBLEMS.items()])
every_composite = pytest.mark.parametrize('composite', COMPOSITES.values(), ids=COMPOSITES)
