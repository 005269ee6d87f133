'''One call for any input and any answer: equal to an explanation by hand, with a ledger that closes.'''
from collections import UserDict
from types import MappingProxyType

import numpy
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from helpers import Snapshot, assert_closed, assert_restored, equal_maps
from zennit_attn import AttnLRP, Difference, Explanation, Relevance, TokenGradient, audit, explain, seeds
from zennit_attn.composites import CPLRP, AttnLRPGamma, AttnTaylor
from zennit_attn.errors import ChangedForward, NoRelevance
from zennit_attn.heatmap import Text, token_texts
from zennit_attn.references import blank_tokens


class Tokens(nn.Module):
    '''A token model that returns a mapping.'''
    def __init__(self):
        super().__init__()
        self.words, self.kinds = nn.Embedding(11, 8), nn.Embedding(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None):
        x = self.words(input_ids)
        x = x if token_type_ids is None else x + self.kinds(token_type_ids)
        padding = None if attention_mask is None else attention_mask == 0
        return {'logits': self.head(x + self.attention(x, x, x, key_padding_mask=padding)[0])}


class Table(nn.Module):
    '''Categories and numbers, and a probability.'''
    def __init__(self):
        super().__init__()
        self.categories, self.body = nn.Embedding(5, 3), nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, kinds, numbers):
        return torch.sigmoid(self.body(torch.cat([self.categories(kinds), numbers], -1)))


class Towers(nn.Module):
    '''Two inputs, and an embedding of each.'''
    def __init__(self):
        super().__init__()
        self.words, self.one, self.two = nn.Embedding(11, 6), nn.Linear(6, 5), nn.Linear(4, 5)

    def forward(self, pixels, ids):
        return {'image_embeds': self.two(pixels), 'text_embeds': self.one(self.words(ids).mean(1))}


class Shared(nn.Module):
    '''An encoder and a decoder that share an embedding.'''
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, source, target):
        memory, x = self.words(source), self.words(target)
        return self.head(x + self.attention(x, memory, memory)[0])


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
        for parameter in model.parameters():
            parameter.data += .1 * torch.randn_like(parameter)
    return model.double().eval()


IDS = torch.tensor([[1, 4, 2, 9], [5, 6, 7, 8]])
NUMBERS = torch.tensor([[.5, -1.], [2., .25]], dtype=torch.float64)
ENCODED = {'input_ids': IDS, 'token_type_ids': torch.tensor([[0, 0, 1, 1]] * 2),
           'attention_mask': torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}
every_composite = pytest.mark.parametrize('composite', [CPLRP, AttnLRP, AttnTaylor, Difference])


def last_logit(index):
    '''The logit of a class at the last token by hand, as relevance of all logits.'''
    def relevance(output):
        result = torch.zeros_like(output)
        result[:, -1, index] = output.detach()[:, -1, index]
        return result
    return relevance


def logits(output):
    return output['logits']


# ---- equal to the same by hand ---------------------------------------------------------------------------------------

@every_composite
def test_token_model_equals_token_gradient(composite):
    model = made(Tokens)
    before = Snapshot(model)
    explanation = explain(model, ENCODED, target=2, composite=composite)
    with TokenGradient(model, model.words, composite(), select=logits) as attributor:
        output, expected = attributor(ENCODED, last_logit(2))
    assert_restored(before, model)
    assert torch.allclose(explanation.relevance['input_ids'], expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(explanation.output, output[:, -1, 2].detach())
    assert torch.allclose(explanation.tokens()['input_ids'], expected.sum(-1), rtol=1e-9, atol=1e-12)
    assert set(explanation.relevance) == {'input_ids'}  # neither the types nor the mask
    assert_closed(explanation.audit())
    assert torch.allclose(explanation.audit().output, explanation.output)


@every_composite
def test_several_inputs_equal_gradients_of_each(composite):
    model = made(Shared)
    inputs = {'source': IDS, 'target': IDS[:, :2]}
    explanation = explain(model, inputs, target=1, composite=composite)

    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, both):
            memory, x = both[:, :4], both[:, 4:]
            return self.body.head(x + self.body.attention(x, memory, memory)[0])
    both = torch.cat([model.words(IDS), model.words(IDS[:, :2])], 1).detach()
    with Gradient(Embedded(), composite()) as attributor:
        _, expected = attributor(both, last_logit(1))
    found = torch.cat([explanation.relevance['source'], explanation.relevance['target']], 1)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert_closed(explanation.audit())


