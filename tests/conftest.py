'''Settings for all tests: one thread, no leftovers between tests.'''
import pytest
import torch

from zennit_attn import operators

pytest.register_assert_rewrite('helpers', *(f'{room}.helpers' for room in 'attention cli reality refusal'.split()))
torch.set_num_threads(1)


def pytest_addoption(parser):
    '''``--programs N`` runs the random programs of test_programs.py for longer, with fresh randomness.'''
    parser.addoption('--programs', type=int, metavar='N', help='check N random programs, new ones each time')


def mode_depth():
    '''How many torch function modes are entered.'''
    return torch._C._len_torch_function_stack()


@pytest.fixture(autouse=True)
def untouched_globals():
    '''No test may leave a function mode, a changed grad mode, default dtype or backend switch behind.'''
    def state():
        return (mode_depth(), torch.is_grad_enabled(), torch.get_default_dtype(),
                torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.math_sdp_enabled())
    before = state()
    yield
    assert state() == before


@pytest.fixture
def table():
    '''What a test registers is forgotten after it.'''
    before = dict(operators.TABLE)
    yield
    operators.TABLE.clear()
    operators.TABLE.update(before)
