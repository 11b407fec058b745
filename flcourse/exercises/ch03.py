"""Checks of chapter 03: a leak without a bias, an objective with its slope, three flaws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from flcourse.exercises._core import Wrong, _Raised, as_tensor, exercise, expect_close
from flcourse.runtime import generator, seeded

# --- 03.1: a first layer without a bias -----------------------------------------------------------


@exercise(
    "03.1",
    title="the leak without a bias",
    hints=(
        "Row i of the weight gradient is δ[i] · x. Without ∂b you do not know δ[i], but you do "
        "know that all rows point the same way. Which row can be trusted most?",
        "δ[i] may be negative, and x lies in [0, 1]: the entry of the row that is largest in size "
        "belongs to the brightest pixel. Divide the row by that entry, with its sign.",
    ),
)
def picture_without_bias(answer: Callable[..., Any]) -> str:
    draws = generator(0, "exercise 03.1")
    for delta, which in (
        ([-0.8, 0.5, 0.2, 0.1], "of a softmax layer"),
        ([0.0, 2e-5, -0.6, 0.0, 1e-5], "of a ReLU layer"),
        ([1e-5, 0.3], "of two neurons"),
    ):
        picture = 0.2 + 0.5 * torch.rand(40, generator=draws)  # neither black nor white is in it
        rounding = 2e-6 * torch.randn(len(delta), 40, generator=draws)
        _check_direction(answer, picture, torch.tensor(delta), rounding, which)
    return (
        "All but the brightness came back. Even that is not safe: the next cell reads it from the "
        "weights."
    )


def _check_direction(
    answer: Callable[..., Any], x: Tensor, delta: Tensor, rounding: Tensor, which: str
) -> None:
    grad_weight = delta[:, None] * x
    grad_weight += rounding * (delta != 0)[:, None]  # a silent neuron sends exact zeros
    got = answer(grad_weight.clone())
    want = x / x.max()
    row = grad_weight[delta.abs().argmax()]
    mistakes: dict[str, object] = {
        "This row is mostly rounding: its δ is tiny. Take the row of greatest length.": _divided(
            grad_weight[delta.abs().masked_fill(delta == 0, 1).argmin()]
        ),
        "This is the last row, whatever it holds: it may be mostly rounding. Take the row of "
        "greatest length.": _divided(grad_weight[-1]),
        "Every row is divided and counts the same, rows of rounding too. Use the longest row "
        "alone.": _divided(grad_weight[delta != 0]).abs().mean(dim=0),
        "This is a row as it stands in the gradient: divide it, so that the brightest pixel is 1."
        "": row,
        "The row has length 1 now. Divide by its largest entry, not by its length: the brightest "
        "pixel should be 1.": row / row.norm(),
        "The row's length is 1, and it is negative as δ is. Divide by the entry that is largest in "
        "size, with its sign.": -row.abs() / row.norm(),
        "The contrast is stretched, so that the darkest pixel became 0. No row says how dark it "
        "is beside 0; only divide.": (x - x.min()) / (x.max() - x.min()),
        "The picture is negative: δ of this row is below 0. Divide by the entry itself, not by its "
        "size.": -want,
        "row.max() of a row with a negative δ is its entry nearest to 0, the darkest pixel. Take "
        "the entry that is largest in size (abs), with its sign.": row / row.max(),
    }
    if isinstance(got, Tensor) and got.shape == grad_weight.shape:
        raise Wrong(
            f"For {len(delta)} neurons you return {len(delta)} rows: choose the one that can be "
            "trusted, and return it as [features]."
        )
    if isinstance(got, Tensor) and got.shape == x.shape and not got.isfinite().all():
        raise Wrong(
            f"For the gradient {which} you return NaN or infinity: 0 is divided by 0. Either the "
            "row is of a silent neuron (take the row of greatest length), or all rows were added "
            "up (δ of a softmax adds up to 0)."
        )
    tip = "Rows of tiny δ are mostly rounding and sums of rows cancel: use the longest row alone."
    what = f"the picture read from the gradient {which}"
    expect_close(got, want, what, tip, mistakes=mistakes, rtol=1e-3)


def _divided(rows: Tensor) -> Tensor:
    """Rows ``[..., f]``, each divided by its entry of largest size."""
    return rows / rows.gather(-1, rows.abs().argmax(dim=-1, keepdim=True))


# --- 03.2: an objective and its slope -------------------------------------------------------------


@exercise(
    "03.2",
    title="the cosine objective and its slope",
    hints=(
        "As in dlg: the gradient that the guess would send needs create_graph=True, or nothing can "
        "be differentiated through it.",
        "One cosine over all layers: add up the dot products of all layers, and their squared "
        "lengths, before you divide. The distance is 1 - dot / (length · length).",
        "(slope,) = torch.autograd.grad(distance, picture), where picture = "
        "picture.clone().requires_grad_() stood on the first line.",
    ),
)
def cosine_gap(answer: Callable[..., Any]) -> str:
    for case, scale in ((0, 1.0), (1, 0.01)):
        _check_gap(answer, case, scale)
    return "No length of the message is in it: clipping it changes nothing for the attacker."


def _check_gap(answer: Callable[..., Any], case: int, scale: float) -> None:
    draws = generator(case, "exercise 03.2")
    with seeded(case, "exercise 03.2, model"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(18, 3))
    model = model.double()
    true, guess = torch.rand(2, 1, 1, 5, 5, generator=draws, dtype=torch.float64)
    label = torch.tensor([case])
    sent = [scale * g for g in _gradient(model, true, label)]
    try:
        got = answer(model, [g.clone() for g in sent], guess.clone(), label.clone())
    except _Raised as raised:
        text = str(raised.__cause__)
        if "does not require grad" in text or "unused in the graph" in text.lower():
            raise Wrong(
                "There is nothing to differentiate: the picture must require grad before the model "
                "sees it (picture.clone().requires_grad_()), and the first derivative must keep "
                f"its graph (create_graph=True). PyTorch said: {text.splitlines()[0]}"
            ) from raised
        raise
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("Return two things: the distance (one number) and its slope, as a picture.")
    distance, slope = as_tensor(got[0], "the distance"), got[1]
    want = _cosine_distance(_gradient(model, guess, label), sent)
    expect_close(
        distance, want, "the distance", mistakes=_other_distances(model, guess, label, sent)
    )
    loss_slope = _slope(lambda x: F.cross_entropy(model(x), label), guess)
    expect_close(
        slope,
        _slope(lambda x: _cosine_distance(_gradient(model, x, label), sent), guess),
        "the slope",
        "Differentiate the distance with respect to the picture.",
        mistakes={
            "This is the slope of the training loss. Wanted is that of the distance, which passes "
            "through the first derivative.": loss_slope
        },
        rtol=1e-3,
        atol=1e-7,
    )


def _gradient(model: nn.Module, picture: Tensor, label: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(picture), label)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _cosine_distance(made: list[Tensor], sent: list[Tensor]) -> Tensor:
    a, b = (torch.cat([g.flatten() for g in gradient]).numpy() for gradient in (made, sent))
    return torch.tensor(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _other_distances(
    model: nn.Module, guess: Tensor, label: Tensor, sent: list[Tensor]
) -> dict[str, object]:
    made = _gradient(model, guess, label)
    pairs = list(zip(made, sent, strict=True))
    each = torch.stack([F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs])
    dot = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    one = 1 - _cosine_distance(made, sent)
    squares = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    lengths = [sum(g.square().sum() for g in gradient) for gradient in (made, sent)]
    return {
        "This is the cosine. A distance is small where two gradients agree: return 1 - cosine."
        "": one,
        "This is the squared distance of dlg: it depends on the message's length. Divide the dot "
        "product by both lengths.": squares,
        "Each layer has a cosine of its own here, so that a layer of few small values weighs as "
        "much as all others. Take one cosine over all values.": 1 - each.mean(),
        "The cosines of the layers are added up. Take one cosine over all values.": (
            1 - each
        ).sum(),
        "The dot product is divided by the squared lengths: take their square roots.": 1
        - dot / (lengths[0] * lengths[1]),
        "The dot product is not divided by the lengths.": 1 - dot,
    }


def _slope(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences: nothing of the student's way to differentiate is in them."""
    slope = torch.zeros_like(at).flatten()
    for place in range(at.numel()):
        shift = torch.zeros_like(at).flatten()
        shift[place] = step
        up, down = (function(at + sign * shift.reshape(at.shape)) for sign in (1, -1))
        slope[place] = ((up - down) / (2 * step)).detach()
    return slope.reshape(at.shape)


