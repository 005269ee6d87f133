'''Code that calls a function without a rule, and the same after the advice of the refusal, for every reason.

Code takes the model and two tensors that carry relevance, each a square matrix per sample.
'''
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import wrap_torch_function

SIZE = 4


class Between(nn.Module):
    '''Code between two layers and a head, all with biases.'''
    def __init__(self, code):
        super().__init__()
        self.code = code
        self.first, self.second, self.inner = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.lstm = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.head = nn.Linear(SIZE * SIZE, 3)

    def forward(self, x):
        output = self.code(self, self.first(x), self.second(x)).flatten(1)
        return self.head(F.pad(output, (0, SIZE * SIZE - output.shape[1])))


def build(code, batch=2):
    '''A float64 model that runs ``code``, and a batch of inputs.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Between(code).double().eval(), torch.randn(batch, SIZE, SIZE, dtype=torch.float64)


class Case(NamedTuple):
    '''What is refused, and what the advice makes of it.

    ``same`` is whether both compute the same, ``draws`` whether they draw at random, ``trains`` whether the refused
    model is in training.
    '''
    refused: Callable
    advised: Callable
    same: bool = True
    draws: bool = False
    trains: bool = False


def named(name):
    '''A function that the table knows by a name, and a model sees as torch's: for kernels that a CPU does not have.'''
    def decorate(function):
        function.__name__ = name
        return wrap_torch_function(lambda *args: args)(function)
    return decorate


# What a CPU lacks, or has in float32 only, what newer versions of torch lack, and what older versions do.
STAND_INS = {name: named(name)(function) for name, function in {
    'miopen_convolution': lambda x, w, b: F.conv1d(x, w, b),
    'miopen_convolution_add_relu': lambda x, w, z, b: F.relu(F.conv1d(x, w, b) + z),
    'miopen_rnn': lambda lstm, x: lstm(x)[0],
    'rename': lambda x: x,
    'align_to': lambda x: x.transpose(1, 2).unsqueeze(-1),
    'batch_norm_stats': lambda x: (x.mean((0, 1)), (x.var((0, 1)) + 1e-5).rsqrt()),
    'quantize_per_channel': lambda x: x,
    'record_stream': lambda x: None,
    'to_mkldnn': lambda x: x,
    'sampled_addmm': lambda x, left, right: x + left @ right,
    'ldl_solve': lambda matrix, b: torch.linalg.solve(matrix, b),
    'module_load': lambda x, other: other.clone(),
}.items()}


def positive(x):
    '''Positive numbers that carry relevance, as what a number is added to would not.'''
    return x.square() + x.abs()


def each(function, *tensors):
    '''A function of matrices, sample by sample.'''
    return torch.stack([function(*samples) for samples in zip(*tensors, strict=True)])


def centred(x):
    return x - x.mean(-1, keepdim=True)


def covariance(x):
    return centred(x) @ centred(x).mT / (SIZE - 1)


def correlation(x):
    x = centred(x) / x.std(-1, keepdim=True)
    return x @ x.mT / (SIZE - 1)


def tokens_first(x):
    return x.movedim(1, 0).flatten(1)


def tokens_second(x):
    return x.unflatten(1, (-1, SIZE)).movedim(0, 1)


EDGES = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]])
WEIGHTS = torch.tensor([1., -2., .5, 3.], dtype=torch.float64)


def graph():
    return torch.sparse_coo_tensor(EDGES, WEIGHTS, (SIZE, SIZE), check_invariants=True)


def along_edges(x):
    '''The product with the matrix of a graph, by what its edges do.'''
    rows, columns = EDGES
    return torch.zeros_like(x).index_add(0, rows, x.index_select(0, columns) * WEIGHTS[:, None])


LENGTHS = torch.tensor([4, 2])
KEPT = torch.arange(SIZE) < LENGTHS[:, None]


def assigned(m, a, b):
    y = a.clone()
    y.data = y.data * 2.
    return y


