import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from flcourse.attacks.scoring import score, succeeded, summary
from flcourse.attacks.types import Recovery, Scores
from flcourse.data import load_dataset
from flcourse.metrics import psnr
from flcourse.models import LeNet
from flcourse.runtime import finite_json


@pytest.fixture(scope="module")
def photos():
    return load_dataset("photos").train.inputs[:5]


def noisy(images, size, seed=0):
    return images + size * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


def test_scores_agree_with_scikit_image_picture_by_picture(photos):
    scores = score(Recovery(noisy(photos, 0.1), None, "test"), photos)
    shown = noisy(photos, 0.1).clamp(0, 1)
    for k, (true, guess) in enumerate(zip(photos.numpy(), shown.numpy(), strict=True)):
        assert float(scores.psnr[k]) == pytest.approx(
            peak_signal_noise_ratio(true, guess, data_range=1), abs=1e-3
        )
        assert float(scores.ssim[k]) == pytest.approx(
            structural_similarity(true, guess, data_range=1, channel_axis=0), abs=1e-4
        )
        assert float(scores.mse[k]) == pytest.approx(float(((true - guess) ** 2).mean()), rel=1e-4)
        flat = np.broadcast_to(true.mean(axis=(1, 2), keepdims=True), true.shape)
        assert float(scores.floor[k]) == pytest.approx(
            peak_signal_noise_ratio(true, flat, data_range=1), abs=1e-3
        )


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all_orders(photos, seed):
    shuffled = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    guess = noisy(photos, 0.5, seed)[shuffled]
    found = score(Recovery(guess, None, "test"), photos)

    def error(order):
        return float((guess[list(order)].clamp(0, 1) - photos).square().sum())

    assert tuple(found.order.tolist()) == min(itertools.permutations(range(5)), key=error)


def test_a_stopped_attack_scores_as_grey_fails_and_stays_finite(photos):
    scores = score(Recovery(None, torch.tensor([1, 2, 3, 4, 5]), "test"), photos, torch.arange(5))
    assert torch.isfinite(scores.psnr).all() and torch.isfinite(scores.ssim).all()
    assert bool((scores.psnr <= scores.floor + 1e-4).all()) and not bool(succeeded(scores).any())
    assert scores.label_match == 0.8  # what it did find still counts


def test_nan_is_the_worst_score(photos):
    guess = photos.clone()
    guess[2] = math.nan
    scores = score(Recovery(guess, None, "test"), photos, model=LeNet(10))
    assert scores.psnr[2] == 0 and scores.ssim[2] == -1 and scores.mse[2] == 1
    assert scores.feature_similarity[2] == -1
    assert succeeded(scores).tolist() == [True, True, False, True, True]


def test_labels_match_as_multisets_and_soft_labels_count_as_classes(photos):
    soft = torch.eye(7)[[4, 4, 0, 1, 6]] * 0.9
    scores = score(Recovery(photos, soft, "test"), photos, torch.tensor([0, 1, 2, 4, 4]))
    assert scores.label_match == 0.8
    assert score(Recovery(photos, None, "test"), photos, torch.arange(5)).label_match is None
    assert score(Recovery(photos, soft, "test"), photos).label_match is None


def test_feature_similarity_is_one_for_the_truth_and_none_without_a_model(photos):
    scores = score(Recovery(photos.flip(0), None, "test"), photos, model=LeNet(10))
    assert torch.allclose(scores.feature_similarity, torch.ones(5))
    assert score(Recovery(photos, None, "test"), photos).feature_similarity is None


def test_what_cannot_be_scored_is_refused(photos):
    with pytest.raises(ValueError, match="compare tables"):
        score(Recovery(torch.rand(2, 9), None, "test"), torch.rand(2, 9))
    with pytest.raises(ValueError, match=r"\[b, c, h, w\]"):
        score(Recovery(photos[:3], None, "test"), photos)
    with pytest.raises(ValueError, match="before any normalisation"):
        score(Recovery(photos, None, "test"), 2 * photos - 1)
    with pytest.raises(ValueError, match="at least one"):
        summary([])


def made(psnr, floor, label_match=None):
    row = torch.tensor(psnr)
    return Scores(row, row / 50, row * 0, torch.tensor(floor), torch.arange(len(row)), label_match)


