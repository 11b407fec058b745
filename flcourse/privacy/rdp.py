"""Rényi accounting: the moments accountant, for Poisson samples and for samples of fixed size.

A Rényi divergence adds up over steps at every order ``α``; in the end one order, the best, turns
the sum into (ε, δ). A badly picked order gives a valid but useless ε. Explained in chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, logsumexp

from flcourse.privacy.releases import Release, check_delta

# The search for the best order: 1 + 10^-4 … 1 + 10^7, first coarse, then exact.
_COARSE = np.linspace(-4, 7, 23)
_CENTRAL = 64  # up to which order the central moments are used for fixed-size samples
# Bounds for fixed-size samples hold at whole orders.
FIXED_ORDERS = (*range(2, 65), *(round(2 ** (k / 4)) for k in range(25, 41)))


def log_ratio(release: Release, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """``ln(1 − q + q·exp((2x − 1) / 2z²))``: how much likelier ``x`` is with the row than without.

    Without it the output is ``N(0, z²)``, with it ``N(1, z²)`` with probability ``q``: in units of
    the clip norm, along the one direction in which the two differ. Chapter 11.
    """
    exponent = (2 * x - 1) / (2 * release.noise_multiplier**2)
    if release.sample_rate == 1:
        return exponent
    return np.logaddexp(math.log1p(-release.sample_rate), math.log(release.sample_rate) + exponent)


def log_moment(release: Release, power: float) -> float:
    """``ln E[ratio(x)^power]`` for ``x ~ N(0, z²)``, by the trapezoid rule; closed form at q = 1.

    On analytic functions that fall like a Gaussian the rule is exact to rounding, once its step is
    well below their width; and below ``πz²``, how far the ratio's zero lies from the real line.
    """
    z = release.noise_multiplier
    if release.sample_rate == 1:
        return power * (power - 1) / (2 * z**2)
    low, high = -12 * z, max(1.0, power) + 12 * z
    x = np.linspace(low, high, 2 + int((high - low) / min(z / 4, z**2 / 3)))
    terms = power * log_ratio(release, x) - x**2 / (2 * z**2)
    return float(logsumexp(terms)) + math.log((x[1] - x[0]) / (z * math.sqrt(2 * math.pi)))


def rdp(release: Release, order: float) -> float:
    """The Rényi divergence of order ``α > 1`` that this release costs, all its steps together.

    Poisson: ``T / (α − 1) · ln E[ratio^α]`` (Mironov, Talwar & Zhang 2019, "Rényi Differential
    Privacy of the Sampled Gaussian Mechanism", section 3.1), at ``q = 1`` it is ``Tα / 2z²``.
    Fixed size: `fixed_size_rdp` times the steps. Chapter 11.
    Raises ``ValueError`` if ``α ≤ 1``, or a fixed-size release meets an order that is not whole.
    """
    if not order > 1:
        raise ValueError(f"order={order} must be greater than 1")
    if release.sampling == "fixed":
        return release.steps * fixed_size_rdp(release, order)
    return release.steps * max(log_moment(release, order), 0.0) / (order - 1)


def fixed_size_rdp(release: Release, order: float) -> float:
    """One step on a sample of fixed size, drawn without replacement; neighbours replace one row.

    ``1/(α−1) · ln(1 + Σ_{j=2}^α q^j·binom(α, j)·c_j)`` with the smaller of two bounds,
    ``c_j = min(2·e^{(j−1)ε(j)}, 4·√(B(2⌊j/2⌋)·B(2⌈j/2⌉)))``, where ``ε(j) = j·2² / 2z²`` (replacing
    a row moves the sum by up to ``2C``) and ``B(l) = E[(ratio − 1)^l]``. At ``q = 1`` it is
    ``ε(α)`` itself. Source: Wang, Balle & Kasiviswanathan 2019, "Subsampled Rényi Differential
    Privacy and Analytical Moments Accountant", Theorems 9 and 27. Chapter 11.
    Raises ``ValueError`` if ``α`` is not a whole number of at least 2.
    """
    if not (order >= 2 and order == int(order)):
        raise ValueError(f"order={order} must be a whole number ≥ 2 for samples of fixed size")
    z, q = release.noise_multiplier, release.sample_rate
    if q == 1:
        return order * 2 / z**2
    j = np.arange(2, int(order) + 1)
    bounds = math.log(2) + (j - 1) * j * 2 / z**2
    near = j <= _CENTRAL
    central = np.array([_log_central_moment(z, 2 * half) for half in range(1, _CENTRAL // 2 + 1)])
    pairs = (central[j[near] // 2 - 1] + central[(j[near] + 1) // 2 - 1]) / 2
    bounds[near] = np.minimum(bounds[near], math.log(4) + pairs)
    binomials = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    terms = j * math.log(q) + binomials + bounds
    return float(np.logaddexp(0.0, logsumexp(terms))) / (order - 1)


@lru_cache(maxsize=2**14)
def _log_central_moment(z: float, power: int) -> float:
    """``ln E[(ratio − 1)^power]`` between data sets that differ in a replaced row, power even."""
    s = z / 2
    x = np.linspace(-12 * s, power + 12 * s, 2 + int(4 * (power + 24 * s) / s))
    exponent = (2 * x - 1) / (2 * s**2)
    away = np.abs(np.expm1(-np.abs(exponent))) + 1e-300
    terms = power * (np.maximum(exponent, 0) + np.log(away)) - x**2 / (2 * s**2)
    return float(logsumexp(terms)) + math.log((x[1] - x[0]) / (s * math.sqrt(2 * math.pi)))


def rdp_to_epsilon(divergence: float, order: float, delta: float) -> float:
    """``ε = R + ln(1 − 1/α) − (ln δ + ln α) / (α − 1)``, and at least 0.

    Source: Canonne, Kamath & Steinke 2020, "The Discrete Gaussian for Differential Privacy",
    Proposition 12. Chapter 11.
    """
    loss = math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
    return max(divergence + loss, 0.0)


def rdp_epsilon(
    releases: Sequence[Release], delta: float, orders: Sequence[float] | None = None
) -> float:
    """The least ε over the orders: all real orders by default, or only the ones that are given.

    Chapter 11. Raises ``ValueError`` if nothing was released, Poisson and fixed-size releases are
    mixed (their neighbours differ), or ``δ`` is outside (0, 1).
    """
    return best_order(releases, delta, orders)[1]


def best_order(
    releases: Sequence[Release], delta: float, orders: Sequence[float] | None = None
) -> tuple[float, float]:
    """``(α, ε)``: the order that gives the least ε, and that ε. Arguments as `rdp_epsilon`."""
    check_delta(delta)
    if not releases:
        raise ValueError("nothing was released yet: there is no ε to compute")
    if len({release.sampling for release in releases}) > 1:
        raise ValueError(
            "sampling='poisson' protects against adding a row, 'fixed' against replacing one: "
            "one ε cannot speak for both; account for them apart"
        )

    def at(order: float) -> float:
        divergence = sum(rdp(release, order) for release in releases)
        return rdp_to_epsilon(divergence, order, delta)

    if orders is not None or releases[0].sampling == "fixed":
        best = min((at(order), order) for order in orders or FIXED_ORDERS)
        return best[1], best[0]
    exponent = _least(lambda exponent: at(1 + 10**exponent))
    return 1 + 10**exponent, at(1 + 10**exponent)


def _least(function: Callable[[float], float]) -> float:
    """Where a function of the exponent with one valley is least; it stops where it only rises."""
    values: list[float] = []
    for exponent in _COARSE:
        values.append(function(float(exponent)))
        if values[-1] > 2 * min(values) and len(values) > 2:
            break  # large orders cost most
    lowest = int(np.argmin(values))
    left, right = _COARSE[max(lowest - 1, 0)], _COARSE[min(lowest + 1, len(values) - 1)]
    found = minimize_scalar(
        function, bounds=(float(left), float(right)), method="bounded", options={"xatol": 1e-4}
    )
    return float(found.x if found.fun <= values[lowest] else _COARSE[lowest])
