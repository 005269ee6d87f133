'''A slow, independent replica of the rules, for the tests: an interpreter of the traced, mutation-free ATen graph.

The model is run once under ``make_fx(functionalize(...))``: in-place operators and views become pure operators, and
``einsum``, ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention`` and all other composed functions fall apart
into a few dozen primitive ones. The graph is then walked forward to find which values carry relevance, and backward
with the relevance per unit, ``g``, each primitive with the rule that ``KINDS`` names. A primitive that is not listed
raises. It shares no code with the package, and knows neither modules, hooks nor function modes.

A module with one of Zennit's rules is one primitive of the graph, ``replica::ruled``, with the rule written from its
paper as a matrix of contributions. Relevance that leaves it stays relevance while values are only moved, and becomes
relevance per unit anywhere else.
'''
import operator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
OUTPUT_EPSILON = 1e-9

LINEAR = '''
    view _unsafe_view view_copy reshape _reshape_alias t t_copy transpose transpose_copy permute permute_copy expand
    expand_copy slice slice_copy select select_copy unsqueeze unsqueeze_copy squeeze squeeze_copy unbind_copy split
    split_copy split_with_sizes split_with_sizes_copy unfold unfold_copy diagonal diagonal_copy alias_copy
    view_as_real_copy view_as_complex_copy view_as_real view_as_complex real imag
    slice_scatter select_scatter diagonal_scatter as_strided_scatter copy clone _to_copy lift_fresh_copy
    cat stack repeat flip roll index index_select gather index_put index_add scatter scatter_add masked_fill where
    _unsafe_index
    constant_pad_nd reflection_pad2d replication_pad2d tril triu take_along_dim diag_embed _reshape_copy contiguous
    max min amax amin maximum minimum sort topk max_pool2d_with_indices max_pool1d adaptive_max_pool2d clamp clamp_min
    clamp_max
    neg sum mean cumsum add sub rsub lerp
    avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d mean_pool upsample_nearest2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d _upsample_nearest_exact2d im2col col2im pixel_shuffle
    _fft_r2c _fft_c2r _fft_c2c _conj _conj_copy resolve_conj complex
    fmax fmin masked_scatter masked_select index_copy index_fill as_strided_copy rot90 block_diag aminmax median
    kthvalue nansum reflection_pad1d replication_pad1d pixel_unshuffle channel_shuffle grid_sampler_2d nan_to_num mode
    unsafe_split trace
    _native_batch_norm_legit_no_training
    threshold copysign
'''.split()
PRODUCTS = {'mul': (0, 1), 'mm': (0, 1), 'bmm': (0, 1), 'mv': (0, 1), 'dot': (0, 1), 'addmm': (1, 2), 'baddbmm': (1, 2),
            'addbmm': (1, 2), 'addmv': (1, 2), 'convolution': (0, 1), '_convolution': (0, 1), 'addcmul': (1, 2),
            'addr': (1, 2), '_trilinear': (0, 1, 2), 'linalg_cross': (0, 1)}
ACTIVATIONS = '''
    relu leaky_relu elu silu gelu mish hardswish hardtanh tanh erf abs _prelu_kernel celu selu softshrink hardshrink
    sin sinh atan asinh log1p expm1
    special_i1
'''.split()
SQUASHING = ('tanh', 'erf', 'atan')
BOUNDED = ('clamp', 'clamp_min', 'clamp_max', 'maximum', 'minimum', 'fmax', 'fmin')
GATES = '''
    exp sigmoid softplus cos log_sigmoid hardsigmoid rsqrt sqrt reciprocal var std linalg_vector_norm norm round sign
    detach detach_copy gt lt ge le eq ne logical_not logical_and bitwise_not isinf isnan argmax argmin
    nonzero log_sigmoid_forward exp2 log logsumexp floor ceil trunc floor_divide heaviside _cdist_forward
    zero fill new_zeros new_ones new_full new_empty zeros_like ones_like empty_like
    full_like
    linalg_inv_ex
'''.split()
SOFTMAXES = ('_softmax', '_safe_softmax', '_log_softmax')
EXPONENTIALS = ('exp', 'exp2')
#: Gates that are a function of each element, and those of them that stay finite.
ELEMENTWISE = ('exp', 'exp2', 'sigmoid', 'softplus', 'cos', 'hardsigmoid', 'log', 'pow')
BETWEEN = ('sigmoid', 'hardsigmoid')
NORMS = ('native_layer_norm', 'native_group_norm', 'native_batch_norm', '_native_batch_norm_legit')
SUMS = ('add', 'sub', 'rsub')
REINDEX = LINEAR[:LINEAR.index('max')]
#: What knows which elements of its result are constants: what puts values somewhere, and works on each by itself.
PLACES = {*REINDEX, 'masked_scatter', 'masked_select', 'index_copy', 'index_fill', 'rot90', 'block_diag',
          'pixel_unshuffle', 'channel_shuffle', 'unsafe_split'} - {
    'index_add', 'scatter_add', 'reflection_pad2d', 'replication_pad2d'}
PUTS_IN = {'cat', 'stack', 'index_put', 'scatter', 'masked_fill', 'where', 'constant_pad_nd', 'slice_scatter',
           'select_scatter', 'diagonal_scatter', 'as_strided_scatter', 'index_copy', 'index_fill', 'masked_scatter',
           'block_diag', 'tril', 'triu', 'diag_embed', 'complex'}
#: What only moves or picks values: relevance stays relevance. ``index_put`` does unless it adds.
MOVES = {*LINEAR[:LINEAR.index('neg')], *LINEAR[LINEAR.index('fmax'):LINEAR.index('trace')]} - {
    'index_add', 'scatter_add', 'nansum', 'grid_sampler_2d'}
