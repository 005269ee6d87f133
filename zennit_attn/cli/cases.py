'''A case: a model, an input and a target, ready to be explained.'''
import re
from dataclasses import dataclass

import torch
from zennit.composites import COMPOSITES

from ..attribution import call_model
from ..canonizers import AttentionCanonizer
from ..composites import AttentionComposite, Difference
from ..conservation import audit
from ..conservation.ledger import TOLERANCES
from ..explanation import explain
from ..recommendation import recommended
from ..sources import resolve
from ..trees import rebuilt
from . import inputs, targets
from .models import Loaded, load
from .usage import UsageError, blaming


@dataclass
class Case:
    '''What is explained.

    Attributes
    ----------
    loaded: :py:class:`~zennit_attn.cli.models.Loaded`
        The model.
    input: tensor, tuple or dict
        Its input.
    embedding: tuple[str, :py:class:`torch.nn.Module`] or None
        The name and module from whose output it is explained.
    options: :py:class:`argparse.Namespace`
        The command's.
    '''
    loaded: Loaded
    input: object
    embedding: tuple
    options: object
    places: list = None
    output: torch.Tensor = None
    against: list = None
    recommended: str = ''
    settings: dict = None

    def __post_init__(self):
        dtype = getattr(torch, self.options.dtype)
        with blaming(f'can not compute on {self.options.device!r}'):
            self.loaded.model.to(self.options.device, dtype)
            self.input = rebuilt(inputs.cast(self.input, dtype), lambda tensor: tensor.to(self.options.device))
        self._predict()

    def _predict(self):
        '''Run the model as it is, so that what is wrong with an input is not blamed on the explanation.'''
        with torch.no_grad(), blaming(f'the model does not take this input ({inputs.shapes(self.input)})'):
            self.output = call_model(self.loaded.model, self.input, select=targets.select(self.options.part))[0]
        if self.output.ndim == 0:
            raise UsageError('the model returns a single number; it needs a first dimension for the samples')
        if not torch.isfinite(self.output).all():
            raise UsageError('the output of the model is infinite or not a number: there is nothing to explain (try '
                             '--dtype float64, or look at the checkpoint)')
        default = 'last' if self.embedding is not None and self.output.ndim == 3 else 'max'
        target = self.options.target or default
        if isinstance(target, str) and target not in ('max', 'last', 'all'):
            target = self._place_of(target)
        self.places = targets.indices(target, self.output)
        if self.options.contrast is not None:
            self.against = targets.others(self._other(), self.places, self.output)

    def _place_of(self, name):
        shape = self.output.shape[1:]
        index = self._index_of(name)
        if len(shape) > 2 or not shape or index >= shape[-1]:
            raise UsageError(f'target {name!r} is class {index}, and the output has shape {tuple(self.output.shape)}: '
                             'give indices after the batch')
        return (index,) if len(shape) == 1 else (shape[0] - 1, index)

    def _index_of(self, name):
        return targets.index_of(name, self.loaded.labels, self.loaded.tokenizer if self.output.ndim == 3 else None)

    def _other(self):
        given = self.options.contrast
        if not given:
            return None
        index = int(given) if re.fullmatch(r'-?\d+', given) else self._index_of(given)
        if not -self.output.shape[-1] <= index < self.output.shape[-1]:
            raise UsageError(f'--contrast {given} is out of range: the output has shape {tuple(self.output.shape)}')
        return index

    @property
    def target(self):
        '''The target in words.'''
        return targets.describe(self.places, self.loaded.labels, self.against)

    @property
    def probability(self):
        '''The probability of the target, in words, of a sample alone of which a softmax would make one; or nothing.'''
        kind = getattr(getattr(self.loaded.model, 'config', None), 'problem_type', None)
        has_classes = self.output.ndim in (2, 3) and self.output.shape[-1] > 1
        if self.places is None or len(self.places) > 1 or self.against is not None or not has_classes or (
                kind in ('regression', 'multi_label_classification')):
            return ''
        *before, index = self.places[0]
        row = self.output[(0, *before)].double()
        is_made = bool((row >= 0.).all()) and abs(float(row.sum()) - 1.) < 1e-3  # by a softmax of the model
        return f', probability {float(row[index] if is_made else row.softmax(0)[index]):.2g}'

    @property
    def tolerance(self):
        '''The largest share of the output that may be unaccounted.'''
        given = self.options.tolerance
        return TOLERANCES.get(getattr(torch, self.options.dtype), .1) if given is None else given

    def _arguments(self):
        select = targets.select(self.options.part)
        if isinstance(self.input, dict) and self.embedding is not None:  # of several ids, each by its own name
            return {'wrt': resolve(self.loaded.model, self.input), 'select': select}
        return {'embedding': self.embedding and self.embedding[1], 'select': select}

    def named(self, name):
        '''Return the name of a composite, in the place of ``recommended`` that of the one which is.'''
        if name != 'recommended':
            return name
        chosen = recommended(self.loaded.model, self.loaded.tokenizer, self.embedding is not None)
        self.recommended = name_of(chosen)
        # A reference that is recommended can not be said by a name alone.
        self.settings = {'reference': chosen.secant.reference} if isinstance(chosen, Difference) else {}
        return self.recommended

    def audit(self, name, unknown=None):
        '''Measure where all relevance goes under a composite.'''
        composite = self.composite(name, unknown or self.options.unknown)
        return audit(self.loaded.model, composite, self.input, targets.relevance_of(self.places, self.against),
                     **self._arguments())

    def explanation(self, name):
        '''Explain under a composite.

        Returns
        -------
        :py:class:`~zennit_attn.explanation.Explanation`
            Of the input, or of the embedding's output.
        '''
        wrt = self.embedding and self.embedding[1] if not isinstance(self.input, dict) else None
        return explain(self.loaded.model, self.input, targets.asked(self.places, self.against),
                       self.composite(name, self.options.unknown), targets.select(self.options.part), wrt)

    def composite(self, name, unknown):
        '''Return a composite by its name, with the canonizer that lets it work on attention.'''
        settings = {**(self.settings if name == self.recommended else {}), **dict(self.options.composite_settings)}
        with blaming(f'composite {name} can not be made of {settings}; it may need --composite-set NAME=VALUE'):
            ours = issubclass(COMPOSITES[name], AttentionComposite) and 'stabilizer' in settings
            shared = {'stabilizer': settings['stabilizer']} if ours else {}
            return COMPOSITES[name](canonizers=[AttentionCanonizer(unknown=unknown, **shared)], **settings)

    def is_open(self, ledger):
        '''Whether more than the tolerance is unaccounted, or there is nothing of which it could be.'''
        return not ledger.is_closed(self.tolerance)


def name_of(composite):
    '''Return the name of a composite.'''
    return next(key for key, cls in COMPOSITES.items() if cls is type(composite))


def model_of(options):
    '''Load the model that the options name.'''
    return load(options.model, options.checkpoint, options.pretrained, options.settings, options.seed)


def heading(case, options):
    '''Write what is explained.'''
    model = case.loaded.model
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f'model    {options.model} ({type(model).__name__}, {count:,} parameters)',
             f'weights  {case.loaded.weights}', f'input    {inputs.shapes(case.input)}',
             f'target   {case.target} of output {"x".join(map(str, case.output.shape))}{case.probability}']
    if not targets.relevance_of(case.places)(case.output).any():
        lines.append('         which is 0: there is no relevance')
    if case.embedding is not None:
        lines.append(f'from     {case.embedding[0]}, the embedding: token ids carry no relevance')
    return '\n'.join(lines)
