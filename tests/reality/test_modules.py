'''Modules of all kinds: parametrized, lazy, shared, wrapped, odd.'''
from functools import partial, partialmethod, wraps

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from cases.problems import DIM
from helpers import assert_closed, one_hot, relevance_of, stock
from versions import since
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

from .helpers import SHAPE, Around, Model, check, close, data, every_composite, expected, fresh, refused


def reparametrized(name, module):
    if name == 'weight_norm':
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(module)
    elif name == 'pruned':
        prune.l1_unstructured(module, 'weight', .3)
    elif name == 'own':
        parametrize.register_parametrization(module, 'weight', Around(lambda body, w: w.tril() + 1, nn.Identity()))
    elif name == 'old spectral_norm':
        nn.utils.spectral_norm(module)
    else:
        getattr(parametrizations, name)(module)
    return module


@every_composite
@pytest.mark.parametrize('name', [
    'weight_norm', 'old spectral_norm', 'pruned', 'spectral_norm', 'orthogonal', 'own'])
def test_parametrizations(make, name):
    '''As with the plain weight; rules that modify parameters refuse.'''
    model, twin = fresh(), fresh()
    reparametrized(name, model.embed)
    reparametrized(name, model.attn.to_out[0])
    model.eval()(data())
    for module, other in ((model.embed, twin.embed), (model.attn.to_out[0], twin.attn.to_out[0])):
        other.weight.data = module.weight.detach().clone()
    if make is stock:
        refused(lambda: relevance_of(model, data(), make), "'embed'", 'remove_parametrizations')
        return
    wanted = relevance_of(twin, data(), make)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    close(relevance_of(model, data(), make), wanted)
    ledger = audit(model, make(), data(), one_hot)
    assert_closed(ledger)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    model.zero_grad()
    model(data()).sum().backward()
    assert any(parameter.grad is not None for name, parameter in model.embed.named_parameters() if 'bias' not in name)


def test_lazy_and_quantized_modules():
    lazy = nn.Sequential(nn.LazyLinear(DIM), fresh())
    with pytest.raises(AttributionError, match="'0' is lazy.*call the model once"):
        relevance_of(lazy, data(), CPLRP)
    lazy.double()(data())
    assert relevance_of(lazy.double(), data(), CPLRP).isfinite().all()


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_quantized_modules():
    model = torch.ao.quantization.quantize_dynamic(fresh().float(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(AttributionError, match="'embed' is quantized.*made from"):
        relevance_of(model, data().float(), CPLRP)


@every_composite
def test_shared_parameters(make):
    model, twin = (nn.Sequential(nn.Linear(DIM, DIM), fresh()).double() for _ in range(2))
    model[0].weight, twin[0].weight.data = model[1].embed.weight, twin[1].embed.weight.detach().clone()
    twin[0].bias.data = model[0].bias.detach().clone()
    check(model, make, relevance_of(twin, data(), make))


def instance_partial(model):
    model.forward = partial(model.forward)


def instance_function(model):
    original = model.forward
    model.forward = lambda x: original(x)


def child_function(model):
    original = model.embed.forward
    model.embed.forward = lambda x: original(x)


def child_wrapped(model):
    @wraps(type(model.attn).forward)
    def forward(x, original=model.attn.forward):
        return original(x) * 1.
    model.attn.forward = forward


class Decorated(Model):
    @wraps(Model.forward)
    def forward(self, *args, **kwargs):
        return Model.forward(self, *args, **kwargs)


class Partial(Model):
    def run(self, x, scale):
        return Model.forward(self, x) * scale
    forward = partialmethod(run, scale=1.)


class Slots(Model):
    __slots__ = ('extra',)


class Raising(Model):
    @property
    def device(self):
        raise RuntimeError('this model has no device')


class Forwarding(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Model()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, x):
        return self.inner(x)


class Agreeable(Model):
    '''Has every attribute.'''
    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


class Sealed(Model):
    def __setattr__(self, name, value):
        if self.__dict__.get('sealed'):
            raise AttributeError(f'{name}: sealed')
        super().__setattr__(name, value)


class Equal(Model):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


class Falsy(Model):
    def __len__(self):
        return 0

    def __bool__(self):
        raise RuntimeError('no truth value')


@every_composite
@pytest.mark.parametrize('change', [instance_partial, instance_function, child_function, child_wrapped])
def test_forward_as_an_attribute(make, change):
    model = fresh()
    change(model)
    check(model, make, expected(make), tolerance=1e-7)


@every_composite
@pytest.mark.parametrize('cls', [Decorated, Partial, Slots, Raising, Forwarding, Agreeable, Sealed, Equal, Falsy])
def test_odd_modules(make, cls):
    model = fresh(cls)
    model.__dict__['sealed'] = True
    check(model, make, expected(make), tolerance=1e-7)


@every_composite
def test_call_is_overridden(make):
    class Calls(Model):
        def __call__(self, x):
            return super().__call__(x.relu() * x)
    model = fresh(Calls)
    refused(lambda: relevance_of(model, data(), make), 'overrides __call__', 'Sequential', model=model)
    wanted = relevance_of(Around(lambda body, x: body(x.relu() * x)), data(), make)
    check(nn.Sequential(model), make, wanted, tolerance=1e-7)


class Quantized(torch.Tensor):
    '''A weight of whole numbers with a scale, which has no memory of its own, and knows what a linear layer needs.'''
    @staticmethod
    def __new__(cls, numbers, scale):
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype)

    def __init__(self, numbers, scale):
        self.numbers, self.scale = numbers, scale

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def values(self):
        return self.numbers * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].numbers, args[0].scale)
        if func is torch.ops.aten.t.default:
            return cls(args[0].numbers.t(), args[0].scale.t())
        if func not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default):
            raise NotImplementedError(f'{func} of a quantized weight')
        return func(*(arg.values if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))


