'''Models by name: of torchvision, timm and transformers, or by a function of the user. Nothing is downloaded.'''
import importlib
import importlib.util
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..pictures import normalization_of
from .usage import UsageError, blaming, unknown_name

#: Keys under which checkpoints of training scripts hold the weights.
_NESTED = ('state_dict', 'model_state_dict', 'model', 'net', 'ema')


@dataclass
class Loaded:
    '''A model and what comes with it.

    Attributes
    ----------
    model: :py:class:`torch.nn.Module`
        The model, in eval mode.
    weights: str
        Where its weights are from.
    size: tuple[int, int] or None
        Height and width of images.
    mean, std: tuple of float
        What images are normalized by.
    labels: dict[int, str]
        Names of the classes.
    tokenizer: object or None
        What turns texts into token ids.
    processor: object or None
        What the model's library makes its input of images with: see :py:func:`~zennit_attn.inputs.encoded`.
    '''
    model: torch.nn.Module
    weights: str
    size: tuple = None
    mean: tuple = (0.,)
    std: tuple = (1.,)
    labels: dict = field(default_factory=dict)
    tokenizer: object = None
    processor: object = None


def load(spec, checkpoint=None, pretrained=False, settings=(), seed=0):
    '''Make a model.

    Parameters
    ----------
    spec: str
        ``demo:NAME``, ``torchvision:NAME``, ``timm:NAME``, ``transformers:FOLDER``, ``package.module:callable`` or
        ``file.py:callable``.
    checkpoint: path, optional
        File with a state dict.
    pretrained: bool
        Whether to take the weights that lie in the library's local cache.
    settings: iterable of pairs
        Keyword arguments of the library's or user's function.
    seed: int
        Seed of random weights.

    Returns
    -------
    :py:class:`Loaded`
    '''
    origin, colon, name = spec.rpartition(':')
    if not colon or not name or not origin:
        raise UsageError(f'{spec!r} names no model: write demo:NAME, torchvision:NAME, timm:NAME, transformers:FOLDER, '
                         'package.module:callable or path/to/file.py:callable')
    os.environ.setdefault('HF_HUB_OFFLINE', '1')  # whatever a library tries to fetch
    torch.manual_seed(seed)
    if spec.startswith('transformers:'):
        origin, name = 'transformers', spec.partition(':')[2]
    loaded = _LIBRARIES.get(origin, lambda *args: _own(origin, *args))(name, dict(settings), pretrained)
    if checkpoint is not None:
        load_checkpoint(loaded.model, checkpoint)
        loaded.weights = f'of {checkpoint}'
    loaded.model.eval()
    return loaded


def load_checkpoint(model, path):
    '''Load a state dict from a file.'''
    path = Path(path)
    if not path.is_file():
        raise UsageError(f'there is no checkpoint {path}')
    state = _state_dict(path)
    own = model.state_dict()
    missing, foreign = own.keys() - state.keys(), state.keys() - own.keys()
    wrong = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or foreign or wrong:
        parts = [(missing, 'misses'), (foreign, 'has, but the model has not,'), (wrong, 'has in another shape')]
        raise UsageError(f'checkpoint {path} does not fit {type(model).__name__}: it ' + '; it '.join(
            f'{verb} {_some(keys)}' for keys, verb in parts if keys))
    model.load_state_dict(state)


def _some(keys):
    keys = sorted(keys)
    return ', '.join(keys[:3]) + (f' and {len(keys) - 3} more' if len(keys) > 3 else '')


def _state_dict(path):
    try:
        if path.suffix == '.safetensors':
            state = _library('safetensors.torch').load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # what damaged files raise is no matter of types
        raise UsageError(f'{path} is not a file of tensors alone, as torch.save(model.state_dict(), path) writes it '
                         f'({type(error).__name__})') from error
    while isinstance(state, dict) and (key := next((key for key in _NESTED if isinstance(state.get(key), dict)), None)):
        state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(item, torch.Tensor) for item in state.values()):
        raise UsageError(f'{path} holds no state dict; write one with torch.save(model.state_dict(), path)')
    if all(key.startswith('module.') for key in state):  # saved from DataParallel
        state = {key.removeprefix('module.'): value for key, value in state.items()}
    return state


