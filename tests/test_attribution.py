'''TokenGradient: token models explained from their embedding.'''
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_attn.attention import PerformerLM
from zennit_attn.attribution import TokenGradient
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.errors import NoRelevance


class Tokens(nn.Module):
    '''A small classifier of token ids.'''
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.body(self.embedding(ids))

    def body(self, x):
        return self.head(self.block(x).mean(1))


class Body(nn.Module):
    '''The same from the embedding's output.'''
    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, x):
        return self.tokens.body(x)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens().double().eval()


IDS = torch.tensor([[1, 4, 2, 9], [0, 10, 4, 4]])


@pytest.mark.parametrize('make', [
    CPLRP, AttnLRP, lambda: EpsilonPlus(canonizers=[AttentionCanonizer()]), lambda: None,
])
def test_relevance_is_that_of_the_embedding(model, make):
    with TokenGradient(model, model.embedding, make()) as attributor:
        output, relevance = attributor(IDS, torch.ones_like)
    with Gradient(Body(model), make()) as attributor:
        expected_output, expected = attributor(model.embedding(IDS).detach(), torch.ones_like)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(relevance, expected)
    assert relevance.abs().sum() > 0
    assert not model.embedding._forward_hooks


def test_performer_language_model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        options = {'causal': True, 'tie_embed': True}
        model = PerformerLM(num_tokens=11, max_seq_len=8, dim=16, depth=1, heads=2, dim_head=8, **options)
    model = model.double().eval()
    ids = torch.tensor([[1, 4, 2, 9, 3]])
    with TokenGradient(model, model.token_emb, CPLRP()) as attributor:
        _, relevance = attributor(ids, lambda output: nn.functional.one_hot(ids + 1, 11).roll(1, 1) * (
            torch.arange(5) == 2)[None, :, None].to(output))
    assert relevance[:, 3:].abs().max() == 0
    assert relevance[:, :3].abs().min() > 0


def test_embedding_must_be_called_once(model):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = model

        def forward(self, ids):
            return self.tokens(ids) + self.tokens(ids)

    twice = Twice()
    with pytest.raises(NoRelevance, match='called 2 times'):
        TokenGradient(twice, model.embedding, CPLRP())(IDS, torch.ones_like)
    with pytest.raises(ValueError, match='not a module of Tokens'):
        TokenGradient(model, nn.Embedding(11, 8))
