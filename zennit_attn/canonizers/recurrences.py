'''Forwards whose recurrences run as one operator, whatever function the code calls for them.'''
from functools import partial
from inspect import unwrap
from types import CellType, FunctionType

import torch

from ..kernels import gated_delta_rule

#: Keywords of kernels that make another function of them.
OTHERS = {'scale', 'use_gate_in_kernel', 'use_beta_sigmoid_in_kernel', 'allow_neg_eigval', 'state_v_first'}


def with_functions(method, functions):
    '''Return a function like a method, below all its decorators, that finds others under names of its module.

    Parameters
    ----------
    method: callable
        The function as its class has it.
    functions: dict
        What it shall find, by name.

    Returns
    -------
    callable or None
        None if what a decorator calls can not be told.
    '''
    inner = getattr(method, '__wrapped__', None)
    closure, scope = method.__closure__, method.__globals__
    if inner is None:
        scope = {**scope, **functions}
    else:
        replacement = with_functions(inner, functions)
        if replacement is None or not any(cell.cell_contents is inner for cell in closure or ()):
            return None
        closure = tuple(CellType(replacement) if cell.cell_contents is inner else cell for cell in closure)
    function = FunctionType(method.__code__, scope, method.__name__, method.__defaults__, closure)
    function.__kwdefaults__ = method.__kwdefaults__
    return function


def delta_functions(module):
    '''The functions for a gated delta rule that a module's forward calls, by the names that it has for them.'''
    forward = unwrap(type(module).forward)
    code = getattr(forward, '__code__', None)
    if code is None or 'forward' in module.__dict__:
        return {}
    given = {name for const in code.co_consts for name in (const if isinstance(const, tuple) else (const,))}
    if not {'g', 'beta', 'initial_state', 'output_final_state', 'use_qk_l2norm_in_kernel'} <= given:
        return {}
    scope = forward.__globals__
    return {name: scope[name] for name in code.co_names
            if name.endswith(('gated_delta_rule', 'delta_attention', '_kda')) and callable(scope.get(name))}


def run_delta_net(module):
    '''Return a module's forward with the operator in the place of its functions, or None.'''
    return with_functions(type(module).forward, {
        name: partial(_gated_delta_rule, function) for name, function in delta_functions(module).items()})


def _gated_delta_rule(original, query, key, value, g, beta, chunk_size=None, initial_state=None,
                      output_final_state=False, use_qk_l2norm_in_kernel=False, **kwargs):
    '''The operator as the published functions are called, with heads behind tokens.

    They compute in float32 whatever they are given. In a model in float64 what they round off is added, as a constant:
    its output is the model's own to the last digits.
    '''
    sizes = {} if chunk_size is None else {'chunk_size': chunk_size}

    def call(query, key, value, g, beta, state):
        return original(query, key, value, g=g, beta=beta, initial_state=state, output_final_state=output_final_state,
                        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **sizes, **kwargs)
    if kwargs.get('cu_seqlens') is not None or OTHERS & kwargs.keys():
        return call(query, key, value, g, beta, initial_state)
    given, heads = (query, key, value, g, beta, initial_state), value.shape[2]
    query, key = (each.repeat_interleave(heads // each.shape[2], dim=2) if each.shape[2] != heads else each
                  for each in (query, key))
    if use_qk_l2norm_in_kernel:
        query, key = (each * (each * each).sum(-1, keepdim=True).add(1e-6).rsqrt() for each in (query, key))
    query = query * query.shape[-1] ** -0.5
    out, last = gated_delta_rule(*(each.transpose(1, 2) for each in (query, key, value, beta, g)),
                                 initial_state=initial_state, output_final_state=True)
    outputs = out.transpose(1, 2).to(query.dtype), last if output_final_state else None
    if not _rounds(query):
        return outputs
    with torch.no_grad():
        published = call(*(each if each is None else each.detach().clone() for each in given))
    return tuple(ours if ours is None else ours + (theirs - ours.detach())
                 for ours, theirs in zip(outputs, published, strict=True))


def _rounds(tensor):
    return tensor.dtype is torch.float64
