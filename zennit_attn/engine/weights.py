'''Softmaxes that are written out: which tensors are their exponentials, sums and logarithms, and where they are whole.

An expansion of a softmax is one of the function as a whole, however it is written: as ``exp(x) / exp(x).sum()``, with a
maximum subtracted, as ``exp(x - logsumexp(x))``, in pieces, or multiplied with values before it is divided. This is
decided at the quotient. Until then exponentials are what they are anywhere else: constants under AttnLRP. They keep
their way back to the scores all the same, which the quotient of exponentials over a sum of such opens.
'''
from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import torch

from ..operators import Kind
from ..operators.kinds import PRODUCTS
from ..propagation import Call, taylor, taylor_softmax
from ..trees import substitute, tensors_in
from .tags import tag_of


class Recipe:
    '''How a tensor is computed such that plain autograd leads back to the scores: the calls that the rules ran.

    Parameters
    ----------
    call: :py:class:`~zennit_attn.propagation.Call`
    parts: dict
        By the ``id`` of an operand, the recipe to compute it by, or None for one that is a constant.
    '''
    __slots__ = ('function', 'args', 'kwargs', 'parts', 'versions', 'value')

    def __init__(self, call: Call, parts: dict[int, Recipe | None]):
        self.function = _on_a_copy(call.func) if call.inplace else call.func
        call.keep_arguments()
        self.args, self.kwargs = call.args, call.kwargs
        if call.inplace and id(call.args[0]) not in parts:
            self.args = (call.args[0].clone(), *call.args[1:])
        self.parts = parts
        self.value: torch.Tensor | None = None
        self.versions = [(tensor, tensor._version) for tensor in tensors_in(self.args, self.kwargs)
                         if id(tensor) not in parts]

    def is_current(self) -> bool:
        '''Whether nothing that it needs was written to since.'''
        pending, seen = [self], set()
        while pending:
            recipe = pending.pop()
            if recipe.value is None and id(recipe) not in seen:
                seen.add(id(recipe))
                if any(tensor._version != version for tensor, version in recipe.versions):
                    return False
                pending.extend(part for part in recipe.parts.values() if part is not None)
        return True

    def compute(self, leaf: Any) -> torch.Tensor:
        '''Compute the tensor, once, with `leaf` applied to what carries relevance.'''
        pending = [self]
        while pending:  # no recursion, as there may be more steps than frames
            recipe = pending[-1]
            missing = [part for part in recipe.parts.values() if part is not None and part.value is None]
            if recipe.value is None and missing:
                pending.extend(missing)
                continue
            if recipe.value is None:
                recipe.value = recipe._compute(leaf)
            pending.pop()
        return self.value

    def _compute(self, leaf):
        def value(tensor):
            part = self.parts.get(id(tensor), self)
            if part is self:
                return leaf(tensor) if tensor.requires_grad else tensor
            return tensor.detach() if part is None else part.value
        args, kwargs = substitute((self.args, self.kwargs), value)
        with torch._C.DisableTorchFunction():
            return self.function(*args, **kwargs)


def _on_a_copy(function):
    def run(target, *args, **kwargs):
        own = target.clone()
        function(own, *args, **kwargs)
        return own
    return run


class Weights(NamedTuple):
    '''What a tensor is to a softmax that is written out.

    Attributes
    ----------
    form: str
        ``exponential``, ``sum`` of such, ``inverse`` of a sum, ``logarithm`` of a sum or what it was subtracted from,
        ``extremum``, the difference of two (``offset``), what one was added to (``raised``) or subtracted from
        (``shifted``).
    mixed: bool
        Whether it was multiplied with others that carry relevance.
    shares: int
        How many factors of a product share evenly: the weights, and what was multiplied with them.
    recipe: :py:class:`Recipe` or None
        How to compute it by plain autograd, if it was not.
    '''
    form: str
    mixed: bool = False
    shares: int = 1
    recipe: Recipe | None = None


