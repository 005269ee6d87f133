'''Zennit's own composites, rules and attributors over pasted code, judged by stock Zennit where it can do the same.'''
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zennit.attribution import IntegratedGradients, SmoothGrad
from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite
from zennit.rules import Gamma, Norm, Pass
from zennit.types import Activation, AvgPool, BatchNorm, Linear

from cases.problems import build, perturb
from cases.stock import STOCK, attention, every_stock, mixed, name_map, wide_cnn
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.layers import Softmax
from zennit_attn.rules import Constant, TaylorSoftmax


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
