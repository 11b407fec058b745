"""Labels read from messages: against softmax by hand, and the truth over many batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.counts import at_least, matched_errors, to_counts
from flcourse.attacks.head import find_head, training_path
from flcourse.attacks.labels import (
    infer_labels,
    label_counts,
    one_logit,
    opposite_row_rule,
    row_sum_rule,
    sign_rule,
)
from flcourse.attacks.observe import (
    aggregate,
    observe_gradient,
    observe_step,
    observe_update,
)
from flcourse.attacks.types import LabelGuess, Leak
from flcourse.data import load_dataset
from flcourse.defences import SIMPLE_DEFENCES
from flcourse.metrics import label_accuracy
from flcourse.models import LeNet, LightCNN, NextToken, Normalise, SimpleCNN
from flcourse.runtime import generator

PHOTOS = load_dataset("photos").train
GLYPHS = load_dataset("glyphs", num_train=1000, num_test=1000)


def errors_of(labels: Tensor, classes: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """p - y per sample ``[b, k]`` for random logits: what a last layer's gradient is made of."""
    logits = spread * torch.randn(len(labels), classes, generator=generator(seed, "logits"))
    return torch.softmax(logits.double(), dim=1) - F.one_hot(labels, classes)


def consistent(guess: LabelGuess, size: int, classes: int) -> None:
    assert guess.labels.dtype == torch.int64 and guess.labels.shape == (size,)
    assert torch.equal(guess.labels, guess.labels.sort().values)
    assert torch.equal(guess.labels.bincount(minlength=classes), guess.counts)
    assert guess.scores.shape == (classes,) and guess.reason


# --- rules for one sample -----------------------------------------------------------------------


@pytest.mark.parametrize("label", range(10))
def test_the_sign_rule_finds_every_class(label: int) -> None:
    for seed in range(20):
        guess = sign_rule(errors_of(torch.tensor([label]), 10, seed, spread=5.0)[0])
        consistent(guess, 1, 10)
        assert guess.labels.tolist() == [label] and guess.certain


def test_the_sign_rule_knows_when_it_does_not() -> None:
    batch = errors_of(torch.tensor([1, 4]), 10).mean(dim=0)
    two = sign_rule(batch)
    assert not two.certain and "2 entries" in two.reason
    sure = sign_rule(torch.zeros(10))  # a model sure of its sample: the gradient vanished
    assert not sure.certain and "0 entries" in sure.reason
    with pytest.raises(ValueError, match="NaN"):
        sign_rule(torch.tensor([float("nan"), 1.0]))
    with pytest.raises(ValueError, match="k > 1"):
        sign_rule(torch.zeros(1))


@pytest.mark.parametrize("label", range(5))
def test_opposite_rows_find_every_class_without_a_bias_and_whatever_the_features(label) -> None:
    for seed in range(20):
        error = errors_of(torch.tensor([label]), 5, seed)[0]
        features = torch.randn(30, generator=generator(seed, "features")).double()
        guess = opposite_row_rule(error[:, None] * features)
        consistent(guess, 1, 5)
        assert guess.labels.tolist() == [label] and guess.certain
    noisy = error[:, None] * features + 0.5 * torch.randn(5, 30, generator=generator(0, "n"))
    assert not opposite_row_rule(noisy).certain


def test_two_classes_without_a_bias_mirror_each_other() -> None:
    error = errors_of(torch.tensor([1]), 2)[0]
    guess = opposite_row_rule(error[:, None] * torch.randn(30).double())
    assert not guess.certain and "two classes" in guess.reason