# --- 03.3: three flaws ----------------------------------------------------------------------------

_FLAWS = (
    "the clamp stands where pictures are still in the model's units; pixels are in [0, 1] only "
    "after · std + mean",
    "SSIM is one statistic over the whole picture; it is a mean over small windows "
    "(metrics.ssim, or scikit-image with data_range=1)",
    "the best restart is chosen by its PSNR, which needs the truth; an attacker has only losses",
)


@exercise(
    "03.3",
    title="three flaws in one report",
    hints=(
        "Ask of each line: in which units are its numbers, and who could run it? An attacker has "
        "the losses of its restarts and nothing else.",
        "Units first: pictures = (restarts * std + mean).clamp(0, 1).",
        "Then best = losses.argmin(), and metrics.psnr and metrics.ssim of that one picture.",
    ),
)
def report(answer: Callable[..., Any]) -> str:
    for case in range(2):
        _check_report(answer, case)
    return "Each of the three alone changes what the report says of the same attack."


def _check_report(answer: Callable[..., Any], case: int) -> None:
    draws = generator(case, "exercise 03.3")
    mean = torch.tensor([0.45, 0.5, 0.4]).reshape(3, 1, 1)
    std = torch.tensor([0.25, 0.2, 0.3]).reshape(3, 1, 1)
    truth = F.interpolate(torch.rand(1, 3, 4, 4, generator=draws), 16, mode="bilinear")
    noise = torch.randn(3, 3, 16, 16, generator=draws)
    damage = torch.tensor([0.25, 0.05, 0.4])[[case, (case + 1) % 3, (case + 2) % 3]]
    restarts = (truth + damage.reshape(3, 1, 1, 1) * noise - mean) / std
    losses = torch.tensor([0.3, 0.3, 0.3]) + 0.1 * torch.arange(3)
    losses[int(damage.argsort()[1])] = 0.01  # what fits the gradient best is not the nearest
    got = answer(truth.clone(), restarts.clone(), losses.clone(), mean.clone(), std.clone())
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Wrong("Return two numbers: PSNR in dB, and SSIM.")
    pair = torch.stack([as_tensor(v, "PSNR or SSIM").reshape(()) for v in got])
    mistakes: dict[str, object] = {}
    for flaws in itertools.product((True, False), repeat=3):
        if any(flaws):
            left = [text for text, there in zip(_FLAWS, flaws, strict=True) if there]
            count = {1: "One flaw is", 2: "Two flaws are", 3: "All three flaws are"}[len(left)]
            message = f"{count} still there:\n" + "\n".join(f"• {text}." for text in left)
            mistakes[message] = _reported(truth, restarts, losses, mean, std, flaws)
    fair = (False, False, False)
    raw = (restarts * std + mean, restarts.clamp(0, 1), restarts)
    for message, pictures in zip(
        (
            "The picture is not clamped at all: a viewer shows pixels beyond 1 as 1, so score it "
            "as it would be shown.",
            "The units are still the model's: undo the normalisation (· std + mean) before you "
            "clamp and score.",
            "Neither the units are undone nor is anything clamped: (restarts * std + mean)"
            ".clamp(0, 1).",
        ),
        raw,
        strict=True,
    ):
        mistakes[message] = _score(truth, pictures[losses.argmin()], fair[1])
    want = _reported(truth, restarts, losses, mean, std, fair)
    unclamped = _score(truth, (restarts * std + mean)[losses.argmin()], False)
    mistakes["The PSNR is of a picture that is not clamped: score it as it would be shown."] = (
        torch.stack([unclamped[0], want[1]])
    )
    tip = "The first value is PSNR (dB), the second SSIM."
    expect_close(pair, want, "the report (PSNR, SSIM)", tip, mistakes=mistakes, rtol=1e-3)


