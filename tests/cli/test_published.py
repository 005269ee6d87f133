'''Published models on the command line.'''
import argparse
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from zennit_attn.cli.inputs import pixels as pixels_of
from zennit_attn.cli.models import load
from zennit_attn.errors import UnsupportedOperator
from zennit_attn.heatmap import Row

from .helpers import refused, run


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_models_of_timm(capsys, folder, photo):
    pytest.importorskip('timm', reason='timm is not installed (see the extra zoo in pyproject.toml)')
    settings = [part for text in ('img_size=32', 'embed_dim=24', 'depth=1', 'num_heads=3') for part in ('--set', text)]
    model = ['timm:vit_tiny_patch16_224', *settings]
    code, printed, complaint = run(capsys, 'heatmap', *model, '--image', photo, '--patches', '16')
    assert (code, 'input    1x3x32x32' in printed, 'random' in complaint) == (0, True, True)
    assert run(capsys, 'audit', *model, '-i', '2x3x32x32', '-c', 'attn_lrp')[0] == 0
    assert 'did you mean' in refused(capsys, 'audit', 'timm:vit_tiny_patch16_225', '-i', '1x3x32x32')
    assert 'nothing is downloaded' in refused(capsys, 'audit', *model, '--pretrained', '-i', '1x3x32x32')


@pytest.fixture
def saved(folder):
    '''Folders of small language models with their tokenizer, as transformers saves them.'''
    transformers = pytest.importorskip(
        'transformers', reason='transformers is not installed (see the extra zoo in pyproject.toml)')
    from tokenizers import Tokenizer, models, pre_tokenizers
    words = {word: index for index, word in enumerate('[UNK] what a good film bad very'.split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]')
    sizes = {'hidden_size': 8, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 8}
    bert = transformers.BertConfig(
        vocab_size=len(words), max_position_embeddings=6, **sizes, id2label={0: 'negative', 1: 'positive'},
        label2id={'negative': 0, 'positive': 1})
    gpt = transformers.GPT2Config(vocab_size=len(words), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    t5 = transformers.T5Config(vocab_size=len(words), d_model=8, num_layers=1, num_heads=2, d_ff=8, d_kv=4,
                               decoder_start_token_id=0, eos_token_id=0, pad_token_id=0)
    vit = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, id2label=bert.id2label, label2id=bert.label2id)
    torch.manual_seed(0)
    for name, model in (('bert', transformers.BertForSequenceClassification(bert)),
                        ('gpt', transformers.GPT2LMHeadModel(gpt)),
                        ('t5', transformers.T5ForConditionalGeneration(t5)),
                        ('vit', transformers.ViTForImageClassification(vit))):
        model.save_pretrained(folder / name)
        if name != 'vit':
            tokenizer.save_pretrained(folder / name)
    (folder / 'vit' / 'preprocessor_config.json').write_text(json.dumps({
        'image_processor_type': 'ViTImageProcessor', 'size': {'height': 16, 'width': 16}, 'do_resize': True,
        'do_rescale': True, 'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': [.1, .2, .3],
        'image_std': [.4, .5, .6], 'resample': 2}))


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_models_of_transformers(capsys, saved):
    capsys.readouterr()
    code, printed, aside = run(capsys, 'heatmap', 'transformers:bert', '--text', 'what a good film', '-t', 'positive')
    assert (code, 'target   positive (1)' in aside) == (0, True)
    assert [line.split('\t')[0] for line in printed.splitlines()] == ['token', 'what', ' a', ' good', ' film']
    assert 'or the name of a class: negative, positive' in refused(
        capsys, 'heatmap', 'transformers:bert', '--text', 'what', '-t', 'good')
    assert 'has 7 tokens, and the model takes 6' in refused(
        capsys, 'heatmap', 'transformers:bert', '--text', 'what a film what a film very')
    code, printed, _ = run(capsys, 'heatmap', 'transformers:gpt', '--text', 'what a good', '-o', 'gpt.png')
    assert code == 0
    assert re.search(r"target   '[^']+' \(2,\d\) of output 1x3x7", printed)
    aside = run(capsys, 'heatmap', 'transformers:gpt', '--text', 'what a', '-t', 'film', '--contrast', 'good')[2]
    assert "target   'film' (1,4) and not 'good' (1,3)" in aside
    assert "'good film' is 2 tokens" in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'a', '-t', 'good film')
    assert run(capsys, 'audit', 'transformers:./gpt', '--tokens', '2x4')[0] == 0
    assert 'nothing is downloaded' in refused(capsys, 'audit', 'transformers:nowhere/at-all', '--tokens', '1x4')
    assert 'knows nothing of' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'zzz qqq')
    assert 'finds no tokenizer' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'a', '--tokenizer', 'none')


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['gpt', 't5'])
def test_answers_of_models_of_transformers(capsys, folder, saved, name):
    capsys.readouterr()
    command = ['heatmap', f'transformers:{name}', '--text', 'what a']
    code, printed, aside = run(capsys, *command, '--answer', 'good film', '--contrast', '-c', 'cp_lrp', '-c',
                               'attn_lrp')
    head, *rows = (line.split('\t') for line in printed.splitlines())
    assert (code, head[:3]) == (0, ['answer', 'token', 'cp_lrp'])
    given = ['what', 'a', 'good', 'film'] if name == 'gpt' else ['what', 'a', '[UNK]', 'good']
    assert [(row[0].strip("' "), row[1].strip()) for row in rows] == [
        (said, token) for said in ('good', 'film') for token in given]
    numbers = torch.tensor([[float(number) for number in row[2:]] for row in rows]).reshape(2, 4, 2)
    assert not numbers[0, 3].any()  # the second token of the answer comes after the first
    assert re.search(r"answer   'good' [\d.]+, ' film' [\d.]+ \(with the probability", aside)
    for out in ('answer.html', 'answer.png'):
        assert run(capsys, *command, '--generate', '2', '-o', out)[0] == 0
        assert (folder / out).stat().st_size > 100
    assert run(capsys, *command)[0] == 0
    assert run(capsys, 'audit', f'transformers:{name}', '--text', 'what a')[0] == 0


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_images_go_through_the_processor_of_the_model(capsys, folder, saved, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'fits.png')
    seen = {}
    monkeypatch.setattr('zennit_attn.cli.heatmap.Row', lambda image, maps: seen.update(image=image) or Row(image, maps))
    capsys.readouterr()
    code, printed, _ = run(capsys, 'heatmap', 'transformers:vit', '--image', 'fits.png', '-t', 'positive')
    assert (code, 'target   positive (1)' in printed, 'input    1x3x16x16 float64' in printed) == (0, True, True)
    assert torch.allclose(seen['image'], torch.tensor(pixels / 255.).permute(2, 0, 1), atol=1e-6)
    loaded = load('transformers:vit')
    given = pixels_of('fits.png', loaded, argparse.Namespace(size=None, grey=False, normalize=None))[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in ([.1, .2, .3], [.4, .5, .6]))
    assert torch.allclose(given[0].double(), (seen['image'] - mean) / std, atol=1e-5)


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_an_answer_of_what_is_not_supported_is_refused_as_such(capsys, saved, monkeypatch):
    def refuses(*_, **__):
        raise UnsupportedOperator('no rule is known')
    monkeypatch.setattr('zennit_attn.cli.heatmap.explain_generation', refuses)
    command = ['heatmap', 'transformers:gpt', '--text', 'what a', '--generate', '2']
    capsys.readouterr()
    assert refused(capsys, *command, code=1) == 'no rule is known'
