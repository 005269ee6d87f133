'''The user's own hooks: those that look, and those that change something.'''
import pytest
from zennit.attribution import Gradient

import oracle
from cases.problems import build
from helpers import assert_closed, epsilon, one_hot, relative, relevance_of, stock
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError

from .helpers import Around, check, data, every_composite, expected, fresh, refused


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
        refused(lambda: relevance_of(model, data(), make), 'backward hook', 'remove the hook', model=model)
        handle.remove()
    model.get_submodule(name).register_full_backward_pre_hook(lambda module, grads: (grads[0] / 2,))
    refused(lambda: relevance_of(model, data(), make), 'backward hook', 'remove the hook', model=model)


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
    check(model, make, relevance_of(Around(written), data(), make))


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
    check(watched(seen.append), make, relevance_of(Around(lambda body, x: body(x * 1)), data(), make))
    assert seen
    model = watched(lambda grad: grad / 2)
    refused(lambda: relevance_of(model, data(), make), 'tensor hook', 'test_hooks.py', model=model)


@pytest.mark.parametrize('where', ['root', 'root before', 'inside', 'inside before'])
def test_hooks_of_the_user_that_change_values(where):
    '''What the user's own hooks compute is explained too, or refused; never left out in silence.'''
    model, input = build('swiglu')
    module = model.w2 if where.startswith('inside') else model
    if where.endswith('before'):
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2 + 0.5,))
    else:
        module.register_forward_hook(lambda module, args, output: output * 2 + 0.5)
    expected = model(input)
    try:
        ledger = audit(model, CPLRP(), input, one_hot)
    except AttributionError:
        with pytest.raises(AttributionError, match='hook'), Gradient(model, CPLRP()) as attributor:
            attributor(input.clone(), one_hot)
        return
    with Gradient(model, CPLRP()) as attributor:
        output, relevance = attributor(input.clone(), one_hot)
    assert relative(output, expected) <= 1e-12
    assert relative(relevance, oracle.explain(model, input, one_hot)) <= 1e-6
    assert_closed(ledger)
