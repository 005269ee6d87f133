'''The forward of a model without a context, with which that in a context is compared.'''
import random
import sys
import warnings
from collections import deque
from contextlib import contextmanager
from copy import deepcopy

import torch

from .engine.uncompiled import uncompiled
from .errors import ChangedForward
from .trees import gathered, rebuilt, tensors_of


def _warn_of_dropout(model):
    '''Say that a model is explained as it is trained, and not as it is used.'''
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, torch.nn.modules.dropout._DropoutNd) else getattr(module, 'dropout', 0.)
        if module.training and isinstance(rate, float) and rate > 0.:
            warnings.warn(f'{type(model).__name__} is in training mode, in which {name or "it"} drops a share of '
                          f'{rate:g} of what it is given, so that this explains one draw: call model.eval() first',
                          stacklevel=5)
            return


class PlainForward:
    '''What a model computes before a context is opened on it. It leaves the model, its input and random states alone.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, without a context.
    call: callable
        Takes the input, calls the model, and returns the tensor that is explained.
    input: :py:class:`torch.Tensor`, tuple or dict
        The input.
    carries: bool
        Whether the input requires a gradient when the model is explained.
    tolerance: float
        What may differ, in units of the largest output, where rounding is less.

    Attributes
    ----------
    error: Exception or None
        What the forward has raised. An explanation has its own words for most of these.
    '''
    def __init__(self, model, call, input, carries, tolerance=0.):
        self.model, self.call, self.carries, self.tolerance = model, call, carries, tolerance
        _warn_of_dropout(model)
        self.input = copied(input)
        self.output = self.error = None
        try:
            with torch.enable_grad():
                self.output = self.run()
        except Exception as error:
            self.error = error.with_traceback(None)

    def run(self, other_draws=False):
        '''Run the forward as it is run to be explained, but without rules; if asked to, with other random numbers.'''
        try:
            return self._run(other_draws)
        except RuntimeError:  # some functions have no gradient in torch, but a rule
            with torch.no_grad():
                return self._run(other_draws)

    def _run(self, other_draws):
        input = copied(self.input)
        for tensor in tensors_of(input):
            if self.carries and torch.is_grad_enabled() and tensor.is_floating_point():
                tensor.requires_grad_()
        # Of what was compiled the original runs in a context, and is compared.
        with uncompiled(), restored(self.model):
            if other_draws:
                _draw()
            return gathered(self.call(input).detach())

    def difference(self, output):
        '''Return the largest difference to the output of another forward if it is no rounding, else None.'''
        output = gathered(output.detach())
        if output.shape != self.output.shape:
            return f'its output has shape {tuple(output.shape)} and not {tuple(self.output.shape)}'
        if not output.numel() or not output.is_floating_point():
            return None
        expected, found = self.output.double(), output.detach().double()
        same = (expected == found) | (expected.isnan() & found.isnan())
        difference = torch.where(same, 0., (found - expected).abs())
        finite = expected[expected.isfinite()].abs()
        bound = max(self.tolerance, _rounding(self.model, output)) * (float(finite.max()) if finite.numel() else 1.)
        at = int(torch.nan_to_num(difference, nan=torch.inf).argmax())
        if float(difference.flatten()[at]) <= bound:
            return None
        place = tuple(int(index) for index in torch.unravel_index(torch.tensor(at), output.shape))
        return (f'its output differs by up to {float(difference.flatten()[at]):.3g}: at {place} it is '
                f'{float(found.flatten()[at]):.6g} and not {float(expected.flatten()[at]):.6g}')

    def check(self, output):
        '''Refuse an explanation whose forward computed something else, unless no two forwards are the same.

        Call it where no context is open.

        Parameters
        ----------
        output: :py:class:`torch.Tensor`
            What the model has returned in a context.

        Raises
        ------
        ChangedForward
            If it differs by more than rounding from what the model returns without.
        '''
        if self.error is not None:
            raise self.error
        difference = self.difference(output)
        if difference is None:
            return
        name = type(self.model).__name__
        if self._draws_again():
            warnings.warn(f'two forwards of {name} on the same input differ, so whether a context changes its forward '
                          'could not be checked (compare=False says so)', stacklevel=3)
            return
        raise ChangedForward(
            f'{name} computes something else while it is explained: {difference}\nits code depends on something that '
            'a context changes, such as whether its parameters require gradients, or one of its functions runs as '
            'another; take that out of its forward, or pass compare=False to explain what it computes in the context'
        )

    def _draws_again(self):
        with torch.enable_grad():
            return self.difference(self.run(other_draws=True)) is not None


