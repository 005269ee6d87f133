'''Rules: Zennit hooks for operators and for the modules that consist of one.

Each rule works in two places. On an operator module inside a context with
:py:class:`~zennit_attn.canonizers.AttentionCanonizer` the engine asks for :py:meth:`OperatorRule.operate`. On a plain
module under stock Zennit it is a :py:class:`~zennit.core.Hook` like any other: relevance in, relevance out.
'''
import torch
from zennit.core import Hook, Stabilizer
from zennit.rules import Gamma as ZennitGamma

from . import propagation
from .engine import Engine, engine_of
from .engine.module_calls import addresses, check_active, check_parameters
from .errors import ContextError
from .kernels import GammaLinear, LinearMap, gamma_gradient
from .operators import Kind
from .trees import tensors_in


class OperatorRule(Hook):
    '''Base class of the rules.

    On a module, the module's forward is run in the backward pass with the rule in place of the defaults of its `kinds`,
    and ``R_x = x * J^T (R_z / (z + eps sign(z)))``, with the Jacobian as the rules define it.

    Parameters
    ----------
    stabilizer: callable or float, optional
        Stabilization of the outputs on a module. If a float, it is added to the denominator with the sign of each
        entry. See :py:class:`zennit.core.Stabilizer`.
    '''
    #: The kinds of operators inside a module which follow the rule.
    kinds = frozenset()

    def __init__(self, stabilizer=1e-6):
        super().__init__()
        self.stabilizer = stabilizer

    @staticmethod
    def operate(call):
        '''Run an operator such that autograd's backward pass is the rule, in the gradient domain.

        Parameters
        ----------
        call: :py:class:`~zennit_attn.propagation.Call`

        Returns
        -------
        object
            What the operator returns.
        '''
        raise NotImplementedError

    def forward(self, module, args, output):
        '''Store the inputs.

        Parameters
        ----------
        module: :py:class:`torch.nn.Module`
        args: tuple
            The positional inputs of the module.
        output: :py:class:`torch.Tensor`
        '''
        self.stored_tensors['input'] = args

    def backward(self, module, grad_input, grad_output):
        '''Compute the relevance of the inputs.

        Parameters
        ----------
        module: :py:class:`torch.nn.Module`
        grad_input: tuple of :py:class:`torch.Tensor`
            The plain gradients, of which the number counts.
        grad_output: tuple of :py:class:`torch.Tensor`
            The relevance of the outputs.

        Returns
        -------
        tuple of :py:class:`torch.Tensor`
            The relevance of each input, of the input's shape; None for inputs that are not floating point.
        '''
        inputs = self.stored_tensors['input']
        leaves = [arg.detach().requires_grad_() if _is_float(arg) else arg for arg in inputs]
        carrying = [leaf for leaf in leaves if _is_float(leaf)]
        outer = engine_of(module)
        engine = Engine(module, self.stabilizer, veil=None if outer is None else outer.veil)
        with torch.enable_grad():
            output = engine.run(module.forward, tuple(leaves), {}, dict.fromkeys(self.kinds, self.operate))
        outputs = tensors_in(output)
        relevance = iter(torch.autograd.grad(outputs, carrying, grad_output[:len(outputs)], allow_unused=True))
        return tuple(next(relevance) if _is_float(leaf) else None for leaf in leaves if isinstance(leaf, torch.Tensor))

    def copy(self):
        '''Return a copy of this rule, with its arguments.'''
        return type(self)(stabilizer=self.stabilizer)