MOMENTS = ('var_mean', 'std_mean')
POWERS = ('prod', 'cumprod')
#: What is linear in its second operand, with a gate as its first.
SOLVERS = ('_linalg_solve_ex', 'linalg_solve_triangular')


RULED = torch.library.Library('replica', 'DEF')
RULED.define('ruled(Tensor x, int key) -> Tensor')
RULED.impl('ruled', lambda x, key: RULES[key].forward(x).clone(), 'CompositeExplicitAutograd')
#: The rules of the present model, by the key that its graph has for them.
RULES = []


def name_of(node):
    '''The name of the primitive that ``node`` calls, without overload or the underscore of an in-place form.'''
    name = node.target.overloadpacket.__name__
    return name[:-1] if node.target._schema.is_mutable and name.endswith('_') else name


@contextmanager
def plain_attention():
    '''Attention composed of matmul and softmax, without fused kernels or fast paths.'''
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(model, input):
    '''The pure graph of ``model`` at ``input``; a second pass takes out what composed functions write in place.'''
    with torch.no_grad(), plain_attention():
        graph = record(model, input)
        if any(node.op == 'call_function' and is_mutable(node) for node in graph.graph.nodes):
            graph = pure(pure(model, input), input)
    return graph


class Recorder(TorchDispatchMode):
    '''Writes down the primitives that run. ``make_fx`` does too, and finds out the type and size of every result.'''
    def __init__(self, graph):
        super().__init__()
        self.graph, self.nodes, self.root = graph, {}, torch.nn.Module()

    def node_of(self, tensor):
        if id(tensor) not in self.nodes:
            name = f'constant{len(self.nodes)}'
            self.root.register_buffer(name, tensor)
            self.know(tensor, self.graph.get_attr(name))
        return self.nodes[id(tensor)][0]

    def know(self, tensor, node):
        # The tensor is kept, so that no other one gets its id.
        self.nodes[id(tensor)] = node, tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:
            result = func.decompose(*args, **kwargs or {})
        if result is not NotImplemented:
            return result
        operands = tree_map_only(torch.Tensor, self.node_of, (args, kwargs or {}))
        result = func(*args, **kwargs or {})
        node = self.graph.call_function(func, *operands)
        if isinstance(result, torch.Tensor):
            self.know(result, node)
        elif isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    self.know(item, self.graph.call_function(operator.getitem, (node, index)))
        return result


class Untraceable(Exception):
    '''Torch's own functionalization is wrong here.'''


def record(model, input):
    '''The pure graph of ``model``, but for what composed functions write in place.'''
    graph, before, input = torch.fx.Graph(), input, input.detach().clone()
    recorder = Recorder(graph)
    recorder.know(input, graph.placeholder('x'))
    with recorder:
        output = functionalize(partial(model.__class__.__call__, model), remove='mutations_and_views')(input)
    # It takes a reshape that had to copy for a view, and what is written to the copy for written to the original.
    if not (torch.equal(input, before) and torch.allclose(output, model(before), 1e-4, equal_nan=True)):
        raise Untraceable('something else was written to')
    graph.output(recorder.node_of(output))
    recorder.root.graph = graph
    return recorder.root


def pure(function, input):
    '''One pass of tracing with views and in-place operators taken out.'''
    return make_fx(functionalize(partial(function.__class__.__call__, function), remove='mutations_and_views'))(
        input.detach().clone())


def is_mutable(node):
    return node.target.__module__ != '_operator' and node.target._schema.is_mutable


