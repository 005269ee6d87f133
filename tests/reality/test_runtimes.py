'''Recomputation, copies, threads, compilers and other runtimes.'''
import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from helpers import Snapshot, assert_closed, assert_restored, changes, epsilon, one_hot, relevance_of, stock
from versions import TORCH
from zennit_attn.composites import CPLRP
from zennit_attn.conservation import audit

from .helpers import Around, check, close, data, every_composite, expected, explain_call, fresh, refused


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_inside(make, reentrant):
    model = Around(lambda body, x: checkpoint(body, x, use_reentrant=reentrant))
    refused(lambda: relevance_of(model, data(), make), 'checkpoint', 'gradient_checkpointing_disable', model=model)


@every_composite
def test_checkpointing_of_the_whole_model(make):
    '''A reentrant one runs the whole explanation in the backward pass, which is right; the other is refused.'''
    model, x = fresh(), data().requires_grad_()
    with make().context(model):
        output = checkpoint(model, x, use_reentrant=True)
        output.backward(one_hot(output))
    close(x.grad, expected(make))
    refused(lambda: explain_call(model, make, lambda model: checkpoint(model, x, use_reentrant=False), x),
            'checkpoint', model=model)


def halves():
    '''Hooks of the user that keep what is saved in another form.'''
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor)


class Again:
    '''Hooks that compute again what is saved, as checkpoints of other packages do.'''
    def checkpoint_pack(self, tensor):
        return tensor

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.checkpoint_pack, lambda tensor: tensor)


@pytest.mark.skipif(not hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'),
                    reason='an older torch does not say which hooks there are')
@every_composite
@pytest.mark.parametrize('hooks', [torch.autograd.graph.save_on_cpu, halves])
def test_hooks_around_that_keep_tensors_elsewhere(make, hooks):
    model = fresh()
    before = Snapshot(model)
    with hooks():
        close(relevance_of(model, data(), make), expected(make))
        assert_closed(audit(model, make(), data(), one_hot))
        with torch.autograd.graph.save_on_cpu():  # still allowed
            pass
    assert_restored(before, model)


@every_composite
@pytest.mark.parametrize('hooks', [torch.autograd.graph.save_on_cpu, Again().hooks])
def test_hooks_that_are_refused(make, hooks):
    '''Those inside of the forward, of which nobody knows what they do, and those of checkpoints around it.'''
    def inside(body, x):
        with hooks():
            return body(x)
    model = Around(inside)
    refused(lambda: relevance_of(model, data(), make), 'around the explanation', model=model)
    if hooks is not torch.autograd.graph.save_on_cpu:
        with hooks():
            refused(lambda: relevance_of(model.body, data(), make), 'checkpoint', model=model)
    close(relevance_of(model.body, data(), make), expected(make))


@every_composite
@pytest.mark.parametrize('part', [lambda model: model, lambda model: model.attn, nn.Sequential])
def test_copies_in_an_open_context(make, part):
    '''Not a copy that explains for ever, or that runs the original.'''
    model = fresh()
    with make().context(model):
        open_ = Snapshot(model)
        for attempt in (copy.deepcopy, pickle.dumps, lambda module: torch.save(module, io.BytesIO())):
            refused(lambda attempt=attempt: attempt(part(model)), 'outside of the context')
        assert_restored(open_, model)
    check(model, make, expected(make))
    check(copy.deepcopy(model), make, expected(make))


@every_composite
def test_shallow_copies_and_replicas(make):
    model = fresh()
    with make().context(model):
        refused(model._replicate_for_data_parallel, 'replicated')
        refused(model.attn._replicate_for_data_parallel, 'replicated')
        refused(lambda: copy.copy(model), 'copied')
    check(model, make, expected(make))


@every_composite
def test_data_parallel(make):
    '''Without several devices it only passes on; with them it is refused.'''
    model = nn.DataParallel(fresh())
    check(model, make, expected(make))
    model.device_ids = [0, 1]
    refused(lambda: relevance_of(model, data(), make), 'model.module', 'threads', model=model)


@every_composite
@pytest.mark.parametrize(('part', 'word'), [
    (lambda body, x: body.embed(x), 'another thread'), (lambda body, x: x.tanh() * 2, 'requires a gradient')])
def test_threads_inside(make, part, word):
    '''A model that runs parts in threads of its own, where no function is seen.'''
    def parallel(body, x):
        with ThreadPoolExecutor() as pool:
            return body(pool.submit(part, body, x).result())
    model = Around(parallel)
    refused(lambda: relevance_of(model, data(), make), word, model=model)


def in_place(model):
    model.compile(backend='eager')
    return model


