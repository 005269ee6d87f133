'''Sinks have names: the module that made a constant.'''
import torch
from torch import nn

from helpers import assert_closed, one_hot
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit


class Placed(nn.Module):
    '''Positions from an embedding, types of tokens from another, and a constant beside them.'''
    def __init__(self):
        super().__init__()
        self.places, self.kinds = nn.Embedding(5, 4), nn.Sequential(nn.Embedding(2, 4), nn.LayerNorm(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = x + self.places(torch.arange(5))
        x = x + self.kinds(torch.zeros(5, dtype=torch.long))
        both = torch.cat([x, torch.ones(x.shape[0], 5, 8, dtype=x.dtype)], -1)
        return self.head(both).mean(1)


def test_constants_are_named_by_the_module_that_made_them():
    torch.manual_seed(0)
    model = Placed().double().eval()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    ledger = audit(model, CPLRP(), torch.randn(2, 5, 4, dtype=torch.float64), one_hot)
    assert_closed(ledger)
    names = {(sink.operator, sink.name) for sink in ledger.sinks if sink.kind == 'constant'}
    assert names == {('add', 'places'), ('add', 'kinds.1'), ('cat', 'tensor')}
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_the_model_does_not_see_that_it_is_audited():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(x) * (1 + len(self.inner._forward_hooks) + len(self.inner._forward_pre_hooks))
    model = Counts().double().eval()
    audit(model, CPLRP(), torch.rand(2, 3, dtype=torch.float64))  # which compares
