"""The privacy loss distribution, written out: the tightest ε known for sampled Gaussian steps.

``L = ln(P(x) / Q(x))`` is what one output says about whether the row was there. Losses of
independent steps add up, so their distributions are convolved: one FFT, a power, one inverse FFT.
Then ``δ(ε) = E[max(0, 1 − e^{ε − L})]``. Explained in chapter 11.

Everything is rounded to the safe side, so the result is an upper bound up to rounding errors of
the arithmetic: the loss is put on a grid by "connecting the dots" (`discretise`), what the window
cuts off is bounded by Chernoff and added to δ, and what wraps around in it only adds to δ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp, ndtr

from flcourse.privacy.gaussian import gaussian_epsilon
from flcourse.privacy.rdp import log_ratio
from flcourse.privacy.releases import Release, check_delta, require_poisson

Array = NDArray[np.float64]

_TAIL = 1e-6  # what all cut tails together may add to δ, relative to δ
_WRAPPED = 1e-10  # what wraps around in the window, relative to all (it only adds to δ)
_MAX_CELLS = 2**22  # beyond this the grid gets coarser: still an upper bound, less tight
_TILTS = 10 ** np.linspace(-3, 6, 73)


class Losses(NamedTuple):
    """One step's loss on a grid of width ``h``: ``mass[i]`` at ``(start + i)·h``, rest at +∞."""

    start: int
    mass: Array
    infinite: float
    steps: int

    def tilted(self, tilt: float, width: float) -> tuple[Array, float]:
        """``mass·e^{tL} / M`` and ``ln M``: the same losses, seen from the far tail."""
        with np.errstate(divide="ignore"):  # a mass of 0 stays 0
            logs = np.log(self.mass) + tilt * width * (self.start + np.arange(len(self.mass)))
        total = float(logsumexp(logs))
        return np.exp(logs - total), total


def pld_epsilon(releases: Sequence[Release], delta: float) -> float:
    """The least ε at ``δ`` of all releases together, add/remove: the larger of both directions.

    Unsampled Gaussian steps compose to one Gaussian, exactly; alone, they need no grid.
    Source: Koskela, Jälkö & Honkela 2020 (Fourier accountant); Doroshenko et al. 2022, "Connect
    the Dots: Tighter Discrete Approximations of Privacy Loss Distributions". Chapter 11.
    Raises ``ValueError`` if nothing was released, sampling is ``"fixed"``, or ``δ`` is not in
    (0, 1).
    """
    require_poisson(releases, "pld")
    check_delta(delta)
    sampled = [release for release in releases if release.sample_rate < 1]
    squares = sum(r.steps / r.noise_multiplier**2 for r in releases if r.sample_rate == 1)
    if not sampled:
        return gaussian_epsilon(1 / math.sqrt(squares), delta)
    if (
        not squares
        and -math.expm1(sum(r.steps * math.log1p(-r.sample_rate) for r in sampled)) <= delta
    ):
        return 0.0  # the row is most likely never drawn: any output may show it
    if squares:
        sampled.append(Release(1 / math.sqrt(squares)))
    tail = _TAIL * delta / sum(release.steps for release in sampled)
    plans = [_plan(sampled, delta, tail, added) for added in (False, True)]
    width = _width(sampled, tail, plans)
    pairs = [discretise(release, width, tail) for release in sampled]
    directions = zip(*pairs, strict=True)
    return max(
        _epsilon(list(losses), delta, plan, width)
        for losses, plan in zip(directions, plans, strict=True)
    )


def discretise(release: Release, width: float, tail: float) -> tuple[Losses, Losses]:
    """One step on a grid of losses: ``(row removed, row added)``, connecting the dots.

    The losses between two neighbouring grid points are a cell, with mass ``a`` under ``P`` (with
    the row) and ``b`` under ``Q`` (without). Its mass moves to its two ends so that both stay
    right: ``low + high = a`` and ``low·e^{-e_i} + high·e^{-e_{i+1}} = b``. So the new pair of
    distributions is exactly as easy to tell apart at the grid points, and easier in between.
    Read from ``Q`` to ``P`` (the row is added), the same pair has loss ``−e_i``.

    ``tail``: the probability that is cut off at each end. Source: Doroshenko et al. 2022.
    """
    z, q = release.noise_multiplier, release.sample_rate
    first, last = _range(release, tail)
    start = math.floor(first / width)
    ends = width * np.arange(start, math.ceil(last / width) + 1)
    # x at which the loss is e; below ln(1 − q) there is none.
    with np.errstate(divide="ignore", invalid="ignore"):
        x = z**2 * (ends - math.log(q) + np.log(q - (1 - q) * np.expm1(-ends))) + 0.5
    x = np.where(ends > math.log1p(-q), x, -np.inf) if q < 1 else x
    without, shifted = _between(x / z), _between((x - 1) / z)  # N(0, z²) and N(1, z²), by cell
    with_row = (1 - q) * without + q * shifted
    # Inside, two ends share a cell. Outside, the one end takes what keeps both masses right.
    scaled = without[1:-1] * np.exp(ends[:-1])
    high = np.clip((with_row[1:-1] - scaled) / -math.expm1(-width), 0, with_row[1:-1])
    mass = np.zeros(len(ends))
    mass[1:] += high
    mass[:-1] += with_row[1:-1] - high
    mass[0] += with_row[0]
    above = min(without[-1] * math.exp(ends[-1]), with_row[-1])
    mass[-1] += above
    below = max(without[0] - with_row[0] * math.exp(-ends[0]), 0.0)
    added = (mass * np.exp(-ends))[::-1]
    return (
        Losses(start, mass, with_row[-1] - above, release.steps),
        Losses(-(start + len(ends) - 1), added, below, release.steps),
    )


