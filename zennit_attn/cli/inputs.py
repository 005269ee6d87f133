'''Inputs: random ones of a shape, tensors and arrays from files, images and texts.'''
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..generation import decoder_start
from ..heatmap.tokens import token_texts
from ..inputs import encoded
from ..pictures import normalization_of, to_picture, upright
from ..sources import takes
from ..trees import rebuilt, tensors_of
from .models import load_tokenizer
from .usage import UsageError, blaming, unknown_name

_SHAPE = re.compile(r'\d+([x,]\d+)*')
_TENSORS = ('.pt', '.pth', '.npy', '.npz')


def read(text, loaded, options):
    '''Return an input by a shape, such as 1x3x224x224, or from a file.'''
    if _SHAPE.fullmatch(text.lower()) and not Path(text).exists():
        return torch.randn(_shape(text), generator=_generator(options))
    path = Path(text)
    if not path.is_file():
        raise UsageError(f'{text!r} is neither a shape such as 1x3x224x224 nor a file')
    if path.suffix.lower() in _TENSORS:
        return _tensors(path)
    return pixels(path, loaded, options)[0]


def _shape(text):
    shape = [int(part) for part in re.split('[x,]', text.lower())]
    if 0 in shape:
        raise UsageError(f'a shape of zero elements, {text}, holds nothing to explain')
    return shape


def _generator(options):
    return torch.Generator().manual_seed(options.seed)


def _tensors(path):
    with blaming(f'{path} can not be read as a tensor, or a tuple or dict of tensors'):
        if path.suffix.lower() in ('.npy', '.npz'):
            array = np.load(path, allow_pickle=False)
            return torch.as_tensor(array) if isinstance(array, np.ndarray) else {
                name: torch.as_tensor(array[name]) for name in array.files}
        tree = torch.load(path, map_location='cpu', weights_only=True)
    if not tensors_of(tree):
        raise UsageError(f'{path} holds no tensor')
    return tuple(tree) if isinstance(tree, list) else tree


def pixels(path, loaded, options):
    '''Read an image.

    Where the model's library says how, it is resized, cropped and normalized by the library; else, and where options
    say how, it is cropped to the shape of the model's images.

    Returns
    -------
    input: :py:class:`torch.Tensor` or dict
        What the model takes, of a batch of 1.
    picture: :py:class:`torch.Tensor`
        What it sees of the image, between 0 and 1, of shape (channels, height, width).
    '''
    picture = _opened(path)
    if loaded.processor is not None and not (options.size or options.grey or options.normalize):
        with blaming(f'{path} can not be made an input of the model as its library does it'):
            given = dict(found) if isinstance(found := encoded(picture, processor=loaded.processor), Mapping) else found
        tensor = given['pixel_values'] if isinstance(given, dict) else given
        seen = to_picture(tensor[:1], *(normalization_of(loaded.processor) or (loaded.mean, loaded.std)))[0]
        return tensor if isinstance(given, dict) and len(given) == 1 else given, torch.tensor(seen).permute(2, 0, 1)
    seen = _resized(picture, loaded, options)
    return normalized(seen, loaded, options)[None], seen


def _opened(path):
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'there is no image {path}')
    try:
        with Image.open(path) as picture:
            return upright(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f'{path} is no image that can be read') from error


