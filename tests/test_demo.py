'''The demo: its data has the evidence that it claims, its models are trained, and its command does what it says.'''
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from helpers import assert_closed
from zennit_attn.__main__ import main
from zennit_attn.demo import DEMOS, HELD_OUT_SEED, SHAPES, Samples, digits, scenes
from zennit_attn.demo.data import inside
from zennit_attn.demo.explain import GRADIENT, highest, ledgers, relevance_maps, spread
from zennit_attn.demo.models import orthogonal_features, softmax_kernel
from zennit_attn.demo.train import batches, jittered, save, train

pytest.importorskip('sklearn')
NAMES = list(DEMOS)


def same(one, two):
    return all(torch.equal(*pair) for pair in zip(vars(one).values(), vars(two).values(), strict=True))


# ---- data ------------------------------------------------------------------------------------------------------------

def test_scenes_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = scenes(4, 0), scenes(4, 0), scenes(4, 1)
    assert same(first, again)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before, torch.random.get_rng_state())


def test_scenes_have_shapes_types_and_all_classes():
    samples = scenes(100, 0)
    assert samples.images.shape == (100, 3, 32, 32)
    assert samples.masks.shape == (100, 32, 32)
    assert samples.masks.dtype == torch.bool
    assert samples.images.abs().max() <= 1.
    assert sorted(set(samples.labels.tolist())) == list(range(len(SHAPES)))


def test_masks_cover_one_flat_object_that_stands_out():
    samples = scenes(100, 0)
    for image, mask in zip(samples.images, samples.masks, strict=True):
        object_, ground = image[:, mask], image[:, ~mask]
        # one colour and the grain of 0.06, with a channel near the top; clouds, blobs and a line vary far more
        assert object_.std(dim=1).max() < .08
        assert object_.mean(dim=1).max() > .7
        assert ground.std(dim=1).min() > .1


def test_the_object_ends_where_its_mask_ends():
    samples = scenes(100, 0)
    padded = torch.nn.functional.max_pool2d(samples.masks.float()[:, None], 3, stride=1, padding=1)[:, 0].bool()
    rim = padded & ~samples.masks
    means = torch.stack([image[:, mask].mean(dim=1) for image, mask in zip(samples.images, samples.masks, strict=True)])
    distance = (samples.images - means[:, :, None, None]).abs().amax(dim=1)
    assert distance[samples.masks].median() < .15
    assert distance[rim].median() > .4


@pytest.mark.parametrize(('name', 'members', 'others'), [
    ('ring', [(.7, 0.), (0., -.7), (.5, .5)], [(0., 0.), (.9, .9), (.3, 0.)]),
    ('square', [(0., 0.), (.75, .75), (-.75, .75)], [(.9, 0.), (0., -.9)]),
    ('triangle', [(0., 0.), (.9, .75), (0., -.9)], [(.5, -.5), (-.5, -.5), (0., .9)]),
    ('cross', [(0., 0.), (.95, 0.), (0., -.95), (.3, .9)], [(.5, .5), (-.5, .5), (0., 1.1)]),
])
def test_shapes(name, members, others):
    label = SHAPES.index(name)
    assert inside(label, *torch.tensor(members).T).all()
    assert not inside(label, *torch.tensor(others).T).any()


def test_colour_says_nothing_about_the_class():
    samples = scenes(2000, 0)
    means = torch.stack([image[:, mask].mean(dim=1) for image, mask in zip(samples.images, samples.masks, strict=True)])
    by_class = torch.stack([means[samples.labels == label].mean(dim=0) for label in range(len(SHAPES))])
    # some 500 a class with a deviation of 0.26: four standard errors of a difference
    assert (by_class - means.mean(dim=0)).abs().max() < 4 * .26 / 500 ** .5


def test_digits_are_split_without_overlap():
    training, test = digits('train'), digits('test')
    assert (len(training), len(test)) == (1437, 360)
    assert test.images.shape == (360, 1, 8, 8)
    assert (test.images.min(), test.images.max()) == (0., 1.)
    assert test.masks is None
    assert sorted(set(test.labels.tolist())) == list(range(10))
    assert not {tuple(image.flatten().tolist()) for image in training.images} & {
        tuple(image.flatten().tolist()) for image in test.images}
    with pytest.raises(ValueError, match="'valid'"):
        digits('valid')