def _random(pretrained, weights):
    return weights if pretrained else 'RANDOM (no --checkpoint, no --pretrained): the explanation means nothing'


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f'{name} is not installed: {error}') from error


def _torchvision(name, settings, pretrained):
    models = _library('torchvision').models
    if name not in models.list_models():
        raise unknown_name('torchvision model', name, models.list_models())
    with blaming(f'torchvision model {name}'):
        model = models.get_model(name, weights=None, **settings)
    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    if pretrained:
        path = Path(torch.hub.get_dir(), 'checkpoints', Path(weights.url).name)
        if not path.is_file():
            raise UsageError(f'the pretrained weights of {name} are not in the local cache ({path}), and nothing is '
                             'downloaded: put them there, or use --checkpoint')
        load_checkpoint(model, path)
    vision = _vision(transforms)
    own = getattr(model, 'image_size', None)  # of a transformer, which settings may have changed
    fits = own is None or (own, own) == vision['size']
    vision['size'] = vision['size'] if fits else (own, own)
    return Loaded(model, _random(pretrained, f'{weights} from the local cache'), **vision,
                  labels=dict(enumerate(weights.meta.get('categories', ()))), processor=transforms if fits else None)


def _vision(transforms):
    size = getattr(transforms, 'crop_size', [224])
    return {'size': (size[0], size[-1]), 'mean': tuple(getattr(transforms, 'mean', (0.,))),
            'std': tuple(getattr(transforms, 'std', (1.,)))}


def _timm(name, settings, pretrained):
    timm = _library('timm')
    if not timm.is_model(name):
        raise unknown_name('timm model', name, timm.list_models())
    if pretrained:
        settings = {**settings, 'pretrained': True, 'pretrained_cfg_overlay': {'file': _cached_timm(timm, name)}}
    with blaming(f'timm model {name}'):
        model = timm.create_model(name, **settings)
    config = model.pretrained_cfg
    size = config.get('input_size', (3, 224, 224))[1:]
    size = getattr(getattr(model, 'patch_embed', None), 'img_size', None) or size
    data = {**timm.data.resolve_model_data_config(model), 'input_size': (3, *size)}
    return Loaded(model, _random(pretrained, f'timm {name} from the local cache'), size=tuple(size),
                  mean=tuple(config.get('mean', (0.,))), std=tuple(config.get('std', (1.,))),
                  processor=timm.data.create_transform(**data, is_training=False))


def _cached_timm(timm, name):
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    path = repository and _library('huggingface_hub').try_to_load_from_cache(repository, 'model.safetensors')
    if not isinstance(path, str):
        raise UsageError(f'the pretrained weights of {name} are not in the local cache, and nothing is downloaded: use '
                         '--checkpoint')
    return path


def _transformers(name, settings, pretrained):
    transformers = _library('transformers')
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not Path(name).exists() and name in transformers.CONFIG_MAPPING:
        with blaming(f'transformers configuration {name}'):
            config = transformers.AutoConfig.for_model(name, **settings)
            model = _auto_class(transformers, config).from_config(config)
        return Loaded(model, _random(False, ''), **_hugging_face(config, None))
    with blaming(f'transformers finds no model in {name!r}, and nothing is downloaded (give a folder of '
                 'save_pretrained, a name in the local cache, or a model type such as gpt2)'):
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=True, **settings)
        cls = getattr(transformers, (config.architectures or [''])[0], None) or _auto_class(transformers, config)
        model = cls.from_pretrained(name, config=config, local_files_only=True)
    loaded = Loaded(model, f'of {name}', **_hugging_face(config, _processor(transformers, name)))
    loaded.tokenizer = load_tokenizer(name, missing_ok=True)
    return loaded


