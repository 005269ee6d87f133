'''Vision transformers, against vit-pytorch, and the pasted one against torch's own transformer layers.'''
import pytest
import torch
from torch import nn

from zennit_attn.attention import NormViT, ViT

from .helpers import assert_close, assert_equal_forward, perturbed, published

SIZE = {'image_size': 12, 'patch_size': 4, 'num_classes': 5, 'dim': 12, 'depth': 2, 'heads': 3, 'mlp_dim': 20}
OPTIONS = {
    'cls': {'dim_head': 4},
    'mean': {'pool': 'mean', 'dim_head': 4},
    'wide heads': {'dim_head': 7},
    'one head': {'heads': 1, 'dim_head': 12},
    'oblong': {'image_size': (8, 12), 'patch_size': (4, 2), 'channels': 2},
}
BLOCK = ('0.norm.weight', '0.norm.bias', '0.fn.to_qkv.weight', '0.fn.to_out.0.weight', '0.fn.to_out.0.bias',
         '1.norm.weight', '1.norm.bias', '1.fn.net.0.weight', '1.fn.net.0.bias', '1.fn.net.3.weight', '1.fn.net.3.bias')
NAMES = ('pos_embedding', 'cls_token', 'to_patch_embedding.1.weight', 'to_patch_embedding.1.bias',
         *(f'transformer.layers.{layer}.{name}' for layer in range(2) for name in BLOCK),
         'mlp_head.0.weight', 'mlp_head.0.bias', 'mlp_head.1.weight', 'mlp_head.1.bias')


def images(options):
    '''Images of the right size.'''
    size = options.get('image_size', 12)
    return torch.randn(2, options.get('channels', 3), *(size if isinstance(size, tuple) else (size, size)))


@pytest.mark.zoo
@pytest.mark.parametrize('option', OPTIONS)
@pytest.mark.parametrize('classes', [5, 0])
def test_equals_vit_pytorch(option, classes):
    package = published('vit_pytorch.vit')
    torch.manual_seed(0)
    options = {**SIZE, **OPTIONS[option], 'num_classes': classes}
    assert_equal_forward(NormViT(**options), package.ViT(**options), images(options))


@pytest.mark.zoo
def test_smaller_images_take_the_first_positions():
    package = published('vit_pytorch.vit')
    torch.manual_seed(0)
    assert_equal_forward(NormViT(**SIZE), package.ViT(**SIZE), torch.randn(2, 3, 8, 4))


def torch_layer(block):
    '''Torch's transformer layer with the weights of one of ours.'''
    (attention, feed_forward), dim = block, SIZE['dim']
    layer = nn.TransformerEncoderLayer(dim, attention.fn.heads, SIZE['mlp_dim'], 0., 'gelu', batch_first=True,
                                       norm_first=True).double().eval()
    layer.norm1, layer.norm2 = attention.norm, feed_forward.norm
    layer.linear1, layer.linear2 = feed_forward.fn.net[0], feed_forward.fn.net[3]
    layer.self_attn.in_proj_weight = attention.fn.to_qkv.weight
    nn.init.zeros_(layer.self_attn.in_proj_bias)
    layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias = attention.fn.to_out[0].parameters()
    return layer


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_pasted_one_equals_layers_of_torch(pool):
    torch.manual_seed(0)
    model = perturbed(ViT(**SIZE, pool=pool, dim_head=4)).double().eval()
    img = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    patches = img.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(2, 9, 48)
    tokens = torch.cat([model.cls_token.expand(2, 1, -1), model.to_patch_embedding[1](patches)], dim=1)
    tokens = tokens + model.pos_embedding
    for block in model.transformer.layers:
        tokens = torch_layer(block)(tokens)
    assert_close(model(img), model.mlp_head(tokens.mean(dim=1) if pool == 'mean' else tokens[:, 0]))


def test_pasted_one_has_the_names_that_are_pasted():
    model = ViT(**SIZE)
    assert sorted(model.state_dict()) == sorted(NAMES)
    assert model.pos_embedding.shape == (1, 10, 12)
    assert model.cls_token.shape == (1, 1, 12)


@pytest.mark.parametrize('kind', [ViT, NormViT])
@pytest.mark.parametrize(('shape', 'message'), [
    ((2, 3, 12, 10), 'whole patches'),
    ((3, 12, 12), 'expected'),
    ((2, 3, 16, 12), '13 tokens, but there are only 10 positions'),
])
def test_refuses_images(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        kind(**SIZE)(torch.zeros(shape))


@pytest.mark.parametrize('kind', [ViT, NormViT])
@pytest.mark.parametrize(('options', 'message'), [
    ({'patch_size': 5}, 'not divisible by patch size'),
    ({'image_size': (12, 10)}, 'not divisible by patch size'),
    ({'pool': 'max'}, "'cls'"),
])
def test_refuses_sizes(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{**SIZE, **options})
