'''Draws the pictures of the pages by kind of model, and of how to draw heatmaps, by the code that stands on them.

    python docs/pictures.py [KIND ...]

What has no trained model in a package is trained here first, for a minute or a few. The pages about language models,
text classifiers and vision models ask those of ``python -m benchmarks.real.fetch smollm2 reranker saliency``. It needs
the extras `real` and `demo`.
'''
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from zennit_attn.demo import DEMOS, SHAPES
from zennit_attn.demo.data import scenes

DOCS = Path(__file__).parent
PAGES = DOCS / 'models'
SMALL = {'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 128,
         'hidden_dropout_prob': 0., 'attention_probs_dropout_prob': 0.}


def code(kind):
    '''The code of a page about a kind of model.'''
    return _blocks(PAGES / f'{kind}.md', 'py')


def _blocks(page, language):
    return '\n'.join(re.findall(rf'^```{language}\n(.*?)^```$', page.read_text(), re.DOTALL | re.MULTILINE))


def heatmaps():
    '''Run the page on heatmaps, and keep the pictures that it shows.'''
    page = DOCS / 'how-to' / 'heatmaps.md'
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        torch.manual_seed(0)
        exec(compile(_blocks(page, 'python'), str(page), 'exec'), {'__name__': 'page'})
        for name in re.findall(r'!\[[^]]*\]\(([\w-]+\.png)\)', page.read_text()):
            shutil.copy(name, page.parent)
        os.chdir(DOCS)


def fitted(model, loss, steps, rate=2e-3):
    '''A model after training: `loss` takes it and the number of the step.'''
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(steps, 2))
    for step in range(steps):
        optimizer.zero_grad()
        found = loss(model.train(), step)
        found.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            print(f'  step {step}: loss {float(found.detach()):.3f}', flush=True)
    return model.eval()


# ---- what the pages are given: trained, or with steps=0 and real=False small and random ------------------------------

def vit(steps=1, real=True):
    '''The demo's vision transformer.'''
    return {'model': DEMOS['vit'].load(), 'images': DEMOS['vit'].held_out(1).images.double()}


def vision(steps=1, real=True):
    '''DINOv2 with a decoder that says what in an image is salient, and what its input is made by.'''
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor
    size = 224 if real else 28
    normalize = Normalize((.485, .456, .406), (.229, .224, .225))
    processor = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])
    if not real:
        return {'model': nn.Sequential(nn.Conv2d(3, 4, 14, 14), nn.Flatten()).eval(), 'processor': processor,
                'picture': Image.new('RGB', (40, 30), 'red')}
    from skimage.data import astronaut

    from benchmarks.real.models import saliency
    network = saliency().network.network

    class Places(nn.Module):
        '''One number for each place.'''
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, image):
            return self.network(image).flatten(1)
    return {'model': Places().eval(), 'processor': processor, 'picture': Image.fromarray(astronaut())}


def text(steps=1, real=True):
    '''A cross-encoder that says whether a passage answers a question.'''
    words = {'question': 'how long do cats sleep?', 'passage': 'The cat of my neighbour is grey. Most cats sleep for '
             'twelve to sixteen hours a day. Dogs like to run.'}
    if real:
        from benchmarks.real.models import reranker
        reader = reranker()
        return {'model': reader.network, 'tokenizer': reader.tokenizer, **words}
    from transformers import BertConfig, BertForSequenceClassification
    tokenizer = _tokenizer(' '.join(words.values()))
    return {'model': BertForSequenceClassification(BertConfig(**SMALL, vocab_size=99, num_labels=1)).eval(),
            'tokenizer': tokenizer, **words}


def language(steps=1, real=True):
    '''SmolLM2-135M-Instruct.'''
    words = {'text': "Anna's dog is called Milo. Ben's cat is called Luna. Ben's cat is called"}
    if real:
        from benchmarks.real.models import smollm2
        reader = smollm2()
        return {'model': reader.network, 'tokenizer': reader.tokenizer, **words}
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=99, pad_token_id=0)
    return {'model': LlamaForCausalLM(config).eval(), 'tokenizer': _tokenizer(words['text']), **words}


def encoder_decoder(steps=900, real=True):
    '''A T5 that says letters in reverse.'''
    from transformers import T5Config, T5ForConditionalGeneration
    tokenizer = _tokenizer('a b c d e f g h i j k l')
    letters = torch.tensor(tokenizer('a b c d e f g h i j k l')['input_ids'])
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(
        d_model=64, num_layers=2, num_heads=4, d_ff=128, d_kv=16, vocab_size=len(tokenizer), decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1, dropout_rate=0.))

    def loss(model, step):
        ids = letters[torch.randint(len(letters), (64, 6))]
        return model(input_ids=ids, labels=ids.flip(1)).loss
    return {'model': fitted(model, loss, steps, 4e-3), 'tokenizer': tokenizer, 'text': 'd a f b k c'}