class Flattened(Quantized):
    '''One that says what it consists of.'''
    def __tensor_flatten__(self):
        return ['numbers', 'scale', 'name'], None  # the last is no tensor, as of the mesh of a distributed one


def quantize(model, cls):
    '''Put whole numbers in the place of the weights of linear layers, as a tensor of a subclass or as they are.'''
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            scale = weight.abs().amax(1, keepdim=True) / 127
            numbers = (weight / scale).round().to(torch.int8)
            weight = numbers * scale if cls is None else cls(numbers, scale)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model


def layers():
    return nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Flatten(), nn.Linear(DIM * SHAPE[1], 4))


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
@pytest.mark.parametrize('cls', [Quantized, Flattened])
def test_parameters_of_a_tensor_subclass(make, cls):
    '''As torchao has them: without memory of their own, and without most functions.'''
    model, plain = quantize(fresh(layers), cls), quantize(fresh(layers), None)
    parameters = list(model.parameters())
    close(relevance_of(model, data(), make), relevance_of(plain, data(), make))
    ledger, wanted = audit(model, make(), data(), one_hot), audit(plain, make(), data(), one_hot)
    assert_closed(ledger)
    assert [(sink.kind, sink.name) for sink in ledger.sinks] == [(sink.kind, sink.name) for sink in wanted.sinks]
    assert all(mine is other for mine, other in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
@pytest.mark.parametrize('cls', [Quantized, Flattened])
def test_weights_of_a_tensor_subclass_in_operator_code(make, cls):
    '''Multiplied by a function, and named by the ledger where they absorb.'''
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.offset = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

        def forward(self, x):
            ones = torch.eye(DIM, dtype=x.dtype)
            return (x + torch.nn.functional.linear(ones, self.offset.weight)[0] + self.fc(x)).sum(1)

    model, plain = quantize(fresh(Added), cls), quantize(fresh(Added), None)
    close(relevance_of(model, data(), make), relevance_of(plain, data(), make))
    assert_closed(audit(model, make(), data(), one_hot))


@since('2.15', 'older distributed tensors do not know all that a linear layer and a ledger need')
@pytest.mark.filterwarnings('ignore:DTensor random operators')
def test_distributed_parameters():
    '''As torch distributes a model, here to one process.'''
    distributed, tensor = torch.distributed, pytest.importorskip('torch.distributed.tensor')
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip('torch cannot distribute here')
    wanted = relevance_of(fresh(layers), data(), CPLRP, lambda output: output.detach())
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = tensor.init_device_mesh('cpu', (1,))
        model = tensor.distribute_module(fresh(layers), mesh)
        x = tensor.distribute_tensor(data(), mesh, [tensor.Replicate()])
        close(relevance_of(model, x, CPLRP, lambda output: output.detach()).full_tensor(), wanted)
        ledger = audit(model, CPLRP(), x)
        assert_closed(ledger)
        assert {sink.name for sink in ledger.sinks if sink.kind == 'bias'} == {'0.bias', '3.bias'}
    finally:
        distributed.destroy_process_group()
