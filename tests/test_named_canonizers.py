'''Named canonizers: whom they recognise, what they add, how they combine, and that they leave no trace.'''
import inspect
import sys
import warnings
from functools import partial
from types import ModuleType

import pytest
import torch
from einops import rearrange
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Gamma, WSquare

from attention.helpers import perturbed, published
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, largest, relative
from test_families import BATCH, DIM, HEADS, LENGTH, Call, explained, fast_weights, performer
from zennit_attn import attention as ours
from zennit_attn.attention import multihead as multihead_room
from zennit_attn.attention import vit as vit_room
from zennit_attn.canonizers import (
    AttentionCanonizer,
    FastWeightsCanonizer,
    LinearAttentionCanonizer,
    MultiheadAttentionCanonizer,
    PerformerCanonizer,
    ViTCanonizer,
)
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import ContextError, UntrackedTensor

NAMED = (FastWeightsCanonizer, LinearAttentionCanonizer, MultiheadAttentionCanonizer, PerformerCanonizer, ViTCanonizer)


def seeded(make):
    '''What ``make`` builds, in float64 and eval mode, away from its initialization.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(make()).double().eval()


def noise(*shape):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.randn(shape, dtype=torch.float64)


# Recognition

def pasted(cls, name='Mixer'):
    '''A copy of a class under another name, as if its source had been pasted into another file.'''
    namespace = dict(vars(sys.modules[cls.__module__]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about escapes in the formulas of docstrings
        source = inspect.getsource(cls).replace(f'class {cls.__name__}(', f'class {name}(', 1)
        exec(compile(source, f'<pasted {cls.__name__}>', 'exec'), namespace)
    return namespace[name]


def fast_attention(cls):
    return lambda: cls(4, nb_features=6, causal=True)


def fast_weights_attention(cls):
    return lambda: cls(HEADS, DIM, 0., ours.DPFP())


def package(family):
    '''The class of a family that its authors publish.'''
    module, name = {
        'linear': ('denoising_diffusion_pytorch.denoising_diffusion_pytorch', 'LinearAttention'),
        'performer': ('performer_pytorch.performer_pytorch', 'FastAttention'),
        'vit': ('vit_pytorch.vit', 'Attention'),
        'fast_weights': ('labml_nn.transformers.fast_weights', 'FastWeightsAttention'),
    }[family]
    return getattr(published(module), name)


FAMILIES = {
    'linear': (LinearAttentionCanonizer, lambda cls: lambda: cls(8, 2, 4)),
    'performer': (PerformerCanonizer, fast_attention),
    'vit': (ViTCanonizer, lambda cls: lambda: cls(DIM, HEADS, 4)),
    'multihead': (MultiheadAttentionCanonizer, lambda cls: lambda: cls(DIM, HEADS)),
    'fast_weights': (FastWeightsCanonizer, fast_weights_attention),
}
OURS = {
    'linear': ours.LinearAttention, 'performer': ours.FastAttention, 'vit': vit_room.Attention,
    'multihead': multihead_room.MultiheadAttention, 'fast_weights': ours.FastWeightsAttention,
}
KNOWN = {
    **{f'{family}-reference': (family, lambda cls=cls: cls) for family, cls in OURS.items()},
    **{f'{family}-reference-pasted': (family, lambda cls=cls: pasted(cls)) for family, cls in OURS.items()},
    'linear-memory': ('linear', lambda: ours.MemoryLinearAttention),
    'multihead-torch': ('multihead', lambda: nn.MultiheadAttention),
    'multihead-torch-derived': ('multihead', lambda: type('Mixer', (nn.MultiheadAttention,), {})),
    'multihead-torch-pasted': ('multihead', lambda: pasted(nn.MultiheadAttention)),
}
PUBLISHED = {
    **{f'{family}-published': (family, partial(package, family)) for family in OURS if family != 'multihead'},
    **{f'{family}-published-pasted': (family, lambda family=family: pasted(package(family)))
       for family in OURS if family != 'multihead'},
}


class Plain(nn.Module):
    '''Operators, but of no family.'''
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(DIM, DIM)

    def forward(self, x):
        return torch.relu(self.fc(x)) * 2


#: What every module of an open model has, whatever canonizer opened it: its engine, and guards against copies.
GUARDS = {'_canonizer_engine', '__reduce_ex__', '_replicate_for_data_parallel'}


def traces(module):
    '''What a canonizer can have changed in a module and all below, but for the type of softmaxes, which all change.'''
    return {(name, type(each).__name__, *sorted(each.__dict__.keys() - GUARDS),
             id(each.__dict__.get('causal_linear_fn')))
            for name, each in module.named_modules()}


def touched(canonizer, block):
    '''Whether a canonizer adds anything to a block; what is beside the block it must leave alone.'''
    model = nn.Sequential(Plain(), block)
    before, beside, own = Snapshot(model), traces(model[0]), traces(block)
    applied = canonizer().apply(model)
    changed = traces(block) != own
    assert traces(model[0]) == beside
    for each in applied:
        each.remove()
    assert_restored(before, model)
    return changed


@pytest.mark.parametrize('name', [*KNOWN, *(pytest.param(name, marks=pytest.mark.zoo) for name in PUBLISHED)])
def test_recognised_by_its_own_canonizer_only(name):
    family, cls = {**KNOWN, **PUBLISHED}[name]
    own, make = FAMILIES[family]
    block = make(cls())()
    assert [canonizer.__name__ for canonizer in NAMED if touched(canonizer, block)] == [own.__name__]


def namesake(name):
    '''A class that shares a name and a signature with a family, and nothing else.'''
    class Namesake(nn.Module):
        def __init__(self, *args, **kwargs):
            super().__init__()
            self.to_qkv, self.heads, self.scale = nn.Linear(DIM, 3 * DIM), 2., 1
            self.query = self.key = self.value = nn.Linear(DIM, DIM)

        def forward(self, x):
            return torch.relu(self.query(x))
    Namesake.__name__ = Namesake.__qualname__ = name
    return Namesake


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('canonizer', NAMED)
def test_a_name_is_not_enough(family, canonizer):
    assert not touched(canonizer, FAMILIES[family][1](namesake(OURS[family].__name__))())


@pytest.mark.parametrize('family', FAMILIES)
def test_included_in_the_one_for_all(family):
    assert set(FAMILIES[family][0].families) <= set(AttentionCanonizer.families)
    block = FAMILIES[family][1](nn.MultiheadAttention if family == 'multihead' else OURS[family])()
    model = nn.Sequential(block)
    before = Snapshot(model)
    [applied] = AttentionCanonizer().apply(model)
    everywhere = traces(block)
    applied.remove()
    [own] = FAMILIES[family][0]().apply(model)
    assert {entry[:2] for entry in traces(block)} <= {entry[:2] for entry in everywhere}
    own.remove()
    assert_restored(before, model)


# Combination

class Families(nn.Module):
    '''Blocks of all families, one after another.'''
    def __init__(self):
        super().__init__()
        self.linear = ours.LinearAttention(DIM, 2, 4)
        self.performer = ours.Performer(dim=DIM, depth=1, heads=HEADS, dim_head=4, causal=True)
        self.multihead = nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True)
        self.vit = vit_room.Attention(DIM, HEADS, 4)
        self.fast = ours.FastWeightsAttention(HEADS, DIM, 0., ours.DPFP())

    def forward(self, x):
        x = x + rearrange(self.linear(rearrange(x, 'b n d -> b d n 1')), 'b d n 1 -> b n d')
        x = self.vit(self.multihead(self.performer(x))) + x
        return x + self.fast(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize('canonizers', [
    (LinearAttentionCanonizer, MultiheadAttentionCanonizer), (PerformerCanonizer, FastWeightsCanonizer), NAMED,
    NAMED[::-1],
], ids=lambda canonizers: '+'.join(each.__name__.removesuffix('Canonizer') for each in canonizers))
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_named_ones_combine(canonizers, composite):
    model, input = seeded(Families), noise(BATCH, LENGTH, DIM)
    expected, before = model(input), Snapshot(model)
    combined = composite(canonizers=[canonizer() for canonizer in canonizers])
    with combined.context(model):
        assert hasattr(model.multihead.self_attn, 'canonizer_v') == (MultiheadAttentionCanonizer in canonizers)
        assert ('forward' in model.fast.phi.__dict__) == (FastWeightsCanonizer in canonizers)
        assert hasattr(model.linear, 'canonizer_einsum') == (LinearAttentionCanonizer in canonizers)
    assert_restored(before, model)
    output, relevance = explained(model, input, lambda: combined)
    assert relative(output, expected.detach()) <= 1e-12
    assert_closed(audit(model, combined, input, largest))
    assert_restored(before, model)
    if set(canonizers) == set(NAMED):
        assert relative(relevance, explained(model, input, composite)[1]) <= 1e-9


@pytest.mark.parametrize('pair', [(ViTCanonizer, ViTCanonizer), (AttentionCanonizer, PerformerCanonizer),
                                  (PerformerCanonizer, AttentionCanonizer)])
def test_overlapping_ones_are_refused(pair):
    model = seeded(Families)
    before = Snapshot(model)
    composite = CPLRP(canonizers=[canonizer() for canonizer in pair])
    with pytest.raises(ContextError, match='already open on Families'), composite.context(model):
        pass
    assert_restored(before, model)


# Rules for Linear reach the packed projections of torch's module

LAYERS = {
    'attention': (lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True), lambda m, x: m(x, x, x)[0], ['model']),
    'widths': (lambda: nn.MultiheadAttention(DIM, HEADS, kdim=8, vdim=7, batch_first=True),
               lambda m, x: m(x, x[..., :8], x[..., :7], need_weights=False)[0], ['model']),
    'encoder': (lambda: nn.TransformerEncoderLayer(DIM, HEADS, 16, batch_first=True), lambda m, x: m(x),
                ['model.self_attn']),
    'decoder': (lambda: nn.TransformerDecoderLayer(DIM, HEADS, 16, batch_first=True), lambda m, x: m(x, x),
                ['model.self_attn', 'model.multihead_attn']),
}


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('rule', [Epsilon, Gamma])
@pytest.mark.parametrize('canonizer', [MultiheadAttentionCanonizer, AttentionCanonizer])
def test_rules_for_linear_reach_packed_projections(layer, rule, canonizer):
    make, function, attentions = LAYERS[layer]
    model, input = Call(seeded(make), function), noise(BATCH, LENGTH, DIM)
    before = Snapshot(model)
    composite = LayerMapComposite([((nn.Linear,), rule())], canonizers=[canonizer()])
    ledger = audit(model, composite, input)
    ruled = {row.module for row in ledger.operators if row.rule == rule.__name__}
    assert {f'{name}.{child}' for name in attentions for child in
            ('canonizer_q', 'canonizer_k', 'canonizer_v', 'out_proj')} <= ruled
    assert_closed(ledger)
    assert_restored(before, model)


def squares(linear, relevance):
    '''Relevance of the input in proportion to squared weights; the squared bias takes its part.'''
    weight, bias = linear
    return (relevance / (weight.square().sum(1) + bias.square() + 1e-6)) @ weight.square()


def test_rule_of_the_projections_is_right_elementwise():
    model, input = seeded(lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True)), noise(BATCH, LENGTH, DIM)
    call = Call(model, LAYERS['attention'][1])
    rules = [((nn.Linear,), WSquare(stabilizer=1e-6))]
    relevance = explained(call, input, lambda: LayerMapComposite(rules, canonizers=[MultiheadAttentionCanonizer()]))[1]
    with torch.no_grad():
        pairs = zip(model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3), strict=True)
        q, k, v = ((input @ weight.T + bias).unflatten(-1, (HEADS, -1)).transpose(1, 2) for weight, bias in pairs)
        attention = (q @ k.mT / 2).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        projection = model.out_proj.weight, model.out_proj.bias
        arrived = squares(projection, largest(mixed @ projection[0].T + projection[1]))
        unit = (arrived / (mixed + 1e-9 * mixed.sign())).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        values = (v * (attention.mT @ unit)).transpose(1, 2).flatten(2)
        expected = squares((model.in_proj_weight[2 * DIM:], model.in_proj_bias[2 * DIM:]), values)
    assert relative(relevance, expected) <= 1e-6


# The causal product of EPFL's extension, whose code cannot be seen

class OpaqueProduct(torch.autograd.Function):
    '''Signature and gradients of ``fast_transformers.causal_product.CausalDotProduct``, in plain torch.'''
    calls = 0

    @staticmethod
    def forward(ctx, q, k, v):
        OpaqueProduct.calls += 1
        ctx.save_for_backward(q, k, v)
        return (q @ k.mT).tril() @ v

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        scores = (grad @ v.mT).tril()
        return scores @ k, scores.mT @ q, (q @ k.mT).tril().mT @ grad


def causal_linear_attention(q, k, v, eps=1e-6):
    normalizer = 1. / torch.einsum('...nd,...nd->...n', q, k.cumsum(dim=-2) + eps)
    return torch.einsum('...nd,...n->...nd', OpaqueProduct.apply(q, k, v), normalizer)


def renamed(*args):
    return causal_linear_attention(*args)


def opaque(function):
    '''A causal performer of ours whose causal product is another function, and one with our own of the same eps.'''
    models = [seeded(lambda: performer('reference', causal=True)) for _ in range(2)]
    for model, each in zip(models, (function, partial(
            ours.fast_attention.causal_linear_attention, **getattr(function, 'keywords', {}))), strict=True):
        for module in model.modules():
            if hasattr(module, 'causal_linear_fn'):
                module.causal_linear_fn = each
    return models


@pytest.mark.parametrize('function', [causal_linear_attention, partial(causal_linear_attention),
                                      partial(causal_linear_attention, eps=0.5)], ids=['plain', 'partial', 'eps'])
@pytest.mark.parametrize('canonizer', [PerformerCanonizer, AttentionCanonizer])
def test_opaque_causal_product_becomes_our_operator(function, canonizer):
    model, reference = opaque(function)
    input = noise(BATCH, LENGTH, DIM)
    expected, before, OpaqueProduct.calls = model(input).detach(), Snapshot(model), 0
    composite = CPLRP(canonizers=[canonizer()])
    output, relevance = explained(model, input, lambda: composite)
    ledger = audit(model, composite, input, largest)
    assert OpaqueProduct.calls == 0
    assert {row.function for row in ledger.operators} >= {'causal_dot_product'}
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, explained(reference, input)[1]) <= 1e-12
    assert_closed(ledger)
    assert_restored(before, model)
    assert equal_maps(model(input), expected)
    assert OpaqueProduct.calls == 2


@pytest.mark.parametrize(('function', 'canonizer'), [
    (causal_linear_attention, ViTCanonizer), (renamed, AttentionCanonizer),
], ids=['canonizer of another family', 'function of another name'])
def test_opaque_causal_product_that_is_not_known_is_refused(function, canonizer):
    model, _ = opaque(function)
    before = Snapshot(model)
    with pytest.raises(UntrackedTensor, match='fast_attention'):
        explained(model, noise(BATCH, LENGTH, DIM), lambda: CPLRP(canonizers=[canonizer()]))
    assert_restored(before, model)


@pytest.mark.zoo
def test_published_code_path_of_the_extension(monkeypatch):
    '''performer-pytorch's own function for EPFL's extension, with a product in the extension's place.'''
    package = published('performer_pytorch.performer_pytorch')
    root, product, extension = (ModuleType('.'.join(
        ('fast_transformers', 'causal_product', 'causal_product_cuda')[:depth])) for depth in (1, 2, 3))
    root.causal_product, product.causal_product_cuda, product.CausalDotProduct = product, extension, OpaqueProduct
    for module in (root, product, extension):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    model = seeded(lambda: package.Performer(dim=DIM, depth=2, heads=HEADS, dim_head=4, causal=True))
    reference, input = seeded(lambda: performer('reference', causal=True)), noise(BATCH, LENGTH, DIM)
    reference.load_state_dict(model.state_dict())
    OpaqueProduct.calls = 0
    expected = model(input).detach()
    assert OpaqueProduct.calls == 2
    output, relevance = explained(model, input)
    assert OpaqueProduct.calls == 2
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, explained(reference, input)[1]) <= 1e-12
    assert_closed(audit(model, CPLRP(), input, largest))


