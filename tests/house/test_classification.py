'''Every function of torch has one kind or one reason to be refused, and does what its kind says.'''
import re
import runpy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.overrides import get_ignored_functions, get_overridable_functions, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

from versions import TORCH, release
from zennit_attn.operators import NAMES, TABLE, Kind, base_name, lookup
from zennit_attn.operators.refusals import GROUPS, REASONS, UNKNOWN, reason

DOCS = Path(__file__).parents[2] / 'docs'
KINDS = {name: kind for kind, names in NAMES.items() for name in names.split()}
SPACES = (torch.nn.functional, torch.special, torch.fft, torch.linalg)
FUNCTIONS = [function for functions in get_overridable_functions().values() for function in functions]


GIVE = 'give these functions a kind in operators/names.py, or a reason in operators/refusals.py'


def unclassified(names):
    return sorted(name for name in names if name not in KINDS and reason(name) == UNKNOWN)


def test_every_overridable_function_is_classified():
    names = {base_name(resolve_name(function)) for function in FUNCTIONS}
    assert len(names) > 800
    assert not unclassified(names), GIVE


@pytest.mark.parametrize('space', SPACES, ids=lambda space: space.__name__)
def test_every_function_of_a_namespace_is_classified(space):
    '''Functions that never hand over consist of others, or make new tensors.'''
    members = {name: getattr(space, name) for name in dir(space) if not name.startswith('_')}
    functions = {name: member for name, member in members.items()
                 if type(member).__name__ in ('function', 'builtin_function_or_method')
                 and member not in get_ignored_functions()}
    assert functions
    assert not unclassified(map(base_name, functions)), GIVE


def test_an_unclassified_function_is_found():
    assert unclassified(['add', 'matrix_exp', 'brand_new']) == ['brand_new']


def test_every_name_has_one_kind_or_one_reason():
    names = [name for words in (*NAMES.values(), *GROUPS.values()) for name in words.split()]
    assert not sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize('why', GROUPS)
def test_reasons_are_one_clause(why):
    assert re.fullmatch(r'[^\n.]*(\.\w[^\n]*)*[^\n.]', why)
    assert GROUPS[why].split()


#: Written with underscores in torch, or reached by operators of torch.ops.aten only.
HIDDEN = ('pad_packed_sequence', 'pack_padded_sequence', 'scaled_grouped_mm_v2', 'scaled_mm_v2', 'sparse_mm')
#: The first version with some names, where that is not the oldest supported one.
SINCE = {
    '2.6': 'clear_non_serializable_cached_data sym_sum', '2.7': 'scaled_grouped_mm', '2.8': 'grouped_mm',
    '2.9': 'hash_tensor', '2.10': 'grad_dtype scaled_grouped_mm_v2 scaled_mm_v2',
    '2.13': 'const_data_ptr linear_cross_entropy', '2.14': 'matrix_sqrth',
    '2.15': 'has_grad_dtype_override scaled_addmm',
}
#: The first version without some names: 2.13 has no named tensors any more.
UNTIL = {'2.13': 'align_as align_to has_names names refine_names rename update_names'}


def exists(name):
    spaces = (torch, torch.Tensor, torch.functional, torch.sparse, *SPACES, torch._VF, torch.ops.aten)
    forms = (name, f'_{name}', f'{name}_', f'__{name}__', f'_{name}_')
    return any(hasattr(space, form) for space in spaces for form in forms)


@pytest.mark.parametrize('names', [KINDS, REASONS], ids=['kinds', 'reasons'])
def test_names_exist(names):
    known = {base_name(resolve_name(function)) for function in FUNCTIONS}
    other = [words for version, words in SINCE.items() if release(version) > TORCH]
    other += [words for version, words in UNTIL.items() if release(version) <= TORCH]
    known.update(' '.join(other).split())
    assert not sorted(name for name in names if name not in known and not exists(name))


def test_setters_and_overwriting_have_reasons():
    setter, overwriting = lookup(torch.Tensor.data.__set__), lookup(torch.Tensor.bernoulli_)
    assert 'attribute' in reason(setter.name, setter)
    assert 'writes' in reason(overwriting.name, overwriting)


