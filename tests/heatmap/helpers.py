'''What the tests of heatmaps share.'''
import torch

from zennit_attn.conservation import Audit, Sink


def ledger(output=(4., -2.), input=(3., -2.), sinks=()):
    entries = [Sink(*entry[:4], torch.tensor(entry[4], dtype=torch.float64)) for entry in sinks]
    return Audit(*(torch.tensor(part, dtype=torch.float64) for part in (output, input)), entries, [])