def test_a_module_that_is_called_twice_has_a_map_for_each_call():
    model = made(Shared)
    inputs = {'source': IDS, 'target': IDS[:, :2]}
    by_name, by_call = explain(model, inputs, target=1), explain(model, inputs, target=1, wrt='words')
    for one, other in zip(by_name.relevance.values(), by_call.relevance, strict=True):
        assert torch.equal(one, other)
    assert_closed(by_call.audit())
    with TokenGradient(model, model.words, CPLRP()) as attributor, pytest.raises(NoRelevance, match='called 2 times'):
        attributor(inputs)


def test_one_input_alone_leaves_the_other_a_constant():
    model = made(Shared)
    inputs = {'source': IDS, 'target': IDS[:, :2]}
    together = explain(model, inputs, target=1, composite='attn_lrp')
    alone = explain(model, inputs, target=1, composite='attn_lrp', wrt='source')
    assert alone.relevance.shape == (2, 4, 6)
    assert not torch.allclose(alone.relevance, together.relevance['source'], rtol=1e-3)
    assert_closed(alone.audit())


def test_an_image_equals_gradient():
    model = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    images = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    explanation = explain(model, images, target=[2, 0])
    with Gradient(model, CPLRP()) as attributor:
        output, expected = attributor(images, lambda output: output.detach() * torch.eye(3)[[2, 0]])
    assert torch.allclose(explanation.relevance, expected, rtol=1e-9)
    assert explanation.target == ['2', '0']
    assert torch.equal(explain(model, images).output, output.detach().amax(1))


# ---- what is asked ---------------------------------------------------------------------------------------------------

SEEDS = {
    'logit': (seeds.logit(2), lambda z: z[:, 2]),
    'first token': (seeds.logit(2, position=0), None),
    'predicted': (seeds.predicted(), lambda z: z.amax(1)),
    'contrast': (seeds.contrast(0, 3), lambda z: z[:, 0] - z[:, 3]),
    'runner-up': (seeds.contrast(), lambda z: z.topk(2).values @ torch.tensor([1., -1.], dtype=z.dtype)),
    'against the runner-up': (seeds.contrast(1), lambda z: z[:, 1] - z[:, [0, 2, 3]].amax(1)),
    'against the mean': (seeds.contrast(1, 'mean'), lambda z: z[:, 1] - z[:, [0, 2, 3]].mean(1)),
    'log-probability': (seeds.log_probability(1), lambda z: z.log_softmax(1)[:, 1]),
    'most probable': (seeds.log_probability(), lambda z: z.log_softmax(1).amax(1)),
}


@pytest.mark.parametrize('name', SEEDS)
@every_composite
def test_seeds_are_what_they_say_and_close(name, composite):
    model, (seed, expected) = made(Tokens), SEEDS[name]
    explanation = explain(model, ENCODED, target=seed, composite=composite)
    with torch.no_grad():
        output = model(**ENCODED)['logits']
    values = output[:, 0, 2] if expected is None else expected(output[:, -1])
    assert torch.allclose(explanation.output, values, rtol=1e-9)
    assert_closed(explanation.audit())


def test_a_contrast_is_the_difference_of_its_maps():
    model = made(Tokens)
    maps = [explain(model, ENCODED, target=target).relevance['input_ids']
            for target in (seeds.contrast(0, 3), 0, 3)]
    assert torch.allclose(maps[0], maps[1] - maps[2], rtol=1e-6, atol=1e-9)


def test_two_towers_are_explained_together():
    model = made(Towers)
    explanation = explain(model, (NUMBERS.repeat(1, 2), IDS), target=seeds.similarity())
    assert set(explanation.relevance) == {'pixels', 'ids'}
    assert all(relevance.any() for relevance in explanation.relevance.values())
    with torch.no_grad():
        output = model(NUMBERS.repeat(1, 2), IDS)
    assert torch.allclose(explanation.output, torch.cosine_similarity(*output.values()))
    assert_closed(explanation.audit())


