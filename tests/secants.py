'''A slow, independent replica of the rules of differences, for the tests.

It walks over the traced, mutation-free ATen graph of a model (see ``oracle``), which it runs for an input and for a
reference, and back, a primitive at a time. It shares no code with the package, and computes what the package has in
closed form in another way: means by a quadrature of forty points, picks by dense Jacobians, normalizations by the
steps that they consist of. Where control flow or what was detached depends on the data, both runs have that of the
input.
'''
import numpy
import torch
from torch.func import jacrev
from torch.utils._pytree import tree_map_only

from oracle import LINEAR, MOMENTS, PRODUCTS, name_of, trace

NODES, WEIGHTS = (torch.tensor(part) for part in numpy.polynomial.legendre.leggauss(40))
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2

PICKS = '''
    max min amax amin aminmax maximum minimum sort topk max_pool2d_with_indices max_pool1d adaptive_max_pool2d median
    kthvalue fmax fmin
    '''.split()
BOUNDED = 'clamp clamp_min clamp_max relu hardtanh abs'.split()
LINEARS = set(LINEAR) - set(PICKS) - set(BOUNDED)
#: What cuts off: the same for input and reference.
CUT = set('detach detach_copy gt lt ge le eq ne isinf isnan logical_not bitwise_not logical_and argmax argmin nonzero'
          ' round sign floor fill zeros_like ones_like full_like new_zeros new_ones empty_like'.split())
#: What is a constant where normalizers are, but another one for the reference.
NORMALIZERS = set('rsqrt sqrt reciprocal var std linalg_vector_norm'.split())
ELEMENTWISE = set('''
    exp sigmoid softplus log_sigmoid_forward rsqrt sqrt reciprocal relu leaky_relu elu silu gelu mish hardswish
    hardtanh tanh erf pow sin cos sinh atan asinh log1p expm1 log exp2 clamp clamp_min clamp_max square hardsigmoid abs
    celu selu softshrink hardshrink cosh log2 log10 threshold _prelu_kernel
    '''.split())


