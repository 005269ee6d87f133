'''Performer, against performer-pytorch with the same weights.'''
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from helpers import assert_closed
from zennit_attn.attention import FastAttention, Performer, PerformerLM
from zennit_attn.attention.fast_attention import (
    ProjectionUpdater,
    gaussian_orthogonal_matrix,
    linear_attention,
    softmax_kernel,
)
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit

from .helpers import assert_close, assert_equal_forward, perturbed, published

SIZE = {'dim': 12, 'depth': 2, 'heads': 3, 'dim_head': 4}
LENGTH, CONTEXT, TOKENS = 21, 8, 11
KERNELS = {
    'favor': {},
    'features': {'nb_features': 11},
    'generalized': {'generalized_attention': True},
    'softplus': {'generalized_attention': True, 'kernel_fn': nn.Softplus()},
    'no_projection': {'no_projection': True},
}
LOCAL = {'global': 0, 'local': 1, 'only-local': 3}
LAYERS = {
    'rezero': {'use_rezero': True},
    'scalenorm': {'use_scalenorm': True},
    'glu': {'ff_glu': True, 'ff_mult': 2},
    'chunks': {'ff_chunks': 4},
    'shift': {'shift_tokens': True},
    'reversible': {'reversible': True},
    'reversible-all': {'reversible': True, 'shift_tokens': True, 'ff_glu': True, 'ff_chunks': 3, 'use_scalenorm': True},
    'local': {'local_attn_heads': (2, 0), 'local_window_size': 6},
    'biases': {'qkv_bias': False, 'attn_out_bias': False},
}
POSITIONS = {
    'rotary': {},
    'axial': {'rotary_position_emb': False, 'axial_position_emb': True, 'axial_position_shape': (8, 4)},
    'absolute': {'rotary_position_emb': False},
}


@pytest.fixture
def package():
    '''The published package; its causal attention then is the one that runs everywhere and in any dtype.'''
    package = published('performer_pytorch.performer_pytorch')
    torch.manual_seed(0)
    return package


def original(cls, options):
    '''An original module whose causal product is plain torch, also where EPFL's float32 extension is installed.'''
    model = cls(**options)
    package = published('performer_pytorch.performer_pytorch')
    for module in model.modules():
        if getattr(module, 'causal_linear_fn', None):
            module.causal_linear_fn = package.causal_linear_attention_noncuda
    return model


def padding(length):
    '''A mask that keeps all tokens of the first, and some of the second sequence.'''
    return torch.stack([torch.ones(length, dtype=torch.bool), torch.arange(length) < length - 3])


def masks(masked, options):
    '''Keyword arguments of a forward pass: masks and a context, where there are.'''
    arguments = {'mask': padding(LENGTH)} if masked else {}
    if options.get('cross_attend'):
        arguments['context'] = torch.randn(2, CONTEXT, SIZE['dim'])
        if masked:
            arguments['context_mask'] = padding(CONTEXT)
    return arguments


def check(package, options, masked):
    '''A performer equals the original.'''
    options = {**SIZE, **options}
    x = torch.randn(2, LENGTH, SIZE['dim'])
    twin = original(package.Performer, options)
    assert_equal_forward(Performer(**options), twin, x, **masks(masked, options))


@pytest.mark.zoo
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('local', LOCAL)
@pytest.mark.parametrize('masked', [False, True])
def test_attention(package, causal, kernel, local, masked):
    # One layer: behind two, rounding errors of the ReLU kernel in float32 are 1e-5 in the original itself.
    options = {'causal': causal, 'local_attn_heads': LOCAL[local], 'local_window_size': 6, **KERNELS[kernel]}
    check(package, {**options, 'depth': 1}, masked)


