'''How relevance flows through one call of an operator, in the gradient domain.

With ``R_x = x * g_x``, what flows backward here is ``g``. Every function below runs an operator such that autograd's
backward pass is the rule: plain autograd is LRP-0 for whatever is linear, products divide by the number of their
factors, gates are constants, activations scale by ``y / x``.
'''
from numbers import Real

import torch
from torch.nn import functional

from .compositions import COMPOSITIONS, CONDITIONAL, Unwritten, visible
from .errors import UnsupportedModule, UnsupportedOperator
from .kernels import NORMS, ConstantAttention, ConstantConvolution, ConstantLinear, Scale, blank_rows, slope_at_zero
from .operators import FACTORS, GATED, HOMOGENEOUS, SATURATING, SIGNATURES, SMOOTH, WRITES, Kind, out_of_place

#: Sums that are weighted by another operand.
_BILINEAR = frozenset('trapezoid trapz cumulative_trapezoid embedding_bag'.split())
_POWERS = ('pow', 'ipow', 'float_power')


def tensors_in(*trees):
    '''Return the tensors in nested lists, tuples and dicts, in order.'''
    found = []
    for tree in trees:
        if isinstance(tree, torch.Tensor):
            found.append(tree)
        elif isinstance(tree, (list, tuple)):
            found.extend(tensors_in(*tree))
        elif isinstance(tree, dict):
            found.extend(tensors_in(*tree.values()))
    return found


