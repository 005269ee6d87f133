'''The five attention families, ours and as published: forward, map, ledger, and nothing left behind.'''
from functools import cache, partial

import pytest
import torch
from torch import nn

from attention.helpers import perturbed, published
from cases.problems.vision import ViT as PastedViT
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, explain, largest, relative
from zennit_attn import attention as ours
from zennit_attn.attention.fast_weights import FeedForward
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor
from zennit_attn.conservation import audit
from zennit_attn.layers import Activation, Einsum, Multiply
from zennit_attn.rules import Constant, Uniform

BATCH, LENGTH, DIM, HEADS, TOKENS = 2, 9, 12, 3, 11
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'attn_taylor': AttnTaylor}
PROBLEMS = {}


def problem(name, make, shape=(LENGTH, DIM), origins=('reference', 'published'), zoo=False):
    '''Enter what ``make`` builds for each origin; ``zoo`` if even ours needs an optional package.'''
    for origin in origins:
        marks = [pytest.mark.zoo] if zoo or origin == 'published' else []
        PROBLEMS[name, origin] = make, (BATCH, *shape), marks


class Call(nn.Module):
    '''A model called by a function of it and the explained input.'''
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)


def constant(*shape):
    '''Numbers that are the same in every call.'''
    return torch.linspace(-1., 1., torch.Size(shape).numel(), dtype=torch.float64).sin().reshape(shape)


def padding(length):
    '''A mask that keeps all tokens of the first, and all but three of the second sequence.'''
    return torch.arange(length) < torch.tensor([[length], [length - 3]])


# Linear attention

def linear_attention(origin, **options):
    package = published('denoising_diffusion_pytorch.denoising_diffusion_pytorch') if origin == 'published' else None
    return (package.LinearAttention if package else ours.MemoryLinearAttention)(8, 2, 5, **options)


def unet(origin):
    package = published('denoising_diffusion_pytorch.denoising_diffusion_pytorch')
    model = package.Unet(8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=4)
    return Call(model, lambda model, x: model(x, torch.ones(len(x), dtype=x.dtype)))


problem('linear', lambda origin: ours.LinearAttention(8, 2, 5), (8, 3, 4), ('reference',))
problem('linear_memory', linear_attention, (8, 3, 4))
problem('linear_no_memory', partial(linear_attention, num_mem_kv=0), (8, 3, 4))
problem('linear_unet', unet, (3, 4, 4), ('published',))


# Performer

CONTEXT = 6
PERFORMERS = {
    'favor': {}, 'favor_causal': {'causal': True}, 'favor_features': {'nb_features': 11},
    'generalized': {'generalized_attention': True},
    'generalized_causal': {'generalized_attention': True, 'causal': True},
    'generalized_softplus': {'generalized_attention': True, 'kernel_fn': nn.Softplus()},
    'no_projection': {'no_projection': True}, 'no_projection_causal': {'no_projection': True, 'causal': True},
    'rezero': {'use_rezero': True}, 'scalenorm': {'use_scalenorm': True}, 'chunks': {'ff_chunks': 4},
    'glu': {'ff_glu': True}, 'shift': {'shift_tokens': True}, 'shift_causal': {'shift_tokens': True, 'causal': True},
    'no_biases': {'qkv_bias': False, 'attn_out_bias': False},
    'reversible': {'reversible': True}, 'reversible_causal': {'reversible': True, 'causal': True},
    'reversible_all': {'reversible': True, 'shift_tokens': True, 'ff_glu': True, 'ff_chunks': 3, 'use_scalenorm': True},
}
LOCAL = {
    'local': {'local_attn_heads': 1}, 'local_causal': {'local_attn_heads': (2, 1), 'causal': True},
    'local_only': {'local_attn_heads': 3}, 'local_reversible': {'local_attn_heads': 1, 'reversible': True},
}
MASKED = {
    'favor': {}, 'causal': {'causal': True}, 'shift': {'shift_tokens': True}, 'reversible': {'reversible': True},
}
CROSS = {
    'cross': {}, 'cross_causal': {'causal': True}, 'cross_generalized': {'generalized_attention': True},
    'cross_reversible': {'reversible': True},
}
POSITIONS = {
    'rotary': {}, 'absolute': {'rotary_position_emb': False},
    'axial': {'rotary_position_emb': False, 'axial_position_emb': True, 'axial_position_shape': (4, 4)},
}


