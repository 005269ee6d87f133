'''What is explained: tensors among the arguments of a model, and outputs of its modules.'''
import inspect
import re
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from difflib import get_close_matches

import torch

from .engine.uncompiled import uncompiled
from .errors import NoRelevance
from .plain import copied, restored
from .trees import items_of, tensors_of, with_items

#: Names of arguments that say where to look, or of what sort something is, and not what there is.
_SIDE = re.compile(r'mask|position|token_type|segment|labels?$|cache|lengths?$')


class Sources:
    '''What is explained, by names: arguments that are floating point, and outputs of modules.

    Parameters
    ----------
    arguments: dict, optional
        By name, the keys under which a tensor is found in the arguments.
    outputs: dict, optional
        By name, a module of the model and which of its calls, counted from 0, or None for all of them.
    alone: bool, optional
        Whether there is one source, of which the map is asked for without a name.
    taken: dict, optional
        By name, the keys of arguments of integers that are explained at the output of what takes them.
    turned: sequence of str, optional
        Those of which tokens stand before samples where they are taken.
    '''
    def __init__(self, arguments=None, outputs=None, alone=False, taken=None, turned=()):
        self.arguments = dict(arguments or {})
        self.outputs = dict(outputs or {})
        self.alone = alone
        self.taken = dict(taken or {})
        self.turned = frozenset(turned)

    @property
    def names(self):
        '''The names, in order.'''
        return [*self.arguments, *self.outputs]

    def given(self, input):
        '''Return the arguments that are explained, by name; under no name if the map has none.'''
        def at(tree, keys):
            for key in keys:
                tree = items_of(tree)[key]
            return tree.detach()
        input = as_given(input)
        found = {name: at(input, keys) for name, keys in {**self.arguments, **self.taken}.items()}
        return {'': next(iter(found.values()))} if self.alone and found else found

    def prepared(self, input):
        '''Return the arguments with new tensors for those that are explained, which require a gradient, and these.

        Lists and dicts inside without any of them stay the same objects, as a forward may write to a cache.
        '''
        chosen = {keys: name for name, keys in self.arguments.items()}
        leaves = {}

        def convert(tree, keys):
            if isinstance(tree, torch.Tensor):
                if keys in chosen:
                    leaves[chosen[keys]] = tree.detach().requires_grad_()
                    return leaves[chosen[keys]]
                return tree.detach() if tree.requires_grad and len(keys) < 2 else tree
            items = items_of(tree)
            if items is None:
                return tree
            return with_items(tree, items, {key: convert(item, (*keys, key)) for key, item in items.items()})
        prepared = convert(as_given(input), ())
        return prepared, {name: leaves[name] for name in self.arguments}


def resolve(model, input, wrt=None, outside=nullcontext):
    '''Find what is to be explained.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, without a context.
    input: :py:class:`torch.Tensor`, tuple or mapping
        Its input, or its positional or its keyword arguments.
    wrt: str, :py:class:`torch.nn.Module`, or list of these, optional
        Names of arguments (``pixel_values``, ``batch.x``, or a place such as ``0``), modules, or dotted names of
        modules, whose output is explained. An argument that holds integers is explained at the output of the embedding
        that takes it. Default is every argument that is floating point or goes through an embedding, but masks,
        positions, types of tokens and labels. Sources that were found before are returned.
    outside: callable, optional
        Returns a context manager, in which no context is open on the model.

    Returns
    -------
    :py:class:`Sources`

    Raises
    ------
    NoRelevance
        If there is nothing that can carry relevance.
    ValueError
        If there is no such argument or module.
    '''
    if isinstance(wrt, Sources):
        return wrt
    found = _named(model, input)
    entries = [wrt] if isinstance(wrt, (str, torch.nn.Module)) else wrt
    if entries is None:
        arguments, integers, outputs = _by_default(found)
    else:
        arguments, integers, outputs = _by_name(model, found, list(entries))
    turned = ()
    if integers:
        with outside():
            embeddings, turned = _embeddings(model, input, integers, needed=wrt is not None)
            outputs = {**embeddings, **outputs}
    if not arguments and not outputs:
        types = ', '.join(f'{name or "the input"}: {tensor.dtype}' for name, (_, tensor) in found.items())
        raise NoRelevance(f'nothing in the input of {type(model).__name__} can be explained ({types or "no tensors"}); '
                          'name what is, by wrt: an argument, or a module from whose output to explain')
    alone = len(arguments) + len(outputs) == 1 and (isinstance(wrt, (str, torch.nn.Module)) or (
        wrt is None and isinstance(input, torch.Tensor)))
    return Sources(arguments, outputs, alone, {name: found[name][0] for name in integers if name in outputs}, turned)


