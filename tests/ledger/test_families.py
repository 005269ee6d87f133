'''The attention families: same forward, closed ledger, model as before.'''
import torch

from cases.families import build, every_composite, every_problem, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, equal_maps, largest, relative
from zennit_attn.conservation import audit


@every_problem
@every_composite
def test_explained_and_restored(name, origin, composite):
    model, input = build(name, origin)
    assert all(parameter.any() for parameter in model.parameters() if parameter.numel())
    with torch.no_grad():
        expected = model(input)
    before = Snapshot(model)
    output, relevance = explain_largest(model, input, composite)
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