def test_a_gate_at_the_end_is_left_out_and_said():
    model = made(Table)
    explanation = explain(model, (IDS[:, 0] % 5, NUMBERS))
    with Relevance(model, CPLRP(), select=lambda output: output) as attributor, pytest.raises(NoRelevance):
        attributor((IDS[:, 0] % 5, NUMBERS))
    assert 'sigmoid' in explanation.note
    with torch.no_grad():
        assert torch.allclose(explanation.output.sigmoid(), model(IDS[:, 0] % 5, NUMBERS)[:, 0])
    assert set(explanation.relevance) == {'numbers', 'kinds'}
    assert_closed(explanation.audit())
    assert not explain(made(Tokens), IDS).note


class Boxes(nn.Module):
    '''A detector: classes, and boxes that a sigmoid makes.'''
    def __init__(self):
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return {'pred_boxes': self.boxes(x).sigmoid(), 'logits': self.classes(x), 'gone': torch.ones(len(x))}


@every_composite
def test_a_number_that_a_gate_has_made_is_explained_at_what_enters_it(composite):
    model, x = made(Boxes), torch.rand(2, 3, 4, dtype=torch.float64)
    explanation = explain(model, x, lambda output: output['pred_boxes'][:, 0, 2], composite)
    box = model.boxes(torch.relu(model.body(x)))[:, 0, 2].detach()
    assert_closed(explanation.audit())
    if composite in (AttnTaylor, Difference):  # whose rules carry relevance through a sigmoid
        assert torch.allclose(explanation.output, box.sigmoid())
        assert not explanation.note
        return
    assert torch.allclose(explanation.output, box)
    assert explanation.note == 'The model ends in sigmoid of Boxes: what is explained is what enters it.'
    alone = nn.Sequential(model.body, nn.ReLU(), model.boxes).eval()
    same = explain(alone, x, lambda output: output[:, 0, 2], composite)
    assert torch.allclose(explanation.relevance, same.relevance, atol=1e-12)
    assert not explain(model, x, lambda output: output['logits'][:, 0, 1], composite).note
    with pytest.raises(NoRelevance):
        explain(model, x, lambda output: output['gone'], composite)


@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
@pytest.mark.parametrize('asked', [
    lambda boxes: boxes[:, 0, 0] * boxes[:, 0, 1], lambda boxes: boxes[:, 0, 0] / boxes[:, 0, 1],
    lambda boxes: boxes[:, 0].log().sum(1), lambda boxes: 1. - boxes[:, 0, 0], lambda boxes: boxes[:, 0].amax(1)])
def test_of_what_gates_make_only_linear_functions_are_asked(asked, composite):
    model, x = made(Boxes), torch.rand(2, 3, 4, dtype=torch.float64)
    with pytest.raises(NoRelevance, match='not linear in what sigmoid of Boxes makes.*attn_taylor or difference'):
        explain(model, x, lambda output: asked(output['pred_boxes']), composite)
    explain(model, x, lambda output: output['pred_boxes'][:, 0, 0] - output['pred_boxes'][:, 1, 0], composite)
    taylor = explain(model, x, lambda output: asked(output['pred_boxes']), 'attn_taylor')
    assert torch.allclose(taylor.output, asked(model(x)['pred_boxes']).detach())
    ends = nn.Sequential(model.body, nn.Linear(6, 3).double(), nn.Softmax(-1)).eval()
    with pytest.raises(NoRelevance, match='not linear in what softmax'):
        explain(ends, x[:, 0], lambda output: output[:, 0] * output[:, 1], composite)
    explain(ends, x[:, 0], lambda output: output[:, 0] - output[:, 1], composite)


def test_a_cache_is_left_as_it_was():
    class Cached(Tokens):
        def forward(self, input_ids, cache):
            x = self.words(input_ids)
            cache.append(x)
            both = torch.cat(list(cache), 1)
            return {'logits': self.head(x + self.attention(x, both, both)[0])}
    model = made(Cached)
    kept = [model.words(IDS[:, :2]).detach()]
    explanation = explain(model, {'input_ids': IDS[:, 2:], 'cache': kept}, 2, wrt='input_ids')
    assert len(kept) == 1
    x, both = model.words(IDS[:, 2:]), model.words(IDS)
    expected = model.head(x + model.attention(x, both, both)[0])[:, -1, 2]
    assert torch.allclose(explanation.output, expected.detach())
    assert_closed(explanation.audit())
    assert len(kept) == 1
    model(IDS[:, 2:], kept)
    assert len(kept) == 2


