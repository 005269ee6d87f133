'''Operator modules: what the code of a module calls, as modules that a composite can give rules to.

:py:class:`~zennit_attn.canonizers.AttentionCanonizer` gives each module whose own code may run operators one child per
type below. A child is found by its type (``LayerMapComposite``) or its name, e.g. ``blocks.0.canonizer_einsum``
(``NameMapComposite``). An operator without a rule of the composite follows the default of its kind.
'''
from functools import cache

import torch
from torch.nn import Module, Parameter

from .operators import Kind


class OperatorModule(Module):
    '''Base class of the operator modules.

    When a Zennit rule is attached, each call is run through a copy that is bound to the call: a module of the one operand
    that carries relevance, whose parameters are the call's constant tensors (``weight``, and ``bias`` where there is one),
    so that rules that modify parameters (``Gamma``, ``ZPlus``...) work as on :py:class:`torch.nn.Linear`.
    '''
    kind = None

    def forward(self, *args):
        '''Run the call this copy is bound to.

        Parameters
        ----------
        *args: tuple of :py:class:`torch.Tensor`
            The operands that carry relevance.

        Raises
        ------
        RuntimeError
            If the module is not bound to a call.
        '''
        raise RuntimeError(f'{type(self).__name__} marks where operators run; it is called by the engine only')

    @classmethod
    def bind(cls, call):
        '''Return a module that computes `call` as a function of its carrying operands.

        Parameters
        ----------
        call: :py:class:`~zennit_attn.propagation.Call`

        Returns
        -------
        :py:class:`OperatorModule`
        '''
        return _Bound.of(cls, call)

    def extra_repr(self):
        return ''


class _Bound:
    '''Mix-in of an operator module that is bound to a call.'''
    @staticmethod
    @cache
    def type_for(cls):
        return type(cls.__name__, (_Bound, cls), {})

    @classmethod
    def of(cls, operator_type, call):
        bound = cls.type_for(operator_type)()
        object.__setattr__(bound, 'call', call)
        weights = [arg for arg in call.args[:2] if _is_constant(call, arg)]
        for name, tensor in zip(('weight',), weights, strict=False):
            bound.register_parameter(name, Parameter(tensor, requires_grad=False))
        if call.operator.kind is Kind.LINEAR and len(call.args) > 2 and _is_constant(call, call.args[2]):
            bound.register_parameter('bias', Parameter(call.args[2], requires_grad=False))
        object.__setattr__(bound, 'constants', tuple(weights[:1]))
        return bound

    def forward(self, *operands):
        operands = iter(operands)
        return self.call.run_out_of_place(tuple(self._argument(index, arg, operands)
                                                for index, arg in enumerate(self.call.args)))

    def _argument(self, index, arg, operands):
        if isinstance(arg, (list, tuple)):
            return type(arg)(self._argument(index, item, operands) for item in arg)
        if self.call.carries(arg):
            return next(operands)
        if self.constants and arg is self.constants[0]:
            return self.weight
        return self.bias if index == 2 and hasattr(self, 'bias') else arg


def _is_constant(call, arg):
    return isinstance(arg, torch.Tensor) and not call.carries(arg) and arg.is_floating_point()


class Rearrange(OperatorModule):
    '''Moves values without changing them: ``rearrange``, ``reshape``, ``chunk``, ``cat``, indexing, ``masked_fill``...'''
    kind = Kind.REARRANGE


class Select(OperatorModule):
    '''Picks values depending on the data: ``max``, ``clamp``, ``sort``...'''
    kind = Kind.SELECT


class Add(OperatorModule):
    '''Sums: ``+``, ``-``, ``sum``, ``mean``, ``cumsum``...'''
    kind = Kind.ADD


class Linear(OperatorModule):
    '''Weights times input plus bias, called as a function: ``F.linear``, ``F.conv2d``, ``addmm``, pooling, FFT...'''
    kind = Kind.LINEAR


class Einsum(OperatorModule):
    '''Contractions: ``einsum``, ``matmul``, ``@``, ``bmm``...'''
    kind = Kind.EINSUM


class Multiply(OperatorModule):
    '''Elementwise products and quotients: ``*``, ``/``, ``prod``...'''
    kind = Kind.MULTIPLY


class Softmax(OperatorModule):
    '''Softmax, a gate. While a canonizer is applied, modules of :py:class:`torch.nn.Softmax` are of this type too.'''
    kind = Kind.SOFTMAX


class Attention(OperatorModule):
    '''Fused softmax attention: ``F.scaled_dot_product_attention``.'''
    kind = Kind.ATTENTION


class Gate(OperatorModule):
    '''Functions that do not vanish at zero, deviations and reciprocals: ``exp``, ``sigmoid``, ``rsqrt``, ``norm``...'''
    kind = Kind.GATE


class Activation(OperatorModule):
    '''Activations that vanish at zero, called as functions: ``F.gelu``, ``F.silu``, ``tanh``, ``** 2``...'''
    kind = Kind.ACTIVATION


class Normalization(OperatorModule):
    '''Normalizations, called as functions: ``F.layer_norm``, ``F.rms_norm``, ``F.group_norm``...'''
    kind = Kind.NORMALIZATION


#: The operator modules by kind.
OPERATOR_MODULES = {cls.kind: cls for cls in (
    Rearrange, Select, Add, Linear, Einsum, Multiply, Softmax, Attention, Gate, Activation, Normalization,
)}


@cache
def softmax_type(cls):
    '''Return the type that a module of a softmax class of torch gets, e.g. :py:class:`torch.nn.Softmax`.

    Zennit counts these classes as elementwise activations and would give them ``Pass``. The type returned has the class's
    forward, but is a :py:class:`Softmax` of ours.
    '''
    return type(cls.__name__, (Softmax,), {'forward': cls.forward, 'extra_repr': cls.extra_repr, '__module__': __name__})
