'''What the tests of named canonizers share.'''
import torch

from attention.helpers import perturbed
from zennit_attn.canonizers import (
    FastWeightsCanonizer,
    LinearAttentionCanonizer,
    MultiheadAttentionCanonizer,
    PerformerCanonizer,
    ViTCanonizer,
)

NAMED = (FastWeightsCanonizer, LinearAttentionCanonizer, MultiheadAttentionCanonizer, PerformerCanonizer, ViTCanonizer)


def seeded(make):
    '''What ``make`` builds, in float64 and eval mode, away from its initialization.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(make()).double().eval()


def noise(*shape):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.randn(shape, dtype=torch.float64)
