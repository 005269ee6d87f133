'''Composites: which rule goes where in models with attention.'''
import re

import torch
from zennit.composites import COMPOSITES, LayerMapComposite, register_composite
from zennit.core import Composite
from zennit.types import Convolution

from .canonizers import AttentionCanonizer
from .errors import ContextError
from .layers import Attention, OperatorModule, Softmax
from .rules import Gamma, Secant, Taylor, TaylorSoftmax

#: Names of modules, or of their classes, inside which linear layers are attention projections.
_ATTENTION_NAME = re.compile(r'att(n|ention)|m(h|s|hs)a\b', re.IGNORECASE)


def as_composite(given, names=()):
    '''Return a composite by its name or its class.

    Parameters
    ----------
    given: str, type or :py:class:`zennit.core.Composite`
    names: sequence of str, optional
        Names that are taken elsewhere, to be told with ours.

    Returns
    -------
    :py:class:`zennit.core.Composite`
        One of this package or of Zennit, which gets an :py:class:`AttentionCanonizer` if it is made here.

    Raises
    ------
    TypeError, ValueError
        If it is none, with the names that there are.
    '''
    if isinstance(given, Composite):
        return given
    if isinstance(given, type) and issubclass(given, AttentionComposite):
        return given()
    if isinstance(given, type) and issubclass(given, Composite):
        return given(canonizers=[AttentionCanonizer()])
    ours = ', '.join([*names, *(name for name, kind in COMPOSITES.items() if issubclass(kind, AttentionComposite))])
    if not isinstance(given, str):
        raise TypeError(f'{given!r} is no composite; pass one, its class, or its name: {ours}')
    if given not in COMPOSITES:
        raise ValueError(f'there is no composite {given!r}; there are {ours}, and those of Zennit')
    return as_composite(COMPOSITES[given])


def _is_attention(name, module):
    return _ATTENTION_NAME.search(f'{name.rpartition(".")[2]} {type(module).__name__}') is not None


def _has_no_attention_inside(model):
    '''Else a model named after its attention, such as AttentionUNet, would count as attention as a whole.'''
    return not any(_is_attention(name, module) for name, module in model.named_modules()
                   if name and not isinstance(module, OperatorModule))


