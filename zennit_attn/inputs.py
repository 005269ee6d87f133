'''Inputs: texts, chats and pictures as the arguments of a model.'''
from collections.abc import Mapping

import torch

from .pictures import upright
from .sources import takes


def encoded(inputs, tokenizer=None, processor=None, model=None):
    '''Return the arguments of a model for what a person would give it.

    Parameters
    ----------
    inputs: object
        A text, a list of texts, a chat, which is a list of mappings with ``role`` and ``content``, a picture or a list
        of pictures of :py:mod:`PIL`. All else is returned as it is.
    tokenizer: optional
        That of a model of texts, as those of ``transformers``.
    processor: optional
        An image processor of ``transformers``, or a function that makes a tensor of shape [channels, height, width] of
        a picture, as transforms of torchvision and ``timm`` are.
    model: :py:class:`torch.nn.Module`, optional
        The model. What a tokenizer makes of a text beside the ids, but the model has no word for, is left out.

    Returns
    -------
    :py:class:`torch.Tensor`, tuple or mapping

    Raises
    ------
    TypeError
        If a text comes without a tokenizer, or a picture without a processor, or the input is a list of something else
        or an array.
    ValueError
        If a text is empty.
    '''
    several = isinstance(inputs, list) and len(inputs) > 0
    first = inputs[0] if several else inputs
    if isinstance(first, str):
        return _taken(_texts(inputs, tokenizer), model)
    if several and isinstance(first, Mapping) and 'role' in first:
        _need(tokenizer, 'a chat', 'tokenizer')
        return _taken(tokenizer.apply_chat_template(
            inputs, add_generation_prompt=True, return_tensors='pt', return_dict=True), model)
    if hasattr(first, 'getexif'):
        _need(processor, 'a picture', 'processor')
        return _pictures([upright(picture) for picture in (inputs if several else [inputs])], processor)
    if hasattr(first, '__array__') and not isinstance(first, torch.Tensor):
        raise TypeError('the input is an array of NumPy: pass torch.as_tensor(array), in the type of the parameters')
    if isinstance(inputs, list):
        raise TypeError('the input is a list: pass a tensor, a tuple of positional arguments, or a mapping of keyword '
                        'arguments; a list of samples as a batch, e.g. by torch.stack')
    return inputs


def _texts(inputs, tokenizer):
    _need(tokenizer, 'a text', 'tokenizer')
    texts = [inputs] if isinstance(inputs, str) else inputs
    if not all(text.strip() for text in texts):
        raise ValueError('a text is empty: there is nothing to explain')
    return tokenizer(texts, return_tensors='pt', **({'padding': True} if len(texts) > 1 else {}))


def _taken(given, model):
    if model is None or not takes(model, 'input_ids'):
        return given
    return {name: value for name, value in given.items() if takes(model, name)}


def _pictures(pictures, processor):
    pictures = [picture.convert('RGB') if picture.mode not in ('L', 'RGB') else picture for picture in pictures]
    if hasattr(getattr(processor, 'image_processor', processor), 'preprocess'):
        return processor(images=pictures, return_tensors='pt')
    return torch.stack([torch.as_tensor(processor(picture)) for picture in pictures])


def _need(given, what, name):
    if given is None:
        raise TypeError(f'the input is {what}, which the {name} makes an input of: pass {name}=, that of the model')
