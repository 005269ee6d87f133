'''Code beside the same in other words, where mistakes were found by looking for them.'''
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_upper_left

from versions import since

MASK = torch.tensor([[1, 0, 0, 1, 0]], dtype=torch.bool).expand(5, 5)


class Host(nn.Module):
    '''Linear, the code beside a residual, classifier.'''
    def __init__(self, code):
        super().__init__()
        self.code = code
        self.fc, self.fc2, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.relu, self.inner = nn.ReLU(inplace=True), Inner()
        self.v = nn.Parameter(torch.randn(12))
        self.register_buffer('pos', torch.randn(1, 5, 12))

    def forward(self, x):
        y = self.fc(x)
        return self.head((y + self.code(self, y)).mean(dim=1))


class Inner(nn.Module):
    '''A module with code of its own, over whose children others walk.'''
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        return self.second(self.first(x).softmax(-1) * x)


def build(code):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Host(code).double().eval(), torch.randn(3, 5, 12, dtype=torch.float64)


def reversed_list(m, y):
    parts = [m.fc2(y), y]
    z = torch.stack(parts, 2)
    parts.reverse()
    return m.fc2(z.sum(2) - 2 * z[:, :, 1])


def moved_index(m, y):
    index = [0, 1, 2, 3, 4]
    z = m.fc2(y)[:, index]
    index.reverse()
    return m.fc2(z)


def before_activation(m, y):
    z = m.fc2(y)
    return z + m.fc(m.relu(z))


def walked(m, y):
    for _, child in m.inner.named_children():
        y = child(y)
    return y * len(list(m.inner.modules())) + list(m.inner.children())[-1](y)


def written(buffer, view, y):
    view(buffer).add_(y)
    return buffer


def foreign(m, y):
    weight = nn.Parameter(torch.ones(12, dtype=y.dtype))
    weight.data = torch.full((12,), 2., dtype=y.dtype)
    return y * weight


def overwritten(m, y):
    scores = y @ y.mT
    weights = scores.softmax(-1)
    scores.zero_()
    return weights @ y


def built(module, seed=0):
    '''Run a module that is built, and draws its weights, in the forward.'''
    def run(m, y):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return module()(m.fc2(y))
    return run


def linear(m, y):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Linear(12, 12).double()
    return F.linear(m.fc2(y), module.weight.detach(), module.bias.detach())


def spectrum_in_place(view):
    '''Write into a real view of a complex tensor.'''
    def run(m, y):
        z = torch.fft.fft(m.fc2(y), dim=1)
        view(z).add_(y).add_(m.pos)
        return z.real + z.imag
    return run


def expanded_in_place(m, y):
    z = torch.zeros(3, 1, 12, dtype=y.dtype).expand(3, 5, 12)
    z[:, 0] = y[:, 0]
    return z + y


def in_place(steps, times=True):
    '''Run steps that write to a tensor, and return the result times another, or plus it.'''
    def run(m, y):
        z = steps(m.fc2(y), y)
        return z * y if times else z + y
    return run


def seen_before(z, y):
    view = z.view(3, 5, 2, 6)
    z.sigmoid_()
    return view.flatten(2)


def half_gate(z, y):
    z[..., :6].sigmoid_()
    return z


def gate_of_rows(m, y):
    z = y @ m.fc2(y).mT
    for row in range(5):
        z[:, row].exp_()
    return z @ y


def written_again(z, y):
    first = z[..., :6]
    first.sigmoid_()
    z[..., :1].copy_(y[..., :1])
    return torch.cat([first, z[..., 6:]], -1)


def zeros_filled(z, y):
    z.zero_()
    z[:, 1].add_(y[:, 1])
    return z


def filled_by_rows(z, y):
    z.fill_(0.)
    for row in range(5):
        z[:, row].copy_(y[:, :row + 1].sum(1))
    return z


def diagonal_filled(m, y):
    z = (y @ m.fc2(y).mT).fill_(0.)
    z.diagonal(dim1=1, dim2=2).copy_(y[:, :, 0])
    return z @ y


def gate_added_to(z, y):
    z.sigmoid_()
    z[..., :6].add_(y[..., :6])
    return z


