'''Published Performers: the causal product of EPFL's extension, whose code cannot be seen, and reversible layers.'''
import sys
from functools import partial
from types import ModuleType

import pytest
import torch

from attention.helpers import published
from cases.families import BATCH, DIM, HEADS, LENGTH, explain_largest, performer
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, largest, relative
from zennit_attn import attention as ours
from zennit_attn.canonizers import AttentionCanonizer, PerformerCanonizer, ViTCanonizer
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import UntrackedTensor

from .helpers import noise, seeded


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
    output, relevance = explain_largest(model, input, lambda: composite)
    ledger = audit(model, composite, input, largest, compare=False)
    assert OpaqueProduct.calls == 0
    assert {row.function for row in ledger.operators} >= {'causal_dot_product'}
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, explain_largest(reference, input)[1]) <= 1e-12
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
        explain_largest(model, noise(BATCH, LENGTH, DIM), lambda: CPLRP(canonizers=[canonizer()]))
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
    output, relevance = explain_largest(model, input)
    assert OpaqueProduct.calls == 2
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, explain_largest(reference, input)[1]) <= 1e-12
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
    for actual, expected in zip(explain_largest(model, input), explain_largest(reference, input), strict=True):
        assert relative(actual, expected) <= 1e-12
    assert_restored(before, model)
