'''Linear attention, against denoising-diffusion-pytorch, which the class of Zennit's issue 169 was taken from.'''
import pytest
import torch
from torch import nn

from zennit_attn.attention import LinearAttention, MemoryLinearAttention

from .helpers import assert_close, assert_equal_forward, perturbed, published

SIZES = [{'dim': 8}, {'dim': 6, 'heads': 2, 'dim_head': 5}, {'dim': 8, 'heads': 1, 'dim_head': 3}]
NAMES = {
    'to_qkv.weight': (30, 6, 1, 1), 'to_out.0.weight': (6, 10, 1, 1), 'to_out.0.bias': (6,), 'to_out.1.weight': (6,),
    'to_out.1.bias': (6,),
}


@pytest.fixture
def package():
    package = published('denoising_diffusion_pytorch.denoising_diffusion_pytorch')
    torch.manual_seed(0)
    return package


@pytest.mark.zoo
@pytest.mark.parametrize('size', SIZES)
def test_is_the_published_block_without_norm_and_memory(package, size):
    original = package.LinearAttention(**size, num_mem_kv=0)
    original.norm, original.to_out[1] = nn.Identity(), nn.GroupNorm(1, size['dim'])
    del original.mem_kv
    original.mem_kv = torch.zeros(2, original.heads, original.to_out[0].in_channels // original.heads, 0)
    assert_equal_forward(LinearAttention(**size), original, torch.randn(2, size['dim'], 5, 7), dtypes=(torch.float32,))
    original.mem_kv = original.mem_kv.double()
    assert_equal_forward(LinearAttention(**size), original, torch.randn(2, size['dim'], 5, 7), dtypes=(torch.float64,))


@pytest.mark.zoo
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('memory', [0, 4])
def test_with_memory_is_the_published_block(package, size, memory):
    original = package.LinearAttention(**size, num_mem_kv=memory)
    model = MemoryLinearAttention(**size, num_mem_kv=memory)
    assert_equal_forward(model, original, torch.randn(2, size['dim'], 5, 7))


def test_has_the_names_of_the_issue():
    names = {name: tuple(value.shape) for name, value in LinearAttention(6, 2, 5).state_dict().items()}
    assert names == NAMES


def test_equals_its_formula():
    torch.manual_seed(0)
    model = perturbed(LinearAttention(6, heads=2, dim_head=5)).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    qkv = torch.einsum('oi,bin->bon', model.to_qkv.weight[..., 0, 0], x.flatten(2))
    q, k, v = qkv.unflatten(1, (3, 2, 5)).unbind(1)
    weights = torch.einsum('bhdn,bhdm->bhnm', q.softmax(dim=2), k.softmax(dim=3)) / 5 ** 0.5
    out = torch.einsum('bhnm,bhem->bhen', weights, v).reshape(2, 10, 3, 4)
    assert_close(model(x), model.to_out(out))


@pytest.mark.parametrize('shape', [(2, 5, 3, 3), (2, 6, 9), (6, 3, 3)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match='expected'):
        LinearAttention(6)(torch.zeros(shape))