def as_given(input):
    '''Return a mapping as a dict: what a tokenizer or a processor returns is none.'''
    return dict(input) if isinstance(input, Mapping) else input


def _named(model, input):
    '''The tensors of the arguments by name, with the keys under which they are found.'''
    found = {}

    def walk(tree, keys, name):
        if isinstance(tree, torch.Tensor):
            found[name] = keys, tree
        for key, item in (items_of(tree) or {}).items():
            walk(item, (*keys, key), f'{name}.{key}' if name else str(key))
    if isinstance(input, (torch.Tensor, Mapping)):
        only = _parameters(model)[:1] if isinstance(input, torch.Tensor) else []
        walk(as_given(input), (), only[0] if only else '')
    else:
        names = _parameters(model)
        for position, item in enumerate(input):
            walk(item, (position,), names[position] if position < len(names) else str(position))
    return found


def takes(model, name):
    '''Whether the forward of a model has a parameter of a name.'''
    return any(name == each.name for each in _signature(model))


def _parameters(model):
    '''The names of the positional parameters of a model's forward.'''
    return [each.name for each in _signature(model)
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)][1:]


def _signature(model):
    model = getattr(model, '_orig_mod', model)  # of torch.compile
    try:
        return list(inspect.signature(type(model).forward).parameters.values())
    except (TypeError, ValueError, AttributeError):  # of TorchScript
        return []


def _by_default(found):
    arguments = {name: keys for name, (keys, tensor) in found.items()
                 if tensor.is_floating_point() and not _SIDE.search(name)}
    integers = {name: tensor for name, (_, tensor) in found.items() if _is_integer(tensor) and not _SIDE.search(name)}
    return arguments, integers, {}


def _by_name(model, found, entries):
    arguments, integers, outputs = {}, {}, {}
    modules = dict(model.named_modules(remove_duplicate=False))
    places = {str(position): name for position, name in enumerate(found)}
    for entry in entries:
        if isinstance(entry, torch.nn.Module):
            name = next((name for name, module in modules.items() if module is entry), None)
            if name is None:
                raise ValueError(f'{type(entry).__name__} is not a module of {type(model).__name__}')
            outputs[name] = entry, None
            continue
        inside = [name for name in found if name == entry or name.startswith(f'{entry}.')] or (
            [places[entry]] if entry in places else [])
        for name in inside:
            keys, tensor = found[name]
            if tensor.is_floating_point():
                arguments[name] = keys
            elif _is_integer(tensor):
                integers[name] = tensor
            else:
                raise ValueError(f'{name} holds {tensor.dtype}, which cannot carry relevance')
        if not inside:
            if not modules.get(entry):
                raise ValueError(_unknown(model, entry, [*filter(None, found), *filter(None, modules)]))
            outputs[entry] = modules[entry], None
    return arguments, integers, outputs


def _unknown(model, entry, names):
    close = get_close_matches(str(entry), names, 3, .5)
    hint = f'did you mean {", ".join(close)}?' if close else f'there are {", ".join(names[:6])}'
    return f'{type(model).__name__} has no argument and no module named {entry!r}; {hint}'


def _is_integer(tensor):
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _embeddings(model, input, integers, needed):
    '''For arguments of integers, the calls of embeddings that take them: by one forward in which they are watched.'''
    calls, found, turned = {}, {}, []
    input = copied(as_given(input))  # which has to be as it was, a cache too
    integers = {name: tensor for name, (_, tensor) in _named(model, input).items() if name in integers}

    def watch(module, args, output):
        number = calls[module] = calls.get(module, -1) + 1
        taken = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if taken is None or not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return
        for name, tensor in integers.items():
            if name not in found and taken.numel() == tensor.numel() and (
                    _is_same(taken, tensor) or torch.equal(taken.flatten(), tensor.flatten())):
                found[name] = module, number
                if taken.ndim == tensor.ndim == 2 and taken.shape == tensor.shape[::-1] != tensor.shape:
                    turned.append(name)
                return
            if name not in found and taken.ndim == tensor.ndim == 2 and torch.equal(taken.mT, tensor):
                found[name] = module, number
                turned.append(name)
                return
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                stack.callback(module.register_forward_hook(watch).remove)
        stack.enter_context(restored(model))
        stack.enter_context(uncompiled())
        stack.enter_context(torch.no_grad())
        call(model, input)
    missing = [name for name in integers if name not in found]
    if missing and (needed or not found):
        raise NoRelevance(f'{missing[0] or "the input"} of {type(model).__name__} holds integers, and no '
                          'torch.nn.Embedding takes it; name the module from whose output to explain, by wrt')
    return {name: found[name] for name in integers if name in found}, turned


