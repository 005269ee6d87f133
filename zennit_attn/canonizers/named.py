'''Canonizers by the family of blocks they know. They can be combined; :py:class:`AttentionCanonizer` includes all.'''
from .attention import AttentionCanonizer
from .families import FastAttention, FastWeights, LinearAttention, Multihead, Reversible, ViTAttention


class _FamilyCanonizer(AttentionCanonizer):
    '''Base class: operator modules in the blocks of the family only. The engine runs everywhere all the same.'''
    everywhere = False


class LinearAttentionCanonizer(_FamilyCanonizer):
    '''Linear attention with a softmax of queries and keys each, as in Zennit's issue 169.'''
    families = (LinearAttention(),)


class PerformerCanonizer(_FamilyCanonizer):
    '''Performer: queries and keys of ``FastAttention`` are gates whatever the kernel (FAVOR+, generalized, none).

    The causal product, EPFL's extension included, becomes one operator that is linear in the values, and reversible
    layers run as plain sequential ones.
    '''
    families = (FastAttention(), Reversible())


class ViTCanonizer(_FamilyCanonizer):
    '''The softmax attention block of lucidrains' vision transformers.'''
    families = (ViTAttention(),)


class MultiheadAttentionCanonizer(_FamilyCanonizer):
    ''':py:class:`torch.nn.MultiheadAttention`, also inside torch's transformer layers.

    The packed projections become :py:class:`torch.nn.Linear` children, so that a rule for ``Linear`` reaches them. See
    :py:class:`zennit_attn.canonizers.multihead.MultiheadAttention`.
    '''
    families = (Multihead(),)


class FastWeightsCanonizer(_FamilyCanonizer):
    '''Fast weights: the feature map of queries and keys and the interpolation weights are gates.

    Where a block's loop is the one of ``labml_nn``, the delta rule runs as one operator that is linear in the values.
    '''
    families = (FastWeights(),)