def performer(origin, kind='Performer', **options):
    '''A performer whose causal product is plain torch, also where EPFL's float32 extension is installed.'''
    for needed, option in (('local_attention', 'local_attn_heads'),
                           ('axial_positional_embedding', 'axial_position_emb')):
        if options.get(option):
            published(needed)
    if options.get('local_attn_heads'):
        options['local_window_size'] = 4
    package = published('performer_pytorch.performer_pytorch') if origin == 'published' else ours
    model = getattr(package, kind)(dim=DIM, depth=2, heads=HEADS, dim_head=4, **options)
    for module in model.modules():
        if origin == 'published' and getattr(module, 'causal_linear_fn', None):
            module.causal_linear_fn = package.causal_linear_attention_noncuda
    return model


def masked_performer(origin, **options):
    return Call(performer(origin, **options), lambda model, x: model(x, mask=padding(LENGTH)))


def cross_performer(origin, masked=False, explain='x', **options):
    masks = {'mask': padding(LENGTH), 'context_mask': padding(CONTEXT)} if masked else {}

    def call(model, x):
        if explain == 'context':
            return model(constant(BATCH, LENGTH, DIM), context=x, **masks)
        return model(x, context=constant(BATCH, CONTEXT, DIM), **masks)
    return Call(performer(origin, cross_attend=True, **options), call)


class Embedded(nn.Module):
    '''A language model as a function of its embedding's output, so that a ledger can be read there.'''
    def __init__(self, model, **kwargs):
        super().__init__()
        self.model, self.kwargs = model, kwargs
        self.ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) ** 2 % TOKENS

    def forward(self, x):
        handle = self.model.token_emb.register_forward_hook(lambda module, args, output: x.clone())
        try:
            return self.model(self.ids, **self.kwargs)
        finally:
            handle.remove()


def language_model(origin, masked=False, **options):
    model = performer(origin, 'PerformerLM', num_tokens=TOKENS, max_seq_len=16, **options)
    return Embedded(model, **({'mask': padding(LENGTH)} if masked else {}))


for name, options in PERFORMERS.items():
    problem(f'performer_{name}', partial(performer, **options))
for name, options in LOCAL.items():
    problem(f'performer_{name}', partial(performer, **options), zoo=True)
for name, options in MASKED.items():
    problem(f'performer_masked_{name}', partial(masked_performer, **options))
problem('performer_masked_local', partial(masked_performer, local_attn_heads=1), zoo=True)
for name, options in CROSS.items():
    problem(f'performer_{name}', partial(cross_performer, **options))
    problem(f'performer_{name}_masked', partial(cross_performer, masked=True, **options))
problem('performer_cross_context', partial(cross_performer, explain='context'), (CONTEXT, DIM))
for name, options in POSITIONS.items():
    problem(f'lm_{name}', partial(language_model, **options), zoo='axial' in name)
    problem(f'lm_{name}_causal', partial(language_model, causal=True, tie_embed=True, **options), zoo='axial' in name)
problem('lm_masked', partial(language_model, masked=True, qkv_bias=True, attn_out_bias=True))
problem('lm_local', partial(language_model, local_attn_heads=1, causal=True), zoo=True)


# Multi-head attention

MULTIHEADS = {
    'plain': {}, 'no_bias': {'bias': False}, 'bias_kv': {'add_bias_kv': True}, 'zero_attn': {'add_zero_attn': True},
    'bias_kv_zero_attn': {'add_bias_kv': True, 'add_zero_attn': True}, 'widths': {'kdim': 8, 'vdim': 7},
}
FUTURE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
SCORES = constant(LENGTH, LENGTH)
MASKS = {
    'weights': {}, 'no_weights': {'need_weights': False}, 'weights_per_head': {'average_attn_weights': False},
    'boolean': {'attn_mask': FUTURE}, 'additive': {'attn_mask': SCORES, 'need_weights': False},
    'per_head': {'attn_mask': torch.stack([FUTURE, FUTURE.T] * HEADS)},
    'padding': {'key_padding_mask': ~padding(LENGTH), 'need_weights': False},
    'additive_padding': {'key_padding_mask': constant(BATCH, LENGTH), 'attn_mask': SCORES},
    'causal': {'attn_mask': FUTURE, 'is_causal': True, 'need_weights': False},
}


