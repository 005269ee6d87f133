'''The command line: ``zennit-attn``, also ``python -m zennit_attn``.'''
import argparse
import os
import sys

from . import __version__
from .cli import audit, demo, heatmap, listing
from .cli.options import formatter
from .cli.usage import UsageError
from .errors import AttributionError

_EXAMPLES = '''\
examples:
  zennit-attn demo                                          explain small trained models, write heatmaps/
  zennit-attn audit torchvision:swin_t --input 1x3x224x224            does the ledger close?
  zennit-attn audit mymodels.py:build --input 2x16x32                 ... and for code of your own?
  zennit-attn heatmap timm:vit_tiny_patch16_224 --checkpoint vit.pt --image cat.jpg -o cat.png
  zennit-attn heatmap transformers:my-bert --text 'what a film'
  zennit-attn list operators soft

"zennit-attn COMMAND --help" explains a command.
exit codes: 0 all went well, 1 a ledger is open or something is not supported, 2 wrong usage.
'''


def main(args=None):
    '''Run the command line.

    Parameters
    ----------
    args: list[str], optional
        Arguments. Default is those of the process.

    Returns
    -------
    int
        0 if all went well, 1 if a ledger is open, something is not supported or could not be written, 2 if what was
        asked for does not fit, 130 if it was interrupted. Options that do not exist exit with 2.
    '''
    arguments = _parser().parse_args(args)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print('\nzennit-attn: interrupted', file=sys.stderr)
        return 130  # as a shell says it of SIGINT
    except (UsageError, AttributionError, OSError, ImportError) as error:
        if getattr(arguments, 'debug', False):
            raise
        print(f'zennit-attn: error: {error}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _parser():
    parser = argparse.ArgumentParser(
        prog='zennit-attn', description='Layer-wise relevance propagation for any attention code.', epilog=_EXAMPLES,
        formatter_class=formatter)
    parser.add_argument('--version', action='version', version=f'zennit-attn {__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for command in (demo, audit, heatmap, listing):
        command.add_parser(commands)
    return parser


if __name__ == '__main__':
    sys.exit(main())
