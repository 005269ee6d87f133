'''Rules for the first layer behind a re-index are those of stock Zennit.'''
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.rules import Epsilon, Flat, Pass, WSquare, ZBox
from zennit.types import Activation, Linear

from cases.problems import perturb
from cases.stock import STOCK, gamma_box
from helpers import assert_closed, epsilon, explain, relative, relevance_of
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.conservation import audit


class PastedPatches(nn.Module):
    '''Patches by ``how``, then an MLP on them, a re-index and a classifier: what ``nn_patches`` does with modules.'''
    def __init__(self, how, hidden=7):
        super().__init__()
        self.how = how
        self.embed, self.act, self.fc = nn.Linear(48, hidden), nn.ReLU(), nn.Linear(4 * hidden, 5)

    def patches(self, x):
        if self.how == 'einops':
            return rearrange(x, 'b c (h p) (w q) -> b (h w) (c p q)', p=4, q=4)
        if self.how == 'unfold':
            return x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(x.shape[0], 4, 48)
        if self.how == 'identities':
            x = F.dropout(x.clone().contiguous().to(x.dtype), 0.3, self.training).type_as(x)
            x = x[:, :, :, None].squeeze(3).view_as(x)
        rows = [t for row in x.chunk(2, dim=2) for t in row.split(4, dim=3)]
        return torch.stack([t.contiguous().flatten(1) for t in rows], dim=1)

    def forward(self, x):
        x = self.act(self.embed(self.patches(x)))
        return self.fc(x.view(x.size(0), -1))


def nn_patches(pasted):
    return nn.Sequential(
        Rearrange('b c (h p) (w q) -> b (h w) (c p q)', p=4, q=4), pasted.embed, pasted.act, nn.Flatten(), pasted.fc
    )


class PastedConv(nn.Module):
    '''Channels-last pixels into a convolution.'''
    def __init__(self, hidden=6):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, hidden, 3), nn.ReLU(), nn.Linear(hidden * 36, 5)

    def forward(self, x):
        x = self.act(self.conv(x.permute(0, 3, 1, 2)))
        return self.fc(torch.reshape(x, (len(x), -1)))


def nn_conv(pasted):
    return nn.Sequential(Rearrange('b h w c -> b c h w'), pasted.conv, pasted.act, nn.Flatten(), pasted.fc)


def first_layer(rule, canonizers):
    layers = [(Activation, Pass()), (Linear, Epsilon())]
    return SpecialFirstLayerMapComposite(layers, [(Linear, rule)], canonizers=canonizers)


FIRST = {
    'flat': lambda canonizers: first_layer(Flat(), canonizers),
    'wsquare': lambda canonizers: first_layer(WSquare(), canonizers),
    'zbox': lambda canonizers: first_layer(ZBox(low=-3., high=3.), canonizers),
    'epsilon_plus_flat': STOCK['epsilon_plus_flat'],
    'epsilon_gamma_box': gamma_box,
}


def pixels(*shape):
    '''Pixels, a third of them exactly 0.'''
    generator = torch.Generator().manual_seed(5)
    input = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-3, 3)
    return input.masked_fill(torch.rand(shape, generator=generator) < 0.33, 0.)


@pytest.mark.parametrize('first', FIRST)
@pytest.mark.parametrize('how', ['einops', 'unfold', 'chunks', 'identities', 'conv'])
def test_first_layer_rule_behind_a_reindex_equals_stock(first, how):
    torch.manual_seed(6)
    pasted = (PastedConv() if how == 'conv' else PastedPatches(how)).double().eval()
    perturb(pasted, 7)
    plain = nn_conv(pasted) if how == 'conv' else nn_patches(pasted)
    input = pixels(3, 8, 8, 3) if how == 'conv' else pixels(3, 3, 8, 8)
    expected_output, expected = explain(plain, input, FIRST[first]([]))
    output, relevance = explain(pasted, input, FIRST[first]([AttentionCanonizer()]))
    assert relative(output, expected_output) <= 1e-12
    assert relative(relevance, expected) <= 1e-10
    if first in ('flat', 'wsquare'):
        assert (relevance[input == 0].abs() > 0).float().mean() > 0.5


class Queue(nn.Module):
    '''A buffer that is shifted by one step after another between two modules with a rule.'''
    def __init__(self, steps):
        super().__init__()
        self.before, self.after, self.steps = nn.Linear(4, 4), nn.Linear(4, 3), steps

    def forward(self, x):
        z = self.before(x)
        buffer = z
        for step in range(self.steps):
            buffer = torch.cat([buffer[:, 1:], z[:, step % z.shape[1], None]], 1)
        return self.after(buffer).sum(1)


def test_thousands_of_reindexes_between_two_rules():
    '''As many as there are, the map is that of their last values: the buffer holds the last entries in order.'''
    torch.manual_seed(0)
    model, once = Queue(2000).double().eval(), Queue(0).double().eval()
    once.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    assert relative(relevance_of(model, x, epsilon), relevance_of(once, x, epsilon)) < 1e-12
    assert_closed(audit(model, epsilon(), x))
