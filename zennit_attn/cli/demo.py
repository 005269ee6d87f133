'''The command ``demo``: explain small trained models and write heatmaps.'''
import argparse
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..demo import DEMOS
from ..demo.explain import ledgers, relevance_maps, rows, spread
from ..heatmap import figure, positive_share
from ..pictures import to_picture
from .progress import Progress

#: Held-out scenes over which the share of relevance on the object is averaged.
SCENES = 100
#: Most images in a figure.
MOST = 20
#: The rows of the picture: each of the three models once, digits and scenes.
PICTURE = ('vit', 'linear_attention_digits', 'performer')


def add_parser(commands):
    '''Add the command.'''
    demo = commands.add_parser(
        'demo', help='explain small trained attention models and write heatmaps',
        description='Explain small trained attention models on images they have not seen: write a PNG for each, with '
                    'every input beside its heatmaps (red speaks for the class that the model sees, blue against it), '
                    'and print the last line of the ledger: the relevance that is unaccounted for, one number for each '
                    'image.',
        epilog='example: zennit-attn demo --model vit --samples 6 --output /tmp/heatmaps',
    )
    demo.add_argument('-o', '--output', type=Path, default=Path('heatmaps'), metavar='DIR',
                      help='folder for the PNGs, made if it is missing (default: %(default)s)')
    demo.add_argument('-m', '--model', action='append', choices=DEMOS, metavar='NAME', dest='models',
                      help=f'explain only this model; may be given several times (one of {", ".join(DEMOS)})')
    demo.add_argument('-n', '--samples', type=_count, default=4, metavar='N',
                      help=f'images for each model, from 1 to {MOST} (default: %(default)s)')
    demo.add_argument('--picture', type=_png, metavar='FILE',
                      help='write one figure with an image for each kind of model instead, as in the README')
    demo.set_defaults(run=run)


def _count(text):
    if not text.isdecimal() or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of images from 1 to {MOST}')
    return int(text)


def _png(text):
    if not text.endswith('.png'):
        raise argparse.ArgumentTypeError(f'the name of the picture has to end in .png, not {text!r}')
    return Path(text)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f'can not write into {path}: it is, or lies in, a file') from error


def run(arguments):
    '''Run the command and return its exit code.'''
    if arguments.picture is not None:
        _make_folder(arguments.picture.parent)
        _picture(arguments.picture)
        return 0
    _make_folder(arguments.output)
    _save_scene(arguments.output / 'scene.png')
    names = arguments.models or list(DEMOS)
    with Progress(len(names)) as progress:
        for name in names:
            progress.step(name)
            _explain(DEMOS[name], arguments.samples, arguments.output / f'{name}.png', progress)
    return 0


def _save_scene(path):
    '''A scene as a picture, for ``zennit-attn heatmap demo:vit --image``.'''
    demo = DEMOS['vit']
    scene = to_picture((demo.held_out(1).images[0] - demo.limits[0]) / (demo.limits[1] - demo.limits[0]))[0]
    Image.fromarray((255. * scene).round().astype('uint8')).save(path)


def _explain(demo, count, path, progress):
    model, held_out = demo.load(), demo.held_out(SCENES).to(torch.float64)
    samples = spread(held_out, count)
    maps, audits = relevance_maps(model, samples.images), ledgers(model, samples.images)
    drawn = figure(rows(demo, model, samples, maps, audits), f'{demo.title} on {demo.subject}', shared=False)
    drawn.savefig(path, dpi=150)
    progress.clear()
    print(f'{demo.title} on {demo.subject}')
    for name, ledger in audits.items():
        print(f'  {name:8s} {"  ".join(str(ledger).splitlines()[-1].split())}')
    if torch.equal(maps['CP-LRP'], maps['AttnLRP']):
        print('  CP-LRP and AttnLRP give the same maps: they differ at softmax operators, and none runs here')
    if held_out.masks is not None:
        _print_shares(model, held_out)
    print(f'  written to {path}', flush=True)


def _print_shares(model, samples):
    shares = {name: positive_share(relevance, samples.masks).mean()
              for name, relevance in relevance_maps(model, samples.images).items()}
    print('  positive relevance on the object: ' + ', '.join(f'{name} {share:.0%}' for name, share in shares.items())
          + f' (mean of {len(samples)} scenes; the object is {samples.masks.double().mean():.0%} of the pixels)')


def _picture(path):
    drawn = []
    for index, demo in enumerate(map(DEMOS.get, PICTURE)):
        # another class in each row
        model, samples = demo.load(), spread(demo.held_out(SCENES), index + 1)[index:].to(torch.float64)
        row, = rows(demo, model, samples, relevance_maps(model, samples.images), ledgers(model, samples.images))
        drawn.append(replace(row, label=f'{demo.title}\n{row.label}'))
    figure(drawn, shared=False).savefig(path, dpi=150)
    print(f'written to {path}')