# Reversible layers

@pytest.mark.zoo
def test_reversible_layers_whose_own_backward_pass_fails_in_eval_mode():
    model = seeded(lambda: performer('published', reversible=True, causal=True))
    input = noise(BATCH, LENGTH, DIM)
    with pytest.raises(TypeError, match='expected'):
        model(input.clone().requires_grad_()).sum().backward()
    before = Snapshot(model)
    reference = seeded(lambda: performer('reference', reversible=True, causal=True))
    reference.load_state_dict(model.state_dict())
    for actual, expected in zip(explained(model, input), explained(reference, input), strict=True):
        assert relative(actual, expected) <= 1e-12
    assert_restored(before, model)


# Bad input: the model's own errors come through, and leave nothing behind

def attend(model, x, **kwargs):
    return model(x, x, x, **kwargs)[0]


X = torch.zeros(BATCH, LENGTH, DIM, dtype=torch.float64)
KEEP = torch.ones(BATCH, LENGTH, dtype=torch.bool)
BAD_INPUTS = {
    'performer width': (partial(performer, 'reference'), lambda model, x: model(x[..., :5]), 'x has shape'),
    'performer mask': (partial(performer, 'reference'), lambda model, x: model(x, mask=KEEP[:, 1:]), 'mask has shape'),
    'performer mask dtype': (
        partial(performer, 'reference'), lambda model, x: model(x, mask=KEEP.long()), 'mask has dtype torch.int64'),
    'performer context': (
        partial(performer, 'reference', cross_attend=True), lambda model, x: model(x), 'needs a context'),
    'performer positions': (
        partial(performer, 'reference'), lambda model, x: model(x, pos_emb=x[:1, :4, :4]), '9 tokens.* only 4'),
    'linear channels': (
        lambda: ours.LinearAttention(8, 2, 4), lambda model, x: model(x[..., None]), r'expected \(b, 8, height'),
    'vit size': (
        lambda: ours.ViT(image_size=8, patch_size=4, num_classes=3, dim=4, depth=1, heads=1, mlp_dim=4),
        lambda model, x: model(x[:, :3, :, None].expand(-1, -1, -1, 8)), 'only 5 positions'),
    'fast weights width': (
        partial(fast_weights, 'reference'), lambda model, x: model.model(x[..., :5]), 'x has shape'),
    **{f'{kind.__name__.split(".")[0]} {name}': (
        partial(kind.MultiheadAttention, DIM, HEADS, batch_first=True), partial(attend, **kwargs), message)
       for kind in (ours, nn) for name, (kwargs, message) in {
        'mask shape': ({'attn_mask': torch.zeros(LENGTH, 1)}, 'shape'),
        'mask of one row': ({'attn_mask': torch.zeros(1, LENGTH)}, 'shape'),
        'mask dtype': ({'attn_mask': torch.zeros(LENGTH, LENGTH).long()}, '(?i)bool'),
        'padding shape': ({'key_padding_mask': ~KEEP[:1]}, 'shape'),
        'padding dtype': ({'key_padding_mask': (~KEEP).long()}, '(?i)bool'),
        'causal hint': ({'is_causal': True, 'need_weights': False}, 'attn_mask'),
       }.items()},
}


@pytest.mark.parametrize('case', BAD_INPUTS)
def test_bad_input_is_refused_as_without_the_context(case):
    make, function, message = BAD_INPUTS[case]
    call = Call(seeded(make), function)
    errors = (ValueError, TypeError, RuntimeError, AssertionError)
    with pytest.raises(errors) as plain:
        call(X)
    before = Snapshot(call)
    with pytest.raises(errors, match=message) as explained, Gradient(call, CPLRP()) as attributor:
        attributor(X.clone(), torch.ones_like)
    assert explained.type is plain.type or not case.startswith('zennit_attn')
    assert_restored(before, call)
