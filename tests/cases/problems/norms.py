'''Normalizers, written by hand and of the library.'''
import torch
import torch.nn.functional as F
from torch import nn

from .registry import CLASSES, DIM, Wrapped, problem


class ScaleShift(nn.Module):
    def __init__(self, dim=DIM, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.g, self.b = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))


class VarNorm(ScaleShift):
    def forward(self, x):
        var = torch.var(x, dim=-1, unbiased=False, keepdim=True)
        mean = torch.mean(x, dim=-1, keepdim=True)
        return (x - mean) * (var + self.eps).rsqrt() * self.g + self.b


class SqrtNorm(ScaleShift):
    def forward(self, x):
        mu = x.mean(-1, keepdim=True)
        s = (x - mu).pow(2).mean(-1, keepdim=True)
        return self.g * ((x - mu) / torch.sqrt(s + self.eps)) + self.b


class StdNorm(ScaleShift):
    def forward(self, x):
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.g * (x - mean) / (std + self.eps) + self.b


class PowRMSNorm(ScaleShift):
    def forward(self, x):
        return self.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class NormRMSNorm(ScaleShift):
    def forward(self, x):
        return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5).clamp(min=self.eps) * self.g


@problem('handwritten_norms')
class HandwrittenNorms(Wrapped):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(cls() for cls in (VarNorm, SqrtNorm, StdNorm, PowRMSNorm, NormRMSNorm))
        self.fcs = nn.ModuleList(nn.Linear(DIM, DIM) for _ in self.norms)

    def mix(self, x):
        for norm, fc in zip(self.norms, self.fcs):
            x = x + F.relu(fc(norm(x)))
        return x


@problem('library_norms')
class LibraryNorms(Wrapped):
    def __init__(self):
        super().__init__()
        self.rms, self.ln = nn.RMSNorm(DIM), nn.LayerNorm(DIM, elementwise_affine=False)
        self.w, self.b = nn.Parameter(torch.ones(DIM)), nn.Parameter(torch.zeros(DIM))
        self.fc = nn.Linear(DIM, DIM)

    def mix(self, x):
        y = F.gelu(self.fc(self.rms(x)))
        y = y + F.rms_norm(x, (DIM,)) + F.layer_norm(x, (DIM,), weight=self.w, bias=self.b)
        return self.ln(y) + F.normalize(y, dim=-1) + F.normalize(self.fc(y), p=1.0, dim=1)


@problem('conv_norms', (4, 6, 6))
class ConvNorms(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(4, dim, 3), nn.BatchNorm2d(dim)
        self.gn, self.inorm = nn.GroupNorm(4, dim), nn.InstanceNorm2d(dim, affine=True)
        self.conv2, self.bn1 = nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm1d(dim)
        self.fc = nn.Linear(dim, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.conv1(x)))
        x = x + F.silu(self.gn(self.conv2(x)))
        x = x + self.inorm(x)
        x = F.group_norm(x, 2) + F.instance_norm(x)
        return self.fc(self.bn1(x.flatten(2)).mean(-1))
