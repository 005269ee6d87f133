'''What the zoo knows of a published model, and how it makes one.'''
from dataclasses import dataclass, field
from importlib import import_module

import torch
from torch import nn

from zennit_attn.composites import CPLRP, AttnLRP

IMAGES = (2, 3, 32, 32)
LARGE_IMAGES = (2, 3, 64, 64)
TOKENS = (2, 9, 32)
#: What a frozen table of embeddings needs whose rows are summed with weights.
FROZEN_BAG = {'torch': ('2.6', 'before it, embedding_bag has no derivative by its weights beside a frozen table')}
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP}


@dataclass(frozen=True)
class Model:
    '''A published model.

    Attributes
    ----------
    name: str
        Package, model and what is special about it.
    package: str
        What has to be installed.
    build: callable
        Builds the model.
    shape: tuple of int
        Shape of its input.
    single: str
        What the model itself computes in single precision, whatever the precision of its parameters. The ledger sees
        the rounding there; that of a softmax, or of queries and keys, only where relevance passes through them.
    refused: dict of str: tuple
        For each composite that refuses the model, the type of the error and a regular expression for its message.
    remedy: dict of str: callable
        For each composite that refuses the model, its arguments with which the model closes.
    broken: dict of str: str
        For each composite whose ledger does not close yet, why.
    needs: dict of str: tuple
        For each package of which the oldest supported version will not do, the version that will, and why.
    '''
    name: str
    package: str
    build: callable
    shape: tuple
    single: str = ''
    refused: dict = field(default_factory=dict)
    remedy: dict = field(default_factory=dict)
    broken: dict = field(default_factory=dict)
    needs: dict = field(default_factory=dict)


class Wrapped(nn.Module):
    '''A model with one tensor as input and one as output.'''
    def __init__(self, model, call):
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, x):
        return self.call(self.model, x)


def construct(module, name, options, call=None):
    '''Import a class and make an instance, wrapped if it has to be called in another way than ``model(x)``.'''
    model = getattr(import_module(module), name)(**options)
    return model if call is None else Wrapped(model, call)


def in_its_precision(model, name):
    '''Let the modules with an ending of their name take single precision numbers when their parameters are double.'''
    def to_parameters(module, args):
        dtype = next(module.parameters()).dtype
        return tuple(arg.to(dtype) if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in args)
    for path, module in model.named_modules():
        if path.endswith(name):
            module.register_forward_pre_hook(to_parameters)
    return model


def prepare(model):
    '''Put a model into double precision and its parameters and statistics off their initial values.

    Without this, biases are zero and scales one, so that mistakes with them could not be seen.
    '''
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else 1.
            parameter += (.1 if parameter.ndim > 1 else .2) * spread * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean += .1 * torch.randn_like(module.running_mean)
                module.running_var *= 1 + torch.rand_like(module.running_var)
    return model