def test_the_row_sum_needs_positive_features_and_then_beats_noise() -> None:
    right = {"positive": 0, "both signs": 0, "bias alone": 0}
    for seed in range(100):
        rng = generator(seed, "features")
        label = seed % 10
        error = errors_of(torch.tensor([label]), 10, seed)[0]
        positive = torch.rand(500, generator=rng).double()
        signed = torch.randn(500, generator=rng).double()
        noise = 0.5 * torch.randn(10, 501, generator=rng).double()
        bias = error + noise[:, -1]
        weight = noise[:, :-1]
        found = {
            "positive": row_sum_rule(error[:, None] * positive + weight, bias),
            "both signs": row_sum_rule(error[:, None] * signed + weight, bias),
            "bias alone": sign_rule(bias),
        }
        for name, guess in found.items():
            right[name] += guess.labels.tolist() == [label]
        assert not found["positive"].certain
    assert right["positive"] == 100
    assert right["both signs"] < 80 and right["bias alone"] < 80
    with pytest.raises(ValueError, match="does not go with"):
        row_sum_rule(weight, bias[:3])


# --- counts -------------------------------------------------------------------------------------


def test_counts_are_exact_where_the_mean_prediction_is() -> None:
    for seed in range(20):
        labels = torch.randint(7, (30,), generator=generator(seed, "labels"))
        errors = errors_of(labels, 7, seed, spread=4.0)
        mean = (errors + F.one_hot(labels, 7)).mean(dim=0)
        guess = label_counts(errors.mean(dim=0), 30, mean)
        consistent(guess, 30, 7)
        assert torch.equal(guess.counts, labels.bincount(minlength=7))


def test_counts_are_proven_only_if_they_are_right() -> None:
    proven = 0
    for seed in range(300):
        size = 2 + seed % 5
        labels = torch.randint(10, (size,), generator=generator(seed, "labels"))
        error = errors_of(labels, 10, seed, spread=3.0).mean(dim=0)
        least = at_least(error, size, equal=True)
        truth = labels.bincount(minlength=10)
        assert bool((least <= truth).all())  # a bound, for any model and any batch
        guess = label_counts(error, size, torch.full((10,), 0.1))
        if guess.certain:
            proven += 1
            assert torch.equal(guess.counts, truth)
    assert proven > 30


def test_rounding_is_the_nearest_choice_of_whole_numbers() -> None:
    def nearest(estimate: Tensor, total: int) -> float:
        grid = torch.cartesian_prod(*[torch.arange(total + 1)] * 3)
        grid = grid[grid.sum(dim=1) == total]
        return float((grid - estimate).square().sum(dim=1).min())

    for seed in range(100):
        estimate = 4 * torch.randn(3, generator=generator(seed, "counts")).double() + 1
        counts = to_counts(estimate, 5)
        assert int(counts.sum()) == 5 and int(counts.min()) >= 0
        distance = float((counts - estimate).square().sum())
        assert distance == pytest.approx(nearest(estimate, 5), abs=1e-9)
    least = torch.tensor([0, 3, 0])
    assert to_counts(torch.tensor([4.0, 0.0, 0.9]), 5, least).tolist() == [2, 3, 0]
    with pytest.raises(ValueError, match="the batch has 2"):
        to_counts(torch.zeros(3), 2, least)
    with pytest.raises(ValueError, match="NaN"):
        to_counts(torch.tensor([float("nan"), 0.0]), 2)


# --- one logit ----------------------------------------------------------------------------------


def test_one_logit_by_hand() -> None:
    assert one_logit(torch.tensor([0.7 - 1.0])).labels.tolist() == [1]
    assert one_logit(torch.tensor([0.2])).labels.tolist() == [0]
    assert one_logit(torch.tensor([0.2])).certain
    assert not one_logit(torch.tensor([0.0])).certain
    assert not one_logit(torch.tensor([0.2]), exact=False).certain
    # three samples: σ = 0.9, 0.8 for label 1 and 0.3 for label 0: B·∂b = -0.1 - 0.2 + 0.3 = 0
    guess = one_logit(torch.tensor([0.0]), 3, negative=0.3, positive=0.85)
    assert guess.labels.tolist() == [0, 1, 1] and not guess.certain
    assert guess.scores.tolist() == pytest.approx([1.0, 2.0])
    all_ones = one_logit(torch.tensor([-0.7]), 3)  # -2.1: only three ones can sum to this
    assert all_ones.labels.tolist() == [1, 1, 1] and all_ones.certain
    with pytest.raises(ValueError, match="one bias"):
        one_logit(torch.zeros(2))


