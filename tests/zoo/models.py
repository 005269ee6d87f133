'''The list of published models that the zoo explains: how each one is built, what it is given, what is expected.'''
from functools import partial
from importlib import import_module
from unittest import mock

import torch
from torch import nn

from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.errors import UntrackedTensor

from .papers import PAPERS
from .published import COMPOSITES, FROZEN_BAG, IMAGES, LARGE_IMAGES, TOKENS, Model, Wrapped, construct, in_its_precision

# ---- torchvision and torch -------------------------------------------------------------------------------------------

def torchvision(label, name, shape=IMAGES, **options):
    '''A model of torchvision.'''
    return Model(f'torchvision {label}', 'torchvision', partial(construct, 'torchvision.models', name, options), shape)


def swin_v2():
    '''Swin in its second version, small.'''
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
    return SwinTransformer(**SWIN, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def convnext():
    '''ConvNeXt, small.'''
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 2)], num_classes=5)


def decode(model, x):
    '''A decoder that reads its own input backwards.'''
    return model(x, x.flip(1))


SWIN = {'patch_size': [2, 2], 'embed_dim': 16, 'depths': [2, 2], 'num_heads': [2, 2], 'window_size': [4, 4],
        'num_classes': 5}
LAYER = {'d_model': 32, 'nhead': 2, 'dim_feedforward': 48, 'batch_first': True}
TORCHVISION = [
    torchvision('ViT', 'VisionTransformer', image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32,
                mlp_dim=64, num_classes=5),
    torchvision('Swin', 'SwinTransformer', **SWIN),
    Model('torchvision SwinV2', 'torchvision', swin_v2, IMAGES),
    Model('torchvision ConvNeXt', 'torchvision', convnext, IMAGES),
    torchvision('MaxViT', 'MaxVit', input_size=(32, 32), stem_channels=8, partition_size=2, block_channels=[8, 16],
                block_layers=[1, 1], head_dim=4, stochastic_depth_prob=0., num_classes=5),
    Model('torch TransformerEncoder', 'torch',
          lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER), 2), TOKENS),
    Model('torch TransformerEncoder, norm first', 'torch',
          lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**LAYER, norm_first=True), 2,
                                        enable_nested_tensor=False), TOKENS),
    Model('torch TransformerDecoder', 'torch',
          lambda: Wrapped(nn.TransformerDecoder(nn.TransformerDecoderLayer(**LAYER), 2), decode), TOKENS),
]

# ---- timm ------------------------------------------------------------------------------------------------------------

def timm(name, label='', shape=IMAGES, **options):
    '''A model of timm.'''
    options = {'model_name': name, 'num_classes': 5, **options}
    return Model(f'timm {name}{label}', 'timm', partial(construct, 'timm', 'create_model', options), shape)


def metaformer(mixers, norms):
    '''A MetaFormer with a token mixer and a norm for each of two stages.'''
    package = import_module('timm.models.metaformer')
    return package.MetaFormer(num_classes=5, depths=(1, 1), dims=(32, 64),
                              token_mixers=[getattr(package, mixer) for mixer in mixers],
                              norm_layers=[getattr(package, norm) for norm in norms])


