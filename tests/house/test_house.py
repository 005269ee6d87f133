'''The house plan: imports only point down, public names are documented, and the README's commands are what CI runs.'''
import ast
import inspect
import re
import sys
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = 'zennit_attn'
README = (ROOT / 'README.md').read_text()
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
FLOORS = {
    '__main__': 8, 'cli': 8,
    '': 7, 'demo': 7, 'testing': 7, 'explanation': 7, 'generation': 7,
    'conservation': 6, 'heatmap': 6, 'evaluation': 6, 'recommendation': 6, 'question': 6,
    'composites': 5, 'attribution': 5, 'references': 5,
    'inputs': 5,
    'canonizers': 4, 'rules': 4, 'plain': 4, 'sources': 4, 'seeds': 4,
    'engine': 3,
    'propagation': 2, 'layers': 2,
    'operators': 1, 'attention': 1,
    'pictures': 0, 'kernels': 0, 'trees': 0, 'errors': 0, 'observer': 0,
}
PUBLIC = '''
    attribution canonizers composites conservation errors evaluation heatmap layers references rules seeds testing
    '''.split()


def module_names():
    '''The dotted name of every module of the package, and its file.'''
    for path in sorted((ROOT / PACKAGE).rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        yield '.'.join(part for part in parts if part != '__init__'), path


MODULES = dict(module_names())


def running(node):
    '''The nodes of a tree that are there when the code runs, and not only when its types are checked.'''
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, 'id', None) == 'TYPE_CHECKING'):
            yield from running(child)


def imported(name, source, is_package=False):
    '''The modules of the package that the source of module ``name`` imports, anywhere in it but for its types.'''
    home = name if is_package else name.rpartition('.')[0]
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home.split('.')[:len(home.split('.')) - node.level + 1] if node.level else []
            base = '.'.join([*base, *filter(None, [node.module])])
            submodules = [f'{base}.{alias.name}' for alias in node.names]
            targets = [target for target in submodules if target in MODULES] or [base]
        else:
            continue
        yield from (target for target in targets if target.split('.')[0] == PACKAGE)


def imports():
    '''Every import within the package, as pairs of importing and imported module.'''
    for name, path in MODULES.items():
        for target in imported(name, path.read_text(), path.name == '__init__.py'):
            yield name, target


def floor(name):
    '''The floor of a module: that of the room it lies in.'''
    return FLOORS[(name.split('.') + [''])[1]]


@pytest.mark.parametrize(('source', 'expected'), [
    ('from .engine import Engine', ['zennit_attn.engine']),
    ('from . import engine', ['zennit_attn.engine']),
    ('def f():\n    import zennit_attn.engine as e', ['zennit_attn.engine']),
    ('from zennit_attn import engine, rules', ['zennit_attn.engine', 'zennit_attn.rules']),
    ('import zennit.core, torch\nfrom einops import rearrange', []),
    ('if TYPE_CHECKING:\n    from .engine import Engine', []),
])
def test_imports_are_found(source, expected):
    assert list(imported('zennit_attn.operators', source)) == expected
    lower = source.replace('from .', 'from ..')
    assert list(imported('zennit_attn.attention.vit', lower)) == expected


def test_imports_only_point_down():
    assert len(MODULES) > 10
    upward = [f'{name} (floor {floor(name)}) imports {target} (floor {floor(target)})'
              for name, target in imports() if floor(target) > floor(name)]
    assert not upward


def test_imports_have_no_cycle():
    below = {name: set() for name in MODULES}
    for name, target in imports():
        below[name].add(target)
    while free := [name for name, targets in below.items() if not targets & below.keys()]:
        for name in free:
            del below[name]
    assert not below


def assigned(source):
    '''Attributes that code assigns, as pairs of what holds them and their name, and those that it gives itself.'''
    others, own = set(), set()
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
        for target in targets if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else []:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Attribute):
                    holder = part.value.id if isinstance(part.value, ast.Name) else ast.unparse(part.value)
                    (own if holder in ('self', 'cls') else others).add((holder, part.attr))
    return others, {name for _, name in own}


def room(name):
    return (name.split('.') + [''])[1]


