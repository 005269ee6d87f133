'''The trained models, each with a check that it behaves.'''
import json
import re
from functools import cache, partial
from types import SimpleNamespace
from warnings import filterwarnings

import onnx2torch
import torch
from einops import rearrange
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import normalize
from torchvision.transforms.functional import pil_to_tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification

from .convert import Sentiment, encoder, kept
from .fetch import converted
from .reader import Reader, vector

# ---- the models ------------------------------------------------------------------------------------------------------

@cache
def smollm2():
    '''SmolLM2-135M-Instruct: 30 layers, grouped queries, rotary positions, gated feed-forward.'''
    folder = converted('smollm2')
    network = kept(AutoModelForCausalLM.from_config, folder)
    return Reader(network, network.model.embed_tokens, 'input_ids', lambda output: output.logits[:, -1],
                  {'logits_to_keep': 1, 'use_cache': False}, AutoTokenizer.from_pretrained(folder), read=-1)


@cache
def reranker():
    '''ms-marco-MiniLM-L-12: a cross-encoder, whose one score says whether a passage answers a query.'''
    folder = converted('reranker')
    network = kept(BertForSequenceClassification, folder)
    return Reader(network, network.bert.embeddings.word_embeddings, 'input_ids', lambda output: output.logits,
                  tokenizer=AutoTokenizer.from_pretrained(folder))


class Similarity(torch.nn.Module):
    '''Cosine of the vectors of two texts, of which the second is given.'''
    def __init__(self, encoder, pool):
        super().__init__()
        self.encoder = encoder
        self.pool = pool

    def forward(self, input_ids, other, **options):
        output = self.encoder(input_ids, **options)
        vector = normalize(self.pool(output.last_hidden_state), dim=-1)
        output['scores'] = (vector * other).sum(dim=-1, keepdim=True)
        output['vector'] = vector
        return output


def similarity(name, pool):
    '''A reader of an encoder: how similar a text is to a text that was read before.'''
    folder = converted(name)
    network = Similarity(kept(encoder, folder), pool).eval()
    return Reader(network, network.encoder.embeddings.word_embeddings, 'input_ids', lambda output: output.scores,
                  tokenizer=AutoTokenizer.from_pretrained(folder))


@cache
def bge():
    '''bge-small-en-v1.5: twelve layers; the vector is that of the first token.'''
    return similarity('bge', lambda hidden: hidden[:, 0])


@cache
def minilm():
    '''all-MiniLM-L6-v2: six layers; the vector is the mean over the tokens.'''
    return similarity('minilm', lambda hidden: hidden.mean(dim=1))


class Smiles:
    '''The tokens of reactions, as rxnfp cuts them.'''
    PATTERN = re.compile(r'\[[^\]]+]|Br?|Cl?|[NOSPFIbcnosp]|>>?|%\d\d|[().=#+\\/:~@?*$\d-]')

    def __init__(self, words):
        self.ids = {word: index for index, word in enumerate(words)}

    def __call__(self, text):
        '''Ids of shape ``(1, tokens)``, and the characters where each token begins and ends.'''
        found = list(self.PATTERN.finditer(text))
        ids = [self.ids['[CLS]'], *(self.ids[match.group()] for match in found), self.ids['[SEP]']]
        return torch.tensor([ids]), [(0, 0), *(match.span() for match in found), (0, 0)]


@cache
def rxnfp():
    '''A BERT of twelve layers of 256 features that tells 50 classes of chemical reactions.'''
    folder = converted('rxnfp')
    network = kept(BertForSequenceClassification, folder)
    return Reader(network, network.bert.embeddings.word_embeddings, 'input_ids', lambda output: output.logits,
                  tokenizer=Smiles((folder / 'vocab.txt').read_text().split('\n')))


class Rated:
    '''A tokenizer with sentences that were not trained on, and what people say of words.'''
    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.mask_token_id = self.tokenizer.mask_token_id
        self.sentences = json.loads((folder / 'held_out.json').read_text())
        self.valence = json.loads((folder / 'valence.json').read_text())

    def __call__(self, *texts, **options):
        return self.tokenizer(*texts, **options)