TINY = {'img_size': 32, 'embed_dim': 32, 'depth': 2, 'num_heads': 2}
PATCHES = {**TINY, 'patch_size': 8}
WINDOWS = {'img_size': 32, 'window_size': 4, 'embed_dim': 16, 'depths': (2, 2), 'num_heads': (2, 2)}
TIMM = [
    timm('vit_tiny_patch16_224', **PATCHES),
    timm('vit_tiny_patch16_224', ' with registers', init_values=.1, qk_norm=True, reg_tokens=2, global_pool='avg',
         **PATCHES),
    timm('vit_so150m_patch16_reg4_map_256', **TINY),
    timm('deit3_small_patch16_224', **PATCHES),
    timm('deit_tiny_distilled_patch16_224', **PATCHES),
    timm('beit_base_patch16_224', **PATCHES),
    timm('beitv2_base_patch16_224', **PATCHES),
    timm('cait_xxs24_224', **PATCHES),
    timm('xcit_nano_12_p16_224', **TINY),
    timm('eva02_tiny_patch14_224', shape=(2, 3, 28, 28), **{**TINY, 'img_size': 28}),
    timm('swin_tiny_patch4_window7_224', **WINDOWS),
    timm('swinv2_tiny_window8_256', **WINDOWS),
    timm('swinv2_cr_tiny_224', **WINDOWS),
    timm('maxvit_rmlp_pico_rw_256', shape=LARGE_IMAGES, img_size=64, embed_dim=(32, 64), depths=(1, 1)),
    timm('coatnet_pico_rw_224', shape=LARGE_IMAGES, img_size=64),
    timm('convnext_atto', depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    timm('mixer_s32_224', shape=LARGE_IMAGES, img_size=64),
    timm('gmlp_ti16_224', img_size=32),
    timm('pvt_v2_b0', depths=(1, 1, 1, 1)),
    timm('twins_svt_small', img_size=32, embed_dims=(16, 16, 32, 32), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 1)),
    Model('timm poolformer', 'timm', partial(metaformer, ('Pooling', 'Pooling'), ('GroupNorm1', 'GroupNorm1')), IMAGES),
    Model('timm caformer', 'timm', partial(
        metaformer, ('SepConv', 'Attention'), ('LayerNorm2dNoBias', 'LayerNormNoBias')), IMAGES),
    timm('levit_128s', shape=LARGE_IMAGES, img_size=64),
    timm('davit_tiny', depths=(1, 1), embed_dims=(16, 32), num_heads=(1, 2)),
    timm('mobilevit_xxs'),
    timm('edgenext_xx_small'),
    timm('fastvit_t8'),
    timm('hiera_tiny_224', shape=LARGE_IMAGES, img_size=64, embed_dim=16, num_heads=1, stages=(1, 1, 1, 1)),
    Model('timm nest', 'timm', partial(construct, 'timm.models.nest', 'Nest', {
        'img_size': 32, 'patch_size': 4, 'num_levels': 2, 'embed_dims': (8, 16), 'num_heads': (1, 2), 'depths': (1, 1),
        'num_classes': 5}), IMAGES),
    Model('timm crossvit', 'timm', partial(construct, 'timm.models.crossvit', 'CrossVit', {
        'img_size': 32, 'img_scale': (1., 1.), 'patch_size': (8, 16), 'embed_dim': (16, 32), 'depth': ((1, 1, 0),),
        'num_heads': (2, 2), 'mlp_ratio': (2., 2., 1.), 'num_classes': 5}), IMAGES),
    timm('tnt_s_patch16_224', img_size=32, embed_dim=32, inner_dim=8, depth=1, num_heads_inner=2, num_heads_outer=2),
]

# ---- vit-pytorch -----------------------------------------------------------------------------------------------------

def vit(module, name, shape=IMAGES, label='', call=None, single='', **options):
    '''A model of vit-pytorch.'''
    build = partial(construct, f'vit_pytorch.{module}', name, {'num_classes': 5, **options}, call)
    return Model(f'vit-pytorch {module}{label}', 'vit_pytorch', build, shape, single)


def seeded(model, x):
    '''Call a model that draws random numbers.'''
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(x)


def without_flex(model, x):
    '''Call a model without flex_attention, of which torch has no gradient on the CPU.'''
    masking = import_module('vit_pytorch.vit_nd_masking')
    with mock.patch.object(masking, 'flex_attention_supported', return_value=False):
        return model(x)


def crossformer():
    '''CrossFormer, whose positions are always single.'''
    from vit_pytorch.crossformer import CrossFormer
    return in_its_precision(CrossFormer(num_classes=5, dim=32, depth=1, global_window_size=(4, 2, 2, 1),
                                        local_window_size=(4, 4, 2, 1)), 'dpb')


VOLUME = (2, 3, 4, 16, 16)
BLOCK = {'image_size': 32, 'patch_size': 8, 'dim': 32, 'depth': 2, 'heads': 2, 'dim_head': 16, 'mlp_dim': 48}
STAGE = {'patch_size': 2, 'local_patch_size': 2, 'global_k': 2, 'depth': 1}
TWINS = {f's{stage}_{key}': value for stage in (1, 2, 3, 4)
         for key, value in {**STAGE, 'emb_dim': 8, 'patch_size': 4 if stage == 1 else 1}.items()}
CVT = {f's{stage}_{key}': value for stage in (1, 2, 3) for key, value in (('emb_dim', 8), ('heads', 1), ('depth', 1))}
CROSS = {f'{size}_{key}': value for size in ('sm', 'lg')
         for key, value in (('dim', 16), ('enc_depth', 1), ('enc_heads', 2), ('enc_mlp_dim', 16), ('enc_dim_head', 8))}
