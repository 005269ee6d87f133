'''Steps that restore a model, and how they are taken.'''
from contextlib import suppress

import torch


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


def restoring_parameter(module, name, parameter, requires_grad):
    '''Return a step that puts a parameter back, and whether it requires a gradient.'''
    def restore():
        # Zennit 1.0 replaces Parameter objects while a rule runs, so the object itself is put back too.
        current = module._parameters.get(name)
        if current is not None and current.data_ptr() == parameter.data_ptr():
            module._parameters[name] = parameter
        parameter.requires_grad_(requires_grad)
    return restore
