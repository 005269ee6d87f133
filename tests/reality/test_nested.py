'''Inputs and outputs of all kinds: nested, opaque, several.'''
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass

from cases.problems import DIM
from helpers import relevance_of
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP

from .helpers import Around, check, close, data, every_composite, expected, explain_call, refused


@dataclass
class Record:
    x: Any
    note: Any = None


@dataclass(frozen=True)
class Frozen:
    x: Any


class Attributes(OrderedDict):
    '''As transformers have it: a dict whose items are attributes.'''
    __getattr__ = OrderedDict.__getitem__


Pair = namedtuple('Pair', 'x y')
NESTED = {
    'dict': (lambda x: {'x': x, 'n': 3}, lambda tree: tree['x']),
    'dict subclass': (lambda x: Attributes(x=x), lambda tree: tree.x),
    'list': (lambda x: [x, None], lambda tree: tree[0]),
    'tuple': (lambda x: ('name', x), lambda tree: tree[1]),
    'namedtuple': (lambda x: Pair(x, 1.), lambda tree: tree.x),
    'dataclass': (Record, lambda tree: tree.x),
    'frozen dataclass': (Frozen, lambda tree: tree.x),
    'deep': (lambda x: {'a': [Record((x, 1))]}, lambda tree: tree['a'][0].x[0]),
}
every_nesting = pytest.mark.parametrize('nesting', NESTED)


@every_composite
@every_nesting
def test_nested_input(make, nesting):
    wrap, unwrap = NESTED[nesting]
    x = data().requires_grad_()
    model = Around(lambda body, tree: body(unwrap(tree)))
    close(explain_call(model, make, lambda model: model(wrap(x)), x)[0], expected(make))
    close(explain_call(model, make, lambda model: model(tree=wrap(x)), x)[0], expected(make))


@every_composite
@every_nesting
def test_nested_output(make, nesting):
    wrap, unwrap = NESTED[nesting]
    x = data().requires_grad_()
    model = Around(lambda body, x: wrap(body(x)))
    found = []
    relevance, = explain_call(model, make, lambda model: unwrap(found.append(model(x)) or found[0]), x)
    close(relevance, expected(make))
    assert type(found[0]) is type(wrap(x))
    check(Around(lambda body, x: unwrap(body(x)), model), make, expected(make))


@every_composite
def test_opaque_objects(make):
    '''An object with attributes is no container: refused as input and output, fine inside.'''
    x = data().requires_grad_()
    model = Around(lambda body, tree: body(tree.x))
    refused(lambda: explain_call(model, make, lambda model: model(SimpleNamespace(x=x)), x), 'requires a gradient',
            model=model)
    model = Around(lambda body, x: SimpleNamespace(x=body(x)))
    refused(lambda: explain_call(model, make, lambda model: model(x).x, x), 'SimpleNamespace', 'dataclasses',
            model=model)
    check(Around(lambda body, x: body(x).x, model), make, expected(make))


@pytest.mark.parametrize('rule', [Epsilon, Pass])
def test_rule_on_a_module_with_a_nested_output(rule):
    '''What a rule cannot serve is refused, not left out of the map.'''
    def wrapped(wrap, unwrap):
        part = Around(lambda body, x: wrap(body(x)), nn.Linear(DIM, DIM))
        model = Around(lambda body, x: body(x + unwrap(part(x))))
        model.part = part
        return model.double()
    opaque = wrapped(lambda x: SimpleNamespace(x=x), lambda tree: tree.x)
    record = wrapped(Record, lambda tree: tree.x)

    def composite():
        return LayerMapComposite([(Around, rule())], canonizers=[AttentionCanonizer()])
    for model in (opaque, record) if rule is Epsilon else (opaque,):
        inner = LayerMapComposite([((type(model.part),), rule())], canonizers=[AttentionCanonizer()])
        inner.module_map = lambda ctx, name, module: rule() if name == 'part' else None
        refused(lambda model=model, inner=inner: relevance_of(model, data(), lambda: inner), 'part', rule.__name__,
                'returns', 'modules inside', model=model)


def test_container_of_the_caller_is_written_to():
    '''A dict that the model fills, as caches are, is the caller's own.'''
    def fill(body, x, store):
        store['seen'] = body(x)
        return store['seen']
    store, x = {}, data().requires_grad_()
    explain_call(Around(fill), CPLRP, lambda model: model(x, store), x)
    assert list(store) == ['seen']


@every_composite
def test_several_inputs(make):
    '''Each gets what it gets as a part of one input.'''
    x, y = data(1).requires_grad_(), data(2).requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        side = nn.Linear(DIM, DIM).double()

    def both(body, x, y=None, scale=1.):
        return body(x + body.side(y) * scale)

    model = Around(both)
    model.body.side = side
    joined = Around(lambda body, both: body(both[..., :DIM], y=both[..., DIM:]), model)
    wanted = relevance_of(joined, torch.cat([x, y], -1).detach(), make)
    close(torch.cat(explain_call(model, make, lambda model: model(x, y=y), x, y), -1), wanted)
    close(torch.cat(explain_call(model, make, lambda model: model(y=y, x=x), x, y), -1), wanted)
    close(explain_call(model, make, lambda model: model(x, y.detach()), x)[0], wanted[..., :DIM])
    close(explain_call(model, make, lambda model: model(x, x), x)[0],
          relevance_of(Around(lambda body, x: body(x, x), model), x.detach(), make))
