'''Answers of language models, token by token.'''
import pytest
import torch

from helpers import assert_closed
from zennit_attn import Relevance, explain, explain_generation, seeds
from zennit_attn.composites import CPLRP, AttnLRP, Difference
from zennit_attn.references import blank_tokens

from .test_questions import IDS, PICTURE, PIXELS, SEQUENCES, SIDES, SMALL, built, perturbed

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


SOUND = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def listener():
    '''A small random model that hears, and answers.'''
    transformers = pytest.importorskip('transformers', reason='transformers is not installed (see the extra zoo)')
    config = transformers.WhisperConfig(
        **SEQUENCES, **SIDES, num_mel_bins=8, max_source_positions=20, max_target_positions=20, pad_token_id=0,
        eos_token_id=2, bos_token_id=1, suppress_tokens=None, begin_suppress_tokens=None)
    return perturbed(transformers.WhisperForConditionalGeneration(config))


@every_composite
def test_rows_of_a_model_that_hears(composite):
    model = listener()
    answer = IDS[:, :3]
    start = torch.tensor([[5, 6], [5, 6]])
    generation = explain_generation(model, {'input_features': SOUND, 'decoder_input_ids': start}, answer=answer,
                                    composite=composite)
    assert generation.relevance['input_features'].shape == (2, 3, 8, 40)
    assert generation.prompt == 2
    for step in range(3):
        given = {'input_features': SOUND, 'decoder_input_ids': torch.cat([start, answer[:, :step]], 1)}
        alone = explain(model, given, seeds.logit(answer[:, step]), composite)
        assert torch.allclose(generation.relevance['input_features'][:, step], alone.relevance['input_features'],
                              rtol=1e-4, atol=1e-7)
        row = generation.relevance['decoder_input_ids'][:, step]
        assert torch.allclose(row[:, :2 + step], alone.tokens()['decoder_input_ids'], rtol=1e-4, atol=1e-7)
    assert_closed(generation.audit(), 1e-6)
    assert generation.show().axes[0].get_xlabel() == 'token'  # the words, and not the sound
    with pytest.raises(ValueError, match='input_features is not made of tokens'):
        generation.show('input_features')


def test_what_a_model_that_hears_says_and_starts_with():
    model = listener()
    generation = explain_generation(model, {'input_features': SOUND}, 4)
    assert generation.prompt == 1
    said = torch.cat([torch.zeros(2, 1, dtype=torch.long), generation.ids], 1)
    for step in range(generation.ids.shape[1]):
        logits = model(input_features=SOUND, decoder_input_ids=said[:, :step + 1]).logits[:, -1]
        assert torch.equal(logits.argmax(-1), generation.ids[:, step])


def test_rows_over_pixels_and_words():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed (see the extra zoo)')
    config = transformers.LlavaConfig(
        vision_config={'model_type': 'clip_vision_model', **SMALL, **PICTURE}, image_token_index=50,
        text_config={'model_type': 'llama', **SMALL, 'vocab_size': 60})
    model = perturbed(transformers.LlavaForConditionalGeneration(config))
    ids = torch.tensor([[1, *[50] * 16, 5, 6, 7]] * 2)
    given = {'input_ids': ids, 'pixel_values': PIXELS, 'attention_mask': torch.ones_like(ids)}
    generation = explain_generation(model, given, answer=IDS[:, :2])
    alone = explain(model, given, seeds.logit(IDS[:, 0]))
    assert generation.relevance['pixel_values'].shape == (2, 2, 3, 16, 16)
    assert torch.allclose(generation.relevance['pixel_values'][:, 0], alone.relevance['pixel_values'], atol=1e-9)
    assert generation.relevance['pixel_values'][:, 0].any()
    assert_closed(generation.audit(), 1e-6)


def test_the_audit_is_that_of_the_whole_answer_and_a_text_shows_it():
    model, *_ = built('language')
    generation = explain_generation(model, IDS, answer=IDS[:, :3], tokenizer=Letters())
    ledger = generation.audit()
    assert torch.allclose(ledger.output, generation.output.sum(1))
    # The norms of the model round to float32, and the three logits nearly cancel.
    assert (ledger.unaccounted.abs() <= 1e-6 * generation.output.abs().sum(1)).all()
    text = generation.text(1)
    assert generation.tokens() == generation.texts(torch.cat([IDS, IDS[:, :3]], 1)[0])
    assert text.title == f'answer: {int(IDS[0, 1])}\n {int(IDS[0, 2])}'
    assert torch.equal(text.relevance, generation.span(1)['input_ids'][0])
    assert generation._repr_html_() == generation.text().html()
    logits = model(torch.cat([IDS, IDS[:, :3]], 1)).logits[:, 4:7]
    assert torch.allclose(generation.probability, logits.softmax(-1).gather(2, IDS[:, :3, None])[..., 0], rtol=1e-6)