def _is_same(taken, tensor):
    return taken.data_ptr() == tensor.data_ptr() and (taken.shape, taken.stride()) == (tensor.shape, tensor.stride())


def call(model, input):
    '''Call a model with its input, or its positional or keyword arguments.

    Raises
    ------
    ValueError
        If the model has a decoder that was given nothing. Else what the model itself raises.
    '''
    kwargs = dict(input) if isinstance(input, Mapping) else {}
    args = () if isinstance(input, Mapping) else input if isinstance(input, tuple) else (input,)
    try:
        return model(*args, **kwargs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if _decoder_is_idle(model, args, kwargs):
            raise ValueError(_NO_DECODER.format(model=type(model).__name__)) from error
        raise
    except RuntimeError as error:
        types = _types_that_differ(model, args, kwargs)
        if types and 'dtype' in str(error):
            raise ValueError(f'the parameters of {type(model).__name__} are {types[0]}, and its input is {types[1]}: '
                             f'convert one of them, e.g. input.to({types[0]})') from error
        raise


def _types_that_differ(model, args, kwargs):
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    given = {tensor.dtype for tensor in tensors_of((args, kwargs)) if tensor.is_floating_point()}
    return (own.pop(), given.pop()) if len(own) == len(given) == 1 and own != given else None


#: What is said where the decoder of a model was given nothing.
_NO_DECODER = (
    '{model} has an encoder and a decoder, and the decoder was given nothing: pass decoder_input_ids too, e.g. '
    "{{**inputs, 'decoder_input_ids': torch.full((batch, 1), model.config.decoder_start_token_id)}} for the first "
    'token that it says, or explain an answer by zennit_attn.explain_generation(model, inputs)')


def _decoder_is_idle(model, args, kwargs):
    if not getattr(getattr(model, 'config', None), 'is_encoder_decoder', False):
        return False
    given = {*_parameters(model)[:len(args)], *kwargs}
    return bool({'decoder_input_ids', 'decoder_inputs_embeds'} & set(_parameters(model))) and not {
        'decoder_input_ids', 'decoder_inputs_embeds', 'labels', 'encoder_outputs'} & given


@contextmanager
def explained_outputs(model, engine, outputs):
    '''Explain a model from outputs of its modules, in place of its input.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, with or without an open context.
    engine: :py:class:`~zennit_attn.engine.Engine` or None
        That of the context.
    outputs: dict
        By name, a module and which of its calls, or None for all of them.

    Yields
    ------
    dict
        After the model was called: by name, the leaves that took the place of the outputs, whose gradients are their
        relevance.
    '''
    leaves = {name: [] for name in outputs}
    wanted, calls = {}, {}
    for name, (module, number) in outputs.items():
        if module is model:
            raise NoRelevance(f'{type(model).__name__} is the model itself; name the embedding inside')
        wanted.setdefault(module, {})[number] = name

    def take(module, args, output):
        number = calls[module] = calls.get(module, -1) + 1
        name = wanted[module].get(number, wanted[module].get(None))
        if name is None:
            return output
        if not isinstance(output, torch.Tensor):
            raise NoRelevance(f'{type(module).__name__} returns {type(output).__name__}, and a model can be explained '
                              'from a tensor; name the embedding inside')
        with torch._C.DisableTorchFunction():
            leaves[name].append(output.detach().requires_grad_())
            return leaves[name][-1] if engine is None or not engine.running else engine.forward.start(
                leaves[name][-1], module, args)

    with ExitStack() as stack:
        for module in wanted:
            stack.callback(module.register_forward_hook(take).remove)
        if engine is not None and outputs:
            stack.enter_context(engine.explaining_from(list(wanted)))
        try:
            yield leaves
        except NoRelevance as error:
            unused = next((module for module in wanted if module not in calls), None)
            if unused is None:
                raise
            raise NoRelevance(_not_called(model, unused)) from error
        unused = next((module for module in wanted if module not in calls), None)
        if unused is not None:
            raise NoRelevance(_not_called(model, unused))


def _not_called(model, module):
    weight = getattr(module, 'weight', None)
    tied = [name for name, other in model.named_modules()
            if other is not module and weight is not None and getattr(other, 'weight', None) is weight]
    hint = f'; {" and ".join(tied)} have its weight' if tied else ''
    return (f'{type(module).__name__}, from whose output the model was to be explained, was not called in its forward; '
            f'name a module that is{hint}')
