'''Models as graphs of ATen operators, as they come from exporters and compilers.'''
import warnings

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from oracle import Recorder, plain_attention


class Writer(Recorder):
    '''Writes down all operators that run, those that write in place included. Parameters become constants.'''
    def node_of(self, tensor):
        known = id(tensor) in self.nodes
        node = super().node_of(tensor)
        if not known:
            setattr(self.root, node.target, tensor.detach())
        return node


def written(model, input):
    '''What ``make_fx`` makes, in a tenth of its time: it does not compute the type and size of every result.'''
    graph, input = torch.fx.Graph(), input.clone()
    writer = Writer(graph)
    writer.know(input, graph.placeholder('x'))
    with torch.no_grad(), plain_attention(), writer:
        output = model(input)
    graph.output(writer.node_of(output))
    return torch.fx.GraphModule(writer.root, graph)


def traced(model, input):
    '''The graph of ``make_fx``.'''
    with torch.no_grad(), plain_attention():
        graph = make_fx(model)(input.clone())
    for parameter in graph.parameters():
        parameter.requires_grad_()
    return graph


def exported(model, input):
    '''The module of ``torch.export``.'''
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='The tensor attributes')  # of recurrent layers, which it sets again
        return torch.export.export(model, (input.clone(),)).module()
