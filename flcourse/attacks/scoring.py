"""A recovery beside the truth: the only place of the attacks that ever sees the truth. Chapter 03.

Each trap has its place here: pictures are matched first (a batch has no order), compared in [0, 1]
as they would be shown, and never without the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flcourse.attacks.types import Recovery, Scores
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

SUCCESS_DB = 20.0
MARGIN_DB = 3.0


def score(
    recovery: Recovery,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    model: nn.Module | None = None,
) -> Scores:
    """Score a recovery against the true ``images`` ``[b, c, h, w]`` in [0, 1].

    Recovered pictures are lined up with the truth first (Hungarian algorithm, least squared error).
    ``label_match`` needs ``labels`` ``[b]``; soft labels ``[b, k]`` count as their largest class.
    ``feature_similarity`` needs the ``model``; ``lpips`` the optional package with its weights.

    An attack that stopped (``recovery.images`` is None) is scored as plain grey, 0.5: all that can
    be said of a picture without having seen it. That is never above the floor, so such an attack
    counts as failed and still has its place in a median.
    Raises ``ValueError`` for a truth outside [0, 1], another number or shape of pictures, and for
    tables ``[b, f]``, which have no PSNR. Chapter 03.
    """
    if images.dim() != 4:
        raise ValueError(
            f"the truth has shape {list(images.shape)}: scores are for pictures [b, c, h, w]; "
            "compare tables by their error per column, e.g. (truth - guess).abs().amax(dim=0)"
        )
    guess = torch.full_like(images, 0.5) if recovery.images is None else recovery.images
    order = match_batch(images, guess)
    guess = guess[order.to(guess.device)]
    return Scores(
        psnr=psnr(images, guess),
        ssim=ssim(images, guess),
        mse=mse(images, guess),
        floor=flat_floor(images),
        order=order,
        label_match=_label_match(recovery.labels, labels),
        feature_similarity=None if model is None else feature_similarity(model, images, guess),
        lpips=None if lpips_missing() else lpips(images, guess),
    )


def succeeded(scores: Scores) -> Tensor:
    """Which pictures came back, ``[b]`` bool: PSNR above 20 dB and 3 dB or more above its floor.

    On a flat picture the floor itself may lie above 20 dB; 3 dB halves the squared error.
    """
    return (scores.psnr > SUCCESS_DB) & (scores.psnr >= scores.floor + MARGIN_DB)


def summary(results: Sequence[Scores]) -> dict[str, float | int | None]:
    """One row of a table, over all pictures of all ``results``.

    ``n`` pictures; ``success`` the part of them that came back (``succeeded``); ``psnr``, ``ssim``
    and ``floor`` medians; ``psnr_low``, ``psnr_high`` quartiles (linear between ranks);
    ``psnr_min`` the worst; ``label_match`` the mean over pictures, None unless every result has it.
    Raises ``ValueError`` without results.
    """
    if not results:
        raise ValueError("no scores to summarise: give at least one")
    psnrs, ssims, floors = (
        torch.cat([getattr(result, name).double().cpu() for result in results]).tolist()
        for name in ("psnr", "ssim", "floor")
    )
    matches = [result.label_match for result in results]
    shares = [m * len(r.psnr) for m, r in zip(matches, results, strict=True) if m is not None]
    return {
        "n": len(psnrs),
        "success": sum(int(succeeded(result).sum()) for result in results) / len(psnrs),
        "psnr": _quantile(psnrs, 0.5),
        "psnr_low": _quantile(psnrs, 0.25),
        "psnr_high": _quantile(psnrs, 0.75),
        "psnr_min": min(psnrs),
        "ssim": _quantile(ssims, 0.5),
        "floor": _quantile(floors, 0.5),
        "label_match": sum(shares) / len(psnrs) if len(shares) == len(results) else None,
    }


def _label_match(guess: Tensor | None, truth: Tensor | None) -> float | None:
    if guess is None or truth is None:
        return None
    classes = guess.argmax(dim=1) if guess.dim() == 2 else guess
    return label_accuracy(truth.cpu(), classes.cpu())


def _quantile(values: Sequence[float], q: float) -> float:
    """Linear between ranks, as numpy has it, but also where an exact picture scored infinity."""
    ranked = sorted(values)
    place = q * (len(ranked) - 1)
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    return low if low == high else low + (place - math.floor(place)) * (high - low)
