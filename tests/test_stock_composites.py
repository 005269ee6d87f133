'''Stock composites, canonizers and attributors over pasted code, judged by stock Zennit where it can do the same.'''
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn
from zennit.attribution import IntegratedGradients, SmoothGrad
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    LayerMapComposite,
    MixedComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
)
from zennit.rules import Epsilon, Flat, Gamma, Norm, Pass, WSquare, ZBox, ZPlus
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Linear

from cases.problems import build, perturb, zero_additive
from cases.problems.issue import LinearAttention
from helpers import Snapshot, assert_closed, assert_restored, changes, equal_maps, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.layers import Softmax
from zennit_attn.rules import Constant, TaylorSoftmax


class WideCNN(nn.Module):
    '''The linear attention of the issue between convolutions wide enough that no sum has one sign only.'''
    def __init__(self, dim=16):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, dim, 3), nn.GroupNorm(2, dim), nn.GELU(), nn.AvgPool2d(2))
        self.attn = LinearAttention(dim, heads=2, dim_head=16)
        self.conv, self.act, self.fc = nn.Conv2d(dim, dim, 3), nn.SiLU(), nn.Linear(dim, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.attn(x)
        x = self.act(self.conv(x))
        return self.fc(rearrange(x, 'b c h w -> b c (h w)').mean(dim=-1))


def wide_cnn():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, input = WideCNN().double().eval(), torch.randn(3, 4, 10, 10, dtype=torch.float64).clamp(-3, 3)
    perturb(model, 4)
    return model, input


def name_map(canonizers):
    '''Rules by name, among them one for a module inside the attention block.'''
    return NameMapComposite([
        (('stem.0', 'conv', 'to_patch_embedding.2'), ZPlus()),
        (('attn.to_qkv', 'attn.to_out.0', 'layers.0.0.to_qkv', 'layers.1.1.net.1', 'fc', 'mlp_head'), Epsilon()),
    ], canonizers=canonizers)


def mixed(canonizers):
    return MixedComposite([
        NameMapComposite([(('fc', 'mlp_head'), Gamma(0.1)), (('stem.0', 'to_patch_embedding.2'), Flat())]),
        EpsilonPlus(),
    ], canonizers=canonizers)


def gamma_box(canonizers):
    return EpsilonGammaBox(low=-3., high=3., canonizers=canonizers)


MODELS = {'wide_cnn': wide_cnn, 'vit_mean': partial(build, 'vit_mean')}
STOCK = {
    'epsilon_plus_flat': lambda canonizers: EpsilonPlusFlat(canonizers=canonizers),
    'epsilon_plus': lambda canonizers: EpsilonPlus(canonizers=canonizers),
    'epsilon_alpha2_beta1': lambda canonizers: EpsilonAlpha2Beta1(canonizers=canonizers),
    'epsilon_gamma_box': gamma_box,
    'name_map': name_map,
    'mixed': mixed,
}
every_model = pytest.mark.parametrize('model', MODELS)
every_stock = pytest.mark.parametrize('stock', STOCK)


def attention(stock):
    return STOCK[stock]([AttentionCanonizer()])


@every_model
@every_stock
def test_forward_is_unchanged_and_model_restored(model, stock):
    model, input = MODELS[model]()
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, attention(stock))
    assert relative(output, expected) <= 1e-12
    assert relevance.isfinite().all()
    assert relevance.abs().max() > 0
    assert_restored(before, model)


@every_model
@every_stock
def test_relevance_is_conserved_without_biases(model, stock):
    model, input = MODELS[model]()
    zero_additive(model)
    output, relevance = explain(model, input, attention(stock))
    expected = one_hot(output).flatten(1).sum(1)
    assert ((relevance.flatten(1).sum(1) - expected).abs() <= 1e-4 * expected.abs()).all()


@every_model
@every_stock
@pytest.mark.parametrize('target', [one_hot, None])
def test_ledger_is_closed_with_biases(model, stock, target):
    model, input = MODELS[model]()
    before = Snapshot(model)
    ledger = audit(model, attention(stock), input, target)
    assert_restored(before, model)
    assert_closed(ledger)
    _, relevance = explain(model, input, attention(stock), target)
    scale = relevance.abs().flatten(1).sum(1)
    assert ((ledger.input - relevance.flatten(1).sum(1)).abs() <= 1e-12 * scale).all()


