'''Models that are right, unsupported and wrong, and how to run the command line on them.'''
from zennit_attn.__main__ import main

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


class Recurrence(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        memory, outs = 0., []
        for i in range(x.shape[1]):
            memory = memory + k[:, i, :, None] * v[:, i, None]
            outs.append((q[:, i, None] @ memory)[:, 0])
        return torch.stack(outs, 1)


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


def one():
    return nn.Sequential(Attention(classes=1), nn.Flatten(0))


def gated():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(dim=-1))


def refused():
    return nn.Sequential(Cell(), nn.Flatten(), nn.Linear(12, 3))


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


def run(capsys, *arguments):
    '''Return the exit code, what was printed and what was complained about.'''
    code = main(list(map(str, arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments, code=2, start='zennit-attn: error: '):
    '''Return the one line of an error.'''
    result, printed, complaint = run(capsys, *arguments)
    assert (result, printed) == (code, '')
    assert complaint.startswith(start)
    line, = complaint.removeprefix(start).splitlines()
    return line