def test_spread_takes_each_class_in_turn():
    samples = Samples(torch.arange(6.), torch.tensor([3, 3, 1, 3, 1, 0]))
    assert spread(samples, 5).images.tolist() == [0., 2., 5., 1., 4.]
    assert spread(samples, 5).labels.tolist() == [3, 1, 0, 3, 1]


# ---- models and training ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', NAMES)
def test_models_are_trained(name):
    samples = DEMOS[name].held_out(300)
    with torch.no_grad():
        logits = DEMOS[name].load(torch.float32)(samples.images)
    assert (logits.argmax(dim=1) == samples.labels).float().mean() > .93


def test_weights_are_small():
    assert sum(demo.weights.stat().st_size for demo in DEMOS.values()) < 600_000


def test_missing_weights_say_how_to_train():
    absent = replace(DEMOS['vit'], name='absent')
    with pytest.raises(FileNotFoundError, match=r'python -m zennit_attn\.demo\.train'):
        absent.load()


def test_random_features_approximate_the_softmax_kernel():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 5, 4, dtype=torch.float64).mul(.7).unbind()
    features = orthogonal_features(80000, 4).double()
    phi_q, phi_k = softmax_kernel(q, features, True, eps=0.), softmax_kernel(k, features, False, eps=0.)
    estimate = torch.einsum('b h n m, b h k m -> b h n k', phi_q, phi_k)
    exact = torch.einsum('b h n d, b h k d -> b h n k', q, k).div(2.).exp()
    # the kernels are known up to a factor for each row; attention divides it out
    estimate, exact = (matrix / matrix.sum(dim=-1, keepdim=True) for matrix in (estimate, exact))
    torch.testing.assert_close(estimate, exact, rtol=.04, atol=0.)


def test_orthogonal_features_are_orthogonal_in_blocks():
    features = orthogonal_features(10, 4)
    assert features.shape == (10, 4)
    for block in features.split(4):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diag().diag(), atol=1e-4, rtol=0.)


def test_training_lowers_the_loss_and_is_repeatable(tmp_path):
    demo = replace(DEMOS['linear_attention_digits'], steps=30)
    first, again, untrained = train(demo), train(demo), demo.build().eval()
    samples = demo.held_out(360)

    def loss(model):
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(model(samples.images), samples.labels)
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), again.parameters(), strict=True))
    assert loss(first) < .9 * loss(untrained)
    save(first, tmp_path / 'weights' / 'model.pt')
    stored = torch.load(tmp_path / 'weights' / 'model.pt', weights_only=True)
    assert stored['head.2.weight'].dtype == torch.float16
    untrained.load_state_dict(stored)
    torch.testing.assert_close(untrained(samples.images), first(samples.images), atol=.05, rtol=.05)


def test_training_never_sees_held_out_samples():
    held_out = {tuple(image.flatten().tolist()) for image in digits('test').images}
    assert all(demo.steps < HELD_OUT_SEED for demo in DEMOS.values())
    demo = replace(DEMOS['linear_attention_digits'], steps=3)
    train_images = {tuple(image.flatten().tolist()) for image in digits('train').images}
    assert not train_images & held_out
    assert [len(batch) for batch in batches(demo)] == [128] * 3


def test_jitter_moves_by_a_pixel_and_adds_noise():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 3, 4] = 100.
    generator = torch.Generator().manual_seed(0)
    moved = [jittered(Samples(image, torch.zeros(1)), generator).images for _ in range(100)]
    places = {divmod(int(images.argmax()), 8) for images in moved}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}


# ---- explanations ----------------------------------------------------------------------------------------------------

def test_highest_keeps_one_logit():
    logits = torch.tensor([[1., 3., 2.], [-1., -2., -3.]])
    assert highest(logits).tolist() == [[0., 3., 0.], [-1., 0., 0.]]


