'''Every published model under our composites: forward equal, ledger closed, model restored, or refused as expected.'''
import warnings
from contextlib import contextmanager
from importlib.metadata import version

import pytest
import torch
from zennit.attribution import Gradient

from helpers import Snapshot, assert_closed, assert_restored, largest
from versions import release
from zennit_attn.conservation import audit
from zennit_attn.engine.domains import ToGradient

from .models import MODELS
from .published import COMPOSITES, prepare

DOUBLE, SINGLE = 1e-9, 1e-6

pytestmark = pytest.mark.zoo
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


@contextmanager
def their_warnings():
    '''Published code warns about itself, which is no failure of ours.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def built(name):
    '''A published model with random weights, and an input for it.'''
    published = MODELS[name]
    with their_warnings():
        pytest.importorskip(published.package, exc_type=ImportError,
                            reason=f'{published.package} is not installed (see the extra zoo in pyproject.toml)')
        for package, (needed, why) in published.needs.items():
            if release(version(package)) < release(needed):
                pytest.skip(f'needs {package} {needed}: {why}')
        torch.manual_seed(0)
        model = prepare(published.build())
    return model, torch.randn(published.shape, dtype=torch.float64)


def tolerance(name, composite):
    '''How far the ledger may be open, in units of the output's relevance.'''
    single = MODELS[name].single
    constant = single in ('softmax', 'queries and keys') and composite == 'cp_lrp'
    return SINGLE if single and not constant else DOUBLE


def check(name, composite, options):
    '''Explain and audit a model.'''
    model, input = built(name)
    with their_warnings():
        with torch.no_grad():
            expected = model(input)
        before = Snapshot(model)
        with Gradient(model, COMPOSITES[composite](**options)) as attributor:
            output, relevance = attributor(input.clone(), largest)
        assert_restored(before, model)
        ledger = audit(model, COMPOSITES[composite](**options), input, largest)
        assert_restored(before, model)

    assert (output - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert relevance.shape == input.shape
    assert relevance.isfinite().all()
    assert (relevance.flatten(1) != 0).any(1).all()
    assert torch.allclose(ledger.output, largest(expected).double().flatten(1).sum(1), rtol=1e-9)
    scale = relevance.abs().flatten(1).sum(1)
    assert ((ledger.input - relevance.flatten(1).sum(1)).abs() <= tolerance(name, composite) * scale).all()
    assert_closed(ledger, tolerance(name, composite))


def cases(wanted):
    '''The pairs of model and composite for which ``wanted`` holds, with what is known to be broken marked so.'''
    return [pytest.param(name, composite, marks=marks(model.broken.get(composite)), id=f'{name}-{composite}')
            for name, model in MODELS.items() for composite in COMPOSITES if wanted(model, composite)]


def marks(reason):
    '''A failure that is known has to fail.'''
    return [pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError)] if reason else []


@pytest.mark.parametrize(('name', 'composite'), cases(lambda model, composite: composite not in model.refused))
def test_closes(name, composite):
    check(name, composite, {})


@pytest.mark.parametrize(('name', 'composite'), cases(lambda model, composite: composite in model.refused))
def test_is_refused_by_name(name, composite):
    model, input = built(name)
    error, message = MODELS[name].refused[composite]
    before = Snapshot(model)
    with their_warnings(), pytest.raises(error, match=message):
        audit(model, COMPOSITES[composite](), input, largest)
    assert_restored(before, model)


@pytest.mark.parametrize(('name', 'composite'), cases(lambda model, composite: composite in model.remedy))
def test_remedy_closes(name, composite):
    built(name)
    check(name, composite, MODELS[name].remedy[composite]())


@every_composite
def test_nearly_all_close(composite):
    '''The promise: at least 95 % of all published models close without a line of code for their classes.'''
    open_ = [name for name, model in MODELS.items() if composite in model.refused or composite in model.broken]
    assert len(open_) <= .05 * len(MODELS), open_


def test_a_mistake_is_seen(monkeypatch):
    '''A conversion that makes up relevance opens the ledger: the tolerances are not too wide to notice.'''
    backward = ToGradient.backward
    monkeypatch.setattr(ToGradient, 'backward', staticmethod(lambda ctx, grad: backward(ctx, 1.001 * grad)))
    model, input = built('torch TransformerEncoder')
    ledger = audit(model, COMPOSITES['cp_lrp'](), input, largest)
    assert (ledger.unaccounted.abs() > SINGLE * ledger.output.abs()).any()