class Rule:
    '''One of Zennit's rules on a module of one input, from the formula in its paper.

    Parameters
    ----------
    module: torch.nn.Module
    name: str
        The rule: ``Epsilon``, ``Gamma``, ``ZPlus``, ``AlphaBeta``, ``Flat``, ``WSquare``, ``ZBox``, ``Norm``, ``Pass``.
    *arguments: tuple of float
        Its arguments, as Zennit's class of that name takes them.
    '''
    STABILIZER = 1e-6

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments
        self.forward = module.forward

    def relevance(self, x, y, relevance):
        '''``R_x`` given ``R_y``.'''
        if self.name == 'Pass':
            return relevance
        with torch.enable_grad():
            return getattr(self, self.name.lower())(x.detach(), y, relevance, *self.arguments)

    def norm(self, x, y, relevance, stabilizer=STABILIZER):
        '''``x J^T (R / y)``, of any differentiable module.'''
        x = x.clone().requires_grad_()
        grad, = torch.autograd.grad(self.forward(x), x, relevance / stable(y, stabilizer))
        return (x * grad).detach()

    epsilon = norm

    def shares(self, x, relevance, weigh):
        '''Sum up, sample by sample, the shares of the inputs (rows) in the relevance of the outputs (columns).'''
        parts = []
        for sample, own in zip(x, relevance, strict=True):
            slopes = self.slopes(sample)
            bias = self.apply(torch.zeros_like(sample)).flatten()
            parts.append((weigh(sample.reshape(-1, 1), slopes, bias) @ own.reshape(-1, 1)).reshape(sample.shape))
        return torch.stack(parts)

    def apply(self, sample, **parameters):
        return functional_call(self.module, parameters, sample[None])[0].detach() if parameters else self.forward(
            sample[None])[0].detach()

    def slopes(self, sample, **parameters):
        '''The matrix of weights between all inputs and outputs, of which the parameters may be replaced.'''
        basis = torch.eye(sample.numel(), dtype=sample.dtype).reshape(-1, *sample.shape)
        zero = self.apply(torch.zeros_like(sample), **parameters).flatten()
        return torch.stack([self.apply(unit, **parameters).flatten() - zero for unit in basis])

    def zplus(self, x, y, relevance):
        return self.alphabeta(x, y, relevance, 1., 0.)

    def alphabeta(self, x, y, relevance, alpha=2., beta=1.):
        def weigh(x, slopes, bias):
            positive, negative = (x * slopes).clamp(min=0), (x * slopes).clamp(max=0)
            above = positive / stable(positive.sum(0) + bias.clamp(min=0), self.STABILIZER)
            return alpha * above - beta * negative / stable(negative.sum(0) + bias.clamp(max=0), self.STABILIZER)
        return self.shares(x, relevance, weigh)

    def gamma(self, x, y, relevance, gamma=.25):
        def weigh(x, slopes, bias):
            total, output = x * slopes, (x * slopes).sum(0) + bias
            above, below = total + gamma * total.clamp(min=0), total + gamma * total.clamp(max=0)
            over = stable(above.sum(0) + bias + gamma * bias.clamp(min=0), self.STABILIZER)
            under = stable(below.sum(0) + bias + gamma * bias.clamp(max=0), self.STABILIZER)
            return above / over * (output > 0) + below / under * (output < 0)
        return self.shares(x, relevance, weigh)

    def flat(self, x, y, relevance):
        return self.constant_shares(x, relevance, torch.ones_like, torch.zeros_like)

    def wsquare(self, x, y, relevance):
        return self.constant_shares(x, relevance, torch.square, torch.square)

    def constant_shares(self, x, relevance, weight, bias):
        parameters = {name: (bias if name == 'bias' else weight)(parameter)
                      for name, parameter in self.module.named_parameters()}

        def weigh(sample, slopes, _):
            zero = torch.zeros(x.shape[1:], dtype=x.dtype)
            slopes = self.slopes(zero, **parameters)
            added = self.apply(zero, **parameters).flatten()
            return slopes / stable(slopes.sum(0) + added, self.STABILIZER)
        return self.shares(x, relevance, weigh)

    def zbox(self, x, y, relevance, low, high):
        def weigh(x, slopes, _):
            total = x * slopes - low * slopes.clamp(min=0) - high * slopes.clamp(max=0)
            return total / stable(total.sum(0), self.STABILIZER)
        return self.shares(x, relevance, weigh)


def stable(value, epsilon):
    '''``value + epsilon sign(value)``, with the sign of 0 positive.'''
    return torch.where(value < 0, value - epsilon, value + epsilon)


@contextmanager
def ruled(model, rules):
    '''Turn modules of ``model`` into primitives; ``rules`` has the name and the arguments of a rule by module name.'''
    RULES[:] = [Rule(model.get_submodule(module), *rule) for module, rule in rules.items()]
    try:
        for key, rule in enumerate(RULES):
            rule.module.forward = partial(call_ruled, key)
        yield
    finally:
        for rule in RULES:
            del rule.module.forward


def call_ruled(key, x):
    return torch.ops.replica.ruled(x, key)