@pytest.mark.parametrize('name', NAMES)
def test_ledgers_close_and_maps_agree_with_them(name):
    model, samples = DEMOS[name].load(), DEMOS[name].held_out(3).to(torch.float64)
    maps = relevance_maps(model, samples.images)
    for method, ledger in ledgers(model, samples.images).items():
        assert_closed(ledger)
        torch.testing.assert_close(maps[method].sum(dim=(1, 2)), ledger.input, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            torch.testing.assert_close(ledger.output, model(samples.images).amax(dim=1))


@pytest.mark.parametrize('name', NAMES)
def test_gradient_x_input_is_plain_autograd(name):
    model, samples = DEMOS[name].load(), DEMOS[name].held_out(2).to(torch.float64)
    images = samples.images.clone().requires_grad_()
    gradient, = torch.autograd.grad(model(images).amax(dim=1).sum(), images)
    torch.testing.assert_close(relevance_maps(model, samples.images)[GRADIENT], (gradient * samples.images).sum(dim=1))


# ---- command line ----------------------------------------------------------------------------------------------------

def test_demo_writes_a_picture_and_prints_the_ledger(tmp_path, capsys):
    assert main(['demo', '--model', 'vit', '--samples', '1', '--output', str(tmp_path / 'new' / 'folder')]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / 'new' / 'folder' / 'vit.png'
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height > 0
    assert f'written to {path}' in printed
    assert len(re.findall(r'(?:CP-LRP|AttnLRP) +unaccounted +-?\d', printed)) == 2
    shares = dict(re.findall(r'(CP-LRP|AttnLRP|gradient x input) (\d+)%', printed))
    # a map without knowledge has the object's share of the pixels, 10 %
    assert int(shares['CP-LRP']) > 30
    assert shares.keys() == {'CP-LRP', 'AttnLRP', 'gradient x input'}


def test_demo_says_why_two_maps_are_equal(tmp_path, capsys):
    assert main(['demo', '-m', 'performer', '-m', 'vit', '-n', '1', '-o', str(tmp_path)]) == 0
    performer, vit = capsys.readouterr().out.split('ViT on')
    assert 'the same maps' in performer
    assert 'the same maps' not in vit


def test_demo_of_digits_has_no_masks(tmp_path, capsys):
    assert main(['demo', '-m', 'linear_attention_digits', '-n', '2', '-o', str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert 'handwritten digits' in printed
    assert 'on the object' not in printed
    assert [path.name for path in tmp_path.iterdir()] == ['linear_attention_digits.png']


def test_demo_writes_the_picture_of_the_readme(tmp_path, capsys):
    assert main(['demo', '--picture', str(tmp_path / 'docs' / 'picture.png')]) == 0
    assert [path.name for path in tmp_path.rglob('*.png')] == ['picture.png']
    assert 'picture.png' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [
    ['--output', 'file'], ['--output', 'file/folder'], ['--picture', 'file/picture.png'],
])
def test_output_into_a_file_is_an_error(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    assert main(['demo', '--model', 'vit', *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith('zennit-attn: error: can not write into file')
    assert captured.out == ''


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'COMMAND'),
    (['dmeo'], 'dmeo'),
    (['demo', '--model', 'resnet'], 'linear_attention'),
    (['demo', '--samples', '0'], 'from 1 to 20'),
    (['demo', '--samples', '21'], 'from 1 to 20'),
    (['demo', '--samples', 'two'], 'from 1 to 20'),
    (['demo', '--picture', 'picture.bmp'], 'end in .png'),
])
def test_wrong_usage_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'expected'), [
    (['--help'], ['demo', 'relevance']), (['demo', '--help'], ['--output', '--model', '--picture', 'example', *NAMES]),
])
def test_help(arguments, expected, capsys):
    with pytest.raises(SystemExit, match='0'):
        main(arguments)
    printed = capsys.readouterr().out
    assert all(word in printed for word in expected)


def test_the_package_runs_as_a_module():
    run = subprocess.run([sys.executable, '-m', 'zennit_attn', '--version'], capture_output=True, text=True, check=True)
    assert run.stdout.startswith('zennit-attn ')
