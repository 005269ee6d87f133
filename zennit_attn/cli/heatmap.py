'''The command ``heatmap``: an image or a text in, a picture of its relevance out.'''
import os
import sys
from html import escape
from pathlib import Path

import torch

from ..generation import explain_generation
from ..heatmap import (
    Heatmap,
    Row,
    Text,
    figure,
    ledger_figure,
    patch_figure,
    patch_relevance,
    pixel_relevance,
    sequence_figure,
    title,
)
from ..heatmap.titles import worst
from . import inputs
from .cases import Case, heading, model_of
from .options import MODELS, add_explanation, add_input, add_model, formatter
from .progress import Progress
from .usage import UsageError, blaming, parse_count, parse_size, writable

_FIGURES = ('.png', '.pdf', '.svg')
_EXAMPLES = f'''\
{MODELS}

examples:
  zennit-attn heatmap timm:vit_tiny_patch16_224 --image cat.jpg --checkpoint vit.pt -o cat.png
  zennit-attn heatmap torchvision:vit_b_16 --pretrained --image cat.jpg -c cp_lrp -c attn_lrp_gamma --target 281
  zennit-attn heatmap demo:vit --image heatmaps/scene.png -c attn_lrp -o scene.png     (a picture of zennit-attn demo)
  zennit-attn heatmap transformers:my-bert --text 'what a film' --target positive -o film.html
  zennit-attn heatmap transformers:my-gpt2 --text 'The capital of France is'          (in colours on the terminal)
  zennit-attn heatmap transformers:my-gpt2 --text 'The capital of France is' --generate 3 --contrast -o answer.png
  zennit-attn heatmap transformers:my-t5 --text 'translate: a house' --answer 'ein Haus' -c recommended
  zennit-attn heatmap mymodels.py:build --checkpoint mine.pt --image x.png --size 32 --normalize 0,1 --patches 4

red speaks for the target, blue against it, and composites side by side share a scale. A text without --out is coloured
on a terminal; else, or where NO_COLOR is set, it is lines of a token, a tab and its relevance.

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
    group.add_argument('--generate', type=parse_count, metavar='N',
                       help='let the model continue the text, or answer it, with N tokens, and explain each of them')
    group.add_argument('--answer', help='explain each token of this answer, and not of what the model says')
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
    if options.text is None and (options.generate or options.answer):
        raise UsageError('--generate and --answer are for models of texts: pass --text')
    paths = _paths(options)
    with Progress(1 + len(names)) as progress:
        progress.step(f'loading {options.model}')
        loaded = model_of(options)
        draw = _kind(options)(loaded, options)
        found = {}
        for name in dict.fromkeys(map(draw.named, names)):
            progress.step(name)
            found[name] = draw.explained(name)
    ledgers = {name: each.audit() for name, each in found.items()}
    # What a program reads, which stdout goes to, has no heading between its lines.
    aside = sys.stderr if draw.is_data(paths[0]) else sys.stdout
    print(draw.heading(), file=aside)
    for note in dict.fromkeys(each.note for each in found.values() if getattr(each, 'note', '')):
        print(f'note     {note}', file=aside)
    for name, ledger in ledgers.items():
        print(f'rules    {name}: unaccounted {worst(ledger)} of the output'
              + ' (OPEN)' * draw.case.is_open(ledger), file=aside)
    captions = {name: f'unaccounted {worst(ledger)}' for name, ledger in ledgers.items()}
    only = next(iter(found)) if len(found) == 1 else None
    # with several composites, each has its own unaccounted below it
    heading_ = title(type(loaded.model).__name__, draw.target, only, only and ledgers[only])
    if 'RANDOM' in loaded.weights:
        heading_ += ', random weights'
        print('zennit-attn: warning: the weights are random, so this shows nothing that was learned', file=sys.stderr)
    draw.write(found, ledgers, captions, heading_, paths[0])
    if paths[1] is not None:
        ledger_figure(ledgers if len(found) > 1 else ledgers[only], title=heading_).savefig(paths[1], dpi=150)
        print(f'written to {paths[1]}', file=aside)
    return int(any(map(draw.case.is_open, ledgers.values())))


def _kind(options):
    if options.image is not None:
        return _Image
    return _Answer if options.generate or options.answer else _Words


def _paths(options):
    suffixes = (*_FIGURES, '.html') if options.text is not None else _FIGURES
    out = options.out or (None if options.text is not None else 'heatmap.png')
    return (out and writable(out, suffixes)), (options.ledger and writable(options.ledger, _FIGURES) or None)


def _colours():
    '''Whether stdout is read by a person, who wants colours.'''
    if os.environ.get('FORCE_COLOR'):
        return True
    return sys.stdout.isatty() and not os.environ.get('NO_COLOR')


class _Drawn:
    '''What is explained and how it is written.'''
    def __init__(self, loaded, options, case):
        self.loaded, self.options, self.case = loaded, options, case

    @property
    def target(self):
        '''What is asked, in words.'''
        return self.case.target

    def named(self, name):
        '''Return the name of a composite.'''
        return self.case.named(name)

    def explained(self, name):
        '''Explain under a composite.'''
        return self.case.explanation(name)

    def heading(self):
        '''Write what is explained.'''
        return heading(self.case, self.options)

    def is_data(self, path):
        '''Whether stdout gets lines for programs.'''
        return False


class _Image(_Drawn):
    '''An image and its pixels or patches.'''
    def __init__(self, loaded, options):
        given, self.image = inputs.pixels(options.image, loaded, options)
        super().__init__(loaded, options, Case(loaded, given, None, options))
        if options.patches is not None:
            self._sum(torch.zeros_like(self.image))

    def _sum(self, relevance):
        try:
            return patch_relevance(relevance, self.options.patches)
        except ValueError as error:
            raise UsageError(f'--patches: {error}') from error

    def write(self, found, ledgers, captions, heading, path):
        '''Write a figure.'''
        maps = {name: _only(each.relevance, 'pixel_values')[0] for name, each in found.items()}
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


class _Words(_Drawn):
    '''A text and its tokens.'''
    def __init__(self, loaded, options):
        embedding = inputs.embedding_of(loaded.model, options.embedding)
        ids, self.tokens = inputs.tokens(options.text, loaded, options, embedding[1])
        super().__init__(loaded, options, Case(loaded, inputs.with_decoder(ids, loaded.model), embedding, options))
        self._name_targets()

    def _name_targets(self):
        '''The classes of a language model are its tokens.'''
        tokenizer = self.loaded.tokenizer
        if tokenizer is not None and self.case.output.ndim == 3:
            chosen = [*(self.case.places or ()), *(self.case.against or ())]
            self.loaded.labels = {place[-1]: repr(tokenizer.decode([place[-1]])) for place in chosen}

    def is_data(self, path):
        '''Whether stdout gets lines for programs.'''
        return path is None and not _colours()

    def write(self, found, ledgers, captions, heading, path):
        '''Write a page or a figure, or show the text on stdout.'''
        relevance = {name: _only(each.relevance, 'input_ids')[0].sum(-1) for name, each in found.items()}
        text = Text(self.tokens, relevance, heading, captions, not self.options.own_scale)
        if path is None:
            print(text.ansi() if _colours() else text.lines())
            return
        if path.suffix == '.html':
            path.write_text(_page(text.html()), encoding='utf-8')
        else:
            text.figure().savefig(path, dpi=150)
        print(f'written to {path}')


class _Answer(_Words):
    '''A text, and what a language model answers to it, token by token.'''
    def __init__(self, loaded, options):
        for given, name in ((options.target, '--target'), (options.part, '--output')):
            if given is not None:
                raise UsageError(f'{name} does not go with --generate and --answer: what is asked are the tokens that '
                                 'the model says')
        if options.contrast:
            raise UsageError('with --generate and --answer, --contrast is against the runner-up of each token: write '
                             'it without a name')
        if options.answer is not None and loaded.tokenizer is None:
            raise UsageError('there is no tokenizer, which makes tokens of the answer: pass --generate N')
        if options.answer is None and not hasattr(loaded.model, 'generate'):
            raise UsageError(f'{type(loaded.model).__name__} has no method generate, as models of transformers have')
        contrast, options.contrast = options.contrast is not None, None
        super().__init__(loaded, options)
        self.contrast, self.found = contrast, None

    @property
    def target(self):
        '''What is asked, in words.'''
        return f'answer {"".join(self.found.texts(self.found.ids[0])).strip()!r}' if self.found else 'the answer'

    def explained(self, name):
        '''Explain each token of the answer under a composite.'''
        model, options, ids = self.loaded.model, self.options, self.case.input
        ids = ids['input_ids'] if isinstance(ids, dict) else ids
        composite = self.case.composite(name, options.unknown)
        prompt = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)}
        with blaming('the model can not answer'):
            self.found = explain_generation(
                model, prompt, options.generate or 20, options.answer, composite, self.contrast, self.loaded.tokenizer)
        return self.found

    def heading(self):
        '''Write what is explained.'''
        lines = [line for line in super().heading().splitlines() if not line.startswith('target')]
        said = [f'{text!r} {float(p):.2g}' for text, p in
                zip(self.found.texts(self.found.ids[0]), self.found.probability[0], strict=True)]
        return '\n'.join([*lines, f'answer   {", ".join(said)} (with the probability of each token)'])

    def write(self, found, ledgers, captions, heading, path):
        '''Write a page or a matrix, or show the answer on stdout.'''
        first = next(iter(found.values()))
        names = [name for name, rows in first.relevance.items() if rows.ndim == 3]
        tokens = [token for name in names for token in first.tokens(name)]
        answer = first.texts(first.ids[0])
        maps = {name: torch.cat([each.relevance[key][0] for key in names], -1) for name, each in found.items()}
        shared = not self.options.own_scale
        if path is not None and path.suffix != '.html':
            sequence_figure(maps, tokens, answer, 'answer', heading, captions, shared).savefig(path, dpi=150)
            print(f'written to {path}')
            return
        texts = [Text(tokens, {name: rows[step] for name, rows in maps.items()}, repr(said), {}, shared)
                 for step, said in enumerate(answer)]
        if path is not None:
            path.write_text(_page(f'<h1>{escape(heading)}</h1>' + ''.join(text.html() for text in texts)),
                            encoding='utf-8')
            print(f'written to {path}')
        elif _colours():
            print('\n'.join([heading, *(text.ansi() for text in texts)]))
        else:
            head, *_ = texts[0].lines().splitlines()
            print(f'answer\t{head}')
            for text in texts:
                print('\n'.join(f'{text.title}\t{line}' for line in text.lines().splitlines()[1:]))


def _only(relevance, name):
    '''The map of an input that may be one of several.'''
    return relevance.get(name, next(iter(relevance.values()))) if isinstance(relevance, dict) else relevance


def _page(html):
    return ('<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f'<title>zennit-attn</title>{html}')
