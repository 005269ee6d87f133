'''Dynamic quantization: relevance of what was rounded goes to its scale, which is said.'''
import warnings

import pytest
import torch
from torch import nn

from helpers import assert_closed, explain, one_hot
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit


def scale_of(y):
    return y.abs().amax(-1, keepdim=True) / 127


def quantized(y):
    return (y / scale_of(y)).round().clamp(-128, 127) * scale_of(y)


class Model(nn.Module):
    '''Two layers, and what is done to the features between.'''
    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(8, 32), nn.Linear(32, 3), between

    def forward(self, x):
        return self.last(self.between(torch.relu(self.first(x))))


def made(between):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(between).double().eval(), torch.randn(2, 8, dtype=torch.float64)


def through_integers(y):
    weight = torch.eye(32, dtype=y.dtype)
    return nn.functional.linear((y / scale_of(y)).round(), weight) * scale_of(y)


def through_int8(y):
    return (y / scale_of(y)).round().to(torch.int8).to(y.dtype) * scale_of(y)


def by_a_method(y):
    return (y / scale_of(y)).round().char().double() * scale_of(y)


def by_a_method_alone(y):
    return (y / scale_of(y)).int() * scale_of(y)


def by_a_cast(y):
    return torch.mul((y / scale_of(y)).to(torch.int8), scale_of(y))


def by_floor(y):
    return (y / scale_of(y) + .5).floor() * scale_of(y)


def in_place(y):
    return (y / scale_of(y)).round_().mul_(scale_of(y))


@pytest.mark.parametrize('between', [
    quantized, through_integers, through_int8, by_a_cast, by_a_method, by_a_method_alone, by_floor, in_place])
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_it_is_said_where_only_the_scale_receives_relevance(between, composite):
    model, input = made(between)
    with pytest.warns(UserWarning, match='rounds values that carry relevance') as said:
        explain(model, input, composite)
    assert len(said) == 1
    assert 'test_rounding.py' in str(said[0].message)


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_its_advice_gives_the_map_of_the_model_before(composite):
    model, input = made(lambda y: y + (quantized(y) - y).detach())
    plain, _ = made(lambda y: y)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        found, expected = (explain(each, input, composite)[1] for each in (model, plain))
        assert_closed(audit(model, composite(), input, one_hot))
    assert (torch.cosine_similarity(found.flatten(1), expected.flatten(1)) > .99).all()


def test_rounding_that_ends_in_numbers_is_not_spoken_of():
    model, input = made(lambda y: y * (1 + y[:, :1].round().clamp(0, 0).long()))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        explain(model, input, CPLRP)


def looked_up(y):
    table = torch.linspace(0., 1., 64).to(y).repeat(2, 1)
    return y[:, :1] * table.gather(1, y.long().clamp(0, 63).repeat(1, 2)[:, :32])


def of_a_mask(y):
    return y.amax(-1, keepdim=True) * (y.round() > 0).double()


def of_a_mask_of_a_cast(y):
    return y.amax(-1, keepdim=True) * y.round().long().to(torch.bool).double()


@pytest.mark.parametrize('between', [looked_up, of_a_mask, of_a_mask_of_a_cast])
def test_what_whole_numbers_are_an_index_or_a_mask_of_is_not_rounded(between):
    model, input = made(between)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        explain(model, input, CPLRP)