def _is_float(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


class Constant(OperatorRule):
    '''View the output as a constant that passes no relevance on: ``R_x = 0``.

    For gates, i.e. tensors that weigh others, such as softmax attention [1]_. A product of a gate and values then is
    linear in the values, and conserves. What arrives at a gate itself, because it is not only multiplied, ends there.

    Parameters
    ----------
    stabilizer: callable or float, optional
        Accepted for uniformity; the rule divides by nothing.

    References
    ----------
    .. [1] L. Arras, J. Arjona-Medina, M. Widrich, G. Montavon, M. Gillhofer, K.-R. Müller, S. Hochreiter, and W. Samek:
           "Explaining and interpreting LSTMs," in: Explainable AI, 2019 (LRP-all: the gate is a constant);
           A. Ali, T. Schnake, O. Eberle, G. Montavon, K.-R. Müller, and L. Wolf: "XAI for transformers: better
           explanations through conservative propagation," ICML 2022, section 4.
    '''
    kinds = frozenset(Kind) - {Kind.PLAIN, Kind.REFUSED}
    operate = staticmethod(propagation.constant)

    def forward(self, module, args, output):
        '''Nothing needs to be stored.'''

    def backward(self, module, grad_input, grad_output):
        '''Return zeros in the shape of each input.'''
        return tuple(None if grad is None else torch.zeros_like(grad) for grad in grad_input)

    def call_module(self, forward, module, function, args, kwargs):
        '''Call a module so that its backward pass is never run.'''
        with torch.no_grad():
            return function(*args, **kwargs)


class LRPZero(OperatorRule):
    '''LRP-0 of whatever is linear: ``R_x = x * J^T (R_z / z)``, which in the gradient domain is plain autograd.

    Conserves up to constants that are added, e.g. biases.
    '''
    kinds = frozenset({Kind.ADD, Kind.LINEAR, Kind.EINSUM, Kind.MULTIPLY})
    operate = staticmethod(propagation.proportional)


class Uniform(OperatorRule):
    '''Share relevance evenly among the `n` factors of a product: ``R_x = x * J^T (R_z / z) / n``.

    Conserves exactly: a product is linear in each factor, so each receives ``R / n``. AttnLRP's rule for products [1]_.

    References
    ----------
    .. [1] R. Achtibat, S. M. V. Hatefi, M. Dreyer, A. Jain, T. Wiegand, S. Lapuschkin, and W. Samek: "AttnLRP:
           attention-aware layer-wise relevance propagation for transformers," ICML 2024.
    '''
    kinds = frozenset({Kind.EINSUM, Kind.MULTIPLY, Kind.LINEAR})

    @staticmethod
    def operate(call):
        '''Run the product with divided gradients; quotients keep their denominator constant.'''
        return propagation.multiply(call) if call.operator.kind is Kind.MULTIPLY else propagation.uniform(call)


class Identity(OperatorRule):
    '''Pass relevance through an elementwise activation: ``R_x = R_y``, so ``g_x = g_y * y / x``.

    Needs ``a(0) = 0``. Zennit calls it :py:class:`~zennit.rules.Pass`.
    '''
    kinds = frozenset({Kind.ACTIVATION})
    operate = staticmethod(propagation.activation)

    def backward(self, module, grad_input, grad_output):
        '''Return the relevance of the output.'''
        return grad_output


class ConstantDeviation(OperatorRule):
    '''Normalization with its deviation held constant: ``y = (x - mean(x)) / std w + b`` is linear in `x`.

    The bias absorbs ``sum(b * g_y)``. See Ali et al. (ICML 2022), section 4.
    '''
    kinds = frozenset({Kind.NORMALIZATION})
    operate = staticmethod(propagation.normalization)


class TaylorSoftmax(OperatorRule):
    '''The softmax rule of AttnLRP: ``R_x = x * (R_y - y * sum(R_y))``.

    It is the first-order Taylor expansion at `x`, whose hidden bias absorbs relevance: a sink. It is the rule of
    AttnLRP (Achtibat et al., ICML 2024). In the gradient domain it is plain autograd of the softmax.
    '''
    kinds = frozenset({Kind.SOFTMAX, Kind.ATTENTION})
    operate = staticmethod(propagation.taylor_softmax)


class Taylor(OperatorRule):
    r'''First-order Taylor expansion: ``R_x = x * dy/dx * R_y / y``, with normalizers and deviations as constants.

    Of :math:`y = f(x_1, x_2, \ldots)` each operand receives :math:`x_k \, \partial f / \partial x_k`, and the hidden
    bias of the expansion absorbs the rest [1]_: a sink, which is negative where each of several factors is credited
    with all of their product. In the gradient domain it is plain autograd, through products, softmaxes, feature maps
    and activations alike. Denominators, deviations and roots stay constants.

    Given to a module, it holds for all operators inside. Blocks whose queries and keys are gates by their family
    (Performer's ``FastAttention``, fast weights) let them carry relevance. The ledger has the hidden bias by formula:
    :math:`(1 - n) \, y` of a product of `n` factors, :math:`y - x \, y'(x)` of a function of each element, that of
    AttnLRP of a softmax; of few others (the delta rule, fused products and sums) it is what is left over.

    References
    ----------
    .. [1] G. Montavon, S. Lapuschkin, A. Binder, W. Samek, and K.-R. Müller: "Explaining nonlinear classification
           decisions with deep Taylor decomposition," Pattern Recognition 65, 2017; for the softmax, R. Achtibat et al.,
           ICML 2024.
    '''
    kinds = propagation.EXPANDED
    operate = staticmethod(propagation.taylor)

    def rules_inside(self):
        '''Return the rules by kind of operator that hold inside of a module.'''
        return dict.fromkeys(self.kinds, self.operate)


class Secant(OperatorRule):
    r'''Differences from a reference: every operator by its secant, so that ``sum (x - x0) g_x = (y - y0) g_y``.

    It is the rule of a model as a whole. For an input `x` and a reference `x0` the relevance of the input adds up to
    :math:`f(x) - f(x_0)`: constants, positions and biases are the same in both and absorb nothing. See
    :py:class:`~zennit_attn.composites.Difference`, which has the formulas.

    Parameters
    ----------
    reference: :py:class:`torch.Tensor`, callable or float, optional
        The reference. See :py:class:`~zennit_attn.composites.Difference`.
    norm: {'full', 'now'}, optional
        Whether normalizers have a secant too, or are constants.
    stabilizer: callable or float, optional
        Accepted for uniformity; the rule divides by nothing.
    '''
    kinds = frozenset(propagation.DIFFERENCES)

    def __init__(self, reference=0., norm='full', stabilizer=1e-6):
        super().__init__(stabilizer=stabilizer)
        if norm not in ('full', 'now'):
            raise ValueError(f"norm must be 'full' or 'now', got {norm!r}")
        self.reference = reference
        self.norm = norm

    def copy(self):
        '''Return a copy of this rule, with its arguments.'''
        return type(self)(reference=self.reference, norm=self.norm, stabilizer=self.stabilizer)

    def rules_inside(self):
        '''Return the rules by kind of operator that hold inside of the model.'''
        return propagation.DIFFERENCES if self.norm == 'full' else propagation.NORMALIZERS_NOW

    def operate(self, call):
        '''Run an operator by the rule of its kind, where the model consists of it alone.'''
        return self.rules_inside()[call.operator.kind](call)

    def backward(self, module, grad_input, grad_output):
        '''Refuse to explain a module by itself: there is no reference for its input.'''
        raise ContextError('the rule Secant explains a model as a whole, with AttentionCanonizer; use the composite '
                           'zennit_attn.composites.Difference')


class Gamma(ZennitGamma):
    r'''Zennit's generalized gamma rule [1]_ in four products instead of ten.

    With :math:`p_j = \sum_i (x_i w_{ij})^+` and :math:`n_j = \sum_i (x_i w_{ij})^-` the rule is

    .. math::

        R_i = \sum_j \left( x_i w_{ij} + \gamma (x_i w_{ij})^+ \right) s_j^+
              + \left( x_i w_{ij} + \gamma (x_i w_{ij})^- \right) s_j^-

        s_j^+ = [z_j > 0] \, R_j / (z_j + \gamma (p_j + b_j^+)) \quad
        s_j^- = [z_j < 0] \, R_j / (z_j + \gamma (n_j + b_j^-))

    Since :math:`(x w)^\pm = (x w \pm |x| |w|) / 2`, one more product of :math:`|x|` and :math:`|w|` gives `p` and `n`,
    and two transposed products all of `R`. Inside a context with
    :py:class:`~zennit_attn.canonizers.AttentionCanonizer` linear layers and convolutions are run like that, in the
    gradient domain. Anywhere else, and on modules whose code is not torch's, it is :py:class:`zennit.rules.Gamma`. The
    bias absorbs relevance.

    Parameters
    ----------
    gamma: float, optional
        Multiplier of the contributions that are favoured.
    stabilizer: callable or float, optional
        Stabilization of the denominators. If a float, it is added with the sign of each entry. See
        :py:class:`zennit.core.Stabilizer`.
    zero_params: str or list[str], optional
        Names of parameters that shall be set to zero, e.g. ``'bias'``, which then absorbs nothing.

    References
    ----------
    .. [1] G. Montavon, A. Binder, S. Lapuschkin, W. Samek, and K.-R. Müller: "Layer-wise relevance propagation: an
           overview," in: Explainable AI, 2019; L. Andéol, Y. Kawakami, Y. Wada, T. Kanamori, K.-R. Müller, and G.
           Montavon: "Learning domain invariant representations by joint Wasserstein distance minimization," 2021.
    '''
    def __init__(self, gamma=.25, stabilizer=1e-6, zero_params=None):
        super().__init__(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params)
        self.arguments = {'gamma': gamma, 'stabilizer': stabilizer, 'zero_params': zero_params}

    def copy(self):
        '''Return a copy of this rule, with its arguments.'''
        return type(self)(**self.arguments)

    def call_module(self, forward, module, function, args, kwargs):
        '''Call a linear module so that autograd's backward pass is the rule; anything else is left to Zennit's.'''
        zeroed = self.arguments['zero_params'] or ()
        zeroed = {zeroed} if isinstance(zeroed, str) else set(zeroed)
        if kwargs or not zeroed <= {'bias'} or not LinearMap.fits(module, *args):
            return NotImplemented
        gamma, stabilizer = self.arguments['gamma'], Stabilizer.ensure(self.arguments['stabilizer'])

        name, before, references = forward.location.name_of(module), addresses(module), forward.references

        def gradient(x, output, grad):
            check_active(self)
            check_parameters(module, before, name, self)
            return gamma_gradient(
                LinearMap(module, references is None), x, output, grad, gamma, stabilizer, zeroed)
        forward.check_tag(args[0], name)
        report = forward.observer and forward.observer.rule(name, module, self)
        if references is None:
            return forward.mark(GammaLinear.apply(args[0], function, gradient, report))
        reference = references.of(args[0])
        result = function(reference).detach()
        # Code may write to what it gets in place, and so to its reference.
        output = GammaLinear.apply(args[0], function, gradient, report, (reference, result.clone()))
        return references.set(forward.mark(output), result)
