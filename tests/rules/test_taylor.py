'''The Taylor rule: ledgers with hidden biases closed, whatever the code, and where a composite gives it.'''
import pytest
import torch
from torch import nn
from torch.overrides import wrap_torch_function
from zennit.composites import LayerMapComposite, NameMapComposite

from cases import snippets
from cases.problems import PROBLEMS, build
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot
from versions import each
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.layers import Activation, Add, Attention, Einsum, Gate, Multiply, Softmax
from zennit_attn.operators import register_operator
from zennit_attn.rules import Taylor

OPERATORS = (Activation, Add, Attention, Einsum, Gate, Multiply, Softmax)


def everywhere():
    '''The rule for all operators of a model.'''
    return LayerMapComposite([(OPERATORS, Taylor())], canonizers=[AttentionCanonizer()])


COMPOSITES = {'attn_taylor': AttnTaylor, 'everywhere': everywhere}
every_composite = pytest.mark.parametrize('composite', COMPOSITES)
# torch needs what F.relu returns, and refuses to differentiate once a number has been added to it in place.
OVERWRITTEN = ('activation += number', 'activation add_ number')
LINES = {**snippets.SNIPPETS, **{name: line for name, (line, _) in snippets.WRITTEN_OUT.items()}}


def check(model, input, composite):
    expected, before = model(input), Snapshot(model)
    output, relevance = explain(model, input, composite)
    ledger = audit(model, composite(), input, one_hot)
    assert_restored(before, model)
    assert torch.allclose(output, expected, rtol=1e-12)
    assert_closed(ledger)
    assert torch.allclose(ledger.input.sum(), relevance.sum(), rtol=1e-9)  # some lines mix the samples


@pytest.mark.parametrize('name', PROBLEMS)
@every_composite
def test_ledger_of_pasted_code_closes(name, composite):
    check(*build(name), COMPOSITES[composite])


@pytest.mark.filterwarnings('ignore:index_reduce.* is in beta')
@pytest.mark.parametrize('name', each([name for name in LINES if name not in OVERWRITTEN], snippets.NEWER))
def test_ledger_of_single_lines_closes(name):
    check(*snippets.build(LINES[name]), everywhere)


class Gated(nn.Module):
    '''Attention by sigmoids and softmaxes, whatever it is called, and a feed-forward with a gate.'''
    def __init__(self):
        super().__init__()
        self.mix = SigmoidMixer()
        self.fc, self.act, self.head = nn.Linear(6, 12), nn.GELU(), nn.Linear(6, 3)

    def forward(self, x):
        value, gate = self.fc(self.mix(x)).chunk(2, -1)
        return self.head(self.act(value * torch.sigmoid(gate)).mean(1))


class SigmoidMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.sigmoid, self.norm = nn.Linear(6, 18), nn.Sigmoid(), nn.LayerNorm(6)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        weights = self.sigmoid(q @ k.mT)
        return weights @ v / (1 + weights.sum(-1, keepdim=True)) + (q @ k.mT).softmax(-1) @ v


def mixed(model, x):
    '''The mixer with normalizer and deviation as constants.'''
    norm = model.norm
    deviation = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
    q, k, v = model.qkv((x - x.mean(-1, keepdim=True)) / deviation * norm.weight + norm.bias).chunk(3, -1)
    weights = torch.sigmoid(q @ k.mT)
    return weights @ v / (1 + weights.sum(-1, keepdim=True)).detach() + (q @ k.mT).softmax(-1) @ v


def twin(model, x, everywhere=True):
    '''Gradient x input; outside of attention, of the whole model or with the default rules of products and gates.'''
    x = x.clone().requires_grad_()
    value, gate = model.fc(mixed(model.mix, x)).chunk(2, -1)
    if everywhere:
        value = nn.functional.gelu(value * torch.sigmoid(gate))
    else:
        value = value * torch.sigmoid(gate).detach()
        value = value * (nn.functional.gelu(value) / value).detach()
    output = model.head(value.mean(1))
    weight = one_hot(output) / (output + 1e-9 * output.sign()).detach()
    return (x * torch.autograd.grad(output, x, weight)[0]).detach()


def gated():
    torch.manual_seed(0)
    return Gated().double(), torch.randn(3, 5, 6, dtype=torch.float64)


def by_name(name):
    return lambda: NameMapComposite([([name], Taylor())], canonizers=[AttentionCanonizer()])


@pytest.mark.parametrize(('composite', 'everywhere'), [
    (AttnTaylor, True), (by_name('mix'), False), (lambda: CPLRP(layer_map=[(SigmoidMixer, Taylor())]), False),
], ids=['composite', 'by name', 'by type'])
def test_expansion_of_a_model_or_of_one_module(composite, everywhere):
    model, x = gated()
    relevance = explain(model, x, composite)[1]
    assert torch.allclose(relevance, twin(model, x, everywhere), rtol=1e-9, atol=1e-12)
    check(model, x, composite)
    ledger = audit(model, composite(), x, one_hot)
    rules = {operation.rule for operation in ledger.operators if operation.module == 'mix'}
    assert {'Taylor'} <= rules <= {'Taylor', 'TaylorSoftmax', 'LRPZero', 'Constant', 'gradient'}