class Secants:
    '''Values for input and reference, and relevance per unit, over one traced graph.

    Parameters
    ----------
    model: torch.nn.Module
    input, reference: torch.Tensor
    now: bool
        Whether normalizers are constants.
    '''
    def __init__(self, model, input, reference, now=False):
        self.graph, self.now = trace(model, input), now
        self.here, self.there, self.carrying, self.differing = {}, {}, set(), set()
        with torch.no_grad():
            for node in self.graph.graph.nodes:
                self.run(node, input, reference)

    def run(self, node, input, reference):
        if node.op == 'placeholder':
            self.here[node], self.there[node] = input.clone(), reference.clone()
            self.carrying.add(node)
            self.differing.add(node)
        elif node.op == 'get_attr':
            self.here[node] = self.there[node] = getattr(self.graph, node.target).detach()
        elif node.op == 'call_function':
            self.here[node] = node.target(*self.fetch(node.args, self.here), **self.fetch(node.kwargs, self.here))
            differs = any(arg in self.differing for arg in node.all_input_nodes) and self.name(node) not in CUT
            self.there[node] = self.here[node]
            if differs:
                self.differing.add(node)
                self.there[node] = node.target(
                    *self.fetch(node.args, self.there), **self.fetch(node.kwargs, self.there))
            if differs and self.carries(node):
                self.carrying.add(node)
        else:
            self.output = node.args[0] if not isinstance(node.args[0], (list, tuple)) else node.args[0][0]

    def carries(self, node):
        name = self.name(node)
        if self.now and (name in NORMALIZERS or (name == 'pow' and self.is_root(node))):
            return False
        args = node.args[:1] if self.now and name == 'div' else node.all_input_nodes
        return any(arg in self.carrying for arg in args)

    @staticmethod
    def is_root(node):
        return not isinstance(node.args[1], (int, float)) or node.args[1] < 1

    def fetch(self, tree, values):
        return tree_map_only(torch.fx.Node, lambda node: values[node], tree)

    @staticmethod
    def name(node):
        return 'getitem' if node.target.__module__ == '_operator' else name_of(node)

    def explain(self, relevance):
        '''``R = (x - x0) g`` for the input, given the relevance of the output.'''
        output = self.here[self.output]
        grads = {self.output: relevance / (output + 1e-9 * torch.where(output < 0, -1., 1.))}
        for node in reversed(self.graph.graph.nodes):
            if node in grads and node.op == 'call_function' and node in self.carrying:
                self.pull(node, grads.pop(node), grads)
            elif node.op == 'placeholder':
                return grads[node] * (self.here[node] - self.there[node])
        raise AssertionError('no input')

    def pull(self, node, grad, grads):
        '''Hand the relevance per unit of a node on to its arguments.'''
        name = self.name(node)
        if name == 'getitem':
            parts = grads.setdefault(node.args[0], {})
            parts[node.args[1]] = grad
            return
        operands = [arg for arg in dict.fromkeys(node.all_input_nodes) if arg in self.carrying]
        if self.now and name == 'div':
            operands = [node.args[0]]
        for operand, own in zip(operands, self.rule(name, node, operands, grad), strict=True):
            if own is not None:
                grads[operand] = own if operand not in grads else grads[operand] + own

    def function(self, node, operands, values=None):
        '''The node as a function of its carrying operands.'''
        values = self.here if values is None else values

        def run(*tensors):
            own = {**values, **dict(zip(operands, tensors, strict=True))}
            return node.target(*self.fetch(node.args, own), **self.fetch(node.kwargs, own))
        return run

    def rule(self, name, node, operands, grad):
        x, x0 = [self.here[operand] for operand in operands], [self.there[operand] for operand in operands]
        run = self.function(node, operands)
        if isinstance(grad, dict):
            return self.several(name, node, run, x, x0, grad)
        if name in PICKS:
            return picks(run, x, x0, {0: grad})
        if name == 'copy':
            return [grad.sum_to_size(self.here[operand].shape) if operand is node.args[1] else None
                    for operand in operands]
        if name == 'glu':
            return self.glu(x[0], x0[0], node.args[1] if len(node.args) > 1 else -1, grad)
        if name == 'addcdiv':
            return self.addcdiv(node, operands, grad)
        if name in LINEARS or name in PRODUCTS or name in ('convolution', '_convolution', 'prod', 'cumprod', 'var'):
            return path(run, x, x0, grad)
        if name == 'div':
            return self.quotient(node, operands, grad)
        if name in ELEMENTWISE and len(x) == 1:
            return [grad * secant(run(*x), run(*x0), x[0], x0[0])]
        if name in ('_softmax', '_safe_softmax', 'softmax'):
            return [softmax(x[0], x0[0], node.args[1], grad)]
        if name == '_log_softmax':
            dim = node.args[1]
            mean = logarithmic_mean(x[0].softmax(dim), x0[0].softmax(dim))
            return [grad - mean / mean.sum(dim, keepdim=True) * grad.sum(dim, keepdim=True)]
        if name == 'std':
            variance = [tensor.square() for tensor in (run(*x), run(*x0))]
            own = grad * secant(*[v.sqrt() for v in variance], *variance)
            return path(lambda tensor: run(tensor).square(), x, x0, own)
        if name in ('linalg_vector_norm', 'norm'):
            return self.norm(node, run, x, x0, grad)
        raise NotImplementedError(name)

    def glu(self, x, x0, dim, grad):
        (value, gate), (value0, gate0) = x.chunk(2, dim), x0.chunk(2, dim)
        slope = secant(gate.sigmoid(), gate0.sigmoid(), gate, gate0)
        return [torch.cat([grad * (gate.sigmoid() + gate0.sigmoid()) / 2, grad * (value + value0) / 2 * slope], dim)]

    def addcdiv(self, node, operands, grad):
        _, above, below = node.args
        values = [[store[arg] for arg in (above, below)] for store in (self.here, self.there)]
        found = {node.args[0]: grad}
        mean = sum(one / other for one, other in values) / 2
        divisor = values[0][1] if self.now else (values[0][1] + values[1][1]) / 2
        for arg, own in ((above, grad / divisor), (below, -grad * mean / divisor)):
            found[arg] = found.get(arg, 0.) + own * node.kwargs.get('value', 1)
        return [found[operand].sum_to_size(self.here[operand].shape) for operand in operands]

    def quotient(self, node, operands, grad):
        above, below = node.args[:2]
        if operands == [above] and below not in self.carrying:
            return [(grad / self.fetch(below, self.here)).sum_to_size(self.here[above].shape)]
        if self.now:
            return [(grad / self.here[below]).sum_to_size(self.here[above].shape)]
        mean = (self.here[node] + self.there[node]) / 2
        divisor = (self.here[below] + self.there[below]) / 2
        found = {}
        for arg, own in ((above, grad / divisor), (below, -grad * mean / divisor)):
            if isinstance(arg, torch.fx.Node) and arg in self.carrying:
                own = own.sum_to_size(self.here[arg].shape)
                found[arg] = found[arg] + own if arg in found else own
        return [found[operand] for operand in operands]

    def norm(self, node, run, x, x0, grad):
        exponent = node.args[1] if len(node.args) > 1 else 2
        if exponent != 2:
            return picks(run, x, x0, {0: grad})
        own = grad / (run(*x) + run(*x0))
        return path(lambda tensor: run(tensor).square(), x, x0, own)

    def several(self, name, node, run, x, x0, grads):
        '''Primitives that return several tensors.'''
        if name in PICKS:
            return picks(run, x, x0, grads)
        if name in MOMENTS:
            found = path(lambda tensor: run(tensor)[1], x, x0, grads[1]) if 1 in grads else [0.]
            if 0 not in grads:
                return found
            deviates = name == 'std_mean'
            y, y0 = run(*x)[0], run(*x0)[0]
            own = grads[0] / (y + y0) if deviates else grads[0]
            more = path(lambda tensor: run(tensor)[0].square() if deviates else run(tensor)[0], x, x0, own)
            return [one + other for one, other in zip(found, more, strict=True)]
        if name in ('native_layer_norm', 'native_group_norm', 'native_batch_norm', '_native_batch_norm_legit',
                    '_native_batch_norm_legit_no_training'):
            return self.normalization(name, node, x, x0, grads[0])
        if name in LINEARS:
            return path(lambda *tensors: tuple(run(*tensors)[index] for index in grads), x, x0, tuple(grads.values()))
        if name == 'log_sigmoid_forward':
            return [grads[0] * secant(run(*x)[0], run(*x0)[0], x[0], x0[0])]
        raise NotImplementedError(name)

    def normalization(self, name, node, x, x0, grad):
        if name.endswith('no_training') or (name == 'native_batch_norm' and not node.args[5]):
            return path(self.function(node, [node.args[0]]), x, x0, (grad,), first=True)
        args = self.fetch(node.args, self.here)
        if name == 'native_layer_norm':
            _, shape, weight, _, eps = args
            rows, scale = len(shape), 1. if weight is None else weight
            view = [tensor.flatten(-rows) for tensor in (x[0], x0[0])]
        elif name == 'native_group_norm':
            _, weight, _, size, channels, _, groups, eps = args
            scale = 1. if weight is None else weight.reshape(1, -1, *[1] * (x[0].ndim - 2))
            view = [tensor.reshape(size, groups, -1) for tensor in (x[0], x0[0])]
        elif x[0].shape[0] == 1:  # an instance norm
            _, weight, *_, eps = args
            scale = 1. if weight is None else weight.reshape(1, -1, *[1] * (x[0].ndim - 2))
            view = [tensor.flatten(2) for tensor in (x[0], x0[0])]
        else:
            raise NotImplementedError(name)
        own = (grad * scale).reshape(view[0].shape)
        # c = x - mean, v = mean(c^2) + eps, r = 1 / sqrt(v), y = c r
        c, c0 = (tensor - tensor.mean(-1, keepdim=True) for tensor in view)
        v, v0 = (tensor.square().mean(-1, keepdim=True) + eps for tensor in (c, c0))
        r, r0 = v ** -.5, v0 ** -.5
        if self.now:
            of_c = own * r
            return [(of_c - of_c.mean(-1, keepdim=True)).reshape(x[0].shape)]
        of_r = (own * (c + c0) / 2).sum(-1, keepdim=True)
        of_v = of_r * secant(r, r0, v, v0)
        of_c = own * (r + r0) / 2 + of_v * (c + c0) / c.shape[-1]
        return [(of_c - of_c.mean(-1, keepdim=True)).reshape(x[0].shape)]