def written(method, *others):
    '''Code that writes with a method of tensors into one that carries relevance.'''
    def code(m, a, b):
        return b * getattr(a.clone(), f'{method}_')(*(b if other is None else other for other in others))
    return code


def returned(method, *others):
    def code(m, a, b):
        others_ = [b.detach() if other is None else other for other in others]
        return b * getattr(a.detach(), method)(*others_)
    return code


def looks(grad):
    '''A hook that only looks.'''


def hooked(m, a, b):
    # torch has this hook for leaves only, of which a model that is run without gradients has more
    if a.requires_grad:
        a.register_post_accumulate_grad_hook(looks)
    return a * b


def watched(m, a, b):
    if a.requires_grad:
        a.register_hook(looks)
    return a * b


MEAN, VARIANCE = torch.ones(SIZE, dtype=torch.float64), torch.arange(1., SIZE + 1., dtype=torch.float64)


def statistics(m, a, b):
    '''Normalization that has its statistics from the batch in training.'''
    mean, scale = STAND_INS['batch_norm_stats'](a) if m.training else (MEAN, VARIANCE.rsqrt())
    return (a - mean) * scale


def reflected(x, scale):
    return torch.linalg.householder_product(x.detach(), scale.detach())


CASES = {
    'normal': Case(lambda m, a, b: torch.normal(a, 2.), lambda m, a, b: a + 2. * torch.randn(a.shape, dtype=a.dtype),
                   draws=True),
    'poisson': Case(lambda m, a, b: b * torch.poisson(positive(b)), lambda m, a, b: b * torch.poisson(
        positive(b.detach())), draws=True),
    'uniform': Case(lambda m, a, b: b * a.clone().uniform_(), lambda m, a, b: b * torch.rand(b.shape, dtype=b.dtype),
                    draws=True),
    'fake_quantize_per_tensor_affine': Case(
        lambda m, a, b: torch.fake_quantize_per_tensor_affine(a, .1, 0, -128, 127), lambda m, a, b: a, same=False),
    'quantize_per_channel': Case(lambda m, a, b: STAND_INS['quantize_per_channel'](a), lambda m, a, b: a),
    'to_sparse': Case(lambda m, a, b: a.to_sparse().to_dense() @ b, lambda m, a, b: a @ b),
    'hspmm': Case(lambda m, a, b: tokens_second(torch.hspmm(graph(), tokens_first(a)).to_dense()),
                  lambda m, a, b: tokens_second(along_edges(tokens_first(a)))),
    'sparse_coo_tensor': Case(
        lambda m, a, b: each(lambda x: torch.sparse_coo_tensor(
            EDGES, x, (SIZE, SIZE), check_invariants=True).to_dense(), a[:, 0]),
        lambda m, a, b: a.new_zeros(len(a), SIZE * SIZE).index_add(1, EDGES[0] * SIZE + EDGES[1], a[:, 0])),
    'sampled_addmm': Case(lambda m, a, b: STAND_INS['sampled_addmm'](a, a, b), lambda m, a, b: a + a @ b),
    'nested_tensor_from_tensor_list': Case(
        lambda m, a, b: torch.nested.as_nested_tensor([a[0], a[1, :2]], layout=torch.strided).to_padded_tensor(0.),
        lambda m, a, b: a.masked_fill(~KEPT[..., None], 0.)),
    'rename': Case(lambda m, a, b: STAND_INS['rename'](a), lambda m, a, b: a),
    'align_to': Case(lambda m, a, b: STAND_INS['align_to'](a), lambda m, a, b: a.permute(0, 2, 1).unsqueeze(-1)),
    'miopen_convolution': Case(
        lambda m, a, b: STAND_INS['miopen_convolution'](a, m.inner.weight[..., None], m.inner.bias),
        lambda m, a, b: F.conv1d(a, m.inner.weight[..., None], m.inner.bias)),
    'miopen_convolution_add_relu': Case(
        lambda m, a, b: STAND_INS['miopen_convolution_add_relu'](a, m.inner.weight[..., None], b, m.inner.bias),
        lambda m, a, b: F.relu(F.conv1d(a, m.inner.weight[..., None], m.inner.bias) + b)),
    'miopen_rnn': Case(lambda m, a, b: STAND_INS['miopen_rnn'](m.lstm, a), lambda m, a, b: m.lstm(a)[0]),
    'to_mkldnn': Case(lambda m, a, b: STAND_INS['to_mkldnn'](a), lambda m, a, b: a),
    'batch_norm_stats': Case(statistics, statistics, same=False, trains=True),
    'native_batch_norm': Case(
        lambda m, a, b: torch.native_batch_norm(
            a, m.inner.bias, m.first.bias, MEAN, VARIANCE, False, .1, 1e-5)[0],
        lambda m, a, b: F.batch_norm(a, MEAN, VARIANCE, m.inner.bias, m.first.bias)),
    'native_group_norm': Case(
        lambda m, a, b: torch.native_group_norm(a, m.inner.bias, m.first.bias, len(a), SIZE, SIZE, 2, 1e-5)[0],
        lambda m, a, b: F.group_norm(a, 2, m.inner.bias, m.first.bias)),
    'native_layer_norm': Case(
        lambda m, a, b: torch.native_layer_norm(a, [SIZE], m.inner.bias, m.first.bias, 1e-5)[0],
        lambda m, a, b: F.layer_norm(a, (SIZE,), m.inner.bias, m.first.bias)),
    'svdvals': Case(lambda m, a, b: torch.linalg.svdvals(a)[..., None] * b,
                    lambda m, a, b: torch.linalg.svdvals(a.detach())[..., None] * b),
    'eigh': Case(lambda m, a, b: torch.linalg.eigh(a)[1].abs() @ b,
                 lambda m, a, b: torch.linalg.eigh(a.detach())[1].abs() @ b),
    'qr': Case(lambda m, a, b: torch.linalg.qr(a)[0] @ b, lambda m, a, b: torch.linalg.qr(a.detach())[0] @ b),
    'slogdet': Case(lambda m, a, b: torch.linalg.slogdet(a)[1][:, None, None] * b,
                    lambda m, a, b: torch.linalg.slogdet(a.detach())[1][:, None, None] * b),
    'householder_product': Case(lambda m, a, b: torch.linalg.householder_product(a, b[:, 0]) @ b,
                                lambda m, a, b: torch.linalg.householder_product(a.detach(), b[:, 0].detach()) @ b),
    'lu_solve': Case(lambda m, a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a.detach()), b),
                     lambda m, a, b: torch.linalg.solve(a, b)),
    'ldl_solve': Case(lambda m, a, b: STAND_INS['ldl_solve'](a, b), lambda m, a, b: torch.linalg.solve(a, b)),
    'lstsq': Case(lambda m, a, b: torch.linalg.lstsq(a[:, :, :2], b)[0],
                  lambda m, a, b: torch.linalg.pinv(a[:, :, :2]) @ b),
    'ormqr': Case(lambda m, a, b: torch.ormqr(a, b[:, 0], b), lambda m, a, b: reflected(a, b[:, 0]) @ b),
    'matrix_exp': Case(lambda m, a, b: torch.linalg.matrix_exp(a) @ b,
                       lambda m, a, b: torch.linalg.matrix_exp(a.detach()) @ b),
    'matrix_power': Case(lambda m, a, b: torch.linalg.matrix_power(a, 3), lambda m, a, b: a @ a @ a),
    'vander': Case(lambda m, a, b: torch.linalg.vander(a[:, 0], N=3),
                   lambda m, a, b: torch.stack([a[:, 0] ** 0, a[:, 0] ** 1, a[:, 0] ** 2], -1)),
    'cov': Case(lambda m, a, b: each(torch.cov, a), lambda m, a, b: covariance(a)),
    'corrcoef': Case(lambda m, a, b: each(torch.corrcoef, a), lambda m, a, b: correlation(a)),
    'chebyshev_polynomial_t': Case(lambda m, a, b: torch.special.chebyshev_polynomial_t(a, 3),
                                   lambda m, a, b: 4. * a * a * a + -3. * a),
    'hermite_polynomial_he': Case(lambda m, a, b: torch.special.hermite_polynomial_he(a, 2),
                                  lambda m, a, b: a * a + -1.),
    'bessel_j1': Case(lambda m, a, b: torch.special.bessel_j1(a) * b,
                      lambda m, a, b: torch.special.bessel_j1(a.detach()) * b),
    'igamma': Case(lambda m, a, b: torch.igamma(positive(a), positive(b)) * b,
                   lambda m, a, b: torch.igamma(positive(a).detach(), positive(b).detach()) * b),
    'remainder': Case(lambda m, a, b: a % .7, lambda m, a, b: a - .7 * (a / .7).floor()),
    'rmod': Case(lambda m, a, b: .7 % a, lambda m, a, b: .7 - a * (.7 / a).floor()),
    'fmod': Case(lambda m, a, b: torch.fmod(a, b), lambda m, a, b: a - b * (a / b).trunc()),
    'frac': Case(lambda m, a, b: torch.frac(a), lambda m, a, b: a - 1. * (a / 1.).trunc()),
    'xlogy': Case(lambda m, a, b: torch.xlogy(a, positive(b)), lambda m, a, b: a * torch.log(positive(b))),
    'xlog1py': Case(lambda m, a, b: torch.special.xlog1py(a, b.abs()), lambda m, a, b: a * torch.log1p(b.abs())),
    'frexp': Case(lambda m, a, b: torch.frexp(a).mantissa,
                  lambda m, a, b: torch.ldexp(a, -torch.frexp(a.detach()).exponent)),
    'lp_pool1d': Case(lambda m, a, b: F.lp_pool1d(a, 2., 2), lambda m, a, b: F.avg_pool1d(a, 2), same=False),
    'lp_pool2d': Case(lambda m, a, b: F.lp_pool2d(a, 2., 2), lambda m, a, b: F.max_pool2d(a, 2), same=False),
    'apply': Case(lambda m, a, b: a.clone().apply_(lambda value: 2. * value), lambda m, a, b: 2. * a),
    'map': Case(lambda m, a, b: a.clone().map_(b, lambda one, other: one * other), lambda m, a, b: a * b),
    'resize': Case(lambda m, a, b: a.clone().resize_(len(a), SIZE - 1, SIZE),
                   lambda m, a, b: a.reshape(-1, SIZE)[:len(a) * (SIZE - 1)].reshape(len(a), SIZE - 1, SIZE)),
    'module_load': Case(lambda m, a, b: STAND_INS['module_load'](a, b), lambda m, a, b: b.clone()),
    'share_memory': Case(lambda m, a, b: a.clone().share_memory_(), lambda m, a, b: a.clone()),
    'slice_inverse': Case(lambda m, a, b: torch.slice_inverse(a[:, 1:3], a, 1, 1, 3, 1), lambda m, a, b: a),
    'reduce_ex': Case(lambda m, a, b: (a.__reduce_ex__(2), a)[1], lambda m, a, b: (a.detach().__reduce_ex__(2), a)[1]),
    'record_stream': Case(lambda m, a, b: (STAND_INS['record_stream'](a), a)[1],
                          lambda m, a, b: (STAND_INS['record_stream'](a.detach()), a)[1]),
    'register_post_accumulate_grad_hook': Case(hooked, watched),
}
#: What has a reason by how it is called and not by its name.
FORMS = {
    'assigning to an attribute': Case(assigned, lambda m, a, b: a * 2.),
    'bernoulli_': Case(written('bernoulli', .5), returned('bernoulli', .5), draws=True),
    'greater_': Case(written('greater', 0.), returned('greater', 0.)),
    'logical_and_': Case(written('logical_and', None), returned('logical_and', None)),
    'nextafter_': Case(written('nextafter', None), returned('nextafter', None)),
}
#: What the reasons of these say.
WORDS = {name: 'call the form without underscore on detached tensors' for name in FORMS} | {
    'assigning to an attribute': 'make a new tensor instead'}
