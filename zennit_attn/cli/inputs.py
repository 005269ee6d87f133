'''Inputs: random ones of a shape, tensors and arrays from files, images and texts.'''
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..heatmap.tokens import token_texts
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
    return normalized(image(path, loaded, options), loaded, options)[None]


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


def image(path, loaded, options):
    '''Return an image between 0 and 1, of shape (channels, height, width), in the size of the model.'''
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'there is no image {path}')
    try:
        with Image.open(path) as picture:
            picture = picture.convert('L' if options.grey or _channels(loaded.model) == 1 else 'RGB')
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f'{path} is no image that can be read') from error
    size = options.size or loaded.size
    if size is not None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC)
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
    if not text:
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
    return torch.tensor([ids]), token_texts(tokenizer, ids)


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
    own = model.get_input_embeddings() if hasattr(model, 'get_input_embeddings') else None
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