@pytest.mark.parametrize("size", [1, 2, 8])
def test_one_logit_from_a_model(size: int) -> None:
    right = 0
    for seed in range(10):
        model = LeNet(1, seed=seed)
        images = PHOTOS.inputs[seed : seed + size]
        labels = torch.randint(2, (size,), generator=generator(seed, "labels"))
        for leak in (
            observe_gradient(model, images, labels),
            observe_step(model, images, labels, lr=0.1),
        ):
            guess = infer_labels(model, leak)
            consistent(guess, size, 2)
            exact = torch.equal(guess.labels, labels.sort().values)
            right += exact
            assert exact or not guess.certain
            assert guess.certain or size > 1
    assert right == 20


# --- from a model and a message -------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: LeNet(100, seed=seed),
        lambda seed: LeNet(10, activation=nn.Tanh, seed=seed),
        lambda seed: SimpleCNN(10, seed=seed),
        lambda seed: nn.Sequential(Normalise([0.5] * 3, [0.3] * 3), LeNet(10, seed=seed).double()),
        lambda seed: nn.Sequential(
            *list(LeNet(10, seed=seed))[:-1], nn.Linear(768, 10, bias=False)
        ),
        lambda seed: nn.Sequential(LeNet(10, seed=seed), nn.LogSoftmax(dim=1)),
    ],
)
def test_one_sample_is_certain_and_right_for_any_signal(build) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        model = build(seed)
        for i in (seed, 5 + seed):
            images, labels = PHOTOS.inputs[i : i + 1], PHOTOS.labels[i : i + 1]
            for leak in (
                observe_gradient(model, images, labels),
                observe_step(model, images, labels, lr=0.01),
                observe_update(
                    model, images, labels, lr=0.01, epochs=4, batch_size=1, momentum=0.9
                ),
            ):
                guess = infer_labels(model, leak)
                assert guess.certain and torch.equal(guess.labels, labels), guess.reason


def test_the_label_outlives_ten_defences() -> None:
    right = dict.fromkeys(SIMPLE_DEFENCES, 0)
    for seed in range(2):
        model = LeNet(10, seed=seed)
        for i in range(6):
            leak = observe_gradient(model, PHOTOS.inputs[i : i + 1], PHOTOS.labels[i : i + 1])
            for name, defend in SIMPLE_DEFENCES.items():
                guess = infer_labels(model, defend(leak, 10 * seed + i))
                hit = torch.equal(guess.labels, PHOTOS.labels[i : i + 1])
                right[name] += hit
                assert hit or not guess.certain
                assert not (guess.certain and name.startswith("noise"))
    assert min(right.values()) >= 11, right


def test_features_of_both_signs_under_noise() -> None:
    """Where the row sum cannot work (tanh), the features' mean still can."""
    matched = summed = 0
    for seed in range(4):
        model = LeNet(10, activation=nn.Tanh, seed=seed)
        for i in range(6):
            leak = observe_gradient(model, PHOTOS.inputs[i : i + 1], PHOTOS.labels[i : i + 1])
            leak = SIMPLE_DEFENCES["noise 1e-2"](leak, 10 * seed + i)
            matched += torch.equal(infer_labels(model, leak).labels, PHOTOS.labels[i : i + 1])
            rows = row_sum_rule(leak.values["7.weight"], leak.values["7.bias"])
            summed += torch.equal(rows.labels, PHOTOS.labels[i : i + 1])
    assert matched >= 22 and summed <= 16


