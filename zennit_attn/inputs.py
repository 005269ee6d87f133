'''Inputs: texts, chats and pictures as the arguments of a model.'''
from collections.abc import Mapping
from pathlib import Path

import torch

from .pictures import upright
from .sources import takes
from .trees import tensors_of


def encoded(inputs, tokenizer=None, processor=None, model=None):
    '''Return the arguments of a model for what a person would give it.

    Parameters
    ----------
    inputs: object
        A text, a list of texts, two texts that belong together as a tuple, a chat, which is a list of mappings with
        ``role`` and ``content``, a picture or a list of pictures of :py:mod:`PIL`. All else is returned as it is.
    tokenizer: optional
        That of a model of texts, as those of ``transformers``.
    processor: optional
        An image processor of ``transformers``, or a function that makes a tensor of shape [channels, height, width] of
        a picture, as transforms of torchvision and ``timm`` are.
    model: :py:class:`torch.nn.Module`, optional
        The model. What a tokenizer makes of a text beside the ids, but the model has no word for, is left out; texts
        that are padded at the left get positions that do not count it; and pictures its type and number of channels.

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
    if isinstance(first, Path) or (isinstance(first, str) and processor is not None and tokenizer is None):
        raise TypeError(f'{str(first)!r} is a path: pass the picture, PIL.Image.open(path)')
    if isinstance(inputs, tuple) and inputs and all(isinstance(each, str) for each in inputs):
        _need(tokenizer, 'a pair of texts', 'tokenizer')
        return _taken(tokenizer(*inputs, return_tensors='pt'), model)
    if isinstance(first, str):
        return _taken(_texts(inputs, tokenizer), model)
    if several and isinstance(first, Mapping) and 'role' in first:
        _need(tokenizer, 'a chat', 'tokenizer')
        return _taken(tokenizer.apply_chat_template(
            inputs, add_generation_prompt=True, return_tensors='pt', return_dict=True), model)
    if hasattr(first, 'getexif'):
        _need(processor, 'a picture', 'processor')
        return _pictures([upright(picture) for picture in (inputs if several else [inputs])], processor, model)
    if isinstance(inputs, Mapping) and not any(True for _ in tensors_of(dict(inputs))) and any(
            isinstance(value, list) or hasattr(value, '__array__') for value in inputs.values()):
        raise TypeError("the input is a mapping of lists or arrays, and not of tensors: pass return_tensors='pt' to "
                        'the tokenizer or processor')
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
    given = {name: value for name, value in given.items() if takes(model, name)}
    mask = given.get('attention_mask')
    if mask is not None and not mask[:, 0].all() and takes(model, 'position_ids'):
        given['position_ids'] = positions(mask)
    return given


def positions(mask):
    '''Return the positions of tokens among those that are no padding, as ``generate`` of ``transformers`` counts them.

    Parameters
    ----------
    mask: :py:class:`torch.Tensor`
        0 for padding, of shape [batch, tokens].

    Returns
    -------
    :py:class:`torch.Tensor`
        Of shape [batch, tokens].
    '''
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _pictures(pictures, processor, model):
    parameters = [] if model is None else [each for each in model.parameters() if each.is_floating_point()]
    first = next((module for module in ([] if model is None else model.modules())
                  if isinstance(module, torch.nn.Conv2d)), None)
    is_grey = first is not None and first.in_channels == 1
    pictures = [picture.convert('L' if is_grey else 'RGB') for picture in pictures]

    def typed(tensor):
        # Libraries make float32, whatever the model is.
        return tensor.to(parameters[0].dtype) if parameters and tensor.is_floating_point() else tensor
    if hasattr(getattr(processor, 'image_processor', processor), 'preprocess'):
        given = dict(processor(images=pictures, return_tensors='pt'))
        return {name: typed(value) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    return typed(torch.stack([torch.as_tensor(processor(picture)) for picture in pictures]))


def _need(given, what, name):
    if given is None:
        raise TypeError(f'the input is {what}, which the {name} makes an input of: pass {name}=, that of the model')