def _between(x: Array) -> Array:
    """Standard normal mass of (−∞, x₀], (x₀, x₁], …, (x_n, ∞), each precise to many digits."""
    left, right = np.append(-np.inf, x), np.append(x, np.inf)
    swap = left > 0  # differences of small numbers, not of numbers near 1
    return ndtr(np.where(swap, -left, right)) - ndtr(np.where(swap, -right, left))


def _range(release: Release, tail: float) -> tuple[float, float]:
    """The losses at both ends of what ``tail`` leaves of ``x``."""
    reach = release.noise_multiplier * math.sqrt(-2 * math.log(tail))
    first, last = log_ratio(release, np.array([-reach, 1 + reach]))
    return float(first), float(last)


class Plan(NamedTuple):
    """Where to look: which tilt, from where to where, and at which power Chernoff's bound holds."""

    tilt: float
    low: float
    high: float
    power: float
    epsilon: float


def _plan(releases: Sequence[Release], delta: float, tail: float, added: bool) -> Plan:
    """Tilt and window from the moments ``K(t) = Σ T ln E[e^{tL}]``, roughly integrated.

    Nothing here needs to be exact: a poor plan costs tightness, not truth.
    """

    def cumulants(powers: Array) -> Array:
        return sum(
            (r.steps * _rough_moments(r, -powers if added else 1 + powers, tail) for r in releases),
            np.zeros(len(powers)),
        )

    t = _TILTS
    moments = cumulants(t)
    # ε by the Rényi bound of order 1 + t: the best order is where the tail at ε comes from.
    bounds = (moments - math.log(delta) - np.log1p(t)) / t + np.log(t / (1 + t))
    best = int(np.argmin(bounds))
    tilt = float(t[best])
    # Chernoff: what lies above `high` is less than _TAIL·δ, and what lies outside of the window
    # is, in the tilted distribution, less than _WRAPPED at either end.
    outside = (moments - math.log(_TAIL * delta)) / t
    right = (cumulants(tilt + t) - moments[best] - math.log(_WRAPPED)) / t
    left = (moments[best] - cumulants(tilt - t) + math.log(_WRAPPED)) / t
    power = int(np.argmin(outside))
    high = max(float(outside[power]), float(right.min()))
    low = min(float(left.max()), float(bounds[best]))
    return Plan(tilt, low, high, float(t[power]), float(bounds[best]))


def _rough_moments(release: Release, powers: Array, tail: float) -> Array:
    z = release.noise_multiplier
    reach = z * math.sqrt(-2 * math.log(tail))
    x = np.linspace(-reach, 1 + reach, 120)
    terms = powers[:, None] * log_ratio(release, x) - x**2 / (2 * z**2)
    scale = math.log((x[1] - x[0]) / (z * math.sqrt(2 * math.pi)))
    return np.asarray(logsumexp(terms, axis=1)) + scale


def _width(releases: Sequence[Release], tail: float, plans: Sequence[Plan]) -> float:
    """The grid's width. Moving mass to the ends of cells adds up to ``T(t + 1)h²/8`` to ε."""
    steps = sum(release.steps for release in releases)
    wanted = min(
        math.sqrt(8e-4 * min(1.0, plan.epsilon) / (steps * (plan.tilt + 1))) for plan in plans
    )
    spans = [last - first for first, last in (_range(release, tail) for release in releases)]
    spans += [plan.high - plan.low for plan in plans]
    return max(wanted, max(spans) / _MAX_CELLS)


def _epsilon(losses: Sequence[Losses], delta: float, plan: Plan, width: float) -> float:
    """Compose all steps in the window of ``plan``, and solve ``δ(ε) = δ``."""
    start = math.floor(plan.low / width)
    size = next_fast_len(math.ceil(plan.high / width) - start + 2, real=True)
    spectrum, total, beyond, finite = np.ones(size // 2 + 1, dtype=complex), 0.0, 0.0, 0.0
    for one in losses:
        weights, moment = one.tilted(plan.tilt, width)
        places = (one.start + np.arange(len(weights))) % size
        spectrum *= rfft(np.bincount(places, weights, size)) ** one.steps
        total += one.steps * moment
        beyond += one.steps * one.tilted(plan.power, width)[1]
        finite += one.steps * math.log1p(-one.infinite)
    grid = width * (start + np.arange(size))
    with np.errstate(over="ignore"):
        untilt = np.exp(np.minimum(total - plan.tilt * grid, 700.0))
    mass = np.maximum(np.roll(irfft(spectrum, size), -start), 0.0) * untilt
    rest = -math.expm1(finite) + math.exp(beyond - plan.power * (grid[-1] + width))
    # Over losses above each grid point: their mass, and their mass under the other distribution.
    above = np.append(np.cumsum(mass[:0:-1])[::-1], 0.0)
    other = mass * np.exp(np.minimum(plan.epsilon - grid, 700.0))
    other = np.append(np.cumsum(other[:0:-1])[::-1], 0.0)
    deltas = above - np.exp(np.minimum(grid - plan.epsilon, 700.0)) * other + rest
    too_large = np.flatnonzero(deltas > delta)
    if not len(too_large):
        return max(float(grid[0]), 0.0)
    last = too_large[-1]
    if last == size - 1:
        return math.inf
    return max(plan.epsilon + math.log((above[last] + rest - delta) / other[last]), 0.0)