def softmax_assigned(m, y):
    scores = y @ m.fc2(y).mT
    scores[:] = scores.softmax(-1)
    return scores @ y


HALF = torch.arange(12) < 6

# Each with the same in other words.
PAIRS = {
    'overwritten, a slice written': (in_place(zeros_filled, times=False), lambda m, y: torch.zeros_like(y).index_add(
        1, torch.tensor([1]), y[:, 1:2]) + y),
    'overwritten, rows written': (in_place(filled_by_rows, times=False), lambda m, y: y.cumsum(1) + y),
    'overwritten, a diagonal written': (diagonal_filled, lambda m, y: torch.diag_embed(y[:, :, 0]) @ y),
    'gate in place, a slice written': (
        in_place(gate_added_to, times=False), lambda m, y: (lambda z: torch.cat(
            [z[..., :6] + y[..., :6], z[..., 6:]], -1))(m.fc2(y).sigmoid()) + y),
    'view of what became a gate': (in_place(seen_before), lambda m, y: m.fc2(y).sigmoid() * y),
    'half a gate in place, plus': (in_place(half_gate, times=False), lambda m, y: (
        lambda z: torch.cat([z[..., :6].sigmoid(), z[..., 6:]], -1))(m.fc2(y)) + y),
    'half a gate in place, times': (in_place(half_gate), lambda m, y: (lambda z: torch.cat(
        [z[..., :6].sigmoid() * y[..., :6], z[..., 6:] * y[..., 6:]], -1))(m.fc2(y))),
    'rows that become gates': (gate_of_rows, lambda m, y: (y @ m.fc2(y).mT).exp() @ y),
    'a gate that is written to again': (in_place(written_again), lambda m, y: (lambda z: torch.cat(
        [y[..., :1] * y[..., :1], z[..., 1:6].sigmoid() * y[..., 1:6], z[..., 6:] * y[..., 6:]], -1))(m.fc2(y))),
    'softmax assigned to its scores': (softmax_assigned, lambda m, y: (y @ m.fc2(y).mT).softmax(-1) @ y),
    'gate and values in one tensor': (lambda m, y: (lambda gate, value: gate * value)(*torch.cat(
        [m.fc2(y).sigmoid(), y], -1).chunk(2, -1)), lambda m, y: m.fc2(y).sigmoid() * y),
    'ones where a mask is': (lambda m, y: torch.where(HALF, m.fc2(y), 1.) * y, lambda m, y: torch.cat(
        [m.fc2(y)[..., :6] * y[..., :6], y[..., 6:]], -1)),
    'padded with a number': (lambda m, y: -F.pad(m.fc2(y)[..., 1:], (1, 0), value=.5) * y, lambda m, y: torch.cat(
        [-.5 * y[..., :1], -m.fc2(y)[..., 1:] * y[..., 1:]], -1)),
    'constants in both factors': (
        lambda m, y: F.pad(m.fc2(y)[..., 1:], (1, 0), value=.5) * F.pad(y[..., :11], (0, 1), value=.3),
        lambda m, y: torch.cat([.5 * y[..., :1], m.fc2(y)[..., 1:11] * y[..., 1:11], .3 * m.fc2(y)[..., 11:]], -1)),
    'constants in an outer product': (
        lambda m, y: torch.einsum('bnd,bn->bnd', torch.where(HALF, m.fc2(y), 1.), y[..., 0]),
        lambda m, y: torch.where(HALF, m.fc2(y), 1.) * y[..., :1]),
    'list reversed': (reversed_list, lambda m, y: m.fc2(m.fc2(y) - y)),
    'index reversed': (moved_index, lambda m, y: m.fc2(m.fc2(y) * 1)),
    'gate in place, masked': (lambda m, y: (y @ m.fc2(y).mT).exp_().masked_fill_(MASK, 0.) @ y,
                              lambda m, y: (y @ m.fc2(y).mT).exp().masked_fill(MASK, 0.) @ y),
    'gate in place, times': (lambda m, y: m.fc2(y).sigmoid_().mul_(y), lambda m, y: m.fc2(y).sigmoid() * y),
    'gate in place, plus': (lambda m, y: m.fc2(y).sigmoid_().add_(y), lambda m, y: m.fc2(y).sigmoid() + y),
    'gate in place, unsqueezed': (lambda m, y: (m.fc2(y).sigmoid_().unsqueeze_(-1) * y[..., None])[..., 0],
                                  lambda m, y: m.fc2(y).sigmoid() * y),
    'filled': (lambda m, y: m.fc2(y).fill_(.5) * y, lambda m, y: torch.full_like(y, .5) * y),
    'copied': (lambda m, y: m.fc2(y).copy_(m.v) * y, lambda m, y: m.v * y),
    'tanh in place, scaled': (lambda m, y: torch.tanh(m.fc2(y)).mul_(.5).add_(.5) * y,
                              lambda m, y: (torch.tanh(m.fc2(y)) * .5 + .5) * y),
    'hard-swish by hand': (lambda m, y: (lambda z: z * F.relu6(z + 3) / 6)(m.fc2(y)) + y,
                           lambda m, y: F.hardswish(m.fc2(y)) + y),
    'hard-swish by a clamp': (lambda m, y: (lambda z: z * (z / 6 + .5).clamp(0, 1))(m.fc2(y)) + y,
                              lambda m, y: F.hardswish(m.fc2(y)) + y),
    'hard-sigmoid by hand': (lambda m, y: y * (F.relu6(m.fc2(y).mean(1, True) + 3) / 6),
                             lambda m, y: y * F.hardsigmoid(m.fc2(y).mean(1, True))),
    'clamp on both sides of zero': (lambda m, y: y + (3 * m.fc2(y)).clamp(-1, 1),
                                    lambda m, y: y + F.hardtanh(3 * m.fc2(y))),
    'number on the stream': (lambda m, y: y + (F.gelu(m.fc2(y)) + .1), lambda m, y: (y + F.gelu(m.fc2(y))) + .1),
    'star relu on the stream': (lambda m, y: m.fc2(.8 * F.relu(y) ** 2 - .4),
                                lambda m, y: m.fc2(torch.where(y > 0, .8 * y * y - .4, -.4))),
    'tiny number': (lambda m, y: m.fc2(F.relu(y) + 1e-300), lambda m, y: m.fc2(F.relu(y))),
    'number as a tensor': (lambda m, y: (F.elu(m.fc2(y)) + torch.ones(12, dtype=y.dtype)) * y,
                           lambda m, y: (F.elu(m.fc2(y)) + 1) * y),
    'number as one element': (lambda m, y: (F.elu(m.fc2(y)) + torch.ones(1, 1, dtype=y.dtype)) * y,
                              lambda m, y: (F.elu(m.fc2(y)) + 1) * y),
    'elu in place plus one': (lambda m, y: (nn.ELU(inplace=True)(m.fc2(y)) + 1) * y,
                              lambda m, y: (F.elu(m.fc2(y)) + 1) * y),
    'tanh in place times': (lambda m, y: m.fc2(y).tanh_() * y, lambda m, y: m.fc2(y).tanh() * y),
    'gelu by hand in place': (lambda m, y: (lambda z: .5 * z * (z / 2 ** .5).erf_().add_(1))(m.fc2(y)) + y,
                              lambda m, y: F.gelu(m.fc2(y)) + y),
    'gate in the shape of another': (lambda m, y: torch.tanh(m.fc2(y)[:, :1]).expand_as(y) * y,
                                     lambda m, y: torch.tanh(m.fc2(y)[:, :1]) * y),
    'gates side by side': (
        lambda m, y: torch.cat([torch.tanh(part) for part in m.fc2(y).chunk(2, -1)], -1) * y,
        lambda m, y: torch.tanh(m.fc2(y)) * y),
    'features in another order': (
        lambda m, y: (lambda q, k: q @ (k.mT @ y))(F.elu(m.fc2(y)) + 1, F.elu(m.fc(y)) + 1),
        lambda m, y: (lambda q, k: (q @ k.mT) @ y)(F.elu(m.fc2(y)) + 1, F.elu(m.fc(y)) + 1)),
    'features of the sums': (
        lambda m, y: (lambda q, k: q @ (k.mT @ y) / (q @ k.sum(1)[..., None]))(F.elu(m.fc2(y)) + 1, F.elu(m.fc(y)) + 1),
        lambda m, y: (lambda q, k: (q @ k.mT / (q @ k.mT).sum(-1, True)) @ y)(F.elu(m.fc2(y)) + 1, F.elu(m.fc(y)) + 1)),
    'walked': (walked, lambda m, y: (lambda z: 3 * z + m.inner.second(z))(m.inner.second(m.inner.first(y)))),
    'causal bias': (lambda m, y: F.scaled_dot_product_attention(y, y, y, causal_upper_left(5, 5)),
                    lambda m, y: F.scaled_dot_product_attention(y, y, y, is_causal=True)),
    'mask of one axis': (lambda m, y: F.scaled_dot_product_attention(y, y, y, MASK[0]),
                         lambda m, y: F.scaled_dot_product_attention(y, y, y, MASK[:1])),
    'foreign parameter': (foreign, lambda m, y: y * 2.),
    'where by keyword': (lambda m, y: torch.where(condition=y > 0, input=y, other=m.fc2(y)),
                         lambda m, y: torch.where(y > 0, y, m.fc2(y))),
    'conditional norm': (
        lambda m, y: F.batch_norm(y.mT, m.pos[0, 0], m.pos[0, 1] ** 2 + 1, y.mean((0, 1)), y.amax((0, 1))).mT,
        lambda m, y: F.batch_norm(y.mT, m.pos[0, 0], m.pos[0, 1] ** 2 + 1).mT * y.mean((0, 1)) + y.amax((0, 1))),
    'bilinear sum': (lambda m, y: torch.trapezoid(y, m.fc2(y), dim=1)[:, None].expand_as(y),
                     lambda m, y: (m.fc2(y).diff(dim=1) * (y[:, 1:] / 2 + y[:, :-1] / 2)).sum(1, True).expand_as(y)),
    'power of two': (lambda m, y: torch.ldexp(m.fc2(y), y), lambda m, y: m.fc2(y) * torch.exp2(y)),
    'products by keyword': (lambda m, y: torch.linalg.multi_dot(tensors=[y[0], m.fc2(y)[0].mT, y[0]]).expand_as(y),
                            lambda m, y: torch.linalg.multi_dot([y[0], m.fc2(y)[0].mT, y[0]]).expand_as(y)),
    'new of old code': (lambda m, y: y.new(3, 5, 12).zero_() + y, lambda m, y: y * 1.),
    'scores overwritten': (overwritten, lambda m, y: (y @ y.mT).softmax(-1) @ y),
    'softmax of old default': (lambda m, y: F.softmax(y, _stacklevel=5) * y, lambda m, y: F.softmax(y, 0) * y),
    'written through a view': (lambda m, y: written(m.pos.repeat(3, 1, 1), lambda b: b[:, 1:], m.fc2(y)[:, 1:]),
                               lambda m, y: m.pos + F.pad(m.fc2(y)[:, 1:], (0, 0, 1, 0))),
    'written by narrow': (lambda m, y: written(m.pos.repeat(3, 1, 1), lambda b: b.narrow(1, 2, 2), y[:, :2]),
                          lambda m, y: m.pos + F.pad(y[:, :2], (0, 0, 2, 1))),
    'norm built in forward': (built(lambda: nn.LayerNorm(12).double()), lambda m, y: F.layer_norm(m.fc2(y), (12,))),
    'layer built in forward': (built(lambda: nn.Linear(12, 12).double()), linear),
    'real part in place': (spectrum_in_place(lambda z: z.real), lambda m, y: (
        lambda z: z.real + y + m.pos + z.imag)(torch.fft.fft(m.fc2(y), dim=1))),
    'imaginary part in place': (spectrum_in_place(lambda z: z.imag), lambda m, y: (
        lambda z: z.real + y + m.pos + z.imag)(torch.fft.fft(m.fc2(y), dim=1))),
    'conjugate in place': (spectrum_in_place(lambda z: z.conj().imag), lambda m, y: (
        lambda z: z.real - y - m.pos + z.imag)(torch.fft.fft(m.fc2(y), dim=1))),
    'expanded, a row written': (expanded_in_place, lambda m, y: y[:, :1] + y),
}
#: Pairs that an old torch cannot run.
NEWER = {'causal bias': since('2.8', 'before it, CausalBias raises when asked whether it requires a gradient')}
