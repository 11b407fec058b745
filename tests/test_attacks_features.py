import math

import pytest
import torch
from torch import nn

from flcourse.attacks import routing
from flcourse.attacks.chain import check_leak, read_chain
from flcourse.attacks.features import invert_features
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.attacks.routing import pooled_block
from flcourse.data import load_dataset
from flcourse.metrics import flat_floor, psnr
from flcourse.models import LeNet, SimpleCNN


@pytest.fixture(scope="module")
def photos():
    return load_dataset("photos").train


def picture(photos, index):
    return photos.inputs[index : index + 1], photos.labels[index : index + 1] % 10


def test_the_features_behind_the_max_pool_are_exact(photos):
    images, labels = picture(photos, 0)
    model = SimpleCNN(10, seed=0)
    recovery = peel(model, observe_gradient(model, images, labels))
    assert recovery.images is None
    assert recovery.features_at == "5"
    assert recovery.stopped_at.startswith("5 (MaxPool2d): a max-pool keeps one value")
    truth = nn.Sequential(*list(model)[:6])(images)
    torch.testing.assert_close(recovery.features, truth, atol=1e-5, rtol=0)


def test_simple_cnn_pictures_come_back_from_their_features(photos):
    scores = []
    for index, seed in [(0, 0), (4, 1), (8, 2), (11, 0)]:
        images, labels = picture(photos, index)
        model = SimpleCNN(10, seed=seed)
        recovery = invert_features(model, observe_gradient(model, images, labels))
        assert recovery.images.shape == images.shape
        assert int(recovery.labels) == int(labels)
        assert recovery.loss < 0.01
        scores.append(float(psnr(images, recovery.images) - flat_floor(images)))
    assert sorted(scores)[1] > 12
    assert min(scores) > 9


def test_history_and_snapshots_follow_the_search(photos):
    images, labels = picture(photos, 4)
    model = SimpleCNN(10, seed=0)
    leak = observe_gradient(model, images, labels)
    recovery = invert_features(model, leak, evaluations=30, snapshots=4)
    assert [shot.evaluation for shot in recovery.snapshots] == [1, 10, 20, 30]
    assert recovery.loss == min(recovery.history)
    assert recovery.evaluations >= 30
    errors = [float(psnr(images, shot.images)) for shot in recovery.snapshots]
    assert errors[0] < errors[1] < errors[3]


def test_a_finished_picture_is_left_alone_and_nothing_known_is_refused(photos):
    images, labels = picture(photos, 0)
    model = LeNet(10, seed=0)
    leak = observe_gradient(model, images, labels)
    done = peel(model, leak)
    assert invert_features(model, leak, done) is done
    pooled = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"no features are known.*match_gradients"):
        invert_features(pooled, observe_gradient(pooled, images, labels))


@pytest.mark.parametrize(
    "options", [{"evaluations": 0}, {"snapshots": -1}, {"prior": -1.0}, {"prior": math.nan}]
)
def test_options_outside_their_range_are_refused(photos, options):
    images, labels = picture(photos, 0)
    model = LeNet(10, seed=0)
    with pytest.raises(ValueError, match="must be at least"):
        invert_features(model, observe_gradient(model, images, labels), **options)


BLOCKS = {
    "act, pool": [nn.ReLU(), nn.MaxPool2d(2)],
    "pool, act": [nn.MaxPool2d((2, 4)), nn.Tanh()],
    "pool alone": [nn.MaxPool2d(2)],
}


@pytest.mark.parametrize("order", BLOCKS)
def test_the_placed_equations_hold_at_the_true_picture(photos, monkeypatch, order):
    monkeypatch.setattr(routing, "_DOUBT", 1e-12)  # the true picture has no doubts
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 16, 3, padding=1),
        *BLOCKS[order],
        nn.Flatten(),
        nn.LazyLinear(5),
    ).double()
    images, labels = photos.inputs[:1].double(), torch.tensor([3])
    model(images)
    leak = observe_gradient(model, images, labels)
    links, last = read_chain(model, (3, 32, 32)), 2 + len(BLOCKS[order])
    features = nn.Sequential(*list(model)[: last + 1])(images)[0].detach()
    block = pooled_block(links, last, features, 3, check_leak(model, leak))
    inputs = model[:2](images)[0].detach()
    placed = block.equations(inputs)
    assert len(placed.rows) > 50
    torch.testing.assert_close(inputs.flatten(1) @ placed.rows.T, placed.values)
    # Without a label there is no δ; with another one it points elsewhere.
    assert pooled_block(links, last, features, None, check_leak(model, leak)) is None
    wrong = pooled_block(links, last, features, 1, check_leak(model, leak)).equations(inputs)
    assert not torch.allclose(inputs.flatten(1) @ wrong.rows.T, wrong.values, atol=0.1)


def test_windows_that_overlap_are_left_alone(photos):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(6 * 15 * 15, 5),
    )
    images, labels = photos.inputs[:1], torch.tensor([3])
    leak = observe_gradient(model, images, labels)
    links = read_chain(model, (3, 32, 32))
    features = links[1].module(links[0].module(images.double()))[0].detach()
    assert pooled_block(links, 1, features, 3, check_leak(model, leak)) is None
    recovery = invert_features(model, leak, evaluations=60)
    assert float(psnr(images, recovery.images)) > float(flat_floor(images)) + 5
