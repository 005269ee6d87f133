'''The small model that all spellings run inside of, and all weights and modules that they need.'''
import torch
from torch import nn

SAMPLES, TOKENS, WIDTH, HEADS = 2, 6, 12, 3


class Functions(nn.ModuleDict):
    '''Modules without weights by name, which remembers those that were asked for.'''
    def __init__(self, modules):
        super().__init__(modules)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


class Host(nn.Module):
    '''Linear, linear, the code beside a residual, linear, head. The code may write in place to what it is given.'''
    def __init__(self, code):
        super().__init__()
        self.code = code
        for name in ('first', 'before', 'after', 'a', 'b', 'q', 'k', 'v', 'o'):
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 3)
        for name in ('gain', 'bias', 'slope', 'ones'):
            setattr(self, name, nn.Parameter(torch.randn(WIDTH)))
        self.scalar, self.shift = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(1))
        self.down, self.up = nn.Parameter(torch.randn(WIDTH, 4)), nn.Parameter(torch.randn(4, WIDTH))
        self.score = nn.Linear(WIDTH, 1)
        self.register_buffer('mean', torch.randn(WIDTH))
        self.register_buffer('variance', torch.rand(WIDTH) + .5)
        self.register_buffer('mask', torch.rand(TOKENS, TOKENS) > .4)
        self.mask.fill_diagonal_(True)
        self.register_buffer('positions', torch.randn(HEADS, TOKENS, TOKENS))
        self.register_buffer('angles', torch.randn(TOKENS, WIDTH // 2))
        self.make_modules()

    def __getattr__(self, name):
        self.__dict__.setdefault('used', set()).add(name)
        return super().__getattr__(name)

    def drop_unused(self):
        '''Leave only modules that the code has asked for, so that a context has little to do.'''
        for used, module in ((set(self.used), self), (set(self.functions.used), self.functions)):
            for name in [name for name, _ in module.named_children() if name not in used]:
                delattr(module, name)

    def make_modules(self):
        '''Modules, with the weights that the code in other words has.'''
        self.layer_norm, self.rms_norm = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH, eps=1e-5)
        self.group_norm = nn.GroupNorm(3, WIDTH)
        self.batch_norm, self.instance_norm = nn.BatchNorm1d(WIDTH), nn.InstanceNorm1d(WIDTH, affine=True)
        for norm in (self.layer_norm, self.group_norm, self.batch_norm, self.instance_norm):
            norm.weight, norm.bias = self.gain, self.bias
        self.rms_norm.weight = self.gain
        self.batch_norm.running_mean, self.batch_norm.running_var = self.mean, self.variance
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.bilinear = nn.Bilinear(WIDTH, WIDTH, WIDTH)
        self.lstm, self.gru, self.rnn = (kind(WIDTH, WIDTH, batch_first=True) for kind in (nn.LSTM, nn.GRU, nn.RNN))
        self.lstm_cell, self.gru_cell, self.rnn_cell = (
            self.cell(kind, net) for kind, net in ((nn.LSTMCell, self.lstm), (nn.GRUCell, self.gru),
                                                   (nn.RNNCell, self.rnn)))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat([self.q.weight, self.k.weight, self.v.weight]))
            self.attention.in_proj_bias.copy_(torch.cat([self.q.bias, self.k.bias, self.v.bias]))
            self.attention.out_proj.weight.copy_(self.o.weight)
            self.attention.out_proj.bias.copy_(self.o.bias)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.router = nn.Linear(WIDTH, 3)
        self.functions = Functions({
            'relu': nn.ReLU(), 'relu in place': nn.ReLU(inplace=True), 'leaky': nn.LeakyReLU(.1), 'gelu': nn.GELU(),
            'gelu tanh': nn.GELU(approximate='tanh'), 'silu': nn.SiLU(), 'silu in place': nn.SiLU(inplace=True),
            'mish': nn.Mish(), 'hardswish': nn.Hardswish(), 'hardsigmoid': nn.Hardsigmoid(), 'tanh': nn.Tanh(),
            'hardtanh': nn.Hardtanh(), 'relu6': nn.ReLU6(), 'elu': nn.ELU(), 'selu': nn.SELU(), 'glu': nn.GLU(),
            'softmax': nn.Softmax(-1), 'sigmoid': nn.Sigmoid(), 'softplus': nn.Softplus(), 'softsign': nn.Softsign(),
            'threshold': nn.Threshold(0., 0.), 'identity': nn.Identity(), 'mean': nn.AdaptiveAvgPool1d(1),
            'max': nn.AdaptiveMaxPool1d(1), 'log_softmax': nn.LogSoftmax(-1), 'cosine': nn.CosineSimilarity(-1),
            'flatten': nn.Flatten(-2), 'dropout': nn.Dropout(), 'celu': nn.CELU(), 'softshrink': nn.Softshrink(),
        })

    @staticmethod
    def cell(kind, net):
        cell = kind(WIDTH, WIDTH)
        for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'):
            setattr(cell, name, getattr(net, f'{name}_l0'))
        return cell

    def forward(self, x):
        x = self.first(x)
        x = x + self.code(self, self.before(x))
        return self.head(self.after(x))


def build(code):
    '''The host of some code, and an input.'''
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        host = Host(code).double().eval()
        x = torch.randn(SAMPLES, TOKENS, WIDTH, dtype=torch.float64)
        host.used.clear()
        host(x.clone())
        host.drop_unused()
    return host, x
