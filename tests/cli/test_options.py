'''Targets, settings and progress.'''
import argparse
import io

import pytest
import torch

from zennit_attn.cli.progress import Progress
from zennit_attn.cli.targets import describe, indices, parse_target, relevance_of, select
from zennit_attn.cli.usage import UsageError, parse_setting, parse_size


def test_targets_are_found_in_every_sample():
    output = torch.tensor([[1., 3., 2.], [5., 4., 0.]])
    assert indices('max', output) == [(1,), (0,)]
    assert indices((-1,), output) == [(2,), (2,)]
    assert indices('all', output) is None
    tokens = torch.stack([output, -output])
    assert indices('last', tokens) == [(1, 0), (1, 2)]
    assert indices('max', tokens) == [(1, 0), (1, 2)]
    assert indices((0, -1), tokens) == [(0, 2), (0, 2)]
    assert relevance_of([(1,), (0,)])(output).tolist() == [[0., 3., 0.], [5., 0., 0.]]
    assert relevance_of(None)(output) is output
    assert describe([(1,), (0,)], {1: 'cat'}) == 'cat (1); 0'


def test_parts_of_outputs():
    tensor = torch.ones(1)
    holder = argparse.Namespace(logits=tensor, loss=None)
    for name, output in ((None, tensor), (None, holder), ('logits', holder), (None, {'out': tensor, 'aux': 3}),
                         ('aux', {'aux': tensor}), (None, (tensor, 3)), ('-1', (3, tensor))):
        assert select(name)(output) is tensor
    for name, output in (('2', (tensor,)), ('loss', holder), (None, 3), ('b', {'a': tensor})):
        with pytest.raises(UsageError):
            select(name)(output)


def test_values_of_options():
    assert parse_target('-1,464') == (-1, 464)
    assert parse_setting('a=1') == ('a', 1)
    assert parse_setting('a=(1, 2)') == ('a', (1, 2))
    assert parse_setting('a=word=') == ('a', 'word=')
    assert parse_size('4') == (4, 4)
    assert parse_size('4x8') == (4, 8)


class Terminal(io.StringIO):
    '''A stream that says it is a terminal.'''
    def isatty(self):
        return True


@pytest.mark.parametrize(('stream', 'shows'), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_for_people(stream, shows):
    with Progress(4, stream) as progress:
        progress.step('one')
        progress.step('two')
    assert ('2/4 two' in stream.getvalue()) == shows
    assert stream.getvalue().endswith('\r\x1b[K' if shows else '')
    assert bool(stream.getvalue()) == shows
