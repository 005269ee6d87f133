'''What all tests share: composites, targets, how to explain and compare, a closed ledger, and what is left behind.'''
from functools import cache

import torch
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlusFlat, LayerMapComposite
from zennit.core import Composite
from zennit.rules import Epsilon
from zennit.types import Linear

from cases.problems import build
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP

#: Our composites, each with what the replica calls its rule for softmaxes.
COMPOSITES = {'cp_lrp': (CPLRP, 'constant'), 'attn_lrp': (AttnLRP, 'taylor')}


# composites of Zennit

def stock():
    '''A composite as Zennit has it, over any attention code.'''
    return EpsilonPlusFlat(canonizers=[AttentionCanonizer()])


def epsilon():
    '''The epsilon rule for linear modules, and ours for the rest.'''
    return LayerMapComposite([(Linear, Epsilon())], canonizers=[AttentionCanonizer()])


# targets

def one_hot(output):
    '''Relevance 1 at one element of each sample of ``output``, another one for each sample.'''
    flat = torch.zeros_like(output).flatten(1)
    flat[torch.arange(len(flat)), torch.arange(len(flat)) % flat.shape[1]] = 1
    return flat.view_as(output)


def largest(output):
    '''Relevance at the largest element of each sample, so that nothing cancels and a tolerance has a scale.'''
    flat = output.detach().flatten(1)
    chosen = torch.zeros_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), 1.)
    return (chosen * flat).view_as(output)


# explanations

def explain(model, input, composite=CPLRP, target=one_hot):
    '''Output and relevance under a composite, or under what makes one.'''
    composite = composite if isinstance(composite, Composite) else composite()
    with Gradient(model, composite) as attributor:
        output, relevance = attributor(input.clone(), target)
    return output.detach(), relevance.detach()


def relevance_of(model, input, composite=CPLRP, target=one_hot):
    '''Relevance alone.'''
    return explain(model, input, composite, target)[1]


@cache
def explained(name, composite):
    '''Output and relevance of a pasted problem under one of ``COMPOSITES``.'''
    return explain(*build(name), COMPOSITES[composite][0])


# comparisons

def per_sample(tensor):
    '''The sum of each sample.'''
    return tensor.detach().flatten(1).sum(1)


def relative(left, right, least=0.):
    '''The largest difference in units of the largest element, or of ``least`` where all may be zero or missing.'''
    assert left.shape == right.shape
    if least and not right.numel():
        return 0.
    return ((left - right).abs().max() / right.abs().max().clamp_min(least)).item()


def equal_maps(one, other):
    '''Whether two tensors are equal, up to the order in which a BLAS with several threads adds.'''
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-12 * other.abs().max())


def assert_closed(ledger, tolerance=1e-9):
    '''Fail, showing the ledger, unless it closes for every sample.'''
    assert (ledger.unaccounted.abs() <= tolerance * ledger.output.abs()).all(), str(ledger)


# what a context could leave behind

HOOKS = (
    '_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks', '_forward_hooks_with_kwargs',
    '_forward_pre_hooks_with_kwargs', '_forward_hooks_always_called', '_state_dict_hooks', '_state_dict_pre_hooks',
    '_load_state_dict_pre_hooks', '_load_state_dict_post_hooks',
)


class Snapshot:
    '''Attributes, children, hooks, parameters, buffers and flags of every module of a model, to compare two moments.

    Objects are kept, not just their ids, so that a new object can't take the place of an old one unnoticed.
    '''
    def __init__(self, model):
        modules = model.named_modules(remove_duplicate=False)
        self.modules = [(name, module, module.__class__) for name, module in modules]
        self.states = [self.module_state(module) for _, module, _ in self.modules]
        self.tensors = [self.tensor_state(tensor) for tensor in (*model.parameters(), *model.buffers())]
        self.state_dict = {key: value.clone() for key, value in model.state_dict().items()}

    @staticmethod
    def module_state(module):
        attributes = dict(module.__dict__)
        nested = {key: (list(value.items()) if isinstance(value, dict) else list(value))
                  for key, value in attributes.items() if isinstance(value, (dict, list, set))}
        hooks = {key: list(getattr(module, key).items()) for key in HOOKS
                 if isinstance(getattr(module, key, None), dict)}
        return {'attributes': attributes, 'nested': nested, 'hooks': hooks, 'training': module.training}

    @staticmethod
    def tensor_state(tensor):
        return (tensor, tensor.__class__, tensor.requires_grad, tensor.grad, tensor.grad_fn, tensor.data_ptr(),
                tensor.dtype, tensor.shape, tuple(tensor._backward_hooks or ()))


def same(left, right):
    '''Equality by identity for objects, by value for numbers and strings, by element for containers.'''
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (int, float, str, torch.Size, torch.dtype)):
        return left == right
    if hasattr(left, '__self__') and hasattr(left, '__func__'):
        return left.__self__ is right.__self__ and left.__func__ is right.__func__
    return left is right


def changes(before, model):
    '''The places, as tuples of strings, where ``model`` differs from the snapshot ``before``.'''
    after = Snapshot(model)
    found = set()
    if not same(after.modules, before.modules):
        found.add(('modules',))
    for (name, _, _), new, old in zip(before.modules, after.states, before.states, strict=False):
        for part in ('attributes', 'nested', 'hooks'):
            for key in new[part].keys() | old[part].keys():
                if key not in new[part] or key not in old[part] or not same(new[part][key], old[part][key]):
                    found.add((name, part, key))
        if new['training'] != old['training']:
            found.add((name, 'training'))
    if not same(after.tensors, before.tensors):
        found.add(('tensors',))
    if after.state_dict.keys() != before.state_dict.keys():
        found.add(('state_dict',))
    found |= {('values', key) for key, value in before.state_dict.items()
              if key in after.state_dict and not torch.equal(after.state_dict[key], value)}
    return found


def assert_restored(before, model):
    '''Fail, saying where, unless ``model`` is as it was at the snapshot ``before``.'''
    assert changes(before, model) == set()