def substitute(tree, function):
    '''Return nested lists, tuples and dicts with `function` applied to every tensor.'''
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: substitute(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [substitute(item, function) for item in tree]
        return type(tree)(*items) if hasattr(tree, '_fields') else type(tree)(items)
    return tree


class Call:
    '''One call of an operator: the function, its arguments, and the operands that carry relevance.'''
    __slots__ = ('engine', 'operator', 'func', 'args', 'kwargs', 'operands', 'opened', 'record')

    def __init__(self, engine, operator, func, args, kwargs, operands):
        self.engine = engine
        self.operator = operator
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.operands = operands
        self.opened = False
        self.record = None
        if kwargs and operator.name in SIGNATURES or 'other' in kwargs or 'input' in kwargs:
            self._to_positional(SIGNATURES.get(operator.name, ('input', 'other')))

    def _to_positional(self, signature):
        self.kwargs = dict(self.kwargs)
        for name in signature[len(self.args):]:
            if name not in self.kwargs:
                break
            self.args = (*self.args, self.kwargs.pop(name))

    def run(self, args=None):
        '''Call the function, with other positional arguments if given.'''
        return self.func(*(self.args if args is None else args), **self.kwargs)

    def run_out_of_place(self, args=None):
        '''Call the function so that no argument is written to.'''
        args = self.args if args is None else args
        if self.operator.inplace:
            return out_of_place(self.func, self.operator.name)(*args, **self.kwargs)
        if self.kwargs.get('inplace') is True:
            return self.func(*args, **{**self.kwargs, 'inplace': False})
        return self.func(*args, **self.kwargs)

    @property
    def inplace(self):
        '''Whether the function writes into its first argument.'''
        return self.operator.inplace or self.kwargs.get('inplace') is True or self._positional_inplace()

    def _positional_inplace(self):
        if self.operator.kind is not Kind.ACTIVATION or self.operator.name in ('pow', 'ipow', 'float_power', 'prelu'):
            return False
        return len(self.args) > 1 and self.args[-1] is True

    @property
    def accumulates(self):
        '''Whether a function that writes to places adds to what is there.'''
        return self.operator.name in WRITES and (
            bool(self.kwargs.get('accumulate')) or 'reduce' in self.kwargs or any(arg is True for arg in self.args[3:]))

    def plain_mask(self):
        '''Make of a mask of attention a plain tensor of two axes or more, as torch's own kernels see it.'''
        mask = self.args[3] if len(self.args) > 3 else self.kwargs.get('attn_mask')
        if not isinstance(mask, torch.Tensor):
            return
        plain = mask._materialize(self.args[0].device) if hasattr(mask, '_materialize') else mask
        plain = plain[None] if plain.ndim == 1 else plain
        self.args, self.kwargs = substitute(
            (self.args, self.kwargs), lambda tensor: plain if tensor is mask else tensor)
        self.operands = [plain if operand is mask else operand for operand in self.operands]

    def write_back(self, output):
        '''Put an output computed out of place where the caller expects it.'''
        if self.inplace:
            self.args[0].copy_(output)
            return self.args[0]
        return output

    def carries(self, tensor):
        '''Whether an argument is one of the operands that carry relevance.'''
        return isinstance(tensor, torch.Tensor) and any(tensor is operand for operand in self.operands)


def scaled(tensor, divisor):
    '''Return a view of a tensor whose gradient arrives divided.'''
    view = tensor.view_as(tensor)
    view.register_hook(lambda grad: grad / divisor)
    return view


def proportional(call):
    '''LRP-0 for anything linear in its operands together: ``g_x = J^T g_z``, which is autograd.'''
    return call.run()


def rearrange(call):
    '''Values move and keep their relevance. Two that are written to one place would both be credited with it.'''
    position = WRITES.get(call.operator.name)
    if position is not None and len(call.args) > position and call.carries(call.args[position]) and (
            not call.accumulates):
        places = _places(call)
        if places is not None and places.unique().numel() < places.numel():
            module, line = call.engine.where.locate()
            raise UnsupportedOperator(
                f'module {module!r}: {call.operator.name} writes to one place more than once, so that it is not '
                f'defined which value stays, and whose relevance it has\n  {line}\n'
                'write each place once, or add with index_add, scatter_add or index_put(..., accumulate=True)'
            )
    return call.run()


def _places(call):
    '''The places that a function writes to, as numbers; None if slices and masks name them, each once.'''
    name, (target, *rest) = call.operator.name, call.args
    if name == 'index_copy':
        return rest[1]
    if name == 'put':
        return rest[0] % target.numel()
    index = tuple(rest[0]) if name == 'index_put' else rest[0]
    if name == 'setitem' and not _names_places(index):
        return None
    numbers = torch.arange(target.numel(), device=target.device).view(target.shape)
    return numbers.gather(*rest[:2]) if name == 'scatter' else numbers[index]


def _names_places(index):
    if isinstance(index, tuple):
        return any(isinstance(item, tuple) or _names_places(item) for item in index)
    is_tensor = isinstance(index, torch.Tensor)
    is_array = isinstance(index, list) or type(index).__module__ == 'numpy'
    return is_array or (is_tensor and index.ndim > 0 and index.dtype not in (torch.bool, torch.uint8))


def constant(call):
    '''View the result as a constant: its backward pass is never run.'''
    with torch.no_grad():
        output = call.run_out_of_place() if call.inplace else call.run()
    if call.inplace:
        call.engine.note_gate(call)
        call.args[0].copy_(output)
        return call.engine.mark(call.args[0], role='constant')
    call.engine.note_gate(call, output)
    return output


def uniform(call):
    '''Share relevance evenly among the `n` factors of a product: ``g_x = J^T g_z / n``.'''
    positions = FACTORS.get(call.operator.name, range(len(call.args)))
    factors = factors_of(call)
    if len(factors) < 2:
        return call.run()
    gates = [tensor for tensor in factors if call.engine.role(tensor) in SATURATING]
    gates = gates if len(gates) < len(factors) else []
    divisor = len(factors) - len(gates)

    def factor(tensor):
        if any(tensor is gate for gate in gates):
            return tensor.detach()
        if call.inplace and tensor is call.args[0]:
            tensor = tensor.clone()
            return scaled(tensor, divisor) if divisor > 1 else tensor
        return scaled(tensor, divisor) if call.carries(tensor) and divisor > 1 else tensor

    args = tuple(substitute(arg, factor) if i in positions else arg for i, arg in enumerate(call.args))
    if call.inplace:
        return call.write_back(call.run_out_of_place(args))
    return call.run(args)


def product(call):
    '''The product over a dimension: every one of its entries is a factor.'''
    tensor, *rest = call.args
    dim = rest[0] if rest else call.kwargs.get('dim')
    if call.operator.name == 'cumprod':
        output = call.run_out_of_place()
        count = torch.arange(1, output.shape[dim] + 1, device=output.device) if output.ndim else 1
        return call.write_back(scaled(output, count if not output.ndim else along(count, dim, output.ndim)).clone())
    return call.run((scaled(tensor, tensor.numel() if dim is None else tensor.shape[dim]), *rest))


def along(values, dim, ndim):
    '''Return a vector in the shape in which it broadcasts along one of `ndim` dimensions.'''
    return values.reshape([-1 if axis == dim % ndim else 1 for axis in range(ndim)])


def quotient(call):
    '''``a / b``: the denominator is a gate.'''
    numerator, denominator = (1, 0) if call.operator.name == 'rtruediv' else (0, 1)
    if call.kwargs.get('rounding_mode') is not None or not call.carries(call.args[numerator]):
        return constant(call)
    args = list(call.args)
    if call.carries(args[denominator]):
        args[denominator] = args[denominator].detach()
    return call.run(args)


def multiply(call):
    '''Elementwise products and quotients.'''
    name = call.operator.name
    if name in ('prod', 'cumprod'):
        return product(call)
    if 'div' in name and name != 'addcdiv':
        return quotient(call)
    if name == 'addcdiv':
        return opened(call)
    if name == 'ldexp':
        return call.run((call.args[0], call.args[1].detach())) if call.carries(call.args[0]) else constant(call)
    return uniform(call)


def _is_number(value):
    return isinstance(value, Real) or (isinstance(value, torch.Tensor) and value.ndim == 0)


def add(call):
    '''Sums. An activation plus a number does not vanish at zero any more, so it is a gate (elu + 1, 1 + tanh).'''
    if call.operator.name.endswith('alpha_dropout') and _trains(call):
        raise UnsupportedModule(f'{call.operator.name} shifts its input at random in training; call model.eval() first')
    if call.operator.name == 'lerp' and len(call.args) > 2 and call.carries(call.args[2]):
        return opened(call)
    if call.operator.name in _BILINEAR:
        return uniform(call)
    if len(call.operands) == 1 and call.engine.role(call.operands[0]) and _adds_a_number(call):
        return constant(call)
    return call.run()


def _trains(call):
    return bool(call.args[2] if len(call.args) > 2 else call.kwargs.get('training', call.kwargs.get('train', False)))


def _adds_a_number(call):
    if call.operator.name not in ('add', 'radd', 'iadd', 'sub', 'subtract', 'rsub', 'isub') or len(call.args) != 2:
        return False
    number = call.args[1] if call.args[0] is call.operands[0] else call.args[0]
    return _is_number(number) and float(number) != 0.


def activation(call):
    '''Identity rule of an activation with ``a(0) = 0``: ``R_x = R_y``, so ``g_x = g_y * y / x``.'''
    name = call.operator.name
    if call.operands[0].is_complex() and name not in ('abs', 'absolute'):
        module, line = call.engine.where.locate()
        raise UnsupportedOperator(f'module {module!r} calls {name} on a complex tensor, for which there is no rule\n'
                                  f'  {line}\nwrite it with products, or for real and imaginary part')
    if name in HOMOGENEOUS:
        return call.run()
    if not call.carries(call.args[0]) or (name in _POWERS and not _is_power(call.args[1])):
        return constant(call)
    operand, *rest = call.args
    if call._positional_inplace():
        rest[-1] = False
    function = out_of_place(call.func, name) if call.operator.inplace else call.func
    kwargs = {key: value for key, value in call.kwargs.items() if key != 'inplace'}
    slope = slope_at_zero(function, rest, kwargs)
    return call.write_back(Scale.apply(operand, lambda x: function(x, *rest, **kwargs), slope))


def _is_power(exponent):
    return _is_number(exponent) and not getattr(exponent, 'requires_grad', False) and float(exponent) >= 1.


def normalization(call):
    '''The deviation is a constant; subtracting the mean is linear.'''
    name = call.operator.name
    if name in ('batch_norm', 'instance_norm') and call.func is not getattr(functional, name):
        return opened(call)
    affine = [arg for arg in call.args[1:] if call.carries(arg)]
    if affine:
        return opened(call, CONDITIONAL.get(call.func))
    x, *rest = call.args
    if torch.is_autocast_enabled(x.device.type) and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
        rest = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in rest]
    return NORMS[name](x, *rest, **call.kwargs)


