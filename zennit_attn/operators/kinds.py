'''The kinds of operators, and the facts that tell apart those of one kind.'''
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

#: All positions.
ALL = range(sys.maxsize)
#: Stands for the positions that follow from the kind.
BY_KIND = range(0)


class Kind(Enum):
    '''What an operator does to relevance. The value is the role of the operator module that runs it.

    Attributes
    ----------
    sentence: str
        What the kind means: the docs, ``zennit-attn list`` and the operator modules say it in these words.
    '''
    PLAIN = 'plain', 'Shapes, comparisons, new tensors: nothing flows.'
    REARRANGE = 'rearrange', 'Moves values without changing them: relevance follows them.'
    SELECT = 'select', 'Picks values depending on the data: relevance follows them.'
    ADD = 'add', 'Sums: in proportion to the summands.'
    LINEAR = 'linear', 'Weights times input plus bias: in proportion to the contributions.'
    EINSUM = 'einsum', 'Contractions: as linear, or shared evenly by the operands that depend on the input.'
    MULTIPLY = 'multiply', 'Products: as linear, or shared evenly by the factors that depend on the input. '\
        'Denominators are constants.'
    SOFTMAX = 'softmax', 'A constant under CP-LRP, its Taylor expansion under AttnLRP.'
    ATTENTION = 'attention', 'Fused attention: linear in the values. Its map follows the rule of the softmax, or is a '\
        'constant for linear attention.'
    GATE = 'gate', 'Does not vanish at zero, or normalizes: viewed as a constant.'
    ACTIVATION = 'activation', 'Works element by element and vanishes at zero: relevance passes through.'
    NORMALIZATION = 'normalization', 'The deviation is a constant, the rest is linear.'
    COMPOSED = 'composed', 'Run step by step: its own code, or the same written with other functions.'
    REFUSED = 'refused', 'Refused, with a reason.'

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Kind:
        member = object.__new__(cls)
        member._value_ = value
        member.sentence = sentence
        return member