class Plan(NamedTuple):
    '''How a call runs that is a part of a softmax.

    Attributes
    ----------
    how: str
        By its rule (``plain``, or as a copy, ``copied``); as a constant that keeps its way back (``latent``), or one
        that does not (``constant``); or by autograd of all steps up to it, as the last of a softmax (``whole``).
    part: :py:class:`Weights` or None
        What the result is.
    divisor: int
        Of a last step: how many factors share.
    constants: tuple of :py:class:`torch.Tensor`
        Operands of a last step that are constants.
    '''
    how: str
    part: Weights | None = None
    divisor: int = 1
    constants: tuple[torch.Tensor, ...] = ()


EXPONENTIALS = frozenset({'exponential', 'sum'})
EXTREMA = frozenset({'extremum', 'offset'})
#: What a running maximum starts from is below.
LOWEST = -1e4


def plan(call: Call, known: dict[int, Weights], expanded: bool, is_gate: Any) -> Plan | None:
    '''Return how a call runs, or None for one that is no part of a softmax.

    Parameters
    ----------
    call: :py:class:`~zennit_attn.propagation.Call`
    known: dict
        What operands are, by their ``id``.
    expanded: bool
        Whether functions are expanded, so that exponentials carry relevance by themselves.
    is_gate: callable
        Whether an operand is a gate in a product.
    '''
    return _Planner(call, known, expanded, is_gate).plan()


