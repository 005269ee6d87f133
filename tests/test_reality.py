'''Awkward reality: what models and their users do. Each case is explained right, or refused with what to do.'''
import copy
import io
import pickle
import threading
from collections import OrderedDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial, partialmethod, wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import DIM, PROBLEMS, TOKENS, Head, ViTAttention, build, one_hot
from snapshot import Snapshot, assert_restored, changes
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Linear

from zennit_attn.attribution import TokenGradient
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

SHAPE = (3, TOKENS, DIM)


def epsilon():
    return LayerMapComposite([(Linear, Epsilon())], canonizers=[AttentionCanonizer()])


def stock():
    return EpsilonPlusFlat(canonizers=[AttentionCanonizer()])


COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'epsilon': epsilon, 'stock': stock}
every_composite = pytest.mark.parametrize('make', COMPOSITES.values(), ids=COMPOSITES)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.norm, self.head = nn.Linear(DIM, DIM), ViTAttention(DIM), nn.LayerNorm(DIM), Head()

    def forward(self, x):
        x = self.embed(x)
        return self.head(self.norm(x + self.attn(x)))


class Around(nn.Module):
    '''A model whose forward is a function of a module and the input.'''
    def __init__(self, function, body=None):
        super().__init__()
        self.body, self.function = body or fresh(), function

    def forward(self, *args, **kwargs):
        return self.function(self.body, *args, **kwargs)


