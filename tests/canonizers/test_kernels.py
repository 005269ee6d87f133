'''Kernels of state spaces by stand-ins that cannot be seen, and the ways in which code finds published functions.'''
import sys
from functools import partial
from types import FunctionType, ModuleType
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import silu, softplus

from attention.helpers import published
from cases.families import COMPOSITES, explain_largest
from cases.kernels import hidden
from helpers import Snapshot, assert_closed, assert_restored, relative
from zennit_attn.attention import gated_linear_attention, selective_scan
from zennit_attn.attribution import TokenGradient
from zennit_attn.canonizers import AttentionCanonizer, register_kernel
from zennit_attn.canonizers.published import FUNCTIONS, functions, replacement
from zennit_attn.composites import CPLRP, Difference
from zennit_attn.conservation import audit
from zennit_attn.errors import UntrackedTensor

LENGTH, WIDTH, INNER, STATES, RANK, HEADS = 12, 8, 16, 3, 2, 4
every_composite = pytest.mark.parametrize('composite', [*COMPOSITES.values(), Difference],
                                          ids=[*COMPOSITES, 'difference'])


# ---- references with the signatures of the kernels, token by token ---------------------------------------------------

def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,  # noqa: N803 - theirs
                      return_last_state=False):
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = softplus(delta) if delta_softplus else delta
    state, outs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for i in range(u.shape[2]):
        state = (delta[..., i, None] * A).exp() * state + (delta * u)[..., i, None] * B[:, None, :, i]
        outs.append((state * C[:, None, :, i]).sum(-1))
    out = torch.stack(outs, -1) + (0. if D is None else u * D[:, None])
    out = out if z is None else out * silu(z)
    return (out, state) if return_last_state else out


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
                     final_states_out=None, activation=None):
    out = functional.conv1d(functional.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))
    return silu(out) if activation in ('silu', 'swish') else out


