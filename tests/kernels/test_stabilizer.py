'''The border between the domains: what relevance is divided by.'''
import pytest
import torch
from zennit.core import Stabilizer

from zennit_attn.engine.domains import stabilized


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('stabilizer', [
    Stabilizer(1e-3), Stabilizer(0.), Stabilizer(1e-3, clip=True), Stabilizer(1e-3, norm_scale=True)])
def test_stabilizer_is_zennits(stabilizer, dtype):
    x = torch.tensor([[0., -0., 1., -1., 1e-4, -1e-4, 3e38, -3e38]], dtype=dtype)
    before = x.clone()
    assert torch.equal(stabilized(stabilizer, x), stabilizer(x))
    assert torch.equal(x, before)


def test_result_of_a_callable_is_not_written_to():
    '''Relevance is divided in place.'''
    x = torch.randn(3)
    result = stabilized(lambda tensor: tensor, x)
    assert torch.equal(result, x)
    assert result.data_ptr() != x.data_ptr()
