'''The ledger of a model on the command line, and what does not fit.'''
import re
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from zennit.composites import COMPOSITES

from zennit_attn.__main__ import main
from zennit_attn.cli.usage import UsageError
from zennit_attn.operators import REASONS

from .helpers import refused, run


@pytest.mark.parametrize('spec', ['cli_models.py:Attention', 'cli_models:Attention', 'cli_models:ready'])
def test_audit_prints_operators_rules_and_sinks(capsys, spec):
    code, printed, complaint = run(capsys, 'audit', spec, '--input', '2x5x6')
    assert (code, complaint) == (0, '')
    assert re.search(r'softmax +softmax +Constant +1 +1', printed)
    assert re.search(r'einsum +matmul +Uniform', printed)
    assert 'bias: to_out.bias' in printed
    assert 'sample 1' in printed
    assert 'the ledger is closed' in printed.splitlines()[-1]


def test_audit_lists_all_that_is_not_supported_with_module_and_line(capsys):
    code, printed, complaint = run(capsys, 'audit', 'cli_models.py:Unsupported', '--input', '2x6x6')
    assert (code, complaint) == (1, '')
    found = re.findall(r"^  (\w+) in module '(\w+)': (.*)\n    (.*)$", printed, flags=re.MULTILINE)
    assert [entry[:2] for entry in found] == [
        ('DoubleBackward', 'Unsupported'), ('matrix_exp', 'Unsupported'), ('matrix_exp', 'cell')]
    assert found[1][2] == REASONS['matrix_exp']
    assert found[1][3].endswith('x = torch.matrix_exp(x)  # the line')
    assert printed.splitlines()[-1] == 'NOT SUPPORTED: 3 without a rule'


def test_audit_accepts_the_gradient_and_says_that_the_ledger_is_open(capsys):
    code, printed, _ = run(capsys, 'audit', 'cli_models.py:Unsupported', '-i', '2x6x6', '--unknown', 'gradient')
    assert code == 1
    assert 'matrix_exp' in printed
    assert 'the ledger is OPEN' in printed.splitlines()[-1]


def test_audit_says_why_nothing_can_be_explained(capsys):
    code, printed, _ = run(capsys, 'audit', 'cli_models.py:constant', '--input', '2x6')
    assert code == 1
    assert 'NOT SUPPORTED: ' in printed
    assert 'explain the logits' in printed


@pytest.mark.parametrize(('model', 'given', 'name'), [
    ('cli_models:Attention', ['--input', '2x5x6'], 'attn_lrp_gamma'),
    ('cli_models:Words', ['--tokens', '2x6'], 'attn_lrp')])
def test_recommended_is_a_composite_for_the_kind_of_model(capsys, model, given, name):
    code, printed, complaint = run(capsys, 'audit', model, *given, '-c', 'recommended')
    assert (code, complaint) == (0, '')
    assert f'rules    {name}' in printed


def test_one_number_for_each_sample(capsys):
    code, printed, complaint = run(capsys, 'audit', 'cli_models:one', '--input', '2x5x6')
    assert (code, complaint) == (0, '')
    assert 'target   the only number of each sample of output 2' in printed


def test_audit_says_where_a_recurrence_is_written_out(capsys):
    code, printed, complaint = run(capsys, 'audit', 'cli_models:Recurrence', '--input', '1x5x6')
    assert (code, complaint) == (0, '')
    assert 'depends on how a recurrence is written' in printed
    assert 'gated_linear_attention' in printed
    assert 'the ledger is closed' in printed.splitlines()[-1]


@pytest.mark.parametrize('name', COMPOSITES)
def test_audit_takes_every_composite_that_is_registered(capsys, name):
    settings = ['--composite-set', 'low=-3.', '--composite-set', 'high=3.'] if name == 'epsilon_gamma_box' else []
    code, printed, complaint = run(capsys, 'audit', 'cli_models:Attention', '--input', '2x5x6', '-c', name, *settings)
    assert (code, complaint) == (0, '')
    assert f'rules    {name}' in printed


def test_audit_prints_everything_if_asked(capsys):
    short, full = (run(capsys, 'audit', 'cli_models:Attention', '--input', '2x5x6', *extra)[1]
                   for extra in ([], ['--all']))
    assert 'module     type' in full
    assert 'module     type' not in short


@pytest.mark.parametrize(('target', 'words'), [('0', '0; 0'), ('-1', '2; 2'), ('all', 'all of the output')])
def test_audit_takes_targets(capsys, target, words):
    code, printed, _ = run(capsys, 'audit', 'cli_models:Attention', '--input', '2x5x6', f'--target={target}')
    assert code == 0
    assert f'target   {words} of output 2x3' in printed


