'''The command line: what it prints, writes and returns, for models that are right, unsupported, wrong and absent.'''
import argparse
import io
import re
import shlex
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from zennit.composites import COMPOSITES

from zennit_attn.__main__ import _parser, main
from zennit_attn.cli.inputs import normalized
from zennit_attn.cli.models import Loaded
from zennit_attn.cli.progress import Progress
from zennit_attn.cli.targets import describe, indices, parse_target, relevance_of, select
from zennit_attn.cli.usage import UsageError, parse_setting, parse_size
from zennit_attn.operators import REASONS

MODELS = '''
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim=6, classes=3):
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, classes)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out((q @ k.mT).softmax(dim=-1) @ v).mean(1)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Cell(nn.Module):
    def forward(self, x):
        return torch.matrix_exp(.1 * x)


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.cell = nn.Linear(6, 6), Cell()

    def forward(self, x):
        x = Double.apply(self.fc(x))
        x = torch.matrix_exp(x)  # the line
        return self.cell(x)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Attention()

    def forward(self, x, y):
        return {'first': self.model(x), 'second': self.model(y)}


class Words(nn.Module):
    def __init__(self, rows=256, every=False):
        super().__init__()
        self.words, self.model = nn.Embedding(rows, 6), Attention()
        self.every = every

    def forward(self, ids):
        x = self.words(ids)
        return self.model.to_out(x) if self.every else self.model(x)


def picture(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def constant():
    return nn.Sequential(nn.Linear(6, 3), nn.Softmax(dim=-1))


def gated():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(dim=-1))


def scalar():
    class Sum(nn.Module):
        def forward(self, x):
            return x.sum()
    return Sum()


def overflows():
    class Divide(nn.Module):
        def forward(self, x):
            return x / (x - x)
    return Divide()


def fails():
    raise RuntimeError('the first line\\nthe second')


ready = Attention()
number = 3


def three():
    return 3
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    '''A folder with the models, in which the commands run.'''
    (tmp_path / 'cli_models.py').write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    sys.modules.pop('cli_models', None)
    sys.modules.pop('zennit_attn_cli_cli_models', None)


def run(capsys, *arguments):
    '''Return the exit code, what was printed and what was complained about.'''
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments, code=2):
    '''Return the one line of an error.'''
    result, printed, complaint = run(capsys, *arguments)
    assert (result, printed) == (code, '')
    line, = complaint.splitlines()
    assert line.startswith('zennit-attn: error: ')
    return line


# ---- help ------------------------------------------------------------------------------------------------------------

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


# ---- audit -----------------------------------------------------------------------------------------------------------

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
    (['audit', 'a:b', '-i', '1x2', '-c', 'lrp'], 'cp_lrp'), (['audit', 'a:b', '-i', '1x2', '-t', 'best'], 'max, last'),
    (['audit', 'a:b', '-i', '1x2', '--set', 'depth'], 'NAME=VALUE'), (['heatmap', 'a:b', '--text', 'a', '--size', 'x'],
                                                                      'is not a size'),
    (['heatmap', 'a:b', '--image', 'a', '--normalize', '1'], 'MEAN,STD'),
    (['heatmap', 'a:b', '--image', 'a', '--normalize', '0,0'], 'positive'), (['list', 'models'], 'composites'),
])
def test_wrong_usage_exits_with_2(capsys, arguments, message):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert message in capsys.readouterr().err


# ---- heatmap ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def photo(folder):
    '''An image file of 20 x 30 pixels.'''
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'photo.png')
    return 'photo.png'


@pytest.mark.parametrize('extra', [
    [], ['-c', 'cp_lrp', '-c', 'attn_lrp_gamma'], ['--patches', '4'], ['--patches', '8x4', '--own-scale'],
    ['--normalize', '0.5,0.25', '--ledger', 'ledger.pdf'],
])
def test_heatmap_of_an_image(capsys, folder, photo, extra):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:picture', '--image', photo, '--size', '16', *extra,
                                   '-o', 'out/heatmap.png')
    assert (code, complaint) == (0, '')
    assert 'input    1x3x16x16 float64' in printed
    assert printed.count('unaccounted') == 1 + ('attn_lrp_gamma' in extra)
    with Image.open(folder / 'out' / 'heatmap.png') as picture:
        assert picture.width > picture.height > 100
    assert (folder / 'ledger.pdf').exists() == ('--ledger' in extra)


def test_grey_images(capsys, photo):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:picture', '--set', 'channels=1', '--image', photo, '--size',
                           '16')
    assert (code, '1x1x16x16' in printed, 'written to heatmap.png' in printed) == (0, True, True)


def test_images_are_normalized():
    loaded, options = Loaded(None, '', mean=(.5, 0., 1.), std=(1., 2., 4.)), argparse.Namespace(normalize=None)
    image = torch.tensor([1., 1., 1.])[:, None, None]
    assert normalized(image, loaded, options).flatten().tolist() == [.5, .5, 0.]
    options.normalize = (.5,), (.25,)
    assert normalized(image, loaded, options).flatten().tolist() == [2., 2., 2.]


def test_heatmap_of_a_text_on_the_terminal(capsys):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>', '-c', 'cp_lrp', '-c',
                                   'attn_lrp')
    assert (code, complaint) == (0, '')
    plain = re.sub('\x1b\\[[0-9;]*m', '', printed)
    assert plain.splitlines()[-4].startswith('cp_lrp, unaccounted ')
    assert [plain.splitlines()[-3], plain.splitlines()[-1]] == ['a <b>', 'a <b>']


@pytest.mark.parametrize('name', ['text.html', 'text.png', 'text.svg'])
def test_heatmap_of_a_text_in_a_file(capsys, folder, name):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:Words', '--text', 'a <b>é', '-o', name)
    assert (code, f'written to {name}' in printed) == (0, True)
    if name.endswith('.html'):
        page = (folder / name).read_text(encoding='utf-8')
        assert page.startswith('<!DOCTYPE html>')
        assert '&lt;' in page
        assert '<b>é' not in page


def test_texts_are_explained_at_their_last_token(capsys):
    code, printed, _ = run(capsys, 'heatmap', 'cli_models:Words', '--set', 'every=True', '--text', 'abcd')
    assert code == 0
    assert re.search(r'target   3,\d of output 1x4x3', printed)


@pytest.mark.parametrize(('arguments', 'message'), [
    (['cli_models:picture', '--image', 'absent.png'], 'there is no image absent.png'),
    (['cli_models:picture', '--image', 'cli_models.py'], 'is no image that can be read'),
    (['cli_models:picture', '--image', 'photo.png'], 'the model does not take this input (1x3x20x30'),
    (['cli_models:picture', '--image', 'photo.png', '--size', '16', '--patches', '5'], '--patches: Patches of 5 x 5'),
    (['cli_models:picture', '--image', 'photo.png', '-o', 'heatmap.html'], 'has to end in .png, .pdf, .svg'),
    (['cli_models:picture', '--text', 'words'], 'has 0 embeddings (none)'),
    (['cli_models:Words', '--text', ''], 'the text is empty'),
    (['cli_models:Words', '--text', 'words', '--set', 'rows=90'], 'too few for the bytes'),
    (['cli_models:Words', '--text', 'words', '--embedding', 'word'], "no module 'word'; did you mean words"),
])
def test_heatmaps_that_can_not_be(capsys, photo, arguments, message):
    assert message in refused(capsys, 'heatmap', *arguments)


def test_heatmap_of_what_is_not_supported(capsys, photo):
    code, printed, complaint = run(capsys, 'heatmap', 'cli_models:gated', '--image', photo, '--size', '2')
    assert (code, printed) == (1, '')
    assert complaint.startswith('zennit-attn: error: the output of Sequential carries no relevance')


# ---- list ------------------------------------------------------------------------------------------------------------

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


# ---- targets, settings, progress -------------------------------------------------------------------------------------

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


# ---- published models ------------------------------------------------------------------------------------------------

@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_models_of_timm(capsys, folder, photo):
    pytest.importorskip('timm', reason='timm is not installed (see the extra zoo in pyproject.toml)')
    settings = [part for text in ('img_size=32', 'embed_dim=24', 'depth=1', 'num_heads=3') for part in ('--set', text)]
    model = ['timm:vit_tiny_patch16_224', *settings]
    code, printed, complaint = run(capsys, 'heatmap', *model, '--image', photo, '--patches', '16')
    assert (code, 'input    1x3x32x32' in printed, 'random' in complaint) == (0, True, True)
    assert run(capsys, 'audit', *model, '-i', '2x3x32x32', '-c', 'attn_lrp')[0] == 0
    assert 'did you mean' in refused(capsys, 'audit', 'timm:vit_tiny_patch16_225', '-i', '1x3x32x32')
    assert 'nothing is downloaded' in refused(capsys, 'audit', *model, '--pretrained', '-i', '1x3x32x32')


@pytest.fixture
def saved(folder):
    '''Folders of small language models with their tokenizer, as transformers saves them.'''
    transformers = pytest.importorskip(
        'transformers', reason='transformers is not installed (see the extra zoo in pyproject.toml)')
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = {word: index for index, word in enumerate('[UNK] what a good film bad very'.split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]')
    bert = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        id2label={0: 'negative', 1: 'positive'}, label2id={'negative': 0, 'positive': 1})
    gpt = transformers.GPT2Config(vocab_size=len(words), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    for name, model in (('bert', transformers.BertForSequenceClassification(bert)),
                        ('gpt', transformers.GPT2LMHeadModel(gpt))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_models_of_transformers(capsys, saved):
    capsys.readouterr()
    code, printed, _ = run(capsys, 'heatmap', 'transformers:bert', '--text', 'what a good film', '-t', '1')
    assert (code, 'target   positive (1)' in printed) == (0, True)
    assert re.sub('\x1b\\[[0-9;]*m', '', printed).splitlines()[-1] == 'what a good film'
    code, printed, _ = run(capsys, 'heatmap', 'transformers:gpt', '--text', 'what a good', '-o', 'gpt.png')
    assert code == 0
    assert re.search(r"target   '[^']+' \(2,\d\) of output 1x3x7", printed)
    assert run(capsys, 'audit', 'transformers:./gpt', '--tokens', '2x4')[0] == 0
    assert 'nothing is downloaded' in refused(capsys, 'audit', 'transformers:nowhere/at-all', '--tokens', '1x4')
    assert 'knows nothing of' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'zzz qqq')
    assert 'finds no tokenizer' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'a', '--tokenizer', 'none')
