"""One noisy sum: the (ε, δ) of the Gaussian mechanism, exactly and by the classic formula.

Rows of norm at most ``C`` are summed and ``N(0, σ²)`` is added to every value; neighbouring data
sets differ by one row (add/remove), so the two outputs are Gaussians at a distance of ``C``, and
only the noise multiplier ``z = σ / C`` matters. Explained in chapter 10.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from flcourse.privacy.releases import check_delta, check_epsilon, check_noise_multiplier


def gaussian_delta(epsilon: float, noise_multiplier: float) -> float:
    """``δ(ε) = Φ(1/2z − εz) − e^ε Φ(−1/2z − εz)``: the smallest δ that is true at this ε.

    Exact, for every ``ε ≥ 0``. Source: Balle & Wang 2018, "Improving the Gaussian Mechanism for
    Differential Privacy", Theorem 8. Chapter 10.
    Raises ``ValueError`` if ``ε`` is negative or not finite, or ``z`` is not a positive number.
    """
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon} must be 0 or more")
    check_noise_multiplier(noise_multiplier)
    return math.exp(_log_delta(epsilon, noise_multiplier))


def _log_delta(epsilon: float, z: float) -> float:
    # In logarithms: e^ε overflows at ε = 710, and for small δ the two terms nearly cancel.
    first = log_ndtr(0.5 / z - epsilon * z)
    second = epsilon + log_ndtr(-0.5 / z - epsilon * z)
    return float(first + np.log(-np.expm1(min(second - first, -1e-300))))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The smallest ``ε ≥ 0`` with ``gaussian_delta(ε, z) ≤ δ``: exact for one noisy sum.

    Source: Balle & Wang 2018, Theorem 8. Chapter 10.
    Raises ``ValueError`` if ``z`` is not a positive number or ``δ`` is outside (0, 1).
    """
    check_noise_multiplier(noise_multiplier)
    check_delta(delta)
    z, goal = noise_multiplier, math.log(delta)
    if _log_delta(0.0, z) <= goal:
        return 0.0
    # Twice the concentrated bound (Bun & Steinke 2016) is surely enough.
    most = 2 * (0.5 / z**2 + math.sqrt(-2 * goal) / z)
    return float(brentq(lambda epsilon: _log_delta(epsilon, z) - goal, 0.0, most, xtol=1e-13))


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """The smallest ``z = σ / C`` that gives one noisy sum (ε, δ): the inverse of the above.

    Source: Balle & Wang 2018, Algorithm 1 (by root finding). Chapter 10.
    Raises ``ValueError`` if ``ε`` is not a positive number or ``δ`` is outside (0, 1).
    """
    check_epsilon(epsilon)
    check_delta(delta)
    goal = math.log(delta)
    high = low = 1.0
    while _log_delta(epsilon, high) > goal:
        high *= 2
    while _log_delta(epsilon, low) <= goal:
        low /= 2
    z = float(brentq(lambda z: _log_delta(epsilon, z) - goal, low, high, xtol=1e-300, rtol=1e-14))
    return z * (1 + 1e-13)  # to the safe side of the root's last digits


def classic_noise_multiplier(
    epsilon: float, delta: float, *, beyond_theorem: bool = False
) -> float:
    """``z = √(2 ln(1.25/δ)) / ε``: enough noise for one sum, but only where ``ε < 1``.

    ``beyond_theorem=True`` gives the formula's number for ``ε ≥ 1`` too, where nothing is proved:
    it is too much noise at first and too little at large ε (chapter 10 shows both).
    Source: Dwork & Roth 2014, "The Algorithmic Foundations of Differential Privacy", Theorem A.1.
    Raises ``ValueError`` if ``ε`` is not in (0, 1), or ``δ`` is outside (0, 1).
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if epsilon >= 1 and not beyond_theorem:
        raise ValueError(
            f"epsilon={epsilon}: the classic formula is proved only for ε < 1; "
            "use gaussian_noise_multiplier, which is exact for every ε"
        )
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def classic_epsilon(noise_multiplier: float, delta: float) -> float:
    """``ε = √(2 ln(1.25/δ)) / z``: what the classic formula promises for one sum.

    Source: Dwork & Roth 2014, Theorem A.1. Chapters 10 and 11.
    Raises ``ValueError`` where the answer is not below 1, so not covered by the theorem, if ``z``
    is not a positive number, or ``δ`` is outside (0, 1).
    """
    check_noise_multiplier(noise_multiplier)
    check_delta(delta)
    epsilon = math.sqrt(2 * math.log(1.25 / delta)) / noise_multiplier
    if epsilon >= 1:
        raise ValueError(
            f"noise_multiplier={noise_multiplier} would give ε = {epsilon:.4g} a step, and the "
            "classic formula is proved only for ε < 1; use gaussian_epsilon, or method='pld'"
        )
    return epsilon


def trade_off(noise_multiplier: float, alpha: ArrayLike) -> NDArray[np.float64]:
    """``β(α) = Φ(Φ⁻¹(1 − α) − 1/z)``: what the best test misses at ``α`` false alarms.

    The test says whether somebody's row is in the noisy sum: ``α`` is its type I error (any
    shape, in [0, 1]), the result its type II error, of the same shape. Blind guessing has
    ``β = 1 − α``. Source: Dong, Roth & Su 2019, "Gaussian Differential Privacy", section 2.
    Chapter 10. Raises ``ValueError`` if ``z`` is not a positive number or an ``α`` leaves [0, 1].
    """
    check_noise_multiplier(noise_multiplier)
    alphas = np.asarray(alpha, dtype=np.float64)
    if not ((alphas >= 0) & (alphas <= 1)).all():
        raise ValueError(f"alpha={alpha!r} must lie in [0, 1]: it is a rate of false alarms")
    return np.asarray(ndtr(-ndtri(alphas) - 1 / noise_multiplier))