def test_what_is_no_class_has_no_probability():
    class Features(nn.Linear):
        def forward(self, x):
            return {'last_hidden_state': super().forward(x)}
    model = Features(2, 3).double().eval()
    assert explain(model, NUMBERS).probability is None
    squashed = nn.Sequential(nn.Linear(2, 3), nn.Softplus()).double().eval()
    assert explain(squashed, NUMBERS).probability is None


def test_targets_by_name_for_each_sample_and_numbers_of_numpy():
    model = made(Tokens)
    model.config = type('Config', (), {'id2label': {0: 'no', 1: 'yes', 2: 'maybe', 3: 'never'}})()
    assert explain(model, IDS, ['yes', 'never']).target == ['yes (1)', 'never (3)']
    assert explain(model, IDS, numpy.int64(2)).target == ['maybe (2)', 'maybe (2)']
    assert explain(model, IDS, numpy.array([2, 0])).target == ['maybe (2)', 'no (0)']


@pytest.mark.parametrize('count', [1, 2, 4])
def test_ids_that_a_model_turns_are_turned_back(count):
    class Turns(Tokens):
        def forward(self, input_ids):
            x = self.words(input_ids.mT).transpose(0, 1)
            return {'logits': self.head(x + self.attention(x, x, x)[0])}
    ids = torch.cat([IDS, IDS.flip(1)])[:count]
    turned, straight = explain(made(Turns), {'input_ids': ids}, 2), explain(made(Tokens), {'input_ids': ids}, 2)
    assert torch.allclose(turned.relevance['input_ids'], straight.relevance['input_ids'], atol=1e-12)
    assert torch.allclose(turned.tokens()['input_ids'], straight.tokens()['input_ids'], atol=1e-12)
    assert len(turned.show().tokens) == 4
    assert_closed(turned.audit())


def test_a_part_of_the_output_by_its_name():
    model, x = made(Boxes), torch.rand(2, 3, 4, dtype=torch.float64)
    named = explain(model, x, 1, select='logits')
    assert torch.equal(named.relevance, explain(model, x, 1).relevance)
    with pytest.raises(ValueError, match="no part 'scores'; it has pred_boxes, logits, gone"):
        explain(model, x, 1, select='scores')
    with pytest.raises(ValueError, match="no embedding 'text_embeds'; name its parts"):
        explain(model, x, seeds.similarity('logits'))


def test_a_map_of_rounding_is_told():
    class Norms(Tokens):
        def forward(self, input_ids):
            x = self.words(input_ids)
            for _ in range(3):  # each multiplies by 1 / sqrt(eps) around the reference 0
                x = self.head.weight.sum() * x * (x * x).mean(-1, keepdim=True).add(1e-8).rsqrt()
            return x.sum(-1)[:, 0]
    model = made(Norms)
    assert 'rounding may be most of the map' in explain(model, IDS, composite='difference').note
    assert not explain(model, IDS).note


def test_a_sample_without_a_batch_is_told():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4)).double().eval()
    with pytest.raises(ValueError, match=r'of shape \[2\], has no dimension for the samples: pass input\[None\]'):
        explain(model, NUMBERS[0])
    explain(model, NUMBERS[0][None])


def test_a_gate_that_is_asked_for_outside_of_the_model_is_told_with_the_way():
    model = nn.Linear(2, 3).double().eval()
    with pytest.raises(NoRelevance, match=r'by seeds.logit or seeds.log_probability, or take a composite that carries'):
        explain(model, NUMBERS, lambda output: output.log_softmax(-1)[:, 1].exp())
    explain(model, NUMBERS, seeds.log_probability(1))
    assert explain(model, NUMBERS, lambda output: output.softmax(-1)[:, 1], 'attn_taylor').relevance.any()


@pytest.mark.parametrize('end', [
    lambda z: z.sigmoid().squeeze(-1), lambda z: z.softmax(1)[:, 0], lambda z: z.softmax(1).unsqueeze(1)[:, 0],
    lambda z: z.mT.softmax(0).mT, lambda z: (z.sigmoid().squeeze(-1), z.softmax(1)), lambda z: z.sigmoid().clone(),
    lambda z: z.sigmoid().contiguous(), lambda z: nn.functional.dropout(z.sigmoid(), training=False)],
    ids=list('abcdefgh'))
