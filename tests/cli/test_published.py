'''Published models on the command line.'''
import re

import pytest
import torch

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
    bert = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        id2label={0: 'negative', 1: 'positive'}, label2id={'negative': 0, 'positive': 1})
    gpt = transformers.GPT2Config(vocab_size=len(words), n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    for name, model in (('bert', transformers.BertForSequenceClassification(bert)),
                        ('gpt', transformers.GPT2LMHeadModel(gpt))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_models_of_transformers(capsys, saved):
    capsys.readouterr()
    code, printed, _ = run(capsys, 'heatmap', 'transformers:bert', '--text', 'what a good film', '-t', '1')
    assert (code, 'target   positive (1)' in printed) == (0, True)
    assert re.sub('\x1b\\[[0-9;]*m', '', printed).splitlines()[-1] == 'what a good film'
    code, printed, _ = run(capsys, 'heatmap', 'transformers:gpt', '--text', 'what a good', '-o', 'gpt.png')
    assert code == 0
    assert re.search(r"target   '[^']+' \(2,\d\) of output 1x3x7", printed)
    assert run(capsys, 'audit', 'transformers:./gpt', '--tokens', '2x4')[0] == 0
    assert 'nothing is downloaded' in refused(capsys, 'audit', 'transformers:nowhere/at-all', '--tokens', '1x4')
    assert 'knows nothing of' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'zzz qqq')
    assert 'finds no tokenizer' in refused(capsys, 'heatmap', 'transformers:gpt', '--text', 'a', '--tokenizer', 'none')