def fresh(cls=Model, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(*args).double().eval()


def data(seed=1, shape=SHAPE):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explain(model, input, make, target=one_hot):
    with Gradient(model, make()) as attributor:
        return attributor(input.clone(), target)[1]


@cache
def expected(make):
    '''The map of the plain model.'''
    return explain(fresh(), data(), make)


def explain_call(model, make, call, *leaves):
    '''Relevance of leaves in a call of the model with anything.'''
    with make().context(model):
        output = call(model)
        return torch.autograd.grad(output, leaves, one_hot(output))


def close(actual, wanted, tolerance=1e-12):
    assert actual.shape == wanted.shape
    assert (actual - wanted).abs().max() <= tolerance * wanted.abs().max()


def check(model, make, wanted, input=None, tolerance=1e-12):
    '''Forward equal, map as wanted, ledger closed, model restored.'''
    input = data() if input is None else input
    plain, before = model(input).detach(), Snapshot(model)
    with Gradient(model, make()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    assert_restored(before, model)
    close(output.detach(), plain)
    close(relevance, wanted, tolerance)
    ledger = audit(model, make(), input, one_hot)
    assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all(), str(ledger)
    assert_restored(before, model)


def refused(call, *words, model=None):
    '''Refused by an error of ours that has all words; the model is as before.'''
    before = model and Snapshot(model)
    with pytest.raises(AttributionError) as info:
        call()
    message = str(info.value)
    del info  # an error that is kept keeps checkpointing switched on, before torch 2.13
    assert all(word in message for word in words), message
    if model is not None:
        assert_restored(before, model)


# nested inputs and outputs

@dataclass
class Record:
    x: Any
    note: Any = None


@dataclass(frozen=True)
class Frozen:
    x: Any


class Attributes(OrderedDict):
    '''As transformers have it: a dict whose items are attributes.'''
    __getattr__ = OrderedDict.__getitem__


Pair = namedtuple('Pair', 'x y')
NESTED = {
    'dict': (lambda x: {'x': x, 'n': 3}, lambda tree: tree['x']),
    'dict subclass': (lambda x: Attributes(x=x), lambda tree: tree.x),
    'list': (lambda x: [x, None], lambda tree: tree[0]),
    'tuple': (lambda x: ('name', x), lambda tree: tree[1]),
    'namedtuple': (lambda x: Pair(x, 1.), lambda tree: tree.x),
    'dataclass': (Record, lambda tree: tree.x),
    'frozen dataclass': (Frozen, lambda tree: tree.x),
    'deep': (lambda x: {'a': [Record((x, 1))]}, lambda tree: tree['a'][0].x[0]),
}
every_nesting = pytest.mark.parametrize('nesting', NESTED)


@every_composite
@every_nesting
def test_nested_input(make, nesting):
    wrap, unwrap = NESTED[nesting]
    x = data().requires_grad_()
    model = Around(lambda body, tree: body(unwrap(tree)))
    close(explain_call(model, make, lambda model: model(wrap(x)), x)[0], expected(make))
    close(explain_call(model, make, lambda model: model(tree=wrap(x)), x)[0], expected(make))


@every_composite
@every_nesting
def test_nested_output(make, nesting):
    wrap, unwrap = NESTED[nesting]
    x = data().requires_grad_()
    model = Around(lambda body, x: wrap(body(x)))
    found = []
    relevance, = explain_call(model, make, lambda model: unwrap(found.append(model(x)) or found[0]), x)
    close(relevance, expected(make))
    assert type(found[0]) is type(wrap(x))
    check(Around(lambda body, x: unwrap(body(x)), model), make, expected(make))


@every_composite
def test_opaque_objects(make):
    '''An object with attributes is no container: refused as input and output, fine inside.'''
    x = data().requires_grad_()
    model = Around(lambda body, tree: body(tree.x))
    refused(lambda: explain_call(model, make, lambda model: model(SimpleNamespace(x=x)), x), 'requires a gradient',
            model=model)
    model = Around(lambda body, x: SimpleNamespace(x=body(x)))
    refused(lambda: explain_call(model, make, lambda model: model(x).x, x), 'SimpleNamespace', 'dataclasses',
            model=model)
    check(Around(lambda body, x: body(x).x, model), make, expected(make))


@pytest.mark.parametrize('rule', [Epsilon, Pass])
def test_rule_on_a_module_with_a_nested_output(rule):
    '''What a rule cannot serve is refused, not left out of the map.'''
    def wrapped(wrap, unwrap):
        part = Around(lambda body, x: wrap(body(x)), nn.Linear(DIM, DIM))
        model = Around(lambda body, x: body(x + unwrap(part(x))))
        model.part = part
        return model.double()
    opaque = wrapped(lambda x: SimpleNamespace(x=x), lambda tree: tree.x)
    record = wrapped(Record, lambda tree: tree.x)

    def composite():
        return LayerMapComposite([(Around, rule())], canonizers=[AttentionCanonizer()])
    for model in (opaque, record) if rule is Epsilon else (opaque,):
        inner = LayerMapComposite([((type(model.part),), rule())], canonizers=[AttentionCanonizer()])
        inner.module_map = lambda ctx, name, module: rule() if name == 'part' else None
        refused(lambda model=model, inner=inner: explain(model, data(), lambda: inner), 'part', rule.__name__,
                'returns', 'modules inside', model=model)


def test_container_of_the_caller_is_written_to():
    '''A dict that the model fills, as caches are, is the caller's own.'''
    def fill(body, x, store):
        store['seen'] = body(x)
        return store['seen']
    store, x = {}, data().requires_grad_()
    explain_call(Around(fill), CPLRP, lambda model: model(x, store), x)
    assert list(store) == ['seen']


@every_composite
def test_several_inputs(make):
    '''Each gets what it gets as a part of one input.'''
    x, y = data(1).requires_grad_(), data(2).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        side = nn.Linear(DIM, DIM).double()

    def both(body, x, y=None, scale=1.):
        return body(x + body.side(y) * scale)

    model = Around(both)
    model.body.side = side
    joined = Around(lambda body, both: body(both[..., :DIM], y=both[..., DIM:]), model)
    wanted = explain(joined, torch.cat([x, y], -1).detach(), make)
    close(torch.cat(explain_call(model, make, lambda model: model(x, y=y), x, y), -1), wanted)
    close(torch.cat(explain_call(model, make, lambda model: model(y=y, x=x), x, y), -1), wanted)
    close(explain_call(model, make, lambda model: model(x, y.detach()), x)[0], wanted[..., :DIM])
    close(explain_call(model, make, lambda model: model(x, x), x)[0],
          explain(Around(lambda body, x: body(x, x), model), x.detach(), make))


# masks

def masked(kind):
    '''A model with a padding mask on its last two tokens.'''
    keep = torch.arange(TOKENS) < TOKENS - 2

    def attend(body, x):
        x = body.embed(x)
        q, k, v = body.attn.to_qkv(x).chunk(3, -1)
        scores = q @ k.mT / 3
        if kind == 'bool':
            scores = scores.masked_fill(~keep, -torch.inf)
        elif kind == 'sdpa':
            return pooled(body, F.scaled_dot_product_attention(q, k, v, keep.expand(TOKENS, TOKENS), scale=1 / 3))
        elif kind != 'short':
            scores = scores + torch.tensor([kind, 0.], dtype=scores.dtype)[keep.long()]
        return pooled(body, scores.softmax(-1) @ v)

    def pooled(body, out):
        return body.attn.to_out(out)[:, :TOKENS - 2].mean(1)
    return Around(attend)


@every_composite
@pytest.mark.parametrize('kind', [torch.finfo(torch.float32).min, torch.finfo(torch.float64).min, -1e9, -torch.inf,
                                  'bool', 'sdpa'])
def test_padding_mask(make, kind):
    '''Every way to mask gives the map of the sequence without padding, and 0 for the padding.'''
    short = explain(masked('short'), data()[:, :TOKENS - 2], make)
    check(masked(kind), make, F.pad(short, (0, 0, 0, 2)))


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
@pytest.mark.parametrize('how', ['fused', 'written out', 'float32'])
def test_blank_rows(make, how):
    '''A query that may look at nothing: where its output is not used, it has no relevance, and others lose none.'''
    keep = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    keep[-1] = False

    def attend(body, x):
        q, k, v = body.attn.to_qkv(body.embed(x)).chunk(3, -1)
        if how == 'fused':
            out = F.scaled_dot_product_attention(q, k, v, keep)
        elif how == 'float32':  # where the smallest number of the scores' type is infinite
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, torch.finfo(q.dtype).min)
            out = F.softmax(scores, -1, dtype=torch.float32).to(v.dtype).masked_fill(~keep[:, :1], 0.) @ v
        else:
            out = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~keep, -torch.inf).softmax(-1).nan_to_num(0.) @ v
        return body.attn.to_out(out)[:, :-1].mean(1)

    def shorter(body, x):
        q, k, v = body.attn.to_qkv(body.embed(x)).chunk(3, -1)
        return body.attn.to_out(F.scaled_dot_product_attention(q[:, :-1], k, v)).mean(1)
    wanted = explain(Around(shorter), data(), make)
    if how == 'float32':
        close(explain(Around(attend), data(), make), wanted, 1e-5)
    else:
        check(Around(attend), make, wanted)