SIDES = ('left', 'right')


def clip(steps=2500, real=True):
    '''A CLIP that knows four shapes and two sides.'''
    from transformers import CLIPConfig, CLIPModel
    words = 'a picture of a ring square triangle cross on the left right'
    tokenizer = _tokenizer(words)
    captions = [f'a picture of a {shape} on the {side}' for shape in SHAPES for side in SIDES]
    ids = tokenizer(captions, return_tensors='pt')['input_ids']
    ids = torch.cat([ids, torch.ones_like(ids[:, :1])], 1)  # CLIP reads a text at its end token
    parts = {'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 128}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(
        text_config={**parts, 'vocab_size': len(tokenizer), 'eos_token_id': 1, 'bos_token_id': 0, 'pad_token_id': 0,
                     'max_position_embeddings': 16},
        vision_config={**parts, 'image_size': 32, 'patch_size': 4}, projection_dim=32))

    def kinds(samples):
        middle = (samples.masks.any(1).float() * torch.arange(32)).sum(1) / samples.masks.any(1).sum(1)
        return samples.labels * 2 + (middle > 15.5).long()

    def loss(model, step):
        samples = scenes(64, step)
        kind = kinds(samples)
        output = model(input_ids=ids, pixel_values=samples.images)
        return cross_entropy(output.logits_per_image, kind)
    model = fitted(model, loss, steps)
    samples = scenes(20, 10 ** 9)
    chosen = int((kinds(samples) == 2 * SHAPES.index('cross') + 1).nonzero()[0])
    return {'model': model, 'tokenizer': tokenizer, 'inputs': {
        'pixel_values': samples.images[chosen:chosen + 1], 'input_ids': ids[7:]}}


def detector(steps=2500, real=True):
    '''A YOLOS that says where the shape is.'''
    from transformers import YolosConfig, YolosForObjectDetection
    torch.manual_seed(0)
    model = YolosForObjectDetection(YolosConfig(
        **SMALL, image_size=[32, 32], patch_size=4, num_detection_tokens=1, num_labels=len(SHAPES),
        initializer_range=.1))

    def boxes(masks):
        def ends(inside):
            places = torch.arange(32.)
            low = torch.where(inside, places, torch.inf).amin(1)
            return low / 32., (torch.where(inside, places, -torch.inf).amax(1) + 1.) / 32.
        (left, right), (upper, lower) = ends(masks.any(1)), ends(masks.any(2))
        return torch.stack([left + right, upper + lower, 2. * (right - left), 2. * (lower - upper)], 1) / 2.

    def loss(model, step):
        samples = scenes(64, step)
        output = model(samples.images)
        return 5. * l1_loss(output.pred_boxes[:, 0], boxes(samples.masks)) + cross_entropy(
            output.logits[:, 0], samples.labels)
    return {'model': fitted(model, loss, steps), 'images': scenes(8, 10 ** 9).images[5:6]}


class Table(nn.Module):
    '''A transformer over the columns of a table: each category and each number is a token.'''
    def __init__(self, categories, numbers, dim=32):
        super().__init__()
        self.categories = nn.Embedding(categories, dim)
        self.weight, self.bias = (nn.Parameter(torch.randn(numbers, dim) * .3) for _ in range(2))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, dropout=0., batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(dim, 1)

    def forward(self, sex, numbers):
        tokens = torch.cat([self.categories(sex)[:, None], numbers[..., None] * self.weight + self.bias], 1)
        return self.head(self.body(tokens).mean(1))[:, 0]


def table(steps=400, real=True):
    '''How a disease goes on, by ten measurements: the diabetes data of scikit-learn.'''
    from sklearn.datasets import load_diabetes
    data = load_diabetes(scaled=False)
    columns = [name for name in data.feature_names if name != 'sex']
    numbers = torch.tensor(data.data, dtype=torch.float32)
    sex = numbers[:, 1].long() - 1
    numbers = numbers[:, [0, *range(2, 10)]]
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    goal = torch.tensor(data.target, dtype=torch.float32)
    goal = (goal - goal.mean()) / goal.std()
    torch.manual_seed(0)

    def loss(model, step):
        batch = torch.randint(400, (64,))
        return mse_loss(model(sex[batch], numbers[batch]), goal[batch])
    return {'model': fitted(Table(2, 9), loss, steps), 'sex': sex[410:411], 'numbers': numbers[410:411],
            'columns': columns}


CALLS = ('rises', 'falls', 'two beeps', 'stays')


