'''Tasks of trained models whose evidence is known: inputs, what is explained, where its evidence stands.'''
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch


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
        The name of the task, and of its model in :py:data:`~benchmarks.real.models.MODELS`.
    kind: str
        ``'llm'``, ``'encoder'`` or ``'image'``.
    draw: callable
        Takes a :py:class:`~benchmarks.real.models.Reader` and a :py:class:`random.Random`, and returns a
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
    steps: int = 8

    def samples(self, reader, count, seed=0, patience=40):
        '''Samples that the model answers correctly, and the share of those drawn that it did.

        Parameters
        ----------
        reader: :py:class:`~benchmarks.real.models.Reader`
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


def question(reader, text, answer, bridges=(), start=0):
    '''A sample whose answer is the next word of a text in which it stands, or None if the model says another.

    Parameters
    ----------
    reader: :py:class:`~benchmarks.real.models.Reader`
    text: str
        The prompt.
    answer: str
        The next word, with its blank.
    bridges: sequence of str, optional
        Words beside the answer that are evidence where they first stand.
    start: int, optional
        The character from which on the text is template, which the reference keeps; 0 keeps none.
    '''
    encoded = reader.tokenizer(text, return_tensors='pt', return_offsets_mapping=True)
    ids = encoded.input_ids
    first = reader.tokenizer(answer, add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        if reader.scores(ids, {})[0].argmax() != first:
            return None
    mask = ids == first
    spans = encoded.offset_mapping[0].tolist()
    for bridge in bridges:
        place = text.index(bridge)
        mask[0] |= torch.tensor([begin < place + len(bridge) and end > place for begin, end in spans])
    blank = reader.tokenizer(' ', add_special_tokens=False).input_ids[0]
    reference = torch.full_like(ids, blank)
    reference[:, 0] = ids[:, 0]
    if start:
        template = torch.tensor([begin >= start for begin, _ in spans])
        reference[0, template] = ids[0, template]
    return Sample(ids, first, mask, reference)


def facts(reader, random):
    '''Five people have dogs; what is the name of one of them?'''
    people, pets, asked = random.sample(PEOPLE, 5), random.sample(PETS, 5), random.randrange(5)
    told = ''.join(f"{person}'s dog is called {pet}. " for person, pet in zip(people, pets, strict=True))
    ask = (f"Question: what is the name of {people[asked]}'s dog? "
           f"Answer: {people[asked]}'s dog is called")
    return question(reader, told + ask, f' {pets[asked]}')


TASKS = [
    Task('facts', 'smollm2', 'llm', facts,
         'the answer in the context; reference: blanks after the first token'),
]
NAMES = {task.name: task for task in TASKS}
