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
from flcourse.privacy.rdp import log_ratio, rdp_epsilon
from flcourse.privacy.releases import Release, check_delta, require_poisson

Array = NDArray[np.float64]

_EXCESS = 3e-4  # what the grid may add to ε, relative to ε below 1
_TAIL = 1e-6  # what each cut tail may add to δ, relative to δ
_MAX_CELLS = 2**20  # beyond this the grid gets coarser: still an upper bound, less tight
_MAX_LOSS = 300.0  # in one step: e^300 still fits into a float, with room for products
_MAX_EPSILON = 1e4
_TILTS = 10 ** np.linspace(-3, 6, 73)  # powers t at which the moments E[e^{tL}] are looked at


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
        peak = logs.max()
        weights = np.exp(logs - peak)
        total = weights.sum()
        return weights / total, float(peak + np.log(total))


def pld_epsilon(releases: Sequence[Release], delta: float) -> float:
    """The least ε at ``δ`` of all releases together, add/remove: the larger of both directions.

    Unsampled Gaussian steps compose to one Gaussian, exactly; alone, they need no grid. Where
    there is no privacy left to speak of (a loss above 300 in one step, or ε above 10,000), and
    where the grid would take too much memory, the Rényi bound stands in if it is the smaller.
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
    drawn = -math.expm1(sum(r.steps * math.log1p(-r.sample_rate) for r in sampled))
    if squares:
        sampled.append(Release(1 / math.sqrt(squares)))
    elif drawn <= delta:
        return 0.0  # the row is so rarely drawn that every output may show it
    steps = sum(release.steps for release in sampled)
    tail = _TAIL * delta / steps
    spans = [_range(release, tail) for release in sampled]
    if max(last for _, last in spans) > _MAX_LOSS:
        return rdp_epsilon(releases, delta)
    sketches = [_sketch(sampled, delta, tail, added) for added in (False, True)]
    if max(sketch.epsilon for sketch in sketches) > _MAX_EPSILON:
        return rdp_epsilon(releases, delta)
    # Moving mass to the ends of cells of width h adds at most about T·order·h²/8 to ε.
    wanted = math.sqrt(8 * min(sketch.excess / (steps * sketch.order) for sketch in sketches))
    width = max(wanted, max(last - first for first, last in spans) / _MAX_CELLS)
    while any(_window(s, delta, steps, width).size > _MAX_CELLS for s in sketches):
        width *= 2
    pairs = [discretise(release, width, tail) for release in sampled]
    epsilon = max(
        _epsilon(losses, delta, sketch.epsilon, _window(sketch, delta, steps, width), width)
        for losses, sketch in zip(zip(*pairs, strict=True), sketches, strict=True)
    )
    return epsilon if width == wanted else min(epsilon, rdp_epsilon(releases, delta))


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


class Sketch(NamedTuple):
    """A rough picture of all steps: the moments ``ln E[e^{tL}]``, for t and −t in _TILTS."""

    up: Array
    down: Array
    epsilon: float  # by the Rényi bound, at its best order
    order: float
    excess: float  # what the grid may add to ε


class Window(NamedTuple):
    """The grid points that are looked at, the tilt, and the power of Chernoff's bound beyond."""

    start: int
    size: int
    tilt: float
    power: float


def _sketch(releases: Sequence[Release], delta: float, tail: float, added: bool) -> Sketch:
    """Nothing in it needs to be exact: a poor sketch costs tightness, not truth."""
    up, down = (
        sum(
            (r.steps * _rough_moments(r, -t if added else 1 + t, tail) for r in releases),
            np.zeros(len(t)),
        )
        for t in (_TILTS, -_TILTS)
    )
    bounds = (up - np.log(delta * (1 + _TILTS))) / _TILTS + np.log(_TILTS / (1 + _TILTS))
    epsilon = max(float(bounds.min()), 1e-3)
    order = 1 + float(_TILTS[bounds.argmin()])
    return Sketch(up, down, epsilon, order, _EXCESS * min(1.0, epsilon))


