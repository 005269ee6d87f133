'''Operator modules: what the code of a module calls, as modules that a composite can give rules to.

:py:class:`~zennit_attn.canonizers.AttentionCanonizer` gives each module whose own code may run operators one child per
type below. A child is found by its type (``LayerMapComposite``) or its name, e.g. ``blocks.0.canonizer_einsum``
(``NameMapComposite``). An operator without a rule of the composite follows the default of its kind.
'''
from functools import cache

from torch.nn import Module, Parameter

from .operators import Kind
from .trees import tensors_in


class OperatorModule(Module):
    '''Base class of the operator modules.

    When a Zennit rule is attached, each call is run through a copy that is bound to the call: a module of the one
    operand that carries relevance, whose parameters are the call's constant tensors (``weight``, and ``bias`` where
    there is one), so that rules that modify parameters (``Gamma``, ``ZPlus``...) work as on
    :py:class:`torch.nn.Linear`.
    '''
    kind: Kind

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if 'kind' in vars(cls):  # what its kind means is said in one place
            cls.__doc__ = f'{cls.kind.sentence}\n\n    {cls.__doc__}'

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
        factors, others = weights_of(call), constants_at(call, lambda position: position not in call.operator.factors)
        biases = others[:1] if call.operator.kind is Kind.LINEAR else []
        for name, tensors in (('weight', factors[:1]), ('bias', biases)):
            for tensor in tensors:
                bound.register_parameter(name, Parameter(tensor, requires_grad=False))
        object.__setattr__(bound, 'call', call)
        object.__setattr__(bound, 'constants', {
            id(tensor): name for name, (tensor, *_) in (('weight', factors or [None]), ('bias', biases or [None]))})
        return bound

    def forward(self, *operands):
        operands = iter(operands)
        return self.call.run_out_of_place(tuple(self._argument(arg, operands) for arg in self.call.args))

    def _argument(self, arg, operands):
        if isinstance(arg, (list, tuple)):
            return type(arg)(self._argument(item, operands) for item in arg)
        if self.call.carries(arg):
            return next(operands)
        return getattr(self, self.constants[id(arg)]) if id(arg) in self.constants else arg


def constants_at(call, holds):
    '''The constant floating point tensors among the arguments at positions for which `holds`.'''
    arguments = [arg for position, arg in enumerate(call.args) if holds(position)]
    return [tensor for tensor in tensors_in(*arguments) if not call.carries(tensor) and tensor.is_floating_point()]


def weights_of(call):
    '''The constant factors of a product: what a rule takes for its weights.'''
    return constants_at(call, lambda position: position in call.operator.factors)


class Rearrange(OperatorModule):
    '''Such as ``reshape``, ``permute``, ``chunk``, ``cat``, indexing, ``masked_fill``.'''
    kind = Kind.REARRANGE


class Select(OperatorModule):
    '''Such as ``max``, ``clamp``, ``sort``.'''
    kind = Kind.SELECT


class Add(OperatorModule):
    '''Such as ``+``, ``-``, ``sum``, ``mean``, ``cumsum``.'''
    kind = Kind.ADD


class Linear(OperatorModule):
    '''Called as functions: ``F.linear``, ``F.conv2d``, ``addmm``, pooling, FFT.'''
    kind = Kind.LINEAR


class Einsum(OperatorModule):
    '''Such as ``einsum``, ``matmul``, ``@``, ``bmm``.'''
    kind = Kind.EINSUM


class Multiply(OperatorModule):
    '''Such as ``*``, ``/``, ``prod``.'''
    kind = Kind.MULTIPLY


class Softmax(OperatorModule):
    '''While a canonizer is applied, modules of :py:class:`torch.nn.Softmax` are of this type too.'''
    kind = Kind.SOFTMAX


class Attention(OperatorModule):
    '''Such as ``F.scaled_dot_product_attention``.'''
    kind = Kind.ATTENTION


class Gate(OperatorModule):
    '''Such as ``exp``, ``sigmoid``, ``rsqrt``, ``norm``.'''
    kind = Kind.GATE


class Activation(OperatorModule):
    '''Called as functions: ``F.gelu``, ``F.silu``, ``tanh``, ``** 2``.'''
    kind = Kind.ACTIVATION


class Normalization(OperatorModule):
    '''Called as functions: ``F.layer_norm``, ``F.rms_norm``, ``F.group_norm``.'''
    kind = Kind.NORMALIZATION


#: The operator modules by kind.
OPERATOR_MODULES = {cls.kind: cls for cls in (
    Rearrange, Select, Add, Linear, Einsum, Multiply, Softmax, Attention, Gate, Activation, Normalization,
)}


@cache
def softmax_type(cls):
    '''Return the type that a module of a softmax class of torch gets, e.g. :py:class:`torch.nn.Softmax`.

    Zennit counts these classes as elementwise activations and would give them ``Pass``. The type returned has the
    class's forward, but is a :py:class:`Softmax` of ours.
    '''
    attributes = {'forward': cls.forward, 'extra_repr': cls.extra_repr, '__module__': __name__}
    return type(cls.__name__, (Softmax,), attributes)


def is_layer(module):
    '''Whether a module is an operator module that stands for a layer of the model, such as torch.nn.Softmax.'''
    return isinstance(module, OperatorModule) and type(module).forward is not OperatorModule.forward