def multihead(origin, mask, cross=False, batch_first=True, **options):
    def call(model, x):
        inputs = [x[:, :5] if cross else x, x[..., :model.kdim], x[..., -model.vdim:]]
        kwargs = {**MASKS[mask], **({'attn_mask': MASKS[mask]['attn_mask'][:5]} if cross and mask == 'boolean' else {})}
        if not batch_first:
            inputs = [each.transpose(0, 1) for each in inputs]
        out, weights = model(*inputs, **kwargs)
        out = out if batch_first else out.transpose(0, 1)
        # Attention maps that are returned are gates, so they may weigh others and still the ledger closes.
        return out if weights is None else out * (1 + weights.mean(dim=tuple(range(1, weights.ndim)))[:, None, None])
    kind = nn if origin == 'torch' else ours
    return Call(kind.MultiheadAttention(DIM, HEADS, batch_first=batch_first, **options), call)


def torch_layer(origin, kind='Encoder', depth=0, call=None, **options):
    model = getattr(nn, f'Transformer{kind}Layer')(DIM, HEADS, 16, batch_first=True, **options)
    nested = {'enable_nested_tensor': False} if kind == 'Encoder' else {}
    return Call(getattr(nn, f'Transformer{kind}')(model, depth, **nested) if depth else model, call)


ENCODE = {
    'plain': lambda model, x: model(x),
    'causal': lambda model, x: model(x, FUTURE, is_causal=True),
    'padding': lambda model, x: model(x, src_key_padding_mask=~padding(LENGTH)),
}
DECODE = {
    'plain': lambda model, x: model(x[:, :5], x),
    'memory': lambda model, x: model(constant(BATCH, 5, DIM), x),
    'masks': lambda model, x: model(x[:, :5], x, tgt_mask=FUTURE[:5, :5], memory_key_padding_mask=~padding(LENGTH)),
}
for option, options in MULTIHEADS.items():
    for mask in MASKS if option in ('plain', 'bias_kv_zero_attn') else ('weights', 'no_weights', 'boolean'):
        problem(f'multihead_{option}_{mask}', partial(multihead, mask=mask, **options), origins=('reference', 'torch'))
    for mask in ('boolean', 'padding'):
        problem(f'multihead_cross_{option}_{mask}', partial(multihead, mask=mask, cross=True, **options),
                origins=('reference', 'torch'))
problem('multihead_length_first', partial(multihead, mask='padding', batch_first=False), origins=('reference', 'torch'))
for kind, calls in (('Encoder', ENCODE), ('Decoder', DECODE)):
    for name, call in calls.items():
        for options in ({}, {'norm_first': True, 'activation': 'gelu'}, {'depth': 2}):
            problem('_'.join(['torch', kind.lower(), name, *options]), origins=('torch',),
                    make=partial(torch_layer, kind=kind, call=call, **options))


# Vision transformers

VIT = {'image_size': 8, 'patch_size': 4, 'num_classes': 5, 'dim': DIM, 'depth': 2, 'heads': HEADS, 'mlp_dim': 20,
       'dim_head': 4}


def vit(origin, **options):
    kind = published('vit_pytorch.vit').ViT if origin == 'published' else ours.NormViT
    return kind(**VIT, **options)


for pool in ('cls', 'mean'):
    problem(f'vit_{pool}', partial(vit, pool=pool), (3, 8, 8))
    problem(f'vit_prenorm_{pool}', lambda origin, pool=pool: ours.ViT(**VIT, pool=pool), (3, 8, 8), ('reference',))
    problem(f'vit_own_{pool}', lambda origin, pool=pool: PastedViT(pool), (3, 8, 8), ('pasted',))


# Fast weights

def fast_weights(origin, nu=1, gated=False, depth=0):
    package = published('labml_nn.transformers.fast_weights') if origin == 'published' else ours
    forward = package.FeedForward if origin == 'published' else FeedForward
    model = package.FastWeightsAttention(HEADS, DIM, 0.1, package.DPFP(nu))
    if depth:
        layer = package.FastWeightsAttentionTransformerLayer(
            d_model=DIM, attn=model, feed_forward=forward(DIM, 16, is_gated=gated), dropout_prob=0.1)
        model = package.FastWeightsAttentionTransformer(layer, depth)
    return Call(model, lambda model, x: model(x.transpose(0, 1)).transpose(0, 1))