@cache
def sentiment():
    '''MiniLM, of which two layers and a head were trained on sentences about films: negative or positive.'''
    folder = converted('sentiment')
    network = Sentiment(kept(encoder, converted('minilm')))
    network.load_state_dict(torch.load(folder / 'parameters.pt', weights_only=True))
    return Reader(network.eval().requires_grad_(False), network.encoder.embeddings.word_embeddings, 'input_ids',
                  lambda output: output.scores, tokenizer=Rated(folder))


# ---- models of images ------------------------------------------------------------------------------------------------

# The slices of onnx2torch, which torch means to read otherwise from 2.9 on, and does not yet.
filterwarnings('ignore', 'Using a non-tuple sequence for multidimensional indexing')


class Patched(torch.nn.Module):
    '''A network of one image at a time, which is cut into squares first, so that these are what is explained.

    Parameters
    ----------
    network: :py:class:`torch.nn.Module`
        Takes an image of shape ``(1, 3, height, width)``.
    size: int
        Pixels of a side of a square.
    pick: callable
        Takes what the network returns and the argument `place`, and returns scores of shape ``(1, classes)``.
    '''
    def __init__(self, network, size, pick):
        super().__init__()
        self.network = network
        self.size = size
        self.pick = pick
        self.squares = torch.nn.Identity()

    def forward(self, image, place):
        size = self.size
        squares = self.squares(rearrange(image, 'b c (i p) (j q) -> b i j (p q c)', p=size, q=size))
        images = rearrange(squares, 'b i j (p q c) -> b 1 c (i p) (j q)', p=size, q=size)
        scores = [self.pick(self.network(each), at) for each, at in zip(images, place, strict=True)]
        return SimpleNamespace(scores=torch.cat(scores))


def of_onnx(name, size, pick):
    '''A reader of a network that is kept as an ONNX file.'''
    network = onnx2torch.convert(str(converted(name) / 'model.onnx'))
    model = Patched(network.eval().requires_grad_(False), size, pick).eval()
    return Reader(model, model.squares, 'image', lambda output: output.scores, attends=False)


class Line:
    '''Draws a line of text for PP-OCRv4, and reads one from its scores.'''
    SIZE, MARGIN = (320, 48), 6

    def __init__(self, characters):
        self.characters = ['', *characters, ' ']
        self.font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), 30)

    def draw(self, text):
        '''Black on white, of shape ``(1, 3, 48, 320)``, from -1 to 1.'''
        image = Image.new('RGB', self.SIZE, 'white')
        ImageDraw.Draw(image).text((self.MARGIN, self.MARGIN), text, 'black', self.font)
        return pil_to_tensor(image)[None] / 127.5 - 1.

    def box(self, text, index):
        '''Left, upper, right and lower end of one character of a line.'''
        start = self.MARGIN + self.font.getlength(text[:index])
        left, upper, right, lower = self.font.getbbox(text[index])
        return start + left, self.MARGIN + upper, start + right, self.MARGIN + lower

    def read(self, scores):
        '''The text of scores of shape ``(places, characters)``, and the place where each character is read first.'''
        found = scores.argmax(dim=1).tolist()
        places = [place for place, index in enumerate(found) if index and (place == 0 or found[place - 1] != index)]
        return ''.join(self.characters[found[place]] for place in places), places


@cache
def reading():
    '''PP-OCRv4, which reads lines: convolutions and two blocks of attention.'''
    reader = of_onnx('reading', 8, lambda scores, place: scores[:, place])
    reader.tokenizer = Line((converted('reading') / 'characters.txt').read_text().split('\n'))
    return reader


@cache
def saliency():
    '''DINOv2-small with a decoder: how much each place of an image counts. The score is that of one place.'''
    return of_onnx('saliency', 28, lambda map, place: map.flatten(2)[:, 0, place][:, None])