@dataclass(frozen=True)
class Writes:
    '''A function that writes values to places of its first argument.

    Attributes
    ----------
    values: int
        The position of the values.
    places: callable
        Takes the positional arguments and returns a tensor of numbers of the places, in which one that is written to
        twice stands twice; or None if the places cannot coincide.
    '''
    values: int
    places: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Operator:
    '''A row of the table: what is known of a function. Rows are compared by identity, never by name.

    Positions count the positional arguments from 0.

    Attributes
    ----------
    name: str
        The base name: ``add`` for ``torch.add``, ``Tensor.add_`` and ``+``.
    kind: :py:class:`Kind`
    inplace: bool
        Whether it writes into its first argument.
    flag: int or None
        The position of an argument ``inplace`` that says so for each call.
    signature: tuple of str
        The names of the first positional arguments, for operands that are given by keyword.
    factors: tuple of int
        The positions of the factors of a product. Default is all of them for what is a product by its kind.
    steered: tuple of int
        The positions of operands that steer the others: the operator is linear in the rest, and they are viewed as
        constants. The matrix of equations, the grid of a sampling, a denominator, the offsets of a convolution.
    values: int
        Of attention: the position of the values, which it is linear in.
    states: tuple of str
        Of attention: the names of operands that it is linear in together with the values, such as a first memory.
    affine: bool
        Whether it can add a constant: its value at zero operands is what it adds.
    pairwise: bool
        Whether it is a sum of two, element by element.
    scales: bool
        Whether it multiplies by what does not depend on the input, so that an activation stays one.
    over: {None, 'dimension', 'prefix'}
        Of a product: over the entries of a dimension, or of each prefix of it.
    writes: :py:class:`Writes` or None
        Of what writes values to places that tensors of integers name.
    joins: bool
        Of what moves values: whether it puts tensors beside each other and nothing else, so that constants are tensors.
    overwrites: bool
        Whether it puts what is given in the place of all that its first argument held.
    bounds: bool
        Whether it may put bounds in the place of values.
    clamps: bool
        Whether zero may lie between the bounds, if these are numbers for all elements.
    of_two: callable or None
        Of what picks from one tensor, or the larger or smaller of two: the function whose row is the one for two.
    lends: tuple of int
        The positions of operands of which only the shape or type counts.
    homogeneous: bool
        Of an activation: linear on each side of zero, so that its gradient is ``y / x`` already.
    saturating: bool
        Of an activation: a gate where it multiplies another tensor that carries relevance.
    exponent: int or None
        Of a power: the position of its exponent.
    smooth: bool
        Of a gate: an expansion can follow it. Deviations, norms and denominators are not.
    joint: bool
        Of a smooth gate: a function of several elements together.
    weighs: {None, 'exponential', 'log', 'logarithm', 'inverse', 'norm', 'power', 'extremum'}
        What it may be in a softmax that is written out: the exponential, the logarithm of a sum or of a sum of
        exponentials, the inverse or the norm of a sum, a power, which may be an inverse or an exponential, or what is
        subtracted before the exponential.
    subtracts: bool
        Of a sum of two: whether the second is subtracted.
    linear_outputs: tuple of int
        Of a gate that returns several tensors: those that are linear in its operand.
    mask: int or None
        The position of an attention mask, which may be a subclass of a tensor.
    draws: int
        Of a pooling of places that are drawn: in how many dimensions.
    random: bool
        Whether it draws at random, so that it can not be run again.
    trains: str or None
        What it does in training, for which there is no rule.
    harmless: bool
        Whether it may be called in place although nothing flows through it.
    tangent: callable or None
        Of a softmax: takes `x`, `y` and the dimension, and returns the first-order term ``J x`` of its expansion.
    normalize: callable or None
        Of a normalization: the same with a constant deviation.
    decomposition: callable or None
        The same function, written with others.
    decomposed_by: tuple of int
        The positions of operands that make it no single operator: it is decomposed if one of them carries relevance.
    direct: int
        How many operands may carry relevance for plain autograd to be the rule. Follows from the other facts.
    mixes: bool
        Whether it may put constants beside what carries relevance. Follows from the other facts.
    '''
    name: str
    kind: Kind
    inplace: bool = False
    flag: int | None = None
    signature: tuple[str, ...] = ()
    factors: Sequence[int] = BY_KIND
    steered: tuple[int, ...] = ()
    values: int = 2
    states: tuple[str, ...] = ()
    affine: bool = False
    pairwise: bool = False
    scales: bool = False
    over: str | None = None
    writes: Writes | None = None
    joins: bool = False
    overwrites: bool = False
    bounds: bool = False
    clamps: bool = False
    of_two: Callable[..., Any] | None = None
    lends: tuple[int, ...] = ()
    homogeneous: bool = False
    saturating: bool = False
    exponent: int | None = None
    smooth: bool = False
    joint: bool = False
    weighs: str | None = None
    subtracts: bool = False
    linear_outputs: tuple[int, ...] = ()
    mask: int | None = None
    random: bool = False
    draws: int = 0
    trains: str | None = None
    harmless: bool = False
    tangent: Callable[..., Any] | None = None
    normalize: Callable[..., Any] | None = None
    decomposition: Callable[..., Any] | None = None
    decomposed_by: Sequence[int] = ()
    direct: int = field(init=False, default=0)
    mixes: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        if self.factors is BY_KIND:
            object.__setattr__(self, 'factors', ALL if self.kind in PRODUCTS else ())
        object.__setattr__(self, 'direct', self._operands_for_autograd())
        object.__setattr__(self, 'mixes', self.kind is Kind.REARRANGE and self.affine)

    def _operands_for_autograd(self) -> int:
        if self.inplace or self.writes or self.trains or self.decomposed_by or self.clamps or (
                self.of_two is not None):
            return 0
        if self.kind in (Kind.REARRANGE, Kind.SELECT, Kind.ADD):
            return 0 if self.factors else 2
        return int(self.is_product)

    @property
    def is_product(self) -> bool:
        '''Whether it is a product of all its operands and nothing else.'''
        return self.kind in (Kind.EINSUM, Kind.MULTIPLY) and not (
            self.steered or self.affine or self.over or self.decomposed_by)


#: The kinds whose operators are products of all their operands, unless their row says otherwise.
PRODUCTS = frozenset({Kind.LINEAR, Kind.EINSUM, Kind.MULTIPLY})
