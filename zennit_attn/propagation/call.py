'''One call of an operator, and all that a rule may ask of the forward that it belongs to.'''
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..operators import Kind, Operator, lookup, out_of_place
from ..trees import substitute, tensors_in

if TYPE_CHECKING:
    from ..observer import OperatorObserver
    from .reference import Reference
    from .rule import Rule


class Running(Protocol):
    '''The forward that runs, as rules see it: nothing else of the engine is theirs.'''
    #: Whether somebody watches, to whom fused functions have to be shown step by step.
    observed: bool
    #: Whether there are tensors of which some elements are constants.
    parted: bool
    #: What tensors are for the reference, if relevance is that of differences.
    references: Any

    def locate(self) -> tuple[str, str]:
        '''Return the name of the module whose code runs, and the line that called the operator.'''

    def is_gate(self, tensor: torch.Tensor) -> bool:
        '''Whether a tensor is a gate where it multiplies one that is none.'''

    def mask_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        '''Return a mask of the elements of a tensor that carry relevance, or None if all do.'''

    def mark_constant(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Note that a tensor that was written to in place carries no relevance any more, and return it.'''

    def before_gate(self, call: Call) -> torch.Tensor | None:
        '''Keep what a gate in place is made of, if that may be asked for.'''

    def note_gate(self, call: Call, output: Any = None, copy: torch.Tensor | None = None) -> None:
        '''Remember a gate, to name it if nothing that carries relevance is left.'''

    def decompose(self, function: Callable, args: tuple, kwargs: Mapping, rules: Mapping | None = None) -> Any:
        '''Run code under the engine's eyes, if given with other rules for some kinds of operators.'''


class Call:
    '''One call of an operator: the function, its arguments, and the operands that carry relevance.

    Attributes
    ----------
    forward: :py:class:`Running`
    operator: :py:class:`~zennit_attn.operators.Operator`
        The row of the function.
    func: callable
        The function.
    args: tuple
        The positional arguments, and those that the row's signature makes positional.
    kwargs: dict
        The other arguments.
    operands: list of :py:class:`torch.Tensor`
        The tensors among the arguments that carry relevance.
    inplace: bool
        Whether the function writes into its first argument.
    rule: :py:class:`~zennit_attn.propagation.Rule` or None
        The rule that ran: of several that called each other, the last.
    record: :py:class:`~zennit_attn.observer.OperatorObserver` or None
        Who watches the call.
    reference: :py:class:`Reference` or None
        The call as it is for the reference, if relevance is that of differences.
    '''
    __slots__ = ('forward', 'operator', 'func', 'args', 'kwargs', 'operands', 'inplace', 'rule', 'record', 'original',
                 'reference')

    def __init__(self, forward: Running, operator: Operator, func: Callable, args: tuple, kwargs: Mapping,
                 operands: list[torch.Tensor]):
        self.forward = forward
        self.operator = operator
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.operands = operands
        self.inplace = operator.inplace or kwargs.get('inplace') is True or self._flag()
        self.rule: Rule | None = None
        self.record: OperatorObserver | None = None
        self.original: torch.Tensor | None = None
        self.reference: Reference | None = None
        if kwargs and operator.signature or 'other' in kwargs or 'input' in kwargs:
            self._to_positional(operator.signature or ('input', 'other'))
        if operator.of_two is not None and len(self.args) > 1 and hasattr(self.args[1], 'requires_grad'):
            self.operator = lookup(operator.of_two)

    def _to_positional(self, signature: Sequence[str]) -> None:
        self.kwargs = dict(self.kwargs)
        for name in signature[len(self.args):]:
            if name not in self.kwargs:
                break
            self.args = (*self.args, self.kwargs.pop(name))

    def draw(self) -> None:
        '''Draw the places of a pooling as torch does, so that the call is the same whenever it runs again.'''
        dims, input = self.operator.draws, self.args[0]
        if self.kwargs.get('_random_samples') is None and len(self.args) < 6:
            batch = 1 if input.ndim == dims + 1 else input.shape[0]
            samples = torch.rand(batch, input.shape[-dims - 1], dims, dtype=input.dtype, device=input.device)
            self.kwargs = {**self.kwargs, '_random_samples': samples}

    def watched_by(self, record: OperatorObserver | None) -> None:
        '''Let an observer watch the call: what it writes to in place is kept as it was.'''
        self.record = record
        if record is not None and self.inplace:
            self.original = self.args[0].detach().clone()

    def released(self) -> OperatorObserver | None:
        '''Return who watches the call, which from now on nobody does: a record that stays would be a cycle.'''
        record, self.record = self.record, None
        return record

    def keep_arguments(self) -> None:
        '''Copy the lists and dicts among the arguments, which code may change after the call.'''
        self.args, self.kwargs = substitute((self.args, self.kwargs), lambda tensor: tensor)

    def run(self, args: tuple | list | None = None) -> Any:
        '''Call the function, with other positional arguments if given.'''
        return self.func(*(self.args if args is None else args), **self.kwargs)

    def run_out_of_place(self, args: tuple | list | None = None, kwargs: Mapping | None = None) -> Any:
        '''Call the function so that no argument is written to.'''
        args, kwargs = self.args if args is None else args, self.kwargs if kwargs is None else kwargs
        if self.operator.inplace:
            return out_of_place(self.func, self.operator.name)(*args, **kwargs)
        if kwargs.get('inplace') is True:
            kwargs = {**kwargs, 'inplace': False}
        elif self._flag():
            args = [False if position == self.operator.flag else arg for position, arg in enumerate(args)]
        return self.func(*args, **kwargs)

    def _flag(self) -> bool:
        flag = self.operator.flag
        return flag is not None and len(self.args) > flag and self.args[flag] is True

    @property
    def before(self) -> tuple:
        '''The positional arguments as they were before the call, of which the first may have been written to.'''
        return self.args if self.original is None else (self.original, *self.args[1:])

    @property
    def accumulates(self) -> bool:
        '''Whether a function that writes to places adds to what is there.'''
        return self.operator.writes is not None and (
            bool(self.kwargs.get('accumulate')) or 'reduce' in self.kwargs or any(arg is True for arg in self.args[3:]))

    def carries(self, tensor: Any) -> bool:
        '''Whether an argument is one of the operands that carry relevance.'''
        return any(tensor is operand for operand in self.operands)

    def carries_at(self, positions: Sequence[int]) -> bool:
        '''Whether an operand that carries relevance is, or is in, one of the arguments at some positions.'''
        if not positions:
            return False
        return any(self.carries(tensor) for position, arg in enumerate(self.args) if position in positions
                   for tensor in tensors_in(arg))

    @property
    def factors(self) -> list[torch.Tensor]:
        '''The operands that are multiplied, each as often as it is.'''
        positions = self.operator.factors
        arguments = [arg for position, arg in enumerate(self.args) if position in positions]
        return [tensor for tensor in tensors_in(*arguments) if self.carries(tensor)]

    @property
    def constants(self) -> list[torch.Tensor]:
        '''The tensors that are added or put in the place of values: neither operands nor factors.'''
        factors = (0,) if self.operator.kind is Kind.NORMALIZATION else self.operator.factors
        arguments = [arg for position, arg in enumerate(self.args) if position not in factors]
        return [tensor for tensor in tensors_in(*arguments, self.kwargs) if not self.carries(tensor)]

    def detached(self, positions: Sequence[int]) -> list:
        '''The positional arguments, with those at some positions detached where they carry relevance.'''
        return [arg.detach() if position in positions and self.carries(arg) else arg
                for position, arg in enumerate(self.args)]

    def flatten_mask(self) -> None:
        '''Make of a mask of attention a plain tensor of two axes or more, as torch's own kernels see it.'''
        position = self.operator.mask
        mask: Any = self.kwargs.get('attn_mask')
        if position is not None and len(self.args) > position:
            mask = self.args[position]
        if not hasattr(mask, 'ndim'):
            return
        plain = mask._materialize(self.args[0].device) if hasattr(mask, '_materialize') else mask
        plain = plain[None] if plain.ndim == 1 else plain
        self.args, self.kwargs = substitute(
            (self.args, self.kwargs), lambda tensor: plain if tensor is mask else tensor)
        self.operands = [plain if operand is mask else operand for operand in self.operands]

    def write_back(self, output: Any) -> Any:
        '''Put an output computed out of place where the caller expects it.'''
        if self.inplace:
            self.args[0].copy_(output)
            return self.args[0]
        return output
