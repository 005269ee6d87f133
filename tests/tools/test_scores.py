'''Scores of maps: cases whose answers are known, a linear model in closed form, and Quantus where it is installed.'''
import warnings

import pytest
import torch

from zennit_attn.evaluation import (
    abpc,
    area,
    class_probability,
    deletion,
    insertion,
    mass_accuracy,
    on_channels,
    on_patches,
    patches,
    rank_accuracy,
)

MASK = torch.zeros(2, 4, 5, dtype=torch.bool)
MASK[0, 1:3, 2:4] = True
MASK[1, 0] = True


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- against the evidence --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('relevance', 'mass', 'rank'), [
    (MASK.double(), [1., 1.], [1., 1.]),
    (MASK.double() - 1e-3, [1., 1.], [1., 1.]),
    ((~MASK).double(), [0., 0.], [0., 0.]),
    (-MASK.double(), [0., 0.], [0., 0.]),
    (torch.ones(2, 4, 5).double(), [4 / 20, 5 / 20], [4 / 20, 5 / 20]),
    (torch.zeros(2, 4, 5).double(), [0., 0.], [4 / 20, 5 / 20]),
], ids=['perfect', 'perfect and against', 'elsewhere', 'against', 'constant', 'nothing'])
def test_known_maps(relevance, mass, rank):
    assert mass_accuracy(relevance, MASK).tolist() == pytest.approx(mass)
    assert rank_accuracy(relevance, MASK).tolist() == pytest.approx(rank)


def test_mass_counts_positive_relevance_only():
    relevance = torch.tensor([[3., -100., 1., -7.]])
    assert mass_accuracy(relevance, torch.tensor([[True, True, False, False]])).item() == .75


def test_rank_counts_places():
    relevance = torch.tensor([[4., 1., 3., 2.]])
    assert rank_accuracy(relevance, torch.tensor([[True, False, False, True]])).item() == .5


def test_ties_share_the_last_places():
    relevance = torch.tensor([[5., 1., 1., 1.]])
    # one place is left for three: the evidence among them takes it in one of three draws
    assert rank_accuracy(relevance, torch.tensor([[True, True, False, False]])).item() == pytest.approx((1 + 1 / 3) / 2)


def test_ignorant_maps_score_the_share_of_the_evidence():
    mask = MASK.expand(2, 4, 5).repeat(2000, 1, 1)
    relevance = torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    share = mask.float().mean().item()
    for metric in (mass_accuracy, rank_accuracy):
        # each of the 4000 samples deviates by less than .25: four standard errors
        assert metric(relevance, mask).mean().item() == pytest.approx(share, abs=4 * .25 / 4000 ** .5)


def test_scale_does_not_matter():
    relevance = random(2, 4, 5)
    for metric in (mass_accuracy, rank_accuracy):
        torch.testing.assert_close(metric(7. * relevance, MASK), metric(relevance, MASK))


@pytest.mark.parametrize('metric', [mass_accuracy, rank_accuracy])
@pytest.mark.parametrize(('relevance', 'mask', 'message'), [
    (torch.ones(2, 4), MASK, 'shape'),
    (torch.ones(2, 4, 5), MASK.float(), 'boolean'),
    (torch.ones(2, 4, 5), torch.zeros_like(MASK), 'without evidence'),
    (torch.ones(2, 4, 5, dtype=torch.int64), MASK, 'floating point'),
    (torch.ones(2), MASK[:, 0, 0], 'floating point'),
])
def test_what_is_not_a_map_is_refused(metric, relevance, mask, message):
    with pytest.raises(ValueError, match=message):
        metric(relevance, mask)


# ---- perturbation ----------------------------------------------------------------------------------------------------

UNITS = 6
WEIGHT, INPUT = random(UNITS, seed=1), random(3, UNITS, seed=2)


def linear(x):
    return x @ WEIGHT


def sorted_contributions(relevance):
    order = relevance.argsort(dim=1, descending=True)
    return (INPUT * WEIGHT).gather(1, order)


def test_curves_of_a_linear_model_are_sums_of_its_contributions():
    relevance = INPUT * WEIGHT
    contributions = sorted_contributions(relevance)
    sums = torch.nn.functional.pad(contributions.cumsum(dim=1), (1, 0))
    torch.testing.assert_close(insertion(linear, INPUT, 0., relevance, UNITS), sums)
    torch.testing.assert_close(deletion(linear, INPUT, 0., relevance, UNITS), linear(INPUT)[:, None] - sums)


@pytest.mark.parametrize('relevance', [INPUT * WEIGHT, -INPUT * WEIGHT, random(3, UNITS, seed=3)],
                         ids=['true', 'anti', 'random'])
def test_areas_of_a_linear_model_in_closed_form(relevance):
    contributions = sorted_contributions(relevance)
    # the unit in place i of n is there from step i on in one curve, up to step i in the other
    places = torch.arange(1., UNITS + 1., dtype=torch.float64)
    curves = [curve(linear, INPUT, 0., relevance, UNITS) for curve in (insertion, deletion)]
    torch.testing.assert_close(area(curves[0]), contributions @ (UNITS - places + .5) / UNITS)
    torch.testing.assert_close(area(curves[1]), contributions @ (places - .5) / UNITS)
    torch.testing.assert_close(abpc(*curves), contributions @ (UNITS + 1. - 2. * places) / UNITS)


