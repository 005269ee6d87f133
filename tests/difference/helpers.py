'''What the tests of differences share: a reference for each problem, and functions as models.'''
import torch
from torch import nn


def reference_of(input):
    '''Another input, that has a part in common with the first.'''
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(input.shape, dtype=input.dtype, generator=generator)
    return input * .3 + .5 * noise


class Function(nn.Module):
    '''A function as a model, with a weight for each of its outputs.'''
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        output = self.function(x)
        generator = torch.Generator().manual_seed(2)
        weight = torch.rand(output.shape[1:], dtype=output.dtype, generator=generator) + .5
        return (output * weight).reshape(len(output), -1).sum(1, keepdim=True)
