'''What only newer versions of torch can do, so that the oldest supported ones skip it.'''
import pytest
import torch


def release(version):
    '''The first two numbers of a version, to compare by.'''
    return tuple(int(number) for number in version.split('.')[:2])


TORCH = release(torch.__version__)


def since(version, why):
    '''A mark that skips a test on an older torch than ``version``, because of ``why``.'''
    return pytest.mark.skipif(release(version) > TORCH, reason=f'needs torch {version}: {why}')


def each(names, newer):
    '''The names to test, with the marks that ``newer`` has for some.'''
    return [pytest.param(name, marks=newer.get(name, ())) for name in names]