def _resized(picture, loaded, options):
    picture = picture.convert('L' if options.grey or _channels(loaded.model) == 1 else 'RGB')
    size = options.size or loaded.size
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.BICUBIC)
    array = np.asarray(picture, dtype=np.float64) / 255.
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _channels(model):
    convolutions = (module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    return next((module.in_channels for module in convolutions), 3)


def normalized(image, loaded, options):
    '''Return an image as the model takes it.'''
    mean, std = options.normalize or (loaded.mean, loaded.std)
    mean, std = (torch.tensor(part, dtype=image.dtype)[:, None, None] for part in (mean, std))
    if len(image) == 1:
        mean, std = mean.mean(dim=0, keepdim=True), std.mean(dim=0, keepdim=True)
    return (image - mean) / std


def tokens(text, loaded, options, embedding):
    '''Return the token ids of a text, and the tokens as they are shown.'''
    tokenizer = loaded.tokenizer if options.tokenizer is None else _tokenizer(options.tokenizer)
    if not text.strip():
        raise UsageError('the text is empty')
    if tokenizer is None:
        return _bytes(text, embedding)
    ids = tokenizer(text)['input_ids']
    if not ids:
        raise UsageError(f'the tokenizer makes no tokens of {text!r}')
    words = [index for index in ids if index not in set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}]
    if words and all(index == tokenizer.unk_token_id for index in words):
        raise UsageError(f'the tokenizer knows nothing of {text!r} (its vocabulary has {len(tokenizer)} entries): was '
                         'it saved with the model? Pass --tokenizer FOLDER')
    _fits(len(ids), loaded.model)
    return torch.tensor([ids]), token_texts(tokenizer, ids)


def with_decoder(ids, model):
    '''Return what a model takes for token ids: the start of what it says too, if it has a decoder beside an encoder.'''
    encodes = getattr(getattr(model, 'config', None), 'is_encoder_decoder', False)
    if not encodes or not takes(model, 'decoder_input_ids'):
        return ids
    if not (getattr(model, 'can_generate', None) and model.can_generate()):
        return ids
    return {'input_ids': ids, 'attention_mask': torch.ones_like(ids), 'decoder_input_ids': decoder_start(model, ids)}


def _fits(count, model):
    most = getattr(getattr(model, 'config', None), 'max_position_embeddings', None)
    if isinstance(most, int) and 0 < most < count:
        raise UsageError(f'the text has {count} tokens, and the model takes {most}: pass a shorter one')


def _tokenizer(name):
    return None if name == 'bytes' else load_tokenizer(name)


def _bytes(text, embedding):
    ids = list(text.encode())
    if max(ids) >= embedding.num_embeddings:
        raise UsageError(f'there is no tokenizer, and the embedding has {embedding.num_embeddings} rows, too few for '
                         'the bytes of the text: pass --tokenizer FOLDER')
    return torch.tensor([ids]), [chr(index) if index < 128 else f'\\x{index:02x}' for index in ids]


def random_tokens(text, embedding, options):
    '''Return random token ids of a shape.'''
    if not _SHAPE.fullmatch(text.lower()):
        raise UsageError(f'{text!r} is not a shape of token ids such as 1x16')
    return torch.randint(embedding.num_embeddings, _shape(text), generator=_generator(options))


def embedding_of(model, name=None):
    '''Return the token embedding of a model, and its name.'''
    embeddings = {key: module for key, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    if name is not None:
        modules = dict(model.named_modules())
        if name not in modules:
            raise unknown_name('module', name, embeddings or modules)
        return name, modules[name]
    try:
        own = model.get_input_embeddings() if hasattr(model, 'get_input_embeddings') else None
    except (AttributeError, NotImplementedError):
        own = None
    found = [(key, module) for key, module in embeddings.items() if own is None or module is own]
    if len(found) != 1:
        there = ', '.join(embeddings) or 'none'
        raise UsageError(f'{type(model).__name__} has {len(found)} embeddings ({there}); name the one of the tokens by '
                         '--embedding')
    return found[0]


def cast(tree, dtype):
    '''Return an input whose floating point tensors have a type.'''
    return rebuilt(tree, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def carries(tree):
    '''Whether an input has floating point tensors, which can carry relevance.'''
    return any(tensor.is_floating_point() for tensor in tensors_of(tree))


def shapes(tree):
    '''Write the shapes of an input's tensors.'''
    return ', '.join(f'{"x".join(map(str, tensor.shape))} {str(tensor.dtype).removeprefix("torch.")}'
                     for tensor in tensors_of(tree))
