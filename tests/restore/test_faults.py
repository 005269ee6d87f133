'''Faults at every point of an explanation: nothing is left behind, and the next explanation is right.

An injector raises at the n-th event (a call of, a return from or, where so asked, a line of a function) of this package
or of Zennit. On small models every n is tried, on all problems a seeded sample of them.
'''
import gc
import itertools
import random
import sys
import threading
from contextlib import contextmanager
from functools import cache
from inspect import CO_GENERATOR

import pytest
import torch
from torch import nn
from zennit.canonizers import Canonizer
from zennit.composites import EpsilonPlusFlat
from zennit.core import RemovableHandle

from cases.problems import PROBLEMS, build
from helpers import Snapshot, assert_restored, changes, epsilon, equal_maps, one_hot, relevance_of, stock
from zennit_attn.canonizers import AttentionCanonizer
from zennit_attn.composites import CPLRP, AttnLRP, CPLRPGamma
from zennit_attn.conservation import audit
from zennit_attn.explanation import explain
from zennit_attn.heatmap import relevance_at

OURS, BOTH = ('zennit_attn',), ('zennit_attn', 'zennit')
CALLS, LINES = ('call', 'return'), ('line', 'return')


class Fault(Exception):
    '''Raised by the injector, by nothing else.'''


class Injector:
    '''Raises at the n-th event in the code of some packages, and notes the events.

    Parameters
    ----------
    at: int or None
        The event to raise at, from 0; None only notes them.
    error: type
        What to raise, e.g. :py:class:`KeyboardInterrupt`.
    events: tuple of str
        Which events count: ``call``, ``return``, ``line``.
    packages: tuple of str
        The packages or modules whose code the events are taken from.
    '''
    def __init__(self, at=None, error=Fault, events=CALLS, packages=OURS):
        self.at, self.error, self.events, self.packages = at, error, events, packages
        self.points = []
        self.raised = None

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        name = frame.f_globals.get('__name__', '') + '.'
        if not any(name.startswith(each + '.') for each in self.packages) or _is_swallowed(frame):
            return None
        if event in self.events and self.raised is None:
            self.points.append((event, _qualname(frame), frame.f_lineno))
            if len(self.points) - 1 == self.at:
                self.raised = self.error(self.points[-1])
                raise self.raised
        return self.trace


def _qualname(frame):
    '''The dotted name of a function, which Python 3.10 does not keep with its code: there the class is sought.'''
    if sys.version_info >= (3, 11):
        return frame.f_code.co_qualname
    name = frame.f_code.co_name
    owners = (owner for owner in type(frame.f_locals.get('self')).__mro__
              if getattr(vars(owner).get(name), '__code__', None) is frame.f_code)
    return next((f'{owner.__name__}.{name}' for owner in owners), name)


def _is_swallowed(frame):
    '''Whether Python ignores what is raised there: while a generator is closed, or an object finalized.'''
    if frame.f_code.co_flags & CO_GENERATOR:
        return True
    while frame is not None and frame.f_code.co_name != '__del__':
        frame = frame.f_back
    return frame is not None


class Tiny(nn.Module):
    '''A model with all that a context changes: parameters, a softmax module, hooks, a buffer, a function with state.'''
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.attend = nn.Linear(3, 4), nn.Linear(4, 12), nn.Softmax(-1)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)
        self.head.bias.requires_grad_(False)
        self.register_buffer('scale', torch.full((4,), 2.))
        self.norm.register_forward_hook(lambda module, args, output: None)
        self.qkv.register_full_backward_hook(lambda module, grads, outer: None)
        self.attend.train()

    def forward(self, x):
        x = self.embed(x) * self.scale
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.attend(q @ k.mT) @ v
        return self.head(torch.relu(self.norm(x)).mean(1))


class TinyTorch(nn.Module):
    '''A model that torch's own attention module is part of, so that a family of blocks is recognised.'''
    def __init__(self):
        super().__init__()
        self.attn, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head((x + self.attn(x, x, x)[0]).mean(1))


@cache
def small(cls, features):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls().double(), torch.randn(2, 3, features, dtype=torch.float64)


SMALL = {'tiny': (Tiny, 3), 'torch': (TinyTorch, 4)}
COMPOSITES = {'cp_lrp': CPLRP, 'attn_lrp': AttnLRP, 'gamma': lambda: CPLRP(linear_gamma=0.1), 'epsilon': epsilon,
              'stock': stock}
