'''EPFL's extension for whoever asks for it: the installed one, or one that is built for the session.'''
import sys
from importlib import import_module
from types import ModuleType

import pytest

from .epfl import CannotBuild, build

ROOM = 'fast_transformers.causal_product'


def forget():
    '''Drop what was imported of the package.'''
    for name in [name for name in sys.modules if name.split('.')[0] == 'fast_transformers']:
        del sys.modules[name]


@pytest.fixture(scope='session')
def built(request, tmp_path_factory):
    '''The folder of an extension that is built here, None where one is installed.'''
    try:
        import_module(ROOM)
    except ImportError:
        if 'zoo' not in request.config.getoption('markexpr'):
            pytest.skip("EPFL's extension is built only where the zoo is asked for: pytest -m zoo")
    else:
        return None
    try:
        return build(tmp_path_factory.mktemp('epfl'))
    except CannotBuild as error:
        pytest.skip(f"EPFL's extension cannot be built here: {error}")


@pytest.fixture
def extension(built, monkeypatch):
    '''The module of EPFL's causal product, importable while a test runs.'''
    if built is None:
        yield import_module(ROOM)
        return
    monkeypatch.syspath_prepend(built)
    forget()
    yield import_module(ROOM)
    forget()


@pytest.fixture
def cuda_branch(extension, monkeypatch):
    '''Published Performers take the branch they take where CUDA is: the kernel is EPFL's, for the device at hand.'''
    name = f'{ROOM}.causal_product_cuda'
    try:
        import_module(name)
    except ImportError:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return extension