class AttentionComposite(LayerMapComposite):
    '''Base class: LRP-0 everywhere through :py:class:`~zennit_attn.canonizers.AttentionCanonizer`, plus gammas.

    Parameters
    ----------
    linear_gamma: float, optional
        If given, :py:class:`~zennit_attn.rules.Gamma` for :py:class:`torch.nn.Linear` outside of attention. Linear
        layers inside a module whose name or class says attention (``attn``, ``attention``, ``mha``, ``msa``, ``mhsa``)
        follow LRP-0 always.
    conv_gamma: float, optional
        If given, :py:class:`~zennit_attn.rules.Gamma` for convolutions, inside attention too.
    stabilizer: callable or float, optional
        Stabilization of all denominators. If a float, it is added with the sign of each entry.
    layer_map: list[tuple[tuple[torch.nn.Module, ...], Hook]], optional
        A mapping as a list of tuples, with a tuple of applicable module types and a Hook. Prepended to that of the
        composite, so it wins.
    zero_params: list[str], optional
        A list of parameter names that shall be set to zero by the Gamma rules.
    canonizers: list[:py:class:`zennit.canonizers.Canonizer`], optional
        List of canonizer instances to be applied before applying hooks. Default is
        ``[AttentionCanonizer(stabilizer=stabilizer)]``.
    '''
    #: Rules of the composite for operator modules.
    operator_map = ()

    def __init__(self, linear_gamma=None, conv_gamma=None, stabilizer=1e-9, layer_map=None, zero_params=None,
                 canonizers=None):
        for name, gamma in (('linear_gamma', linear_gamma), ('conv_gamma', conv_gamma)):
            if not isinstance(gamma, (int, float, type(None))):
                raise TypeError(f'{name} must be a number or None, got {gamma!r}')
        canonizers = [AttentionCanonizer(stabilizer=stabilizer)] if canonizers is None else canonizers
        super().__init__(layer_map=[*(layer_map or []), *self.operator_map], canonizers=canonizers)
        gammas = ((Convolution, conv_gamma), (torch.nn.Linear, linear_gamma))
        self.gamma_map = [(types, Gamma(gamma=gamma, stabilizer=stabilizer, zero_params=zero_params))
                          for types, gamma in gammas if gamma is not None]

    def mapping(self, ctx, name, module):
        '''Get the rule of a module: that of the layer map, else a gamma rule outside of attention.

        Parameters
        ----------
        ctx: dict
            A context dictionary to keep track of modules inside attention.
        name: str
            Name of the module.
        module: :py:class:`torch.nn.Module`
            Instance of the module to find a rule for.

        Returns
        -------
        :py:class:`~zennit.core.Hook` or None
        '''
        inside = ctx.setdefault('attention', set())
        parent = name.rpartition('.')[0]
        if (name and parent in inside) or (_is_attention(name, module) and (name or _has_no_attention_inside(module))):
            inside.add(name)
        hook = super().mapping(ctx, name, module)
        if hook is None and not (name in inside and isinstance(module, torch.nn.Linear)):
            hook = next((hook for types, hook in self.gamma_map if isinstance(module, types)), None)
        return hook

    def register(self, module=None):
        '''Apply the canonizers and register the rules; if anything fails, remove all that was registered.

        Parameters
        ----------
        module: :py:class:`torch.nn.Module`
            The model.

        Raises
        ------
        TypeError
            If this is called on the class, as an attributor does that was given the class.
        '''
        if not isinstance(self, Composite):
            raise TypeError('the composite is a class, and a composite is needed: write brackets behind its name, as '
                            'in CPLRP()')
        try:
            super().register(module)
        except BaseException:
            self.remove()
            raise

    def remove(self):
        '''Remove the rules and canonizers; what an interruption left undone is done before it is raised.'''
        try:
            super().remove()
        except BaseException:
            super().remove()
            raise

    def inactive(self):
        '''Not supported: rules here are the way operators run, not only how modules propagate.

        Raises
        ------
        ContextError
            Always.
        '''
        raise ContextError('composite.inactive() does not work with AttentionCanonizer; leave the context for plain '
                           'gradients')


@register_composite('cp_lrp')
class CPLRP(AttentionComposite):
    '''Conservative propagation: every gate is a constant, the rest LRP-0.

    Attention maps, deviations of normalizations and other gates are viewed as constants [1]_. Its ledger closes with
    biases, positions and other added constants as the only sinks. The arguments are those of
    :py:class:`AttentionComposite`.

    References
    ----------
    .. [1] A. Ali, T. Schnake, O. Eberle, G. Montavon, K.-R. Müller, and L. Wolf: "XAI for transformers: better
           explanations through conservative propagation," ICML 2022.
    '''


@register_composite('attn_lrp')
class AttnLRP(AttentionComposite):
    '''AttnLRP: the softmax follows its Taylor expansion, so that queries and keys receive relevance too.

    The hidden bias of the expansion absorbs relevance, which the ledger shows as a sink. Products share evenly [1]_.
    The arguments are those of :py:class:`AttentionComposite`.

    References
    ----------
    .. [1] R. Achtibat, S. M. V. Hatefi, M. Dreyer, A. Jain, T. Wiegand, S. Lapuschkin, and W. Samek: "AttnLRP:
           attention-aware layer-wise relevance propagation for transformers," ICML 2024.
    '''
    operator_map = (((Softmax, Attention), TaylorSoftmax()),)


@register_composite('cp_lrp_gamma')
class CPLRPGamma(CPLRP):
    '''CP-LRP with the gammas of AttnLRP's paper for vision transformers: convolutions 0.25, linear layers 0.05.'''
    def __init__(self, linear_gamma=.05, conv_gamma=.25, **kwargs):
        super().__init__(linear_gamma=linear_gamma, conv_gamma=conv_gamma, **kwargs)


@register_composite('attn_lrp_gamma')
class AttnLRPGamma(AttnLRP):
    '''AttnLRP with the gammas of its paper for vision transformers: convolutions 0.25, linear layers 0.05.'''
    def __init__(self, linear_gamma=.05, conv_gamma=.25, **kwargs):
        super().__init__(linear_gamma=linear_gamma, conv_gamma=conv_gamma, **kwargs)