problem('fast_weights', fast_weights)
problem('fast_weights_nu', partial(fast_weights, nu=3))
problem('fast_weights_transformer', partial(fast_weights, depth=2))
problem('fast_weights_gated', partial(fast_weights, nu=2, depth=2, gated=True))


# Checks

def build(name, origin):
    '''The float64 model of a problem in eval mode, away from its initialization, and a batch of inputs.'''
    make, shape, _ = PROBLEMS[name, origin]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(make(origin)).double().eval(), torch.randn(shape, dtype=torch.float64)


def explained(model, input, composite=CPLRP, target=largest):
    '''The largest outputs are explained, so that nothing cancels.'''
    return explain(model, input, composite, target)


every_problem = pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=marks, id='-'.join(key)) for key, (_, _, marks) in PROBLEMS.items()])
every_composite = pytest.mark.parametrize('composite', COMPOSITES.values(), ids=COMPOSITES)


@every_problem
@every_composite
def test_explained_and_restored(name, origin, composite):
    model, input = build(name, origin)
    assert all(parameter.any() for parameter in model.parameters() if parameter.numel())
    with torch.no_grad():
        expected = model(input)
    before = Snapshot(model)
    output, relevance = explained(model, input, composite)
    assert_restored(before, model)
    with torch.no_grad():
        after = model(input)
    assert relative(output, expected) <= 1e-12
    assert equal_maps(after, expected)
    for target in (largest, None):
        ledger = audit(model, composite(), input, target)
        assert_restored(before, model)
        entered = (expected if target is None else target(expected)).flatten(1).sum(1)
        assert torch.allclose(ledger.output, entered, rtol=1e-9)
        assert_closed(ledger)
        assert ledger.sinks
        if target is largest:
            scale = relevance.abs().flatten(1).sum(1)
            assert (scale > 0).all()
            assert ((ledger.input - relevance.flatten(1).sum(1)).abs() <= 1e-9 * scale).all()


PAIRS = sorted({name for name, _ in PROBLEMS} & {name for name, origin in PROBLEMS if origin == 'reference'}
               & {name for name, origin in PROBLEMS if origin != 'reference'})


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.zoo] if (name, 'published') in PROBLEMS else []) for name in PAIRS])
@every_composite
def test_reference_and_original_have_the_same_map(name, composite):
    '''With the same weights, and whatever the code looks like.'''
    original, input = build(name, next(origin for key, origin in PROBLEMS if key == name and origin != 'reference'))
    reference, _ = build(name, 'reference')
    reference.load_state_dict(original.state_dict())
    assert relative(explained(reference, input, composite)[1], explained(original, input, composite)[1]) <= 1e-8


@pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=marks, id='-'.join(key))
    for key, (_, _, marks) in PROBLEMS.items() if key[0].startswith('lm_')])
@every_composite
def test_language_models_from_their_tokens(name, origin, composite):
    model, _ = build(name, origin)
    tokens, before = model.model, Snapshot(model)
    if model.kwargs:
        tokens = Call(tokens, lambda inner, ids: inner(ids, **model.kwargs))
    with TokenGradient(tokens, model.model.token_emb, composite()) as attributor:
        output, relevance = attributor(model.ids, largest)
    assert_restored(before, model)
    expected_output, expected = explained(model, model.model.token_emb(model.ids).detach(), composite)
    assert relative(output.detach(), expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-9


CAUSAL = [key for key in PROBLEMS if 'causal' in key[0] and 'cross' not in key[0] or key[0].startswith('fast_weights')]


@pytest.mark.parametrize(('name', 'origin'), [
    pytest.param(*key, marks=PROBLEMS[key][2], id='-'.join(key)) for key in CAUSAL])
@every_composite
@pytest.mark.parametrize('token', [0, 4, LENGTH - 1])
def test_later_tokens_get_exactly_nothing(name, origin, composite, token):
    model, input = build(name, origin)
    only = (torch.arange(LENGTH) == token)[:, None]
    relevance = explained(model, input, composite, lambda output: output.detach() * only)[1].abs().sum(-1)
    assert (relevance[:, token + 1:] == 0).all()
    # Features of fast weights are sparse, so that some earlier keys are orthogonal to a query; masks hide tokens.
    sparse = name.startswith('fast_weights') or 'masked' in name
    assert (relevance[:, :token + 1] > 0).double().mean() > (0.4 if sparse else 0.999)


# Order of association

class AssociatedAttention(nn.Module):
    '''Linear attention in either order: of the same value, but not of the same steps.'''
    def __init__(self, features, linear):
        super().__init__()
        self.features, self.linear = features, linear
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = self.features(q, -1), self.features(k, -2)
        return self.to_out(q @ (k.mT @ v) if self.linear else (q @ k.mT) @ v)


FEATURES = {
    'softmax': (torch.softmax, CPLRP),
    'relu': (lambda x, dim: torch.relu(x), lambda: CPLRP(layer_map=[((Activation,), Constant())])),
}


@cache
def associated(features, linear):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(AssociatedAttention(FEATURES[features][0], linear)).double().eval()
        return model, torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)


