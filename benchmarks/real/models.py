'''The trained models, each with a check that it behaves.'''
import re
from functools import cache, partial

import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification

from .convert import encoder, kept
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


MODELS = {
    'smollm2': smollm2,
    'reranker': reranker,
    'bge': bge,
    'minilm': minilm,
    'rxnfp': rxnfp,
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


CHECKS = {
    'smollm2': check_smollm2,
    'reranker': check_reranker,
    'bge': partial(check_similarity, 'bge'),
    'minilm': partial(check_similarity, 'minilm'),
    'rxnfp': check_rxnfp,
}