def _auto_class(transformers, config):
    tasks = ['ForImageClassification', 'ForCausalLM', 'ForSequenceClassification', '']
    mappings = [getattr(transformers, f'AutoModel{task}') for task in tasks['vocab_size' in config.to_dict():]]
    cls = next((cls for cls in mappings if type(config) in cls._model_mapping), None)
    if cls is None:
        raise UsageError(f'transformers has no model class for a {type(config).__name__}')
    return cls


def _processor(transformers, name):
    try:
        return transformers.AutoImageProcessor.from_pretrained(name, local_files_only=True)
    except Exception:  # most models are none of images, and the library raises whatever it likes
        return None


def _hugging_face(config, processor):
    size = getattr(config, 'image_size', None)
    size = (size, size) if isinstance(size, int) else tuple(size) if size else None
    labels = {int(index): label for index, label in (config.id2label or {}).items()}
    if any(re.fullmatch(r'LABEL_\d+', str(label)) for label in labels.values()):
        labels = {}  # what the library fills in where nobody named the classes
    found = processor and normalization_of(processor)
    mean, std = found or ((.5,), (.5,)) if size else ((0.,), (1.,))
    return {'size': size, 'labels': labels, 'mean': mean, 'std': std, 'processor': processor}


def load_tokenizer(name, missing_ok=False):
    '''Load a tokenizer of transformers from a folder or the local cache.'''
    transformers = _library('transformers')
    try:
        return transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception as error:
        if missing_ok:
            return None
        raise UsageError(f'transformers finds no tokenizer in {name!r}, and nothing is downloaded') from error


def _demo(name, settings, pretrained):
    from ..demo import DEMOS
    if name not in DEMOS:
        raise unknown_name('model of the demo', name, DEMOS)
    if settings:
        raise UsageError('a model of the demo is as it was trained: it takes no --set')
    demo = DEMOS[name]
    black, white = demo.limits  # normalized so that these are black and white
    return Loaded(demo.load(), 'as the demo has trained them', size=tuple(demo.held_out(1).images.shape[-2:]),
                  mean=(-black / (white - black),), std=(1. / (white - black),), labels=dict(enumerate(demo.classes)))


def _own(origin, name, settings, pretrained):
    if pretrained:
        raise UsageError('--pretrained is for models of torchvision, timm and transformers; use --checkpoint')
    factory = _attribute(_module(origin), name, origin)
    if isinstance(factory, torch.nn.Module):
        return Loaded(factory, f'as {name} has them')
    if not callable(factory):
        raise UsageError(f'{name} of {origin} is a {type(factory).__name__}, neither a module nor a function that '
                         'returns one')
    with blaming(f'{name} of {origin} failed'), _importing(origin):
        torch.manual_seed(torch.initial_seed())  # the import may have drawn numbers
        model = factory(**settings)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f'{name} of {origin} returned {type(model).__name__}, not a torch.nn.Module')
    return Loaded(model, f'as {name} makes them')


def _module(origin):
    path = Path(origin)
    with _importing(origin):
        if path.suffix != '.py':
            with blaming(f'can not import {origin!r}'):
                return importlib.import_module(origin)
        if not path.is_file():
            raise UsageError(f'there is no file {origin}')
        with blaming(f'can not run {origin}'):
            spec = importlib.util.spec_from_file_location(f'zennit_attn_cli_{path.stem}', path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickles look their module up
            spec.loader.exec_module(module)
            return module


@contextmanager
def _importing(origin):
    '''Find modules beside the file, or in the present folder, as ``python`` does.'''
    folder = str(Path(origin).resolve().parent if origin.endswith('.py') else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _attribute(module, name, origin):
    value = module
    for part in name.split('.'):
        if not hasattr(value, part):
            public = [key for key in vars(module) if not key.startswith('_')]
            raise unknown_name(f'model in {origin} called', name, public)
        value = getattr(value, part)
    return value


_LIBRARIES = {'demo': _demo, 'torchvision': _torchvision, 'timm': _timm, 'transformers': _transformers}
