'''Help and its examples.'''
import re
import shlex
import subprocess
import sys

import pytest

from zennit_attn.__main__ import _parser, main


@pytest.mark.parametrize('command', [[], ['demo'], ['audit'], ['heatmap'], ['list']])
def test_help_runs_and_has_examples(command):
    # Before torch 2.7, torch itself leaves a temporary directory to the exit of Python.
    torch_exits = 'ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning'
    arguments = [sys.executable, '-W', 'error', '-W', torch_exits, '-m', 'zennit_attn', *command, '--help']
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, '')
    assert re.search(r'example', result.stdout)
    if command != ['demo'] and command != ['list']:
        assert 'exit codes' in result.stdout


def test_examples_of_the_help_can_be_parsed(capsys):
    examples = []
    for command in ([], ['demo'], ['audit'], ['heatmap'], ['list']):
        with pytest.raises(SystemExit):
            main([*command, '--help'])
        text = capsys.readouterr().out
        examples += re.findall(r'^(?:  |example: )zennit-attn ([a-z].*?)(?:   .*)?$', text, flags=re.MULTILINE)
    assert len(examples) > 15
    for example in examples:
        assert _parser().parse_args(shlex.split(example)).run
