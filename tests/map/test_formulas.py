'''Twins of the families: the formula, with constants detached, and relevance as input times gradient.'''
from functools import partial

import pytest
import torch
from torch import nn

from attention.helpers import perturbed
from cases.families import BATCH, DIM, FUTURE, HEADS, LENGTH, Call, build, explain_largest, performer
from helpers import largest, relative
from zennit_attn import attention as ours
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor


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
    for actual, wanted in zip(explain_largest(model, input, composite), expected, strict=True):
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
    assert relative(explain_largest(model, input, AttnLRP)[1], explain_largest(model, input)[1]) <= 1e-12


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