# precision

@every_composite
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, .05), (torch.float16, .005), (torch.float32, 1e-5)])
def test_low_precision(make, dtype, tolerance):
    relevance = explain(fresh().to(dtype), data().to(dtype), make)
    assert relevance.dtype == dtype
    close(relevance.double(), expected(make), tolerance)


@every_composite
@pytest.mark.parametrize('where', ['outside', 'inside', 'forward only'])
def test_autocast(make, where):
    model, x = fresh().float(), data().float().requires_grad_()

    def lower(body, x):
        with torch.autocast('cpu', torch.bfloat16):
            return body(x)
    if where == 'outside':
        with torch.autocast('cpu', torch.bfloat16):
            relevance = explain(model, x.detach(), make)
    elif where == 'inside':
        relevance = explain(Around(lower, model), x.detach(), make)
    else:
        relevance, = explain_call(model, make, lambda model: lower(model, x), x)
    assert relevance.dtype == torch.float32
    close(relevance.double(), expected(make), .05)


# recomputation, copies, other runtimes

@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_inside(make, reentrant):
    model = Around(lambda body, x: checkpoint(body, x, use_reentrant=reentrant))
    refused(lambda: explain(model, data(), make), 'checkpoint', 'gradient_checkpointing_disable', model=model)


@every_composite
def test_checkpointing_of_the_whole_model(make):
    '''A reentrant one runs the whole explanation in the backward pass, which is right; the other is refused.'''
    model, x = fresh(), data().requires_grad_()
    with make().context(model):
        output = checkpoint(model, x, use_reentrant=True)
        output.backward(one_hot(output))
    close(x.grad, expected(make))
    refused(lambda: explain_call(model, make, lambda model: checkpoint(model, x, use_reentrant=False), x),
            'checkpoint', model=model)


