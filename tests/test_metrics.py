import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from flcourse.metrics import flat_floor, label_accuracy, match_batch, psnr, ssim


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_psnr_agrees_with_scikit_image(pictures):
    noisy = (pictures + 0.1).clamp(0, 1)
    for truth, guess, score in zip(pictures, noisy, psnr(pictures, noisy), strict=True):
        oracle = peak_signal_noise_ratio(truth.numpy(), guess.numpy(), data_range=1)
        assert float(score) == pytest.approx(oracle, abs=1e-4)


def test_psnr_of_a_known_error_equal_pictures_and_nan(pictures):
    grey = torch.full((1, 1, 8, 8), 0.5)
    assert float(psnr(grey, grey + 0.1)) == pytest.approx(20, abs=1e-4)
    assert math.isinf(float(psnr(grey, grey)))
    assert float(psnr(grey, grey * math.nan)) == 0


def test_the_guess_is_scored_as_it_would_be_shown():
    white = torch.ones(1, 3, 8, 8)
    assert math.isinf(float(psnr(white, white * 7)))


def test_a_truth_in_another_space_is_refused(pictures):
    with pytest.raises(ValueError, match="before any normalisation"):
        psnr(pictures * 2 - 1, pictures)
    with pytest.raises(ValueError, match=r"\[b, c, h, w\]"):
        psnr(pictures[0], pictures[0])


def test_ssim_is_local_not_one_global_statistic(pictures):
    # Same mean, variance and covariance as a whole, yet no local structure in common.
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., ::2] = 1
    shifted = 1 - truth
    assert float(ssim(pictures, pictures).min()) == pytest.approx(1)
    assert float(ssim(truth, shifted)) < 0
    with pytest.raises(ValueError, match="7×7"):
        ssim(truth[..., :6, :6], truth[..., :6, :6])


def test_the_floor_is_the_score_of_the_mean_colour(pictures):
    flat = pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures)
    assert torch.allclose(flat_floor(pictures), psnr(pictures, flat))
    better = flat + 0.01
    assert bool((flat_floor(pictures) > psnr(pictures, better)).all())


def test_matching_finds_the_order_of_a_shuffled_batch(pictures):
    order = torch.tensor([2, 0, 1])
    assert torch.equal(pictures[order][match_batch(pictures, pictures[order])], pictures)


def test_matching_survives_a_guess_that_is_nan(pictures):
    guess = pictures.clone()
    guess[0] = math.nan
    assert match_batch(pictures, guess).tolist() == [0, 1, 2]


def test_label_accuracy_counts_repeats():
    truth = torch.tensor([1, 1, 2, 3])
    assert label_accuracy(truth, torch.tensor([3, 2, 1, 1])) == 1
    assert label_accuracy(truth, torch.tensor([1, 2, 2, 2])) == 0.5
    with pytest.raises(ValueError, match="label lists"):
        label_accuracy(truth, truth[:2])


def test_scores_do_not_depend_on_the_dtype_of_the_truth(pictures):
    truth, guess = pictures.half(), (pictures + 1e-4).clamp(0, 1)
    assert torch.isfinite(psnr(truth, guess)).all()
    with pytest.raises(ValueError, match="floating point"):
        psnr((pictures * 0).long(), pictures)
    with pytest.raises(ValueError, match="before any normalisation"):
        psnr(pictures * math.nan, pictures)
    assert float(ssim(pictures, pictures * math.nan).max()) == -1