def _reported(
    truth: Tensor, restarts: Tensor, losses: Tensor, mean: Tensor, std: Tensor,
    flaws: tuple[bool, ...],
) -> Tensor:  # fmt: skip
    clamped_early, global_ssim, by_truth = flaws
    early = restarts.clamp(0, 1) * std + mean
    pictures = early if clamped_early else (restarts * std + mean).clamp(0, 1)
    errors = (pictures - truth).square().flatten(1).mean(dim=1)
    best = errors.argmin() if by_truth else losses.argmin()
    return _score(truth, pictures[best], global_ssim)


def _score(truth: Tensor, picture: Tensor, global_ssim: bool) -> Tensor:
    """PSNR and SSIM by numpy and scikit-image; nothing is clamped here."""
    a, b = truth[0].double().numpy(), picture.double().numpy()
    psnr = -10 * np.log10(np.mean((a - b) ** 2))
    if not global_ssim:
        return torch.tensor([psnr, structural_similarity(a, b, data_range=1.0, channel_axis=0)])
    c1, c2 = 0.01**2, 0.03**2
    covariance = np.mean((a - a.mean()) * (b - b.mean()))
    ssim = (2 * a.mean() * b.mean() + c1) * (2 * covariance + c2)
    ssim /= (a.mean() ** 2 + b.mean() ** 2 + c1) * (a.var() + b.var() + c2)
    return torch.tensor([psnr, ssim])