@contextmanager
def restored(model):
    '''Give random numbers and the state of a model back after a forward.'''
    with _same_random_state(model), _same_state(model):
        yield


def copied(tree):
    '''A copy of an input that a forward may write to, such as a cache.'''
    tensors = {id(tensor): tensor.detach().clone() for tensor in tensors_of(tree)}
    try:
        return deepcopy(tree, dict(tensors))
    except Exception:  # of objects that nobody can copy; their tensors are those that can be seen
        return rebuilt(tree, lambda tensor: tensors[id(tensor)])


def _rounding(model, output):
    '''Rounding, in units of the largest output, of the coarsest type that a model computes in.'''
    device = output.device.type
    types = {output.dtype, *(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())}
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        types.add(torch.get_autocast_dtype(device))
    return min(max(torch.finfo(dtype).eps for dtype in types) * 1e4, .25)


@contextmanager
def _same_random_state(model):
    '''Give all random states back, so that dropout draws the same in the forward that is explained.'''
    numpy = sys.modules.get('numpy')
    states = random.getstate(), numpy and numpy.random.get_state()
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == 'cuda'}
    with torch.random.fork_rng(devices=sorted(device.index for device in devices)):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])


def _draw():
    '''Move on all random states.'''
    random.random()
    torch.rand(())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.rand((), device='cuda')
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.rand()


@contextmanager
def _same_state(model):
    '''Give buffers and attributes back, so that a forward that counts or caches starts from where this one did.

    What objects of other types keep, such as a cache of another library in an attribute, is not given back.
    '''
    kept = [_Kept(vars(module), deep=2) for module in model.modules()]
    try:
        yield
    finally:
        for each in kept:
            each.put_back()


class _Kept:
    '''What a dict, list, set or deque holds: the same objects, with what containers and tensors among them hold.

    Parameters
    ----------
    container: dict, list, set or deque
    deep: int
        How many levels of containers inside are kept too.
    '''
    def __init__(self, container, deep):
        self.container = container
        self.items = _items(container)
        values = list(self.items.values()) if isinstance(container, dict) else self.items
        self.inner = [_Kept(value, deep - 1) for value in values if isinstance(value, _CONTAINERS)] if deep else []
        self.tensors = [(value, value.detach().clone()) for value in values if _is_state(value)]

    def put_back(self):
        '''Give the container what it held.'''
        if not _are_same(self.items, _items(self.container)):
            self._put_items_back()
        for tensor, before in self.tensors:
            if not torch.equal(tensor, before):  # the version does not tell of statistics, which kernels write
                with torch.no_grad():
                    tensor.copy_(before)
        for each in self.inner:
            each.put_back()

    def _put_items_back(self):
        if isinstance(self.container, dict):  # one by one, as it may be that of a module
            for key in self.container.keys() - self.items.keys():
                del self.container[key]
            self.container.update(self.items)
        else:
            self.container.clear()
            (self.container.update if isinstance(self.container, set) else self.container.extend)(self.items)


_CONTAINERS = (dict, list, set, deque)


def _items(container):
    return dict(container) if isinstance(container, dict) else list(container)


def _are_same(left, right):
    if len(left) != len(right):
        return False
    if isinstance(left, dict):
        return all(key in right and right[key] is value for key, value in left.items())
    return all(one is other for one, other in zip(left, right, strict=True))


def _is_state(value):
    '''Parameters are not written to by a forward, and would take too much to keep.'''
    return isinstance(value, torch.Tensor) and not (
        isinstance(value, torch.nn.Parameter) or value.requires_grad or value.is_inference())