@every_stock
def test_zero_params_take_the_bias_out_of_the_rule(stock):
    '''With ``zero_params`` the rules ignore the biases that stay in the modules.'''
    if stock in ('name_map', 'mixed'):
        pytest.skip('takes no zero_params')
    model, input = wide_cnn()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.bias.data.zero_()
    composite = attention(stock)
    kwargs = {'zero_params': ['bias'], 'canonizers': [AttentionCanonizer()]}
    composite = type(composite)(**kwargs, **({'low': -3., 'high': 3.} if stock == 'epsilon_gamma_box' else {}))
    output, relevance = explain(model, input, composite)
    kept = relevance.flatten(1).sum(1)
    assert relative(output, model(input)) <= 1e-12
    ledger = audit(model, composite, input, one_hot)
    assert_closed(ledger)
    assert relative(ledger.input, kept) <= 1e-9


# maps: stock Zennit on a network of modules, where each stretch of code is a module with the rule R = x J^T (R / y)

class Segment(nn.Module):
    '''A function of one tensor that is linear once its gates are detached.'''
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def frozen_group_norm(norm, x):
    rows = x.reshape(x.shape[0], norm.num_groups, -1)
    deviation = (rows.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt().detach()
    rows = (rows - rows.mean(-1, keepdim=True)) / deviation
    return rows.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]


def frozen_linear_attention(attn, qkv):
    b, _, h, w = qkv.shape
    q, k, v = (t.reshape(b, attn.heads, -1, h * w) for t in qkv.chunk(3, dim=1))
    weights = torch.einsum('bhdn,bhdm->bhnm', q.softmax(-2) * attn.scale, k.softmax(-1)).detach()
    return torch.einsum('bhnm,bhem->bhen', weights, v).reshape(b, -1, h, w)


class TwinCNN(nn.Module):
    '''``WideCNN`` as modules; names keep the order of its layers, so that the first layer is the same.'''
    def __init__(self, model):
        super().__init__()
        conv, norm, gelu, pool = model.stem
        attn = model.attn
        self.stem = nn.Sequential(conv, Segment(partial(frozen_group_norm, norm)), gelu, pool)
        self.attn = nn.Sequential(attn.to_qkv, Segment(partial(frozen_linear_attention, attn)), attn.to_out[0])
        self.join = Segment(lambda pair: pair[..., 0] + frozen_group_norm(attn.to_out[1], pair[..., 1]))
        self.tail = nn.Sequential(model.conv, model.act, Segment(lambda x: x.flatten(2).mean(-1)), model.fc)

    def forward(self, x):
        x = self.stem(x)
        return self.tail(self.join(torch.stack([x, self.attn(x)], dim=-1)))


@every_stock
@pytest.mark.parametrize('target', [one_hot, None])
def test_map_equals_stock_zennit_on_modules(stock, target):
    if stock in ('name_map', 'mixed'):
        pytest.skip('names differ in the twin')
    model, input = wide_cnn()
    segments = LayerMapComposite([((Segment,), Norm(stabilizer=1e-9))])
    twin = MixedComposite([segments, STOCK[stock]([])])
    expected_output, expected = explain(TwinCNN(model), input, twin, target)
    output, relevance = explain(model, input, attention(stock), target)
    assert relative(output, expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-6


# constants that a re-index puts beside relevance

class Beside(nn.Module):
    '''A snippet between two modules with stock rules, so that relevance itself flows through it.'''
    def __init__(self, snippet):
        super().__init__()
        self.snippet = snippet
        self.first, self.act, self.last = nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)
        self.v, self.w = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        return self.last(self.snippet(self, self.first(x)))


def assigned(y, index, value):
    y = y.clone()
    y[index] = value
    return y