def calls(count, seed):
    '''Spectrograms of four calls in noise, of shape [count, 64 times, 32 frequencies], and which call each is.'''
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    start, pitch = torch.randint(4, 40, (2, count), generator=generator)
    pitch = 8 + pitch % 14
    sound = .25 * torch.randn(count, 64, 32, generator=generator)
    time, steps = torch.arange(64), torch.arange(32)
    for index, (label, begin, tone) in enumerate(zip(labels.tolist(), start.tolist(), pitch.tolist(), strict=True)):
        since = time - begin
        height = tone + {0: since // 2, 1: -(since // 2), 2: 0 * since, 3: 0 * since}[label]
        sounds = (since >= 0) & (since < 16) & ~((label == 2) & (since >= 5) & (since < 11))
        sound[index] += sounds[:, None] * torch.exp(-(steps - height[:, None]).double() ** 2 / 2.).float()
    return sound, labels


def audio(steps=1000, real=True):
    '''An audio spectrogram transformer that tells four calls apart.'''
    from transformers import ASTConfig, ASTForAudioClassification
    torch.manual_seed(0)
    model = ASTForAudioClassification(ASTConfig(
        **SMALL, num_mel_bins=32, max_length=64, patch_size=4, frequency_stride=4, time_stride=4, num_labels=4,
        id2label=dict(enumerate(CALLS))))

    def loss(model, step):
        sound, labels = calls(64, step)
        return cross_entropy(model(sound).logits, labels)
    sound, labels = calls(20, 10 ** 6)
    chosen = int((labels == 0).nonzero()[0])
    return {'model': fitted(model, loss, steps), 'spectrogram': sound[chosen:chosen + 1]}


class GraphAttention(nn.Module):
    '''Graph attention: nodes look at their neighbours.'''
    def __init__(self, features, dim=32, classes=2):
        super().__init__()
        self.enter, self.head = nn.Linear(features, dim), nn.Linear(dim, classes)
        self.values = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.looks = nn.ModuleList(nn.Linear(2 * dim, 1) for _ in range(2))

    def forward(self, nodes, edges):
        x = self.enter(nodes)
        for value, look in zip(self.values, self.looks, strict=True):
            n = x.shape[1]
            pairs = torch.cat([x[:, :, None].expand(-1, -1, n, -1), x[:, None].expand(-1, n, -1, -1)], -1)
            scores = nn.functional.leaky_relu(look(pairs)[..., 0], .2).masked_fill(edges == 0, -torch.inf)
            x = x + torch.relu(torch.einsum('bij,bjd->bid', scores.softmax(-1), value(x)))
        return self.head(x[:, 0])


def graphs(count, seed):
    '''Graphs of 12 nodes with colours; the class is whether a neighbour of node 0 is red.'''
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(count, 12, 12, generator=generator) < .12).float()
    edges = ((edges + edges.mT + torch.eye(12)) > 0).float()
    colours = torch.nn.functional.one_hot((torch.rand(count, 12, generator=generator) < .25).long(), 2).float()
    colours[:, 0] = torch.tensor([1., 0.])
    return colours, edges, ((edges[:, 0] * colours[:, :, 1]).sum(1) > 0).long()


def graph(steps=800, real=True):
    '''Graph attention that says whether node 0 has a red neighbour.'''
    torch.manual_seed(0)

    def loss(model, step):
        nodes, edges, labels = graphs(128, step)
        return cross_entropy(model(nodes, edges), labels)
    nodes, edges, labels = graphs(40, 10 ** 6)
    enough = (edges.sum((1, 2)) > 40) & (labels == 1)
    chosen = int(enough.nonzero()[0])
    return {'model': fitted(GraphAttention(2), loss, steps, 5e-3), 'nodes': nodes[chosen:chosen + 1],
            'edges': edges[chosen:chosen + 1]}


def _tokenizer(text):
    '''A tokenizer of transformers with a token for each word.'''
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    pieces = re.findall(r'\w+|[^\w\s]', text)
    words = {word: index for index, word in enumerate(['[PAD]', '[END]', '[UNK]', *dict.fromkeys(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token='[UNK]', pad_token='[PAD]')


KINDS = {'vit': vit, 'vision': vision, 'text-classifier': text, 'language-model': language,
         'encoder-decoder': encoder_decoder, 'clip': clip, 'detector': detector, 'table': table, 'audio': audio,
         'graph': graph}


def main(kinds):
    '''Draw the pictures of some kinds, or of all.'''
    sys.path.insert(0, str(DOCS.parent))  # where the benchmarks are
    for kind in kinds or ['heatmaps', *KINDS]:
        print(kind, flush=True)
        if kind == 'heatmaps':
            heatmaps()
            continue
        names = KINDS[kind]()
        os.chdir(PAGES)
        exec(compile(code(kind), f'{kind}.md', 'exec'), names)


if __name__ == '__main__':
    main(sys.argv[1:])