def test_maps_differ_from_those_of_constant_gates():
    model, x = gated()
    assert not torch.allclose(explain(model, x, CPLRP)[1], twin(model, x), rtol=.1, atol=1e-3)


FORMS = {
    'silu': (nn.functional.silu, lambda x: x * torch.sigmoid(x)),
    'gelu': (nn.functional.gelu, lambda x: x * (1 + torch.erf(x / 2 ** .5)) / 2),
    'elu + 1': (lambda x: nn.functional.elu(x) + 1, lambda x: torch.where(x > 0, x + 1, torch.exp(x))),
    'square': (torch.square, lambda x: x * x), 'relu': (torch.relu, lambda x: x * (x > 0)),
    'softplus': (nn.functional.softplus, lambda x: torch.log(1 + torch.exp(x))),
    'softmax by its sum': (lambda x: torch.softmax(x, -1), lambda x: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)),
}


class Written(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.fc, self.head = form, nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.form(self.fc(x)))


@pytest.mark.parametrize('name', FORMS)
def test_map_does_not_depend_on_how_a_function_is_written(name):
    maps, x = [], torch.randn(3, 6, dtype=torch.float64)
    for form in FORMS[name]:
        torch.manual_seed(0)
        model = Written(form).double()
        maps.append(explain(model, x, AttnTaylor)[1])
        check(model, x, AttnTaylor)
    assert torch.allclose(*maps, rtol=1e-6, atol=1e-9)


class Wrong(torch.autograd.Function):
    '''A product whose gradient is twice too large.'''
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return 2 * grad * y, 2 * grad * x


@wrap_torch_function(lambda x, y: (x, y))
def wrong_product(x, y):
    return Wrong.apply(x, y)


def test_wrong_backward_opens_the_ledger(table):
    '''Hidden biases are not what is left over, but measured by formula.'''
    register_operator(wrong_product, 'einsum')
    torch.manual_seed(0)
    model, x = Written(lambda x: wrong_product(x, x)).double(), torch.randn(3, 6, dtype=torch.float64)
    ledger = audit(model, AttnTaylor(), x, one_hot)
    assert (ledger.unaccounted.abs() > .1 * ledger.output.abs()).all()


def test_added_parameters_keep_their_names():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.head = nn.Parameter(torch.randn(5, 6)), nn.Linear(6, 2)

        def forward(self, x):
            x = x + self.position
            return self.head((x @ x.mT).softmax(-1) @ x).mean(1)

    torch.manual_seed(0)
    ledger = audit(Attention().double(), AttnTaylor(), torch.randn(3, 5, 6, dtype=torch.float64), one_hot)
    assert {'position', 'head.bias'} <= {sink.name.rpartition(': ')[2] for sink in ledger.sinks}


def test_roots_and_deviations_stay_constant():
    class Attention(nn.Module):
        def forward(self, x):
            return x * (x.var(-1, keepdim=True) + 1e-5) ** -.5 + x / x.norm(dim=-1, keepdim=True)

    x = torch.randn(3, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 6), Attention(), nn.Linear(6, 2)).double()
    assert torch.equal(explain(model, x, AttnTaylor)[1], explain(model, x, CPLRP)[1])


@pytest.mark.parametrize('line', ['x.mul_(y)', 'x.mul_(y).add_(x)', 'x.__imul__(y)'])
def test_products_in_place(line):
    class Attention(nn.Module):
        def forward(self, x):
            x, y = x.chunk(2, -1)
            return eval(line, {'x': x * 1., 'y': y})

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), Attention(), nn.Linear(4, 2)).double(), torch.randn(3, 6).double()
    check(model, x, AttnTaylor)
    plain = x.clone().requires_grad_()
    output = model(plain)
    weight = one_hot(output) / (output + 1e-9 * output.sign()).detach()
    expected = (x * torch.autograd.grad(output, plain, weight)[0]).detach()
    assert torch.allclose(explain(model, x, AttnTaylor)[1], expected, rtol=1e-9, atol=1e-12)


class Masked(nn.Module):
    '''Attention whose map is a function of masked scores, written by hand.'''
    def __init__(self, function):
        super().__init__()
        self.qkv, self.head, self.function = nn.Linear(8, 24), nn.Linear(8, 3), function

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(x + self.function((q @ k.mT).masked_fill(mask, -torch.inf)) @ v)


@every_composite
@pytest.mark.parametrize('function', [
    lambda z: (z - z.logsumexp(-1, keepdim=True)).exp(), lambda z: z.log_softmax(-1).exp(), torch.sigmoid, torch.exp2,
    torch.relu, torch.expm1, torch.tanh, nn.functional.softplus, lambda z: z.exp_() + 0.,
    lambda z: z.clone().sigmoid_(), lambda z: torch.logaddexp(z, torch.zeros_like(z)),
])
def test_functions_of_masked_scores(function, composite):
    '''What is masked with minus infinity receives nothing, and its hidden bias is the value there.'''
    torch.manual_seed(0)
    check(Masked(function).double(), torch.randn(2, 5, 8, dtype=torch.float64), COMPOSITES[composite])
