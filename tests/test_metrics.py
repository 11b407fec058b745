import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from flcourse.metrics import (
    feature_similarity,
    flat_floor,
    label_accuracy,
    lpips,
    lpips_missing,
    match_batch,
    mse,
    psnr,
    ssim,
)
from flcourse.models import LeNet, Normalise


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


def test_mse_agrees_with_torch_and_clamps_the_guess(pictures):
    guess = pictures * 1.5 - 0.2
    for truth, shown, error in zip(pictures, guess.clamp(0, 1), mse(pictures, guess), strict=True):
        assert float(error) == pytest.approx(float(F.mse_loss(shown, truth)), rel=1e-5)
    assert mse(pictures, pictures * math.nan).tolist() == [1, 1, 1]


def test_feature_similarity_is_the_centred_cosine_of_the_last_layers_input(pictures):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Sigmoid(), nn.Flatten())
    model = nn.Sequential(Normalise([0.5] * 3, [0.2] * 3), body, nn.Dropout(), nn.Linear(144, 5))
    flat = pictures.mean(dim=(2, 3), keepdim=True).expand_as(pictures)
    guess = (pictures + flat) / 2
    with torch.no_grad():
        true, half, base = (body((x - 0.5) / 0.2) for x in (pictures, guess, flat))
    oracle = F.cosine_similarity(true - base, half - base)
    assert torch.allclose(feature_similarity(model, pictures, guess), oracle, atol=1e-5)
    assert model.training and float(oracle.max()) < 1
    assert torch.allclose(feature_similarity(model, pictures, flat), torch.zeros(3), atol=1e-5)
    assert torch.allclose(feature_similarity(model, pictures, pictures), torch.ones(3))
    assert feature_similarity(LeNet(10, image_size=16).double(), pictures, guess).shape == (3,)
    with pytest.raises(ValueError, match="no linear layer"):
        feature_similarity(nn.Conv2d(3, 1, 1), pictures, pictures)


def test_lpips_says_what_is_missing_and_never_downloads(pictures, tmp_path, monkeypatch):
    """The package stands in here: only its calls, its range and its weights' file are tested."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install lpips"):
        lpips(pictures, pictures)

    class Stand(nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b, normalize):
            assert a.shape[1] == 3 and normalize and a.min() >= 0 and b.max() <= 1
            return (a - b).square().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Stand))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="not on this machine"):
        lpips(pictures, pictures)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-0.pth").touch()
    assert lpips_missing() is None
    assert lpips(pictures, pictures).tolist() == [0, 0, 0]
    grey = pictures[:, :1]
    assert torch.allclose(lpips(grey, 1 - grey), mse(grey, 1 - grey))
