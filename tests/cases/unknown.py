'''Functions that no table knows, and code that calls them: what an error proposes for them has to fit.

Code takes the model of ``cases.advice`` and two tensors that carry relevance, each a square matrix per sample.
'''
import torch
from torch.overrides import wrap_torch_function

from zennit_attn.trees import tensors_in

from .advice import SIZE


def visible(function):
    '''A function as the author of a kernel makes it visible.'''
    return wrap_torch_function(lambda *args, **kwargs: tensors_in(args, kwargs))(function)


# linear, in one tensor or several

@visible
def summed_backwards(x):
    return 2. * x.flip(-1).cumsum(-1)


@visible
def added(x, y):
    return x + 2. * y


@visible
def shifted_scan(x):
    return x.cumsum(-1) + 1.5


@visible
def summed(tensors):
    return sum(tensors)


@visible
def in_two_parts(x):
    return 2. * x[..., :2], 3. * x[..., 2:].flip(-1)


@visible
def in_two_shifted_parts(x):
    return x[..., :2] + 1., 3. * x[..., 2:].flip(-1)


# moved and picked

@visible
def rolled(x):
    return x.roll(1, -1)


@visible
def picked(x, index):
    return x[:, index]


@visible
def joined(tensors):
    return torch.cat(tensors, -1)


@visible
def largest(x):
    return x.max(-1)


# products

@visible
def multiplied(x, y):
    return x @ y


@visible
def three_factors(x, y, z):
    return x * y * z


@visible
def fused_linear(x, weight, bias):
    return x @ weight.mT + bias


@visible
def named_linear(x, weight=None, bias=None):
    return x @ weight + bias


@visible
def two_products(x, y, z, w):
    return x * y + z @ w


# steered

@visible
def attended(query, key, value):
    return (query @ key.mT).softmax(-1) @ value


@visible
def sampled(x, at):
    '''Linear interpolation, at places that a second tensor says.'''
    place = at.sigmoid() * (SIZE - 1)
    below = place.floor().clamp(0, SIZE - 2)
    share, index = place - below, below.long()
    return x.gather(-1, index) * (1 - share) + x.gather(-1, index + 1) * share


@visible
def sampled_at_offsets(x, offset):
    '''The same, at the places themselves and what offsets add, which begin with zeros.'''
    places = torch.arange(SIZE, dtype=x.dtype).expand_as(x)
    return sampled(x, places / SIZE + offset)


@visible
def gated_sum(x, gate, y):
    return x * gate.sigmoid() + y


@visible
def gated_and_shifted(x, gate):
    return x * gate.sigmoid() + gate.exp()


@visible
def quotient(x, y):
    return x / (y.abs() + 1.)


# element by element

@visible
def bent(x):
    return x * x.sigmoid()


@visible
def cut(x):
    return x.clamp_min(0.)


@visible
def leaking(x, slope):
    return torch.where(x > 0, x, slope * x)


@visible
def bent_by(x, slope):
    return x * (slope * x).sigmoid()


@visible
def opened(x):
    return x.exp()


@visible
def shared_out(x):
    return x.softmax(-1)


# nothing of all that, or not to be told from it

@visible
def noisy(x):
    return x + torch.rand_like(x)


@visible
def overwritten(x):
    return x.mul_(2.)


@visible
def keyword_only(x, *, gate):
    return x * gate


@visible
def perceptron(x):
    return x.relu().cumsum(-1).tanh()