@every_composite
@pytest.mark.parametrize('part', [lambda model: model, lambda model: model.attn, nn.Sequential])
def test_copies_in_an_open_context(make, part):
    '''Not a copy that explains for ever, or that runs the original.'''
    model = fresh()
    with make().context(model):
        open_ = Snapshot(model)
        for attempt in (copy.deepcopy, pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
            refused(lambda attempt=attempt: attempt(part(model)), 'outside of the context')
        assert_restored(open_, model)
    check(model, make, expected(make))
    check(copy.deepcopy(model), make, expected(make))


@every_composite
def test_shallow_copies_and_replicas(make):
    model = fresh()
    with make().context(model):
        refused(model._replicate_for_data_parallel, 'replicated')
        refused(model.attn._replicate_for_data_parallel, 'replicated')
        refused(lambda: copy.copy(model), 'copied')
    check(model, make, expected(make))


@every_composite
def test_data_parallel(make):
    '''Without several devices it only passes on; with them it is refused.'''
    model = nn.DataParallel(fresh())
    check(model, make, expected(make))
    model.device_ids = [0, 1]
    refused(lambda: explain(model, data(), make), 'model.module', 'threads', model=model)


@every_composite
@pytest.mark.parametrize(('part', 'word'), [
    (lambda body, x: body.embed(x), 'another thread'), (lambda body, x: x.tanh() * 2, 'requires a gradient')])
def test_threads_inside(make, part, word):
    '''A model that runs parts in threads of its own, where no function is seen.'''
    def parallel(body, x):
        with ThreadPoolExecutor() as pool:
            return body(pool.submit(part, body, x).result())
    model = Around(parallel)
    refused(lambda: explain(model, data(), make), word, model=model)


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.filterwarnings('ignore:The .grad attribute')
def test_compiled(make):
    model = fresh()
    function = torch.compile(lambda x: torch.relu(x) * x.sigmoid(), backend='eager')

    class Compiled(Model):
        forward = torch.compile(Model.forward, backend='eager')
    for each in (torch.compile(model, backend='eager'), fresh(Compiled)):
        refused(lambda each=each: explain(each, data(), make), 'compiled', 'original module', model=model)
    with pytest.raises(Exception, match='module .body. calls|InternalTorchDynamoError|Dynamo|user code'):  # noqa: PT011
        explain(Around(lambda body, x: body(function(x)), model), data(), make)
    torch._dynamo.reset()
    check(torch.compile(model, backend='eager')._orig_mod, make, expected(make))


@pytest.mark.parametrize('make', [CPLRP, stock])
def test_compiling_an_open_model(make):
    '''An error, whatever its text, and no silent gradient.'''
    model = fresh()
    before = Snapshot(model)
    with pytest.raises(Exception), make().context(model):  # noqa: B017, PT011
        torch.compile(model, backend='eager')(data().requires_grad_())
    torch._dynamo.reset()
    assert changes(before, model) <= {('', 'attributes', '_is_torch_compile')}, 'more than what torch.compile sets'
    check(model, make, expected(make))


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
def test_torchscript(make):
    @torch.jit.script
    def scripted(x):
        return torch.relu(x) * x
    model = Around(lambda body, x: body(scripted(x)))
    refused(lambda: explain(model, data(), make), 'body.embed', 'TorchScript', model=model)
    with make().context(model.body):
        refused(lambda: torch.jit.trace(model.body, data().requires_grad_()), 'torch.jit.trace')


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('transform', [
    lambda model, x: torch.func.vjp(model, x), lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    lambda model, x: torch.func.vmap(lambda x: model(x[None]))(x), lambda model, x: torch.func.jvp(model, (x,), (x,)),
])
def test_transforms_of_an_open_model(make, transform):
    model = fresh()

    def attempt():
        with make().context(model):
            transform(model, data())
    refused(attempt, 'torch.func', 'torch.autograd.grad', model=model)
    check(model, make, expected(make))


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('function', [
    lambda x: torch.vmap(lambda t: t * 2 + t.relu())(x), lambda x: x + torch.func.grad(lambda t: (t ** 2).sum())(x)])
def test_transforms_inside(make, function):
    model = Around(lambda body, x: body(function(x)))
    refused(lambda: explain(model, data(), make), 'requires a gradient', model=model)


@every_composite
def test_functional_call(make):
    model = fresh()
    parameters = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
    twin = fresh()
    twin.load_state_dict(parameters)
    x = data().requires_grad_()

    def attempt():
        return explain_call(model, make, lambda model: torch.func.functional_call(model, parameters, (x,)), x)
    if make in (stock, epsilon):
        refused(attempt, 'other parameters', 'functional_call', model=model)
    else:
        close(attempt()[0], explain(twin, data(), make))
    check(Around(lambda body, x: torch.func.functional_call(body, dict(body.named_parameters()), (x,))), make,
          expected(make))


# layouts and sizes

@every_composite
@pytest.mark.parametrize('layout', [
    lambda x: x.mT.contiguous().mT, lambda x: torch.stack([x, x], -1)[..., 0], lambda x: x[:1].expand(3, -1, -1)])
def test_strides(make, layout):
    x = layout(data())
    wanted = explain(fresh(), x.contiguous().clone(), make)
    check(fresh(), make, wanted, x)
    leaf = x.detach().requires_grad_()
    close(explain_call(fresh(), make, lambda model: model(leaf), leaf)[0], wanted)


@every_composite
@pytest.mark.parametrize('name', ['linear_attention_cnn', 'vit_cls'])
def test_channels_last(make, name):
    model, input = build(name)
    wanted = explain(model, input, make)
    check(model, make, wanted, input.contiguous(memory_format=torch.channels_last), 1e-9)
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    check(model, make, wanted, input.contiguous(memory_format=torch.channels_last), 1e-9)


class Averaged(Model):
    '''For any number of tokens.'''
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(DIM, 4)

    def forward(self, x):
        return super().forward(x).mean(1)


@every_composite
def test_sizes(make):
    model = fresh(Averaged)
    whole = explain(model, data(), make)
    for index in range(3):
        close(explain(model, data()[index:index + 1], make, lambda output, index=index: F.one_hot(
            torch.tensor([index]), 4).to(output)), whole[index:index + 1], 1e-9)
    assert explain(model, data()[:0], make).shape == (0, TOKENS, DIM)
    assert audit(model, make(), data()[:0], one_hot).unaccounted.shape == (0,)
    single = data()[:, :1]
    check(model, make, explain(model, single, make), single)


@pytest.mark.parametrize('name', PROBLEMS)
@pytest.mark.parametrize('make', [AttnLRP, stock])
def test_samples_do_not_mix(name, make):
    '''As test_pasted has it for CPLRP: noise in the other samples does not change the relevance of one.'''
    model, input = build(name)
    noisy = input.clone()
    noisy[1:] += torch.randn(noisy[1:].shape, dtype=noisy.dtype, generator=torch.Generator().manual_seed(3))
    with Gradient(model, make()) as attributor:
        clean, other = (attributor(each.clone(), one_hot)[1] for each in (input, noisy))
    close(other[:1], clean[:1], 1e-9)
    assert (other[1:] - clean[1:]).abs().max() > 1e-6 * clean.abs().max()


# gradients of all kinds

@every_composite
def test_second_derivatives(make):
    model, x = fresh(), data().requires_grad_()

    def twice():
        with make().context(model):
            output = model(x)
            relevance, = torch.autograd.grad(output, x, one_hot(output), create_graph=True)
            torch.autograd.grad(relevance.sum(), x)
    refused(twice, 'create_graph=False', model=model)

    def inactive():
        composite = make()
        with composite.context(model), composite.inactive():
            output = model(x)
            torch.autograd.grad(output, x, one_hot(output))
    refused(inactive, 'inactive', model=model)


@every_composite
def test_without_gradients(make):
    '''Predictions in the context are plain; an explanation without gradients is torch's error; audit needs no care.'''
    model, x = fresh(), data().requires_grad_()
    plain, before = model(x).detach(), Snapshot(model)
    with make().context(model):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                close(model(x), plain)
                close(model(data()), plain)
        close(explain_open(model, x), expected(make))
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='does not require grad'):
            explain(model, x.detach(), make)
        ledger = audit(model, make(), x, one_hot)
    assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all()
    assert_restored(before, model)
    with torch.inference_mode():
        other = data() * 1
    close(explain(model, other, make), expected(make))


