'''The benchmark on trained models, run on tiny random ones: methods, scores, parts, tables. Nothing is fetched.'''
import sys
import tarfile
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.real import fetch, measure, methods, run, sanity, tasks  # noqa: E402 - after the path to it
from benchmarks.real.reader import Reader  # noqa: E402 - after the path to it

TOKENS, CLASSES, BLANK = 6, 3, 0


class Linear(torch.nn.Module):
    '''Scores that are a sum over the tokens, each with its own weights.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(9, 4)
        self.head = torch.nn.Linear(TOKENS * 4, CLASSES, bias=False)

    def forward(self, ids):
        return SimpleNamespace(scores=self.head(self.embedding(ids).flatten(1)))


class Attention(torch.nn.Module):
    '''A layer of attention by hand, which shows its maps; `even` makes them uniform.'''
    def __init__(self, even=False):
        super().__init__()
        torch.manual_seed(0)
        self.even = even
        self.embedding = torch.nn.Embedding(9, 4)
        self.query, self.key, self.value = (torch.nn.Linear(4, 4) for _ in range(3))
        self.head = torch.nn.Linear(4, CLASSES)

    def forward(self, ids, output_attentions=False):
        hidden = self.embedding(ids)
        logits = self.query(hidden)[:, None] @ self.key(hidden)[:, None].transpose(-1, -2)
        weights = (logits * (0. if self.even else 1.)).softmax(dim=-1)
        hidden = hidden + (weights @ self.value(hidden)[:, None])[:, 0]
        return SimpleNamespace(scores=self.head(hidden[:, 0]), attentions=(weights,))


def reader(network, attends=True):
    network.requires_grad_(False)
    return Reader(network.double(), network.embedding, 'ids', lambda output: output.scores, attends=attends)


def sample(target=1):
    ids = torch.tensor([[1, 5, 3, 7, 2, 8]])
    blank = torch.full_like(ids, BLANK)
    blank[0, 0] = ids[0, 0]
    valence = torch.tensor([[0., 0., 2., -1., 0., 0.]])
    return tasks.Sample(ids, target, ids == 3, blank, valence=valence)


def draw(reader, random):
    return sample() if random.random() < .5 else None


TASK = tasks.Task('toy', 'tiny', 'encoder', draw, 'a token', steps=3)


def weighted(network, values, target):
    '''What each token adds to a score of the linear model.'''
    return (values.flatten(1) * network.head.weight[target]).view(1, TOKENS, -1).sum(dim=-1)


# ---- methods ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('name', 'differs'), [
    ('CPLRP', False), ('AttnLRP', False), ('gradient x input', False),
    ('integrated gradients', True), ('occlusion', True),
])
def test_methods_on_a_linear_model(name, differs):
    network, case = Linear(), sample()
    reads = reader(network)
    values = network.embedding(case.input) - differs * network.embedding(case.reference)
    assert torch.allclose(methods.NAMES[name].relevance(reads, case), weighted(network, values, 1), atol=1e-6)


def test_integrated_gradients_sum_to_the_difference():
    reads, case = reader(Attention()), sample()
    relevance = methods.NAMES['integrated gradients'].relevance(reads, case).sum()
    scores = [reads.scores(input, {})[0][0, 1] for input in (case.input, case.reference)]
    assert relevance.item() == pytest.approx((scores[0] - scores[1]).item(), rel=1e-3)


def test_contrast_subtracts_the_best_of_the_others():
    network, case = Linear(), sample()
    reads = reader(network)
    values = network.embedding(case.input)
    scores = network(case.input).scores[0]
    best = max((0, 2), key=lambda index: scores[index])
    expected = weighted(network, values, 1) - weighted(network, values, best)
    assert torch.allclose(methods.NAMES['CPLRP, contrast'].relevance(reads, case), expected, atol=1e-6)


def test_a_single_score_has_no_contrast_and_is_not_squeezed():
    network, case = Linear(), sample(target=0)
    network.head = torch.nn.Linear(TOKENS * 4, 1, bias=False)
    reads = reader(network)
    assert methods.NAMES['CPLRP, contrast'].relevance(reads, case) is None
    values = network.embedding(case.input)
    assert torch.equal(measure.Measured(reads, case, 3).probability(values), network(case.input).scores[:, 0])


def test_rollout_of_even_attention():
    relevance = methods.NAMES['rollout'].relevance(reader(Attention(even=True)), sample())
    expected = torch.full((1, TOKENS), .5 / TOKENS).double()
    expected[0, 0] += .5
    assert torch.allclose(relevance, expected)


def test_attention_times_gradient_takes_what_helps():
    network, case = Attention(), sample()
    relevance = methods.NAMES['attention x gradient'].relevance(reader(network), case)
    hidden = network.embedding(case.input)
    weights = network(case.input).attentions[0][0, 0, 0]
    helped = network.value(hidden)[0] @ network.head.weight[1]
    assert torch.allclose(relevance[0], (weights * helped).clamp(min=0.))


@pytest.mark.parametrize('name', ['rollout', 'attention x gradient'])
def test_models_without_maps_of_attention_are_left_out(name):
    assert methods.NAMES[name].relevance(reader(Linear(), attends=False), sample()) is None


@pytest.mark.parametrize('method', methods.METHODS, ids=lambda method: method.name)
def test_every_method_has_a_score_of_every_kind(method):
    reads, case = reader(Attention()), sample()
    relevance = method.relevance(reads, case)
    assert relevance.shape == case.mask.shape
    assert not relevance.requires_grad
    scores = measure.Measured(reads, case, 3).scores(relevance)
    assert list(scores) == list(measure.SCORES)
    assert all(-1. <= value <= 1. for value in scores.values())
    assert not reads.embedding._forward_hooks


# ---- scores, parts, tables -------------------------------------------------------------------------------------------

def test_scores_of_known_maps():
    network, case = Linear(), sample()
    measured = measure.Measured(reader(network), case, 3)
    found = measured.scores(case.mask.double() - (case.valence < 0).double())
    assert (found['mass'], found['rank'], found['top'], found['sign']) == (1., 1., 1., 1.)
    assert measured.scores(-case.mask.double())['top'] == 0.
    assert measured.scores(-case.valence.double())['sign'] == 0.
    assert measured.scores(measured.lost)['Pearson'] == pytest.approx(1.)
    assert measured.scores(-measured.lost)['Pearson'] == pytest.approx(-1.)
    assert measured.scores(measured.lost)['ABPC mean'] > 0. > measured.scores(-measured.lost)['ABPC mean']


def test_what_the_reference_keeps_is_not_removed():
    measured = measure.Measured(reader(Linear()), sample(), 3)
    assert measured.lost[0, 0] == 0.
    assert measured.lost[0, 1:].abs().min() > 0.


@pytest.mark.parametrize('count', [1, 2, 9, 30])
def test_parts_hold_every_sample_once(count):
    chosen, held_out = measure.split(count)
    assert sorted(chosen + held_out) == list(range(count))
    assert len(chosen) == round(count * 2 / 3)
    assert (chosen, held_out) == measure.split(count)


def test_intervals():
    values = [Random(seed).random() for seed in range(40)]
    low, high = measure.bootstrap(values)
    assert low < sum(values) / 40 < high
    assert high - low == pytest.approx(4 * torch.tensor(values).std().item() / 40 ** .5, rel=.2)
    assert measure.bootstrap([.5] * 5) == (.5, .5)


def test_the_tables_of_a_task():
    chosen = [methods.NAMES[name] for name in ('CPLRP', 'random')]
    found, seconds, right = run.measured(TASK, reader(Attention()), chosen, 6)
    assert 0. < right < 1.
    text = run.section(TASK, found, seconds, right)
    assert 'choose, 4 samples' in text
    assert 'held out, 2 samples' in text
    assert text.count('| CPLRP | 2 |') == text.count('| random | 0 |') == 2


def test_a_task_that_the_model_cannot_do():
    task = tasks.Task('hard', 'tiny', 'encoder', lambda reader, random: None, 'nothing')
    with pytest.raises(ValueError, match='tiny answers none of 80 samples of hard'):
        task.samples(None, 2)


def test_sanity_of_a_linear_model():
    '''A map of a model that forgot is another one, one of a model with a little noise is the same.'''
    chosen = [methods.NAMES['CPLRP'], methods.NAMES['rollout']]
    text = sanity.section(TASK, reader(Linear(), attends=False), chosen, 2, 0)
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
    assert [row[0] for row in rows] == ['method', '---', 'CPLRP']  # a model without maps of attention has no rollout
    forgotten, near, arrives, first, kept = (float(cell.split()[0]) for cell in rows[-1][1:])
    assert abs(forgotten) < .95 < near <= 1.
    assert arrives == 1.
    assert 0. < first == kept < 1.


def test_what_forgets_keeps_the_embedding_and_the_model():
    network = Attention()
    mine = reader(network)
    other, before = sanity.forgetful(mine), network.query.weight.clone()
    assert torch.equal(other.embedding.weight, mine.embedding.weight)
    assert other.embedding is other.network.embedding is not mine.embedding
    assert torch.equal(network.query.weight, before)
    assert not torch.equal(other.network.query.weight, before)
    assert torch.equal(other.network.query.weight.flatten().sort()[0], before.flatten().sort()[0])


def test_noise_is_in_the_embedding_or_in_the_image():
    mine, other = reader(Linear()), sample()
    near, samples = sanity.noisy(mine, [other])
    assert samples == [other]
    assert 0. < (near.embedding.weight - mine.embedding.weight).std() < .03 * mine.embedding.weight.std()
    image = tasks.Sample(torch.randn(1, 3, 8, 8), 0, torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1, 3, 8, 8))
    same, (moved,) = sanity.noisy(mine, [image])
    assert same is mine
    assert 0. < (moved.input - image.input).std() < .03


def test_squares_that_a_mask_covers():
    mask = torch.zeros(4, 6)
    mask[:2, :3] = mask[3, 4:] = 1.
    assert tasks.squares(mask, 2).tolist() == [[[True, True, False], [False, False, True]]]


def test_a_source_distribution_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.VARIABLE, str(tmp_path))
    archive = tmp_path / 'vaderSentiment-3.3.2.tar.gz'
    (tmp_path / 'words.txt').write_text('good')
    with tarfile.open(archive, 'w:gz') as opened:
        opened.add(tmp_path / 'words.txt', 'vader/words.txt')
        opened.add(tmp_path / 'words.txt', 'vader/other.md')
    assert fetch.download('vaderSentiment', '3.3.2') == archive
    folder = fetch.unpack(archive, ('.txt',))
    assert [path.name for path in folder.rglob('*') if path.is_file()] == ['words.txt']


def test_evidence_in_braces():
    class Letters:
        def __call__(self, text):
            return torch.tensor([[0, *map(ord, text), 0]]), [(0, 0), *((i, i + 1) for i in range(len(text))), (0, 0)]
    ids, mask = tasks.marked(SimpleNamespace(tokenizer=Letters()), '{B}cX.{N}Y', 'CC', 'F')
    assert ''.join(map(chr, ids[0, 1:-1])) == 'BcCC.NF'
    assert ''.join(map(chr, ids[mask])) == 'BN'


def test_what_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match='python -m benchmarks.real.fetch smollm2'):
        fetch.converted('smollm2')