def test_true_maps_have_the_largest_area_and_anti_maps_its_opposite():
    def score(relevance):
        return abpc(*(curve(linear, INPUT, 0., relevance, UNITS) for curve in (insertion, deletion)))
    true = score(INPUT * WEIGHT)
    torch.testing.assert_close(score(-INPUT * WEIGHT), -true)
    torch.testing.assert_close(score(torch.ones_like(INPUT)), torch.zeros(3, dtype=torch.float64))
    for seed in range(20):
        assert (score(random(3, UNITS, seed=seed)) <= true + 1e-12).all()


def test_insertion_is_deletion_of_the_least_relevant_read_from_its_end():
    relevance = random(3, UNITS, seed=4)
    curve = insertion(linear, INPUT, .5, relevance, 4)
    torch.testing.assert_close(curve.flip(1), deletion(linear, INPUT, .5, -relevance, 4))
    torch.testing.assert_close(curve[:, 0], linear(torch.full_like(INPUT, .5)))
    torch.testing.assert_close(curve[:, -1], linear(INPUT))


def test_steps_that_do_not_divide_the_units():
    seen = []
    deletion(lambda x: seen.append((x == 0.).sum(dim=1).tolist()) or x.sum(dim=1), INPUT, 0., INPUT, 4)
    assert seen == [[count] * 3 for count in (0, 2, 3, 4, 6)]


@pytest.mark.parametrize('steps', [0, UNITS + 1])
def test_wrong_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match='steps'):
        deletion(linear, INPUT, 0., INPUT, steps)


def test_pixels_go_in_all_channels_and_patches_as_a_whole():
    images, pixels = torch.ones(1, 3, 4, 6), torch.zeros(1, 4, 6)
    pixels[0, 1, 5] = 1.
    left = deletion(lambda x: x.sum(dim=(1, 2, 3)), images, 0., pixels, 24, on_channels)
    assert left.tolist() == [[72. - 3. * step for step in range(25)]]
    pooled = patches(pixels, 2)
    assert pooled.tolist() == [[[0., 0., 1.], [0., 0., 0.]]]
    kept = []
    deletion(lambda x: kept.append(x) or x.sum(dim=(1, 2, 3)), images, 0., pooled, 6, on_patches(2))
    assert (kept[1] == 0.).nonzero().tolist() == [[0, c, y, x] for c in range(3) for y in (0, 1) for x in (4, 5)]


def test_tokens_are_replaced_by_the_baseline():
    tokens, relevance = torch.tensor([[4, 5, 6]]), torch.tensor([[.1, .9, .5]])
    seen = []
    deletion(lambda x: seen.append(x.tolist()) or x.sum(dim=1).double(), tokens, 9, relevance, 3)
    assert seen == [[[4, 5, 6]], [[4, 9, 6]], [[4, 9, 9]], [[9, 9, 9]]]


def test_class_probability():
    logits = torch.tensor([[0., 0.], [2., -1.]])
    score = class_probability(lambda x: x, torch.tensor([1, 0]))(logits)
    torch.testing.assert_close(score, torch.stack([torch.tensor(.5), torch.sigmoid(torch.tensor(3.))]))


# ---- Quantus ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def quantus():
    '''Quantus, whose import may warn.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('quantus', reason='quantus is not installed (pip install quantus)')


@pytest.mark.zoo
def test_quantus_measures_the_same_accuracies(quantus):
    relevance, mask = random(2, 4, 5).abs(), MASK
    arrays = {
        'model': None, 'x_batch': random(2, 1, 4, 5).numpy(), 'y_batch': torch.zeros(2).long().numpy(),
        'a_batch': relevance[:, None].numpy(), 's_batch': mask[:, None].numpy(),
    }
    for metric, name in ((mass_accuracy, 'RelevanceMassAccuracy'), (rank_accuracy, 'RelevanceRankAccuracy')):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            expected = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)(**arrays)
        assert metric(relevance, mask).tolist() == pytest.approx(expected)


@pytest.mark.zoo
def test_quantus_flips_the_same_pixels(quantus):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double().eval()
    images, relevance, labels = random(2, 1, 4, 4), random(2, 4, 4, seed=5), torch.tensor([0, 2])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        flipping = quantus.PixelFlipping(features_in_step=2, perturb_baseline=0., abs=False, normalise=False,
                                         disable_warnings=True)
        expected = flipping(model=model.float(), x_batch=images.float().numpy(), y_batch=labels.numpy(),
                            a_batch=relevance[:, None].float().numpy(), device='cpu', softmax=True)
    curve = deletion(class_probability(model, labels), images.float(), 0., relevance.float(), 8, on_channels)
    # theirs begins after the first step
    torch.testing.assert_close(curve[:, 1:], torch.tensor(expected, dtype=torch.float32))
