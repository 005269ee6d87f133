'''Loops over a memory that are written out, of which a map depends on how.'''
import re
from typing import NamedTuple

from ..operators import Kind
from ..operators.kinds import PRODUCTS

#: Through what a memory goes from one step to the next: what is linear in it.
_LINEAR = re.compile(
    r'(Add|Sub|Rsub|Mul|Div|Sum|View|Unsqueeze|Squeeze|Expand|Permute|Transpose|T|Select|Slice|Index|Alias|Clone'
    r'|CopySlices|Copy|Reshape|UnsafeView|AsStrided|Cat|Stack|Neg|ToCopy|Addcmul|Unbind|Split|Diagonal)(Backward\d*)?')
#: The same, where a memory is multiplied by what carries relevance too; without that it is a layer.
_PRODUCTS = re.compile(r'(Bmm|Mm|Mv|Dot|Baddbmm)Backward\d*')
_NODES = 400
#: What computes a recurrence that reads its memory before it writes.
CORRECTING = 'gated_delta_rule or general_delta_rule'


class Loop(NamedTuple):
    '''A loop in which a memory that carries relevance is multiplied by what carries it too.

    Attributes
    ----------
    module: str
        The module whose code it is.
    function: str
        The product.
    operators: str
        What computes such recurrences as one operator.
    line: str
        Where the product is.
    '''
    module: str
    function: str
    operators: str
    line: str


class Loops:
    '''Finds loops: products whose factor is made, in linear steps, of the factor of their last call.'''
    def __init__(self):
        self._last, self._found = {}, {}

    def found(self):
        '''The loops that were found. In code that corrects a memory, those that do so say what it is.'''
        correcting = {loop.module for loop in self._found.values() if loop.operators == CORRECTING}
        return [loop for loop in self._found.values() if loop.module not in correcting or loop.operators == CORRECTING]

    def forget(self):
        '''Let go of the graph, whose hooks hold the recorder.'''
        self._last.clear()

    def note(self, call, where, output):
        '''Look at a product that was shared evenly.'''
        if call.operator.kind not in PRODUCTS or len(call.operands) < 2:
            return
        line = call.forward.locate()[1]
        key = where, line, *(tuple(operand.shape) for operand in call.operands)
        before = self._last.get(key)
        factors = [operand.grad_fn for operand in call.operands]
        self._last[key] = factors, getattr(output, 'grad_fn', None)
        if before is None or key in self._found:
            return
        nodes, result = before
        for factor, node in zip(factors, nodes, strict=False):
            passed = _ancestors(factor, {node, result} - {None})
            if node is not None and factor is not node and node in passed:
                self._found[key] = Loop(where, call.operator.name, _operators(call, result in passed), line)
                return


def _operators(call, feeds_back):
    if call.operator.kind is Kind.MULTIPLY and len({operand.shape for operand in call.operands}) == 1:
        return 'linear_recurrence or selective_scan'
    return CORRECTING if feeds_back else 'gated_linear_attention or causal_dot_product'


def _ancestors(start, wanted):
    '''Which of some nodes a node comes from in linear steps.'''
    found, seen, waiting = set(), set(), [start]
    while waiting and len(seen) < _NODES and found != wanted:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in wanted:
            found.add(node)
        name, parents = node.name().rpartition('::')[2], [parent for parent, _ in node.next_functions]
        if node is start or _LINEAR.fullmatch(name) or _PRODUCTS.fullmatch(name) and None not in parents:
            waiting.extend(parents)
    return found
