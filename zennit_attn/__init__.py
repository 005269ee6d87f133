'''Layer-wise relevance propagation with Zennit for any attention code.

Explain any model in one call, by relevance that is complete:

>>> from zennit_attn import explain
>>> explanation = explain(model, inputs, target=3, composite='attn_lrp')
>>> print(explanation.audit())  # where all relevance went

Or attach a composite with Zennit's attributors:

>>> from zennit.attribution import Gradient
>>> from zennit_attn import CPLRP, audit
>>> with Gradient(model, CPLRP()) as attributor:
...     output, relevance = attributor(input, target)
>>> print(audit(model, CPLRP(), input, target))  # where all relevance went

Importing the package also registers its composites with Zennit: ``zennit.composites.COMPOSITES['cp_lrp']``.

======================================================  ==============================================================
:py:func:`explain`, :py:func:`explain_generation`       explains what a model says of an input, in one call
:py:class:`CPLRP`, :py:class:`AttnLRP`,                 which rule goes where
:py:class:`AttnTaylor`, :py:class:`Difference`
:py:class:`AttentionCanonizer`                          brings attention to any other composite of Zennit
:py:class:`Relevance`, :py:class:`TokenGradient`        attributors for several inputs, and for token models
:py:func:`audit`                                        measures where all relevance went
:py:func:`check_explanation`                            checks in one line that a model of your own is explained
:py:func:`register_operator`                            teaches the package a function of your own
======================================================  ==============================================================

More is in the rooms: :py:mod:`zennit_attn.rules`, :py:mod:`zennit_attn.layers`, :py:mod:`zennit_attn.canonizers`,
:py:mod:`zennit_attn.composites`, :py:mod:`zennit_attn.references`, :py:mod:`zennit_attn.seeds`,
:py:mod:`zennit_attn.heatmap`, :py:mod:`zennit_attn.evaluation`, :py:mod:`zennit_attn.attention`.
'''
from importlib.metadata import PackageNotFoundError, version

from .attribution import Relevance, TokenGradient
from .canonizers import AttentionCanonizer
from .composites import CPLRP, AttnLRP, AttnTaylor, Difference
from .conservation import audit
from .explanation import Explanation, explain
from .generation import Generation, explain_generation
from .operators import register_operator
from .testing import check_explanation

try:
    __version__ = version('zennit-attn')
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = '0+unknown'

__all__ = [
    'CPLRP',
    'AttentionCanonizer',
    'AttnLRP',
    'AttnTaylor',
    'Difference',
    'Explanation',
    'Generation',
    'Relevance',
    'TokenGradient',
    'audit',
    'check_explanation',
    'explain',
    'explain_generation',
    'register_operator',
]


def __dir__():
    return [*__all__, '__version__', *_ROOMS]


def __getattr__(name):
    # The rooms that need matplotlib are imported when somebody asks for them.
    if name in _ROOMS:
        from importlib import import_module
        return import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


_ROOMS = ('attention', 'attribution', 'canonizers', 'composites', 'conservation', 'errors', 'evaluation', 'heatmap',
          'layers', 'operators', 'references', 'rules', 'seeds', 'testing')
