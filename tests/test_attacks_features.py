import math

import pytest
import torch
from torch import nn

from flcourse.attacks.features import invert_features
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
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