def inside(model):
    model.attn = torch.compile(model.attn, backend='eager')
    return model


def decorated(model):
    class Compiled(type(model)):
        forward = torch.compile(type(model).forward, backend='eager')
    model.__class__ = Compiled
    return model


COMPILED = {'wrapped': lambda model: torch.compile(model, backend='eager'), 'in place': in_place, 'inside': inside,
            'decorated': decorated}


@every_composite
@pytest.mark.parametrize('how', COMPILED)
@pytest.mark.filterwarnings('ignore:The .grad attribute')
def test_compiled(make, how):
    '''The original runs while a context is open, and the compiled code afterwards.'''
    model = COMPILED[how](fresh())
    forwards = [(module, dict(module.__dict__)) for module in model.modules()]
    check(model, make, expected(make))
    for module, attributes in forwards:
        assert module.__dict__.get('_compiled_call_impl') is attributes.get('_compiled_call_impl')
        assert module.__dict__.get('forward') is attributes.get('forward')
    assert torch.allclose(model(data()), fresh()(data()))


@pytest.mark.parametrize('make', [CPLRP, stock])
def test_compiling_an_open_model(make):
    '''An error, whatever its text, or the map: no silent gradient.'''
    model = fresh()
    before, wanted = Snapshot(model), expected(make)
    with make().context(model):
        input = data().requires_grad_()
        try:
            output = torch.compile(model, backend='eager')(input)
        except Exception:  # the compiler has words of its own
            output = None
        if output is not None:
            close(torch.autograd.grad(output, input, one_hot(output.detach()))[0], wanted, 1e-9)
    torch._dynamo.reset()
    assert changes(before, model) <= {('', 'attributes', '_is_torch_compile')}, 'more than what torch.compile sets'
    check(model, make, wanted)


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::torch.jit.TracerWarning')
def test_torchscript(make):
    @torch.jit.script
    def scripted(x):
        return torch.relu(x) * x
    model = Around(lambda body, x: body(scripted(x)))
    refused(lambda: relevance_of(model, data(), make), 'body.embed', 'TorchScript', model=model)
    with make().context(model.body):
        refused(lambda: torch.jit.trace(model.body, data().requires_grad_()), 'torch.jit.trace')


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('transform', [
    lambda model, x: torch.func.vjp(model, x), lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    lambda model, x: torch.func.vmap(lambda x: model(x[None]))(x), lambda model, x: torch.func.jvp(model, (x,), (x,)),
])
def test_transforms_of_an_open_model(make, transform):
    model = fresh()

    def attempt():
        with make().context(model):
            transform(model, data())
    refused(attempt, 'torch.func', 'torch.autograd.grad', model=model)
    check(model, make, expected(make))


@pytest.mark.parametrize('make', [CPLRP, stock])
@pytest.mark.parametrize('function', [
    lambda x: torch.vmap(lambda t: t * 2 + t.relu())(x), lambda x: x + torch.func.grad(lambda t: (t ** 2).sum())(x)])
def test_transforms_inside(make, function):
    model = Around(lambda body, x: body(function(x)))
    refused(lambda: relevance_of(model, data(), make), 'requires a gradient', model=model)


@every_composite
def test_functional_call(make):
    model = fresh()
    parameters = {name: parameter.detach() * 2 for name, parameter in model.named_parameters()}
    twin = fresh()
    twin.load_state_dict(parameters)
    x = data().requires_grad_()

    def attempt():
        return explain_call(model, make, lambda model: torch.func.functional_call(model, parameters, (x,)), x)
    if make in (stock, epsilon):
        refused(attempt, 'other parameters', 'functional_call', model=model)
    else:
        close(attempt()[0], relevance_of(twin, data(), make))
    check(Around(lambda body, x: torch.func.functional_call(body, dict(body.named_parameters()), (x,))), make,
          expected(make))


#: Before it, a compiled function can not be told to run as it was written, and raises.
STANCES = (2, 6)


@every_composite
def test_function_that_is_compiled_runs_as_it_was_written(make):
    '''Else what is traced of it is explained, or nothing of it.'''
    def swiglu(x, y):
        return nn.functional.silu(x) * y
    compiled = torch.compile(swiglu, backend='eager')
    model, twin = (Around(lambda body, x, code=code: code(body(x), body(x))) for code in (compiled, swiglu))
    if TORCH < STANCES:
        with pytest.raises(Exception, match='module .* calls|Dynamo|user code'):  # noqa: PT011 - by torch's version
            relevance_of(model, data(), make)
        torch._dynamo.reset()
        return
    close(relevance_of(model, data(), make), relevance_of(twin, data(), make))
    assert torch.equal(compiled(data(), data()), swiglu(data(), data()))