def test_a_view_or_a_copy_of_what_a_gate_has_made_too(end):
    class Ends(nn.Linear):
        def forward(self, x):
            return end(super().forward(x))
    model, x = Ends(4, 1).double().eval(), torch.rand(2, 4, dtype=torch.float64)
    explanation = explain(model, x)
    assert torch.allclose(explanation.output, nn.functional.linear(x, model.weight, model.bias)[:, 0].detach())
    assert 'what enters it' in explanation.note
    assert_closed(explanation.audit())


@pytest.mark.parametrize('wrapped', [UserDict, MappingProxyType, dict])
def test_what_a_tokenizer_or_a_processor_returns(wrapped):
    tokens, table = made(Tokens), made(Table)
    one = explain(tokens, wrapped(ENCODED), target=2)
    assert torch.equal(one.relevance['input_ids'], explain(tokens, ENCODED, target=2).relevance['input_ids'])
    assert_closed(one.audit())
    other = explain(table, wrapped({'kinds': IDS[:, 0] % 5, 'numbers': NUMBERS}))
    assert torch.equal(other.relevance['numbers'], explain(table, (IDS[:, 0] % 5, NUMBERS)).relevance['numbers'])
    assert_closed(other.audit())


def test_nested_arguments_and_lists():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, batch, scale=1.):
            return self.head(batch['x'] + batch['more'][0]) * scale
    model = made(Nested)
    inputs = {'batch': {'x': NUMBERS, 'more': [NUMBERS.flip(0)]}, 'scale': torch.tensor(2., dtype=torch.float64)}
    assert set(explain(model, inputs).relevance) == {'batch.x', 'batch.more.0', 'scale'}
    assert set(explain(model, inputs, wrt=['batch']).relevance) == {'batch.x', 'batch.more.0'}
    alone = explain(model, inputs, wrt='batch.x')
    assert alone.relevance.shape == NUMBERS.shape
    assert_closed(alone.audit())


def test_classes_have_names():
    model = made(Tokens)
    model.config = type('Config', (), {'id2label': {0: 'no', 1: 'Yes', 2: 'maybe', 3: 'LABEL_3'}})()
    assert explain(model, IDS, target='yes').target == ['Yes (1)', 'Yes (1)']
    with pytest.raises(ValueError, match="has no class 'perhaps'; it has no, Yes, maybe$"):
        explain(model, IDS, target='perhaps')


def test_of_samples_padded_at_the_right_the_last_token_that_is_none_is_asked():
    model = made(Tokens)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    given = {'input_ids': IDS, 'attention_mask': mask}
    for target in (None, 2, seeds.contrast(), seeds.log_probability(1)):
        padded = explain(model, given, target)
        alone = explain(model, {'input_ids': IDS[1:, :2], 'attention_mask': mask[1:, :2]}, target)
        assert torch.allclose(padded.output[1:], alone.output, rtol=1e-12)
        assert torch.allclose(padded.relevance['input_ids'][1:, :2], alone.relevance['input_ids'], atol=1e-12)
        assert not padded.relevance['input_ids'][1, 2:].any()
        assert_closed(padded.audit())
    last = explain(model, given, seeds.logit(2, position=-1))  # what is said is done
    assert torch.equal(last.output, model(**given)['logits'][:, -1, 2].detach())


def test_a_seed_takes_an_index_and_says_where_that_of_a_name_is():
    with pytest.raises(TypeError, match=r"'yes' is a name: model.config.label2id"):
        explain(made(Tokens), IDS, seeds.contrast('yes', 'no'))


def test_a_class_has_a_probability():
    model = made(Tokens)
    explanation = explain(model, ENCODED, target=2)
    expected = model(**ENCODED)['logits'][:, -1].softmax(-1)[:, 2].detach()
    assert torch.allclose(explanation.probability.double(), expected, rtol=1e-6)
    assert explanation.title(1) == f'2: {float(explanation.output[1]):.3g}, probability {float(expected[1]):.2g}'
    model.config = type('Config', (), {'problem_type': 'multi_label_classification'})()
    assert explain(model, ENCODED, target=2).probability is None
    assert explain(model, ENCODED, target=seeds.contrast()).probability is None
    assert explain(made(Table), (IDS[:, 0] % 5, NUMBERS)).probability is None