class Replica:
    '''Values, carrying flags and backward pass over one traced graph.

    Parameters
    ----------
    graph: torch.fx.GraphModule
        What ``trace`` gave.
    input: torch.Tensor
        The input to explain.
    softmax: {'constant', 'taylor'}
        How relevance passes a softmax: not at all (CP-LRP) or by its gradient (AttnLRP).
    '''
    def __init__(self, graph, input, softmax='constant'):
        self.graph, self.softmax = graph, softmax
        self.values, self.carrying, self.moved, self.made_of, self.parts = {}, set(), set(), {}, {}
        self.weighing, self.whole, self.gates, self.vanishing = {}, {}, {}, {}
        with torch.no_grad():
            for node in graph.graph.nodes:
                self.run(node, input)

    # forward

    def run(self, node, input):
        '''Compute the value of ``node`` and decide whether it carries relevance.'''
        if node.op == 'placeholder':
            self.values[node] = input.detach().clone()
            self.carrying.add(node)
            self.moved.add(node)
        elif node.op == 'get_attr':
            self.values[node] = getattr(self.graph, node.target).detach()
        elif node.op == 'call_function':
            args, kwargs = self.fetch(node)
            self.values[node] = self.call(node.target, args, kwargs)
            self.follow_gates(node)
            if self.softmax == 'taylor' and node not in self.vanishing:
                self.weigh(node)
            if self.carries(node):
                self.carrying.add(node)
                made = self.trace_back(node)
                if made is not None:
                    self.made_of[node] = made
                if self.keeps_domain(node):
                    self.moved.add(node)
                parts = self.parts_among(node)
                if torch.is_tensor(parts) and not parts.all():
                    self.parts[node] = parts

    def parts_among(self, node):
        '''Which elements of ``node`` depend on what carries: those that change with it, or that are made of some.'''
        if node.target.__module__ == '_operator':
            return self.parts.get(node.args[0], {}).get(node.args[1])
        sources = [arg for arg in node.all_input_nodes if arg in self.carrying]
        if any(self.values[arg].is_complex() for arg in sources):
            return None
        known = [self.parts[arg] for arg in sources if arg in self.parts]
        if name_of(node) in PLACES and (known or name_of(node) in PUTS_IN):
            return self.parts_by_change(node)
        if not self.is_kind(node, (*SUMS, *ACTIVATIONS, *BOUNDED, 'mul', 'div', 'neg', 'pow')):
            return None
        sources = sources[:1] if self.is_kind(node, ('div',)) else sources
        if not sources or len(known) < len(sources):
            return None
        return sum(self.parts[arg].int() for arg in sources).expand(self.values[node].shape) > 0

    def parts_by_change(self, node):
        if self.is_kind(node, ('index_put',)) and len(node.args) > 3 and node.args[3]:
            return None

        def other(arg, value):
            if arg not in self.carrying or not value.is_floating_point():
                return value
            mask = self.parts.get(arg, torch.ones_like(value, dtype=torch.bool))
            return torch.where(mask, torch.full_like(value, 123.25), value)
        args, kwargs = self.fetch(node, other)
        changed, values = self.call(node.target, args, kwargs), self.values[node]
        if torch.is_tensor(changed):
            return changed != values
        parts = {key: part != values[key] for key, part in enumerate(changed)}
        if not all(part.all() for part in parts.values()):
            self.parts[node] = parts
        return None

    def fetch(self, node, replace=lambda arg, value: value):
        '''The arguments of ``node`` as values.'''
        def value(arg):
            return replace(arg, self.values[arg])
        return (torch.fx.map_arg(node.args, value), torch.fx.map_arg(node.kwargs, value))

    @staticmethod
    def call(target, args, kwargs):
        '''Run the primitive; one that still writes in place gets a copy to write to.'''
        if target.__module__ != '_operator' and target._schema.is_mutable:
            args = (args[0].clone(), *args[1:])
        target = {
            aten.view_as_complex_copy.default: aten.view_as_complex.default,
            aten._conj_copy.default: aten.conj_physical.default,
            aten.copy.default: lambda old, new: new.to(old.dtype).expand_as(old).clone(),
        }.get(target, target)
        return target(*args, **kwargs)

    def keeps_domain(self, node):
        '''Whether relevance that arrives at ``node`` is relevance, down to the input or to a module with a rule.'''
        if self.is_ruled(node):
            return True
        picks = node.target.__module__ == '_operator' or (name_of(node) in MOVES and not self.is_two_sided(node))
        picks = picks and not (self.is_kind(node, ('index_put',)) and len(node.args) > 3 and node.args[3])
        return picks and all(arg in self.moved for arg in node.all_input_nodes if arg in self.carrying)

    @staticmethod
    def is_ruled(node):
        return node.op == 'call_function' and node.target is torch.ops.replica.ruled.default

    def carries(self, node):
        if node in self.whole or node in self.vanishing:
            return True
        if not any(arg in self.carrying for arg in node.all_input_nodes):
            return False
        if self.is_ruled(node):
            return True
        if node.target.__module__ == '_operator':
            deviation = self.is_kind(node.args[0], MOMENTS) and node.args[1] == 0
            return self.is_float(node) and not deviation
        name = name_of(node)
        if name in GATES or (name in SOFTMAXES and self.softmax == 'constant'):
            return False
        if name == 'pow':
            return isinstance(node.args[1], (int, float)) and node.args[1] >= 1
        if name in SOLVERS:
            return node.args[1] in self.carrying
        if name in ('div', 'addcdiv'):
            return any(arg in self.carrying for arg in node.args[:-1] if isinstance(arg, torch.fx.Node))
        if name == 'glu':
            return True
        if name == 'copy':
            return node.args[1] in self.carrying
        if node.target._schema.is_mutable:
            raise NotImplementedError(f'{node.target} writes into a tensor that carries relevance')
        known = (LINEAR, PRODUCTS, ACTIVATIONS, SOFTMAXES, NORMS, MOMENTS, POWERS, SOLVERS, ('renorm',))
        if not any(name in names for names in known):
            raise NotImplementedError(f'the replica has no rule for {node.target}')
        return self.is_float(node)

    def follow_gates(self, node):
        '''Which tensor a constant is a function of, element by element, and where a sum of such vanishes with it.'''
        if self.is_ruled(node) or node.target.__module__ == '_operator':
            return
        name, value = name_of(node), self.values[node]
        tensors = list(dict.fromkeys(node.all_input_nodes))
        carrying = [arg for arg in tensors if arg in self.carrying]
        if name in ELEMENTWISE and len(tensors) == len(carrying) == 1 and not node.kwargs:
            if name != 'pow' or not self.carries(node):
                self.gates[node] = carrying[0]
        elif carrying and (name in PRODUCTS or name == 'div'):
            for arg in tensors:
                self.gates.pop(arg, None)
        elif tensors and not carrying and name in (*SUMS, 'mul', 'div', 'neg'):
            sources = {self.gates.get(arg) for arg in tensors if arg in self.gates or self.values[arg].ndim}
            if len(sources) == 1 and None not in sources and not node.kwargs:
                source, = sources
                if name in SUMS and abs(float(self.of(node, source, torch.zeros(()).double()))) <= 1e-12:
                    self.vanishing[node] = source
                elif value.shape == self.values[source].shape:
                    self.gates[node] = source

    def of(self, node, source, value):
        '''What the functions that made ``node`` of ``source`` make of another value.'''
        if node is source:
            return value
        args, kwargs = self.fetch(
            node, lambda arg, own: self.of(arg, source, value) if arg in self.gates or arg is source else own)
        return self.call(node.target, args, kwargs)

    def is_bounded(self, node, source):
        '''Whether all gates that a node is made of stay finite.'''
        inner = [arg for arg in node.all_input_nodes if arg in self.gates or arg is source]
        return all(name_of(node) in BETWEEN if arg is source else self.is_bounded(arg, source) for arg in inner)

    def weigh(self, node):
        '''What a node is in a softmax that is written out, and whether it is the last step of one.

        ``exponential`` or ``sum`` for what is linear in exponentials, ``inverse``, ``log``, and for exponentials that
        were multiplied with other factors, how many share. Of a last step ``self.whole`` has that number.
        '''
        if node.target.__module__ == '_operator':
            if node.args[0] in self.weighing and self.is_float(node):
                self.weighing[node] = self.weighing[node.args[0]]
            return
        name, args = 'ruled' if self.is_ruled(node) else name_of(node), [
            arg for arg in dict.fromkeys(node.all_input_nodes) if arg in self.carrying or arg in self.weighing]
        roles = [self.weighing.get(arg) for arg in args]
        if name in SOFTMAXES:
            self.weighing[node] = 'log' if name == '_log_softmax' else 'exponential'
        elif name in EXPONENTIALS and args:
            self.weighing[node] = 'exponential'
            if roles == ['log']:
                self.whole[node] = 1
        elif name == 'logsumexp' and args or (name == 'log' and roles == ['sum']):
            self.weighing[node] = 'log'
        elif name == 'reciprocal' and roles == ['sum']:
            self.weighing[node] = 'inverse'
        elif name == 'div' and len(roles) == 2 and self.weighing.get(node.args[1]) == 'sum':
            self.finish(node, self.weighing.get(node.args[0]))
        elif name in PRODUCTS and len(args) > 1:
            self.weigh_product(node, args)
        elif roles and (name in LINEAR or name in PRODUCTS) or (name == 'div' and args == node.args[:1]):
            role = self.weigh_linear(node, name, set(roles))
            if role is not None:
                self.weighing[node] = role

    def weigh_linear(self, node, name, roles):
        moves = (name in REINDEX or name in ('neg', 'mul', 'div') or name in BOUNDED) and (
            name not in ('index_add', 'scatter_add') and not (name == 'index_put' and len(node.args) > 3))
        if name in SUMS and 'log' in roles and roles <= {'log', None}:
            return 'log'
        if None in roles or roles & {'log', 'inverse'} and not moves or len(roles) > 1 and name not in SUMS:
            return None
        role = roles.pop() if len(roles) == 1 else 'sum'
        pair = name in SUMS and len({arg for arg in node.args[:2] if isinstance(arg, torch.fx.Node)} & {
            *self.weighing}) > 1
        adds = pair or not (moves or name in SUMS)
        return 'sum' if adds and role == 'exponential' else role

    def weigh_product(self, node, args):
        roles = [self.weighing[arg] for arg in args if arg in self.weighing]
        others = [arg for arg in args if arg not in self.weighing and not self.weighs(self.made_of.get(arg))]
        above = [role for role in roles if role in ('exponential', 'sum') or isinstance(role, int)]
        if len(above) == 1 and len(roles) - len(above) <= roles.count('inverse') <= 1:
            role = above[0]
            if len(args) > len(roles):
                role = None if isinstance(role, int) else 1 + len(others)
            if len(roles) == 2:
                self.finish(node, role)
            elif role is not None:
                self.weighing[node] = role

    def finish(self, node, role):
        if role is not None and role not in ('log', 'inverse'):
            self.whole[node] = role if isinstance(role, int) else 1
            if not isinstance(role, int):
                self.weighing[node] = 'exponential'

    def is_float(self, node):
        value = self.values[node]
        return not torch.is_tensor(value) or value.is_floating_point() or value.is_complex()

    def trace_back(self, node):
        '''The activation that ``node`` is, if only moved, scaled, shifted, summed since; what it is at 0.'''
        if node in self.vanishing:
            source = self.vanishing[node]
            made = self.made_of.get(source, (None, 0.))
            zero = float(self.of(node, source, torch.tensor(made[1]).double())) if made[1] else 0.
            return 'tanh' if self.is_bounded(node, source) else 'expm1', zero
        parts = [arg for arg in node.all_input_nodes if arg in self.carrying]
        parts = [node.args[0]] if self.is_kind(node, ('div',)) and node.args[0] in self.carrying else parts
        known = [self.made_of[arg] for arg in parts if arg in self.made_of]
        if self.is_kind(node, (*ACTIVATIONS, 'pow')) or self.is_two_sided(node):
            zero = self.at(node, known[0][1]) if known and known[0][1] else 0.
            return name_of(node) if node.target.__module__ != '_operator' else 'item', zero
        summands = [arg for arg in node.args[:2] if arg in self.carrying] if self.is_kind(node, SUMS) else []
        if len(parts) > 1 or len(summands) > 1:
            return self.trace_back_several(node, parts, known)
        if self.is_kind(node, SUMS) and any(self.is_one_number(arg) for arg in node.args[:2]):
            made = known[0] if known else (None, 0.)
            zero = self.at(node, made[1])
            return (made[0], zero) if zero or made[0] else None
        if not known:
            return None
        name, zero = known[0]
        if node.target.__module__ == '_operator' or self.is_kind(node, (*REINDEX, 'mul', 'div', 'neg')):
            return known[0]
        if self.is_kind(node, BOUNDED):
            return name or 'clamp', self.at(node, zero)
        return known[0] if self.is_kind(node, ('sum', 'mean', 'cumsum', 'nansum')) and name and zero else None

    def trace_back_several(self, node, parts, known):
        if len(known) < len(parts) or not all(name for name, _ in known):
            return None
        zeros = {arg: made[1] for arg, made in zip(parts, known, strict=True)}
        if self.is_kind(node, SUMS):
            return name_of(node), self.at(node, zeros)
        others = [made for made in known if not self.weighs(made)]
        if not others:
            zero = next((zero for zero in zeros.values() if zero), 0.)
            together = self.is_kind(node, (*REINDEX, 'mul', 'mm', 'bmm', 'mv', 'dot'))
            return (known[0][0], zero) if together else None
        return others[0] if self.is_kind(node, REINDEX) and not any(zeros.values()) else None

    def at(self, node, number):
        '''What ``node`` makes of a number in the place of its carrying operands, if of each another by operand.'''
        numbers = number if isinstance(number, dict) else dict.fromkeys(node.all_input_nodes, number)

        def at(arg, value):
            if arg in self.carrying:
                return torch.tensor([numbers[arg]], dtype=torch.float64)
            return value.reshape(-1)[:1].double() if torch.is_tensor(value) else value
        args, kwargs = self.fetch(node, at)
        return float(self.call(node.target, args, kwargs).reshape(-1)[0])

    def is_one_number(self, arg):
        if not isinstance(arg, torch.fx.Node):
            return isinstance(arg, (int, float)) and not isinstance(arg, bool)
        value = self.values[arg]
        return arg not in self.carrying and torch.is_tensor(value) and value.numel() > 0 and bool(
            (value == value.reshape(-1)[0]).all())

    def is_two_sided(self, node):
        '''Whether a clamp is between numbers on both sides of zero: an activation like hardtanh.'''
        carrying = [arg for arg in node.args if arg in self.carrying]
        if not self.is_kind(node, BOUNDED) or len(carrying) != 1 or not all(
                bound is None or self.is_one_number(bound) for bound in node.args if bound is not carrying[0]):
            return False
        same = self.values[carrying[0]].shape == self.values[node].shape
        return same and self.at(node, 0.) == 0.

    @staticmethod
    def weighs(made):
        '''Whether what a tensor was made of is a gate: an activation that is not 0 at 0, or that saturates.'''
        return made is not None and made[0] is not None and (made[1] != 0 or made[0] in SQUASHING)

    @staticmethod
    def is_kind(node, names):
        return node.op == 'call_function' and node.target.__module__ != '_operator' and name_of(node) in names

    # backward

    def relevance(self, target):
        '''The relevance of the input for the relevance ``target(output)`` of the output.'''
        out_node = next(node for node in self.graph.graph.nodes if node.op == 'output').args[0]
        if out_node not in self.carrying:
            raise ValueError('the output carries no relevance')
        out = self.values[out_node]
        shares, grads = {out_node: target(out)}, {}
        for node in reversed(list(self.graph.graph.nodes)):
            if node in self.carrying and node.op == 'call_function':
                self.enter(node, shares, grads)
                for flow, pull in ((shares, self.pull_share), (grads, self.pull)):
                    for arg, part in pull(node, flow[node]) if node in flow else ():
                        flow[arg] = self.accumulate(flow.get(arg), part)
        source = next(node for node in self.graph.graph.nodes if node.op == 'placeholder')
        none = torch.zeros_like(self.values[source])
        return self.values[source] * grads.get(source, none) + shares.get(source, none)

    def enter(self, node, shares, grads):
        '''Bring what flows backward into ``node`` into one domain: relevance at rules, else relevance per unit.'''
        if self.is_ruled(node) and node in grads:
            shares[node] = self.accumulate(shares.get(node), self.values[node] * grads.pop(node))
        elif node in shares and node not in self.moved:
            value = self.values[node]
            wide = torch.promote_types(value.dtype, torch.float32)
            grad = shares.pop(node).to(wide) / stable(value.to(wide), OUTPUT_EPSILON)
            grads[node] = self.accumulate(grads.get(node), grad.to(value.dtype))

    def pull_share(self, node, share):
        '''Pairs of an argument of ``node`` and the relevance it gains from that of the node.'''
        if self.is_ruled(node):
            return [(node.args[0], RULES[node.args[1]].relevance(self.values[node.args[0]], self.values[node], share))]
        if node.target.__module__ == '_operator':
            return [(node.args[0], {node.args[1]: share})]
        return self.pull_linear(node, share)

    @staticmethod
    def accumulate(old, new):
        if isinstance(new, dict):
            return {key: Replica.accumulate((old or {}).get(key), new[key]) for key in new} | {
                key: value for key, value in (old or {}).items() if key not in new}
        return new if old is None else old + new

    def pull(self, node, grad):
        '''Pairs of an argument of ``node`` and what its ``g`` gains from the ``g`` of the node.'''
        if node.target.__module__ == '_operator':
            return [(node.args[0], {node.args[1]: grad})]
        name = name_of(node)
        if node in self.vanishing:
            return self.pull_vanishing(node, grad)
        if node in self.whole:
            return self.pull_whole(node, grad / self.whole[node])
        if name in ACTIVATIONS or self.is_two_sided(node):
            return self.pull_activation(node, grad)
        if name in NORMS:
            return self.pull_norm(node, name, grad)
        if name == 'glu':
            return self.pull_glu(node, grad)
        if name == 'pow':
            return [(arg, part / node.args[1]) for arg, part in self.pull_linear(node, grad, (0,))]
        if name in SOLVERS:
            return self.pull_linear(node, grad, (1,))
        if name == 'renorm':
            return [(node.args[0], grad * self.values[node] / self.values[node.args[0]])]
        if name in POWERS:
            return self.pull_linear(node, grad / self.factors(node, name), (0,))
        if name == 'lerp':
            return self.pull_lerp(node, grad)
        if name in PRODUCTS:
            return self.pull_product(node, name, grad)
        if name in ('div', 'addcdiv'):
            return self.pull_linear(node, grad, range(len(node.args) - 1))
        return self.pull_linear(node, grad)

    def pull_whole(self, node, grad):
        '''The transposed Jacobian of all steps of a softmax up to its last, in what these start from.'''
        inside, found = {node: grad}, {}
        for step in reversed(list(self.graph.graph.nodes)):
            if step not in inside:
                continue
            picks = step.target.__module__ == '_operator'
            for arg, part in [(step.args[0], {step.args[1]: inside[step]})] if picks else self.pull_linear(
                    step, inside[step], among=self.carrying | {*self.weighing}):
                plain = arg not in self.weighing or arg in self.whole or self.is_kind(arg, SOFTMAXES)
                flow = found if plain else inside
                flow[arg] = self.accumulate(flow.get(arg), part)
        return list(found.items())

    def leaves(self, node, positions, among):
        '''The arguments of ``node`` with a fresh leaf at each occurrence of an operand, and those leaves.'''
        found = []

        def leaf(arg):
            value = self.values[arg]
            if arg in among and torch.is_tensor(value) and (value.is_floating_point() or value.is_complex()):
                value = value.detach().clone().requires_grad_()
                found.append((arg, value))
            return value

        def fixed(arg):
            return self.values[arg]

        args = tuple(
            torch.fx.map_arg(arg, leaf if positions is None or index in positions else fixed)
            for index, arg in enumerate(node.args)
        )
        kwargs = torch.fx.map_arg(node.kwargs, fixed)
        return args, kwargs, found

    def pull_linear(self, node, grad, positions=None, among=None):
        '''The transposed Jacobian in the operands at ``positions``, those that carry if not told others.'''
        args, kwargs, found = self.leaves(node, positions, self.carrying if among is None else among)
        with torch.enable_grad():
            outputs = self.call(node.target, args, kwargs)
        if not torch.is_tensor(outputs):
            grad = {key: part for key, part in grad.items() if part is not None}
            keys = [key for key in grad if outputs[key].requires_grad]
            outputs, grad = [outputs[key] for key in keys], [grad[key] for key in keys]
        if not found or outputs == []:
            return []
        parts = torch.autograd.grad(outputs, [one for _, one in found], grad, allow_unused=True)
        return [(arg, part) for (arg, _), part in zip(found, parts, strict=True) if part is not None]

    def pull_product(self, node, name, grad):
        '''Shares of 1 / n for the n carrying factors; an added operand takes the plain gradient.'''
        factors = [index for index in PRODUCTS[name] if index < len(node.args) and node.args[index] in self.carrying]
        pairs = self.pull_parts(node, grad, factors)
        if name not in ('mul', 'mm', 'bmm', 'mv', 'dot') and 0 not in PRODUCTS[name]:
            pairs += self.pull_linear(node, grad, (0,))
        return pairs

    def pull_parts(self, node, grad, factors):
        '''Shares for each product of parts: of those that carry where some do, else of all.'''
        pairs, parts = [], {index: self.parts[node.args[index]] for index in factors if node.args[index] in self.parts}
        if not self.is_kind(node, ('mul', 'addcmul', 'addr')):  # of what sums up, only a factor as a whole is none
            parts = {index: mask for index, mask in parts.items() if not mask.any()}
        for chosen in product(*([True, False] if index in parts else [True] for index in factors)):
            carries = dict(zip(factors, chosen, strict=True))
            sharing = [index for index in factors if carries[index]] or factors
            sharing = [index for index in sharing if not self.weighs(self.made_of.get(node.args[index]))] or sharing
            values = {index: self.values[node.args[index]] * (
                parts.get(index, torch.ones(())) == carries[index]) for index in factors}
            for index in sharing:
                leaf = values[index].clone().requires_grad_()
                args = [leaf if place == index else values.get(place, arg)
                        for place, arg in enumerate(self.fetch(node)[0])]
                with torch.enable_grad():
                    result = self.call(node.target, args, self.fetch(node)[1])
                part, = torch.autograd.grad(result, leaf, grad)
                mask = parts.get(index, torch.ones(())) == carries[index]
                pairs.append((node.args[index], part * mask / len(sharing)))
        return pairs

    def pull_activation(self, node, grad):
        '''``g y / x``, and the derivative where ``x`` is 0.'''
        arg = next(arg for arg in node.args if arg in self.carrying)
        x, y = self.values[arg], self.values[node]
        (_, slope), = self.pull_linear(node, torch.ones_like(y))
        ratio = y / torch.where(x == 0, torch.ones_like(x), x.conj())
        return [(arg, grad * torch.where(x == 0, slope, ratio))]

    def pull_vanishing(self, node, grad):
        '''The same for gates less what they are at zero.'''
        source = self.vanishing[node]
        x = self.values[source].detach().clone().requires_grad_()
        with torch.enable_grad():
            y = self.of(node, source, x)
        slope, = torch.autograd.grad(y.sum(), x)
        x, y = x.detach(), y.detach()
        return [(source, grad * torch.where(x == 0, slope, y / torch.where(x == 0, torch.ones_like(x), x)))]

    def pull_glu(self, node, grad):
        '''``a sigmoid(b)``: the sigmoid is a gate.'''
        arg, dim = node.args[0], (node.args[1] if len(node.args) > 1 else -1)
        gate = self.values[arg].chunk(2, dim)[1].sigmoid()
        return [(arg, torch.cat([grad * gate, torch.zeros_like(gate)], dim))]

    def factors(self, node, name):
        '''How many factors each element of a product over a dimension has.'''
        x = self.values[node.args[0]]
        if len(node.args) == 1 or not isinstance(node.args[1], int):
            return x.numel()
        size, dim = x.shape[node.args[1]], node.args[1] % x.ndim
        if name == 'prod':
            return size
        return torch.arange(1, size + 1).view([-1 if axis == dim else 1 for axis in range(x.ndim)])

    def pull_lerp(self, node, grad):
        '''``a + w (b - a)``: a sum, and a product of two where the weight carries relevance.'''
        start, end, weight = node.args
        if weight not in self.carrying:
            return self.pull_linear(node, grad, (0, 1))
        product = grad * self.values[weight] / 2
        pairs = [(start, grad - product), (end, product),
                 (weight, grad * (self.values[end] - self.values[start]) / 2)]
        return [(arg, part) for arg, part in pairs if arg in self.carrying]

    def pull_norm(self, node, name, grad):
        '''``w (x - mean(x)) / deviation`` with the deviation held constant; ``grad`` is that of output 0.'''
        x, grad = self.values[node.args[0]], grad[0]
        weight = self.values[node.args[1 if name != 'native_layer_norm' else 2]] if node.args[
            1 if name != 'native_layer_norm' else 2] is not None else None
        if name == 'native_layer_norm':
            count = len(node.args[1])
            rows = x.reshape(*x.shape[:x.ndim - count], -1)
            scaled = (grad if weight is None else grad * weight).reshape(rows.shape)
            centred = scaled / (rows.var(-1, unbiased=False, keepdim=True) + node.args[4]).sqrt()
            return [(node.args[0], (centred - centred.mean(-1, keepdim=True)).reshape(x.shape))]
        channels = x.shape[1]
        shape = (1, channels) + (1,) * (x.ndim - 2)
        scaled = grad if weight is None else grad * weight.view(shape)
        if name == 'native_group_norm':
            groups, eps = node.args[6], node.args[7]
            rows, scaled = x.reshape(x.shape[0], groups, -1), scaled.reshape(x.shape[0], groups, -1)
            centred = scaled / (rows.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
            return [(node.args[0], (centred - centred.mean(-1, keepdim=True)).reshape(x.shape))]
        return [(node.args[0], self.pull_batch_norm(node, name, x, scaled, shape))]

    def pull_batch_norm(self, node, name, x, scaled, shape):
        names = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if given['training']:
            dims = [dim for dim in range(x.ndim) if dim != 1]
            centred = scaled / (x.var(dims, unbiased=False, keepdim=True) + given['eps']).sqrt()
            return centred - centred.mean(dims, keepdim=True)
        return scaled / (self.values[given['running_var']].view(shape) + given['eps']).sqrt()


def explain(model, input, target=None, softmax='constant'):
    '''The replica's relevance of ``input``; ``target`` maps the output to its relevance (default: the output).'''
    if target is None:
        target = torch.clone
    return Replica(trace(model, input), input, softmax).relevance(target)


# hand-written twins, with detach and nothing else, to judge the replica itself and what it cannot see

def gradient_times_input(function, input, target):
    '''``x * g`` of a function whose gates are already detached.'''
    x = input.detach().clone().requires_grad_()
    out = function(x)
    sign = torch.where(out < 0, -1., 1.).to(out)
    grad, = torch.autograd.grad(out, x, target(out.detach()) / (out.detach() + OUTPUT_EPSILON * sign))
    return (x * grad).detach()


def halved(tensor, share):
    '''The value of ``tensor`` with ``share`` of its gradient.'''
    return tensor * share + (tensor * (1 - share)).detach()


def vanishing(function, x):
    '''The activation ``function`` of ``x`` under the identity rule.'''
    return x * (function(x) / x).detach()


def frozen_norm(x, dims, eps):
    '''Normalization over ``dims`` with a constant deviation.'''
    deviation = (x.var(dims, unbiased=False, keepdim=True) + eps).sqrt().detach()
    return (x - x.mean(dims, keepdim=True)) / deviation


def twin_linear_attention(module, x):
    b, _, h, w = x.shape
    q, k, v = (t.reshape(b, module.heads, -1, h * w) for t in module.to_qkv(x).chunk(3, dim=1))
    weights = torch.einsum('bhdn,bhdm->bhnm', q.softmax(-2) * module.scale, k.softmax(-1)).detach()
    out = torch.einsum('bhnm,bhem->bhen', weights, v).reshape(b, -1, h, w)
    conv, norm = module.to_out
    out = frozen_norm(conv(out), (1, 2, 3), norm.eps)
    return out * norm.weight[:, None, None] + norm.bias[:, None, None]


def twin_linear_attention_cnn(model, x):
    conv, norm, gelu, pool = model.stem
    y = conv(x)
    y = frozen_norm(y.reshape(len(y), norm.num_groups, -1), -1, norm.eps).reshape(y.shape)
    x = pool(vanishing(gelu, y * norm.weight[:, None, None] + norm.bias[:, None, None]))
    x = x + twin_linear_attention(model.attn, x)
    x = vanishing(model.act, model.conv(x))
    return model.fc(x.flatten(2).mean(-1))


def twin_swiglu(model, x):
    x = model.embed(x)
    gate = halved(vanishing(torch.nn.functional.silu, model.w1(x)), 0.5)
    return model.head(x + model.w2(gate * halved(model.w3(x), 0.5)))


def twin_vit_attention(module, x):
    norm = module.norm
    x = frozen_norm(x, -1, norm.eps) * norm.weight + norm.bias
    q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in module.to_qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) * module.scale).softmax(-1).detach()
    return module.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


def twin_block_in_a_loop(model, x):
    norm, first, gelu, _, second, _ = model.ff.net
    for _ in range(3):
        x = twin_vit_attention(model.attn, x) + x
        y = frozen_norm(x, -1, norm.eps) * norm.weight + norm.bias
        x = second(vanishing(gelu, first(y))) + x
    return model.head(x)


def twin_three_way_einsum(model, x):
    a, b, c = (halved(layer(x), 1 / 3) for layer in (model.a, model.b, model.c))
    return model.head((a * (b * c).sum(-1, keepdim=True)).sum(1))


TWINS = {
    'linear_attention_cnn': twin_linear_attention_cnn,
    'swiglu': twin_swiglu,
    'block_in_a_loop': twin_block_in_a_loop,
    'three_way_einsum': twin_three_way_einsum,
}


def twin_relevance(name, model, input, target):
    '''The relevance by the hand-written twin of problem ``name``.'''
    return gradient_times_input(lambda x: TWINS[name](model, x), input, target)