@visible
def scaled_to_one(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


@visible
def two_waves(x, y):
    return x.tanh() * y.sin()


@visible
def product_of_a_list(tensors):
    return tensors[0] @ tensors[1]


@visible
def particular(x):
    if not torch.is_grad_enabled():
        raise ValueError('only with gradients')
    return x


@visible
def counted(x):
    return (x > 0).sum(-1)


INDEX = torch.tensor([2, 0, 1])

#: Code, and the row that fits.
FITTING = {
    'linear map': (lambda m, a, b: summed_backwards(a), "summed_backwards, 'add'"),
    'sum': (lambda m, a, b: added(a, b), "added, 'add', affine=True"),
    'sum with a constant': (lambda m, a, b: added(a, m.inner.weight), "added, 'add', affine=True"),
    'scan plus constant': (lambda m, a, b: shifted_scan(a), "shifted_scan, 'add', affine=True"),
    'sum of a list': (lambda m, a, b: summed([a, m.inner.weight, b]), "summed, 'add', affine=True"),
    'several outputs': (lambda m, a, b: torch.cat(in_two_parts(a), -1), "in_two_parts, 'add'"),
    'several outputs with a constant': (
        lambda m, a, b: torch.cat(in_two_shifted_parts(a), -1), "in_two_shifted_parts, 'add', affine=True"),
    'constant that is steered': (
        lambda m, a, b: gated_and_shifted(a, b), "gated_and_shifted, 'linear', steered=(1,), affine=True"),
    'smooth activation with a parameter': (
        lambda m, a, b: bent_by(a, m.inner.bias), "bent_by, 'activation'"),
    'roll': (lambda m, a, b: rolled(a), "rolled, 'rearrange'"),
    'index': (lambda m, a, b: picked(a, INDEX), "picked, 'rearrange'"),
    'list with a constant': (lambda m, a, b: joined([a[..., 1:], m.inner.weight[None, :, :1].expand(len(a), -1, -1)]),
                             "joined, 'rearrange', affine=True"),
    'maximum': (lambda m, a, b: largest(a).values, "largest, 'select'"),
    'matmul': (lambda m, a, b: multiplied(a, b), "multiplied, 'einsum'"),
    'matmul with a constant': (lambda m, a, b: multiplied(a, m.inner.weight), "multiplied, 'einsum'"),
    'matmul with itself': (lambda m, a, b: multiplied(a, a), "multiplied, 'einsum'"),
    'three factors': (lambda m, a, b: three_factors(a, b, a), "three_factors, 'einsum'"),
    'fused linear': (lambda m, a, b: fused_linear(a, m.inner.weight, m.inner.bias),
                     "fused_linear, 'linear', factors=(0, 1), affine=True"),
    'fused linear of two': (lambda m, a, b: fused_linear(a, b, m.inner.bias),
                            "fused_linear, 'linear', factors=(0, 1), affine=True"),
    'fused linear of three': (lambda m, a, b: fused_linear(a, b, a),
                              "fused_linear, 'linear', factors=(0, 1), affine=True"),
    'by keyword': (lambda m, a, b: named_linear(a, bias=m.inner.bias, weight=b),
                   "named_linear, 'linear', factors=(0, 1), affine=True, signature='x weight bias'"),
    'all by keyword': (lambda m, a, b: named_linear(bias=b, weight=a, x=b),
                       "named_linear, 'linear', factors=(0, 1), affine=True, signature='x weight bias'"),
    'attention': (lambda m, a, b: attended(a, b, b), "attended, 'linear', steered=(0, 1)"),
    'self-attention': (lambda m, a, b: attended(a, a, a), "attended, 'linear', steered=(0, 1)"),
    'sampling': (lambda m, a, b: sampled(a, b), "sampled, 'linear', steered=(1,)"),
    'sampling at offsets of zero': (lambda m, a, b: sampled_at_offsets(a, 0. * b),
                                    "sampled_at_offsets, 'linear', steered=(1,)"),
    'gated sum': (lambda m, a, b: gated_sum(a, b, a), "gated_sum, 'linear', factors=(0,), steered=(1,), affine=True"),
    'gated sum with a bias': (lambda m, a, b: gated_sum(a, b, m.inner.bias),
                              "gated_sum, 'linear', factors=(0,), steered=(1,), affine=True"),
    'quotient': (lambda m, a, b: quotient(a, b), "quotient, 'linear', steered=(1,)"),
    'activation': (lambda m, a, b: bent(a), "bent, 'activation'"),
    'activation of a view': (lambda m, a, b: bent(a.mT), "bent, 'activation'"),
    'piecewise linear activation': (lambda m, a, b: cut(a), "cut, 'activation', homogeneous=True"),
    'activation with a parameter': (lambda m, a, b: leaking(a, m.inner.bias),
                                    "leaking, 'activation', homogeneous=True"),
    'gate': (lambda m, a, b: opened(a) * b, "opened, 'gate'"),
    'fused softmax': (lambda m, a, b: shared_out(a) @ b, "shared_out, 'gate'"),
}
#: Code of which no row can be proposed.
UNFIT = {
    'draws': lambda m, a, b: noisy(a),
    'writes to its argument': lambda m, a, b: overwritten(a.clone()),
    'has an operand without a position': lambda m, a, b: keyword_only(a, gate=b),
    'is neither linear nor elementwise': lambda m, a, b: perceptron(a),
    'normalizes': lambda m, a, b: scaled_to_one(a),
    'is linear in none of two': lambda m, a, b: two_waves(a, b),
    'is a sum of products': lambda m, a, b: two_products(a, b, b, a),
    'has factors in one argument': lambda m, a, b: product_of_a_list([a, b]),
    'raises elsewhere': lambda m, a, b: particular(a),
    'counts': lambda m, a, b: counted(a) + a,
}