# ---- what is wrong, and the advice -----------------------------------------------------------------------------------

def test_training_mode_is_refused_and_eval_is_the_way():
    model = made(Tokens).train()
    with pytest.raises(ValueError, match=r'training mode.*model.eval\(\)'):
        explain(model, IDS)
    explain(model.eval(), IDS)


def test_an_unknown_name_is_refused_with_those_that_there_are():
    model = made(Tokens)
    with pytest.raises(ValueError, match="'input_id'; did you mean input_ids"):
        explain(model, ENCODED, wrt='input_id')
    with pytest.raises(ValueError, match="no composite 'attnlrp'; there are recommended, cp_lrp, attn_lrp"):
        explain(model, ENCODED, composite='attnlrp')
    with pytest.raises(TypeError, match='is no composite'):
        explain(model, ENCODED, composite=None)
    with pytest.raises(ValueError, match='9.* does not fit 4 classes and 2 samples'):
        explain(model, ENCODED, target=9)
    with pytest.raises(TypeError, match='1.5 is no target'):
        explain(model, ENCODED, target=1.5)
    with pytest.raises(ValueError, match=r'returns shape \(2, 4, 4\); it needs one number'):
        explain(model, ENCODED, target=logits)
    explain(model, ENCODED, target=lambda output: output['logits'][:, -1, 0])


def test_an_index_as_relevance_is_refused_and_a_seed_is_the_way():
    model = made(Tokens)
    with Relevance(model, CPLRP(), select=logits) as attributor, pytest.raises(TypeError, match='seeds.logit'):
        attributor(IDS, 2)
    with Relevance(model, CPLRP(), select=seeds.logit(2)) as attributor:
        _, relevance = attributor(IDS)
    assert torch.equal(relevance, explain(model, IDS, target=2).relevance)


@pytest.mark.parametrize(('inputs', 'target', 'error', 'message'), [
    (NUMBERS.numpy(), None, TypeError, r'an array of NumPy: pass torch.as_tensor\(array\)'),
    ([NUMBERS], None, TypeError, 'the input is a list: pass a tensor, a tuple'),
    (NUMBERS.float(), None, ValueError,
     r'are torch.float64, and its input is torch.float32: .*input.to\(torch.float64\)'),
    (NUMBERS, torch.eye(3)[[0, 1]], ValueError, r'of one-hot rows their argmax\(1\)'),
    (NUMBERS, torch.tensor([0., 1.]), ValueError, 'an integer for each sample'),
])
def test_mistakes_are_told_with_the_way(inputs, target, error, message):
    model = nn.Linear(2, 3).double().eval()
    with pytest.raises(error, match=message):
        explain(model, inputs, target)
    explain(model, NUMBERS, torch.eye(3)[[0, 1]].argmax(1))


def test_a_function_is_no_model():
    with pytest.raises(TypeError, match=r'the model is a .*function.*torch.nn.Module'):
        explain(torch.relu, NUMBERS)


@pytest.mark.parametrize('composite', ['cp_lrp', CPLRP])
def test_attributors_and_audits_take_a_composite_by_name_and_by_class(composite):
    model = made(Tokens)
    with Relevance(model, composite, select=seeds.logit(2)) as attributor:
        _, relevance = attributor(IDS)
    with Relevance(model, CPLRP(), select=seeds.logit(2)) as attributor:
        _, expected = attributor(IDS)
    assert torch.equal(relevance, expected)
    assert_closed(audit(model, composite, IDS, select=seeds.logit(2), wrt='input_ids'))
    with pytest.raises(TypeError, match='None is no composite'):
        audit(model, None, IDS)
    with pytest.raises(ValueError, match="no composite 'lrp'; there are cp_lrp"):
        Relevance(model, 'lrp')


def test_a_class_of_composites_in_an_attributor_of_zennit():
    with pytest.raises(TypeError, match=r'as in CPLRP\(\)'), Gradient(made(Tokens), CPLRP):
        pass


