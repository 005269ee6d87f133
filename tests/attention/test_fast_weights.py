'''Fast weights, against labml_nn.transformers.fast_weights with the same weights.'''
import pytest
import torch

from zennit_attn.attention import (
    DPFP,
    FastWeightsAttention,
    FastWeightsAttentionTransformer,
    FastWeightsAttentionTransformerLayer,
)
from zennit_attn.attention.fast_weights import FeedForward

from .helpers import assert_close, assert_equal_forward, perturbed, published

DIM, HEADS, INNER = 12, 3, 16


@pytest.fixture
def package():
    package = published('labml_nn.transformers.fast_weights')
    torch.manual_seed(0)
    return package


def transformer(package, nu, gated, backend=None):
    '''A transformer of two layers from the classes of a package, or of ours.'''
    own = package is None
    attention = FastWeightsAttention if own else package.FastWeightsAttention
    layer = FastWeightsAttentionTransformerLayer if own else package.FastWeightsAttentionTransformerLayer
    feed_forward = FeedForward if own else package.FeedForward
    return (FastWeightsAttentionTransformer if own else package.FastWeightsAttentionTransformer)(layer(
        d_model=DIM, dropout_prob=0.1, feed_forward=feed_forward(DIM, INNER, is_gated=gated),
        attn=attention(HEADS, DIM, 0.1, (DPFP if own else package.DPFP)(nu), **({'backend': backend} if own else {})),
    ), 2)


@pytest.mark.zoo
@pytest.mark.parametrize('nu', [1, 2, 3])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_feature_map(package, nu, dtype):
    k = torch.randn(5, 2, 3, 4, dtype=dtype)
    assert_close(DPFP(nu)(k), package.DPFP(nu)(k))


@pytest.mark.zoo
@pytest.mark.parametrize('backend', ['chunked', 'loop'])
@pytest.mark.parametrize('length', [1, 31, 32, 33, 70])
def test_attention(package, backend, length):
    original = package.FastWeightsAttention(HEADS, DIM, 0.1, package.DPFP(2))
    model = FastWeightsAttention(HEADS, DIM, 0.1, DPFP(2), backend=backend)
    assert_equal_forward(model, original, torch.randn(length, 2, DIM))


@pytest.mark.zoo
@pytest.mark.parametrize('nu', [1, 3])
@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('backend', ['chunked', 'loop'])
def test_transformer(package, nu, gated, backend):
    x = torch.randn(40, 2, DIM)
    assert_equal_forward(transformer(None, nu, gated, backend), transformer(package, nu, gated), x)


@pytest.mark.zoo
def test_training_gradients_are_those_of_the_original(package):
    original = perturbed(transformer(package, 1, True)).double().eval()
    model = transformer(None, 1, True).double().eval()
    model.load_state_dict(original.state_dict())
    x = torch.randn(40, 2, DIM, dtype=torch.float64)
    for each in (model, original):
        each(x).square().sum().backward()
    pairs = dict(original.named_parameters())
    for name, parameter in model.named_parameters():
        if 'norm_self_attn' in name:
            assert parameter.grad is None
        else:
            assert_close(parameter.grad, pairs[name].grad, 1e-10)


def test_is_causal():
    torch.manual_seed(0)
    model = perturbed(transformer(None, 1, False)).double().eval()
    x = torch.randn(40, 1, DIM, dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(model(x)[34].square().sum(), x)
    assert (gradient[35:] == 0).all()
    assert (gradient[:35].flatten(1) != 0).any(dim=1).all()


def test_features_sum_up_to_one():
    features = DPFP(2)(torch.randn(50, 6, dtype=torch.float64))
    assert features.shape == (50, 24)
    assert (features >= 0).all()
    assert (features.sum(dim=-1) - 1).abs().max() < 1e-3


@pytest.mark.parametrize('shape', [(5, 2, 11), (5, 12), (5, 2, 3, 12)])
def test_refuses_inputs(shape):
    with pytest.raises(ValueError, match='x has shape'):
        FastWeightsAttention(HEADS, DIM, 0., DPFP())(torch.zeros(shape))


def test_refuses_sizes():
    with pytest.raises(ValueError, match='not divisible'):
        FastWeightsAttention(5, DIM, 0., DPFP())
    with pytest.raises(ValueError, match='nu is 0'):
        DPFP(0)