@pytest.mark.zoo
@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('cross', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_layers(package, layer, causal, cross, masked):
    check(package, {'causal': causal, 'cross_attend': cross, **LAYERS[layer]}, masked)


@pytest.mark.zoo
def test_tokens_of_zeros_have_a_length(package):
    x = torch.randn(2, LENGTH, SIZE['dim'])
    x[:, 3] = 0.
    options = {**SIZE, 'use_scalenorm': True}
    assert_equal_forward(Performer(**options), original(package.Performer, options), x)


@pytest.mark.zoo
@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('masked', [False, True])
def test_cross_attention_kernels(package, kernel, masked):
    check(package, {'cross_attend': True, **KERNELS[kernel]}, masked)


@pytest.mark.zoo
@pytest.mark.parametrize('positions', POSITIONS)
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('local', [0, 1])
def test_language_model(package, positions, causal, tied, local):
    options = {
        **SIZE, 'num_tokens': TOKENS, 'max_seq_len': 32, 'causal': causal, 'tie_embed': tied, 'local_attn_heads': local,
        'local_window_size': 6, **POSITIONS[positions],
    }
    tokens = torch.randint(TOKENS, (2, LENGTH))
    assert_equal_forward(
        PerformerLM(**options), original(package.PerformerLM, options), tokens, mask=padding(LENGTH)
    )


@pytest.mark.zoo
@pytest.mark.parametrize('positions', POSITIONS)
def test_language_model_encodings_with_context(package, positions):
    options = {
        **SIZE, 'num_tokens': TOKENS, 'max_seq_len': 32, 'cross_attend': True, 'qkv_bias': True, 'attn_out_bias': True,
        'reversible': True, 'ff_glu': True, **POSITIONS[positions],
    }
    tokens = torch.randint(TOKENS, (2, LENGTH))
    assert_equal_forward(
        PerformerLM(**options), original(package.PerformerLM, options), tokens, return_encodings=True,
        **masks(True, options)
    )


@pytest.mark.zoo
@pytest.mark.parametrize('scaling', [0, 1])
@pytest.mark.parametrize(('rows', 'columns'), [(4, 4), (11, 4), (3, 8), (16, 8)])
def test_random_features_are_those_of_the_original_up_to_signs(package, scaling, rows, columns):
    torch.manual_seed(1)
    expected = package.gaussian_orthogonal_random_matrix(rows, columns, scaling=scaling)
    torch.manual_seed(1)
    features = gaussian_orthogonal_matrix(rows, columns, scaling=scaling)
    assert_close(features * (features * expected).sum(dim=1, keepdim=True).sign(), expected)


@pytest.mark.parametrize('scaling', [0, 1])
def test_random_features_are_orthogonal_in_blocks(scaling):
    features = gaussian_orthogonal_matrix(10, 4, scaling=scaling).double()
    for block in features.split(4):
        gram = block @ block.T
        assert (gram - gram.diag().diag()).abs().max() < 1e-5 * gram.max()
    assert scaling == 0 or (features.norm(dim=1) - 2).abs().max() < 1e-6


def test_favor_converges_to_softmax_attention():
    # With the directions of a bare QR decomposition the error stays at 0.1 for any number of features.
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 16, 4, dtype=torch.float64) * 0.7
    features = gaussian_orthogonal_matrix(100000, 4)
    q_features, k_features = softmax_kernel(q, features, True, eps=0), softmax_kernel(k, features, False, eps=0)
    exact = (q @ k.mT / 2).softmax(dim=-1) @ v
    assert (linear_attention(q_features, k_features, v) - exact).norm() < 0.03 * exact.norm()


@pytest.mark.zoo
@pytest.mark.parametrize('scaling', [0, 1])
def test_fast_attention_alone(package, scaling):
    twin = package.FastAttention(4, nb_features=9, ortho_scaling=scaling)
    q, k, v = torch.randn(3, 2, 3, LENGTH, 4)
    assert_equal_forward(FastAttention(4, nb_features=9, ortho_scaling=scaling), twin, q, k, v)


@pytest.mark.zoo
def test_redraws_when_the_original_does(package):
    options = {**SIZE, 'feature_redraw_interval': 2}
    models = original(package.Performer, options).train(), Performer(**options).train()
    x, redrawn = torch.randn(2, LENGTH, SIZE['dim']), []
    for _ in range(7):
        before = [model.net.layers[0][0].fn.fast_attention.projection_matrix.clone() for model in models]
        for model in models:
            model(x)
        counts = [int(model.proj_updater.calls_since_last_redraw) for model in models]
        assert counts[0] == counts[1]
        redrawn.append([
            not torch.equal(model.net.layers[0][0].fn.fast_attention.projection_matrix, features)
            for model, features in zip(models, before, strict=True)
        ])
    assert redrawn == [[pass_ in (2, 5)] * 2 for pass_ in range(7)]