def test_a_model_in_training_mode_whose_dropout_is_on_is_told():
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(.5), nn.Linear(8, 2)).double().train()
    with pytest.warns(UserWarning, match=r'training mode, in which 1 drops a share of 0.5.*model.eval\(\)'):
        audit(model, CPLRP(), NUMBERS)
    with pytest.warns(UserWarning, match='training mode'), Relevance(model, CPLRP()) as attributor:
        attributor(NUMBERS)
    audit(model.eval(), CPLRP(), NUMBERS)


def test_integers_that_no_embedding_takes():
    class OneHot(nn.Linear):
        def forward(self, ids):
            return super().forward(nn.functional.one_hot(ids, 11).double()).mean(1)
    model = OneHot(11, 3).double().eval()
    with pytest.raises(NoRelevance, match='no torch.nn.Embedding takes it; name the module'):
        explain(model, IDS)


def test_an_embedding_that_is_not_called_and_those_that_have_its_weight():
    model = made(Tokens)
    model.shared = nn.Embedding(11, 8).eval()
    model.shared.weight = model.words.weight
    with pytest.raises(NoRelevance, match='was not called in its forward.*words have its weight'):
        explain(model, IDS, wrt='shared')
    explain(model, IDS, wrt='words')


@pytest.mark.parametrize('off', [torch.no_grad, torch.inference_mode])
def test_without_gradients_all_the_same(off):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)).double().eval()
    expected, tokens = explain(model, NUMBERS), made(Tokens)
    with off():
        found = explain(model, NUMBERS * 1.)
        assert torch.equal(found.relevance, expected.relevance)
        assert_closed(found.audit())
        assert explain(tokens, IDS).relevance.any()


def test_a_forward_that_a_context_changes_is_refused():
    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2. if x.requires_grad else 1.)
    model = Looks(3, 2).double().eval()
    inputs = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(ChangedForward):
        explain(model, inputs)
    explain(model, inputs, compare=False)


# ---- pictures --------------------------------------------------------------------------------------------------------

def test_texts_and_images_are_shown_and_saved(tmp_path):
    text = explain(made(Tokens), IDS)
    shown = text.show(tokens=['a', 'b', 'c', '<d>'])
    assert isinstance(shown, Text)
    assert shown.tokens == ['a', 'b', 'c', '<d>']
    assert '&lt;d&gt;' in text.to_html(tokens=['a', 'b', 'c', '<d>'])
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), nn.Softmax(-1)).double().eval()
    image = explain(model, torch.rand(2, 3, 4, 4, dtype=torch.float64))
    for name, explanation in (('text', text), ('image', image)):
        for suffix in ('.pt', '.html', '.png'):
            explanation.save(tmp_path / (name + suffix))
            assert (tmp_path / (name + suffix)).stat().st_size > 100
    assert torch.equal(torch.load(tmp_path / 'image.pt', weights_only=True)['relevance'], image.relevance)
    assert 'softmax' in image._repr_html_()
    assert 'base64' in image._repr_html_()
    with pytest.raises(ValueError, match='has to end in'):
        text.save(tmp_path / 'text.doc')
    with pytest.raises(ValueError, match='nothing was explained under the name'):
        text.show('ids')


# ---- tokens as texts -------------------------------------------------------------------------------------------------

class Words:
    '''A tokenizer that marks the spaces before words, or that there is none.'''
    def __init__(self, marks):
        self.marks = marks

    def convert_ids_to_tokens(self, ids):
        assert all(isinstance(index, int) for index in ids)
        return [self.marks[index] for index in ids]

    def decode(self, ids):
        return self.marks[ids[0]].lstrip('Ġ▁')


@pytest.mark.parametrize(('marks', 'expected'), [
    (['<s>', 'Ġa', 'Ġfil', 'm'], ['<s>', ' a', ' fil', 'm']),
    (['▁a', '▁film', '.', '</s>'], [' a', ' film', '.', '</s>']),
    (['[CLS]', 'a', 'film', '##s'], ['[CLS]', ' a', ' film', 's']),
])
def test_texts_of_tokens_have_their_spaces(marks, expected):
    assert token_texts(Words(marks), torch.arange(4)) == expected


@pytest.mark.parametrize('marks', [['Ġa', None], ['a', None]])
def test_an_id_without_a_token_is_shown_as_its_number(marks):
    class Short(Words):
        def decode(self, ids):
            return '' if self.marks[ids[0]] is None else super().decode(ids)
    assert token_texts(Short(marks), [0, 1])[1].strip() == '<1>'


