'''Lightning attention of MiniMax: one map for blocks of any size, and with a cache token by token.'''
import inspect

import pytest
import torch

from attention.helpers import published
from cases.families import COMPOSITES, explain_largest
from helpers import Snapshot, assert_closed, assert_restored, relative
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit

pytestmark = pytest.mark.zoo

NAME = 'minimax'


class Lightning(torch.nn.Module):
    '''A layer below a root, as it is in a model.'''
    def __init__(self, layer, mask):
        super().__init__()
        self.layer, self.mask = layer, mask
        # By the name that the release of transformers has for it.
        self.cache = 'cache' if 'cache' in inspect.signature(type(layer).forward).parameters else 'past_key_values'

    def forward(self, x, cache=None):
        return self.layer(x, position_embeddings=None, attention_mask=self.mask, **{self.cache: cache})[0]


class Cache:
    '''What a layer asks of a cache.'''
    def __init__(self):
        self.memory = {}

    def get_linear_cache(self, index):
        return self.memory.get(index)

    def set_linear_cache(self, index, memory):
        self.memory[index] = memory.detach()


def build(block=64, mask=None):
    code = published(f'transformers.models.{NAME}.modeling_{NAME}')
    config = published(f'transformers.models.{NAME}.configuration_{NAME}').MiniMaxConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8, block_size=block,
        layer_types=['linear_attention', 'full_attention'])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Lightning(code.MiniMaxLightningAttention(config, 0), mask).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0., .4)
        return model, torch.randn(2, 20, 16, dtype=torch.float64)


@pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference], ids=[*COMPOSITES, 'difference'])
@pytest.mark.parametrize('masked', [False, True])
def test_one_map_for_blocks_of_any_size(composite, masked):
    mask = (torch.arange(20) >= torch.tensor([[0], [3]])).long() if masked else None
    maps = []
    for block in (64, 7, 1):
        model, input = build(block, mask)
        output, relevance = explain_largest(model, input, composite)
        assert relative(output, model(input).detach()) <= 1e-6  # the decays are buffers of float32
        maps.append(relevance)
    assert maps[0].abs().sum() > 0
    for other in maps[1:]:
        assert relative(other, maps[0]) <= 1e-9


def test_a_model_with_a_cache_returns_what_it_does_without_a_context():
    '''To the last digits, although its decays are in float32.'''
    code = published(f'transformers.models.{NAME}.modeling_{NAME}')
    model, input = build(4)
    cache = getattr(code, 'MiniMaxCache', Cache)()
    with torch.no_grad():
        expected = model(input, Cache())
    with CPLRP().context(model):
        output = model(input.clone().requires_grad_(), cache)
    assert relative(output.detach(), expected) <= 1e-12


def test_tokens_with_a_cache():
    model, input = build()
    expected, cache, plain = model(input).detach(), Cache(), Cache()
    with torch.no_grad():
        model(input[:, :12], plain)
    with CPLRP().context(model):
        model(input[:, :12].clone().requires_grad_(), cache)
        last = torch.cat([model(input[:, i:i + 1].clone().requires_grad_(), cache) for i in range(12, 20)], 1)
    assert relative(last.detach(), expected[:, 12:]) <= 1e-6
    with torch.no_grad():
        for i in range(12, 20):
            model(input[:, i:i + 1], plain)
    assert relative(cache.memory[0], plain.memory[0]) <= 1e-6


def test_ledger_closes_and_the_model_is_restored(double):
    model, input = build(4)
    before = Snapshot(model)
    ledger = audit(model, CPLRP(), input)
    assert 'gated_linear_attention' in str(ledger.operator_table())
    assert_closed(ledger)
    [own] = AttentionCanonizer().apply(model)
    own.remove()
    assert_restored(before, model)
