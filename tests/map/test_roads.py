'''An audit and an explanation are one road: who watches changes no element of the map.'''
import pytest
import torch
from zennit.attribution import Gradient

from cases.problems import PROBLEMS, build
from helpers import one_hot, relative, stock
from zennit_attn.canonizers.attention import engine_of
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor
from zennit_attn.conservation.recorder import recorded
from zennit_attn.observer import Observer

COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'gammas': AttnLRPGamma, 'taylor': AttnTaylor, 'stock': stock}


def watched(model, input, composite, watch):
    '''Output and relevance while somebody watches.'''
    with Gradient(model, composite) as attributor, watch(model):
        return [tensor.detach() for tensor in attributor(input.clone(), one_hot)]


def by_recorder(model):
    return recorded(model, engine_of(model))


def by_nobody_in_particular(model):
    return engine_of(model).observed_by(Observer())


@pytest.mark.parametrize('name', PROBLEMS)
@pytest.mark.parametrize('composite', COMPOSITES)
def test_map_of_an_audit_is_that_of_an_explanation(name, composite):
    model, input = build(name)
    with Gradient(model, COMPOSITES[composite]()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    for watch in (by_recorder, by_nobody_in_particular):
        seen, found = watched(model, input, COMPOSITES[composite](), watch)
        assert relative(seen, output.detach()) <= 1e-12
        assert relative(found, relevance.detach()) <= 1e-10


def test_another_road_is_seen():
    '''A watch that changes what runs does change the map: the comparison can fail.'''
    class Detour(Observer):
        def begin(self, call, module, hook):
            if call.operator.name == 'softmax':
                call.args = (call.args[0] * 2, *call.args[1:])
    model, input = build('vit_mean')
    with Gradient(model, AttnLRP()) as attributor:
        relevance = attributor(input.clone(), one_hot)[1]
    found = watched(model, input, AttnLRP(), lambda model: engine_of(model).observed_by(Detour()))[1]
    assert relative(found, relevance) > 1e-3
    assert torch.isfinite(found).all()