@pytest.mark.parametrize(('features', 'composite'), [
    *((name, composite) for name, (_, composite) in FEATURES.items()), ('softmax', AttnTaylor), ('relu', AttnTaylor),
])
def test_order_of_association_does_not_matter_for_constant_gates_and_expansions(features, composite):
    pairs = [explained(*associated(features, linear), composite) for linear in (False, True)]
    assert relative(*(output for output, _ in pairs)) <= 1e-12
    assert relative(*(relevance for _, relevance in pairs)) <= 1e-12


@pytest.mark.parametrize(('features', 'composite'), [
    ('relu', lambda: CPLRP(layer_map=[((Einsum, Multiply), Uniform())])), ('relu', CPLRP), ('softmax', AttnLRP),
], ids=['uniform', 'default', 'taylor'])
def test_order_of_association_matters_for_the_uniform_rule(features, composite):
    maps = [explained(*associated(features, linear), composite)[1] for linear in (False, True)]
    assert relative(*maps) > 0.01
    for linear in (False, True):
        model, input = associated(features, linear)
        ledger = audit(model, composite(), input)
        assert_closed(ledger)


# Twins: the formula, with constants detached, and relevance as input times gradient

def twin_relevance(formula, model, input, stabilizer=1e-9):
    input = input.clone().requires_grad_()
    output = formula(model, input)
    weight = largest(output) / (output + stabilizer * torch.where(output < 0, -1, 1)).detach()
    return output.detach(), (input * torch.autograd.grad(output, input, weight)[0]).detach()


#: Whether the twins' queries and keys are constants, by composite.
GATES = {CPLRP: True, AttnTaylor: False}
every_gate = pytest.mark.parametrize('composite', GATES)


def assert_twin(formula, model, input, composite=CPLRP):
    expected = twin_relevance(partial(formula, constant_gates=GATES[composite]), model, input)
    for actual, wanted in zip(explained(model, input, composite), expected, strict=True):
        assert relative(actual, wanted) <= (1e-12 if GATES[composite] else 1e-10)


