'''Relevance inside of models.'''
import re

import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import COMPOSITES, LayerMapComposite
from zennit.rules import Epsilon

from cases.problems import PROBLEMS, build
from helpers import one_hot, stock
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnLRPGamma, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.heatmap import head_relevance, relevance_at

INSIDE = {'attn_lrp': AttnLRP, 'attn_lrp_gamma': AttnLRPGamma,
          'epsilon_plus_flat': stock}


def passing(model, composite, input, name, at):
    '''Relevance of all samples at a module, or None where it has not one tensor.'''
    try:
        found = relevance_at(model, composite(), input, name, one_hot, at)
    except ValueError:
        return None
    return float(sum(relevance.sum() for relevance in found.values()))


@pytest.mark.parametrize('composite', INSIDE)
@pytest.mark.parametrize('name', PROBLEMS)
def test_a_module_loses_what_its_sinks_take(name, composite):
    model, input = build(name)
    sinks = audit(model, INSIDE[composite](), input, one_hot).sinks
    children = [child for child, _ in model.named_children() if child != 'output']
    lost = {}
    for child in children:
        ends = [passing(model, INSIDE[composite], input, child, at) for at in ('output', 'input')]
        if None not in ends:
            lost[child] = ends[0] - ends[1]
    taken = {child: sum(float(sink.relevance.sum()) for sink in sinks if f'{sink.module}.'.startswith(f'{child}.'))
             for child in lost}
    assert lost == pytest.approx(taken, rel=1e-9, abs=1e-8)


class Residual(nn.Module):
    '''Two blocks of attention with heads, a residual that is written in place, and an identity.'''
    def __init__(self, heads=2, dim=6):
        super().__init__()
        self.heads = heads
        self.embed, self.to_qkv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.drop, self.head = nn.Dropout(.5), nn.Linear(dim, 3)

    def forward(self, x):
        x = self.embed(x)
        for _ in range(2):
            q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            out = (q @ k.mT).softmax(dim=-1) @ v
            out = self.drop(self.proj(out.transpose(1, 2).flatten(2)))
            out += x
            x = out
        return self.head(x.mean(dim=1))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    return Residual().double().eval(), torch.randn(2, 4, 6, dtype=torch.float64)


def by_hand(model, input):
    '''Gates as constants, written out: relevance of the embedding, the heads and the projections.'''
    x = model.embed(input)
    kept = {'embed': x}
    for index in range(2):
        q, k, v = model.to_qkv(x).unflatten(-1, (3, model.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = (q @ k.mT).softmax(dim=-1).detach() @ v
        out = model.proj(heads.transpose(1, 2).flatten(2))
        kept.update({f'heads[{index}]': heads, f'proj[{index}]': out})
        x = out + x
    output = model.head(x.mean(dim=1))
    grads = torch.autograd.grad(output, list(kept.values()), one_hot(output) / output)
    return {name: (tensor * grad).detach() for (name, tensor), grad in zip(kept.items(), grads, strict=True)}


def test_relevance_at_outputs_inputs_and_operators_is_that_of_the_formula(residual):
    model, input = residual
    expected = by_hand(model, input)

    def found(modules, at):
        return relevance_at(model, CPLRP(), input, modules, one_hot, at)
    close = {'rtol': 1e-6, 'atol': 1e-9}
    outputs = found(['embed', 'proj'], 'output')
    assert list(outputs) == ['embed', 'proj[0]', 'proj[1]']
    for name, relevance in outputs.items():
        torch.testing.assert_close(relevance, expected[name], **close)
    # the identity returns its input, which the residual takes too
    for name, relevance in found('drop', 'output').items():
        torch.testing.assert_close(relevance, expected[name.replace('drop', 'proj')], **close)
    for index, relevance in enumerate(found('proj', 'input').values()):
        heads = expected[f'heads[{index}]'].sum(dim=-1)
        torch.testing.assert_close(head_relevance(relevance, 2), heads, **close)
    products = list(found('', 'matmul').values())
    torch.testing.assert_close(products[1], expected['heads[0]'], **close)
    torch.testing.assert_close(products[3], expected['heads[1]'], **close)
    assert not products[0].any()


@pytest.mark.parametrize('composite', INSIDE)
def test_the_explanation_is_the_same_with_and_without_looking(residual, composite):
    model, input = residual
    found = relevance_at(model, INSIDE[composite](), input, 'embed', one_hot, at='input')['embed']
    with Gradient(model, INSIDE[composite]()) as attributor:
        relevance = attributor(input, one_hot)[1]
    torch.testing.assert_close(found, relevance, rtol=1e-9, atol=1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_relevance_in_stock_zennit_is_what_takes_the_place_of_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    input = torch.randn(2, 3, dtype=torch.float64)
    composite = LayerMapComposite([(nn.Linear, Epsilon()), (nn.ReLU, COMPOSITES['epsilon_plus']().layer_map[0][1])])
    found = relevance_at(model, composite, input, ['0', '2'], one_hot)
    hidden = model[:2](input).detach().requires_grad_()
    output = model[2](hidden)
    expected = hidden * torch.autograd.grad(output, hidden, one_hot(output) / (output + 1e-6 * output.sign()))[0]
    torch.testing.assert_close(found['2'], one_hot(output))
    torch.testing.assert_close(found['0'], expected.detach())


def test_relevance_at_explains_token_models_from_the_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), Residual(), nn.Identity()).double().eval()
    ids = torch.randint(9, (2, 4))
    found = relevance_at(model, CPLRP(), ids, '1.embed', one_hot, at='input', embedding=model[0])['1.embed']
    with TokenGradient(model, model[0], CPLRP()) as attributor:
        torch.testing.assert_close(found, attributor(ids, one_hot)[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('modules', 'options', 'message'), [
    ('blocks', {}, "no module 'blocks'"), ('proy', {}, "'proj'"), (['embed', 'nope.*'], {}, "'nope.*'"),
    ('embed', {'at': 'softmax'}, "No relevance passes the softmax of 'embed'"),
    ('embed', {'attr_output': torch.ones(2)}, 'attr_output has shape'),
])
def test_relevance_at_refuses_what_is_not_there(residual, modules, options, message):
    model, input = residual
    with pytest.raises(ValueError, match=re.escape(message)):
        relevance_at(model, CPLRP(), input, modules, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_relevance_at_refuses_modules_of_several_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return 2. * x, 3. * x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            return sum(self.two(x))
    with pytest.raises(ValueError, match="2 tensors at the output of 'two'"):
        relevance_at(Outer(), CPLRP(), torch.ones(1, 2), 'two')


def test_operators_need_the_engine():
    composite = LayerMapComposite([(nn.Linear, Epsilon())])
    with pytest.raises(ValueError, match='AttentionCanonizer'):
        relevance_at(nn.Sequential(nn.Linear(2, 2)), composite, torch.ones(1, 2), '0', at='linear')


@pytest.mark.parametrize('at', ['matmul', 'mul'])
def test_operators_of_an_expanded_model(at):
    '''The watch is an observer like the recorder, of whatever rule.'''
    model, input = build('vit_mean')
    found = relevance_at(model, AttnTaylor(), input, 'layers.0.0', one_hot, at)
    assert found
    assert all(relevance.isfinite().all() and relevance.any() for relevance in found.values())