def test_what_is_shown_is_the_text_where_the_tokenizer_is_known():
    tokenizer = Words(['[CLS]', *'abcdefghij'])
    explanation = explain(made(Tokens), ENCODED, tokenizer=tokenizer)
    assert explanation.show('input_ids').tokens == token_texts(tokenizer, ENCODED['input_ids'][0])
    assert explanation.show('input_ids', tokens=list('wxyz')).tokens == list('wxyz')


# ---- what is recommended ---------------------------------------------------------------------------------------------

class Continues(Tokens):
    '''A model that continues texts, as those of transformers say it.'''
    def can_generate(self):
        return True


class Tokenizer(Words):
    '''A tokenizer in which a line break is the last of two tokens.'''
    all_special_ids = [1, 2]

    def __init__(self):
        super().__init__([f'Ġ{index}' for index in range(11)])

    def __call__(self, text, add_special_tokens=True):
        assert (text, add_special_tokens) == ('\n', False)
        return {'input_ids': [9, 10]}


@pytest.mark.parametrize(('cls', 'input', 'tokenizer', 'expected'), [
    (Tokens, ENCODED, None, AttnLRP()),
    (Tokens, ENCODED, Tokenizer(), AttnLRP()),
    (Continues, ENCODED, None, CPLRP()),
    (Continues, ENCODED, Tokenizer(), Difference(blank_tokens(10, keep_ids=[1, 2]))),
    (Table, (torch.tensor([1, 3]), torch.ones(2, 2, dtype=torch.float64)), None, AttnLRPGamma()),
])
def test_what_is_recommended_goes_by_the_kind_of_the_model(cls, input, tokenizer, expected):
    model = made(cls)
    found = explain(model, input, composite='recommended', tokenizer=tokenizer)
    other = explain(model, input, composite=expected)
    for one, two in zip(found.tokens().values(), other.tokens().values(), strict=True):
        assert equal_maps(one, two)
    if cls is Continues and tokenizer is not None:  # what is said is a token
        assert found.target == [f"' {index}'" for index in other.target]
    assert_closed(found.audit())


# ---- results in files ------------------------------------------------------------------------------------------------

def test_what_was_saved_is_loaded_and_shown(tmp_path):
    explanation = explain(made(Tokens), ENCODED, 2, tokenizer=Words(['[CLS]', *'abcdefghij']))
    explanation.save(tmp_path / 'saved.pt')
    loaded = Explanation.load(tmp_path / 'saved.pt')
    assert torch.equal(loaded.relevance['input_ids'], explanation.relevance['input_ids'])
    assert torch.equal(loaded.probability, explanation.probability)
    assert loaded.title() == explanation.title()
    assert [token.strip() for token in loaded.show().tokens] == ['1', '4', '2', '9']
    assert 'class="' not in loaded.to_html(tmp_path / 'page.html')
    assert (tmp_path / 'page.html').read_text().startswith('<!DOCTYPE html>')
    with pytest.raises(ValueError, match='no model to audit: explain again'):
        loaded.audit()


def test_the_similarity_to_a_vector():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(11, 6), nn.Linear(6, 5)

        def forward(self, ids):
            states = self.out(self.words(ids))
            return {'last_hidden_state': states, 'pooler_output': states[:, 0]}
    model = made(Encoder)
    vector = model(IDS[1:])['pooler_output'][0].detach()
    explanation = explain(model, IDS, seeds.similarity_to(vector))
    expected = torch.cosine_similarity(model(IDS)['pooler_output'], vector[None]).detach()
    assert torch.allclose(explanation.output, expected)
    assert float(explanation.output[1]) == pytest.approx(1.)
    assert explanation.target == ['similarity_to'] * 2
    assert_closed(explanation.audit())
    mean = explain(model, IDS, seeds.similarity_to(vector, lambda output: output['last_hidden_state'].mean(1)))
    assert mean.relevance.flatten(1).any(1).all()
    with pytest.raises(ValueError, match=r'the embedding is \[2, 4, 5\].*pass pool'):
        explain(model, IDS, seeds.similarity_to(vector, lambda output: output['last_hidden_state']))