def _window(sketch: Sketch, delta: float, steps: int, width: float) -> Window:
    """The smallest window in which all that matters adds less than ``_TAIL`` to ``δ``."""
    t, cut = _TILTS, math.log(_TAIL * delta)
    useful = t**2 * steps * width**2 < 8  # above, the grid itself would show in the moments
    outside = np.where(useful, (sketch.up - cut) / t, np.inf)  # Chernoff's bound
    high = float(outside.min())
    # What lies above or below the window wraps around, and its weight grows or shrinks by
    # e^{t·size}: a strong tilt needs a larger window for the first, a weak one for the second.
    room = np.maximum(t - t[:, None], 1e-9 * t)
    above = (sketch.up - cut - 0.3 * sketch.epsilon * t) / room
    above = np.where(useful & (t > t[:, None]), above, np.inf).min(axis=1)
    below = (sketch.down - cut + high * t) / (t + t[:, None])
    below = np.where(useful, below, np.inf).min(axis=1)
    sizes = np.maximum(np.maximum(above, below), high)
    # The rounding errors of the FFT, 10^-16 of the tilted whole, must stay small at ε.
    noisy = sketch.up - t * sketch.epsilon - math.log(delta) > 12
    best = int(np.where(useful & ~noisy, sizes, np.inf).argmin())
    start = math.floor((high - float(sizes[best])) / width)
    size = next_fast_len(math.ceil(high / width) - start + 2, real=True)
    return Window(start, size, float(t[best]), float(t[outside.argmin()]))


def _rough_moments(release: Release, powers: Array, tail: float) -> Array:
    z = release.noise_multiplier
    reach = z * math.sqrt(-2 * math.log(tail))
    x = np.linspace(-reach, 1 + reach, 2 + int(4 * (1 + 2 * reach) / z))
    terms = powers[:, None] * log_ratio(release, x) - x**2 / (2 * z**2)
    scale = math.log((x[1] - x[0]) / (z * math.sqrt(2 * math.pi)))
    return np.asarray(logsumexp(terms, axis=1)) + scale


def _epsilon(
    losses: Sequence[Losses], delta: float, near: float, window: Window, width: float
) -> float:
    """Compose all steps in the window, and solve ``δ(ε) = δ``; ``near`` is about where ε lies."""
    start, size, tilt, power = window
    spectrum, total, beyond, finite = np.ones(size // 2 + 1, dtype=complex), 0.0, 0.0, 0.0
    for one in losses:
        weights, moment = one.tilted(tilt, width)
        places = (one.start + np.arange(len(weights))) % size
        spectrum *= _power(rfft(np.bincount(places, weights, size)), one.steps)
        total += one.steps * moment
        beyond += one.steps * one.tilted(power, width)[1]
        finite += one.steps * math.log1p(-one.infinite)
    grid = width * np.arange(start + size)  # only losses above ε ≥ 0 count
    mass = np.maximum(irfft(spectrum, size)[: len(grid)], 0.0)
    mass *= np.exp(np.minimum(total - tilt * grid, 400.0))
    rest = -math.expm1(finite) + math.exp(beyond - power * (grid[-1] + width))
    # Of the losses above each grid point: their mass, also under the other distribution.
    lowest = max(near - _MAX_LOSS, 0.0)  # below, e^{grid − near} is no longer right
    likelihood = np.exp(np.clip(grid - near, -_MAX_LOSS, _MAX_LOSS))
    above, other = _sums_above(mass), _sums_above(mass / likelihood)
    too_large = np.flatnonzero(above - likelihood * other + rest > delta)
    if not len(too_large):
        return lowest
    last = too_large[-1]
    if last == len(grid) - 1:
        return math.inf
    return max(near + math.log((above[last] + rest - delta) / other[last]), lowest)


def _power(spectrum: NDArray[np.complex128], steps: int) -> NDArray[np.complex128]:
    """``spectrum^steps``; frequencies that vanish in it, mostly all but a few, are not computed."""
    result = np.zeros_like(spectrum)
    kept = np.abs(spectrum) > math.exp(-45 / steps)
    result[kept] = spectrum[kept] ** steps
    return result


def _sums_above(values: Array) -> Array:
    return np.append(np.cumsum(values[:0:-1])[::-1], 0.0)
