'''How a pasted problem is entered and built, and what many of them have around their attention.'''
from collections import namedtuple

import torch
from torch import nn

Problem = namedtuple('Problem', ['cls', 'shape'])
PROBLEMS = {}
BATCH = 3
TOKENS, DIM, CLASSES = 6, 12, 5


def problem(name, shape=(TOKENS, DIM)):
    '''Enter a module class as the problem ``name`` with inputs of ``shape``.'''
    def enter(cls):
        assert name not in PROBLEMS
        PROBLEMS[name] = Problem(cls, shape)
        return cls
    return enter


def perturb(model, seed):
    '''Move every parameter and every running statistic of ``model`` away from where it was initialised.'''
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor, scale):
        return scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for param in model.parameters():
            param += noise(param, 0.3 if param.ndim <= 1 else 0.08)
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer += noise(buffer, 0.3)
            if name.endswith('running_var'):
                buffer.copy_((0.5 + noise(buffer, 0.5).abs()))


def build(name, batch=BATCH, seed=0):
    '''The float64 model of problem ``name`` in eval mode and a batch of inputs, one pixel of each exactly 0.'''
    cls, shape = PROBLEMS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls().double().eval()
        input = torch.randn(batch, *shape, dtype=torch.float64)
    input.view(batch, -1)[:, 3] = 0.
    perturb(model, seed + 1)
    return model, input


class Head(nn.Module):
    '''Mean over the tokens and a linear classifier.'''
    def __init__(self, dim=DIM, classes=CLASSES):
        super().__init__()
        self.fc = nn.Linear(dim, classes)

    def forward(self, x):
        return self.fc(x.mean(dim=1))


class Wrapped(nn.Module):
    '''Linear embedding, what the subclass does in ``mix`` and the residual around it, head.'''
    def __init__(self, dim=DIM):
        super().__init__()
        self.embed = nn.Linear(DIM, dim)
        self.head = Head(dim)

    def mix(self, x):
        raise NotImplementedError

    def forward(self, x):
        x = self.embed(x)
        return self.head(x + self.mix(x))


def zero_additive(model, names=('bias', 'pos_embedding', 'cls_token')):
    '''Set every parameter that is added to the stream, known by the end of its name, to zero.'''
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(names):
                param.zero_()
    return model
