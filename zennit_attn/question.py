'''What is asked of the output of a model: a class, a token or any number, before the gate that it ends in.'''
import re
from collections.abc import Mapping
from functools import partial

import torch

from . import seeds
from .canonizers.attention import engine_of
from .errors import NoRelevance
from .recommendation import continues_texts
from .trees import rebuilt, tensors_of


class Question:
    '''What is asked of the output: it runs as a part of the model, and sees what the model says.'''
    def __init__(self, model, target, select, inputs, of_every_end=False, tokenizer=None):
        self.model, self.of_every_end = model, of_every_end
        self.select = partial(_part_of, select) if isinstance(select, str) else select
        self.masks = _masks(model, inputs)
        self.said = self.classes = self.probability = None
        self.gates, self.names_logits = [], True
        if isinstance(target, str):
            target = class_index(model, target, tokenizer)
        elif isinstance(target, (list, tuple)) and any(isinstance(each, str) for each in target):
            target = [class_index(model, each, tokenizer) if isinstance(each, str) else each for each in target]
        elif hasattr(target, '__array__') and not isinstance(target, torch.Tensor):
            target = torch.as_tensor(target)
        elif target is not None and not callable(target) and (
                isinstance(target, bool) or not isinstance(target, (int, torch.Tensor, list, tuple))):
            raise TypeError(f'{target!r} is no target: pass the index of a class, its name, indices for the samples, '
                            'or a function of the output such as zennit_attn.seeds.contrast()')
        self.target = target

    def ask_every_end(self):
        '''From now on, ask also what enters gates that are not the last.'''
        self.of_every_end = True

    @property
    def note(self):
        '''What is left out, in words.'''
        gates = ' and '.join(dict.fromkeys(self.gates))
        return f'The model ends in {gates}: what is explained is what enters it.' if gates else ''

    def part(self, output):
        '''What `target` is asked of: what is selected, or the likely part.'''
        part = output if self.select is None else self.select(output)
        return part if callable(self.target) else seeds.answer(part)

    def spoken(self, output):
        '''What a model says, with which that in a context is compared.'''
        part = self.part(output)
        said = seeds.answer(part)
        return said if isinstance(said, torch.Tensor) else self._asked(part)

    def __call__(self, output):
        self.gates = []
        part = self.part(output)
        said = seeds.answer(part)
        # Of an output of named parts, others than logits are no classes.
        named = not isinstance(output, (torch.Tensor, tuple, list))
        self.names_logits = not named or said is seeds.part_named('logits', output)
        if self.of_every_end:
            self.said = said.detach() if isinstance(said, torch.Tensor) else self._asked(part).detach()
            before = {id(tensor): self._before_gate(tensor) for tensor in tensors_of(output)}
            self._check_linear(output, before)
            return self._asked(self.part(rebuilt(output, lambda tensor: before[id(tensor)])))
        if isinstance(said, torch.Tensor):
            self.said = said.detach()
            before = self._before_gate(said)
            if before is not said:
                self._check_linear(said, {id(said): before})
                part = before
        asked = self._asked(part)
        self.said = asked.detach() if self.said is None else self.said
        return asked

    def _check_linear(self, output, before):
        '''Refuse a function of what gates have made that is another function of what enters them.'''
        if not self.gates or not callable(self.target) or isinstance(self.target, seeds.Seed):
            return

        def asked(*factors):
            def mixed(tensor):
                entered = before[id(tensor)].detach()
                if entered is tensor or not entered.is_floating_point():
                    return tensor.detach()
                return sum(factor * entered.roll(place) for place, factor in enumerate(factors))
            with torch.no_grad():
                return self._asked(self.part(rebuilt(output, mixed)))
        one, other, both = asked(1., 0.), asked(0., 1.), asked(2., -3.)
        largest = max(float(each.abs().max()) for each in (one, other, both))
        # What is no number, as the logarithm of a negative one, is not linear either.
        if not bool(((both - 2. * one + 3. * other).abs() <= 1e-3 * largest).all()):
            raise NoRelevance(
                f'what is asked is not linear in what {self.gates[0]} makes, so that it can not be asked of what '
                'enters it; ask for one of the numbers, or take a composite that carries relevance through gates: '
                'attn_taylor or difference')

    def _before_gate(self, tensor):
        '''What enters the gate of which a tensor is the result, or the tensor itself.'''
        engine = engine_of(self.model)
        entered = None if engine is None or not engine.running else engine.forward.entered(tensor)
        if entered is None:
            return tensor
        self.gates.append(entered[1])
        return entered[0]

    def _asked(self, part):
        if not callable(self.target):
            logits = seeds.logits_of(part, self._last(part))
            self.classes = logits.detach().argmax(1) if self.target is None else torch.as_tensor(self.target)
            chosen = seeds.logit(self.classes)(logits)
            self.probability = self._probability(logits.detach(), chosen.detach())
            return chosen
        target = self.target
        if isinstance(target, seeds.Seed) and target.position is None:
            target = target.at(self._last(part))
        asked = target(part)
        if not isinstance(asked, torch.Tensor) or asked.ndim != 1:
            shape = f'shape {tuple(asked.shape)}' if isinstance(asked, torch.Tensor) else type(asked).__name__
            raise ValueError(f'target is a function that returns {shape}; it needs one number for each sample, of '
                             'shape [batch]')
        return asked

    def _last(self, part):
        '''The last token of each sample that is no padding, or None, if that is the last of all.'''
        logits = seeds.answer(part)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 3:
            return None
        for mask in self.masks:
            if mask.shape == logits.shape[:2] and not mask[:, -1].all():
                places = torch.arange(mask.shape[1], device=mask.device)
                return torch.where(mask != 0, places, -1).amax(1)
        return None

    def _probability(self, logits, chosen):
        '''What a softmax makes of the logit of a class, for models that have classes of which one is true.'''
        kind = getattr(getattr(self.model, 'config', None), 'problem_type', None)
        gates = [gate for gate in self.gates if not gate.startswith('softmax')]
        if logits.shape[1] < 2 or gates or not self.names_logits or kind in (
                'regression', 'multi_label_classification'):
            return None
        return (chosen.float() - logits.float().logsumexp(1)).exp()

    def words(self, count, tokenizer=None):
        '''What was asked of each sample.'''
        if self.classes is None:
            name = getattr(self.target, 'name', None) or getattr(
                self.target, '__qualname__', type(self.target).__name__)
            # A function that a seed has made is called as the seed is.
            return ['what was asked' if name.startswith('<lambda>') else name.split('.')[0]] * count
        indices = self.classes.expand(count).tolist()
        if tokenizer is not None and continues_texts(self.model):
            from .heatmap.tokens import token_texts
            return [repr(token_texts(tokenizer, [index])[0]) for index in indices]
        return [_name_of(self.model, index) for index in indices]


