'''Fixtures for published code.'''
from contextlib import ExitStack

import pytest

from attention.test_recurrent import in_double


@pytest.fixture
def double():
    '''The published code in float64, which it is not by itself.'''
    with ExitStack() as stack:
        for patch in in_double():
            stack.enter_context(patch)
        yield