BESIDE = {
    'class token': lambda m, y: torch.cat([m.v.expand(3, 2, 12), y], 1),
    'class token and position': lambda m, y: torch.cat([m.v.expand(3, 2, 12), y], 1) + m.v,
    'stack': lambda m, y: torch.stack([y, m.v.expand_as(y)], 2).flatten(1, 2),
    'pad': lambda m, y: F.pad(y, (0, 0, 1, 1), value=0.5),
    'masked_fill': lambda m, y: y.masked_fill(y > 0.3, 0.5),
    'where parameter': lambda m, y: torch.where(y > 0, y, m.v),
    'where number': lambda m, y: torch.where(y > 0, y, 0.25),
    'assigned number': lambda m, y: assigned(y, (slice(None), 1), 0.5),
    'assigned parameter': lambda m, y: assigned(y, (slice(None), 1), m.v),
    'assigned into a parameter': lambda m, y: assigned(m.v.expand(3, 5, 12), (slice(None), 1), y[:, 2]),
    'maximum': lambda m, y: torch.maximum(y, m.v),
    'clamp': lambda m, y: y.clamp(min=0.2) + y.clamp(-0.2, 0.2),
    'clamp alone': lambda m, y: y.clamp(min=0.2),
    'index_fill': lambda m, y: y.index_fill(1, torch.tensor([1]), 0.5),
    'scatter': lambda m, y: y.scatter(1, torch.ones(3, 1, 12, dtype=torch.long), 0.5),
    'masked_scatter': lambda m, y: y.masked_scatter(y > 0, m.w.expand(3, 12, 12).reshape(-1)),
    'index_put': lambda m, y: y.index_put((torch.arange(3), torch.tensor([1, 2, 2])), m.v, accumulate=True),
    'index_put, accumulate by position': lambda m, y: torch.index_put(
        y, (torch.arange(3), torch.tensor([1, 2, 2])), m.v, True),
    'put': lambda m, y: y.put(torch.tensor([3, 3, 40]), m.v[:3], True) + y.put(torch.tensor([5]), y[0, 1, :1], True),
    'copy_ into a view': lambda m, y: (lambda z: (z[:, 0].copy_(m.v), z)[1])(y.clone()),
    'fill_ of a view': lambda m, y: (lambda z: (z[:, 0].fill_(0.3), z)[1])(y.clone()),
    'detached half': lambda m, y: torch.cat([y.detach(), y], 1),
    'behind an activation': lambda m, y: torch.cat([m.act(y), m.v.expand(3, 1, 12)], 1),
    'used twice': lambda m, y: torch.cat([y, y.flip(1), y[:, :1].expand(3, 2, 12)], 1),
    'chosen': lambda m, y: torch.cat([y.max(dim=1, keepdim=True)[0], y.topk(2, dim=1)[0], y[:, [3, 3]]], 1),
    'code beside module': lambda m, y: torch.cat([y, F.gelu(y) * 2], 1),
}


@pytest.mark.parametrize('name', BESIDE)
@pytest.mark.parametrize('make', [STOCK['epsilon_plus_flat'], lambda canonizers: rule_map(Gamma(), canonizers)])
@pytest.mark.parametrize('target', [one_hot, None])
def test_constants_beside_relevance_are_sinks(name, make, target):
    with torch.random.fork_rng():
        torch.manual_seed(17)
        model, input = Beside(BESIDE[name]).double().eval(), torch.randn(3, 5, 12, dtype=torch.float64)
    perturb(model, 18)
    ledger = audit(model, make([AttentionCanonizer()]), input, target)
    assert_closed(ledger)
    relevance = explain(model, input, make([AttentionCanonizer()]), target)[1]
    assert torch.allclose(ledger.input, relevance.flatten(1).sum(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('model', 'shape'), [
    (lambda: nn.Linear(6, 4), (3, 6)), (nn.GELU, (3, 5)), (lambda: nn.Conv2d(2, 3, 3), (3, 2, 5, 5)),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 3)), (3, 2, 10)),
])
@pytest.mark.parametrize('stock', ['epsilon_plus_flat', 'epsilon_alpha2_beta1'])
def test_root_with_a_rule_equals_stock(model, shape, stock):
    '''The root itself may be the module that has a rule.'''
    torch.manual_seed(19)
    model, input = model().double(), torch.randn(shape, dtype=torch.float64)
    expected = explain(model, input, STOCK[stock]([]))[1]
    before = Snapshot(model)
    assert relative(explain(model, input, attention(stock))[1], expected) <= 1e-10
    assert_restored(before, model)
    ledger = audit(model, attention(stock), input, one_hot)
    assert_restored(before, model)
    assert_closed(ledger)


