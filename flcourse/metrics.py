"""How close a recovered picture is to the true one. Explained in chapter 03.

Pictures are ``[b, c, h, w]`` float32 in [0, 1]. A PSNR without its floor says nothing: on a flat
picture, guessing the mean colour already scores 20 dB, so ``flat_floor`` stands beside every score.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from skimage.metrics import structural_similarity
from torch import Tensor, nn


def psnr(truth: Tensor, guess: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per picture: ``-10·log10(mean((truth - guess)²))``, ``[b]``.

    The guess is scored as it would be shown, clamped to [0, 1]; a NaN counts as worst possible,
    0 dB. Infinite where the two are equal. Raises ``ValueError`` if the shapes differ, or if the
    truth is not in [0, 1] (scored in another space, the figure would mean nothing).
    """
    return 0 - 10 * torch.log10(mse(truth, guess))


def mse(truth: Tensor, guess: Tensor) -> Tensor:
    """Mean squared error per picture, ``[b]``, in squared units of [0, 1].

    The guess is clamped to [0, 1] as in ``psnr``; NaN counts as 1. Raises as ``psnr`` does.
    """
    truth, guess = _pair(truth, guess)
    return (truth - guess).square().flatten(1).mean(dim=1).nan_to_num(nan=1.0)


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


@torch.no_grad()
def feature_similarity(model: nn.Module, truth: Tensor, guess: Tensor) -> Tensor:
    """How alike the model finds two pictures: the cosine of their features, ``[b]``, in [-1, 1].

    Features are the input of the model's last linear layer, as in evaluation mode, less those of
    the flat picture in the truth's mean colour: so the floor scores 0, and a layer whose features
    are all positive does not find everything alike. NaN counts as -1. Chapter 03.
    Raises ``ValueError`` as ``psnr`` does, and for a model without a linear layer.
    """
    truth, guess = _pair(truth, guess)
    model = copy.deepcopy(model).eval()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no linear layer to read features from")
    kept: list[Tensor] = []
    for module in linear:
        module.register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
    flat = truth.mean(dim=(2, 3), keepdim=True).expand_as(truth)
    like = next(model.parameters())
    model(torch.cat([truth, guess, flat]).to(like))
    true, guessed, base = kept[-1].flatten(1).double().chunk(3)
    cosine = torch.cosine_similarity(true - base, guessed - base)
    return cosine.nan_to_num(nan=-1.0).to(truth)


def lpips(truth: Tensor, guess: Tensor) -> Tensor:
    """Learned perceptual distance per picture, ``[b]``, 0 for equal ones (Zhang et al. 2018).

    Needs the optional package ``lpips`` and the AlexNet weights that it builds on; grey pictures
    are shown to it in three channels. Nothing is ever downloaded here: raises ``RuntimeError``
    that says what is missing (``lpips_missing``). Raises ``ValueError`` as ``psnr`` does.
    """
    if missing := lpips_missing():
        raise RuntimeError(missing)
    module = importlib.import_module("lpips")
    truth, guess = (x.float().cpu().expand(-1, 3, -1, -1) for x in _pair(truth, guess))
    with torch.no_grad():
        distance: Tensor = module.LPIPS(net="alex", verbose=False)(truth, guess, normalize=True)
    return distance.reshape(-1)


def lpips_missing() -> str | None:
    """Why ``lpips`` cannot be computed here, or None where it can."""
    if importlib.util.find_spec("lpips") is None:
        return "LPIPS needs the optional package lpips: pip install lpips"
    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet*.pth")):
        return (
            "LPIPS needs AlexNet's weights, which are not on this machine: with a network, run "
            "lpips.LPIPS(net='alex') once, and they are kept"
        )
    return None


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
