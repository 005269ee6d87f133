'''The vision transformers that are explained, and their sizes.'''
from typing import NamedTuple

import torch
from explaining import frozen
from torchvision.models import VisionTransformer

try:
    from vit_pytorch import ViT
except ModuleNotFoundError:  # our twin of it, which computes the same
    from zennit_attn.attention.vit import NormViT as ViT


class Shape(NamedTuple):
    '''The size of a vision transformer.'''
    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    mlp: int
    classes: int


SHAPES = {'base': Shape(224, 16, 768, 12, 12, 3072, 1000), 'tiny': Shape(32, 8, 32, 2, 2, 64, 10)}


def vit_pytorch(shape):
    '''The vision transformer of vit-pytorch.'''
    return ViT(image_size=shape.image, patch_size=shape.patch, num_classes=shape.classes, dim=shape.dim,
               depth=shape.depth, heads=shape.heads, mlp_dim=shape.mlp, dim_head=shape.dim // shape.heads)


def torchvision(shape):
    '''The vision transformer of torchvision, whose attention is ``nn.MultiheadAttention``.'''
    return VisionTransformer(image_size=shape.image, patch_size=shape.patch, num_layers=shape.depth,
                             num_heads=shape.heads, hidden_dim=shape.dim, mlp_dim=shape.mlp, num_classes=shape.classes)


MODELS = {'vit-pytorch': vit_pytorch, 'torchvision': torchvision}
TITLES = {'base': 'ViT-B/16', 'tiny': 'tiny ViT'}


def build(name, shape, batch, device='cpu'):
    '''A frozen model and images.'''
    model = frozen(MODELS[name](SHAPES[shape]))
    return model.to(device), torch.randn(batch, 3, SHAPES[shape].image, SHAPES[shape].image).to(device)


def add_arguments(parser, batch=(1, 2, 8)):
    '''Options of what is explained.'''
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS), help='which models to explain')
    parser.add_argument('--shape', choices=SHAPES, help="'base' is ViT-B/16, 'tiny' only tries it out")
    parser.add_argument('--batch', type=int, nargs='+', default=list(batch), help='images explained at once')
    return parser


def shape(options):
    '''The size that was asked for.'''
    return options.shape or ('tiny' if options.quick else 'base')