GRID = {key: value for key, value in BLOCK.items() if key not in ('image_size', 'patch_size')}
VOLUMES = {**GRID, 'image_size': 16, 'image_patch_size': 8, 'frames': 4, 'frame_patch_size': 2}
ND = {**GRID, 'ndim': 3, 'input_shape': (4, 16, 16), 'patch_size': (2, 8, 8)}
# local_vit is missing because as published it does not run: it norms the tokens of an image laid out channels first.
VIT_PYTORCH = [
    vit('vit', 'ViT', **BLOCK),
    vit('vit', 'ViT', label=', mean', **BLOCK, pool='mean'),
    vit('simple_vit', 'SimpleViT', **BLOCK),
    vit('deepvit', 'DeepViT', **BLOCK),
    vit('cait', 'CaiT', **BLOCK, cls_depth=1),
    vit('t2t', 'T2TViT', image_size=32, dim=32, depth=1, heads=2, mlp_dim=48, t2t_layers=((7, 4), (3, 2))),
    vit('cct', 'CCT', img_size=32, embedding_dim=32, n_conv_layers=2, kernel_size=3, stride=1, padding=1, num_layers=1,
        num_heads=2, mlp_ratio=2., positional_embedding='learnable'),
    vit('cross_vit', 'CrossViT', image_size=32, depth=1, sm_patch_size=8, lg_patch_size=16, cross_attn_depth=1,
        cross_attn_heads=2, **CROSS),
    vit('pit', 'PiT', **{**BLOCK, 'depth': (1, 1)}),
    vit('levit', 'LeViT', LARGE_IMAGES, image_size=64, stages=2, dim=(32, 48), depth=1, heads=(2, 3), mlp_mult=2),
    vit('cvt', 'CvT', **CVT),
    vit('twins_svt', 'TwinsSVT', **TWINS),
    Model('vit-pytorch crossformer', 'vit_pytorch', crossformer, LARGE_IMAGES),
    vit('regionvit', 'RegionViT', LARGE_IMAGES, dim=(8, 8, 8, 8), depth=(1, 1, 1, 1), window_size=2,
        tokenize_local_3_conv=False, use_peg=True),
    vit('nest', 'NesT', image_size=32, patch_size=4, dim=16, heads=1, num_hierarchies=2, block_repeats=(1, 1)),
    vit('mobile_vit', 'MobileViT', LARGE_IMAGES, image_size=(64, 64), dims=[16, 16, 16], channels=[8] * 11),
    vit('xcit', 'XCiT', **BLOCK, cls_depth=1),
    vit('max_vit', 'MaxViT', dim_conv_stem=8, dim=8, dim_head=4, depth=(1, 1), window_size=4, mbconv_expansion_rate=2,
        mbconv_shrinkage_rate=.25),
    vit('max_vit_with_registers', 'MaxViT', dim_conv_stem=8, dim=8, dim_head=4, depth=(1, 1), window_size=4,
        mbconv_expansion_rate=2, mbconv_shrinkage_rate=.25),
    vit('sep_vit', 'SepViT', (2, 3, 56, 56), dim=8, dim_head=4, heads=(1, 2), depth=(1, 1)),
    vit('rvt', 'RvT', **BLOCK),
    vit('parallel_vit', 'ViT', **BLOCK, num_parallel_branches=2),
    vit('vit_for_small_dataset', 'ViT', **BLOCK),
    vit('scalable_vit', 'ScalableViT', dim=16, heads=(2, 2), depth=(1, 1), ssa_dim_key=(8, 8), reduction_factor=(2, 1),
        window_size=(4, None)),
    vit('simple_vit_with_fft', 'SimpleViT', **BLOCK, freq_patch_size=8),
    vit('simple_vit_with_qk_norm', 'SimpleViT', **BLOCK),
    vit('simple_vit_with_register_tokens', 'SimpleViT', **BLOCK),
    vit('simple_vit_with_value_residual', 'SimpleViT', **BLOCK),
    vit('simple_vit_attn_residual', 'SimpleViTAttnResidual', **BLOCK),
    vit('simple_vit_with_hyper_connections', 'SimpleViT', **BLOCK, num_residual_streams=2),
    vit('simple_vit_with_patch_dropout', 'SimpleViT', **BLOCK),
    vit('simple_uvit', 'SimpleUViT', **BLOCK),
    vit('simple_flash_attn_vit', 'SimpleViT', **BLOCK, use_flash=True),
    vit('learnable_memory_vit', 'ViT', **BLOCK),
    vit('vit_with_patch_merger', 'ViT', **BLOCK, patch_merge_layer=1, patch_merge_num_tokens=4),
    vit('vit_with_patch_dropout', 'ViT', **BLOCK),
    vit('vit_with_keel_post_ln', 'ViT', **BLOCK),
    vit('vit_5', 'ViT', **BLOCK),
    vit('vit_detpool', 'ViTDetPool', **BLOCK),
    vit('jumbo_vit', 'JumboViT', **BLOCK),
    vit('normalized_vit', 'nViT', **BLOCK),
    vit('look_vit', 'LookViT', dim=16, image_size=32, depth=1, patch_size=16, heads=2, dim_head=8, highres_patch_size=8,
        cross_attn_heads=2, cross_attn_dim_head=8),
    vit('looped_vit', 'LoopedViT', dim=32, image_size=32, patch_size=8, heads=2, dim_head=16, mlp_dim=48,
        pre_loop_depth=1, num_looped_blocks=1, post_loop_depth=1, loop_depth=3),
    vit('ats_vit', 'ViT', call=seeded, **BLOCK, max_tokens_per_depth=(8, 4)),
    vit('vit_3d', 'ViT', VOLUME, **VOLUMES),
    vit('simple_vit_3d', 'SimpleViT', VOLUME, **VOLUMES),
    vit('vit_1d', 'ViT', (2, 3, 24), **{**GRID, 'seq_len': 24, 'patch_size': 4}),
    vit('vivit', 'ViViT', VOLUME, image_size=16, image_patch_size=8, frames=4, frame_patch_size=2, dim=32,
        spatial_depth=1, temporal_depth=1, heads=2, dim_head=16, mlp_dim=48),
    vit('vit_nd', 'ViTND', VOLUME, call=without_flex, **ND),
    vit('vit_nd_rotary', 'ViTND', VOLUME, call=without_flex, single='queries and keys', **ND),
    vit('vit_nd_pope', 'ViTND', VOLUME, call=without_flex, **ND),
]

