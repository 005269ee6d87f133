'''Answers of language models, token by token.'''
import pytest
import torch

from zennit_attn import explain, explain_generation, seeds
from zennit_attn.composites import CPLRP, AttnLRP, Difference
from zennit_attn.references import blank_tokens

from .test_questions import IDS, built

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings('ignore')]
every_composite = pytest.mark.parametrize('composite', [CPLRP(), AttnLRP(), Difference(torch.ones_like)], ids=[
    'CPLRP', 'AttnLRP', 'Difference'])


@every_composite
def test_rows_of_a_decoder_are_explanations_of_each_step(composite):
    model, *_ = built('language')
    generation = explain_generation(model, IDS, 4, composite=composite, pad_token_id=0)
    assert torch.equal(generation.ids, model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)[:, 5:])
    for step in range(4):
        ids = torch.cat([IDS, generation.ids[:, :step]], 1)
        alone = explain(model, ids, seeds.logit(generation.ids[:, step]), composite)
        row = generation.relevance['input_ids'][:, step]
        assert torch.allclose(generation.output[:, step], alone.output, rtol=1e-6)
        assert torch.allclose(row[:, :5 + step], alone.tokens(), rtol=1e-4, atol=1e-7)
        assert not row[:, 5 + step:].any()  # a model that is causal knows nothing of what comes


@every_composite
@pytest.mark.parametrize('name', ['T5', 'BART'])
def test_rows_beside_an_encoder_are_explanations_of_each_step(name, composite):
    model, inputs, *_ = built(name)
    prompt = {key: inputs[key] for key in ('input_ids', 'attention_mask')}
    generation = explain_generation(model, prompt, answer=IDS[:, :3], composite=composite)
    start = torch.zeros(2, 1, dtype=torch.long)
    for step in range(3):
        given = {**prompt, 'decoder_input_ids': torch.cat([start, IDS[:, :step]], 1)}
        alone = explain(model, given, seeds.logit(IDS[:, step]), composite).tokens()
        assert torch.allclose(generation.relevance['input_ids'][:, step], alone['input_ids'], rtol=1e-4, atol=1e-7)
        row = generation.relevance['decoder_input_ids'][:, step]
        assert torch.allclose(row[:, :step + 1], alone['decoder_input_ids'], rtol=1e-4, atol=1e-7)
        assert not row[:, step + 1:].any()


def test_left_padding_receives_nothing_and_changes_nothing():
    model, *_ = built('language')
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(8) >= 3).long().expand(2, -1)
    one = explain_generation(model, {'input_ids': padded, 'attention_mask': mask}, answer=IDS[:, :2])
    other = explain_generation(model, {'input_ids': IDS, 'attention_mask': torch.ones_like(IDS)}, answer=IDS[:, :2])
    assert not one.relevance['input_ids'][:, :, :3].any()
    assert torch.allclose(one.relevance['input_ids'][:, :, 3:], other.relevance['input_ids'], rtol=1e-4, atol=1e-7)


def test_contrast_spans_and_pictures(tmp_path):
    model, *_ = built('language')
    generation = explain_generation(model, IDS, answer=IDS[:, :3], contrast=True)
    step = explain(model, IDS, seeds.contrast(IDS[:, 0]))
    assert torch.allclose(generation.output[:, 0], step.output, rtol=1e-6)
    assert torch.allclose(generation.relevance['input_ids'][:, 0, :5], step.tokens(), rtol=1e-4, atol=1e-7)
    assert torch.equal(generation.span()['input_ids'], generation.relevance['input_ids'].sum(1))
    generation.show(answer=['$a', 'b', 'c']).savefig(tmp_path / 'matrix.png')
    with pytest.raises(ValueError, match='2 tokens of the answer and 8'):
        generation.show(answer=['a', 'b'])


def test_what_is_wrong_is_said():
    model, *_ = built('language')
    with pytest.raises(ValueError, match=r'needs \[batch, answer\]'):
        explain_generation(model, IDS, answer=IDS[:1])
    with pytest.raises(ValueError, match='training mode'):
        explain_generation(model.train(), IDS)
    with pytest.raises(TypeError, match='has no method generate; pass the answer'):
        explain_generation(model.eval().model, IDS)


class Letters:
    '''A tokenizer of one letter a token, of which 0 is special and 3 is the line break.'''
    all_special_ids = [0]

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {'input_ids': [3]}

    def convert_ids_to_tokens(self, ids):
        return [f'Ġ{index}' for index in ids]

    def decode(self, ids):
        return f'{ids[0]}\n'


def test_what_is_recommended_for_a_decoder_and_its_tokens_as_texts():
    model, *_ = built('language')
    options = {'answer': IDS[:, :3], 'tokenizer': Letters()}
    generation = explain_generation(model, IDS, composite='recommended', **options)
    other = explain_generation(model, IDS, composite=Difference(blank_tokens(3, keep_ids=[0])), **options)
    assert torch.equal(generation.relevance['input_ids'], other.relevance['input_ids'])
    labels = generation.show().axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [f' {int(index)}\\n' for index in IDS[0, :3]]
