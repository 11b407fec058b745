"""Checks of chapter 10: how far one row moves the sum, the exact σ, an honest share from lies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.privacy.clipping import clip_rows
from flcourse.privacy.gaussian import (
    classic_noise_multiplier,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)
from flcourse.privacy.noise import gaussian_sum
from flcourse.runtime import generator

WIDTH, BOUND = 8, 1.0  # of the rows and of what one of them may do, in 10.1
Release = Callable[..., Tensor]


@exercise(
    "10.1",
    title="find the flaw: noise without clipping",
    hints=(
        "With the same seed in both calls the noise is the same, so it cancels in the difference. "
        "What is left is what one row did.",
        "You choose the rows. What would a row do that is very long? One that points against all "
        "others? One that holds NaN? Measure the length of the difference, and let NaN count as "
        "infinite.",
    ),
)
def largest_move(answer: Callable[..., Any]) -> str:
    for name, release in HONEST.items():
        found = _moved(answer, release)
        if found > BOUND * 1.001:
            told = (
                " If the two calls have different seeds, you measure their noise: use the same."
                if 1.5 < found < 12
                else ""
            )
            raise Wrong(
                f"The release that {name} is sound: no row moves it by more than {BOUND:g}. You "
                f"find {found:.3g}.{told}"
            )
        if found < 0.5 * BOUND:
            raise Wrong(
                f"For the sound release that {name} you find {found:.2g}, but some row moves it by "
                f"{BOUND:g}: add rows at least that long, and measure the length of the difference."
            )
    for (name, advice), release in FLAWED.items():
        found = _moved(answer, release)
        if found <= BOUND * 1.01:
            raise Wrong(
                f"A flaw passes your test: the release that {name}. You find {found:.3g}, within "
                f"the bound of {BOUND:g}. {advice}"
            )
    return (
        f"{len(FLAWED)} flaws found, {len(HONEST)} sound releases passed: a test of sensitivity "
        "that needs no statistics. It says nothing about the noise."
    )


def _moved(answer: Callable[..., Any], release: Release) -> float:
    value = as_tensor(answer(release), "the largest move")
    if value.numel() != 1:
        raise Wrong(f"Return one number, the largest move, not {value.numel()}.")
    if bool(value.isnan()):
        raise Wrong(
            "Your test returns NaN. A release that becomes NaN shows that the row was there: count "
            "it as math.inf."
        )
    return float(value)


def _rows(rows: Any) -> Tensor:
    table = torch.as_tensor(rows).double()
    if table.dim() != 2 or table.shape[1] != WIDTH:
        raise ValueError(f"release takes rows [n, {WIDTH}], got {list(table.shape)}")
    return table


def _noise(seed: int) -> Tensor:
    return torch.randn(WIDTH, generator=generator(seed, "exercise 10.1"), dtype=torch.float64)


def _sound(rows: Any, seed: int) -> Tensor:
    clipped = clip_rows(_rows(rows), BOUND, not_finite="drop")
    return gaussian_sum(clipped, 1.0, generator(seed, "exercise 10.1"))


def _normalised(rows: Any, seed: int) -> Tensor:
    table = _rows(rows)
    norms = table.norm(dim=1, keepdim=True)
    unit = torch.where(norms.isfinite() & (norms > 0), table / norms, torch.zeros_like(table))
    return unit.sum(dim=0) + _noise(seed)


def _unclipped(rows: Any, seed: int) -> Tensor:
    return _rows(rows).nan_to_num(0.0).sum(dim=0) + _noise(seed)


def _sum_clipped(rows: Any, seed: int) -> Tensor:
    total = _rows(rows).nan_to_num(0.0).sum(dim=0)
    return total * min(1.0, BOUND / max(float(total.norm()), 1e-300)) + _noise(seed)


def _values_clamped(rows: Any, seed: int) -> Tensor:
    return _rows(rows).nan_to_num(0.0).clamp(-BOUND, BOUND).sum(dim=0) + _noise(seed)


def _nan_passes(rows: Any, seed: int) -> Tensor:
    table = _rows(rows)
    factor = (BOUND / table.norm(dim=1, keepdim=True)).clamp(max=1)
    return (table * factor).sum(dim=0) + _noise(seed)


HONEST: dict[str, Release] = {
    "clips each row": _sound,
    "stretches or shortens each row to length 1": _normalised,
}
FLAWED: dict[tuple[str, str], Release] = {
    ("clips nothing", "Try a very long row."): _unclipped,
    ("clips the sum", "Try a long row that turns the sum round."): _sum_clipped,
    (
        "clamps each value",
        "Try a row that is large in all values, and measure the length of the whole difference.",
    ): _values_clamped,
    (
        "multiplies by min(1, C / norm)",
        "Try a row with NaN in it: NaN is neither above nor below 1, so it passes such a clip.",
    ): _nan_passes,
}


@exercise(
    "10.2",
    title="the σ that is needed",
    hints=(
        "More noise, less δ: gaussian_delta(epsilon, z) falls as z grows. Halve an interval of z, "
        "from very little noise to very much, until its ends agree.",
        "If gaussian_delta at the middle is above delta, the noise there is too little: that is "
        "the new lower end. Return the upper end (the safe one), times clip_norm: σ = z·C.",
    ),
)
def noise_needed(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 10.2")
    for epsilon in (0.05, 0.5, 1.0, 4.0, 16.0, 64.0):
        exponent, size = torch.rand(2, generator=draw).tolist()
        delta, clip_norm = 10 ** -(4 + 4 * exponent), 0.2 + 3 * size
        _check_noise(answer, epsilon, delta, clip_norm)
    return "Enough, and not more, for every ε: small ones and those past 1."


def _check_noise(answer: Callable[..., Any], epsilon: float, delta: float, norm: float) -> None:
    exact = gaussian_noise_multiplier(epsilon, delta)
    classic = classic_noise_multiplier(epsilon, delta, beyond_theorem=True)
    given = f"ε = {epsilon:g}, δ = {delta:.1e}, C = {norm:.2f}"
    got = as_tensor(answer(epsilon, delta, norm), "σ")
    if got.numel() != 1:
        raise Wrong(f"Return one number, σ; you return {got.numel()}.")
    sigma = float(got)
    mistakes = {
        "This is the classic formula. At ε = 0.05 it is too much noise, at 64 too little: find the "
        "z at which gaussian_delta reaches delta.": classic * norm,
        "This is the classic formula, and without C. Its z is not exact, and σ = z·C.": classic,
        "This is the noise multiplier z. The standard deviation is σ = z·C.": exact,
        "You divide by C; σ = z·C, since noise is measured against what a row can do.": exact
        / norm,
        "This is the variance. Return the standard deviation σ.": (exact * norm) ** 2,
        "This is an ε. Wanted is the σ that gives it.": gaussian_epsilon(max(epsilon, 1e-3), delta),
    }
    for message, wrong in mistakes.items():
        if math.isclose(sigma, wrong, rel_tol=1e-3) and not math.isclose(
            wrong, exact * norm, rel_tol=3e-3
        ):
            raise Wrong(message)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise Wrong(f"For {given} you return σ = {sigma:g}: it must be a positive number.")
    if math.isclose(sigma, exact * norm, rel_tol=1e-3):
        return
    true = gaussian_epsilon(sigma / norm, delta)
    kind = "too little: it truly buys" if sigma < exact * norm else "more than needed: it buys"
    raise Wrong(f"For {given} your σ = {sigma:.4g} is {kind} ε = {true:.3g}.")


@exercise(
    "10.3",
    title="an honest share from lies",
    hints=(
        "If a share f of the clients have the bit, the expected share of ones among the reports is "
        "f·p + (1 − f)·(1 − p), with p = e^ε / (1 + e^ε). Solve for f.",
        "f = (mean − (1 − p)) / (2p − 1). Do not cut it to [0, 1]: that would make it biased.",
    ),
)
def true_share(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 10.3")
    for epsilon in (0.5, 1.0, 3.0):
        for share in (0.5, 0.03, 0.3, 0.97):
            reports = (torch.rand(400, generator=draw) < share).long()
            _check_share(answer, reports, epsilon)
    return "Right on average, whatever the true share. Single estimates may leave [0, 1]."


def _check_share(answer: Callable[..., Any], reports: Tensor, epsilon: float) -> None:
    mean = float(reports.double().mean())
    keep = 1 / (1 + math.exp(-epsilon))
    half = 1 / (1 + math.exp(-epsilon / 2))
    share = (mean - (1 - keep)) / (2 * keep - 1)
    mistakes: dict[str, object] = {
        "This is the share of ones among the reports. Some of them are lies, and at a known rate: "
        "solve mean = f·p + (1 − f)·(1 − p) for f.": mean,
        "You cut the estimate to [0, 1]. Then it is too high on average where the true share is "
        "small: an unbiased estimate must be allowed to leave the interval.": min(max(share, 0), 1),
        "You take away the lies of those who answer 1, (1 − p), but do not divide by 2p − 1.": (
            mean - (1 - keep)
        ),
        "You divide by p. Lies go both ways: what is left of the truth is 2p − 1.": mean / keep,
        "You take away (1 − p) and divide by p. The lies go both ways: divide by 2p − 1.": (
            (mean - (1 - keep)) / keep
        ),
        "Your p is that of e^(ε/2), which is for unary encodings with two bits that differ. Here "
        "p = e^ε / (1 + e^ε).": (mean - (1 - half)) / (2 * half - 1),
        "Your p is the chance of a lie, 1 / (1 + e^ε). The truth has e^ε / (1 + e^ε).": 1 - share,
    }
    got = answer(reports.clone(), epsilon)
    what = f"the share estimated from a mean of {mean:.2f} at ε = {epsilon:g}"
    expect_close(got, torch.tensor(share), what, mistakes=mistakes, rtol=1e-3, atol=1e-4)


@exercise(
    "10.4",
    title="the price of trusting nobody",
    hints=(
        "Local: each report is 0 or 1 with variance p(1 − p), the mean of n has 1/n of it, and the "
        "estimate divides by 2p − 1. Central: Laplace noise of scale 1/ε on the count has variance "
        "2/ε², and the count is divided by n.",
        "local = √(p(1 − p) / n) / (2p − 1) and central = √2 / (ε·n). Return local / central.",
    ),
)
def price(answer: Callable[..., Any]) -> str:
    for n in (100, 5000, 10**6):
        for epsilon in (0.2, 1.0, 3.0):
            _check_price(answer, n, epsilon)
    return "The price grows with √n: the more clients, the dearer it is to trust nobody."


def _check_price(answer: Callable[..., Any], n: int, epsilon: float) -> None:
    keep = 1 / (1 + math.exp(-epsilon))
    local = math.sqrt(keep * (1 - keep) / n) / (2 * keep - 1)
    central = math.sqrt(2) / (epsilon * n)
    mistakes: dict[str, object] = {
        "This is the ratio of the variances. Take the root.": (local / central) ** 2,
        "It is turned round: return local / central.": central / local,
        "A Laplace of scale b has the variance 2b², so the standard deviation √2·b.": local
        / (central / math.sqrt(2)),
        "The central count is divided by n, and so is its noise.": local / (central * n),
        "The central noise is added once to the count and divided by n, not by √n.": local
        / (central * math.sqrt(n)),
        "The local estimate divides by 2p − 1, and its error with it.": local
        * (2 * keep - 1)
        / central,
        "The mean of n reports has 1/n of the variance of one.": local * math.sqrt(n) / central,
        "This is the local error alone: divide by the central one.": local,
        "This is the central error alone: divide the local one by it.": central,
    }
    got = answer(n, epsilon)
    what = f"the price for n = {n:,} and ε = {epsilon:g}"
    expect_close(got, torch.tensor(local / central), what, mistakes=mistakes, rtol=1e-3)
