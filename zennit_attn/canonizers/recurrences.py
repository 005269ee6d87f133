'''Forwards whose recurrences run as one operator, whatever function the code calls for them.'''
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from types import CellType, FunctionType
from typing import NamedTuple

import torch
from torch.nn.functional import silu, softplus

from ..kernels import gated_delta_rule, gated_linear_attention
from ..trees import substitute

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


class Recurrence(NamedTuple):
    '''A recurrence that published code leaves to functions, of which several compute the same.

    Attributes
    ----------
    keywords: frozenset of str
        Keywords that a forward gives to them.
    endings: tuple of str
        How they are named.
    replacement: callable
        Takes the function, and what it is given, and runs the operator.
    '''
    keywords: frozenset
    endings: tuple
    replacement: Callable


def functions_of(module):
    '''The operators for the recurrences that a module's forward leaves to functions, by its names for these.'''
    forward = unwrap(type(module).forward)
    code = getattr(forward, '__code__', None)
    if code is None or 'forward' in module.__dict__:
        return {}
    given = {name for const in code.co_consts for name in (const if isinstance(const, tuple) else (const,))}
    scope = forward.__globals__
    return {name: partial(each.replacement, scope[name]) for each in RECURRENCES if each.keywords <= given
            for name in code.co_names if name.endswith(each.endings) and callable(scope.get(name))}


def run_recurrences(module):
    '''Return a module's forward with operators in the place of its functions, or None.'''
    return with_functions(type(module).forward, functions_of(module))


def exact(outputs, published):
    '''Outputs of an operator as published functions have them, which compute in float32 whatever they are given.

    In a model in float64 what they round off is added, as a constant: its output is the model's own to the last digits.
    '''
    if not _rounds(outputs[0]):
        return outputs
    with torch.no_grad():
        others = published()
    return tuple(ours if ours is None else ours + (theirs - ours.detach())
                 for ours, theirs in zip(outputs, others, strict=True))


def _rounds(tensor):
    return tensor.dtype is torch.float64


def copied(tree):
    '''Return new lists, tuples and dicts with copies of the tensors, which carry nothing.'''
    return substitute(tree, lambda tensor: tensor.detach().clone())


# ---- the delta rule --------------------------------------------------------------------------------------------------

def _gated_delta_rule(original, query, key, value, g, beta, chunk_size=None, initial_state=None,
                      output_final_state=False, use_qk_l2norm_in_kernel=False, **kwargs):
    '''The operator as the published functions are called, with heads behind tokens.'''
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
    return exact((out.transpose(1, 2).to(query.dtype), last if output_final_state else None),
                  lambda: call(*copied(given)))


# ---- state spaces ----------------------------------------------------------------------------------------------------

def _steps(dt, bias, is_softplus, limit=None):
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    dt = softplus(dt) if is_softplus else dt
    return dt if limit is None else torch.clamp(dt, min=limit[0], max=limit[1])


def _state_space(x, steps, rates, keys, queries, skip, gate, state):
    '''The state space of Mamba-2, from its values `x (b, n, h, p)`, `steps (b, n, h)`, `rates (h,)`, and `B` and `C` of
    shape `(b, n, g, s)`, its keys and queries.'''
    keys, queries = (each.repeat_interleave(x.shape[2] // each.shape[2], dim=2).transpose(1, 2)
                     for each in (keys, queries))
    steps = steps.transpose(1, 2)
    out, last = gated_linear_attention(
        queries, keys * steps[..., None], x.transpose(1, 2), rates[:, None] * steps, output_final_state=True,
        initial_state=None if state is None else state.mT)
    out = out.transpose(1, 2).to(x.dtype).contiguous()  # some view it in another shape
    if skip is not None:
        out = out + x * (skip if skip.ndim == 2 else skip[:, None])
    return out if gate is None else out * silu(gate), last.mT


def _chunk_scan(original, *args, return_final_states=False, initial_states=None, **kwargs):
    '''All tokens, as the published functions are called: with `x`, `dt`, `A`, `B` and `C`.'''
    def call(args, kwargs, state):
        result = original(*args, return_final_states=return_final_states, initial_states=state, **kwargs)
        return result if return_final_states else (result, None)
    if len(args) != 5 or any(kwargs.get(name) is not None for name in ('seq_idx', 'cu_seqlens')):
        result = call(args, kwargs, initial_states)
        return result if return_final_states else result[0]
    x, dt, *rest = args
    steps = _steps(dt, kwargs.get('dt_bias'), kwargs.get('dt_softplus'), kwargs.get('dt_limit'))
    out, last = _state_space(x, steps, *rest, kwargs.get('D'), kwargs.get('z'), initial_states)
    result = exact((out, last if return_final_states else None), lambda: call(*copied((args, kwargs, initial_states))))
    return result if return_final_states else result[0]


def _state_update(original, state, *args, **kwargs):
    '''One token, which writes the `state (b, h, p, s)` in place, with `x` and `dt` `(b, h, p)` and `A` `(h, p, s)`.'''
    if len(args) < 5 or state.ndim != 4:
        return original(state, *args, **kwargs)
    x, dt, rates, keys, queries, *skip = args
    copies = copied((state, args, kwargs))
    steps = _steps(dt, kwargs.get('dt_bias'), kwargs.get('dt_softplus'))[..., 0]
    gate = kwargs.get('z')
    out, last = _state_space(x[:, None], steps[:, None], rates[:, 0, 0], keys[:, None], queries[:, None],
                             skip[0] if skip else kwargs.get('D'), None if gate is None else gate[:, None], state)
    out, last = exact((out[:, 0], last), lambda: (original(copies[0], *copies[1], **copies[2]), copies[0]))
    state.copy_(last.to(state.dtype))
    return out


RECURRENCES = (
    Recurrence(frozenset({'g', 'beta', 'initial_state', 'output_final_state', 'use_qk_l2norm_in_kernel'}),
               ('gated_delta_rule', 'delta_attention', '_kda'), _gated_delta_rule),
    Recurrence(frozenset({'chunk_size', 'dt_bias', 'dt_softplus', 'initial_states'}),
               ('chunk_scan', 'chunk_scan_combined'), _chunk_scan),
    Recurrence(frozenset({'chunk_size', 'dt_bias', 'dt_softplus', 'initial_states'}),
               ('selective_state_update',), _state_update),
)
