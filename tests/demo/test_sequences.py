'''Sequences whose evidence is known, and the causal models that read them.'''
import pytest
import torch

from zennit_attn.demo.sequences import BLANK, CAUSAL, SYMBOLS, TASKS, sequences


@pytest.mark.parametrize('task', TASKS)
def test_the_evidence_holds_the_answer(task):
    samples = sequences(200, 0, task)
    tokens, masks = samples.images, samples.masks
    assert masks.sum(dim=1).tolist() == [3] * 200
    key, value, query = tokens[masks].view(200, 3).unbind(dim=1)
    assert torch.equal(key, query)
    assert torch.equal(value, samples.labels)
    assert torch.equal(query, tokens[:, -1])
    # nothing else in a sequence is the key or the answer, and blanks are not evidence
    assert ((tokens == query[:, None]).sum(dim=1) == 2).all()
    assert ((tokens == value[:, None]).sum(dim=1) == 1).all()
    assert (tokens[masks] < SYMBOLS).all()
    assert .3 < (tokens[~masks] == BLANK).float().mean() < .7


def test_sequences_depend_on_the_seed_alone():
    before = torch.random.get_rng_state()
    first, again, other = (sequences(4, seed, 'recall').images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match='copy'):
        sequences(4, 0, 'copy')


@pytest.mark.parametrize('name', CAUSAL)
def test_causal_models_do_not_look_ahead(name):
    torch.manual_seed(0)
    model = CAUSAL[name]().eval()
    x = torch.randn(1, 17, 48)
    norm, attention, _ = model.layers[0]
    later = torch.cat([x[:, :9], torch.randn(1, 8, 48)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(attention(norm(later))[:, :9], attention(norm(x))[:, :9])
        assert not torch.allclose(attention(norm(later))[:, 9:], attention(norm(x))[:, 9:])


@pytest.mark.parametrize('name', CAUSAL)
def test_causal_models_read_embeddings(name):
    model, tokens = CAUSAL[name]().eval(), sequences(2, 0, 'recall').images
    with torch.no_grad():
        torch.testing.assert_close(model.read(model.embedding(tokens)), model(tokens))