def test_fixed_projections_stay():
    model = Performer(**SIZE, feature_redraw_interval=0).train()
    model.fix_projection_matrices_()
    before = model.state_dict()['net.layers.0.0.fn.fast_attention.projection_matrix'].clone()
    model(torch.randn(2, LENGTH, SIZE['dim']))
    assert torch.equal(before, model.state_dict()['net.layers.0.0.fn.fast_attention.projection_matrix'])


def test_evaluation_does_not_count_towards_a_redraw():
    updater = ProjectionUpdater(nn.Linear(1, 1), 0).eval()
    updater.redraw_projections()
    assert updater.calls_since_last_redraw == 0


@pytest.mark.zoo
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('reversible', [False, True])
def test_training_gradients_are_those_of_the_original(package, causal, reversible):
    options = {**SIZE, 'causal': causal, 'reversible': reversible}
    twin = perturbed(original(package.Performer, options)).double().train()
    model = Performer(**options).double().train()
    model.load_state_dict(twin.state_dict())
    x = torch.randn(2, LENGTH, SIZE['dim'], dtype=torch.float64)
    for each in (model, twin):
        each(x.clone().requires_grad_()).square().sum().backward()
    pairs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, pairs[name].grad, 1e-10)


@pytest.mark.parametrize('backend', ['chunked', 'cumsum'])
def test_causal_backends_agree(backend):
    torch.manual_seed(0)
    model = perturbed(Performer(**SIZE, causal=True)).double().eval()
    other = Performer(**SIZE, causal=True, causal_backend=backend).double().eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 150, SIZE['dim'], dtype=torch.float64)
    assert_close(other(x), model(x))


@pytest.fixture
def epfl(package, cuda_branch):
    '''A published causal Performer that calls EPFL's kernel, ours with the same weights, and calls of the kernel.'''
    options, calls = {**SIZE, 'causal': True}, []
    twin = perturbed(package.Performer(**options)).eval()
    functions = [module.causal_linear_fn for module in twin.modules() if isinstance(module, package.FastAttention)]
    assert [function.func.__name__ for function in functions] == ['causal_linear_attention'] * SIZE['depth']
    kernel = cuda_branch.CausalDotProduct.dot['cpu']
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cuda_branch.CausalDotProduct.dot, 'cpu', lambda *args: calls.append(args) or kernel(*args))
        model = Performer(**options, causal_backend='fast_transformers').eval()
        model.load_state_dict(twin.state_dict())
        yield twin, model, calls


def explained(model, x, composite):
    '''Output, relevance of one element a sample, and the ledger.'''
    def target(output):
        chosen = torch.zeros_like(output)
        chosen[:, 11, 3] = 1
        return chosen
    with Gradient(model, composite()) as attributor:
        output, relevance = attributor(x.clone(), target)
    return output.detach(), relevance, audit(model, composite(), x, target, compare=False)  # which calls the extension


@pytest.mark.zoo
def test_epfl_path_of_the_original(epfl):
    twin, model, calls = epfl
    x = torch.randn(2, LENGTH, SIZE['dim'])
    expected = twin(x)
    assert len(calls) == SIZE['depth']
    assert_close(model(x), expected)
    assert len(calls) == 2 * SIZE['depth']


@pytest.mark.zoo
@pytest.mark.parametrize('composite', [CPLRP, AttnLRP])
def test_epfl_path_is_explained(epfl, composite):
    '''The extension cannot be seen, nor its backward pass trusted: our causal product takes its place, or calls it.'''
    twin, model, calls = epfl
    x = torch.randn(2, LENGTH, SIZE['dim'])
    reference = Performer(**SIZE, causal=True).double().eval()
    reference.load_state_dict(twin.state_dict())
    output, expected, _ = explained(reference, x.double(), composite)
    for each, called in ((twin, False), (model, True)):
        calls.clear()
        found = explained(each, x, composite)
        assert bool(calls) == called
        assert_close(found[0], output.float(), 1e-5)
        assert_close(found[1], expected.float(), 1e-4)
        ledger = found[2]
        assert_closed(ledger, 1e-5)
        assert (found[1][:, 12:] == 0).all()


