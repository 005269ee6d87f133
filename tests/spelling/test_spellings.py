'''Each function in several spellings: equal outputs, equal maps, closed ledgers; and as graphs of ATen.'''
import re
import runpy
from pathlib import Path

import pytest
import torch

from cases.spellings import SPELLINGS
from cases.spellings.others import OTHER_GRAPHS, OTHER_MAPS, REFUSED_GRAPHS, WITHOUT_GRADIENT
from helpers import assert_closed, explain, largest
from versions import since
from zennit_attn.conservation import audit
from zennit_attn.errors import UnsupportedOperator

from .graphs import exported, traced, written
from .measure import COMPOSITES, built, difference, difference_of, explained, meant

DOCS = Path(__file__).parents[2] / 'docs'
every_function = pytest.mark.parametrize('function', SPELLINGS)
every_composite = pytest.mark.parametrize('composite', COMPOSITES)


def test_there_are_enough():
    assert len(SPELLINGS) >= 60
    assert all(len(spellings) >= 3 for spellings in SPELLINGS.values())


def test_tables_name_what_exists():
    named = [*OTHER_MAPS, *OTHER_GRAPHS, *REFUSED_GRAPHS, *WITHOUT_GRADIENT]
    assert not [name for name in named if name[1] not in SPELLINGS.get(name[0], ())]


@every_function
def test_outputs_are_equal(function):
    outputs = {name: explained(function, name, 'CPLRP')[0] for name in SPELLINGS[function]}
    model, input = built(function, meant(function))
    outputs['without a context'] = model(input.clone())
    expected = outputs[meant(function)]
    assert not [name for name, output in outputs.items() if not (output - expected).abs().max() <= 1e-10]


@every_composite
@every_function
def test_maps_are_equal_but_for_those_that_are_listed(function, composite):
    '''A spelling that is listed has to differ, so that the list stays true.'''
    other = [name for name in SPELLINGS[function] if not difference_of(function, name, composite) <= 1e-9]
    assert other == [name for name in SPELLINGS[function] if (function, name, composite) in OTHER_MAPS]


@every_composite
@every_function
def test_ledgers_close(function, composite):
    for name in SPELLINGS[function]:
        model, input = built(function, name)
        assert_closed(audit(model, COMPOSITES[composite](), input, largest))
        assert explained(function, name, composite)[1].abs().amax((1, 2)).all()


def differences_of_graph(function, spelling, graph, input):
    '''The composites under which the map of a graph is not that of its code.'''
    found = []
    for composite, kind in COMPOSITES.items():
        output, relevance = explain(graph, input, kind, largest)
        expected, expected_map = explained(function, spelling, composite)
        assert (output - expected).abs().max() <= 1e-10
        if not difference(relevance, expected_map) <= 1e-9:
            found.append((function, spelling, composite))
    return found


@every_function
def test_graphs_of_aten(function):
    '''Every spelling; a graph is a spelling, which makes no difference but for those that are listed.'''
    for spelling in SPELLINGS[function]:
        model, input = built(function, spelling)
        graph = written(model, input)
        key = function, spelling
        if key in REFUSED_GRAPHS:
            with pytest.raises(UnsupportedOperator, match=REFUSED_GRAPHS[key]):
                explain(graph, input, target=largest)
        elif key not in WITHOUT_GRADIENT:
            found = differences_of_graph(function, spelling, graph, input)
            assert found == [name for name in OTHER_GRAPHS if name[:2] == key]


@every_function
@pytest.mark.parametrize('graph_of', [
    traced, pytest.param(exported, marks=since('2.8', 'torch 2.5 takes normalizations apart, and warns of constants'))])
def test_graphs_of_torch(function, graph_of):
    '''The spelling that is meant, by ``make_fx`` and by ``torch.export``, which keeps normalizations whole.'''
    key = function, meant(function)
    model, input = built(*key)
    graph = graph_of(model, input)
    if graph_of is traced and key in REFUSED_GRAPHS:
        with pytest.raises(UnsupportedOperator, match=REFUSED_GRAPHS[key]):
            explain(graph, input, target=largest)
    elif graph_of is exported or key not in WITHOUT_GRADIENT:
        assert differences_of_graph(*key, graph, input) == [name for name in OTHER_GRAPHS if name[:2] == key]


@pytest.mark.parametrize(('function', 'spelling'), sorted(WITHOUT_GRADIENT))
def test_graphs_without_a_gradient_have_none_in_torch_either(function, spelling):
    model, input = built(function, spelling)
    graph = written(model, input)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        graph(input.clone().requires_grad_()).sum().backward()


def test_page_is_what_its_script_writes():
    page, script = (DOCS / 'mathematics' / 'spellings.md').read_text(), runpy.run_path(
        str(DOCS / 'tables' / 'spellings.py'))
    version = re.search(r'with torch (\d+\.\d+)', page)[1]
    if not torch.__version__.startswith(f'{version}.'):
        pytest.skip(f'docs/mathematics/spellings.md was written with torch {version}, this is {torch.__version__}')
    assert re.sub('torch [0-9.]+', '', page) == re.sub('torch [0-9.]+', '', script['page']())
