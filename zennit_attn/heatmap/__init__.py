'''Heatmaps: relevance as pictures of pixels, patches, tokens and sequences, and the ledger as a figure.

Everywhere red speaks for the target and blue against it, white is 0, and methods side by side share a scale.
'''
from .colors import COLORS, colorize
from .inside import relevance_at
from .ledger import ledger_figure, ledger_shares
from .patches import Patches, patch_figure, patch_relevance, token_patches
from .pixels import Heatmap, Row, figure, pixel_image, pixel_relevance, positive_share
from .sequences import head_relevance, layer_relevance, sequence_figure
from .showing import show
from .titles import title
from .tokens import Text, token_texts

__all__ = [
    'COLORS',
    'Heatmap',
    'Patches',
    'Row',
    'Text',
    'colorize',
    'figure',
    'head_relevance',
    'layer_relevance',
    'ledger_figure',
    'ledger_shares',
    'patch_figure',
    'patch_relevance',
    'pixel_image',
    'pixel_relevance',
    'positive_share',
    'relevance_at',
    'sequence_figure',
    'show',
    'title',
    'token_patches',
    'token_texts',
]