every_small = pytest.mark.parametrize('name', SMALL)
#: Where every point is tried, not a sample.
EXHAUSTIVE = [('torch', 'epsilon')]
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


def globals_():
    '''What a context could leave switched in torch or in threads.'''
    return (torch._C._len_torch_function_stack(), torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'),
            torch._C._is_torch_function_enabled(), torch._C._autograd._saved_tensors_hooks_is_enabled(),
            threading.active_count())


class Bench:
    '''One model, one composite, one action: runs it with faults, and checks what is left.'''
    def __init__(self, action, model, input, make, **options):
        self.action, self.model, self.input, self.make, self.options = action, model, input, make, options
        self.expected = relevance_of(model, input, make)
        self.before, self.outside = Snapshot(model), globals_()

    def points(self):
        '''All points that the action passes, in order.'''
        composite = self.make()
        with Injector(**self.options) as injector:
            self.action(self, composite)
        assert injector.points
        return injector.points

    def attempt(self, at, error):
        '''Run the action with a fault. Return the composite, for who has to remove it again, and where it was.'''
        composite, raised = self.make(), None
        with Injector(at, error, **self.options) as injector:
            try:
                self.action(self, composite)
            except (error, Exception) as caught:
                # The traceback would keep alive what the fault has orphaned, e.g. between two steps of Zennit.
                raised = caught.with_traceback(None)
        assert raised is injector.raised, f'{raised!r} came out instead of the fault {injector.raised!r}'
        return composite, injector.points[-1]

    def check(self, where):
        '''Nothing is left behind, and the next explanation is right.'''
        assert globals_() == self.outside, where
        left = changes(self.before, self.model)
        assert not left, f'a fault at {where} leaves {left}'
        assert equal_maps(relevance_of(self.model, self.input, self.make), self.expected), where


@contextmanager
def untraced():
    '''Switch the injector off for a while.'''
    trace = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(trace)


def passes(bench):
    '''A forward and a backward pass in an open context.'''
    input = bench.input.clone().requires_grad_()
    output = bench.model(input)
    torch.autograd.grad(output, input, one_hot(output))


# what is interrupted: each is called with the bench and a composite

def whole(bench, composite):
    '''All from opening the context to the end of the backward pass; closing is not interrupted.'''
    try:
        composite.register(bench.model)
        passes(bench)
    finally:
        with untraced():
            composite.remove()


def audited(bench, composite):
    '''The ledger, whose recorder has to go too.'''
    audit(bench.model, composite, bench.input, one_hot)


def explained(bench, composite):
    '''An explanation of the output of a module, whose hooks have to go too.'''
    explain(bench.model, bench.input, composite=composite, wrt='embed')


def looked_inside(bench, composite):
    '''What arrives at the modules, whose hooks have to go too.'''
    relevance_at(bench.model, composite, bench.input, 'head', one_hot)


def register(bench, composite):
    '''Opening only, as a ``with`` statement does it: where this fails, nothing closes.'''
    composite.register(bench.model)
    with untraced():
        composite.remove()


def remove(bench, composite):
    '''Closing only.'''
    with untraced():
        composite.register(bench.model)
        passes(bench)
    composite.remove()


def each_point(points):
    '''The first occurrence of every point.'''
    return sorted({point: index for index, point in reversed(list(enumerate(points)))}.values())


def sample(points, size, seed):
    '''Any occurrence of some points, not always the same for another seed.'''
    generator = random.Random(seed)
    chosen = generator.sample(sorted(set(points)), min(size, len(set(points))))
    return sorted(generator.choice([i for i, point in enumerate(points) if point == each]) for each in chosen)


def run(bench, positions, close=False):
    '''Faults of both kinds in turns; with `close`, the composite is removed (again) after each.'''
    for at, error in zip(positions, itertools.cycle((Fault, KeyboardInterrupt)), strict=False):
        composite, where = bench.attempt(at, error)
        if close:
            composite.remove()
        bench.check(where)


@pytest.mark.parametrize(('name', 'composite'), EXHAUSTIVE)
def test_every_call_of_an_explanation(name, composite):
    bench = Bench(whole, *small(*SMALL[name]), COMPOSITES[composite])
    run(bench, each_point(bench.points()))


@pytest.mark.parametrize(('action', 'module'), [
    (audited, 'conservation'), (looked_inside, 'heatmap.inside'), (explained, 'explanation'), (explained, 'sources'),
    (explained, 'seeds')])