def explain_open(model, x):
    output = model(x)
    return torch.autograd.grad(output, x, one_hot(output))[0]


@every_composite
def test_two_models_in_two_threads(make):
    found, barrier = {}, threading.Barrier(2)

    def work(name, model):
        with Gradient(model, make()) as attributor:
            for _ in range(5):
                barrier.wait(timeout=30)
                found[name] = attributor(data(), one_hot)[1]
    threads = [threading.Thread(target=work, args=(name, fresh())) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for relevance in found.values():
        close(relevance, expected(make))
    assert len(found) == 2


@every_composite
def test_several_passes_in_one_context(make):
    '''Forward twice, backward in another order, twice through one graph, from two outputs at once.'''
    model, x, y = fresh(), data().requires_grad_(), data(5).requires_grad_()
    with make().context(model):
        first, second, third = model(x), model(y), model(x)
        other, = torch.autograd.grad(second, y, one_hot(second))
        for keep in (True, False):
            close(torch.autograd.grad(first, x, one_hot(first), retain_graph=keep)[0], expected(make))
        fourth = model(x)
        both, = torch.autograd.grad([third, fourth], x, [one_hot(third)] * 2)
    close(both, 2 * expected(make))
    close(other, explain(fresh(), data(5), make))


@every_composite
def test_inputs_of_all_kinds(make):
    '''A parameter, a tensor that is computed from another, one that has a gradient already.'''
    parameter = nn.Parameter(data())
    close(explain_call(fresh(), make, lambda model: model(parameter), parameter)[0], expected(make))
    leaf = (data() / 2).requires_grad_()
    doubled = leaf * 2
    close(explain_call(fresh(), make, lambda model: model(doubled), leaf)[0], 2 * expected(make))
    used = data().requires_grad_()
    fresh()(used).sum().backward()
    gradient = used.grad.clone()
    close(explain_call(fresh(), make, lambda model: model(used), used)[0], expected(make))
    assert torch.equal(used.grad, gradient)


@every_composite
def test_input_that_is_written_to_before_the_backward_pass(make):
    model, x = fresh(), data().requires_grad_()
    with make().context(model):
        output = model(x)
        with torch.no_grad():
            x.add_(1)
        with pytest.raises(RuntimeError, match='written to|modified by an inplace operation'):
            torch.autograd.grad(output, x, one_hot(output))


# hooks

@every_composite
@pytest.mark.parametrize('name', ['attn', 'embed', ''])
def test_backward_hooks(make, name):
    '''They may look, but not change what is relevance.'''
    model, seen = fresh(), []
    handle = model.get_submodule(name).register_full_backward_hook(lambda *args: seen.append(args))
    check(model, make, expected(make), tolerance=1e-6 if make in (stock, epsilon) else 1e-12)
    assert seen
    handle.remove()

    def write(module, grads, outer):
        grads[0].mul_(2)
    for change in (lambda module, grads, outer: (grads[0] / 2,), write):
        handle = model.get_submodule(name).register_full_backward_hook(change)
        refused(lambda: explain(model, data(), make), 'backward hook', 'remove the hook', model=model)
        handle.remove()
    model.get_submodule(name).register_full_backward_pre_hook(lambda module, grads: (grads[0] / 2,))
    refused(lambda: explain(model, data(), make), 'backward hook', 'remove the hook', model=model)


@every_composite
def test_forward_hooks(make):
    '''With and without keywords, on modules with and without a rule.'''
    model = fresh()
    model.attn.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    model.attn.register_forward_hook(lambda module, args, kwargs, output: output / 2, with_kwargs=True)
    model.embed.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    model.embed.register_forward_hook(lambda module, args, output: output * 3)

    def written(body, x):
        x = body.embed(x.relu()) * 3
        return body.head(body.norm(x + body.attn(x * 2) / 2))
    check(model, make, explain(Around(written), data(), make))


@every_composite
def test_tensor_hooks(make):
    seen = []

    def watched(hook):
        def forward(body, x):
            x = x * 1
            if x.requires_grad:
                x.register_hook(hook)
            return body(x)
        return Around(forward)
    check(watched(seen.append), make, explain(Around(lambda body, x: body(x * 1)), data(), make))
    assert seen
    model = watched(lambda grad: grad / 2)
    refused(lambda: explain(model, data(), make), 'tensor hook', 'test_reality.py', model=model)


@every_composite
def test_gradients_inside_of_a_forward(make):
    '''They would be those of the rules, and so the forward another one.'''
    def forward(body, x):
        gradient, = torch.autograd.grad((x ** 2).sum(), x, create_graph=True)
        return body(x + gradient)
    model = Around(forward)
    refused(lambda: explain(model, data(), make), 'takes gradients', 'torch.autograd.grad', model=model)


@every_composite
def test_explaining_a_tensor_from_inside(make):
    '''Its gradient is not relevance.'''
    model, kept = fresh(), []
    model.attn.register_forward_hook(lambda module, args, output: kept.append(output))
    x = data().requires_grad_()

    def attempt():
        with make().context(model):
            model(x)
            torch.autograd.grad(kept[-1].sum(), x)
    refused(attempt, 'did not start at the output', model=model)
    check(model, make, expected(make))


@every_composite
def test_parts_called_outside_of_the_forward(make):
    '''``model.encode(x)`` in the context of ``model``: plain gradients, if it were not refused.'''
    model, x = fresh(), data().requires_grad_()

    def attempt():
        with make().context(model):
            model.head(model.norm(model.embed(x)))
    refused(attempt, "'embed'", 'outside of the forward', 'on that module', model=model)
    with make().context(model):
        close(model.embed(data()), fresh().embed(data()))


class Seen(torch.autograd.Function):
    '''Code that cannot be seen.'''
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Reversed(torch.autograd.Function):
    '''Gradient reversal: the identity with another gradient.'''
    view = True

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x) if Reversed.view else x

    @staticmethod
    def backward(ctx, grad):
        return -grad


