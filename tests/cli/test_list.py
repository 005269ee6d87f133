'''What the command line can list.'''
import re
import subprocess
import sys

import pytest
from zennit.composites import COMPOSITES

from .helpers import refused, run


def test_list_names_everything(capsys):
    code, printed, _ = run(capsys, 'list')
    assert code == 0
    words = set(re.findall(r'\w+', printed))
    assert words >= {*COMPOSITES, 'AttentionCanonizer', 'PerformerCanonizer', 'SequentialMergeBatchNorm', 'softmax',
                     'einsum', 'matrix_exp'}
    assert ':py:' not in printed
    assert ':cite:' not in printed


@pytest.mark.parametrize(('arguments', 'there', 'absent'), [
    (['composites', 'gamma'], 'cp_lrp_gamma', 'guided_backprop'), (['canonizers'], 'ViTCanonizer', 'logsumexp'),
    (['operators', 'soft'], 'softplus', 'einsum'), (['operators', '--kind', 'gate'], 'sigmoid', 'softmax'),
    (['--kind', 'refused'], 'matrix_exp: ', 'log_sigmoid'), (['all', 'SOFTMAX'], 'log_softmax', 'einsum'),
])
def test_list_filters(capsys, arguments, there, absent):
    code, printed, _ = run(capsys, 'list', *arguments)
    assert code == 0
    assert there in printed
    assert absent not in printed


def test_list_may_be_cut_short():
    '''As by head, which closes the pipe.'''
    with subprocess.Popen([sys.executable, '-m', 'zennit_attn', 'list'], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode == 0


def test_list_says_that_there_is_nothing(capsys):
    assert "holds 'xyz'" in refused(capsys, 'list', 'all', 'xyz')