def test_audit_reads_tensors_arrays_tuples_and_dicts(capsys, folder):
    x = torch.randn(2, 5, 6)
    torch.save(x, folder / 'x.pt')
    np.save(folder / 'x.npy', x.numpy())
    np.savez(folder / 'x.npz', x=x.numpy())
    torch.save({'x': x}, folder / 'kwargs.pt')
    printed = [run(capsys, 'audit', 'cli_models:Attention', '--input', name)[1]
               for name in ('x.pt', 'x.npy', 'x.npz', 'kwargs.pt')]
    assert len({re.search(r'^ +input +\S+ +\S+$', text, flags=re.MULTILINE)[0] for text in printed}) == 1
    torch.save([x, x], folder / 'two.pt')
    for inputs in (['--input', 'two.pt'], ['--input', 'x.pt', '--input', 'x.npy']):
        code, printed, _ = run(capsys, 'audit', 'cli_models:Named', *inputs, '--output', 'second', '--target', '1')
        assert (code, 'of output 2x3' in printed) == (0, True)


def test_audit_of_tokens_explains_from_the_embedding(capsys):
    for given in (['--tokens', '2x5'], ['--text', 'words']):
        code, printed, complaint = run(capsys, 'audit', 'cli_models:Words', *given)
        assert (code, complaint) == (0, '')
        assert 'from     words, the embedding' in printed


def test_audit_repeats_itself_by_its_seed(capsys):
    first, again, other = (run(capsys, 'audit', 'cli_models.py:Attention', '-i', '1x5x6', '--seed', seed)[1]
                           for seed in (1, 1, 2))
    assert first == again != other


def test_audit_writes_the_ledger(capsys, folder):
    code, printed, _ = run(capsys, 'audit', 'cli_models:Attention', '-i', '1x5x6', '--ledger', 'new/ledger.png')
    assert (code, 'written to new/ledger.png' in printed) == (0, True)
    assert (folder / 'new' / 'ledger.png').read_bytes().startswith(b'\x89PNG')


def test_audit_takes_types_and_a_tolerance(capsys):
    code, printed, _ = run(capsys, 'audit', 'cli_models.py:Attention', '-i', '1x5x6', '--dtype', 'float32')
    assert (code, '1x5x6 float32' in printed) == (0, True)
    assert run(capsys, 'audit', 'cli_models.py:Attention', '-i', '1x5x6', '--dtype', 'float32',
               '--tolerance', '1e-30')[0] == 1


def test_weights_come_from_checkpoints(capsys, folder):
    sys.path.insert(0, str(folder))
    model = import_module('cli_models').Attention(classes=2)
    sys.path.remove(str(folder))
    state = model.state_dict()
    torch.save(state, folder / 'plain.pt')
    parallel = {f'module.{name}': value for name, value in state.items()}
    torch.save({'epoch': 3, 'state_dict': parallel}, folder / 'run.pt')
    x = torch.randn(1, 5, 6)
    torch.save(x, folder / 'x.pt')
    for name in ('plain.pt', 'run.pt'):
        code, printed, _ = run(capsys, 'audit', 'cli_models:Attention', '--set', 'classes=2', '--checkpoint', name,
                               '-i', 'x.pt', '--target', '1')
        assert (code, f'of {name}' in printed) == (0, True)
        explained = re.search(r'^ +output +(-?\d\S*)$', printed, flags=re.MULTILINE)[1]
        assert float(explained) == pytest.approx(float(model.double()(x.double()).detach()[0, 1]), rel=1e-5)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['nothing'], 'names no model'),
    (['absent.py:Attention'], 'there is no file absent.py'),
    (['absent.module:Attention'], "can not import 'absent.module': ModuleNotFoundError"),
    (['cli_models:Atention'], "no model in cli_models called 'Atention'; did you mean Attention"),
    (['cli_models:fails'], 'fails of cli_models failed: RuntimeError: the first line'),
    (['cli_models:number'], 'is a int, neither a module nor a function'),
    (['cli_models:three'], 'returned int, not a torch.nn.Module'),
    (['cli_models:Attention', '--pretrained'], 'use --checkpoint'),
    (['cli_models:Attention', '--set', 'heads=3'], "unexpected keyword argument 'heads'"),
    (['cli_models:Attention', '--checkpoint', 'absent.pt'], 'there is no checkpoint absent.pt'),
    (['cli_models:Attention', '--checkpoint', 'cli_models.py'], 'not a file of tensors alone'),
    (['cli_models:Attention', '--checkpoint', 'number.pt'], 'holds no state dict'),
    (['cli_models:Attention', '--checkpoint', 'other.pt'], 'it misses to_out.bias'),
    (['cli_models:Attention', '--checkpoint', 'larger.pt'], 'in another shape to_out.bias, to_out.weight'),
    (['cli_models:Attention', '--target', '3'], 'target 3 is out of range: the output has shape (1, 3)'),
    (['cli_models:Attention', '--target', '0,1'], '1 are needed after the batch'),
    (['cli_models:Attention', '--target', 'last'], 'there is no last token'),
    (['cli_models:Attention', '--output', 'logits'], "has no part 'logits'"),
    (['cli_models:Attention', '-i', '1x5x7'], 'the model does not take this input (1x5x7 float64): RuntimeError'),
    (['cli_models:Attention', '-i', 'absent.pt'], "'absent.pt' is neither a shape such as 1x3x224x224 nor a file"),
    (['cli_models:Attention', '-i', '0x5x6'], 'zero elements'),
    (['cli_models:Attention', '-i', 'number.pt'], 'holds no tensor'),
    (['cli_models:Attention', '-i', 'cli_models.py'], 'is no image that can be read'),
    (['cli_models:Attention', '-c', 'epsilon_gamma_box'], 'it may need --composite-set NAME=VALUE: TypeError'),
    (['cli_models:Attention', '--device', 'nowhere'], "can not compute on 'nowhere'"),
    (['cli_models:Attention', '--ledger', 'ledger.txt'], 'has to end in .png'),
    (['cli_models:Attention', '--ledger', 'cli_models.py/ledger.png'], 'can not write into'),
    (['cli_models:Named', '-i', 'pair.pt'], 'name a part of the output by --output'),
    (['cli_models:scalar'], 'a single number'),
    (['cli_models:overflows'], 'infinite or not a number'),
    (['torchvision:vit_b_17'], "no torchvision model 'vit_b_17'; did you mean vit_b_16"),
])
def test_what_does_not_fit_is_an_error_of_one_line(capsys, folder, arguments, message):
    torch.save(3, folder / 'number.pt')
    torch.save({'other': torch.ones(1)}, folder / 'other.pt')
    torch.save((torch.randn(1, 5, 6),) * 2, folder / 'pair.pt')
    larger = nn.ModuleDict({'to_qkv': nn.Linear(6, 18), 'to_out': nn.Linear(6, 4)})
    torch.save(larger.state_dict(), folder / 'larger.pt')
    given = [] if '-i' in arguments else ['-i', '1x5x6']
    assert message in refused(capsys, 'audit', *arguments, *given)


