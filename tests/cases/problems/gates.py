'''Activations and gates, many of them written by hand.'''
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .registry import CLASSES, DIM, Wrapped, problem


def tanh_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def erf_gelu(x):
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


class HandSwish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@problem('handwritten_gelu')
class HandwrittenGELU(Wrapped):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(DIM, DIM) for _ in range(3))
        self.act = HandSwish()

    def mix(self, x):
        x = x + erf_gelu(self.fc1(x))
        x = x + tanh_gelu(self.fc2(x))
        return self.act(self.fc3(x))


@problem('swiglu')
class SwiGLU(Wrapped):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(DIM, 16), nn.Linear(16, DIM), nn.Linear(DIM, 16)

    def mix(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@problem('glu_variants')
class GLUVariants(Wrapped):
    '''GEGLU by chunk, F.glu, a bilinear unit, squared ReLU and a plain square.'''
    def __init__(self):
        super().__init__()
        self.proj, self.out = nn.Linear(DIM, 2 * DIM), nn.Linear(DIM, DIM)

    def mix(self, x):
        a, gate = self.proj(x).chunk(2, dim=-1)
        y = a * F.gelu(gate) + F.glu(self.proj(x), dim=-1) + a.mul(gate)
        return self.out(y) + F.relu(a) ** 2 + torch.square(gate) * 0.1 + gate * gate


@problem('gated_attention')
class GatedAttention(Wrapped):
    '''Sigmoid gates on the output of the heads (AlphaFold), squeeze-and-excite on the channels.'''
    def __init__(self, heads=3):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.gating, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)
        self.squeeze, self.excite = nn.Linear(DIM, 4), nn.Linear(4, DIM)

    def mix(self, x):
        q, k, v = rearrange(self.to_qkv(x), 'b n (three h d) -> three b h n d', three=3, h=self.heads)
        attn = (q @ k.transpose(-1, -2)).softmax(-1)
        out = rearrange(attn @ v, 'b h n d -> b n (h d)')
        out = self.to_out(out * self.gating(x).sigmoid())
        return out * torch.sigmoid(self.excite(F.relu(self.squeeze(out.mean(1))))).unsqueeze(1)


@problem('recurrent_gates')
class RecurrentGates(Wrapped):
    '''GRU-style cell in a loop, WaveNet's tanh * sigmoid, tanh on the stream and tanh as a gate.'''
    def __init__(self):
        super().__init__()
        self.z, self.r, self.n = (nn.Linear(2 * DIM, DIM) for _ in range(3))
        self.f, self.g, self.t = (nn.Linear(DIM, DIM) for _ in range(3))

    def mix(self, x):
        h, states = x.new_zeros(x.shape[0], DIM), []
        for t in range(x.shape[1]):
            both = torch.cat([x[:, t], h], dim=-1)
            z, r = torch.sigmoid(self.z(both)), self.r(both).sigmoid()
            n = torch.tanh(self.n(torch.cat([x[:, t], r * h], dim=-1)))
            h = (1 - z) * n + z * h
            states.append(h)
        y = torch.stack(states, dim=1)
        y = y + torch.tanh(self.f(y)) * torch.sigmoid(self.g(y))
        return y * torch.tanh(self.t(x)) + torch.tanh(y)


@problem('activations')
class Activations(Wrapped):
    names = ('relu', 'leaky_relu', 'elu', 'selu', 'celu', 'silu', 'gelu', 'mish', 'hardswish', 'softsign', 'tanh',
             'tanhshrink')

    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(len(self.names) + 4))
        self.prelu, self.tanh_gelu = nn.PReLU(DIM), nn.GELU(approximate='tanh')

    def mix(self, x):
        for name, fc in zip(self.names, self.fcs):
            x = x + getattr(F, name)(fc(x))
        x = x + self.prelu(self.fcs[-1](x).transpose(1, 2)).transpose(1, 2) + self.tanh_gelu(self.fcs[-2](x))
        x = x + x.abs().clamp(max=2.0) + F.softplus(self.fcs[-3](x)) * x
        return x + torch.relu(x) + F.hardsigmoid(self.fcs[-4](x)) * x


@problem('inplace_activations', (4, 6, 6))
class InplaceActivations(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(4, dim, 3), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, 1),
                                 nn.BatchNorm2d(dim), nn.SiLU(inplace=True))
        self.conv, self.fc = nn.Conv2d(dim, dim, 1), nn.Linear(dim, CLASSES)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.net(x)
        x = self.relu(self.conv(x) + x)
        y = self.conv(x)
        y.relu_()
        y = F.relu_(y + x) * 0.9 + self.fc.weight.mean()
        F.leaky_relu(y, 0.2, inplace=True)
        return self.fc(y.mean(dim=(2, 3)))
