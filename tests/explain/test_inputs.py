'''Inputs as people have them: texts, chats and pictures.'''
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import assert_closed
from zennit_attn import explain
from zennit_attn.pictures import normalization_of, to_picture, upright

from .test_explain import Tokens, made

MEAN, STD = (.4, .5, .6), (.1, .2, .3)


class Letters:
    '''A tokenizer: a token for each of the letters a to j.'''
    def __call__(self, texts, return_tensors, padding=False):
        assert return_tensors == 'pt'
        rows = [['abcdefghij'.index(letter) for letter in text] for text in texts]
        longest = max(map(len, rows))
        assert padding or all(len(row) == longest for row in rows)
        return {'input_ids': torch.tensor([row + [10] * (longest - len(row)) for row in rows]),
                'attention_mask': torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])}

    def apply_chat_template(self, chat, add_generation_prompt, return_tensors, return_dict):
        assert add_generation_prompt
        assert return_dict
        return self([''.join(turn['content'] for turn in chat) + 'j'], return_tensors)


class Processor:
    '''An image processor: to a size, and normalized.'''
    image_mean, image_std = MEAN, STD

    def preprocess(self, images):
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        arrays = [np.asarray(image.convert('RGB').resize((4, 4))) / 255. for image in images]
        return torch.stack([(torch.tensor(array).permute(2, 0, 1) - mean) / std for array in arrays])

    def __call__(self, images, return_tensors):
        assert return_tensors == 'pt'
        return {'pixel_values': self.preprocess(images)}


class Pixels(nn.Sequential):
    '''A model of images that takes them by their name.'''
    def forward(self, pixel_values):
        return super().forward(pixel_values)


def picture(seed=0, shape=(4, 4, 3)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def sees():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pixels(nn.Flatten(), nn.Linear(48, 3)).double().eval()


def test_a_text_is_what_its_tokenizer_makes_of_it():
    model, tokenizer = made(Tokens), Letters()
    one = explain(model, 'bead', 1, tokenizer=tokenizer)
    assert torch.equal(one.relevance['input_ids'], explain(model, tokenizer(['bead'], 'pt'), 1).relevance['input_ids'])
    assert_closed(one.audit())
    several = explain(model, ['be', 'bead'], 1, tokenizer=tokenizer)
    assert torch.allclose(several.relevance['input_ids'][1:], one.relevance['input_ids'], atol=1e-12)
    alone = explain(model, 'be', 1, tokenizer=tokenizer).relevance['input_ids']
    assert torch.allclose(several.relevance['input_ids'][:1, :2], alone, atol=1e-12)


def test_what_a_model_has_no_word_for_is_left_out():
    class Typed(Letters):
        def __call__(self, *args, **options):
            found = super().__call__(*args, **options)
            return {**found, 'special_tokens_mask': found['attention_mask']}
    model = made(Tokens)
    one, other = (explain(model, 'bead', 1, tokenizer=tokenizer()) for tokenizer in (Typed, Letters))
    assert torch.equal(one.relevance['input_ids'], other.relevance['input_ids'])


def test_a_pair_of_texts_is_what_the_tokenizer_makes_of_both():
    class Pairs(Letters):
        def __call__(self, first, second, return_tensors):
            return super().__call__([first + second], return_tensors)
    pair = explain(made(Tokens), ('be', 'ad'), 1, tokenizer=Pairs())
    alone = explain(made(Tokens), 'bead', 1, tokenizer=Letters())
    assert torch.equal(pair.relevance['input_ids'], alone.relevance['input_ids'])
    with pytest.raises(TypeError, match='a pair of texts, which the tokenizer'):
        explain(made(Tokens), ('be', 'ad'))


def test_a_chat_goes_through_the_template():
    model, tokenizer = made(Tokens), Letters()
    chat = [{'role': 'user', 'content': 'be'}, {'role': 'assistant', 'content': 'ad'}]
    explanation = explain(model, chat, 1, tokenizer=tokenizer)
    assert torch.equal(explanation.relevance['input_ids'],
                       explain(model, 'beadj', 1, tokenizer=tokenizer).relevance['input_ids'])


def test_pictures_go_through_the_processor_and_are_shown_as_the_model_saw_them():
    model, pictures = sees(), [picture(0), picture(1)]
    explanation = explain(model, pictures, processor=Processor())
    assert explanation.relevance['pixel_values'].shape == (2, 3, 4, 4)
    assert_closed(explanation.audit())
    shown = explanation.show(sample=1).axes[0].images[0].get_array()
    assert np.allclose(shown, np.asarray(pictures[1]) / 255.)
    assert torch.equal(explain(model, pictures[1], processor=Processor()).relevance['pixel_values'],
                       explanation.relevance['pixel_values'][1:])


def test_a_function_that_makes_tensors_of_pictures():
    def transform(image):
        return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255.
    with_it = explain(sees().float(), [picture(0)], processor=transform)
    assert torch.equal(with_it.relevance, explain(sees().float(), transform(picture(0))[None]).relevance)


@pytest.mark.parametrize(('inputs', 'message'), [
    ('text', 'a text, which the tokenizer makes an input of: pass tokenizer='),
    ([{'role': 'user', 'content': 'a'}], 'a chat, which the tokenizer'),
    (picture(), 'a picture, which the processor makes an input of: pass processor='),
])
def test_what_makes_the_input_has_to_be_given(inputs, message):
    with pytest.raises(TypeError, match=message):
        explain(made(Tokens), inputs)


def test_what_a_tokenizer_returns_without_tensors_is_told_with_the_way():
    with pytest.raises(TypeError, match="pass return_tensors='pt' to the tokenizer"):
        explain(made(Tokens), {'input_ids': [[1, 2, 3]]})


def test_a_path_is_told_to_be_one():
    with pytest.raises(TypeError, match=r"'cat.jpg' is a path: pass the picture, PIL.Image.open\(path\)"):
        explain(sees(), 'cat.jpg', processor=Processor())


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'RGB'])
def test_pictures_of_all_kinds_have_the_channels_and_the_type_of_the_model(mode):
    def transform(image):
        return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255.
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(18, 3)).double().eval()
    explanation = explain(model, picture().convert(mode), processor=transform)
    assert explanation.relevance.dtype == torch.float64
    assert explanation.relevance.shape == (1, 3, 4, 4)
    grey = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 3)).double().eval()
    seen = explain(grey, picture().convert(mode), processor=lambda image: torch.tensor(np.asarray(image))[None] / 255.)
    assert seen.relevance.shape == (1, 1, 4, 4)


