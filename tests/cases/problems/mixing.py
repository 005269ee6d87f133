'''Windows, rotations, Fourier mixing, stems.'''
import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import einsum, nn

from .registry import CLASSES, DIM, TOKENS, Wrapped, problem


@problem('shifted_windows', (6, 6, 4))
class ShiftedWindows(nn.Module):
    '''Swin: pad, roll, partition, a table of biases, a mask written by slices, ``F.linear`` with a child's weights.'''
    def __init__(self, dim=8, heads=2, window=4, shift=2):
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.qkv, self.proj, self.fc = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, CLASSES)
        self.heads, self.window, self.shift = heads, window, shift
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        steps = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing='ij')).flatten(1)
        offset = (steps[:, :, None] - steps[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer('index', (offset[..., 0] * (2 * window - 1) + offset[..., 1]).view(-1))

    def windows(self, x):
        b, h, w, c = x.shape
        x = x.view(b, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window ** 2, c)

    def mask(self, x, h, w):
        img = x.new_zeros((h, w))
        cuts = ((0, -self.window), (-self.window, -self.shift), (-self.shift, None))
        for i, rows in enumerate(cuts):
            for j, cols in enumerate(cuts):
                img[rows[0]:rows[1], cols[0]:cols[1]] = 3 * i + j
        img = self.windows(img.view(1, h, w, 1)).squeeze(-1)
        diff = img.unsqueeze(1) - img.unsqueeze(2)
        return diff.masked_fill(diff != 0, float(-100.0)).masked_fill(diff == 0, float(0.0))

    def attend(self, x, h, w):
        n, length, c = x.shape
        qkv = F.linear(x, self.qkv.weight, self.qkv.bias).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * (c // self.heads) ** -0.5).matmul(k.transpose(-2, -1))
        attn = attn + self.table[self.index].view(length, length, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        mask = self.mask(x, h, w)
        attn = attn.view(n // len(mask), len(mask), self.heads, length, length) + mask.unsqueeze(1).unsqueeze(0)
        attn = F.softmax(attn.view(-1, self.heads, length, length), dim=-1)
        x = attn.matmul(v).transpose(1, 2).reshape(n, length, c)
        return F.dropout(F.linear(x, self.proj.weight, self.proj.bias), p=0.1, training=self.training)

    def forward(self, x):
        x = shortcut = self.embed(x)
        b, height, width, c = x.shape
        extra = (self.window - height % self.window) % self.window
        x = F.pad(x, (0, 0, 0, extra, 0, extra))
        h, w = x.shape[1:3]
        x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.attend(self.windows(x), h, w)
        x = x.view(b, h // self.window, w // self.window, self.window, self.window, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))[:, :height, :width, :].contiguous()
        return self.fc((shortcut + x).flatten(1, 2).mean(1))


@problem('local_windows')
class LocalWindows(Wrapped):
    '''Local attention that looks one window back: pad, unfold, a masked score for the padding.'''
    def __init__(self, window=2):
        super().__init__()
        self.window, self.to_qkv = window, nn.Linear(DIM, 3 * DIM)

    def mix(self, x):
        q, k, v = self.to_qkv(x).split([DIM, DIM, DIM], dim=-1)
        q = rearrange(q, 'b (w n) d -> b w n d', n=self.window)
        k, v = (F.pad(t, (0, 0, self.window, 0), value=-1.).unfold(1, 2 * self.window, self.window) for t in (k, v))
        scores = einsum('bwid,bwdj->bwij', q, k)
        scores = scores.masked_fill(torch.arange(2 * self.window) % 3 == 1, -torch.finfo(x.dtype).max)
        return einsum('bwij,bwdj->bwid', scores.softmax(-1), v).reshape(x.shape)


def rotate_half(x):
    x1, x2 = x[..., :x.shape[-1] // 2], x[..., x.shape[-1] // 2:]
    return torch.cat((-x2, x1), dim=-1)


def rotate_every_two(x):
    x1, x2 = rearrange(x, '... (d j) -> ... d j', j=2).unbind(dim=-1)
    return rearrange(torch.stack((-x2, x1), dim=-1), '... d j -> ... (d j)')


@problem('rotary')
class Rotary(Wrapped):
    def __init__(self, heads=2):
        super().__init__()
        self.heads, self.d = heads, DIM // heads + DIM // heads % 2
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.register_buffer('inv_freq', 1.0 / (100 ** (torch.arange(0, self.d, 2).float() / self.d)))

    def mix(self, x):
        q, k, v = map(lambda t: rearrange(t, 'b n (h d) -> b h n d', h=self.heads), self.to_qkv(x).chunk(3, dim=-1))
        freqs = torch.outer(torch.arange(x.shape[1]).type_as(self.inv_freq), self.inv_freq)
        cos, sin = torch.cat((freqs, freqs), dim=-1).cos(), torch.cat((freqs, freqs), dim=-1).sin()
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        cos, sin = (repeat(t, 'n d -> n (d j)', j=2) for t in (freqs.cos(), freqs.sin()))
        v = (v * cos) + rotate_every_two(v) * sin
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, 'b h n d -> b n (h d)'))


@problem('complex_rotary')
class ComplexRotary(Wrapped):
    '''Rotary positions as complex numbers (Llama's reference code).'''
    def __init__(self):
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))

    def rotate(self, t):
        turns = torch.polar(torch.ones(TOKENS, DIM // 2, dtype=t.dtype),
                            torch.outer(torch.arange(TOKENS).to(t.dtype), torch.linspace(0.1, 1, DIM // 2).to(t.dtype)))
        pairs = torch.view_as_complex(t.reshape(*t.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    def mix(self, x):
        q, k, v = self.rotate(self.wq(x)), self.rotate(self.wk(x)), self.rotate(self.wv(x))
        return torch.matmul(F.softmax(q @ k.transpose(1, 2) / math.sqrt(DIM), dim=-1), v)


@problem('fnet')
class FNet(Wrapped):
    '''Fourier mixing (FNet) and a global filter with complex weights (GFNet).'''
    def __init__(self):
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        self.complex_weight = nn.Parameter(torch.randn(TOKENS // 2 + 1, DIM, 2) * 0.2)

    def mix(self, x):
        x = self.norm(torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real * 0.2 + x)
        y = torch.fft.rfft(x, dim=1, norm='ortho') * torch.view_as_complex(self.complex_weight)
        y = torch.fft.irfft(y, n=x.shape[1], dim=1, norm='ortho')
        return F.gelu(self.ff(y)) + torch.fft.fftn(y, dim=(1, 2)).real * 0.1


@problem('conv_stem', (3, 12, 12))
class ConvStem(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.conv1, self.pool = nn.Conv2d(3, dim, 5, stride=2, padding=2), nn.MaxPool2d(3, stride=1, padding=1)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, padding_mode='reflect')
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv1d, self.fc = nn.Conv1d(dim, dim, 3), nn.Linear(dim, CLASSES)
        self.upsample = nn.Upsample(scale_factor=1.5, mode='nearest')

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = x + F.hardswish(self.depthwise(x))
        y = F.interpolate(x, size=(9, 9), mode='bilinear', align_corners=False)
        y = F.avg_pool2d(self.up(y), 2) + self.upsample(x)
        y = y + F.conv2d(y, self.conv1.weight[:, :1].expand(-1, y.shape[1], -1, -1), padding=2, bias=self.conv1.bias)
        y = F.adaptive_avg_pool2d(y, 4) + F.adaptive_max_pool2d(y, (4, 4))
        y = self.conv1d(F.max_pool2d(y, 2).flatten(2))
        shuffled = F.pixel_shuffle(y.repeat(1, 4, 1)[:, :, :, None], 2)[..., 0]
        y = F.interpolate(y, scale_factor=2, mode='linear') + shuffled
        return self.fc(y.amax(dim=-1))


@problem('unfold_fold', (3, 8, 8))
class UnfoldFold(nn.Module):
    '''Tokens-to-token: nn.Unfold, attention over patches, F.fold back.'''
    def __init__(self):
        super().__init__()
        self.unfold, self.fc = nn.Unfold(4, stride=2, padding=1), nn.Linear(48, 48)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = self.unfold(x).transpose(1, 2)
        x = x + torch.softmax(x @ x.transpose(1, 2) * 0.1, dim=-1) @ self.fc(x)
        return self.head(F.fold(x.transpose(1, 2), (8, 8), 4, stride=2, padding=1).mean((-1, -2)))
