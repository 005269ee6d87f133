'''Families of attention blocks: how to recognise one by its structure, and what the engine cannot know of it.'''
from functools import partial
from inspect import signature, unwrap
from types import FunctionType

import torch
from einops import rearrange
from torch import nn

from ..attention.fast_attention import causal_linear_attention
from ..kernels import delta_rule, gated_linear_attention
from .methods import has_own
from .multihead import attend, multihead_type, projections_of
from .published import FUNCTIONS, Rewriting, copied, exact, replacement


class Family:
    '''A family of blocks. Equal to any other instance of its class.'''
    def matches(self, module):
        '''Whether a module is a block of the family, by its structure; its name does not count.'''
        raise NotImplementedError

    def help(self, canonizer, module):
        '''Change a block such that the engine can explain it, through the methods of the canonizer.'''

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return hash(type(self))


def _has(module, types):
    return all(_holds(module, name) and isinstance(getattr(module, name), kind) for name, kind in types.items())


def _holds(module, name):
    '''As hasattr, which makes torch compose an error for what is missing: too slow for every module and family.'''
    return (name in module._modules or name in module.__dict__ or name in module._buffers or name in module._parameters
            or hasattr(type(module), name))


def _names(module):
    '''What the code of a module's own class and its bases refers to.'''
    names = set()
    for cls in type(module).__mro__[:type(module).__mro__.index(nn.Module)]:
        codes = [value.__code__ for value in vars(cls).values() if hasattr(value, '__code__')]
        names = names.union(*(_all_names(code) for code in codes))
    return names


def _all_names(code):
    return {*code.co_names}.union(*(_all_names(const) for const in code.co_consts if hasattr(const, 'co_names')))


class LinearAttention(Family):
    '''A packed convolution, and softmaxes of queries and keys. The engine needs no help with it.'''
    def matches(self, module):
        '''Look for ``to_qkv`` (a convolution), ``to_out`` and ``heads``, and code with softmax and einsum.'''
        shape = {'to_qkv': nn.Conv2d, 'to_out': nn.Module, 'heads': int}
        return _has(module, shape) and {'softmax', 'einsum'} <= _names(module)


class ViTAttention(Family):
    '''A packed linear layer, and a softmax of their products. The engine needs no help with it.'''
    def matches(self, module):
        '''Look for ``to_qkv`` (linear), ``attend`` (a softmax), ``heads`` and ``scale``.'''
        shape = {'to_qkv': nn.Linear, 'attend': nn.Module, 'heads': int, 'scale': float}
        return _has(module, shape) and {'matmul', 'einsum', 'scaled_dot_product_attention'} & _names(module) != set()


class Multihead(Family):
    '''Attention with torch's packed projections. torch's own forward is one opaque function.'''
    def matches(self, module):
        '''Look for ``out_proj``, the packed or separate projections, and the heads.'''
        names = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight', 'in_proj_bias')
        shape = {'out_proj': nn.Linear, 'embed_dim': int, 'num_heads': int, 'head_dim': int}
        return _has(module, shape) and set(names) <= set(module._parameters)

    def help(self, canonizer, module):
        '''Give the packed projections of torch's forward children of their own.'''
        if 'multi_head_attention_forward' not in _names(module):
            return
        # Another forward, of a class derived from it or of the instance, calls torch's function in its own way.
        code = getattr(type(module).forward, '__code__', None)
        if code is not None and 'multi_head_attention_forward' in _all_names(code) and not has_own(module, 'forward'):
            projections = projections_of(module)
            canonizer.replace_call(module, lambda _: partial(attend, module, projections))
            for name, projection in projections.items():
                canonizer.insert(module, name, projection)
        canonizer.replace_type(module, multihead_type(type(module)))


