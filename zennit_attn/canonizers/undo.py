'''Steps that restore a model, and how they are taken.'''
from contextlib import suppress

import torch

from ..trees import address


def undo_all(steps):
    '''Take every step, the last one first, whatever goes wrong in between; then raise what went wrong first.'''
    errors = []
    while steps:
        try:
            steps[-1]()
        except BaseException as error:
            errors.append(error)
            _try_again(steps[-1])
        steps.pop()
    if errors:
        raise errors[0]


def _try_again(step):
    '''Steps do no harm twice: one that was interrupted succeeds now, one that cannot must not keep the others.'''
    with suppress(BaseException):
        step()


def replace_method(module, name, undo):
    '''Return a method of a module, and remember to restore what its instance had.'''
    had = name in module.__dict__
    function = getattr(module, name)

    def restore():
        if had:
            module.__dict__[name] = function
        else:
            module.__dict__.pop(name, None)
    undo.append(restore)
    return function


def put_back(attributes, own, before):
    '''Take out what an instance was given, and put back what it had in its place.'''
    for name in own:
        attributes.pop(name, None)
    attributes.update(before)


def restoring(attributes, name, replacement, tensor):
    '''Return a step that puts a tensor back in the place of its replacement.'''
    def restore():
        current = attributes.get(name)
        # Weight norm and its like compute the attribute again in every forward.
        if current is replacement or (isinstance(current, torch.Tensor) and torch.equal(current, replacement)):
            attributes[name] = tensor
    return restore


class Frozen:
    '''Keeps a parameter of a module from requiring a gradient, from :py:meth:`hold` to :py:meth:`release`.

    Models may share a parameter, and contexts may close in any order: it is as before when nobody holds it any more.
    No lock guards this, because an interrupt may come while one is held, and nobody would ever get it again. Each step
    can be taken again, and looks whether another thread came in between.
    '''
    _holders = {}  # by the id of the parameter: itself, whether it required a gradient, and who holds it

    def __init__(self, module, name, parameter):
        self.module = module
        self.name = name
        self.parameter = parameter

    def hold(self):
        '''Freeze the parameter.'''
        parameter, state = self.parameter, None
        while self._holders.get(id(parameter)) is not state or state is None:
            state = self._holders.setdefault(id(parameter), (parameter, parameter.requires_grad, set()))
            state[2].add(self)
            parameter.requires_grad_(False)

    def release(self):
        '''Put the parameter back, and, as the last who holds it, whether it requires a gradient.'''
        parameter = self.parameter
        # Zennit 1.0 replaces Parameter objects while a rule runs, so the object itself is put back too.
        current = self.module._parameters.get(self.name)
        if current is not None and address(current) == address(parameter):
            self.module._parameters[self.name] = parameter
        _, requires_grad, holders = self._holders.get(id(parameter), (None, False, {None}))
        holders.discard(self)
        if not holders:
            parameter.requires_grad_(requires_grad)
            if holders:  # somebody came in between
                parameter.requires_grad_(False)
            else:
                self._holders.pop(id(parameter), None)
