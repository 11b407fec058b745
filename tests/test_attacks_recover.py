"""`recover` takes the cheapest attack that explains the message, and refuses what none reads."""

import pytest
import torch
from torch import nn

from flcourse.attacks.explain import explain
from flcourse.attacks.observe import observe_gradient, observe_update
from flcourse.attacks.recover import METHODS, _features_are_exact, recover
from flcourse.data import load_dataset
from flcourse.defences import SIMPLE_DEFENCES
from flcourse.metrics import flat_floor, psnr
from flcourse.models import MLP, LeNet, SimpleCNN

PHOTOS = load_dataset("photos").train
ONE, LABEL = PHOTOS.inputs[3:4], PHOTOS.labels[3:4]
DIGITS = load_dataset("digits").train


def test_one_sample_through_a_linear_layer_is_a_division():
    model = MLP(3072, seed=0)
    for leak in (
        observe_gradient(model, ONE, LABEL),
        observe_update(model, ONE, LABEL, lr=0.1, epochs=3, batch_size=1),
    ):
        found = recover(model, leak)
        assert found.method == "divide" and float(psnr(ONE, found.images)) > 80
        assert found.labels.tolist() == LABEL.tolist()


def test_one_sample_through_convolutions_is_peeled():
    model = LeNet(10, seed=0)
    found = recover(model, observe_gradient(model, ONE, LABEL))
    assert found.method == "peel" and float(psnr(ONE, found.images)) > 50
    assert found.layers and found.labels.tolist() == [3]


def test_a_batch_through_a_linear_layer_with_relu_is_exact():
    model = MLP(64, 200, seed=0)
    x, y = DIGITS.inputs[:4], DIGITS.labels[:4]
    found = recover(model, observe_gradient(model, x, y))
    errors = torch.cdist(x.flatten(1), found.images.flatten(1)).amin(dim=1)
    assert found.method.startswith("exact") and float(errors.max()) < 0.01


def test_where_no_closed_form_explains_the_message_it_is_matched():
    model = LeNet(10, seed=0)
    noisy = SIMPLE_DEFENCES["noise 1e-3"](observe_gradient(model, ONE, LABEL), 0)
    assert recover(model, noisy, "peel").loss > 1e-2, "the closed form knows that it failed"
    steps = observe_update(model, ONE, LABEL, lr=0.01, epochs=2, batch_size=1)
    pair = observe_gradient(model, PHOTOS.inputs[:2], PHOTOS.labels[:2])
    for leak, labels in ((noisy, LABEL), (steps, LABEL), (pair, PHOTOS.labels[:2])):
        found = recover(model, leak, labels=labels, steps=3)
        assert found.evaluations >= 3 and found.images.shape[0] == leak.batch_size
    by_itself = recover(model, steps, labels=LABEL)
    assert by_itself.evaluations > 3 and "unrolled" in by_itself.method


def test_known_labels_reach_the_attack_and_an_option_means_matching():
    model = LeNet(10, seed=0)
    leak = observe_gradient(model, ONE, LABEL)
    assert recover(model, leak, "peel", labels=LABEL).labels.tolist() == [3]
    wrong = recover(model, leak, "peel", labels=torch.tensor([5]))
    assert wrong.images is None or wrong.loss > 0.1, "told the wrong label, it explains nothing"
    matched = recover(model, leak, labels=LABEL, steps=4, snapshots=3)
    assert matched.history and len(matched.snapshots) >= 2
    assert recover(model, leak, labels="optimise", steps=2).evaluations <= 3


@pytest.mark.parametrize(
    "method, given, words",
    [
        ("guess", {}, "'guess' is unknown: use one of auto, peel"),
        ("peel", {"steps": 5}, "'peel' does not read steps: use method='match'"),
        ("divide", {"labels": "optimise"}, "does not read labels='optimise'"),
        ("divide", {}, "use peel"),
    ],
)
def test_what_does_not_fit_is_refused(method, given, words):
    model = LeNet(10, seed=0)
    with pytest.raises(ValueError, match=words):
        recover(model, observe_gradient(model, ONE, LABEL), method, **given)
    assert method in METHODS or method == "guess"


def test_where_pooling_stops_the_algebra_the_exact_features_are_inverted():
    model = SimpleCNN(10, seed=3)
    leak = observe_gradient(model, ONE, LABEL)
    assert recover(model, leak, "peel").stopped_at
    found = recover(model, leak, snapshots=4)
    assert float(psnr(ONE, found.images)) > float(flat_floor(ONE)) + 6
    assert found.evaluations > 10 and len(found.snapshots) > 1 and found.labels.tolist() == [3]
    noisy = SIMPLE_DEFENCES["noise 1e-2"](leak, 0)
    assert not _features_are_exact(recover(model, noisy, "peel"), noisy)


@pytest.mark.parametrize("name", [LeNet, SimpleCNN, MLP])
def test_it_takes_what_explain_recommends(name):
    model = name(3072, seed=0) if name is MLP else name(10, seed=0)
    found = recover(model, observe_gradient(model, ONE, LABEL))
    advice = explain(model, (3, 32, 32)).attack
    assert advice in found.method, (advice, found.method)


def test_a_model_of_ones_own():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(384, 10)
    )
    x, y = DIGITS.inputs[:1], DIGITS.labels[:1]
    found = recover(model, observe_gradient(model, x, y))
    assert found.method == "peel" and float(psnr(x, found.images)) > 40