MODELS = {
    'smollm2': smollm2,
    'reranker': reranker,
    'bge': bge,
    'minilm': minilm,
    'rxnfp': rxnfp,
    'sentiment': sentiment,
    'reading': reading,
    'saliency': saliency,
}


# ---- how they behave -------------------------------------------------------------------------------------------------

def check_smollm2():
    '''It knows a capital.'''
    reader = smollm2()
    ids = reader.tokenizer('The capital of France is', return_tensors='pt').input_ids
    with torch.no_grad():
        word = reader.tokenizer.decode(reader.scores(ids, {})[0].argmax())
    return word == ' Paris', f'The capital of France is{word}'


def check_reranker():
    '''A passage that answers has a score above 5, another one below -5.'''
    reader, scores = reranker(), []
    for passage in ('Paris is the capital of France.', 'Bananas are yellow.'):
        encoded = reader.tokenizer('What is the capital of France?', passage, return_tensors='pt')
        with torch.no_grad():
            scores.append(reader.scores(encoded.input_ids, {'token_type_ids': encoded.token_type_ids})[0].item())
    return scores[0] > 5. and scores[1] < -5., '{:.1f} and {:.1f}'.format(*scores)


def check_similarity(name):
    '''A paraphrase is closer than another text, by a tenth at least.'''
    reader = MODELS[name]()
    texts = 'A man is eating food.', 'Someone eats a meal.', 'The stock market fell today.'
    first, same, other = (vector(reader, text) for text in texts)
    near, far = ((first * vector).sum().item() for vector in (same, other))
    return near > far + .1, f'{near:.2f} and {far:.2f}'


def check_rxnfp():
    '''Two couplings of Suzuki are of one class, and a coupling to an amide is of another.'''
    reader, classes = rxnfp(), []
    for text in ('Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1', 'Brc1ccncc1.OB(O)c1ccc(F)cc1>>Fc1ccc(-c2ccncc2)cc1',
                 'O=C(O)c1ccccc1.NCc1ccccc1>>O=C(NCc1ccccc1)c1ccccc1'):
        with torch.no_grad():
            classes.append(reader.scores(reader.tokenizer(text)[0], {})[0].argmax().item())
    return classes[0] == classes[1] != classes[2], f'classes {classes}'


def check_sentiment():
    '''Four of five held-out sentences have the sign that people give.'''
    reader, right = sentiment(), []
    for text, rating in reader.tokenizer.sentences[:200]:
        ids = reader.tokenizer(text, truncation=True, max_length=64, return_tensors='pt').input_ids
        with torch.no_grad():
            right.append(reader.scores(ids, {})[0].argmax().item() == int(rating > 0.))
    return sum(right) >= .8 * len(right), f'{sum(right)} of {len(right)} sentences'


def check_reading():
    '''It reads a line.'''
    reader, text = reading(), 'horse 42'
    with torch.no_grad():
        read, _ = reader.tokenizer.read(reader.network.network(reader.tokenizer.draw(text))[0])
    return read == text, f'{text!r} is read as {read!r}'


def check_saliency():
    '''A dark disk on white is what counts: all of it has more than half of the rest.'''
    rows, columns = torch.meshgrid(torch.arange(224), torch.arange(224), indexing='ij')
    disk = (rows - 120) ** 2 + (columns - 80) ** 2 < 50 ** 2
    with torch.no_grad():
        image = torch.where(disk, -1.5, 2.)[None, None].expand(1, 3, -1, -1)
        counts = saliency().network.network(image)[0, 0].sigmoid()
    return counts[disk].mean() > 2 * counts[~disk].mean(), f'{counts[disk].mean():.2f} and {counts[~disk].mean():.2f}'


CHECKS = {
    'smollm2': check_smollm2,
    'reranker': check_reranker,
    'bge': partial(check_similarity, 'bge'),
    'minilm': partial(check_similarity, 'minilm'),
    'rxnfp': check_rxnfp,
    'sentiment': check_sentiment,
    'reading': check_reading,
    'saliency': check_saliency,
}