def test_the_summary_agrees_with_numpy_and_counts_success_above_the_floor():
    results = [
        made([19.0, 25.0, 31.0, 22.0], [12.0, 21.0, 29.0, 12.0], 0.5),
        made([40.0], [9.0], 1),
    ]
    row = summary(results)
    values = [19.0, 25.0, 31.0, 22.0, 40.0]
    expected = np.quantile(values, [0.25, 0.5, 0.75])
    assert [row["psnr_low"], row["psnr"], row["psnr_high"]] == pytest.approx(expected)
    assert row["n"] == 5 and row["psnr_min"] == 19 and row["floor"] == 12
    # 19 is below 20 dB; 31 only 2 dB above its floor, which is no success on a flat picture.
    assert row["success"] == 3 / 5
    assert row["label_match"] == pytest.approx((4 * 0.5 + 1) / 5)
    assert summary([made([30.0], [9.0], 1), made([30.0], [9.0])])["label_match"] is None


def test_exact_pictures_make_infinite_medians_not_nan(photos):
    row = summary([score(Recovery(photos, None, "test"), photos)])
    assert row["psnr"] == row["psnr_low"] == math.inf and row["success"] == 1
    mixed = summary([made([math.inf, 30.0, math.inf, 31.0], [9.0] * 4)])
    assert mixed["psnr"] == math.inf and mixed["psnr_low"] == pytest.approx(30.75)
    json.dumps(finite_json(row), allow_nan=False)


# --- wrong scorings that published code contains: each must differ from ours ---------------------


def test_a_clamp_in_normalised_space_spoils_the_true_picture(photos):
    """The fault: the normalised guess is clamped to [0, 1], then un-normalised."""
    mean, std = 0.5, 0.25
    wrong = ((photos - mean) / std).clamp(0, 1) * std + mean
    spoilt = score(Recovery(wrong, None, "test"), photos)
    assert float(spoilt.psnr.max()) < 25
    assert torch.isinf(score(Recovery(photos, None, "test"), photos).psnr).all()


def global_ssim(a, b):
    """The fault: one mean, variance and covariance of the whole picture, and no windows."""
    ma, mb = a.mean(), b.mean()
    covariance = ((a - ma) * (b - mb)).mean()
    light = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return float(light * (2 * covariance + 0.03**2) / (a.var() + b.var() + 0.03**2))


def test_a_global_ssim_hides_that_no_detail_is_left(photos):
    """Blocks of 8×8 keep the layout of light and dark: high as a whole, poor window by window."""
    blocks = F.interpolate(F.avg_pool2d(photos, 8), scale_factor=8)
    ours = score(Recovery(blocks, None, "test"), photos)
    theirs = torch.tensor([global_ssim(a, b) for a, b in zip(photos, blocks, strict=True)])
    assert float((theirs - ours.ssim).median()) > 0.2
    assert bool((theirs > ours.ssim).all())


def test_the_best_restart_by_the_truth_is_not_the_attackers_choice(photos):
    """The fault: of several restarts, the one with the highest PSNR is reported.

    Restarts here are pictures at about one distance from the truth, so all that a choice by PSNR
    adds is knowledge that an attacker does not have.
    """
    model, label = LeNet(10), torch.tensor([3])

    def gradient(image):
        loss = nn.functional.cross_entropy(model(image[None]), label)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])

    gains = []
    for k, photo in enumerate(photos):
        restarts = noisy(photo.expand(8, -1, -1, -1), 0.3, seed=k)
        losses = [float((gradient(r) - gradient(photo)).square().sum()) for r in restarts]
        scores = [score(Recovery(r[None], None, "test"), photo[None]).psnr.item() for r in restarts]
        gains.append(max(scores) - scores[losses.index(min(losses))])
    assert min(gains) >= 0 and sum(gains) / len(gains) > 0.05


def test_scores_without_matching_punish_a_perfect_batch(photos):
    """The fault: picture k of the answer is compared with picture k of the truth."""
    unmatched = psnr(photos, photos.roll(1, 0))
    assert float(unmatched.max()) < 20
    assert torch.isinf(score(Recovery(photos.roll(1, 0), None, "test"), photos).psnr).all()