# ---- Hugging Face ----------------------------------------------------------------------------------------------------

def called(keyword, attribute, model, x):
    '''Call a model of transformers with one keyword and take one entry of its output.'''
    return getattr(model(**{keyword: x}), attribute)


def transduced(model, x):
    '''Encode the tokens, and decode them backwards.'''
    return model(inputs_embeds=x, decoder_inputs_embeds=x.flip(1)).last_hidden_state


def configured(config, name, implementation, options, call, part=None):
    '''Build a model of transformers.'''
    package = import_module('transformers')
    config = getattr(package, config)(**options, attn_implementation=implementation)
    model = getattr(package, name)(config)
    return Wrapped(getattr(model, part) if part else model, call)


def hugging_face(label, family, head='Model', shape=TOKENS, keyword='inputs_embeds', call=None, both=True, part=None,
                 base=None, single='', refused=None, remedy=None, broken=None, newer=None, **options):
    '''A model of transformers, with eager attention and, where it is there, with scaled_dot_product_attention.'''
    attribute = 'last_hidden_state' if head.endswith('Model') else 'logits'
    call = call or partial(called, keyword, attribute)
    options = {**(LANGUAGE if base is None else base), **options}
    for implementation in ('eager', 'sdpa') if both else ('eager',):
        build = partial(configured, f'{family}Config', f'{family}{head}', implementation, options, call, part)
        needs = {'transformers': ('5', newer[implementation])} if implementation in (newer or {}) else {}
        yield Model(f'transformers {label}, {implementation}', 'transformers', build, shape, single, refused or {},
                    remedy or {}, broken or {}, needs)


def bloom_remedy():
    '''Bloom's GELU is an autograd function of its own, so the module is given its rule.'''
    from transformers.models.bloom.modeling_bloom import BloomGelu
    from zennit.rules import Pass
    return {'layer_map': [(BloomGelu, Pass())]}