def secant(y, y0, x, x0):
    gap = x - x0
    return torch.where(gap == 0, 0., (y - y0) / torch.where(gap == 0, 1., gap)).nan_to_num(0., 0., 0.)


def path(run, x, x0, grad, first=False):
    '''The gradient averaged over the straight path by forty points.'''
    total = [torch.zeros_like(tensor) for tensor in x]
    for time, weight in zip(NODES.tolist(), WEIGHTS.tolist(), strict=True):
        leaves = [(other + time * (one - other)).requires_grad_() for one, other in zip(x, x0, strict=True)]
        with torch.enable_grad():
            outputs = run(*leaves)
        outputs = outputs[:1] if first else outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        grads = grad if isinstance(grad, tuple) else (grad,)
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
        total = [one if more is None else one + weight * more for one, more in zip(total, found, strict=True)]
    return total


def picks(run, x, x0, grads):
    '''``(1 - t) J + t J0`` with dense Jacobians of each output.'''
    total = [torch.zeros_like(tensor) for tensor in x]
    places = tuple(range(len(x)))
    for index, grad in grads.items():
        def chosen(*tensors, index=index):
            output = run(*tensors)
            return output[index] if isinstance(output, (tuple, list)) else output
        size = grad.numel()
        here, there = ([part.reshape(size, -1) for part in jacrev(chosen, places)(*at)] for at in (x, x0))

        def apply(matrices, tensors):
            return sum(matrix @ tensor.flatten() for matrix, tensor in zip(matrices, tensors, strict=True))
        gained = apply(there, x0) - apply(here, x0)
        lost = apply(here, x) - apply(there, x)
        t = torch.where(gained + lost == 0, 0., gained / (gained + lost))
        for place, (one, other) in enumerate(zip(here, there, strict=True)):
            own = (grad.flatten() * (1 - t)) @ one + (grad.flatten() * t) @ other
            total[place] = total[place] + own.reshape(x[place].shape)
    return total


def logarithmic_mean(y, y0):
    '''The integral of ``y^t y0^(1 - t)``.'''
    return sum(weight * y ** time * y0 ** (1 - time) for time, weight in zip(NODES, WEIGHTS, strict=True))


def softmax(x, x0, dim, grad):
    '''By its whole matrix: ``dy = (diag(L) - L L^T / sum(L)) dx``.'''
    x, x0, own = (tensor.movedim(dim, -1) for tensor in (x, x0, grad))
    mean = logarithmic_mean(x.softmax(-1), x0.softmax(-1)).nan_to_num(0.)
    total = mean.sum(-1)[..., None, None]
    matrix = torch.diag_embed(mean) - mean[..., :, None] * mean[..., None, :] / torch.where(total == 0, 1., total)
    return (own[..., None, :] @ matrix)[..., 0, :].movedim(-1, dim)