def _labels(model):
    labels = getattr(getattr(model, 'config', None), 'id2label', None)
    if not isinstance(labels, Mapping):
        return {}
    # A config without names has LABEL_0 and so on, also that of a model that has no classes.
    return {int(index): str(name) for index, name in labels.items() if not re.fullmatch(r'LABEL_\d+', str(name))}


def _part_of(name, output):
    part = seeds.part_named(name, output)
    if part is None:
        there = output if isinstance(output, Mapping) else getattr(output, '__dict__', ())
        raise ValueError(f'the output, a {type(output).__name__}, has no part {name!r}; it has '
                         f'{", ".join(map(str, there)) or "none with a name"}')
    return part


def _masks(model, inputs):
    '''The masks of padding among the inputs that can be of the tokens for which there are logits.'''
    if not isinstance(inputs, Mapping):
        return []
    decodes = 'decoder_input_ids' in inputs or getattr(getattr(model, 'config', None), 'is_encoder_decoder', False)
    mask = inputs.get('decoder_attention_mask' if decodes else 'attention_mask')
    return [mask] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else []


def class_index(model, name, tokenizer=None):
    '''Return the index of a class that the model's ``config`` has a name for, or of a token of a language model.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
    name: str
        The name, in large or small letters, or the text of the token.
    tokenizer: optional
        That of a language model.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If there is none, or more than one, with those that there are.
    '''
    labels = _labels(model)
    found = [index for index, label in labels.items() if label.lower() == name.lower()]
    if len(found) == 1:
        return found[0]
    if tokenizer is not None and continues_texts(model):
        ids = tokenizer(name, add_special_tokens=False)['input_ids']
        if len(ids) == 1:
            return int(ids[0])
        raise ValueError(f'target {name!r} is {len(ids)} tokens, and not one')
    there = f'it has {", ".join(list(labels.values())[:8])}' if labels else 'its config names none; pass an index'
    raise ValueError(f'{type(model).__name__} has no class {name!r}; {there}')


def _name_of(model, index):
    label = _labels(model).get(index)
    return str(index) if label is None else f'{label} ({index})'