def attention(call):
    '''Fused attention (of softmax, causal product, delta rule): linear in the values, the rest are gates.'''
    query, key, value, *rest = call.args
    if not call.carries(value):
        return constant(call)
    rest = [arg.detach() if call.carries(arg) else arg for arg in rest]
    kwargs = {name: arg.detach() if call.carries(arg) else arg for name, arg in call.kwargs.items()}
    function = softmax_attention if call.func is functional.scaled_dot_product_attention else call.func
    return function(query.detach(), key.detach(), value, *rest, **kwargs)


def softmax_attention(query, key, value, attn_mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
    '''Without dropout, whose mask cannot be drawn again, no map needs to be kept.'''
    if dropout_p:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return ConstantAttention.apply(value, query, key, attn_mask, is_causal, scale, enable_gqa)


def gate(call):
    '''A function that does not vanish at zero: a constant. Of ``var_mean`` and ``std_mean`` the mean stays linear.'''
    if call.operator.name in ('var_mean', 'std_mean'):
        deviation, mean = call.run()
        return deviation.detach(), mean
    return constant(call)


def linear(call):
    '''Weights times input, as a product of whichever of the two depend on the input.'''
    gated = GATED.get(call.operator.name)
    if gated is not None and call.carries(call.args[gated]):
        if not call.carries(call.args[1 - gated]):
            return constant(call)
        return call.run([arg.detach() if index == gated else arg for index, arg in enumerate(call.args)])
    if call.func is functional.linear and _may_skip(call):
        return ConstantLinear.apply(*call.args, *[None] * (3 - len(call.args)))
    if call.func in _CONVOLUTIONS and _may_skip(call) and _is_dense_convolution(*call.args):
        return _constant_convolution(call.func, *call.args)
    return uniform(call)


def _may_skip(call):
    '''Looking for zeros is worth it on a CPU only; autocast computes in another type than its operands have.'''
    operand = call.args[0]
    only = len(call.operands) == 1 and call.carries(operand) and not call.kwargs and operand.ndim > 1
    return only and operand.device.type == 'cpu' and not torch.is_autocast_enabled('cpu') and not operand.is_complex()


_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def _is_dense_convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return groups == 1 and not isinstance(padding, str) and x.ndim == weight.ndim


def _constant_convolution(function, x, weight, bias=None, *settings):
    return ConstantConvolution.apply(x, weight, bias, function, *settings)


def opened(call, function=None):
    '''Run the code that a composed function consists of under the engine's eyes.'''
    function = function or COMPOSITIONS.get(call.operator.name) or visible(call.func)
    call.opened = True
    try:
        with call.engine:
            output = function(*call.args, **call.kwargs)
    except Unwritten as error:
        module, line = call.engine.where.locate()
        raise UnsupportedOperator(f'module {module!r}: {error}\n  {line}') from error
    return call.write_back(output)


def taylor(call):
    '''The softmax rule of AttnLRP, ``R_x = x (R_y - y sum(R_y))``: autograd, whose hidden bias absorbs relevance.'''
    if call.operator.name == 'gumbel_softmax':
        return constant(call)
    if call.operator.kind is not Kind.ATTENTION:
        return call.run((_without_blanks(call.args[0], call), *call.args[1:]))
    if call.operator.name != 'scaled_dot_product_attention':
        return attention(call)
    if call.engine.recorder is not None:
        with call.engine.overriding({Kind.SOFTMAX: taylor}):
            return opened(call)
    operands = [scaled(arg, divisor) if call.carries(arg) else arg
                for arg, divisor in zip(call.args[:4], _attention_shares(call), strict=False)]
    return call.func(*operands, *call.args[4:], **call.kwargs)


def expansion(call):
    '''The first-order Taylor expansion: autograd. Normalizers and deviations are constants.'''
    kind, name = call.operator.kind, call.operator.name
    if kind is Kind.SOFTMAX:
        return taylor(call)
    if kind is Kind.ADD and name in ('lerp', 'alpha_dropout', 'feature_alpha_dropout'):
        return add(call)
    if kind is Kind.GATE and name not in SMOOTH or name in _POWERS and not _is_power(call.args[1]):
        return gate(call)
    if kind is Kind.MULTIPLY and ('div' in name or name == 'rtruediv'):
        return multiply(call)
    if kind is Kind.LINEAR and len(call.operands) == 1:
        return linear(call)
    if name == 'scaled_dot_product_attention' and call.record is not None:
        return opened(call)  # so that the ledger can tell what each of its steps absorbs
    operands = {id(tensor): tensor.clone() if call.inplace and tensor is call.args[0] else tensor
                for tensor in call.operands}
    if call.record is not None:
        operands = call.record.expand(operands)
    args, call.kwargs = substitute((call.args, call.kwargs), lambda tensor: operands.get(id(tensor), tensor))
    return call.write_back(call.run_out_of_place(args)) if call.inplace else call.run(args)


def factors_of(call):
    '''The operands that are multiplied, each as often as it is.'''
    positions = FACTORS.get(call.operator.name, range(len(call.args)))
    return [tensor for tensor in tensors_in(*(call.args[i] for i in positions)) if call.carries(tensor)]


def softmax_dim(call):
    '''The dimension that a softmax is taken over.'''
    dim = call.kwargs.get('dim', call.args[1] if len(call.args) > 1 else None)
    return functional._get_softmax_dim(call.operator.name, call.args[0].ndim, 3) if dim is None else dim


def blanks(call):
    '''Mark the rows of a softmax that are masked as a whole in the precision it computes in.'''
    scores = call.args[0].detach()
    types = [arg for arg in (*call.args, *call.kwargs.values()) if isinstance(arg, torch.dtype)]
    return blank_rows(scores.to(types[0]) if types else scores, softmax_dim(call))


def _without_blanks(scores, call):
    blank = blanks(call)
    if scores.device.type == 'cpu' and not blank.any():
        return scores
    view = scores.view_as(scores)
    view.register_hook(lambda grad: grad.masked_fill(blank, 0.))
    return view


def _attention_shares(call):
    '''Divisors for query, key, value, mask: map and values share evenly, as do queries and keys the map's part.'''
    query, key, value, mask = (call.carries(arg) for arg in (*call.args, None)[:4])
    first = 2 if value and (query or key or mask) else 1
    second = 2 if query and key else 1
    return first * second, first * second, first, first


#: The rule of each kind of operator, for operators to which a composite gives none.
RULES = {
    Kind.REARRANGE: rearrange, Kind.SELECT: proportional, Kind.ADD: add, Kind.LINEAR: linear, Kind.EINSUM: uniform,
    Kind.MULTIPLY: multiply, Kind.SOFTMAX: constant, Kind.ATTENTION: attention, Kind.GATE: gate,
    Kind.ACTIVATION: activation, Kind.NORMALIZATION: normalization, Kind.COMPOSED: opened,
}