@every_composite
@pytest.mark.parametrize('view', [True, False])
def test_identity_with_another_gradient(make, view, monkeypatch):
    monkeypatch.setattr(Reversed, 'view', view)
    model = Around(lambda body, x: body.head(body.attn(Reversed.apply(body.embed(x)))))
    refused(lambda: explain(model, data(), make), 'ReversedBackward', model=model)
    model = nn.Sequential(model, Around(lambda body, x: Reversed.apply(x))).double()
    refused(lambda: explain(model, data(), make), 'ReversedBackward', model=model)


GATED = {
    'softmax': lambda f, x, v: f(x).softmax(-1) * v, 'sigmoid': lambda f, x, v: f(x).sigmoid() * v,
    'sdpa': lambda f, x, v: F.scaled_dot_product_attention(f(x), f(x), v),
}
CARRIED = {
    'values': lambda f, x, v: F.scaled_dot_product_attention(v, v, f(x)),
    'all': lambda f, x, v: (lambda y: F.scaled_dot_product_attention(y, y, y))(f(x)),
    'mean': lambda f, x, v: v + torch.var_mean(f(x), -1, keepdim=True)[1],
    'activation': lambda f, x, v: F.silu(f(x)) + v,
}


@pytest.mark.parametrize('make', [CPLRP, epsilon])
@pytest.mark.parametrize('gate', GATED)
def test_unseen_code_into_a_gate(make, gate):
    '''What only goes into a constant receives nothing, wherever it comes from.'''
    models = [Around(lambda body, x, f=f: body(GATED[gate](f, body.embed(x), x)))
              for f in (Seen.apply, lambda x: 2 * x)]
    check(models[0], make, explain(models[1], data(), make))


