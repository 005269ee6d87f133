'''One call for the kinds of models that transformers has: what is explained, and a ledger that closes.'''
import pytest
import torch

from helpers import assert_closed
from versions import release
from zennit_attn import TokenGradient, explain, seeds
from zennit_attn.composites import CPLRP, AttnLRP, Difference

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings('ignore')]
IDS = torch.tensor([[5, 9, 3, 8, 12], [7, 7, 4, 30, 2]])
SMALL = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32}
SEQUENCES = {'d_model': 16, 'vocab_size': 40, 'decoder_start_token_id': 0}
SIDES = {'encoder_layers': 1, 'decoder_layers': 1, 'encoder_attention_heads': 2, 'decoder_attention_heads': 2,
         'encoder_ffn_dim': 32, 'decoder_ffn_dim': 32}
PICTURE = {'image_size': 16, 'patch_size': 4}
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TRANSDUCED = {'input_ids': IDS, 'attention_mask': torch.ones_like(IDS), 'decoder_input_ids': IDS[:, :3]}
#: The class, its settings, the input, what is asked, what is explained, and what of the ledger the model rounds.
KINDS = {
    'vision': ('ViT', 'ViTForImageClassification', {**SMALL, **PICTURE, 'num_labels': 3}, {'pixel_values': PIXELS}, 1,
               {'pixel_values'}, 1e-9),
    'text': ('Bert', 'BertForSequenceClassification', {
        **SMALL, 'vocab_size': 40, 'id2label': {0: 'negative', 1: 'positive'}},
        {'input_ids': IDS, 'token_type_ids': torch.zeros_like(IDS), 'attention_mask': torch.ones_like(IDS)}, 'positive',
        {'input_ids'}, 1e-9),
    'language': ('Llama', 'LlamaForCausalLM', {**SMALL, 'vocab_size': 40}, {
        'input_ids': IDS, 'attention_mask': torch.ones_like(IDS)}, seeds.contrast(), {'input_ids'}, 1e-6),  # norms
    'T5': ('T5', 'T5ForConditionalGeneration', {
        **SEQUENCES, 'num_layers': 1, 'num_heads': 2, 'd_ff': 32, 'd_kv': 8}, TRANSDUCED, None,
        {'input_ids', 'decoder_input_ids'}, 1e-6),  # norms
    'BART': ('Bart', 'BartForConditionalGeneration', {**SEQUENCES, **SIDES}, TRANSDUCED, None,
             {'input_ids', 'decoder_input_ids'}, 1e-9),
    'CLIP': ('CLIP', 'CLIPModel', {
        'text_config': {**SMALL, 'vocab_size': 40, 'eos_token_id': 2, 'bos_token_id': 1, 'pad_token_id': 0},
        'vision_config': {**SMALL, **PICTURE}, 'projection_dim': 8}, {'input_ids': IDS, 'pixel_values': PIXELS},
        seeds.similarity(), {'input_ids', 'pixel_values'}, 1e-6),  # softmaxes
}


def built(name):
    '''A small random model of transformers, and what it is asked.'''
    package = pytest.importorskip('transformers', exc_type=ImportError,
                                  reason='transformers is not installed (see the extra zoo in pyproject.toml)')
    if name == 'CLIP' and release(package.__version__) < release('5.0'):
        pytest.skip('needs transformers 5: before it, the mask of CLIP in float64 is one that float32 cannot hold')
    config, kind, settings, *question = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(package, kind)(getattr(package, f'{config}Config')(**settings))
    return perturbed(model), *question


def perturbed(model):
    '''A model with biases that are not zero, in double precision.'''
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += .05 * torch.randn_like(parameter)
    return model.double().eval()


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('composite', [CPLRP(), AttnLRP(), Difference(torch.ones_like)], ids=[
    'CPLRP', 'AttnLRP', 'Difference'])
def test_one_call_explains(name, composite):
    model, inputs, target, names, tolerance = built(name)
    explanation = explain(model, inputs, target, composite)
    assert set(explanation.relevance) == names
    assert all(relevance.flatten(1).any(1).all() for relevance in explanation.relevance.values())
    assert_closed(explanation.audit(), tolerance)


@pytest.mark.parametrize('name', ['text', 'language'])
def test_tokens_equal_token_gradient(name):
    model, inputs, *_ = built(name)
    explanation = explain(model, inputs, 1, AttnLRP)
    with TokenGradient(model, model.get_input_embeddings(), AttnLRP(), select=seeds.logit(1)) as attributor:
        _, expected = attributor(inputs)
    assert torch.allclose(explanation.relevance['input_ids'], expected, rtol=1e-9, atol=1e-12)