def test_page_is_what_its_generator_writes():
    written, script = (DOCS / 'operators.md').read_text(), runpy.run_path(str(DOCS / 'tables' / 'operators.py'))
    version = re.search(r'with torch (\d+\.\d+)', written)[1]
    if not torch.__version__.startswith(f'{version}.'):
        pytest.skip(f'docs/operators.md was written with torch {version}, this is {torch.__version__}')
    assert re.sub('torch [0-9.]+', '', written) == re.sub('torch [0-9.]+', '', script['page']())


# what kinds promise, on the samples of torch's own tests

def random(name):
    return 'dropout' in name or name in ('rrelu', 'fractional_max_pool2d', 'fractional_max_pool3d', 'empty_like')


def is_real(leaves):
    return leaves and all(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves)


@cache
def samples(kind):
    '''Functions, their float64 operand (max_norm would write into it) and other arguments, by base name.'''
    pytest.importorskip('expecttest', reason="torch's samples need expecttest")
    from torch.testing._internal.common_methods_invocations import op_db
    found = {}
    for op in op_db:
        name = base_name(op.name)
        if KINDS.get(name) is kind and torch.float64 in op.dtypes and not random(name):
            for _, sample in zip(range(8), op.sample_inputs('cpu', torch.float64, requires_grad=False), strict=False):
                if not sample.kwargs.get('max_norm') and is_real(tree_leaves(sample.input)):
                    found.setdefault(name, []).append((op.op, sample.input, sample.args, sample.kwargs))
    return found


def run(function, x, args, kwargs):
    return [leaf for leaf in tree_leaves(function(x, *args, **kwargs)) if isinstance(leaf, torch.Tensor)]


def scaled(x, factor):
    return tree_map_only(torch.Tensor, lambda leaf: leaf * factor, x)


def differs(left, right):
    return any(a.is_floating_point() and not torch.allclose(a, b, rtol=1e-6, atol=1e-8, equal_nan=True)
               for a, b in zip(left, right, strict=True))


def is_affine(function, x, args, kwargs):
    zero, one, two = (run(function, scaled(x, factor), args, kwargs) for factor in (0., 1., 2.))
    return not differs([b - a for a, b in zip(zero, one, strict=True)], [b - a for a, b in zip(one, two, strict=True)])


def failing(kind, holds, exceptions=''):
    found = samples(kind)
    assert len(found) > 4
    return sorted(name for name, calls in found.items()
                  if name not in exceptions.split() and not all(holds(*call) for call in calls))


#: Torch's samples include deprecated forms, and partly sparse tensors.
quiet = pytest.mark.filterwarnings('ignore::UserWarning')


@quiet
@pytest.mark.parametrize('kind', [Kind.REARRANGE, Kind.ADD, Kind.LINEAR, Kind.EINSUM], ids=lambda kind: kind.value)
def test_sums_and_products_are_affine_in_one_operand(kind):
    # lists of operands are all factors; the matrix of equations is the operand that is a gate
    # scaling makes a strided tensor compact, which as_strided sees
    exceptions = {Kind.REARRANGE: 'as_strided as_strided_copy as_strided_scatter', Kind.EINSUM: 'multi_dot einsum',
                  Kind.LINEAR: 'solve solve_ex tensorsolve solve_triangular'}
    assert not failing(kind, is_affine, exceptions.get(kind, ''))


def vanishes_at_zero(function, x, args, kwargs):
    '''Whether the output is zero at zero, and of the shape of the input.'''
    zero, (y,) = run(function, scaled(x, 0.), args, kwargs)[0], run(function, x, args, kwargs)
    return not zero.nan_to_num().any() and y.shape == x.shape


@quiet
def test_activations_vanish_at_zero():
    # powers below one, to tensors or broadcast
    assert not failing(Kind.ACTIVATION, vanishes_at_zero, 'pow float_power copysign')


def test_what_has_a_kind_is_in_the_table():
    assert lookup(torch.add).kind is Kind.ADD
    assert TABLE[torch.add] is lookup(torch.add)
    assert all(lookup(function).kind is not Kind.REFUSED or reason(lookup(function).name) != UNKNOWN
               for function in FUNCTIONS)