@pytest.mark.parametrize('gate', [*GATED, *CARRIED])
@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
def test_unseen_code_that_receives_relevance(make, gate):
    if gate == 'sigmoid' or (gate in GATED and make is CPLRP):
        return
    model = Around(lambda body, x: body((GATED | CARRIED)[gate](Seen.apply, body.embed(x), x)))
    refused(lambda: explain(model, data(), make), 'SeenBackward', model=model)


# modules of all kinds

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
        refused(lambda: explain(model, data(), make), "'embed'", 'remove_parametrizations')
        return
    wanted = explain(twin, data(), make)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    close(explain(model, data(), make), wanted)
    ledger = audit(model, make(), data(), one_hot)
    assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    model.zero_grad()
    model(data()).sum().backward()
    assert any(parameter.grad is not None for name, parameter in model.embed.named_parameters() if 'bias' not in name)


def test_lazy_and_quantized_modules():
    lazy = nn.Sequential(nn.LazyLinear(DIM), fresh())
    with pytest.raises(AttributionError, match="'0' is lazy.*call the model once"):
        explain(lazy, data(), CPLRP)
    lazy.double()(data())
    assert explain(lazy.double(), data(), CPLRP).isfinite().all()


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::UserWarning')
def test_quantized_modules():
    model = torch.ao.quantization.quantize_dynamic(fresh().float(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(AttributionError, match="'embed' is quantized.*made from"):
        explain(model, data().float(), CPLRP)


@every_composite
def test_shared_parameters(make):
    model, twin = (nn.Sequential(nn.Linear(DIM, DIM), fresh()).double() for _ in range(2))
    model[0].weight, twin[0].weight.data = model[1].embed.weight, twin[1].embed.weight.detach().clone()
    twin[0].bias.data = model[0].bias.detach().clone()
    check(model, make, explain(twin, data(), make))


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
    refused(lambda: explain(model, data(), make), 'overrides __call__', 'Sequential', model=model)
    check(nn.Sequential(model), make, explain(Around(lambda body, x: body(x.relu() * x)), data(), make), tolerance=1e-7)


# token models as published

IDS, KEEP = torch.tensor([[1, 4, 2, 9, 3], [5, 6, 7, 8, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@cache
def hugging_face(name, attention):
    '''A small random model of transformers and the embeddings of its tokens.'''
    package = pytest.importorskip('transformers', exc_type=ImportError,
                                  reason='transformers is not installed (see the extra zoo in pyproject.toml)')
    sizes = {'vocab_size': 11, 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
             'max_position_embeddings': 16}
    model = {
        'bert': lambda: package.BertForSequenceClassification(package.BertConfig(
            **sizes, intermediate_size=32, attn_implementation=attention)),
        'gpt2': lambda: package.GPT2LMHeadModel(package.GPT2Config(**sizes, attn_implementation=attention)),
        'llama': lambda: package.LlamaForCausalLM(package.LlamaConfig(
            **sizes, num_key_value_heads=1, intermediate_size=32, attn_implementation=attention)),
    }[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.double().eval()
    return model, model.get_input_embeddings()(IDS).detach()


every_token_model = pytest.mark.parametrize('name', ['bert', 'gpt2', 'llama'])
every_cache_model = pytest.mark.parametrize('name', ['gpt2', 'llama'])
every_attention = pytest.mark.parametrize('attention', ['eager', 'sdpa'])
quiet = pytest.mark.filterwarnings('ignore')


@pytest.mark.zoo
@quiet
@every_composite
@every_token_model
@every_attention
def test_embeddings_and_tokens(make, name, attention):
    '''From ``inputs_embeds`` or by TokenGradient, out of a ModelOutput; padding receives nothing.'''
    model, embedded = hugging_face(name, attention)
    called = Around(lambda body, x: body(inputs_embeds=x, attention_mask=KEEP).logits, model)
    before, plain = Snapshot(model), called(embedded).detach()
    with Gradient(called, make()) as attributor:
        output, relevance = attributor(embedded.clone(), one_hot)
    close(output.detach(), plain)
    tolerance = 1e-6 if name == 'llama' else 1e-9  # its norm computes in float32
    ledger = audit(called, make(), embedded, one_hot)
    assert (ledger.unaccounted.abs() <= tolerance * ledger.output.abs()).all(), str(ledger)
    x = embedded.clone().requires_grad_()
    with make().context(model):
        logits = model(inputs_embeds=x, attention_mask=KEEP).logits
        close(torch.autograd.grad(logits, x, one_hot(logits))[0], relevance)
    ids = Around(lambda body, ids: body(input_ids=ids, attention_mask=KEEP).logits, model)
    with TokenGradient(ids, model.get_input_embeddings(), make()) as attributor:
        close(attributor(IDS, one_hot)[1], relevance)
    assert (relevance[1, 3:] == 0).all()
    assert_restored(before, model)
    if name == 'bert':
        short = Around(lambda body, x: body(inputs_embeds=x).logits, model)
        alone = explain(short, embedded[1:, :3], make, lambda output: F.one_hot(torch.tensor([1]), 2).to(output))
        close(relevance[1:, :3], alone)


@pytest.mark.zoo
@quiet
@every_composite
@every_cache_model
@every_attention
def test_caches(make, name, attention):
    '''A cache changes nothing; a constant past is a constant; a past that carries relevance is refused.'''
    model, embedded = hugging_face(name, attention)
    on, off = (Around(lambda body, x, use=use: body(inputs_embeds=x, use_cache=use).logits, model)
               for use in (True, False))
    close(explain(on, embedded, make), explain(off, embedded, make))
    with torch.no_grad():
        past = model(inputs_embeds=embedded[:, :3], use_cache=True).past_key_values
        plain = model(inputs_embeds=embedded).logits[:, 3:]
    grown, x = copy.deepcopy(past), embedded[:, 3:].clone().requires_grad_()
    with make().context(model):
        logits = model(inputs_embeds=x, past_key_values=grown, use_cache=True).logits
        relevance, = torch.autograd.grad(logits, x, one_hot(logits))
        close(logits.detach(), plain)
        assert grown.get_seq_length() == 5
    wanted = Around(lambda body, x: body(inputs_embeds=torch.cat([embedded[:, :3], x], 1)).logits[:, 3:], model)
    close(relevance, explain(wanted, x.detach(), make), 1e-9)

    def two_calls():
        with make().context(model):
            whole = embedded.clone().requires_grad_()
            first = model(inputs_embeds=whole[:, :3], use_cache=True)
            model(inputs_embeds=whole[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    refused(two_calls, 'kept from an earlier forward', 'torch.no_grad', model=model)