@register_composite('attn_taylor')
class AttnTaylor(AttentionComposite):
    '''First-order Taylor expansion: all that meets, queries and keys included, receives ``x * dy/dx``.

    AttnLRP shares a product evenly among its factors, and under both it and CP-LRP the queries and keys of kernel
    attention (Performer, fast weights) are gates. Here the rule :py:class:`~zennit_attn.rules.Taylor` holds for the
    whole model: every factor is credited with all of the product, and only normalizers and deviations are constants. It
    says where the answer was found *and* what made attention look there. The hidden biases, which the ledger shows as
    sinks, may be many times the output, so that relevance does not sum up to it. It does not depend on the order in
    which products are associated. The arguments are those of :py:class:`AttentionComposite`.
    '''
    def mapping(self, ctx, name, module):
        '''Get the rule of a module: as in other composites, and the expansion for the model as a whole.'''
        hook = super().mapping(ctx, name, module)
        return Taylor() if hook is None and not name else hook


@register_composite('difference')
class Difference(AttentionComposite):
    r'''Relevance relative to a reference: what in the input makes the answer another one than for the reference.

    ``R = (x - x0) g`` adds up to :math:`f(x) - f(x_0)`. Every operator runs for both, the input `x` and the reference
    `x0`, and relevance follows its secant, by which the ledger closes without a sink [1]_: biases, positions and
    other constants are the same in both and cancel. What remains of the output is what the reference gives already,
    which the ledger shows as ``reference``. With a bar for the mean of the two values of a quantity:

    ==================================  =============================================================================
    linear                              its gradient
    product of two                      the other factor is the mean of its two values
    product of more, causal product     mean gradient of the straight path, by an exact quadrature
    quotient ``y = a / b``              ``dy = (da - mean(y) db) / mean(b)``
    function of each element            ``g_y (y - y0) / (x - x0)``, the derivative where the two are close
    softmax                             ``L (g - sum(L g) / sum(L))``, :math:`L = (y - y_0) / (\ln y - \ln y_0)`
    normalization                       the secant of ``c / deviation(c)``
    maximum, sort, median               between what is picked for the reference and for the input
    anything else                       mean gradient of the path by four points; the rest is a sink
    ==================================  =============================================================================

    Queries and keys receive relevance, and it does not depend on the zero of scores. What does not carry relevance,
    such as what was detached, a mask, or a decision of the code, is that of the input in both streams.

    Parameters
    ----------
    reference: :py:class:`torch.Tensor`, callable or float, optional
        The reference `x0`: a tensor of the shape of what is explained or one that broadcasts to it, a number, or a
        function of what is explained. For a model that is explained from its embedding, the function gets the token
        ids, and a reference that is made of integers goes through the embedding. It has to keep what is no content: the
        first token and the template for a language model. Default is 0, which is none for a model with RMS norms: of
        zeros these divide by their ``eps``, and what cancels exactly does not in rounding. Take tokens, or `norm`
        ``'now'``.
    norm: {'full', 'now'}, optional
        Whether normalizers (deviations, denominators, roots and norms) have a secant too, or are constants: those of
        the input. What they do otherwise for the reference then is a sink, ``reference: normalizers``.
    linear_gamma, conv_gamma, stabilizer, layer_map, zero_params, canonizers
        As for :py:class:`AttentionComposite`. Rules for modules see the differences of their input and output, without
        a bias, and may serve what is linear in its input.

    References
    ----------
    .. [1] A. Shrikumar, P. Greenside, and A. Kundaje: "Learning important features through propagating activation
           differences," ICML 2017 (the rescale rule, which is the secant of a function of each element); the secants of
           softmax, products, quotients and normalizations are derived in the docs.
    '''
    def __init__(self, reference=0., norm='full', **kwargs):
        super().__init__(**kwargs)
        self.secant = Secant(reference, norm)

    def mapping(self, ctx, name, module):
        '''Get the rule of a module: as in other composites, and secants for the model as a whole.'''
        hook = super().mapping(ctx, name, module)
        return self.secant if hook is None and not name else hook
