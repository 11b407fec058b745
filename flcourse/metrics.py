"""How close a recovered picture is to the true one. Explained in chapter 03.

Pictures are ``[b, c, h, w]`` float32 in [0, 1]. A PSNR without its floor says nothing: on a flat
picture, guessing the mean colour already scores 20 dB, so ``flat_floor`` stands beside every score.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import structural_similarity
from torch import Tensor


def psnr(truth: Tensor, guess: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per picture: ``-10·log10(mean((truth - guess)²))``, ``[b]``.

    The guess is scored as it would be shown, clamped to [0, 1]; a NaN counts as worst possible,
    0 dB. Infinite where the two are equal. Raises ``ValueError`` if the shapes differ, or if the
    truth is not in [0, 1] (scored in another space, the figure would mean nothing).
    """
    truth, guess = _pair(truth, guess)
    error = (truth - guess).square().flatten(1).mean(dim=1)
    return 0 - 10 * torch.log10(torch.where(error.isnan(), torch.ones_like(error), error))


def ssim(truth: Tensor, guess: Tensor) -> Tensor:
    """Structural similarity per picture, ``[b]``, in [-1, 1] (Wang et al. 2004, via scikit-image).

    Means over local 7×7 windows with data range 1, not one global statistic. NaN counts as -1.
    Raises ``ValueError`` as ``psnr`` does, and for pictures smaller than 7×7.
    """
    truth, guess = _pair(truth, guess)
    if min(truth.shape[-2:]) < 7:
        raise ValueError(f"SSIM needs pictures of at least 7×7, got {list(truth.shape[-2:])}")
    pairs = zip(truth.double().cpu().numpy(), guess.double().cpu().numpy(), strict=True)
    scores = [structural_similarity(t, g, data_range=1.0, channel_axis=0) for t, g in pairs]
    return torch.tensor(scores, dtype=truth.dtype, device=truth.device).nan_to_num(nan=-1.0)


def flat_floor(truth: Tensor) -> Tensor:
    """PSNR in dB of a flat picture in the truth's mean colour, ``[b]``: the score of no detail."""
    return psnr(truth, truth.mean(dim=(2, 3), keepdim=True).expand_as(truth))


def match_batch(truth: Tensor, guess: Tensor) -> Tensor:
    """The order of the guesses that fits the truths best: ``guess[order]`` lines up with ``truth``.

    A gradient of a batch does not depend on the order of its pictures, so an attack cannot know it.
    Minimises the summed squared error (Hungarian algorithm); returns int64 ``[b]``.
    """
    truth, guess = _pair(truth, guess)
    exact = "donot_use_mm_for_euclid_dist"  # the fast mode cancels when pictures are close
    cost = torch.cdist(truth.flatten(1).double(), guess.flatten(1).double(), compute_mode=exact)
    cost = cost.square()
    _, order = linear_sum_assignment(cost.nan_to_num(nan=1e12).cpu().numpy())
    return torch.as_tensor(order, dtype=torch.int64)


def label_accuracy(truth: Tensor, guess: Tensor) -> float:
    """The part of labels recovered, as multisets: ``|truth ∩ guess| / b``, in [0, 1].

    Raises ``ValueError`` if the two do not hold the same number of labels, or none.
    """
    if truth.shape != guess.shape or truth.dim() != 1 or not len(truth):
        raise ValueError(
            f"expected two label lists [b], got {list(truth.shape)}, {list(guess.shape)}"
        )
    num_classes = int(max(truth.max(), guess.max())) + 1
    counts = [labels.bincount(minlength=num_classes) for labels in (truth, guess)]
    return float(torch.minimum(*counts).sum()) / len(truth)


def _pair(truth: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 (or float64, if one is), on one device, the guess clamped to [0, 1]."""
    if truth.shape != guess.shape or truth.dim() != 4 or not len(truth):
        raise ValueError(
            f"expected two batches [b, c, h, w], got {list(truth.shape)} and {list(guess.shape)}"
        )
    if not truth.is_floating_point() or not guess.is_floating_point():
        raise ValueError(f"pictures are floating point, got {truth.dtype} and {guess.dtype}")
    if not (float(truth.min()) >= 0 and float(truth.max()) <= 1):  # false for NaN, too
        raise ValueError(
            f"the truth spans [{float(truth.min()):.3g}, {float(truth.max()):.3g}]: "
            "score pictures in [0, 1], before any normalisation"
        )
    dtype = torch.promote_types(torch.promote_types(truth.dtype, guess.dtype), torch.float32)
    return truth.detach().to(dtype), guess.detach().to(truth.device, dtype).clamp(0, 1)
