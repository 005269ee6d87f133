'''The models are trained, and training repeats itself.'''
from dataclasses import replace

import pytest
import torch

from zennit_attn.demo import DEMOS, HELD_OUT_SEED, Samples, digits
from zennit_attn.demo.models import orthogonal_features, softmax_kernel
from zennit_attn.demo.train import batches, jittered, save, train

pytest.importorskip('sklearn')

NAMES = list(DEMOS)


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