class _Planner:
    def __init__(self, call, known, expanded, is_gate):
        self.call, self.known, self.expanded, self.is_gate = call, known, expanded, is_gate
        lent = [call.args[position] for position in call.operator.lends if position < len(call.args)]
        self.operands = [operand for operand in {id(operand): operand for operand in call.operands}.values()
                         if not any(operand is tensor for tensor in lent)]
        self.parts = [known.get(id(operand)) for operand in self.operands]
        self.forms = {weights.form for weights in self.parts if weights is not None}
        self.all = None not in self.parts

    def plan(self):
        operator, kind = self.call.operator, self.call.operator.kind
        if operator.weighs is not None:
            return getattr(self, f'_{operator.weighs}')()
        if not self.forms:
            return None
        if kind is Kind.SELECT:
            return self._picked()
        if kind is Kind.COMPOSED:
            return Plan('steps')
        if kind is Kind.REARRANGE and self.call.accumulates:
            return self._summed()
        if kind is Kind.REARRANGE:
            return self._linear() if self.all and len(self.forms) == 1 else None
        if kind is Kind.ADD:
            return self._pairwise() if operator.pairwise else self._summed()
        if kind in PRODUCTS and not operator.over and not operator.decomposed_by:
            return self._quotient() if operator.steered else self._product()
        return None

    # ---- what softmaxes are made of ----------------------------------------------------------------------------------

    def _exponential(self):
        if self.call.operator.kind is Kind.SOFTMAX:
            return Plan('plain', Weights('exponential'))
        if len(self.operands) != 1:
            return None
        weights, = self.parts
        form = None if weights is None else weights.form
        if form == 'offset':
            return Plan('constant')
        if form == 'logarithm' or (form == 'shifted' and self.expanded):
            return Plan('whole', Weights('exponential'))
        if self.expanded:
            return Plan('copied', Weights('exponential'))
        if self.call.inplace:
            return Plan('constant', Weights('exponential', recipe=self._recipe()))
        return Plan('latent', Weights('exponential'))

    def _logarithm(self):
        if self.call.operator.kind is Kind.SOFTMAX:
            return Plan('plain', Weights('logarithm'))
        several = self.call.operator.joint or len(self.operands) > 1 or self.forms
        return self._logged() if several and self.forms <= {'logarithm'} else None

    def _log(self):
        return self._logged() if self._is_pure('sum') else None

    def _logged(self):
        if self.call.inplace:
            return None
        return Plan('plain' if self.expanded else 'latent', Weights('logarithm'))

    def _inverse(self):
        if self.call.inplace:
            return None
        if self._is_pure('exponential') and self.expanded:
            return Plan('whole')
        return Plan('latent', Weights('inverse')) if self._is_pure('sum') else None

    def _power(self):
        base, *exponent = self.call.args
        if self.call.carries(base):
            is_inverse = exponent and isinstance(exponent[0], Real) and exponent[0] == -1
            return self._inverse() if is_inverse else None
        return self._exponential()

    def _is_pure(self, form):
        return self.forms == {form} and not self.parts[0].mixed

    def _norm(self):
        '''The sum of what is positive is its norm of order 1.'''
        order = self.call.args[1] if len(self.call.args) > 1 else self.call.kwargs.get('p', self.call.kwargs.get('ord'))
        pure = self._is_pure('exponential') or self._is_pure('sum')
        return Plan('latent', Weights('sum')) if pure and order == 1 else None

    # ---- what they stay through --------------------------------------------------------------------------------------

    def _linear(self, form=None, bounded=False):
        '''A call that is linear in all its operands together, or puts bounds in the place of values.'''
        first = self.parts[0]
        if any((weights.mixed, weights.shares) != (first.mixed, first.shares) for weights in self.parts):
            return None
        return self._kept(first._replace(form=form or first.form, recipe=None), bounded)

    def _kept(self, result, bounded=False):
        constant = [not self._carries(operand) for operand in self.operands]
        recipes = any(weights is not None and weights.recipe is not None for weights in self.parts)
        if all(constant):  # views of what is computed again would not be views of what was given
            return None if recipes and self.call.operator.kind is Kind.REARRANGE else Plan('latent', result)
        if not recipes and (self.expanded or not (any(constant) or bounded)):
            return Plan('plain', result)
        return Plan('plain', result._replace(recipe=self._recipe()))

    def _carries(self, operand):
        tag = tag_of(operand)
        return tag is None or tag.carries

    def _recipe(self, constants=()):
        parts = {id(operand): weights.recipe for operand, weights in zip(self.operands, self.parts, strict=True)
                 if weights is not None and weights.recipe is not None}
        return Recipe(self.call, {**parts, **{id(constant): None for constant in constants}})

    def _picked(self):
        if self.all and self.forms <= EXPONENTIALS and len(self.forms) == 1 and not self.parts[0].mixed:
            return self._linear(bounded=self.call.operator.bounds)
        return None

    def _extremum(self):
        if self.forms & EXPONENTIALS:
            return self._picked()
        bounds = self.call.operator.bounds and len(self.operands) == 1 and not self._is_unbounded()
        return Plan('plain', Weights('extremum')) if self.forms & EXTREMA or not bounds else None

    def _is_unbounded(self):
        '''Whether what a maximum starts from is a number that nothing is below.'''
        bounds = [arg for arg in (*self.call.args, *self.call.kwargs.values()) if not self.call.carries(arg)]
        return bool(bounds) and all(isinstance(bound, torch.Tensor) and bool((bound < LOWEST).all())
                                    for bound in bounds)

    def _pairwise(self):
        if self.all and self.forms <= EXPONENTIALS:
            return self._linear('sum' if len(self.operands) > 1 else None)
        if self.all and self.forms <= EXTREMA and not self._are_scores():
            subtracts = self.call.operator.subtracts and self.call.carries(self.call.args[1])
            return self._linear('offset' if subtracts or 'offset' in self.forms else 'extremum')
        if self.forms == {'logarithm'}:
            return self._kept(Weights('logarithm'))
        if self.forms == {'logarithm', 'extremum'} and self.all and not self.call.operator.subtracts:
            return self._put_back()
        return self._shifted() if len(self.operands) == 2 and 'extremum' in self.forms else None

    def _are_scores(self):
        '''Whether a maximum is subtracted from several, which themselves are maxima of something else.'''
        left, right = self.call.args[:2]
        several = len(self.operands) == 2 and self.call.operator.subtracts
        return several and isinstance(left, torch.Tensor) and left.numel() > right.numel()

    def _put_back(self):
        '''A maximum that is added to the logarithm of what it was subtracted from.'''
        shift = tuple(operand for operand in self.operands if self.known[id(operand)].form == 'extremum')
        if self.expanded:
            return Plan('whole', Weights('logarithm'), constants=shift)
        return Plan('plain', Weights('logarithm', recipe=self._recipe(shift)))

    def _shifted(self):
        '''A maximum that is subtracted before an exponential cancels in what is normalized.'''
        left, right = (self.known.get(id(arg)) if isinstance(arg, torch.Tensor) else None for arg in self.call.args[:2])
        subtracted = self.call.operator.subtracts
        if subtracted and right is not None and right.form == 'extremum':
            return Plan('plain', Weights('shifted', recipe=self._recipe([self.call.args[1]])))
        if not subtracted:
            shift = self.call.args[0] if left is not None and left.form == 'extremum' else self.call.args[1]
            form = 'shifted' if 'shifted' in self.forms else 'raised'
            return Plan('plain', Weights(form, recipe=self._recipe([shift])))
        return None

    def _summed(self):
        if self.call.operator.scales and self.all and len(self.forms) == 1:
            return self._linear('offset' if self.forms == {'extremum'} else None)
        return self._linear('sum') if self.all and self.forms <= EXPONENTIALS else None

    # ---- where they are whole ----------------------------------------------------------------------------------------

    def _product(self):
        others = [operand for operand, weights in zip(self.operands, self.parts, strict=True) if weights is None]
        own = [weights for weights in self.parts if weights is not None]
        if len(self.call.factors) != len(self.operands):
            return None
        if not others and len(own) == 1:
            return self._scaled(own[0])
        if self.call.operator.affine or not all(self.call.carries(factor) for factor in self.operands):
            return None
        gates = [] if self.expanded else [other for other in others if self.is_gate(other)]
        numerators = [weights for weights in own if weights.form in EXPONENTIALS]
        inverses = [weights for weights in own if weights.form == 'inverse']
        if len(numerators) != 1 or len(inverses) > 1 or len(own) > len(numerators) + len(inverses):
            return None
        numerator, added = numerators[0], len(others) - len(gates)
        if numerator.mixed and added:
            return None
        mixed, shares = numerator.mixed or bool(others), numerator.shares + added
        if inverses:
            return self._whole(mixed, shares, tuple(gates))
        result = Weights('exponential', mixed, shares)
        return Plan('plain', result if self.expanded else result._replace(recipe=self._recipe(gates)))

    def _scaled(self, own):
        if self.call.operator.kind is Kind.MULTIPLY:
            return self._linear()
        return self._linear('sum') if own.form in EXPONENTIALS else None

    def _quotient(self):
        position, = self.call.operator.steered[:1]
        if len(self.call.args) <= position or self.call.kwargs.get('rounding_mode') is not None:
            return None
        below = self.call.args[position]
        denominator = self.known.get(id(below)) if isinstance(below, torch.Tensor) else None
        above = [(operand, weights) for operand, weights in zip(self.operands, self.parts, strict=True)
                 if operand is not below]
        if denominator is None:
            scaled = len(self.operands) == 1 and not self.call.carries(below) and self.call.operator.scales
            return self._linear() if scaled and self.forms <= EXPONENTIALS else None
        if self.call.operator.kind is not Kind.MULTIPLY or denominator.mixed or len(above) > 1:
            return None
        if denominator.form == 'exponential' and self.expanded:
            return Plan('whole')
        if denominator.form != 'sum':
            return None
        if not above:
            return Plan('latent', Weights('inverse'))
        numerator = above[0][1]
        if numerator is None or numerator.form not in EXPONENTIALS:
            return None
        return self._whole(numerator.mixed, numerator.shares)

    def _whole(self, mixed, shares, gates=()):
        return Plan('whole', None if mixed else Weights('exponential'), 1 if self.expanded else shares, gates)


def is_expanded(rule: Any) -> bool:
    '''Whether a rule of softmaxes is their expansion.'''
    return rule is taylor_softmax or rule is taylor
