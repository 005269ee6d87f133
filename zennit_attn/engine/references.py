'''The second stream of a forward: what each tensor that carries relevance is for a reference in place of the input.

Every call runs on both streams. So in place, in loops, and in modules that are called twice, a tensor knows its own
reference. What does not carry relevance (constants, what was detached, what control flow depends on) is the same in
both.
'''
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import NoRelevance
from ..operators import Kind, Operator
from ..propagation import Call, Reference
from ..trees import substitute, tensors_in
from . import messages


class References:
    '''What tensors are for the reference, kept on the tensors themselves.

    Parameters
    ----------
    given: callable, :py:class:`torch.Tensor` or float
        The reference: of the shape of what is explained or one that broadcasts to it, a number, or a function of what
        is explained.
    '''
    def __init__(self, given: Callable | torch.Tensor | float):
        self.given = given

    # ---- where relevance enters --------------------------------------------------------------------------------------

    def start(self, tensor: torch.Tensor, where: str, module: torch.nn.Module | None = None,
              args: tuple = ()) -> torch.Tensor:
        '''Return the reference for a tensor that is explained: an input of the model, or the output of a module.

        Parameters
        ----------
        tensor: :py:class:`torch.Tensor`
            What is explained.
        where: str
            The name of the model, for errors.
        module: :py:class:`torch.nn.Module`, optional
            The embedding whose output it is. Of a reference that is made of integers the embedding is taken.
        args: tuple, optional
            The arguments of the embedding.
        '''
        source = args[0].detach() if module is not None and args else tensor.detach()
        with torch.no_grad(), torch._C.DisableTorchFunction():
            given = self.given(source) if callable(self.given) else self.given
            if module is not None and isinstance(given, torch.Tensor) and not given.is_floating_point():
                given = type(module).forward(module, given.to(source.device), *args[1:])
            try:
                # In the memory layout of the tensor, so that what is a view of the one is a view of the other.
                return torch.empty_like(tensor.detach()).copy_(torch.as_tensor(given))
            except (RuntimeError, TypeError, ValueError) as error:
                raise NoRelevance(messages.bad_reference(where, given, tuple(tensor.shape))) from error

    # ---- what is known of tensors ------------------------------------------------------------------------------------

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Return what a tensor is for the reference.'''
        found = getattr(tensor, 'lrp_reference', None)
        if found is not None:
            return found
        base = None if tensor._base is None else getattr(tensor._base, 'lrp_reference', None)
        return tensor.detach() if base is None else _view_like(tensor, base)

    def set(self, tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        '''Note what a tensor is for the reference, and return the tensor.'''
        tensor.lrp_reference = value  # type: ignore[attr-defined]  # tensors take attributes
        return tensor

    def difference(self, tensor: torch.Tensor) -> torch.Tensor:
        '''Return a tensor less its reference.'''
        return tensor.detach() - self.of(tensor)

    # ---- calls -------------------------------------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        '''Let a call know what it is for the reference, before it runs.'''
        if call.inplace:
            self._prepare(call.args[0])
        call.reference = Reference(call, self.of)

    def _prepare(self, target: torch.Tensor) -> None:
        '''A constant that is about to be written to gets a stream of its own, and what it is a view of gets one.'''
        if hasattr(target, 'lrp_reference'):
            return
        base, _ = target._base, target.grad_fn  # which a view is given when it is asked for, if its base carries now
        if base is None:
            self.set(target, target.detach().clone())
            return
        if not hasattr(base, 'lrp_reference'):
            self.set(base, base.detach().clone())
        self.set(target, _view_like(target, base.lrp_reference))

    def follow(self, call: Call, output: Any) -> None:
        '''Note what the results of a call are for the reference.'''
        reference = call.reference
        if reference is None or call.operator.kind is Kind.COMPOSED:
            return
        if call.inplace:
            target = self.of(call.args[0])
            value = reference.whole
            if value.shape == target.shape:
                target.copy_(value)
            else:
                self.set(call.args[0], value)
            return
        tensors = tensors_in(output)
        if not (reference.differs or any(tensor.requires_grad for tensor in tensors)):
            return
        for tensor, value in zip(tensors, tensors_in(reference.whole), strict=True):
            if tensor.requires_grad or reference.differs:
                self.set(tensor, value)

    def follow_constants(self, operator: Operator | None, func: Callable, args: tuple, kwargs: dict,
                         output: Any) -> None:
        '''Note what constants make of constants that are others for the reference, such as normalizers.'''
        if not any(hasattr(tensor, 'lrp_reference') for tensor in tensors_in(args, kwargs)):
            return
        if operator is not None and operator.inplace:
            self._prepare(args[0])
        with torch.no_grad(), torch._C.DisableTorchFunction():
            values = func(*substitute(args, self.of), **substitute(kwargs, self.of))
        if operator is None or not operator.inplace:
            for tensor, value in zip(tensors_in(output), tensors_in(values), strict=True):
                self.set(tensor, value)

    def put_in_place(self, target: torch.Tensor, result: torch.Tensor) -> None:
        '''Write the reference of a result where that of what it was written to is.'''
        self._prepare(target)
        self.of(target).copy_(self.of(result))

    def run(self, function: Callable, args: tuple, kwargs: dict, output: Any) -> Any:
        '''Run a module on the reference as well, and note what its output is for it. Returns the output.'''
        args, kwargs = substitute((args, kwargs), self.of)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            values = function(*args, **kwargs)
        for tensor, value in zip(tensors_in(output), tensors_in(values), strict=True):
            self.set(tensor, value)
        return output


def _view_like(tensor, base):
    '''The same part of another base that a view is of its own.'''
    offset = tensor.storage_offset() - tensor._base.storage_offset() + base.storage_offset()
    return base.as_strided(tensor.shape, tensor.stride(), offset)