class FastAttention(Family):
    '''Attention through feature maps, whatever the kernel: queries and keys are gates.'''
    def matches(self, module):
        '''Look for ``projection_matrix``, ``generalized_attention``, ``no_projection`` and ``causal``.'''
        flags = dict.fromkeys(('generalized_attention', 'no_projection', 'causal'), bool)
        return _has(module, {'projection_matrix': torch.Tensor, **flags})

    def help(self, canonizer, module):
        '''Detach queries and keys, and put our causal product in the place of the known others.'''
        engine = canonizer.engine
        canonizer.replace_call(module, lambda forward: lambda q, k, v: (
            forward(q, k, v) if engine.forward.assignments.expands(module) else forward(q.detach(), k.detach(), v)))
        product = module.__dict__.get('causal_linear_fn')
        known = ('causal_linear_attention', 'causal_linear_attention_noncuda')
        function = product.func if isinstance(product, partial) else product
        if getattr(function, '__name__', None) in known and function is not causal_linear_attention:
            keywords = product.keywords if isinstance(product, partial) else {}
            canonizer.replace_attribute(module, 'causal_linear_fn', partial(
                causal_linear_attention, **{key: value for key, value in keywords.items() if key == 'eps'}))


class Reversible(Family):
    '''Reversible layers that compute activations again in their own backward pass, where no rule can follow.'''
    def matches(self, module):
        '''Look for ``blocks`` of ``f`` and ``g``, an ``args_route``, and code that applies an autograd function.'''
        shape = {'blocks': nn.ModuleList, 'args_route': dict}
        return _has(module, shape) and 'apply' in _names(module) and all(
            _has(block, {'f': nn.Module, 'g': nn.Module}) for block in module.blocks)

    def help(self, canonizer, module):
        '''Put a plain loop over the blocks in the place of the autograd function.'''
        code, scope = type(module).forward.__code__, type(module).forward.__globals__
        functions = {name: _PlainLoop for name in code.co_names if _is_function(scope.get(name))}
        forward = FunctionType(code, {**scope, **functions}, code.co_name, type(module).forward.__defaults__)
        forward.__kwdefaults__ = type(module).forward.__kwdefaults__
        if functions and not code.co_freevars:
            canonizer.replace_call(module, lambda _: partial(forward, module))


def _is_function(value):
    return isinstance(value, type) and issubclass(value, torch.autograd.Function)


class _PlainLoop:
    '''Stands for the autograd function of reversible layers, whose blocks each add two functions in turns.'''
    @staticmethod
    def apply(x, blocks, arguments):
        '''``y1 = x1 + f(x2)`` and ``y2 = x2 + g(y1)`` for each block.'''
        for block, kwargs in zip(blocks, arguments, strict=True):
            first, second = x.chunk(2, dim=2)
            first = first + block.f(second, **kwargs.get('f_args', {}))
            second = second + block.g(first, **kwargs.get('g_args', {}))
            x = torch.cat([first, second], dim=2)
        return x


class FastWeights(Family):
    '''A memory that is written and corrected token by token: features and interpolation weights are gates.'''
    def matches(self, module):
        '''Look for the projections, the feature map ``phi`` and the interpolation weights.'''
        names = ('query', 'key', 'value', 'phi', 'interpolation_weight', 'output')
        return _has(module, dict.fromkeys(names, nn.Module)) and isinstance(getattr(module, 'heads', None), int)

    def help(self, canonizer, module):
        '''Detach the gates; replace a loop that is known to the letter by the delta rule.'''
        if _is_known_loop(module):
            canonizer.replace_call(module, lambda forward: partial(_run_delta_rule, module))
        for gate in (module.phi, module.interpolation_weight):
            canonizer.replace_call(gate, partial(_detached, canonizer.engine, module))


def _detached(engine, module, forward):
    def gate(*args, **kwargs):
        output = forward(*args, **kwargs)
        return output if engine.forward.assignments.expands(module) else output.detach()
    return gate


def _is_known_loop(module):
    code = getattr(type(module).forward, '__code__', None)
    expected = {
        'shape', 'phi', 'query', 'key', 'value', 'interpolation_weight', 'new_zeros', 'range', 'torch', 'einsum',
        'append', 'reshape', 'stack', 'output',
    }
    equations = {const for const in code.co_consts if isinstance(const, str) and '->' in const} if code else set()
    return code is not None and _all_names(code) == expected and equations == {'bhvk,bhk->bhv', 'bhv,bhk->bhvk'}