@pytest.mark.zoo
def test_a_wrong_epfl_kernel_is_seen(epfl, cuda_branch, monkeypatch):
    twin, model, _ = epfl
    kernel = cuda_branch.CausalDotProduct.dot['cpu']

    def broken(q, k, v, out):
        kernel(q, k, v, out)
        out *= 1 + 1e-3
    x = torch.randn(2, LENGTH, SIZE['dim'])
    expected = twin(x)
    monkeypatch.setitem(cuda_branch.CausalDotProduct.dot, 'cpu', broken)
    with pytest.raises(AssertionError):
        assert_close(model(x), expected)


@pytest.mark.parametrize('reversible', [False, True])
def test_is_causal(reversible):
    torch.manual_seed(0)
    model = perturbed(Performer(**SIZE, causal=True, reversible=reversible, generalized_attention=True)).double().eval()
    x = torch.randn(1, LENGTH, SIZE['dim'], dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(model(x)[:, 7].sum(), x)
    assert (gradient[:, 8:] == 0).all()
    assert (gradient[:, :8] != 0).all()


def test_optional_packages_are_named(monkeypatch):
    def missing(name):
        raise ImportError(name)
    monkeypatch.setattr('zennit_attn.kernels.checks.import_module', missing)
    with pytest.raises(ImportError, match=r'local-attention: pip install zennit-attn\[zoo\]'):
        Performer(**SIZE, local_attn_heads=1)
    with pytest.raises(ImportError, match=r'axial-positional-embedding: pip install zennit-attn\[zoo\]'):
        PerformerLM(**SIZE, num_tokens=3, max_seq_len=9, **POSITIONS['axial'])


X = torch.zeros(2, 5, 12)
KEEP = torch.ones(2, 5, dtype=torch.bool)
BAD_CALLS = {
    'features': ({}, lambda model: model(X[..., :5]), ValueError, 'x has shape'),
    'axes': ({}, lambda model: model(X[0]), ValueError, 'x has shape'),
    'mask shape': ({}, lambda model: model(X, mask=KEEP[:, :4]), ValueError, r'mask has shape \(2, 4\)'),
    'mask dtype': ({}, lambda model: model(X, mask=KEEP.float()), TypeError, 'torch.float32'),
    'rotary': ({}, lambda model: model(X, pos_emb=torch.zeros(1, 4, 4)), ValueError, '5 tokens.* only 4'),
    'no cross': ({}, lambda model: model(X, context=X), ValueError, 'cross_attend is False'),
    'no context': ({'cross_attend': True}, lambda model: model(X), ValueError, 'needs a context'),
    'context': ({'cross_attend': True}, lambda model: model(X, context=X[..., :4]), ValueError, 'context has shape'),
    'context mask': (
        {'cross_attend': True}, lambda model: model(X, context=X, context_mask=KEEP[:1]), ValueError, 'context_mask',
    ),
}


@pytest.mark.parametrize('case', BAD_CALLS)
def test_refuses_inputs(case):
    options, call, error, message = BAD_CALLS[case]
    with pytest.raises(error, match=message):
        call(Performer(**SIZE, **options))


@pytest.mark.parametrize(('options', 'message'), [
    ({'heads': 5}, '12 is not divisible'),
    ({'heads': 0}, '12 is not divisible'),
    ({'local_attn_heads': 4}, 'local_attn_heads'),
    ({'local_attn_heads': (1, 1, 1)}, 'local_attn_heads'),
    ({'dim_head': 1}, 'random features'),
])
def test_refuses_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        Performer(**{**SIZE, **options})


def test_refuses_other_scalings():
    with pytest.raises(ValueError, match='scaling'):
        gaussian_orthogonal_matrix(4, 4, scaling=2)


@pytest.mark.parametrize(('tokens', 'message'), [
    (torch.zeros(2, 33, dtype=torch.long), '33 tokens.* only 32'),
    (torch.zeros(2, 5), 'expected integers'),
    (torch.zeros(5, dtype=torch.long), 'expected integers'),
])
@pytest.mark.parametrize('positions', ['rotary', 'absolute'])
def test_language_model_refuses(tokens, message, positions):
    model = PerformerLM(**SIZE, num_tokens=TOKENS, max_seq_len=32, **POSITIONS[positions])
    with pytest.raises(ValueError, match=message):
        model(tokens)


def test_rotary_positions_need_pairs():
    with pytest.raises(ValueError, match='even'):
        PerformerLM(num_tokens=3, max_seq_len=4, dim=9, depth=1, heads=3, dim_head=3)
