'''Tasks of trained models whose evidence is known: inputs, what is explained, where its evidence stands.'''
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from einops import reduce, repeat
from torch.nn.functional import interpolate

from .reader import vector


@dataclass
class Sample:
    '''An input that the model answers correctly.

    Attributes
    ----------
    input: :py:class:`torch.Tensor`
        What the model takes, of shape ``(1, ...)``.
    target: int
        The class whose score is explained.
    mask: :py:class:`torch.Tensor`
        True on the evidence, of shape ``(1, *units)``.
    reference: :py:class:`torch.Tensor`
        The natural input that says nothing, of the shape of `input`; what is no content, e.g. a template, is kept.
    extra: dict
        Further arguments of the model.
    valence: :py:class:`torch.Tensor`, optional
        What people say of each unit, of the shape of `mask`; 0 where they say nothing.
    '''
    input: torch.Tensor
    target: int
    mask: torch.Tensor
    reference: torch.Tensor
    extra: dict = field(default_factory=dict)
    valence: torch.Tensor | None = None


@dataclass
class Task:
    '''What a model is asked.

    Attributes
    ----------
    name, model: str
        The name of the task, and of its model, as :py:mod:`~benchmarks.real.fetch` has it.
    kind: str
        ``'llm'``, ``'encoder'`` or ``'image'``.
    draw: callable
        Takes a :py:class:`~benchmarks.real.reader.Reader` and a :py:class:`random.Random`, and returns a
        :py:class:`Sample`, or None where the model is wrong.
    evidence: str
        What the evidence is, and what the reference, for the table.
    steps: int
        Steps of the curves of insertion and deletion.
    '''
    name: str
    model: str
    kind: str
    draw: Callable
    evidence: str
    steps: int = 4

    def samples(self, reader, count, seed=0, patience=40):
        '''Samples that the model answers correctly, and the share of those drawn that it did.

        Parameters
        ----------
        reader: :py:class:`~benchmarks.real.reader.Reader`
        count: int
        seed: int, optional
        patience: int, optional
            How many may be drawn for each that is asked for.
        '''
        random, found, drawn = Random(seed), [], 0
        while len(found) < count and drawn < count * patience:
            sample = self.draw(reader, random)
            drawn += 1
            found += [] if sample is None else [sample]
        if not found:
            raise ValueError(f'{self.model} answers none of {drawn} samples of {self.name} correctly')
        return found, len(found) / drawn


# ---- facts in a context ----------------------------------------------------------------------------------------------

PEOPLE = 'Tom Anna Peter Lucy Mark Jane Paul Emma David Sarah'.split()
PETS = 'Rex Max Bella Luna Rocky Daisy Buddy Molly Jack Oscar'.split()
CITIES = 'Paris London Rome Berlin Madrid Vienna'.split()
WORK = 'doctor teacher baker pilot lawyer farmer'.split()
WORDS = 'apple river stone cloud green table music seven paper light horse water glass metal night bread'.split()
#: What stands around what a user says, and before what the model answers.
OPEN, CLOSE = '<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'


def next_word(reader, text, answer, bridges=()):
    '''A sample whose answer is the next word of a text in which it stands.

    Parameters
    ----------
    reader: :py:class:`~benchmarks.real.reader.Reader`
    text: str
        The prompt. The reference keeps its first token and its template.
    answer: str
        The next word, with its blank.
    bridges: sequence of str, optional
        Words beside the answer that are evidence, where they first stand.

    Returns
    -------
    Sample or None
        None if the model does not give at least half of the probability to the answer: less may be luck.
    '''
    encoded = reader.tokenizer(text, return_tensors='pt', return_offsets_mapping=True)
    ids, spans = encoded.input_ids, encoded.offset_mapping[0].tolist()
    first, blank = (reader.tokenizer(word, add_special_tokens=False).input_ids[0] for word in (answer, ' '))
    with torch.no_grad():
        if reader.scores(ids, {})[0].softmax(dim=1)[0, first] < .5:
            return None
    mask, kept = ids == first, torch.arange(ids.shape[1])[None] == 0
    for words, tokens in ((bridges, mask), ((OPEN, CLOSE), kept)):
        for word in words:
            if word in text:
                tokens |= covered(spans, text.index(word), text.index(word) + len(word))
    return Sample(ids, first, mask, torch.where(kept, ids, blank))