def glyph_batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Half of the batch at random, half of one class."""
    rng = generator(seed, "batch")
    same = (GLYPHS.test.labels == seed % 10).nonzero().flatten()[: size // 2]
    chosen = torch.cat([same, torch.randperm(1000, generator=rng)[: size - len(same)]])
    return GLYPHS.test.inputs[chosen], GLYPHS.test.labels[chosen]


@pytest.mark.parametrize("size", [2, 8, 32])
def test_counts_of_an_untrained_model(size: int) -> None:
    for seed in range(3):
        images, labels = glyph_batch(size, seed)
        for model in (LightCNN(seed=seed), LeNet(10, 1, 28, seed=seed)):
            one = observe_gradient(model, images, labels)
            half = size // 2
            parts = [
                observe_gradient(model, images[:half], labels[:half]),
                observe_gradient(model, images[half:], labels[half:]),
            ]
            for leak in (one, observe_step(model, images, labels, lr=0.1), aggregate(parts)):
                guess = infer_labels(model, leak)
                consistent(guess, size, 10)
                # LeNet's start puts nearly all its belief into two classes: one label may slip.
                slips = int(isinstance(model, LeNet) and size == 32)
                assert label_accuracy(labels, guess.labels) >= 1 - slips / size, guess.reason


def test_counts_from_updates_of_several_steps() -> None:
    for seed in range(3):
        model = LightCNN(seed=seed)
        images, labels = glyph_batch(8, seed)
        for options in (
            {"epochs": 5, "batch_size": None},
            {"epochs": 3, "batch_size": 4},
            {"epochs": 2, "batch_size": 3, "momentum": 0.5},
        ):
            guess = infer_labels(model, observe_update(model, images, labels, lr=0.05, **options))
            assert label_accuracy(labels, guess.labels) >= 7 / 8
            assert not guess.certain or torch.equal(guess.labels, labels.sort().values)


def test_counts_of_a_message_whose_scale_is_hidden() -> None:
    found = []
    for seed in range(4):
        model = LightCNN(seed=seed)
        images, labels = glyph_batch(8, seed)
        leak = observe_gradient(model, images, labels)
        short = leak.with_row(0.01 * leak.row / leak.row.norm(), clip_norm=0.01)
        for hidden in (short, aggregate([leak], normalise=True)):
            guess = infer_labels(model, hidden)
            assert not guess.certain and "scale" in guess.reason
            found.append(label_accuracy(labels, guess.labels))
        loose = leak.with_row(leak.row, clip_norm=1e6)  # never reached: nothing was hidden
        assert torch.equal(infer_labels(model, loose).labels, labels.sort().values)
    assert sum(found) / len(found) > 0.9


def test_a_trained_model_hides_counts_and_says_so() -> None:
    model = LightCNN(seed=0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(300):
        chosen = torch.randint(1000, (32,), generator=generator(step, "train"))
        optimiser.zero_grad()
        outputs = model(GLYPHS.train.inputs[chosen])
        F.cross_entropy(outputs, GLYPHS.train.labels[chosen]).backward()
        optimiser.step()
    public = (GLYPHS.train.inputs[:200], GLYPHS.train.labels[:200])
    alone, helped = [], []
    for seed in range(10):
        images, labels = glyph_batch(16, seed)
        leak = observe_gradient(model, images, labels)
        for found, known in ((alone, None), (helped, public)):
            guess = infer_labels(model, leak, public=known)
            consistent(guess, 16, 10)
            assert not guess.certain and "proven" in guess.reason
            found.append(label_accuracy(labels, guess.labels))
    assert 0.5 < sum(alone) / 10 < 0.99 and sum(helped) / 10 > 0.5
    single = infer_labels(model, observe_gradient(model, images[:1], labels[:1]))
    assert single.certain and torch.equal(single.labels, labels[:1])


def test_the_next_word_of_a_text_model() -> None:
    words = load_dataset("zen").train
    model = NextToken(len(words.classes), seed=0)
    leak = observe_gradient(model, words.inputs[:1], words.labels[:1])
    assert torch.equal(infer_labels(model, leak).labels, words.labels[:1])
    leak = observe_gradient(model, words.inputs[:6], words.labels[:6])
    assert torch.equal(infer_labels(model, leak).labels, words.labels[:6].sort().values)


# --- where it cannot know -------------------------------------------------------------------------


def test_models_without_a_readable_last_layer_are_never_certain() -> None:
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 10, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    frozen = LeNet(10, seed=0)
    frozen[7].requires_grad_(False)
    bent = nn.Sequential(LeNet(10, seed=0), nn.ReLU())
    images, labels = PHOTOS.inputs[3:4], PHOTOS.labels[3:4]
    reasons = {"no linear layer": pooled, "frozen": frozen, "not the output": bent}
    for words, model in reasons.items():
        guess = infer_labels(model, observe_gradient(model, images, labels))
        consistent(guess, 1, 10)
        assert not guess.certain and words in guess.reason
    guess = infer_labels(pooled, observe_gradient(pooled, images, labels))
    assert torch.equal(guess.labels, labels)  # compared with gradients of made-up pictures


def test_a_leak_of_another_model_or_bad_public_samples_are_refused() -> None:
    leak = observe_gradient(LeNet(10, seed=0), PHOTOS.inputs[:1], PHOTOS.labels[:1])
    with pytest.raises(ValueError, match="the model of this leak"):
        infer_labels(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), leak)
    with pytest.raises(ValueError, match="int64"):
        infer_labels(LeNet(10), leak, public=(PHOTOS.inputs, PHOTOS.labels.int()))


def test_an_altered_message_proves_nothing_wrong() -> None:
    model = LightCNN(seed=0)
    images, labels = glyph_batch(4, 1)
    leak = observe_gradient(model, images, labels)
    assert infer_labels(model, leak).certain
    truth = labels.sort().values
    for name, defend in SIMPLE_DEFENCES.items():
        guess = infer_labels(model, defend(leak, 0))
        assert not guess.certain or torch.equal(guess.labels, truth), name
        assert not guess.certain or name in ("clip to 1", "keep 10 %", "keep 1 %"), name


def test_the_model_and_the_leak_stay_as_they_are() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(784, 10),
    )  # fmt: skip
    leak = observe_update(
        model, PHOTOS.inputs[:4], PHOTOS.labels[:4], lr=0.1, epochs=2, batch_size=2
    )
    before, row = {k: v.clone() for k, v in model.state_dict().items()}, leak.row
    first = infer_labels(model, leak, public=(PHOTOS.inputs[8:], PHOTOS.labels[8:]))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(leak.row, row)
    again = infer_labels(model, leak, public=(PHOTOS.inputs[8:], PHOTOS.labels[8:]))
    assert torch.equal(first.scores, again.scores)


# --- the parts ------------------------------------------------------------------------------------


def test_the_path_of_training_by_hand() -> None:
    def path(**public: object) -> tuple[list[float], list[float]]:
        leak = Leak("update", {"w": torch.zeros(1)}, 6, (1,), lr=0.1, **public)
        found = training_path(leak)
        return found.fractions.tolist(), found.shares.tolist()

    assert path() == ([0.0], [1.0])
    fractions, shares = path(epochs=4)
    assert fractions == pytest.approx([0, 0.25, 0.5, 0.75]) and shares == pytest.approx([0.25] * 4)
    # momentum 0.5, two steps: w moves by g, then by 1.5 g; the first gradient enters 1.5 times
    fractions, shares = path(epochs=2, momentum=0.5)
    assert fractions == pytest.approx([0, 0.4]) and shares == pytest.approx([0.6, 0.4])
    assert len(path(epochs=10, local_batch_size=2)[0]) == 5


def test_whole_rows_are_the_best_linear_estimate() -> None:
    """Without noise it is the bias entry itself; under much noise, the projection on the mean."""
    rng = generator(0, "features")
    model = nn.Linear(40, 6)
    features = torch.rand(64, 40, generator=rng).double() + 0.5
    images, labels = features[:4].float(), torch.tensor([0, 1, 1, 5])
    head = find_head(model, observe_gradient(model, images, labels))
    assert head.weight_gradient is not None and head.bias_gradient is not None
    clean, deviation = matched_errors(head, features, 4, 0.0)
    assert torch.allclose(clean, head.bias_gradient, atol=2e-3) and deviation == 0
    noisy, _ = matched_errors(head, features, 4, 1e3)
    mean = torch.cat([features.mean(dim=0), torch.ones(1).double()])
    rows = torch.cat([head.weight_gradient, head.bias_gradient[:, None]], dim=1)
    assert torch.allclose(noisy, rows @ mean / mean.square().sum(), atol=1e-6)