def test_texts_as_prompt_and_answer():
    model, *_ = built('language')
    tokenizer = Letters()
    generation = explain_generation(model, 'four', answer='two', tokenizer=tokenizer)
    other = explain_generation(model, tokenizer(['four'])['input_ids'], answer=tokenizer(['two'])['input_ids'])
    assert torch.equal(generation.relevance['input_ids'], other.relevance['input_ids'])
    with pytest.raises(TypeError, match='the answer is a text.*pass tokenizer='):
        explain_generation(model, IDS, answer='two')


def test_padding_where_the_answer_begins_is_refused_and_the_left_is_the_way():
    model, *_ = built('language')
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match="padding_side = 'left'"):
        explain_generation(model, {'input_ids': IDS, 'attention_mask': mask}, answer=IDS[:, :2])
    explain_generation(model, {'input_ids': IDS, 'attention_mask': mask.flip(1)}, answer=IDS[:, :2])


@pytest.mark.parametrize('name', ['T5', 'BART'])
def test_a_decoder_that_was_given_nothing_is_named_and_the_advice_works(name):
    model, inputs, *_ = built(name)
    prompt = {'inputs_embeds': model.get_input_embeddings()(IDS).detach()}  # of ids, BART makes something up
    with pytest.raises(ValueError, match='the decoder was given nothing: pass decoder_input_ids too'):
        explain(model, prompt)
    start = torch.full((2, 1), model.config.decoder_start_token_id)
    explain(model, {**prompt, 'decoder_input_ids': start})
    with Relevance(model, CPLRP(), select=seeds.predicted()) as attributor, pytest.raises(ValueError, match='nothing'):
        attributor(prompt)


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

    def __call__(self, text, add_special_tokens=True, return_tensors=None):
        assert not add_special_tokens or isinstance(text, list)
        if text == '\n':
            return {'input_ids': [3]}
        texts = [text] if isinstance(text, str) else text
        return {'input_ids': torch.tensor([[ord(letter) % 40 for letter in each] for each in texts])}

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


def test_a_model_that_says_what_it_sees_needs_no_words():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed (see the extra zoo)')
    model = perturbed(transformers.GitForCausalLM(transformers.GitConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, vision_config={**SMALL, 'image_size': 16, 'patch_size': 4})))
    generation = explain_generation(model, {'pixel_values': PIXELS}, max_new_tokens=2)
    assert generation.prompt == 1
    given = {'pixel_values': PIXELS, 'input_ids': torch.ones(2, 1, dtype=torch.long)}
    alone = explain(model, given, seeds.logit(generation.ids[:, 0]))
    assert torch.allclose(generation.output[:, 0], alone.output, rtol=1e-6)
    assert torch.allclose(generation.relevance['pixel_values'][:, 0], alone.relevance['pixel_values'], atol=1e-9)
    told = explain_generation(model, {'pixel_values': PIXELS}, answer=generation.ids.tolist())
    assert torch.allclose(told.relevance['pixel_values'], generation.relevance['pixel_values'], atol=1e-9)
    with pytest.raises(TypeError, match='the answer is a dict: pass ids'):
        explain_generation(model, {'pixel_values': PIXELS}, answer={})


def test_audit_of_a_model_whose_memory_ends_unused():
    transformers = pytest.importorskip('transformers', reason='transformers is not installed (see the extra zoo)')
    model = perturbed(transformers.RwkvForCausalLM(transformers.RwkvConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16, context_length=64)))
    assert_closed(explain(model, IDS, 3, Difference(torch.ones_like)).audit(), 1e-6)


def test_what_is_recommended_for_a_batch_padded_at_the_left_is_that_for_each():
    model, *_ = built('language')
    reference = blank_tokens(3, padding=0)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = (torch.arange(8) >= 3).long().expand(2, -1)
    one = explain_generation(model, {'input_ids': padded, 'attention_mask': mask}, answer=IDS[:, :2],
                             composite=Difference(reference))
    other = explain_generation(model, IDS, answer=IDS[:, :2], composite=Difference(reference))
    assert torch.allclose(one.relevance['input_ids'][:, :, 3:], other.relevance['input_ids'], rtol=1e-3, atol=1e-6)