def mamba_inner_fn(xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight, out_proj_bias,
                   A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None,  # noqa: N803 - theirs
                   delta_softplus=True, checkpoint_lvl=1):
    x, z = xz.chunk(2, 1)
    x = causal_conv1d_fn(x, conv1d_weight[:, 0], conv1d_bias, activation='silu')
    mixed = x_proj_weight @ x
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    delta, keys, queries = delta_proj_weight @ mixed[:, :rank], mixed[:, rank:rank + states], mixed[:, -states:]
    out = selective_scan_fn(x, delta, A, keys, queries, D, z, delta_bias, delta_softplus)
    return functional.linear(out.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None,  # noqa: N803 - theirs
                              seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0., float('inf')),
                              return_final_states=False, return_varlen_states=False):
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (softplus(dt) if dt_softplus else dt).clamp(*dt_limit)
    keys, queries = (each.repeat_interleave(x.shape[2] // each.shape[2], 2) for each in (B, C))
    state, outs = x.new_zeros(*x.shape[0:1], *x.shape[2:], keys.shape[-1]), []
    for i in range(x.shape[1]):
        if seq_idx is not None and i:
            state = state * (seq_idx[:, i] == seq_idx[:, i - 1])[:, None, None, None]
        step = dt[:, i, :, None, None]
        state = (step * A[:, None, None]).exp() * state + step * x[:, i, ..., None] * keys[:, i, :, None]
        outs.append((state * queries[:, i, :, None]).sum(-1))
    out = torch.stack(outs, 1) + (0. if D is None else x * D[:, None])
    out = out if z is None else out * silu(z)
    return (out, state) if return_final_states else out


def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    x = x if norm_before_gate or z is None else x * silu(z)
    groups = x.unflatten(-1, (-1, group_size or x.shape[-1]))
    out = (groups * (groups.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2) * weight
    return out * silu(z) if norm_before_gate and z is not None else out


def mamba_split_conv1d_scan_combined(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size,  # noqa: N803 - theirs
                                     initial_states=None, seq_idx=None, dt_limit=(0., float('inf')),
                                     return_final_states=False, activation='silu', rmsnorm_weight=None,
                                     rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, headdim=None, ngroups=1,
                                     norm_before_gate=True):
    inner = len(D) * headdim
    states = (zxbcdt.shape[-1] - 2 * inner - len(D)) // (2 * ngroups)
    z, mixed, dt = zxbcdt.split([inner, inner + 2 * ngroups * states, len(D)], -1)
    mixed = causal_conv1d_fn(mixed.mT, conv1d_weight, conv1d_bias, activation=activation).mT
    x, keys, queries = mixed.split([inner, ngroups * states, ngroups * states], -1)
    out = mamba_chunk_scan_combined(
        x.unflatten(-1, (len(D), -1)), dt, A, keys.unflatten(-1, (ngroups, -1)), queries.unflatten(-1, (ngroups, -1)),
        chunk_size, D, dt_bias=dt_bias, dt_softplus=True, dt_limit=dt_limit).flatten(2)
    out = rmsnorm_fn(out, rmsnorm_weight, None, z, rmsnorm_eps, norm_before_gate=norm_before_gate)
    return functional.linear(out, outproj_weight, outproj_bias)


REFERENCES = (selective_scan_fn, causal_conv1d_fn, mamba_inner_fn, mamba_chunk_scan_combined, rmsnorm_fn,
              mamba_split_conv1d_scan_combined)

#: Code like that of `mamba_ssm`, which finds the kernels under the names of its module.
CODE = '''
class Mamba(nn.Module):
    fast = True

    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(WIDTH, 2 * INNER), nn.Linear(INNER, WIDTH)
        self.conv1d = nn.Conv1d(INNER, INNER, 4, groups=INNER)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.A_log, self.D = nn.Parameter(torch.rand(INNER, STATES)), nn.Parameter(torch.ones(INNER))

    def forward(self, x):
        xz, rates = self.in_proj(x).transpose(1, 2), -self.A_log.exp()
        if self.fast:
            return mamba_inner_fn(xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
                                  self.out_proj.weight, self.out_proj.bias, rates, None, None, self.D,
                                  delta_bias=self.dt_proj.bias, delta_softplus=True)
        x, z = xz.chunk(2, 1)
        x = causal_conv1d_fn(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation='silu')
        dt, keys, queries = self.x_proj(x.transpose(1, 2)).split([RANK, STATES, STATES], -1)
        dt = (dt @ self.dt_proj.weight.t()).transpose(1, 2)
        y = selective_scan_fn(x, dt, rates, keys.transpose(1, 2), queries.transpose(1, 2), self.D, z=z,
                              delta_bias=self.dt_proj.bias, delta_softplus=True, return_last_state=False)
        return self.out_proj(y.transpose(1, 2))


class Mamba2(nn.Module):
    fast = True

    def __init__(self):
        super().__init__()
        mixed = INNER + 4 * STATES
        self.in_proj, self.out_proj = nn.Linear(WIDTH, INNER + mixed + HEADS), nn.Linear(INNER, WIDTH)
        self.conv1d, self.norm = nn.Conv1d(mixed, mixed, 4, groups=mixed), nn.Parameter(torch.rand(INNER))
        self.A_log, self.D = nn.Parameter(torch.rand(HEADS)), nn.Parameter(torch.rand(HEADS))
        self.dt_bias = nn.Parameter(torch.rand(HEADS))

    def forward(self, x):
        zxbcdt, rates = self.in_proj(x), -self.A_log.exp()
        if self.fast:
            return mamba_split_conv1d_scan_combined(
                zxbcdt, self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias, rates, D=self.D, chunk_size=8,
                activation='silu', rmsnorm_weight=self.norm, rmsnorm_eps=1e-6, outproj_weight=self.out_proj.weight,
                outproj_bias=self.out_proj.bias, headdim=INNER // HEADS, ngroups=2, norm_before_gate=False)
        z, mixed, dt = zxbcdt.split([INNER, INNER + 4 * STATES, HEADS], -1)
        mixed = causal_conv1d_fn(mixed.transpose(1, 2), self.conv1d.weight[:, 0], self.conv1d.bias, activation='swish')
        x, keys, queries = mixed.transpose(1, 2).split([INNER, 2 * STATES, 2 * STATES], -1)
        y = mamba_chunk_scan_combined(
            x.unflatten(-1, (HEADS, -1)), dt, rates, keys.unflatten(-1, (2, -1)), queries.unflatten(-1, (2, -1)),
            chunk_size=4, D=self.D, z=None, dt_bias=self.dt_bias, dt_softplus=True)
        return self.out_proj(rmsnorm_fn(y.flatten(2), self.norm, None, z, norm_before_gate=False))
'''


@pytest.fixture
def package(monkeypatch):
    '''A module named like one of `mamba_ssm`, with the kernels.'''
    module = ModuleType('mamba_ssm.modules')
    vars(module).update(torch=torch, nn=nn, WIDTH=WIDTH, INNER=INNER, STATES=STATES, RANK=RANK, HEADS=HEADS)
    for reference in REFERENCES:
        setattr(module, reference.__name__, hidden(reference, package='mamba_ssm'))
    exec(CODE, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def visible(module):
    '''The same code, with references that can be seen, which are followed token by token.'''
    for reference in REFERENCES:
        setattr(module, reference.__name__, reference)


def build(cls):
    torch.manual_seed(0)
    model = nn.Sequential(cls()).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0., 0.4)
    return model, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


every_layer = pytest.mark.parametrize('name', ['Mamba', 'Mamba2'])


@every_layer
@every_composite
def test_one_map_for_the_kernel_of_a_layer_and_for_those_of_its_parts(package, name, composite):
    model, input = build(getattr(package, name))
    maps = []
    for model[0].fast in (True, False):
        output, relevance = explain_largest(model, input, composite)
        assert relative(output, model(input).detach()) <= 1e-12
        maps.append(relevance)
    assert maps[0].abs().sum() > 0
    assert relative(*maps) <= 1e-9


@every_layer
@pytest.mark.parametrize('fast', [False, True])
def test_ledger_closes(package, name, fast):
    model, input = build(getattr(package, name))
    model[0].fast = fast
    assert_closed(audit(model, CPLRP(), input))


@every_layer
def test_model_is_restored(package, name):
    model, _ = build(getattr(package, name))
    before = Snapshot(model)
    [own] = AttentionCanonizer().apply(model)
    own.remove()
    assert_restored(before, model)


def test_a_visible_reference_is_replaced_too(package):
    '''Of the package itself without a comparison, of others after one.'''
    model, input = build(package.Mamba)
    model[0].fast = False
    kernels = explain_largest(model, input)[1]
    visible(package)
    assert relative(explain_largest(model, input)[1], kernels) <= 1e-9


def test_packed_sequences_of_a_row_are_sequences_by_themselves():
    class Packed(nn.Module):
        def __init__(self, scan):
            super().__init__()
            self.parts, self.scan, self.rates = nn.Linear(8, 8 + 4 + 12), scan, nn.Parameter(-torch.rand(4))

        def forward(self, x):
            values, dt, keys, queries = self.parts(x).split([8, 4, 6, 6], -1)
            return self.scan(values.unflatten(-1, (4, 2)), dt, self.rates, keys.unflatten(-1, (2, 3)),
                             queries.unflatten(-1, (2, 3)), 8, dt_softplus=True, seq_idx=SEQUENCES)
    torch.manual_seed(0)
    model = Packed(hidden(mamba_chunk_scan_combined)).double().eval()
    input = torch.randn(2, LENGTH, 8, dtype=torch.float64)

    def at_last(output):
        chosen = torch.zeros_like(output)
        chosen[:, -1] = output[:, -1].detach()
        return chosen
    output, relevance = explain_largest(model, input, target=at_last)
    assert relative(output, model(input).detach()) <= 1e-12
    for row, start in enumerate((5, 8)):
        assert (relevance[row, :start] == 0).all()
        assert (relevance[row, start:] != 0).any()


SEQUENCES = torch.tensor([[0] * 5 + [1] * 7, [0] * 3 + [1] * 5 + [2] * 4])


# ---- the ways in which code finds a function -------------------------------------------------------------------------

def chunk_gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    '''With heads behind tokens.'''
    q, k, v, g = (each.transpose(1, 2) for each in (q * q.shape[-1] ** -.5, k, v, g))
    state, outs = 0., []
    for i in range(q.shape[2]):
        state = g[:, :, i, :, None].exp() * state + k[:, :, i, :, None] * v[:, :, i, None]
        outs.append((q[:, :, i, None] @ state)[:, :, 0])
    return torch.stack(outs, 1), state if output_final_state else None


kernel = hidden(chunk_gla)


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.gates = nn.Linear(8, 24), nn.Linear(8, 8)

    def given(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (6, 4)).chunk(3, 2)
        return q, k, v, -softplus(self.gates(x)).unflatten(-1, (2, 4))


class ByGlobal(Projected):
    def forward(self, x):
        return kernel(*self.given(x))[0]


def helper(*given):
    return kernel(*given)[0]


class ByHelper(Projected):
    def forward(self, x):
        return helper(*self.given(x))


class ByMethod(Projected):
    def run(self, given):
        out, _ = kernel(*given, output_final_state=False)
        return out

    def forward(self, x):
        return self.run(self.given(x))


class ByAttribute(Projected):
    def __init__(self):
        super().__init__()
        self.function = kernel

    def forward(self, x):
        return self.function(*self.given(x))[0]


class ByPartial(Projected):
    def __init__(self):
        super().__init__()
        self.function = partial(kernel, output_final_state=True)

    def forward(self, x):
        return self.function(*self.given(x))[0]


class ByComprehension(Projected):
    def forward(self, x):
        q, k, v, g = self.given(x)
        return torch.cat([kernel(q[i:i + 1], k[i:i + 1], v[i:i + 1], g[i:i + 1])[0] for i in range(len(x))])


class ByKeyword(Projected):
    def forward(self, x):
        q, k, v, g = self.given(x)
        return kernel(g=g, v=v, k=k, q=q)[0]


class BySuper(ByGlobal):
    pass


class ByDecorator(Projected):
    @torch.no_grad()
    def look(self):
        return None

    def forward(self, x):
        self.look()
        return helper(*self.given(x))


def chunk_simple_gla(*given):
    '''Which returns the output alone.'''
    return chunk_gla(*given)[0]


class ByShortForm(Projected):
    def forward(self, x):
        return chunk_simple_gla(*self.given(x))


WAYS = (ByShortForm, ByGlobal, ByHelper, ByMethod, ByAttribute, ByPartial, ByComprehension, ByKeyword, BySuper,
        ByDecorator)


class Own(Projected):
    def forward(self, x):
        q, k, v, g = (each.transpose(1, 2) for each in self.given(x))
        return gated_linear_attention(q * q.shape[-1] ** -.5, k, v, g).transpose(1, 2)


def made(cls):
    torch.manual_seed(0)
    return nn.Sequential(cls()).double().eval(), torch.randn(2, LENGTH, 8, dtype=torch.float64)


@pytest.mark.parametrize('cls', WAYS)
@every_composite
def test_is_found(cls, composite):
    model, input = made(cls)
    before = Snapshot(model)
    output, relevance = explain_largest(model, input, composite)
    assert relative(output, model(input).detach()) <= 1e-12
    assert relative(relevance, explain_largest(*made(Own), composite)[1]) <= 1e-9
    assert_restored(before, model)


@pytest.mark.parametrize('directly', [False, True])
def test_is_found_in_a_root(directly):
    (model, input), relevances = made(ByGlobal), []
    input.requires_grad_()
    for root in (model[0], model):
        with CPLRP().context(root) as context:
            output = context.forward(input) if directly else context(input)
        relevances.append(torch.autograd.grad(output, input, output.detach())[0])
    assert relevances[0].abs().sum() > 0
    assert torch.equal(*relevances)


def renamed(function):
    '''The same function under a name that is none of a published one.'''
    return FunctionType(function.__code__, function.__globals__, 'anything')


class Other(Projected):
    '''A function of its own that has the name of a published one.'''
    def forward(self, x):
        return fused_recurrent_gla(*self.given(x))


def fused_recurrent_gla(q, k, v, g):
    return (q @ k.mT).softmax(-1) @ v * g.exp().mean()


class Renamed(Projected):
    def forward(self, x):
        return _anything(*self.given(x))


_anything = renamed(fused_recurrent_gla)


@every_composite
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_function_that_only_has_the_name_runs_as_it_is(composite, dtype):
    maps = []
    for cls in (Other, Renamed):
        model, input = made(cls)
        maps.append(explain_largest(model.to(dtype), input.to(dtype), composite)[1])
    assert torch.equal(*maps)


def chunk_retention(q, k, v):
    '''Almost what it is called: with other rates of decay.'''
    rates = (1 - 2. ** (-5. - torch.arange(q.shape[2]))).log().to(q) * 1.01
    return chunk_gla(q, k, v, rates[:, None].expand_as(q))[0]


class Near(Projected):
    def forward(self, x):
        return chunk_retention(*self.given(x)[:3])


class NearRenamed(Projected):
    def forward(self, x):
        return _near(*self.given(x)[:3])


_near = renamed(chunk_retention)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_function_that_is_nearly_the_published_one_runs_as_it_is(dtype):
    maps = []
    for cls in (Near, NearRenamed):
        model, input = made(cls)
        maps.append(explain_largest(model.to(dtype), input.to(dtype))[1])
    assert torch.equal(*maps)


def test_heads_before_tokens_are_left_to_the_function():
    def chunk_gla_of_old(q, k, v, g, scale=None, initial_state=None, output_final_state=False, head_first=True):
        out, last = chunk_gla(*(each.transpose(1, 2) for each in (q, k, v, g)), scale)
        return out.transpose(1, 2), last
    chunk_gla_of_old.__name__ = 'chunk_gla'
    row = FUNCTIONS.find('chunk_gla', hidden(chunk_gla_of_old, package='fla'))
    old, new = (replacement(row, hidden(each, package='fla')) for each in (chunk_gla_of_old, chunk_gla))
    q, k, v, g = torch.randn(4, 2, 6, 3, 5)  # in float64 the function would run beside it and show the difference
    given = [q, k, v, -g.abs()]
    assert relative(old(*(each.transpose(1, 2) for each in given))[0].transpose(1, 2), new(*given)[0]) <= 1e-5


def test_code_that_is_changed_later_is_looked_at_again():
    class Changing(ByGlobal):
        def forward(self, x):
            return functional.linear(x, self.gates.weight)
    model, input = made(Changing)
    assert explain_largest(model, input)[1].any()
    Changing.forward = ByGlobal.forward
    assert relative(explain_largest(model, input)[1], explain_largest(*made(Own))[1]) <= 1e-9


def test_arguments_that_change_what_is_computed_are_left_to_the_function():
    class Reversed(Projected):
        def forward(self, x):
            return hidden_with_more(*self.given(x), reverse=True)[0]
    model, input = made(Reversed)
    with pytest.raises(UntrackedTensor, match='cannot see'):
        explain_largest(model, input)


def chunk_gla_with_more(q, k, v, g, scale=None, initial_state=None, output_final_state=False, reverse=False):
    flipped = [each.flip(1) if reverse else each for each in (q, k, v, g)]
    out, last = chunk_gla(*flipped, scale, initial_state, output_final_state)
    return out.flip(1) if reverse else out, last


chunk_gla_with_more.__name__ = 'fused_recurrent_gla'
hidden_with_more = hidden(chunk_gla_with_more)


def test_the_operator_is_that_of_the_kernel():
    torch.manual_seed(0)
    u, delta, keys, queries = torch.randn(2, 5, 9).double(), torch.rand(2, 5, 9).double(), *torch.randn(
        2, 2, 3, 9).double()
    rates = -torch.rand(5, 3).double()
    expected = selective_scan_fn(u, delta, rates, keys, queries)
    assert relative(selective_scan(u.mT, delta.mT, rates, keys.mT, queries.mT).mT, expected) <= 1e-12


# ---- what users say stands for a kernel ------------------------------------------------------------------------------

def product(x, y, factor=1.):
    return x * torch.sigmoid(y) * factor


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, factor=1.):
        return product(x, y, factor)

    @staticmethod
    def backward(ctx, grad):
        raise AssertionError('a kernel ran backward')


fused = hidden(product)


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Linear(8, 16)

    def forward(self, x):
        return fused(*self.parts(x).chunk(2, -1), factor=2.)


class ByApply(ByName):
    def forward(self, x):
        return Fused.apply(*self.parts(x).chunk(2, -1), 2.)


class InSight(ByName):
    def forward(self, x):
        return product(*self.parts(x).chunk(2, -1), factor=2.)


@every_composite
def test_a_registered_reference_runs_in_the_place_of_a_kernel(composite, monkeypatch):
    monkeypatch.setattr(functions, '_REGISTERED', WeakKeyDictionary())
    expected = explain_largest(*made(InSight), composite)[1]
    for cls, kernel in ((ByName, fused), (ByApply, Fused)):
        model, input = made(cls)
        with pytest.raises(UntrackedTensor, match='register_kernel'):
            explain_largest(model, input, composite)
        register_kernel(kernel, product)
        before = Snapshot(model)
        output, relevance = explain_largest(model, input, composite)
        assert torch.equal(output, model(input).detach())
        assert torch.equal(relevance, expected)
        assert_restored(before, model)


def test_only_functions_can_be_registered():
    with pytest.raises(TypeError, match='the reference is a NoneType'):
        register_kernel(fused, None)
    with pytest.raises(TypeError, match='the kernel is a str'):
        register_kernel('fused', product)


# ---- kernels of softmax attention ------------------------------------------------------------------------------------

def flash_attn_func(q, k, v, dropout_p=0., softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    '''As its documentation says: a mask that is aligned at the last of queries and keys, and keys that heads share.'''
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -.5 if softmax_scale is None else softmax_scale)
    rows, columns = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2], torch.arange(k.shape[2])
    hidden_ones = (columns > rows) & causal
    if window_size[0] >= 0:
        hidden_ones = hidden_ones | (columns < rows - window_size[0])
    if window_size[1] >= 0:
        hidden_ones = hidden_ones | (columns > rows + window_size[1])
    return (scores.masked_fill(hidden_ones, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def flash_attn_qkvpacked_func(qkv, dropout_p=0., softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.,
                              alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return flash_attn_func(*qkv.unbind(2), dropout_p, softmax_scale, causal, window_size)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.,
                           softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0., alibi_slopes=None,
                           deterministic=False, return_attn_probs=False, block_table=None):
    bounds = cu_seqlens_q.tolist()
    return torch.cat([flash_attn_func(*(each[None, start:end] for each in (q, k, v)), causal=causal)[0]
                      for start, end in zip(bounds, bounds[1:], strict=False)])


def memory_efficient_attention(query, key, value, attn_bias=None, p=0., scale=None, *, op=None, output_dtype=None):
    return flash_attn_func(query, key, value, causal=attn_bias is not None)


class LowerTriangularMask:
    '''As xformers has it.'''


flash, packed = (hidden(each, package='flash_attn') for each in (flash_attn_func, flash_attn_qkvpacked_func))
of_lengths = hidden(flash_attn_varlen_func, package='flash_attn')
efficient = hidden(memory_efficient_attention, package='xformers')


def attend(q, k, v, mask=None, is_causal=False):
    return functional.scaled_dot_product_attention(
        q.transpose(1, 2), *(each.transpose(1, 2).repeat_interleave(q.shape[2] // each.shape[2], 1) for each in (k, v)),
        mask, is_causal=is_causal).transpose(1, 2)


BOUNDS = torch.tensor([0, 5, LENGTH, LENGTH + 3, 2 * LENGTH])


def _blocks():
    number = torch.bucketize(torch.arange(2 * LENGTH), BOUNDS[1:], right=True)
    return (number[:, None] == number) & torch.ones(2 * LENGTH, 2 * LENGTH, dtype=torch.bool).tril()


#: What code calls, and the same by torch's own function.
SOFTMAX = {
    'all': (lambda q, k, v: flash(q, k, v), lambda q, k, v: attend(q, k, v)),
    'causal': (lambda q, k, v: flash(q, k, v, causal=True), lambda q, k, v: attend(q, k, v, is_causal=True)),
    'shared keys': (lambda q, k, v: flash(q, k[:, :, :1], v[:, :, :1]),
                    lambda q, k, v: attend(q, k[:, :, :1], v[:, :, :1])),
    'window': (lambda q, k, v: flash(q, k, v, causal=True, window_size=(3, 0)),
               lambda q, k, v: attend(q, k, v, torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(-3))),
    'fewer queries': (lambda q, k, v: flash(q[:, -4:], k, v, causal=True),
                      lambda q, k, v: attend(q[:, -4:], k, v, torch.ones(4, LENGTH).bool().tril(LENGTH - 4))),
    'packed': (lambda q, k, v: packed(torch.stack([q, k, v], 2), causal=True),
               lambda q, k, v: attend(q, k, v, is_causal=True)),
    'lengths': (lambda q, k, v: of_lengths(*(each.flatten(0, 1) for each in (q, k, v)), BOUNDS, BOUNDS, LENGTH, LENGTH,
                                           causal=True).unflatten(0, (2, -1)),
                lambda q, k, v: attend(*(each.flatten(0, 1)[None] for each in (q, k, v)), _blocks()).unflatten(
                    1, (2, -1))[0]),
    'xformers': (lambda q, k, v: efficient(q, k, v), lambda q, k, v: attend(q, k, v)),
    'xformers causal': (lambda q, k, v: efficient(q, k, v, LowerTriangularMask()),
                        lambda q, k, v: attend(q, k, v, is_causal=True)),
}


class Attends(Projected):
    def __init__(self, function):
        super().__init__()
        self.out, self.function = nn.Linear(8, 8), function

    def forward(self, x):
        return self.out(self.function(*self.given(x)[:3]).flatten(2))


@pytest.mark.parametrize('case', SOFTMAX)
@every_composite
def test_flash_attention_is_attention(case, composite):
    results = []
    for function in SOFTMAX[case]:
        model, input = made(partial(Attends, function))
        before = Snapshot(model)
        results.append(explain_largest(model, input, composite))
        assert relative(results[-1][0], model(input).detach()) <= 1e-12
        assert_restored(before, model)
    assert relative(results[0][1], results[1][1]) <= 1e-9


@pytest.mark.parametrize('options', [{'softcap': 3.}, {'alibi_slopes': torch.ones(2)}, {'dropout_p': .1}])
def test_flash_attention_that_is_more_than_that_is_refused(options):
    model, input = made(partial(Attends, lambda q, k, v: flash(q, k, v, **options)))
    with pytest.raises(UntrackedTensor, match='cannot see'):
        explain_largest(model, input)


# ---- Liger -----------------------------------------------------------------------------------------------------------

@pytest.mark.zoo
@pytest.mark.filterwarnings('ignore')
def test_a_model_with_the_kernels_of_liger_has_the_map_of_one_without(monkeypatch):
    '''The kernels need a GPU, and what runs in their place does not.'''
    published('transformers')
    pytest.importorskip('liger_kernel.transformers', exc_type=ImportError, reason=(
        'liger-kernel is not installed, and not in an extra: it needs triton'))
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as code

    def relevance():
        torch.manual_seed(0)
        model = code.LlamaForCausalLM(config).double().eval()
        with TokenGradient(model, model.get_input_embeddings(), CPLRP(), select=lambda output: output.logits,
                           compare=False) as attributor:
            return attributor(torch.arange(18).view(2, 9), lambda output: output)[1]
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=50)
    expected = relevance()
    for name in ('LlamaRMSNorm', 'LlamaMLP', 'apply_rotary_pos_emb'):
        monkeypatch.setattr(code, name, getattr(code, name))  # given back after the test
    apply_liger_kernel_to_llama(fused_linear_cross_entropy=False)
    assert code.LlamaRMSNorm.__module__.startswith('liger_kernel')
    assert relative(relevance(), expected) <= 1e-6  # which normalizes in float32