SPECIAL = {'vocab_size': 50, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
LANGUAGE = {**SPECIAL, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 48,
            'max_position_embeddings': 40}
VISION = {'image_size': 32, 'patch_size': 8, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
          'intermediate_size': 48}
T5 = {**SPECIAL, 'd_model': 32, 'd_kv': 16, 'd_ff': 48, 'num_layers': 2, 'num_heads': 2, 'decoder_start_token_id': 0}
BART = {**SPECIAL, 'd_model': 32, 'encoder_layers': 2, 'decoder_layers': 2, 'encoder_attention_heads': 2,
        'decoder_attention_heads': 2, 'encoder_ffn_dim': 48, 'decoder_ffn_dim': 48, 'decoder_start_token_id': 1}
RMS, LOGITS = 'RMS norm', 'ForCausalLM'
NO_SDPA = {'sdpa': 'before it, this model does not use scaled_dot_product_attention'}
NEWER_T5 = {**NO_SDPA, 'eager': 'before it, the softmax is one of single precision'}
NEWER_BLOOM = {'eager': 'before it, GELU is an autograd function in training only'}
GROUPED = {'head': LOGITS, 'num_key_value_heads': 1, 'single': RMS}
PIXELS = {'base': VISION, 'shape': IMAGES, 'keyword': 'pixel_values'}
HUGGING_FACE = [model for models in (
    hugging_face('BERT', 'Bert'),
    hugging_face('BERT classifier', 'Bert', 'ForSequenceClassification'),
    hugging_face('RoBERTa', 'Roberta'),
    hugging_face('ALBERT', 'Albert', embedding_size=32),
    hugging_face('DistilBERT', 'DistilBert', base=SPECIAL, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    hugging_face('ELECTRA', 'Electra', embedding_size=32, newer=NO_SDPA),
    hugging_face('DeBERTa', 'Deberta', both=False, relative_attention=True, pos_att_type=['c2p', 'p2c'],
                 single='layer norm'),
    hugging_face('DeBERTa v2', 'DebertaV2', both=False, relative_attention=True, pos_att_type=['c2p', 'p2c']),
    hugging_face('GPT-2', 'GPT2', 'LMHeadModel', base=SPECIAL, n_embd=32, n_layer=2, n_head=2, n_positions=40,
                 call=partial(called, 'inputs_embeds', 'logits')),
    hugging_face('GPT-NeoX', 'GPTNeoX', LOGITS),
    hugging_face('Llama', 'Llama', **GROUPED),
    hugging_face('Mistral', 'Mistral', **GROUPED),
    hugging_face('Qwen2', 'Qwen2', **GROUPED),
    hugging_face('Qwen3', 'Qwen3', **GROUPED, head_dim=16),
    hugging_face('Gemma', 'Gemma', **GROUPED, head_dim=16),
    hugging_face('Gemma2', 'Gemma2', **GROUPED, both=False, head_dim=16),
    hugging_face('Phi', 'Phi', LOGITS),
    hugging_face('Phi-3', 'Phi3', **GROUPED),
    hugging_face('OPT', 'OPT', LOGITS, ffn_dim=48, word_embed_proj_dim=32),
    hugging_face('Falcon', 'Falcon', LOGITS),
    hugging_face('Bloom', 'Bloom', LOGITS, both=False, base=SPECIAL, hidden_size=32, n_layer=2, n_head=2,
                 refused=dict.fromkeys(COMPOSITES, (UntrackedTensor, 'gelu_impl.*GeLUFunction')),
                 remedy=dict.fromkeys(COMPOSITES, bloom_remedy), newer=NEWER_BLOOM),
    hugging_face('Mixtral', 'Mixtral', **GROUPED, num_local_experts=4, experts_implementation='eager'),
    hugging_face('T5 encoder', 'T5', 'EncoderModel', base=T5, newer=NEWER_T5),
    hugging_face('T5', 'T5', base=T5, call=transduced, newer=NEWER_T5),
    hugging_face('BART', 'Bart', base=BART, call=transduced),
    hugging_face('Mamba', 'Mamba', LOGITS, both=False, state_size=4, single=RMS),
    hugging_face('Mamba-2', 'Mamba2', LOGITS, both=False, state_size=4, num_heads=4, head_dim=16, n_groups=1,
                 chunk_size=4, single=RMS),
    hugging_face('RWKV', 'Rwkv', LOGITS, both=False, attention_hidden_size=32, single='queries and keys'),
    hugging_face('FNet', 'FNet', both=False),
    hugging_face('XLNet', 'XLNet', both=False, base=SPECIAL, d_model=32, n_layer=2, n_head=2, d_inner=48),
    hugging_face('Longformer', 'Longformer', both=False, shape=(2, 8, 32), attention_window=4),
    hugging_face('Longformer with padding', 'Longformer', both=False, attention_window=4),
    hugging_face('BigBird', 'BigBird', both=False, attention_type='original_full'),
    hugging_face('Whisper encoder', 'Whisper', base=BART, shape=(2, 8, 40), part='encoder', max_source_positions=20,
                 num_mel_bins=8, call=partial(called, 'input_features', 'last_hidden_state')),
    hugging_face('ViT', 'ViT', **PIXELS),
    hugging_face('DeiT', 'DeiT', **PIXELS),
    hugging_face('BEiT', 'Beit', **PIXELS, use_relative_position_bias=True, use_mask_token=False),
    hugging_face('DINOv2', 'Dinov2', **PIXELS),
    hugging_face('CLIP', 'CLIPVision', **PIXELS, single='softmax'),
    hugging_face('SigLIP', 'SiglipVision', **PIXELS, single='softmax'),
    hugging_face('Swin', 'Swin', base={}, shape=IMAGES, keyword='pixel_values', image_size=32, patch_size=2,
                 embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, newer=NO_SDPA),
    hugging_face('SegFormer', 'Segformer', 'ForSemanticSegmentation', base={}, shape=IMAGES, keyword='pixel_values',
                 hidden_sizes=[8, 16], depths=[1, 1], num_attention_heads=[1, 2], num_encoder_blocks=2,
                 sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=16,
                 newer=NO_SDPA),
) for model in models]

# ---- x-transformers --------------------------------------------------------------------------------------------------

def x_transformer(layers, options):
    '''A transformer of x-transformers that reads vectors.'''
    package = import_module('x_transformers')
    attention = getattr(package, layers)(dim=32, depth=2, heads=2, attn_dim_head=16, verbose=False, **options)
    model = package.ContinuousTransformerWrapper(dim_in=32, dim_out=5, max_seq_len=16, attn_layers=attention)
    return in_its_precision(model, 'rel_pos.mlp.0')


def x_transformers(*flags, layers='Encoder', refused=None, remedy=None, **options):
    '''An option of x-transformers, which computes every softmax in single precision.'''
    options = {**dict.fromkeys(flags, True), **options}
    name = f'x-transformers {layers} {", ".join(f"{key}={value}" for key, value in options.items())}'
    return Model(name.strip(), 'x_transformers', partial(x_transformer, layers, options), TOKENS, 'softmax',
                 refused or {}, remedy or {})


def accepting_gradients():
    '''Under CP-LRP what comes before the softmax carries nothing, so that any gradient will do for it.'''
    return {'canonizers': [AttentionCanonizer(unknown='gradient')]}


X_TRANSFORMERS = [
    x_transformers(),
    x_transformers(layers='Decoder'),
    *(x_transformers(flag) for flag in (
        'use_scalenorm', 'use_rmsnorm', 'use_simple_rmsnorm', 'use_dynamic_tanh', 'use_derf', 'rel_pos_bias',
        'rotary_pos_emb', 'polar_pos_emb', 'residual_attn', 'macaron', 'scale_residual',
        'sandwich_norm', 'pre_and_post_norm', 'softclamp_output', 'use_layerscale', 'unet_skips',
        'integrate_layers', 'reinject_input', 'add_value_residual', 'orthog_residual',
        'weight_tie_layers', 'attn_flash', 'attn_pre_talking_heads', 'attn_post_talking_heads', 'attn_head_scale',
        'attn_gate_value_heads', 'attn_swiglu_values', 'attn_gate_values', 'attn_qk_norm', 'attn_qk_rmsnorm',
        'attn_value_rmsnorm', 'attn_l2_distance', 'attn_sigmoid', 'attn_cog_signed', 'attn_one_kv_head',
        'attn_add_zero_kv', 'attn_head_learned_sink', 'attn_orthog_projected_values',
        'attn_laser', 'attn_output_gate', 'ff_glu', 'ff_swish', 'ff_relu_squared', 'ff_post_act_ln', 'ff_no_bias')),
    x_transformers('dynamic_pos_bias'),
    x_transformers('attn_aggregated_residuals', attn_aggregated_residual_kwargs={'lora_rank': 8}),
    # softclamp is a TorchScript function.
    x_transformers('attn_softclamp_logits', refused=dict.fromkeys(COMPOSITES, (UntrackedTensor, 'TorchScript')),
                   remedy={'cp_lrp': accepting_gradients}),
    x_transformers('gate_residual'),
    x_transformers(attn_num_mem_kv=3),
    x_transformers(attn_sparse_topk=3),
    x_transformers(attn_kv_heads=1),
    x_transformers(num_residual_streams=2),
    x_transformers(shift_tokens=1, layers='Decoder'),
    x_transformers('alibi_pos_bias', layers='Decoder'),
    x_transformers('rotary_xpos', layers='Decoder'),
    x_transformers('attn_data_dependent_alibi', layers='Decoder'),
    x_transformers('attn_selective', layers='Decoder'),
    x_transformers('attn_use_cope', layers='Decoder'),
    x_transformers(attn_max_attend_past=3, layers='Decoder'),
    x_transformers('ff_glu', 'ff_swish', 'use_rmsnorm', 'rotary_pos_emb', layers='Decoder', attn_kv_heads=1),
]

# ---- linear-attention-transformer and denoising-diffusion-pytorch ----------------------------------------------------

def linear_attention(label, refused=None, broken=None, needs=None, **options):
    '''An option of linear-attention-transformer.'''
    options = {'dim': 32, 'depth': 2, 'max_seq_len': 12, 'heads': 2, **options}
    build = partial(construct, 'linear_attention_transformer', 'LinearAttentionTransformer', options)
    return Model(f'linear-attention-transformer {label}', 'linear_attention_transformer', build, (2, 12, 32),
                 refused=refused or {}, broken=broken or {}, needs=needs or {})


def linformer():
    '''A transformer whose keys and values are projected along the tokens.'''
    package = import_module('linear_attention_transformer')
    settings = package.LinformerSettings(k=4)
    return package.LinearAttentionTransformer(32, 2, 12, heads=2, linformer_settings=settings)


def image_attention():
    '''Linear attention over the pixels of an image.'''
    package = import_module('linear_attention_transformer.images')
    return package.ImageLinearAttention(chan=8, heads=2, key_dim=4, value_dim=4, norm_queries=True)


def at_times(model, x):
    '''Call a denoiser at a time for each sample.'''
    return model(x, torch.arange(1, len(x) + 1, device=x.device, dtype=x.dtype))


def unet(label, module='denoising_diffusion_pytorch', name='Unet', shape=(2, 3, 8, 8), **options):
    '''A U-Net of denoising-diffusion-pytorch.'''
    options = {'dim': 8, 'dim_mults': (1, 2), 'attn_heads': 2, 'attn_dim_head': 4, **options}
    build = partial(construct, f'denoising_diffusion_pytorch.{module}', name, options, at_times)
    return Model(f'denoising-diffusion {label}', 'denoising_diffusion_pytorch', build, shape)


LUCIDRAINS = [
    linear_attention('plain'),
    linear_attention('causal', causal=True),
    linear_attention('causal with a blindspot', causal=True, blindspot_size=3),
    linear_attention('local heads', n_local_attn_heads=1, local_attn_window_size=4),
    linear_attention('causal local heads', causal=True, n_local_attn_heads=1, local_attn_window_size=4),
    linear_attention('chunks and gated feed-forward', ff_chunks=2, ff_glu=True),
    linear_attention('shifted tokens', shift_tokens=True),
    linear_attention('axial', attend_axially=True, local_attn_window_size=4),
    linear_attention('product keys', pkm_layers=(1,), pkm_num_keys=4, needs=FROZEN_BAG),
    linear_attention('reversible', reversible=True),
    Model('linear-attention-transformer Linformer', 'linear_attention_transformer', linformer, (2, 12, 32)),
    Model('linear-attention-transformer images', 'linear_attention_transformer', image_attention, (2, 8, 6, 6)),
    unet('U-Net'),
    unet('U-Net, flash', flash_attn=True),
    unet('U-Net, learned times', learned_sinusoidal_cond=True),
    unet('U-Net 1D', 'denoising_diffusion_pytorch_1d', 'Unet1D', (2, 3, 16)),
]

MODELS = {model.name: model
          for model in (*TORCHVISION, *TIMM, *VIT_PYTORCH, *HUGGING_FACE, *X_TRANSFORMERS, *LUCIDRAINS, *PAPERS)}