def covered(spans, begin, end):
    '''Which tokens lie on some characters, of shape ``(1, tokens)``.'''
    return torch.tensor([[start < end and stop > begin for start, stop in spans]])


def chat(told, ask, begun):
    '''A prompt: facts and a question, and how the answer begins.'''
    return f'{OPEN}{told}{ask}{CLOSE}{begun}'


def facts(reader, random):
    '''Three people have dogs; what is the name of one of them?'''
    people, pets, asked = random.sample(PEOPLE, 3), random.sample(PETS, 3), random.randrange(3)
    told = ''.join(f"{person}'s dog is called {pet}. " for person, pet in zip(people, pets, strict=True))
    name = people[asked]
    return next_word(reader, chat(told, f"What is the name of {name}'s dog?", f"{name}'s dog is called"),
                     f' {pets[asked]}')


def distractors(reader, random):
    '''Three facts about a person, of which one is asked for.'''
    name, pet, city, work = (random.choice(words) for words in (PEOPLE, PETS, CITIES, WORK))
    told = [f"{name}'s dog is called {pet}. ", f'{name} lives in {city}. ', f'{name} works as a {work}. ']
    random.shuffle(told)
    ask, begun, answer = random.choice([
        (f"What is the name of {name}'s dog?", f"{name}'s dog is called", pet),
        (f'Where does {name} live?', f'{name} lives in', city),
        (f'What does {name} work as?', f'{name} works as a', work),
    ])
    return next_word(reader, chat(''.join(told), ask, begun), f' {answer}')


def two_hops(reader, random):
    '''Whose dog is asked for stands in another fact: the friend of a person.'''
    (name, *people), pets = random.sample(PEOPLE, 3), random.sample(PETS, 2)
    told = ''.join(f"{person}'s dog is called {pet}. " for person, pet in zip(people, pets, strict=True))
    asked = random.randrange(2)
    friend = f"{name}'s friend is {people[asked]}."
    return next_word(reader, chat(f'{told}{friend} ', f"What is the name of {name}'s friend's dog?",
                                  f"The dog of {name}'s friend is called"), f' {pets[asked]}', bridges=[friend])


def induction(reader, random):
    '''Words come again in the same order.'''
    words, come = random.sample(WORDS, 8), random.randrange(2, 7)
    return next_word(reader, ' '.join([*words, *words, *words[:come]]), f' {words[come]}')


# ---- the sentence that answers ---------------------------------------------------------------------------------------

ANSWERS = [
    ('What is the capital of Norway?', 'Oslo is the capital of Norway.'),
    ('How do bees make honey?', 'Bees turn nectar of flowers into honey in their hive.'),
    ('Who painted the Mona Lisa?', 'Leonardo da Vinci painted the Mona Lisa around 1503.'),
    ('How far is the moon from the earth?', 'The moon is about 384000 kilometres away from the earth.'),
    ('What causes tides in the ocean?', 'Ocean tides are caused by the gravity of the moon.'),
    ('When did the second world war end?', 'The second world war ended in 1945.'),
    ('How is bread baked?', 'Bread is baked in a hot oven from dough of flour and yeast.'),
    ('Which planet has the largest rings?', 'Saturn is the planet with the largest rings.'),
    ('Why do leaves turn red in autumn?', 'Leaves turn red in autumn when their chlorophyll breaks down.'),
    ('What do pandas eat?', 'Pandas eat almost nothing but bamboo.'),
    ('How fast can a cheetah run?', 'A cheetah can run more than 100 kilometres an hour.'),
    ('Who invented the telephone?', 'Alexander Graham Bell was given the patent for the telephone.'),
]


def passage(random):
    '''A question, three sentences, and the characters of the one that answers it.'''
    (ask, answer), *others = random.sample(ANSWERS, 3)
    sentences = [answer, *(sentence for _, sentence in others)]
    random.shuffle(sentences)
    text = ' '.join(sentences)
    return ask, text, (text.index(answer), text.index(answer) + len(answer))


def masked(reader, ids, kept):
    '''The reference of an encoder: every token is [MASK] but those that are kept.'''
    return torch.where(kept, ids, reader.tokenizer.mask_token_id)