# first-layer rules behind a re-index

class PastedPatches(nn.Module):
    '''Patches by ``how``, then an MLP on them, a re-index and a classifier: what ``nn_patches`` does with modules.'''
    def __init__(self, how, hidden=7):
        super().__init__()
        self.how = how
        self.embed, self.act, self.fc = nn.Linear(48, hidden), nn.ReLU(), nn.Linear(4 * hidden, 5)

    def patches(self, x):
        if self.how == 'einops':
            return rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=4, q=4)
        if self.how == 'unfold':
            return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(x.shape[0], 4, 48)
        if self.how == 'identities':
            x = F.dropout(x.clone().contiguous().to(x.dtype), 0.3, self.training).type_as(x)
            x = x[:, :, :, None].squeeze(3).view_as(x)
        rows = [t for row in x.chunk(2, dim=2) for t in row.split(4, dim=3)]
        return torch.stack([t.contiguous().flatten(1) for t in rows], dim=1)

    def forward(self, x):
        x = self.act(self.embed(self.patches(x)))
        return self.fc(x.view(x.size(0), -1))


def nn_patches(pasted):
    return nn.Sequential(
        Rearrange('b c (h p) (w q) -> b (h w) (c p q)', p=4, q=4), pasted.embed, pasted.act, nn.Flatten(), pasted.fc
    )


class PastedConv(nn.Module):
    '''Channels-last pixels into a convolution.'''
    def __init__(self, hidden=6):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, hidden, 3), nn.ReLU(), nn.Linear(hidden * 36, 5)

    def forward(self, x):
        x = self.act(self.conv(x.permute(0, 3, 1, 2)))
        return self.fc(torch.reshape(x, (len(x), -1)))


def nn_conv(pasted):
    return nn.Sequential(Rearrange('b h w c -> b c h w'), pasted.conv, pasted.act, nn.Flatten(), pasted.fc)


def first_layer(rule, canonizers):
    layers = [(Activation, Pass()), (Linear, Epsilon())]
    return SpecialFirstLayerMapComposite(layers, [(Linear, rule)], canonizers=canonizers)


FIRST = {
    'flat': lambda canonizers: first_layer(Flat(), canonizers),
    'wsquare': lambda canonizers: first_layer(WSquare(), canonizers),
    'zbox': lambda canonizers: first_layer(ZBox(low=-3., high=3.), canonizers),
    'epsilon_plus_flat': STOCK['epsilon_plus_flat'],
    'epsilon_gamma_box': gamma_box,
}


def pixels(*shape):
    '''Pixels, a third of them exactly 0.'''
    generator = torch.Generator().manual_seed(5)
    input = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
    return input.masked_fill(torch.rand(shape, generator=generator) < 0.33, 0.)


@pytest.mark.parametrize('first', FIRST)
@pytest.mark.parametrize('how', ['einops', 'unfold', 'chunks', 'identities', 'conv'])
def test_first_layer_rule_behind_a_reindex_equals_stock(first, how):
    torch.manual_seed(6)
    pasted = (PastedConv() if how == 'conv' else PastedPatches(how)).double().eval()
    perturb(pasted, 7)
    plain = nn_conv(pasted) if how == 'conv' else nn_patches(pasted)
    input = pixels(3, 8, 8, 3) if how == 'conv' else pixels(3, 3, 8, 8)
    expected_output, expected = explain(plain, input, FIRST[first]([]))
    output, relevance = explain(pasted, input, FIRST[first]([AttentionCanonizer()]))
    assert relative(output, expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-10
    if first in ('flat', 'wsquare'):
        assert (relevance[input == 0].abs() > 0).float().mean() > 0.5


# a module called more than once

class CalledTwice(nn.Module):
    '''One Linear and one activation called three times.'''
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.act, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):
            x = self.act(self.shared(x))
        return self.last(x)