def test_no_pretrained_weights_are_fetched(capsys, folder, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(folder))
    line = refused(capsys, 'audit', 'torchvision:squeezenet1_1', '--pretrained', '-i', '1x3x64x64')
    assert 'nothing is downloaded' in line


def test_pretrained_weights_are_taken_from_the_cache(capsys, folder, monkeypatch):
    from torchvision import models
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(folder))
    (folder / 'checkpoints').mkdir()
    name = models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition('/')[2]
    torch.save(models.squeezenet1_1().state_dict(), folder / 'checkpoints' / name)
    code, printed, _ = run(capsys, 'audit', 'torchvision:squeezenet1_1', '--pretrained', '-i', '1x3x64x64', '-t', '207')
    assert code == 0
    assert 'from the local cache' in printed
    assert 'golden retriever (207)' in printed


def test_random_weights_are_said_to_be_random(capsys):
    printed = run(capsys, 'audit', 'torchvision:squeezenet1_1', '-i', '1x3x64x64')[1]
    assert 'RANDOM' in printed


def test_an_output_of_zero_is_said_to_be_zero(capsys, folder):
    (folder / 'zero.py').write_text('import torch\n\n\ndef zero():\n    layer = torch.nn.Linear(3, 2, bias=False)\n'
                                    '    torch.nn.init.zeros_(layer.weight)\n    return layer\n')
    code, printed, _ = run(capsys, 'audit', 'zero.py:zero', '-i', '1x3')
    assert (code, 'which is 0: there is no relevance' in printed, 'nothing to check' in printed) == (1, True, True)


def test_stabilizer_of_a_composite_is_that_of_its_canonizer(capsys, folder):
    model = ('audit', 'cli_models.py:Attention', '-i', '1x5x6', '--all')
    amounts = [run(capsys, *model, '--composite-set', f'stabilizer={value}')[1] for value in ('1e-9', '0.5')]
    assert amounts[0] != amounts[1]


@pytest.mark.parametrize(('setting', 'message'), [
    ('linear_gamma=a', "linear_gamma must be a number or None, got 'a'"), ('stabilizer=abc', 'not a valid stabilizer')])
def test_settings_of_a_composite_are_checked(capsys, folder, setting, message):
    code, _, error = run(capsys, 'audit', 'cli_models.py:Attention', '-i', '1x5x6', '--composite-set', setting)
    assert code == 2
    assert message in error


def test_debug_shows_where_it_came_from():
    with pytest.raises(UsageError):
        main(['audit', 'nothing', '-i', '1x5x6', '--debug'])


@pytest.mark.parametrize(('arguments', 'message'), [
    (['audit', 'a:b'], 'required'), (['audit', 'a:b', '-i', '1x2', '--tokens', '1x2'], 'not allowed'),
    (['audit', 'a:b', '-i', '1x2', '-c', 'lrp'], 'cp_lrp'), (['audit', 'a:b', '-i', '1x2', '-t', '1,,2'], 'max, last'),
    (['audit', 'a:b', '-i', '1x2', '--set', 'depth'], 'NAME=VALUE'), (['heatmap', 'a:b', '--text', 'a', '--size', 'x'],
                                                                      'is not a size'),
    (['heatmap', 'a:b', '--image', 'a', '--normalize', '1'], 'MEAN,STD'),
    (['heatmap', 'a:b', '--image', 'a', '--normalize', '0,0'], 'positive'), (['list', 'models'], 'composites'),
])
def test_wrong_usage_exits_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert message in capsys.readouterr().err