def test_texts_padded_at_the_left_are_those_alone():
    class Positions(Tokens):
        def __init__(self):
            super().__init__()
            self.places = nn.Embedding(9, 8)

        def forward(self, input_ids, attention_mask=None, position_ids=None):
            places = torch.arange(input_ids.shape[1]) if position_ids is None else position_ids
            padding = None if attention_mask is None else attention_mask == 0
            x = self.words(input_ids) + self.places(places)
            return {'logits': self.head(x + self.attention(x, x, x, key_padding_mask=padding)[0])}

    class Left(Letters):
        def __call__(self, *args, **options):
            found = super().__call__(*args, **options)
            lengths = found['attention_mask'].sum(1).tolist()
            return {name: torch.stack([row.roll(len(row) - length) for row, length in zip(rows, lengths, strict=True)])
                    for name, rows in found.items()}
    model = made(Positions)
    several, alone = (explain(model, texts, 1, tokenizer=Left()) for texts in (['be', 'bead'], 'be'))
    assert torch.allclose(several.output[:1], alone.output)
    assert torch.allclose(several.relevance['input_ids'][:1, 2:], alone.relevance['input_ids'], atol=1e-12)


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match='a text is empty'):
        explain(made(Tokens), ['be', ' '], tokenizer=Letters())


# ---- pictures --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('processor', 'expected'), [
    (Processor(), (MEAN, STD)), (SimpleNamespace(image_processor=Processor()), (MEAN, STD)),
    (SimpleNamespace(mean=[.5], std=[.25]), ((.5,), (.25,))),
    (SimpleNamespace(transforms=[object(), SimpleNamespace(mean=torch.tensor(MEAN), std=torch.tensor(STD))]),
     (MEAN, STD)),
    (SimpleNamespace(do_normalize=False, image_mean=MEAN, image_std=STD), ((0.,), (1.,))),
    (SimpleNamespace(transforms=[object()]), None), (None, None),
])
def test_what_images_are_normalized_by(processor, expected):
    found = normalization_of(processor)
    assert found is expected is None or [pytest.approx(part) for part in found] == list(expected)


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize('image', [
    PIXELS, torch.tensor(PIXELS).permute(2, 0, 1), torch.tensor(PIXELS).permute(2, 0, 1)[None] / 255.,
    Image.fromarray(PIXELS), torch.tensor(PIXELS).long().permute(2, 0, 1), PIXELS / 255.,
    PIXELS.astype(np.uint16) * 257,
])
def test_images_of_all_kinds_are_the_same_picture(image):
    seen, known = to_picture(image)
    assert known
    assert np.allclose(seen, PIXELS / 255., atol=1e-6)


def test_grey_images_and_those_that_were_normalized():
    grey = torch.rand(1, 3, 5)
    assert np.allclose(to_picture(grey)[0], grey.permute(1, 2, 0).expand(-1, -1, 3))
    assert np.allclose(to_picture(grey[0])[0], to_picture(grey)[0])
    given = torch.rand(3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    seen, known = to_picture((given - mean) / std, MEAN, STD)
    assert known
    assert np.allclose(seen, given.permute(1, 2, 0), atol=1e-6)
    seen, known = to_picture((given - mean) / std)
    assert not known
    assert (seen.min(), seen.max()) == (0., 1.)
    for shape in ((2, 4, 4), (2, 3, 4, 4), (4,), (3, 0, 4)):
        with pytest.raises(ValueError, match='an image has shape'):
            to_picture(torch.zeros(shape))


def test_pictures_are_turned_and_keep_sixteen_bits():
    turned = Image.fromarray(PIXELS[::-1, ::-1].copy())
    turned.getexif()[0x0112] = 3
    assert np.array_equal(np.asarray(upright(turned)), PIXELS)
    ramp = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    assert np.array_equal(np.asarray(upright(Image.fromarray(ramp))), (ramp / 257.).round())
    floating = upright(Image.fromarray(np.linspace(0., 1., 6, dtype=np.float32).reshape(2, 3)))
    assert np.asarray(floating).tolist() == [[0, 51, 102], [153, 204, 255]]