class ConvTwice(CalledTwice):
    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(80, 4)

    def forward(self, x):
        x = self.act(self.first(x))
        for _ in range(2):
            x = self.act(self.shared(x))
        return self.last(x.flatten(1))


def unrolled(model):
    '''The same network with a module of its own for every call.'''
    layers = [model.first, model.act, model.shared, model.act, model.shared, model.act]
    if isinstance(model, ConvTwice):
        layers.append(nn.Flatten())
    return nn.Sequential(*(deepcopy(layer) for layer in [*layers, model.last]))


def rule_map(rule, canonizers):
    return LayerMapComposite([(Activation, Pass()), (Linear, rule)], canonizers=canonizers)


@pytest.mark.parametrize(('cls', 'shape'), [(CalledTwice, (3, 6)), (ConvTwice, (3, 2, 6, 6))])
@pytest.mark.parametrize('rule', [Epsilon(), Epsilon(0.1), ZPlus(), Gamma(0.25)])
def test_module_called_twice_equals_unrolled_copy(cls, shape, rule):
    torch.manual_seed(8)
    model, input = cls().double().eval(), torch.randn(shape, dtype=torch.float64)
    perturb(model, 9)
    expected = explain(unrolled(model), input, rule_map(rule, []))[1]
    relevance = explain(model, input, rule_map(rule, [AttentionCanonizer()]))[1]
    assert relative(relevance, expected) <= 1e-9
    ledger = audit(model, rule_map(rule, [AttentionCanonizer()]), input, one_hot)
    assert_closed(ledger)


def test_same_composite_again_and_on_another_model():
    composite = EpsilonPlusFlat(canonizers=[AttentionCanonizer()])
    first, input = wide_cnn()
    second, other = build('vit_mean')
    expected = explain(first, input, composite)[1]
    explain(second, other, composite)
    assert equal_maps(explain(first, input, composite)[1], expected)


# other attributors

@pytest.mark.parametrize('composite', [CPLRP, AttnLRP, lambda: STOCK['epsilon_plus_flat']([AttentionCanonizer()])])
def test_smooth_and_integrated_gradients_average_over_explanations(composite):
    model, input = build('linear_attention_cnn')
    before, target = Snapshot(model), one_hot(model(input))

    def at(point):
        return explain(model, point, composite(), target)[1]

    with SmoothGrad(model, composite(), n_iter=3, noise_level=0.1) as attributor:
        torch.manual_seed(0)
        output, smooth = attributor(input.clone(), target)
    assert relative(output, model(input)) <= 1e-12
    torch.manual_seed(0)
    dims = tuple(range(1, input.ndim))
    std = 0.1 * (input.amax(dims, keepdim=True) - input.amin(dims, keepdim=True))
    noisy = [input + torch.randn_like(input) * std for _ in range(2)] + [input]
    assert relative(smooth, sum(at(point) for point in noisy) / 3) <= 1e-9

    with IntegratedGradients(model, composite(), n_iter=3) as attributor:
        integrated = attributor(input.clone(), target)[1]
    assert integrated.shape == input.shape
    assert integrated.isfinite().all()
    assert integrated.abs().max() > 0
    assert_restored(before, model)


# canonizers combine