def _run_delta_rule(module, x):
    sequences = (module.phi(module.query(x)), module.phi(module.key(x)), module.value(x))
    q, k, v = (rearrange(sequence, 'n b h d -> b h n d') for sequence in sequences)
    beta = rearrange(module.interpolation_weight(x), 'n b h 1 -> b h n')
    return module.output(rearrange(delta_rule(q, k, v, beta), 'b h n e -> n b (h e)'))


class PublishedFunctions(Family):
    '''Code that calls published functions for a recurrence or a kernel, whose maps would depend on which it calls.'''
    def matches(self, module):
        '''Look for functions that are named and called like a published one, in what the forward calls.'''
        return bool(Rewriting(FUNCTIONS, module))

    def help(self, canonizer, module):
        '''Put operators in the place of the functions.'''
        code = Rewriting(FUNCTIONS, module)
        for name, function in code.methods.items():
            canonizer.replace_call(module, partial(_of_module, function, module), name)
        for name, row in code.bound.items():
            canonizer.replace_call(module, partial(replacement, row), name)
        for name, value in code.attributes.items():
            canonizer.replace_attribute(module, name, value)


def _of_module(function, module, _):
    return partial(function, module)


class LightningAttention(Family):
    '''Lightning attention, whose blocks of tokens are matrices, and whose size is a detail that changes the map.'''
    def matches(self, module):
        '''Look for the projections, the rates of decay, and code that reads the decays of a block.'''
        names = ('qkv_proj', 'out_proj', 'output_gate', 'norm')
        code = getattr(unwrap(type(module).forward), '__code__', None)
        return _has(module, dict.fromkeys(names, nn.Module)) and code is not None and (
            {'slope_rate', 'diagonal_decay', 'block_size', 'act_fn', 'num_attention_heads', 'head_dim'}
            <= {*code.co_names}) and not has_own(module, 'forward')

    def help(self, canonizer, module):
        '''Run the operator in place of the blocks.'''
        canonizer.replace_call(module, lambda forward: partial(_run_lightning, module, forward))


def _run_lightning(module, forward, *args, **kwargs):
    given = signature(unwrap(type(module).forward)).bind(module, *args, **kwargs).arguments
    given = {**given, **given.pop('kwargs', {})}
    x, mask = given['hidden_states'], given.get('attention_mask')
    caches = [given[name] for name in ('cache', 'past_key_values', 'past_key_value') if given.get(name) is not None]
    cache = caches[0] if caches else None
    if cache is not None and not hasattr(cache, 'set_linear_cache'):
        return forward(*args, **kwargs)
    first, others = None if cache is None else cache.get_linear_cache(module.layer_idx), None
    if x.dtype is torch.float64:
        with torch.no_grad():  # which leaves a memory in the cache, that ours takes the place of
            others = forward(*copied(args), **copied(kwargs))
    qkv = module.act_fn(module.qkv_proj(x))
    qkv = qkv if mask is None else (qkv * mask[:, :, None]).to(qkv.dtype)
    q, k, v = rearrange(qkv, 'b n (h three d) -> three b h n d', three=3, h=module.num_attention_heads).unbind(0)
    decay = -module.slope_rate.view(-1, 1).expand(*q.shape[:-1])
    out, last = gated_linear_attention(q, k, v, decay, initial_state=first, output_final_state=True)
    out = module.norm(rearrange(out, 'b h n d -> b n (h d)'))
    result = module.out_proj(torch.sigmoid(module.output_gate(x)) * out), last
    result = result if others is None else exact(result, others)
    if cache is not None:
        cache.set_linear_cache(module.layer_idx, result[1])
    return result


#: All families.
FAMILIES = (LinearAttention(), ViTAttention(), Multihead(), FastAttention(), Reversible(), FastWeights(),
            PublishedFunctions(), LightningAttention())