def test_no_room_assigns_attributes_of_another():
    '''What a class of one room keeps is changed by methods of that room alone.'''
    found = {name: assigned(path.read_text()) for name, path in MODULES.items()}
    owners = {}
    for name, (_, own) in found.items():
        for attribute in own:
            owners.setdefault(attribute, set()).add(room(name))
    foreign = [f'{name}: {holder}.{attribute}, of {owners[attribute]}' for name, (others, _) in found.items()
               for holder, attribute in others
               if attribute in owners and room(name) not in owners[attribute] and holder != 'ctx']
    assert not foreign


def test_assignments_are_found():
    source = 'self.a = 1\nengine.source: int = 2\ncall.b, x.y.c = 3, 4\nself.d += 1'
    assert assigned(source) == ({('engine', 'source'), ('call', 'b'), ('x.y', 'c')}, {'a', 'd'})


#: What knows no relevance: the reference attention, and the kernels that it is made of.
INNOCENT = tuple(f'zennit_attn.{room}' for room in (
    'attention', 'kernels.causal', 'kernels.delta', 'kernels.recurrent', 'kernels.scan', 'kernels.checks'))


def test_reference_attention_knows_no_relevance():
    outside = [(name, target) for name, target in imports()
               if name.startswith(INNOCENT) and not target.startswith(INNOCENT)]
    assert not outside


@pytest.mark.parametrize('name', MODULES)
def test_modules_say_what_they_are_for(name):
    source = MODULES[name].read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source))


def test_docstrings_have_one_form():
    '''Parameters are written ``dim: int``, without a space before the colon.'''
    spaced = re.compile(r'^ +\*{0,2}\w+(, \*{0,2}\w+)* : ', re.MULTILINE)
    assert spaced.search('    dim, heads : int')
    assert not [name for name, path in MODULES.items() if spaced.search(path.read_text())]


def public_members(module):
    '''The public classes, functions and methods that a module defines, by dotted name.'''
    for name, member in vars(module).items():
        if name.startswith('_') or getattr(member, '__module__', None) != module.__name__:
            continue
        if inspect.isclass(member):
            yield name, member.__doc__
            for attribute in vars(member):
                if not attribute.startswith('_') and callable(getattr(member, attribute)):
                    yield f'{name}.{attribute}', inspect.getdoc(getattr(member, attribute))
        elif inspect.isfunction(member):
            yield name, member.__doc__


@pytest.mark.parametrize('room', [room for room in PUBLIC if f'{PACKAGE}.{room}' in MODULES])
def test_public_names_are_documented(room):
    modules = [import_module(name) for name in MODULES if f'{name}.'.startswith(f'{PACKAGE}.{room}.')]
    members = {f'{module.__name__}.{name}': doc for module in modules for name, doc in public_members(module)}
    assert members
    assert not [name for name, doc in members.items() if not doc]


def test_console_script_resolves():
    script, = (entry for entry in entry_points(group='console_scripts') if entry.name == 'zennit-attn')
    assert script.value == PROJECT['scripts']['zennit-attn']
    assert callable(script.load())


def commands():
    '''The README's commands, found as .ci/run finds them.'''
    pattern, = re.findall(r"grep '(\^python -m venv )' README\.md", (ROOT / '.ci' / 'run').read_text())
    return [line for line in README.splitlines() if re.match(pattern, line)]


def test_readme_commands_are_two_and_use_what_there_is():
    demo, test = commands()
    assert demo.endswith('.venv/bin/zennit-attn demo')
    assert test.endswith('.venv/bin/pytest')
    extras = set(','.join(re.findall(r'\.\[([\w,]+)\]', demo + test)).split(','))
    assert extras <= PROJECT['optional-dependencies'].keys()


def test_lowest_versions_are_tested():
    pinned = re.findall(r'^([\w-]+)==([\d.]+?)(?:\.\*)?$', (ROOT / '.ci' / 'lowest.txt').read_text(), re.MULTILINE)
    lowest = {f'{name}>={version}' for name, version in pinned}
    assert lowest >= set(PROJECT['dependencies'])


def test_readme_code_runs(capsys):
    names = {}
    for code in re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL):
        exec(compile(code, 'README.md', 'exec'), names)
    assert names['relevance'].shape == names['input'].shape
    assert 'unaccounted' in capsys.readouterr().out.splitlines()[-1]


def test_readme_links_lead_somewhere():
    targets = re.findall(r'\]\((?!https?:)([^)#]+)', README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
