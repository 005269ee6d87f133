'''Options that commands share.'''
import argparse
from pathlib import Path

from zennit.composites import COMPOSITES

from .. import composites as _registered  # noqa: F401  registers ours by name
from .targets import parse_target
from .usage import parse_setting, parse_size

DTYPES = ('float64', 'float32', 'float16', 'bfloat16')
MODELS = '''\
MODEL is one of
  demo:NAME                 a small trained one that comes along: vit, linear_attention, performer, ...
  torchvision:NAME          e.g. torchvision:vit_b_16
  timm:NAME                 e.g. timm:vit_tiny_patch16_224
  transformers:FOLDER       a folder of save_pretrained, a name in the local cache, or a type, e.g. transformers:gpt2
  package.module:callable   a function or class that returns a torch.nn.Module
  path/to/file.py:callable
Nothing is ever downloaded: weights are those of --checkpoint, of the local cache (--pretrained), of the folder or of
your function, and random where there are none.'''


def formatter(prog):
    '''Keep line breaks of epilogues.'''
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


def add_model(parser):
    '''Add the options that say what is explained.'''
    group = parser.add_argument_group('model')
    group.add_argument('--checkpoint', type=Path, metavar='FILE', help='state dict to load (.pt, .pth, .safetensors)')
    group.add_argument('--pretrained', action='store_true',
                       help="take torchvision's or timm's weights, if they lie in the local cache")
    group.add_argument('--set', type=parse_setting, action='append', default=[], metavar='NAME=VALUE', dest='settings',
                       help='keyword argument for the function that makes the model, e.g. num_classes=10')
    group.add_argument('--dtype', choices=DTYPES, default='float64', help='type of numbers (default: %(default)s)')
    group.add_argument('--device', default='cpu', help='where to compute, e.g. cuda (default: %(default)s)')
    group.add_argument('--seed', type=int, default=0, metavar='N',
                       help='seed of random weights and inputs (default: %(default)s)')


def add_input(parser, group):
    '''Add the options that say how inputs are read.'''
    group.add_argument('--size', type=parse_size, metavar='H[xW]',
                       help="crop and resize images to this (default: as the model's library does it)")
    group.add_argument('--grey', action='store_true', help='read images with one channel')
    group.add_argument('--normalize', type=_normalization, metavar='MEAN,STD',
                       help="normalize images otherwise than the model's library says, e.g. 0.5,0.5 or 0,1 for none")
    group.add_argument('--embedding', metavar='NAME',
                       help='module from whose output token models are explained (default: the only nn.Embedding)')


def _normalization(text):
    try:
        mean, std = (float(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form MEAN,STD, e.g. 0.5,0.5') from None
    if std <= 0.:
        raise argparse.ArgumentTypeError(f'the deviation has to be positive, not {std}')
    return (mean,), (std,)


def add_explanation(parser, several=False):
    '''Add the options that say how it is explained.'''
    group = parser.add_argument_group('explanation')
    extra = {'action': 'append', 'dest': 'composites'} if several else {'default': 'cp_lrp'}
    several_words = '; may be given several times' if several else ''
    group.add_argument('-c', '--composite', metavar='NAME', choices=[*sorted(COMPOSITES), 'recommended'],
                       **extra, help='composite, see "zennit-attn list composites", or "recommended": the one that was '
                                     f'best on trained models of the kind (default: cp_lrp){several_words}')
    group.add_argument('--composite-set', type=parse_setting, action='append', default=[], metavar='NAME=VALUE',
                       dest='composite_settings', help='argument of the composite, e.g. linear_gamma=0.05')
    group.add_argument('-t', '--target', type=parse_target, metavar='TARGET',
                       help='max: the highest output; last: the highest of the last token; all: all of the output; '
                            'indices after the batch, e.g. 207 or --target=-1,464; the name of a class, or for a '
                            'language model the text of a token (default: max, for texts last)')
    group.add_argument('--contrast', nargs='?', const='', metavar='CLASS',
                       help='explain the target less another one: CLASS, an index or a name, or the runner-up')
    group.add_argument('--output', metavar='PART', dest='part',
                       help='attribute, key or index of the output that is explained (default: the tensor, or its '
                            'logits)')
    group.add_argument('--unknown', choices=('raise', 'gradient'), default='raise',
                       help='what to do with functions without a rule: refuse, or accept the plain gradient')
    group.add_argument('--tolerance', type=float, metavar='SHARE',
                       help='largest share of the output that may be unaccounted (default: 1e-6 in float64, 1e-3 in '
                            'float32, else 0.1)')
    parser.add_argument('--debug', action='store_true', help='show where an error came from')