def rerank(reader, random):
    '''Does a passage answer a question? One of its three sentences does.'''
    ask, text, (begin, end) = passage(random)
    encoded = reader.tokenizer(ask, text, return_tensors='pt', return_offsets_mapping=True)
    ids, types = encoded.input_ids, encoded.token_type_ids
    with torch.no_grad():
        if reader.scores(ids, {'token_type_ids': types})[0].item() < 0.:
            return None
    special = torch.tensor([[start == stop for start, stop in encoded.offset_mapping[0].tolist()]])
    mask = covered(encoded.offset_mapping[0].tolist(), begin, end) & (types == 1) & ~special
    asked = (types == 0) & ~special
    return Sample(ids, 0, mask | asked, masked(reader, ids, special), {'token_type_ids': types})


def similar(reader, random):
    '''Why is a passage similar to a question? One of its three sentences answers it.'''
    ask, text, (begin, end) = passage(random)
    other = vector(reader, ask)
    encoded = reader.tokenizer(text, return_tensors='pt', return_offsets_mapping=True)
    spans = encoded.offset_mapping[0].tolist()
    special = torch.tensor([[start == stop for start, stop in spans]])
    ids = encoded.input_ids
    return Sample(ids, 0, covered(spans, begin, end) & ~special, masked(reader, ids, special), {'other': other})


# ---- the groups that react -------------------------------------------------------------------------------------------

#: Reactions with what may stand in place of X and Y; the groups that decide the class are in braces.
REACTIONS = [
    '{Br}c1ccc(X)cc1.{OB(O)}c1ccc(Y)cc1>>Xc1ccc(-c2ccc(Y)cc2)cc1',
    '{Cl}c1ncc(X)cc1.{OB(O)}c1ccc(Y)cc1>>Xc1cnc(-c2ccc(Y)cc2)cc1',
    'O={C(O)}c1ccc(X)cc1.{N}Cc1ccc(Y)cc1>>O=C(NCc1ccc(Y)cc1)c1ccc(X)cc1',
    'O={C(Cl)}c1ccc(X)cc1.{N}CCc1ccc(Y)cc1>>O=C(NCCc1ccc(Y)cc1)c1ccc(X)cc1',
    'O={[N+](=O)[O-]}c1ccc(X)cc1CCY>>Nc1ccc(X)cc1CCY',
    'CO{C(=O)}c1ccc(X)cc1CCY.[OH-]>>O=C(O)c1ccc(X)cc1CCY',
]
GROUPS = ['F', 'C', 'OC', 'CC', 'C(C)C', 'C(F)(F)F']


def reaction(reader, random):
    '''The class of a reaction, which its bare form has too.'''
    form = random.choice(REACTIONS)
    first, second = random.sample(GROUPS, 2)
    ids, mask = marked(reader, form, first, second)
    bare, _ = marked(reader, form, 'C', 'C')
    with torch.no_grad():
        wanted, probability = (reader.scores(tokens, {})[0] for tokens in (bare, ids))
    target = wanted.argmax().item()
    if probability.softmax(dim=1)[0, target] < .5:
        return None
    kept = (ids == ids[0, 0]) | (ids == ids[0, -1]) | (ids == reader.tokenizer.ids['>>'])
    return Sample(ids, target, mask, torch.where(kept, ids, reader.tokenizer.ids['[MASK]']))


def marked(reader, form, first, second):
    '''Tokens of a reaction, and which of them stand in braces.'''
    text, begun, places = '', None, []
    for letter in form:
        if letter == '{':
            begun = len(text)
        elif letter == '}':
            places.append((begun, len(text)))
        else:
            text += {'X': first, 'Y': second}.get(letter, letter)
    ids, spans = reader.tokenizer(text)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for begin, end in places:
        mask |= covered(spans, begin, end)
    return ids, mask


# ---- the words that people rate --------------------------------------------------------------------------------------

def sentiment(reader, random):
    '''Is a sentence about a film negative or positive? People have rated words by themselves.'''
    text, rating = random.choice(reader.tokenizer.sentences)
    target, words = int(rating > 0.), reader.tokenizer.valence
    encoded = reader.tokenizer(text, return_tensors='pt', return_offsets_mapping=True)
    ids, spans = encoded.input_ids, encoded.offset_mapping[0].tolist()
    rated = [(match.span(), words[match.group().lower()]) for match in re.finditer(r"[A-Za-z'-]+", text)
             if match.group().lower() in words]
    if ids.shape[1] > 40 or len(rated) < 2 or not any((valence > 0.) == target for _, valence in rated):
        return None
    with torch.no_grad():
        if reader.scores(ids, {})[0].softmax(dim=1)[0, target] < .5:
            return None
    valence = torch.zeros(ids.shape)
    for span, value in rated:
        valence[covered(spans, *span)] = value if target else -value
    special = torch.tensor([[start == stop for start, stop in spans]])
    return Sample(ids, target, valence > 0., masked(reader, ids, special), valence=valence)


