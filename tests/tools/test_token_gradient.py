'''TokenGradient: token models explained from their embedding.'''
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from helpers import assert_closed, one_hot, relative
from zennit_attn.attention import PerformerLM
from zennit_attn.attribution import TokenGradient
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import NoRelevance
from zennit_attn.testing import check_explanation


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
    twice.unused = nn.Embedding(11, 8)
    with pytest.raises(NoRelevance, match='Embedding, .* was not called'):
        TokenGradient(twice, twice.unused, CPLRP())(IDS, torch.ones_like)
    with pytest.raises(NoRelevance, match='is the model itself'):
        TokenGradient(twice, twice, CPLRP())(IDS, torch.ones_like)


class Output(dict):
    '''What models of libraries return.'''
    @property
    def logits(self):
        return self['logits']


class Masked(Tokens):
    '''The same as libraries have it: keyword arguments, and a dict that holds the logits.'''
    def forward(self, *, ids, mask, scale=None):
        x = self.embedding(ids)
        x = self.block(x, src_key_padding_mask=~mask.bool())
        x = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Output(logits=self.head(x if scale is None else x * scale))


@pytest.fixture
def masked():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Masked().double().eval()


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def logits(output):
    return output.logits


def test_keyword_arguments_and_what_to_select(masked):
    input = {'ids': IDS, 'mask': MASK, 'scale': torch.full((2, 1), .5, dtype=torch.float64)}
    with TokenGradient(masked, masked.embedding, CPLRP(), select=logits) as attributor:
        output, relevance = attributor(input, torch.ones_like)
    assert output.shape == (2, 3)
    assert relevance[1, 3].abs().max() == 0
    assert relevance[0].abs().min() > 0
    ledger = audit(masked, CPLRP(), input, torch.ones_like, embedding=masked.embedding, select=logits)
    torch.testing.assert_close(ledger.input, relevance.flatten(1).sum(1))
    assert_closed(ledger)
    check_explanation(masked, input, embedding=masked.embedding, select=logits)
    assert input['scale'].requires_grad is False


def test_what_is_no_tensor_is_refused(masked):
    input = {'ids': IDS, 'mask': MASK}
    with pytest.raises(TypeError, match=r'Masked returns Output.*select=lambda'):
        TokenGradient(masked, masked.embedding, CPLRP())(input, torch.ones_like)
    with pytest.raises(TypeError, match=r'Masked returns Output.*select=lambda'):
        audit(masked, CPLRP(), input, embedding=masked.embedding)
    assert not masked.embedding._forward_hooks


class Cross(nn.Module):
    '''Attention of one sequence to another.'''
    def __init__(self):
        super().__init__()
        self.to_q, self.to_kv = nn.Linear(4, 8), nn.Linear(6, 16)

    def forward(self, x, context):
        k, v = self.to_kv(context).chunk(2, -1)
        return self.to_q(x) + (self.to_q(x) @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize('make', [CPLRP, AttnLRP])
def test_several_inputs_are_one_ledger(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x, context = Cross().double(), torch.randn(2, 3, 4).double(), torch.randn(2, 5, 6).double()
    ledger = audit(model, make(), (x, context), torch.ones_like)
    leaves = [x.clone().requires_grad_(), context.clone().requires_grad_()]
    with make().context(model):
        output = model(*leaves)
        parts = torch.autograd.grad(output, leaves, torch.ones_like(output))
    torch.testing.assert_close(ledger.input, sum(part.flatten(1).sum(1) for part in parts))
    assert_closed(ledger)
    assert all((part != 0).any() for part in parts)


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
@pytest.mark.parametrize('select', [
    lambda output: output.mean(1), lambda output: output[:, -1, :3] - output[:, -1, 3:6],
    lambda output: 10 * output[:, -1], lambda output: nn.functional.gelu(output[:, 0]) + .5,
], ids=['pooling', 'difference', 'scaling', 'activation'])
def test_select_that_computes_is_a_part_of_the_model(select, composite):
    class Inside(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return select(self.model(ids))
    torch.manual_seed(0)
    embed = nn.Embedding(9, 8)
    model = nn.Sequential(embed, nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).double().eval()
    ids = torch.randint(9, (2, 5))
    with TokenGradient(model, embed, composite(), select=select) as attributor:
        output, relevance = attributor(ids, one_hot)
    with TokenGradient(Inside(model), embed, composite()) as attributor:
        expected, twin = attributor(ids, one_hot)
    assert relative(output.detach(), expected.detach()) <= 1e-12
    assert relative(relevance, twin) <= 1e-9
    assert_closed(audit(model, composite(), ids, one_hot, embedding=embed, select=select))