def in_heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def performer_formula(attention, x, constant_gates):
    '''Each output by itself, from the sums of the article.'''
    q, k, v = (in_heads(projection(x)) for projection in (attention.to_q, attention.to_k, attention.to_v))
    features = attention.fast_attention
    if features.no_projection:
        q, k = q.softmax(-1), k.exp() if features.causal else k.softmax(-2)
    else:
        q, k = (features.kernel_fn(each * 4 ** -0.25 @ features.projection_matrix.T) + 1e-3 for each in (q, k))
    q, k = (q.detach(), k.detach()) if constant_gates else (q, k)
    outs = []
    for i in range(x.shape[1]):
        seen, eps = (slice(0, i + 1), 1e-6) if features.causal else (slice(None), 0.)
        weights = (q[:, :, i:i + 1] * k[:, :, seen]).sum(-1, keepdim=True)
        normalizer = (q[:, :, i] * (k[:, :, seen].sum(2) + eps)).sum(-1, keepdim=True)
        outs.append((weights * v[:, :, seen]).sum(2) / normalizer.detach())
    return attention.to_out(torch.stack(outs, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize('origin', ['reference', pytest.param('published', marks=pytest.mark.zoo)])
@pytest.mark.parametrize('kernel', [None, nn.ReLU(), nn.Softplus(), nn.Identity()], ids=str)
@pytest.mark.parametrize(('length', 'causal'), [(LENGTH, False), (LENGTH, True), (70, True)])
@every_gate
def test_performer_twin(origin, kernel, length, causal, composite):
    '''Also for an identity, a kernel that would carry relevance through queries and keys if it were let.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {'generalized_attention': True, 'kernel_fn': kernel} if kernel else {'no_projection': True}
        attention = perturbed(performer(origin, causal=causal, **options).net.layers[0][0].fn).double().eval()
        assert_twin(performer_formula, attention, torch.randn(BATCH, length, DIM, dtype=torch.float64), composite)


@pytest.mark.parametrize('origin', ['reference', pytest.param('published', marks=pytest.mark.zoo)])
@pytest.mark.parametrize('name', ['favor', 'favor_causal', 'no_projection', 'no_projection_causal'])
def test_queries_and_keys_are_gates_whatever_the_composite(origin, name):
    model, input = build(f'performer_{name}', origin)
    assert relative(explained(model, input, AttnLRP)[1], explained(model, input)[1]) <= 1e-12


def normalized_dpfp(phi, x):
    features = phi.dpfp(x)
    return features / (features.sum(-1, keepdim=True) + phi.eps).detach()


def delta_formula(call, x, constant_gates, phi=None):
    '''One write and one read a token.'''
    model, state, outs = call.model, 0, []
    features = [(phi or partial(normalized_dpfp, model.phi))(project(x)) for project in (model.query, model.key)]
    value, beta = model.value(x), model.interpolation_weight(x)
    if constant_gates:
        features, beta = [each.detach() for each in features], beta.detach()
    for i in range(x.shape[1]):
        query, key = (each[:, i, :, None, :] for each in features)
        held = (state * key).sum(-1)
        state = state + (beta[:, i] * (value[:, i] - held))[..., None] * key
        outs.append((state * query).sum(-1).flatten(1))
    return model.output(torch.stack(outs, 1))


@pytest.mark.parametrize('name', ['fast_weights', 'fast_weights_nu'])
@pytest.mark.parametrize('origin', ['reference', pytest.param('published', marks=pytest.mark.zoo)])
@pytest.mark.parametrize('length', [LENGTH, 70])
@every_gate
def test_delta_rule_twin(name, origin, length, composite):
    model, input = build(name, origin)
    assert_twin(delta_formula, model, torch.cat([input] * 8, 1)[:, :length], composite)


class OwnLoopAttention(ours.FastWeightsAttention):
    '''Fast weights whose loop nobody has seen before.'''
    def forward(self, x):
        return delta_formula(Call(self, None), x, constant_gates=False, phi=self.phi)


@every_gate
def test_gates_of_an_unknown_loop(composite):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(OwnLoopAttention(HEADS, DIM, 0., ours.DPFP(2))).double().eval()
        x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
        call = Call(model, lambda model, x: model(x))
    assert_twin(delta_formula, call, x, composite)


def multihead_formula(call, x, constant_gates, mask=None):
    '''Softmax attention head by head, the map constant if gates are; with learned and zero keys and values.'''
    model = call.model
    weights, biases = model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3)
    q, k, v = (x @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    if model.bias_k is not None:
        k, v = (torch.cat([each, bias.expand(BATCH, 1, DIM), torch.zeros(BATCH, 1, DIM)], 1)
                for each, bias in ((k, model.bias_k), (v, model.bias_v)))
    q, k, v = map(in_heads, (q, k, v))
    scores = q @ k.mT / 2
    if mask is not None:
        scores[..., :LENGTH].masked_fill_(mask, -torch.inf)
    weights = scores.softmax(-1)
    return model.out_proj(((weights.detach() if constant_gates else weights) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize('origin', ['reference', 'torch'])
@pytest.mark.parametrize('options', [{}, {'add_bias_kv': True, 'add_zero_attn': True}], ids=['plain', 'extended'])
@pytest.mark.parametrize('mask', [None, FUTURE], ids=['open', 'causal'])
@pytest.mark.parametrize('need_weights', [False, True])
@every_gate
def test_multihead_twin(origin, options, mask, need_weights, composite):
    kind = nn if origin == 'torch' else ours
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = perturbed(kind.MultiheadAttention(DIM, HEADS, batch_first=True, **options)).double().eval()
        x = torch.randn(BATCH, LENGTH, DIM, dtype=torch.float64)
    call = Call(model, lambda model, x: model(x, x, x, attn_mask=mask, need_weights=need_weights)[0])
    assert_twin(partial(multihead_formula, mask=mask), call, x, composite)
