'''What the tests of reference modules share: the published package, its weights, and how equal is equal.'''
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from versions import release

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def published(module):
    '''Import a module of a published package, or skip the tests that compare with it.'''
    reason = f'{module} is not installed (see the extra zoo in pyproject.toml)'
    if module.startswith('transformers.models.') and _is_old('transformers'):
        reason = f'needs transformers 5: {module} is not in older ones'
    return pytest.importorskip(module, reason=reason, exc_type=ImportError)


def _is_old(package, oldest='5.0'):
    try:
        return release(version(package)) < release(oldest)
    except PackageNotFoundError:
        return False


def perturbed(module, scale=0.1):
    '''Move all parameters away from their initialization, so that no bias is zero and no scale one.'''
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn_like(parameter)
    return module


def cast(value, dtype):
    '''Cast the floating point tensors in nested arguments.'''
    if isinstance(value, dict):
        return {key: cast(entry, dtype) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(cast(entry, dtype) for entry in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_close(actual, expected, tolerance=None):
    '''Compare elementwise, relative to the largest expected element.'''
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert expected.isfinite().all()
    tolerance = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def assert_equal_forward(reference, original, *args, dtypes=tuple(TOLERANCE), **kwargs):
    '''Load the original's state into the reference, all of it, and compare outputs in each dtype.'''
    perturbed(original)
    for dtype in dtypes:
        twin, model = deepcopy(original).to(dtype).eval(), deepcopy(reference).to(dtype).eval()
        model.load_state_dict(twin.state_dict())
        inputs = cast((args, kwargs), dtype)
        with torch.no_grad():
            expected = twin(*deepcopy(inputs[0]), **deepcopy(inputs[1]))
            assert_close(model(*inputs[0], **inputs[1]), expected)
