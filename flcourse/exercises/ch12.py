"""Checks of chapter 12: how long the noise is, who is protected, what a private mean divides by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import as_tensor, exercise, expect_close
from flcourse.runtime import generator


@exercise(
    "12.1",
    title="predict the noise",
    hints=(
        "One value of the noise on the sum has standard deviation σ = z·C. The length of d such "
        "values is √d·σ. The step is the sum divided by n.",
        "n independent noises added up have √n times the standard deviation of one. Then divide "
        "by n, as for the server.",
    ),
)
def noise_norm(answer: Callable[..., Any]) -> str:
    cases = ((50_890, 1.0, 1.0, 5), (1_107_722, 1.0, 3.09, 5), (650, 0.5, 1.2, 100), (9, 2, 0.3, 1))
    for d, clip_norm, z, n in cases:
        for where in ("server", "local"):
            _check_norm(answer, d, clip_norm, z, n, where)
    return "The same z costs √n times more where nobody is trusted to add the noise for all."


def _check_norm(
    answer: Callable[..., Any], d: int, clip_norm: float, z: float, n: int, where: str
) -> None:
    sigma = z * clip_norm
    drawn = {"server": math.sqrt(d) * sigma, "local": math.sqrt(d * n) * sigma}[where]
    mistakes: dict[str, object] = {
        "This is the standard deviation of one value. The noise has d values: its length is √d "
        "times that.": drawn / math.sqrt(d) / n,
        "The length goes with the root of the number of values, √d: squares add up, not values.": (
            drawn * math.sqrt(d) / n
        ),
        "This is the noise on the sum. The step is the sum divided by n, and its noise with it.": (
            drawn
        ),
        "You left the clip norm out: z is a multiple of C, so σ = z·C.": drawn / clip_norm / n,
        "σ is z·C, not z/C: the longer a row may be, the more noise hides it.": (
            drawn / clip_norm**2 / n
        ),
    }
    if where == "local":
        mistakes |= {
            "This is one noise on the sum. Here each of the n clients adds its own, and n "
            "independent noises added up are √n times as long as one.": math.sqrt(d) * sigma / n,
            "Averaging does not leave noise as it was: n noises added up are √n times as long as "
            "one, not n times.": math.sqrt(d) * sigma,
        }
    else:
        mistakes |= {
            "This is what n independent noises leave in the average. The server draws one noise "
            "for the whole sum: it is divided by n.": math.sqrt(d / n) * sigma,
        }
    got = as_tensor(answer(d, clip_norm, z, n, where), "the length")
    what = f'the length for d = {d:,}, C = {clip_norm:g}, z = {z:g}, n = {n}, "{where}"'
    expected = torch.tensor(drawn / n, dtype=torch.float64)
    expect_close(got, expected, what, mistakes=mistakes, rtol=1e-3)


@exercise(
    "12.2",
    title="find the flaw: who is protected?",
    hints=(
        "Take a client with 40 examples away. By how much can the sum move, if each example may "
        "contribute C?",
        "What must be short is all that one client contributes. Add up each client's gradients "
        "first (total.index_add_(0, owner, gradients)), then clip each client's row.",
    ),
)
def client_sum(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 12.2")
    for sizes, d, clip_norm in (((40, 3, 1), 6, 1.0), ((1, 1, 1, 1), 4, 0.5), ((5, 0, 9), 3, 2.0)):
        owner = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
        owner = owner[torch.randperm(len(owner), generator=draw)]
        common = torch.randn(d, generator=draw, dtype=torch.float64)
        gradients = common + torch.randn(len(owner), d, generator=draw, dtype=torch.float64)
        gradients[owner == len(sizes) - 1] *= 0.05  # one client's are short: they stay as they are
        _check_sum(answer, gradients, owner, clip_norm)
    return "Whoever leaves, with 1 example or with 40, moves this sum by C at most: noise fits it."


def _check_sum(
    answer: Callable[..., Any], gradients: Tensor, owner: Tensor, clip_norm: float
) -> None:
    def shorten(rows: Tensor) -> Tensor:
        return rows * (clip_norm / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)

    def totals(rows: Tensor) -> Tensor:
        return torch.stack([rows[owner == k].sum(dim=0) for k in owner.unique()])

    counts = torch.stack([(owner == k).sum() for k in owner.unique()])[:, None]
    mistakes: dict[str, object] = {
        "Each example is clipped, so an example moves the sum by C at most; a client with m "
        "examples moves it by up to m·C. Noise for C protects examples, and the promise was about "
        "clients. Add up each client's gradients first, then clip.": shorten(gradients).sum(dim=0),
        "Clipping the sum of all does not bound one client: the others can be cancelled or "
        "dragged along. Clip each client's row before adding the clients up.": (
            shorten(gradients.sum(dim=0))
        ),
        "Nothing is clipped here.": gradients.sum(dim=0),
        "This is the mean over the clients. Return the sum: what it is divided by comes later.": (
            shorten(totals(gradients)).mean(dim=0)
        ),
        "This divides by the number of examples before clipping: add up, then clip.": (
            shorten(totals(gradients) / counts).sum(dim=0)
        ),
        "Rows shorter than C must stay as they are: min(1, C/length), not C/length.": (
            torch.nn.functional.normalize(totals(gradients), dim=1).sum(dim=0) * clip_norm
        ),
        "One client moves this by C at most, so the promise is kept. But it is clipped twice: the "
        "first clip, of each example, only bends the client's row. Clip the clients' rows alone.": (
            shorten(totals(shorten(gradients))).sum(dim=0)
        ),
    }
    got = answer(gradients.float(), owner.clone(), clip_norm)
    biggest = int(counts.max())
    what = f"the sum for clients of 1 to {biggest} examples"
    expected = shorten(totals(gradients)).sum(dim=0)
    expect_close(got, expected, what, mistakes=mistakes, rtol=1e-3, atol=1e-4)


@exercise(
    "12.3",
    title="what a private mean divides by",
    hints=(
        "How many came is private: a client's presence must not change the denominator. And a "
        "weight of 400 lets a client move the sum by 400·C.",
        "(rows clipped, added up, plus the noise) / expected. Nothing else: no weights, no "
        "len(rows).",
    ),
)
def private_mean(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 12.3")
    for came, expected, clip_norm in ((7, 10.0, 1.0), (12, 10.0, 0.5), (0, 4.0, 1.0)):
        rows = 2 * torch.randn(came, 5, generator=draw, dtype=torch.float64) + 1
        rows[::4] *= 0.05  # shorter than C: they stay as they are
        weights = torch.randint(5, 400, (came,), generator=draw).double()
        noise = clip_norm * torch.randn(5, generator=draw, dtype=torch.float64)
        _check_mean(answer, rows, weights, expected, clip_norm, noise)
    return "An empty cohort gives noise alone, and nobody can tell that it was empty."


def _check_mean(
    answer: Callable[..., Any],
    rows: Tensor,
    weights: Tensor,
    expected: float,
    clip_norm: float,
    noise: Tensor,
) -> None:
    cut = rows * (clip_norm / rows.norm(dim=1, keepdim=True)).clamp(max=1)
    total, came = cut.sum(dim=0), max(len(rows), 1)
    weighted = (weights[:, None] * cut).sum(dim=0)
    share = weights.sum().clamp(min=1)
    mistakes: dict[str, object] = {
        "You divide by the number that came. It is private: with one client fewer, all that the "
        "others sent is divided by another number. Divide by the number expected.": (
            (total + noise) / came
        ),
        "The weights undo the clipping: a client with 400 samples moves the sum by 400·C. Here "
        "every client counts once.": (weighted + noise) / share,
        "The sample counts lengthen the rows after the clip. Every client counts once.": (
            (weighted + noise) / expected
        ),
        "This weighs the mean by sample counts and adds the whole noise to it. Every client counts "
        "once, and the noise belongs to the sum.": weighted / share + noise,
        "The noise was drawn for the sum. Added to the mean it is too much: divide both.": (
            total / expected + noise
        ),
        "Nothing is clipped: the noise was drawn for rows no longer than C.": (
            (rows.sum(dim=0) + noise) / expected
        ),
        "Rows shorter than C must stay as they are: min(1, C/length), not C/length.": (
            (torch.nn.functional.normalize(rows, dim=1).sum(dim=0) * clip_norm + noise) / expected
        ),
        "There is no noise in it.": total / expected,
        "The mean is clipped, the rows are not. One long row can turn it round.": (
            (rows.sum(dim=0) * (clip_norm / rows.sum(dim=0).norm().clamp(min=clip_norm)) + noise)
            / expected
        ),
    }
    got = answer(rows.float(), weights.float(), expected, clip_norm, noise.float())
    what = f"the mean of {len(rows)} rows where {expected:g} were expected"
    expect_close(got, (total + noise) / expected, what, mistakes=mistakes, rtol=1e-3, atol=1e-4)