@pytest.mark.parametrize('stock', ['epsilon_plus_flat', 'epsilon_gamma_box', 'epsilon_alpha2_beta1'])
def test_resnet_canonizer_combines(stock):
    torch.manual_seed(10)
    model, input = torchvision.models.resnet18(num_classes=5).double().eval(), torch.randn(2, 3, 32, 32).double()
    perturb(model, 11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.abs_()
    twin = deepcopy(model)
    before, twin_before = Snapshot(model), Snapshot(twin)
    expected_output, expected = explain(twin, input, STOCK[stock]([ResNetCanonizer()]))
    output, relevance = explain(model, input, STOCK[stock]([ResNetCanonizer(), AttentionCanonizer()]))
    assert relative(output, expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-9
    assert changes(before, model) <= changes(twin_before, twin)


class NormedAttention(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, dim, 3), nn.BatchNorm2d(dim), nn.ReLU())
        self.attn, self.fc = LinearAttention(dim, 2, 4), nn.Linear(dim, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.attn(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize('make', [STOCK['epsilon_plus_flat'], lambda canonizers: CPLRP(canonizers=canonizers)])
def test_merged_batch_norm_combines(make):
    torch.manual_seed(12)
    model, input = NormedAttention().double().eval(), torch.randn(3, 3, 8, 8).double()
    perturb(model, 13)
    merged, twin = deepcopy(model), deepcopy(model)
    before, twin_before = Snapshot(model), Snapshot(twin)
    explain(twin, input, EpsilonPlusFlat(canonizers=[SequentialMergeBatchNorm()]))
    SequentialMergeBatchNorm().apply(merged)
    expected_output, expected = explain(merged, input, make([AttentionCanonizer()]))
    both = [SequentialMergeBatchNorm(), AttentionCanonizer()]
    output, relevance = explain(model, input, make(both))
    assert relative(output, expected_output) <= 1e-12
    assert relative(output, model(input)) <= 1e-4
    assert relative(relevance, expected) <= 1e-9
    ledger = audit(model, make(both), input, one_hot)
    assert_closed(ledger)
    assert changes(before, model) <= changes(twin_before, twin)


# our rules as Zennit hooks

class PlainAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.softmax = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Softmax(dim=-1)

    def forward(self, x):
        return self.softmax(self.q(x) @ self.k(x).transpose(1, 2)) @ self.v(x)


def test_constant_on_a_plain_softmax_without_canonizer():
    torch.manual_seed(14)
    model, input = PlainAttention().double(), torch.randn(3, 4, 6).double()
    before = Snapshot(model)
    output, relevance = explain(model, input, LayerMapComposite([(nn.Softmax, Constant())]), torch.ones_like)
    x = input.clone().requires_grad_()
    weights = F.softmax(model.q(x) @ model.k(x).transpose(1, 2), dim=-1).detach()
    expected, = torch.autograd.grad((weights @ model.v(x)).sum(), x)
    assert relative(output, model(input)) <= 1e-12
    assert relative(relevance, expected) <= 1e-12
    assert_restored(before, model)
    plain = explain(model, input, LayerMapComposite([]), torch.ones_like)[1]
    assert relative(plain, expected) > 1e-3


def test_operator_modules_take_rules_by_type_and_by_name():
    '''The Taylor rule for operator modules, by type or by name, makes AttnLRP of CP-LRP.'''
    model, input = build('vit_mean')
    expected = explain(model, input, AttnLRP())[1]
    by_type = LayerMapComposite([(Softmax, TaylorSoftmax())], canonizers=[AttentionCanonizer()])
    assert relative(explain(model, input, by_type)[1], expected) <= 1e-9

    model, input = build('talking_heads')
    expected = explain(model, input, AttnLRP())[1]
    with CPLRP().context(model):
        names = [name for name, module in model.named_modules() if isinstance(module, Softmax)]
    assert names
    by_name = NameMapComposite([(names, TaylorSoftmax())], canonizers=[AttentionCanonizer()])
    assert relative(explain(model, input, by_name)[1], expected) <= 1e-9
    assert relative(explain(model, input, CPLRP())[1], expected) > 1e-3


def test_stock_rules_without_biases_equal_stock_zennit_on_a_plain_network():
    '''On a network of modules only, the canonizer changes nothing.'''
    torch.manual_seed(15)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 2), nn.GELU(), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 4),
    ).double().eval()
    perturb(model, 16)
    input = torch.randn(3, 3, 8, 8, dtype=torch.float64).clamp(-3, 3)
    layers = [(Activation, Pass()), (AvgPool, Norm()), (BatchNorm, Pass()), (Linear, Gamma())]
    for make in (*STOCK.values(), lambda canonizers: LayerMapComposite(layers, canonizers=canonizers)):
        if make in (name_map, mixed):
            continue
        expected = explain(model, input, make([]))[1]
        assert relative(explain(model, input, make([AttentionCanonizer()]))[1], expected) <= 1e-9
