'''The command ``heatmap``: an image or a text in, a picture of its relevance out.'''
import sys
from pathlib import Path

import torch

from ..heatmap import Heatmap, Row, Text, figure, ledger_figure, patch_figure, patch_relevance, pixel_relevance, title
from ..heatmap.titles import worst
from . import inputs
from .cases import Case, heading, model_of
from .options import MODELS, add_explanation, add_input, add_model, formatter
from .progress import Progress
from .usage import UsageError, parse_size, writable

_FIGURES = ('.png', '.pdf', '.svg')
_EXAMPLES = f'''\
{MODELS}

examples:
  zennit-attn heatmap timm:vit_tiny_patch16_224 --image cat.jpg --checkpoint vit.pt -o cat.png
  zennit-attn heatmap torchvision:vit_b_16 --pretrained --image cat.jpg -c cp_lrp -c attn_lrp_gamma --target 281
  zennit-attn heatmap transformers:my-bert --text 'what a film' --target 1 -o film.html
  zennit-attn heatmap transformers:my-gpt2 --text 'The capital of France is'          (in colours on the terminal)
  zennit-attn heatmap mymodels.py:build --checkpoint mine.pt --image x.png --size 32 --normalize 0,1 --patches 4

red speaks for the target, blue against it, and composites side by side share a scale.

exit codes: 0 written, and every ledger closed; 1 a ledger is open or something is not supported; 2 wrong usage.
'''


def add_parser(commands):
    '''Add the command.'''
    parser = commands.add_parser(
        'heatmap', help='explain an image or a text, and write a picture', formatter_class=formatter, epilog=_EXAMPLES,
        usage='%(prog)s MODEL (--image FILE | --text TEXT) [options]',
        description='Explain what a model sees in an image or reads in a text, and draw the relevance of its pixels,\n'
                    'patches or tokens. The title says what is unaccounted.')
    parser.add_argument('model', metavar='MODEL', help='see below')
    group = parser.add_argument_group('input')
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument('--image', type=Path, metavar='FILE', help='an image')
    given.add_argument('--text', help='a text')
    add_input(parser, group)
    group.add_argument('--tokenizer', metavar='FOLDER',
                       help="tokenizer of transformers (default: the model's; bytes if it has none)")
    add_model(parser)
    add_explanation(parser, several=True)
    group = parser.add_argument_group('picture')
    group.add_argument('-o', '--out', metavar='FILE',
                       help='.png, .pdf or .svg, for texts .html too (default: heatmap.png, for texts the terminal)')
    group.add_argument('--patches', type=parse_size, metavar='H[xW]', help='sum over patches of this many pixels')
    group.add_argument('--own-scale', action='store_true', help='give each composite a scale of its own')
    group.add_argument('--ledger', metavar='FILE', help='write where the relevance went as a figure too')
    parser.set_defaults(run=run)


def run(options):
    '''Run the command and return its exit code.'''
    names = options.composites or ['cp_lrp']
    paths = _paths(options)
    with Progress(1 + len(names)) as progress:
        progress.step(f'loading {options.model}')
        loaded = model_of(options)
        draw = _Image(loaded, options) if options.image is not None else _Words(loaded, options)
        case, maps, ledgers = draw.case, {}, {}
        names = list(dict.fromkeys(case.named(name) for name in names))
        for name in names:
            progress.step(name)
            maps[name], ledgers[name] = case.relevance(name)[0], case.audit(name)
    print(heading(case, options))
    for name, ledger in ledgers.items():
        print(f'rules    {name}: unaccounted {worst(ledger)} of the output' + ' (OPEN)' * case.is_open(ledger))
    captions = {name: f'unaccounted {worst(ledger)}' for name, ledger in ledgers.items()}
    only = names[0] if len(names) == 1 else None
    # with several composites, each has its own unaccounted below it
    heading_ = title(type(loaded.model).__name__, case.target, only, only and ledgers[only])
    if 'RANDOM' in loaded.weights:
        heading_ += ', random weights'
        print('zennit-attn: warning: the weights are random, so this shows nothing that was learned', file=sys.stderr)
    draw.write(maps, ledgers, captions, heading_, paths[0])
    if paths[1] is not None:
        ledger_figure(ledgers if len(names) > 1 else ledgers[only], title=heading_).savefig(paths[1], dpi=150)
        print(f'written to {paths[1]}')
    return int(any(map(case.is_open, ledgers.values())))


def _paths(options):
    suffixes = (*_FIGURES, '.html') if options.text is not None else _FIGURES
    out = options.out or (None if options.text is not None else 'heatmap.png')
    return (out and writable(out, suffixes)), (options.ledger and writable(options.ledger, _FIGURES) or None)


class _Image:
    '''An image and its pixels or patches.'''
    def __init__(self, loaded, options):
        self.options = options
        self.image = inputs.image(options.image, loaded, options)
        given = inputs.normalized(self.image, loaded, options)[None]
        self.case = Case(loaded, given, None, options)
        if options.patches is not None:
            self._sum(torch.zeros_like(given[0]))

    def _sum(self, relevance):
        try:
            return patch_relevance(relevance, self.options.patches)
        except ValueError as error:
            raise UsageError(f'--patches: {error}') from error

    def write(self, maps, ledgers, captions, heading, path):
        shared = not self.options.own_scale
        if self.options.patches is not None:
            patches = {name: self._sum(relevance) for name, relevance in maps.items()}
            drawn = patch_figure(self.image, patches, heading, captions, shared=shared)
        else:
            heatmaps = {name: Heatmap(pixel_relevance(relevance), ledgers[name].output[0], ledgers[name].unaccounted[0])
                        for name, relevance in maps.items()}
            drawn = figure([Row(self.image, heatmaps)], heading, shared)
        drawn.savefig(path, dpi=150)
        print(f'written to {path}')


class _Words:
    '''A text and its tokens.'''
    def __init__(self, loaded, options):
        self.options = options
        embedding = inputs.embedding_of(loaded.model, options.embedding)
        ids, self.tokens = inputs.tokens(options.text, loaded, options, embedding[1])
        self.case = Case(loaded, ids, embedding, options)
        self._name_targets()

    def _name_targets(self):
        '''The classes of a language model are its tokens.'''
        case, tokenizer = self.case, self.case.loaded.tokenizer
        if tokenizer is not None and case.output.ndim == 3:
            case.loaded.labels = {place[-1]: repr(tokenizer.decode([place[-1]])) for place in case.places or ()}

    def write(self, maps, ledgers, captions, heading, path):
        relevance = {name: item.sum(dim=-1) for name, item in maps.items()}
        text = Text(self.tokens, relevance, heading, captions, not self.options.own_scale)
        if path is None:
            print(text.ansi())
            return
        if path.suffix == '.html':
            page = f'<!DOCTYPE html><meta charset="utf-8"><title>zennit-attn</title>{text.html()}'
            path.write_text(page, encoding='utf-8')
        else:
            text.figure().savefig(path, dpi=150)
        print(f'written to {path}')