@pytest.mark.parametrize('composite', ['cp_lrp', 'stock'])
def test_every_call_of_what_hooks_the_model(action, module, composite):
    model, input = small.__wrapped__(*SMALL['tiny'])
    bench = Bench(action, model.eval(), input, COMPOSITES[composite], packages=(f'zennit_attn.{module}',))
    run(bench, each_point(bench.points()), close=True)


@every_small
@every_composite
@pytest.mark.parametrize('action', [whole, audited])
def test_sampled_calls(name, composite, action):
    bench = Bench(action, *small(*SMALL[name]), COMPOSITES[composite])
    run(bench, sample(bench.points(), 12, f'{name} {composite} {action.__name__}'), close=action is audited)


@pytest.mark.parametrize('name', PROBLEMS)
def test_sampled_calls_of_every_problem(name):
    composite = random.Random(name).choice(list(COMPOSITES))
    bench = Bench(whole, *build(name), COMPOSITES[composite])
    run(bench, sample(bench.points(), 3, name))


@every_small
@pytest.mark.parametrize('composite', ['attn_lrp', 'gamma'])
def test_every_line_of_opening(name, composite):
    '''Where a ``with`` statement does not get to its body, nothing calls ``remove``: register restores the model.'''
    bench = Bench(register, *small(*SMALL[name]), COMPOSITES[composite], events=('call', 'line'))
    run(bench, each_point(bench.points()))


@every_small
def test_every_line_of_closing(name):
    '''A canonizer that is interrupted while it restores the model goes on with the rest.'''
    bench = Bench(remove, *small(*SMALL[name]), CPLRP, events=('line',))
    points, removals = bench.points(), ('AttentionCanonizer.remove', 'AttentionComposite.remove')
    run(bench, [at for at in each_point(points) if points[at][1] not in removals])


@every_small
@every_composite
def test_closing_again_after_a_fault(name, composite):
    '''Whatever goes wrong in closing, in Zennit or here: to close once more restores the model.'''
    bench = Bench(remove, *small(*SMALL[name]), COMPOSITES[composite], events=('call', 'line'), packages=BOTH)
    run(bench, sample(bench.points(), 25, name + composite), close=True)


@every_small
def test_stock_composite_is_removed_after_a_fault_in_opening(name):
    '''Zennit's own composites do not roll back what fails here; to remove them restores the model.'''
    bench = Bench(register, *small(*SMALL[name]), stock)
    run(bench, sample(bench.points(), 25, name), close=True)


class Failing(Canonizer):
    '''A canonizer that fails after others have been applied.'''
    def apply(self, root_module):
        raise Fault('apply')

    def register(self):
        pass

    def remove(self):
        pass


def test_forgotten_stock_composite():
    '''A stock composite whose registration failed in a later canonizer leaves nothing once nobody holds it.'''
    model, input = small(*SMALL['tiny'])
    before, expected = Snapshot(model), relevance_of(model, input, stock)
    with pytest.raises(Fault):
        relevance_of(model, input, EpsilonPlusFlat(canonizers=[AttentionCanonizer(), Failing()]))
    gc.collect()
    assert_restored(before, model)
    assert equal_maps(relevance_of(model, input, stock), expected)


def test_what_is_left_behind_is_seen():
    '''A canonizer that forgets a step is caught.'''
    class Forgetful(AttentionCanonizer):
        def remove(self):
            if len(self._undo) > 20:
                self._undo.pop(20)
            super().remove()

    bench = Bench(whole, *small(Tiny, 3), CPLRP)
    bench.make = lambda: CPLRP(canonizers=[Forgetful()])
    whole(bench, bench.make())
    with pytest.raises(AssertionError, match='leaves'):
        bench.check('nowhere')
    small.cache_clear()


@pytest.mark.parametrize('number', range(4))
def test_interrupted_composite_finishes_its_removal(number, monkeypatch):
    model, _ = build(next(iter(PROBLEMS)))
    before, composite = Snapshot(model), CPLRPGamma()
    composite.register(model)
    remove, calls = RemovableHandle.remove, itertools.count()

    def interrupted(handle):
        if next(calls) == number:
            raise KeyboardInterrupt
        remove(handle)

    monkeypatch.setattr(RemovableHandle, 'remove', interrupted)
    with pytest.raises(KeyboardInterrupt):
        composite.remove()
    assert_restored(before, model)
    assert not composite.handles