# ---- images ----------------------------------------------------------------------------------------------------------

def squares(mask, size):
    '''Which squares of some pixels a side a mask covers by half at least, of shape ``(1, rows, columns)``.'''
    return reduce(mask.float(), '(i p) (j q) -> 1 i j', 'mean', p=size, q=size) >= .5


def reading(reader, random):
    '''A line of letters and digits; why is one of them read there?'''
    line = reader.tokenizer
    text = ' '.join(''.join(random.choices(string.ascii_lowercase + string.digits, k=random.randrange(3, 6)))
                    for _ in range(2))
    input = line.draw(text)
    with torch.no_grad():
        read, places = line.read(reader.network.network(input)[0])
    if read != text:
        return None
    index = random.choice([index for index, character in enumerate(text) if character != ' '])
    left, upper, right, lower = (round(end) for end in line.box(text, index))
    mask = torch.zeros(input.shape[2:])
    mask[upper:lower, left:right] = 1.
    mask = squares(mask, reader.network.size)
    if not mask.any():  # a comma or the like, as i and l may be
        return None
    return Sample(input, line.characters.index(text[index]), mask, torch.ones_like(input),
                  {'place': torch.tensor([places[index]])})


#: What photographs are normalized with: means and deviations of ImageNet.
MEAN, DEVIATION = torch.tensor([.485, .456, .406]), torch.tensor([.229, .224, .225])


def silhouette(reader, random):
    '''A horse on grass, gravel or bricks; why does the most important place of the image count?'''
    from skimage import data  # of the extra
    horse = 1. - torch.tensor(data.horse()).float()
    ground = torch.tensor(getattr(data, random.choice(['grass', 'gravel', 'brick']))()) / 255.
    top, left = (random.randrange(0, 512 - 224) for _ in range(2))
    image = repeat(ground[top:top + 224, left:left + 224], 'h w -> h w c', c=3)
    height = random.randrange(80, 160)
    horse = interpolate(horse[None, None], (height, round(height * horse.shape[1] / horse.shape[0])))[0, 0] > .5
    horse = horse.flip(1) if random.random() < .5 else horse
    top, left = random.randrange(0, 224 - height), random.randrange(0, 224 - horse.shape[1])
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[top:top + height, left:left + horse.shape[1]] = horse
    color = torch.tensor([random.random() * .5 for _ in range(3)])
    image = torch.where(mask[..., None], color, image)
    input = ((image - MEAN) / DEVIATION).permute(2, 0, 1)[None]
    with torch.no_grad():
        place = reader.network.network(input).flatten().argmax()
    if not mask.flatten()[place]:
        return None
    return Sample(input, 0, squares(mask, reader.network.size), torch.zeros_like(input), {'place': place[None]})


BLANKS = 'reference: blanks but for first token and template'
MASKS = 'reference: [MASK] but for special tokens'
TASKS = [
    Task('facts', 'smollm2', 'llm', facts, f'the answer in the context; {BLANKS}'),
    Task('distractors', 'smollm2', 'llm', distractors, f'the answer in the context; {BLANKS}'),
    Task('two-hops', 'smollm2', 'llm', two_hops, f'the answer in the context, and the fact that leads to it; {BLANKS}'),
    Task('induction', 'smollm2', 'llm', induction, f'where the answer stood before; {BLANKS}'),
    Task('rerank', 'reranker', 'encoder', rerank, f'the question, and the sentence that answers it; {MASKS}'),
    Task('similar-bge', 'bge', 'encoder', similar, f'the sentence that answers the question; {MASKS}'),
    Task('similar-minilm', 'minilm', 'encoder', similar, f'the sentence that answers the question; {MASKS}'),
    Task('reaction', 'rxnfp', 'encoder', reaction, f'the groups that react; {MASKS} and the arrow'),
    Task('sentiment', 'sentiment', 'encoder', sentiment, f'the words that people rate as the class; {MASKS}'),
    Task('reading', 'reading', 'image', reading, 'the character; reference: white'),
    Task('silhouette', 'saliency', 'image', silhouette, 'the horse; reference: the mean colour of photographs'),
]
NAMES = {task.name: task for task in TASKS}
