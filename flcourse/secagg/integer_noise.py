"""Discrete Gaussian and Skellam noise, sampled exactly: whole numbers and random bits, no floats.

    DiscreteGaussian(3.5).draw(1000)         # int64 [1000]

A float sampler draws from a distribution that only resembles the one in the proof, and which
doubles come out depends on the data (Mironov 2012). Here a uniform number ``U`` of 64 random bits
is looked up in a table of the distribution function. Where 64 bits do not decide (a chance of about
table length / 2^64 a draw), ``U`` gets 64 more and the table is made again with more digits, until
they do. The answer is that of an infinitely long ``U`` in an exact table. Chapter 14.
"""

from __future__ import annotations

import decimal
import math
import os
import secrets
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from flcourse.secagg.field import RandomBytes

Integers = NDArray[np.int64]
# First value and weights in units of 2^-bits, each off by less than 2^-(bits − _GUARD).
Weights = Callable[[int], tuple[int, list[int]]]

_WORD = 64
_GUARD = 96  # bits that rounding in a table may cost: tables have fewer than 2^22 entries
_MOST = 2**16  # of a standard deviation: a longer table takes seconds and memory


@dataclass(frozen=True)
class DiscreteGaussian:
    """``P(x) ∝ exp(−x² / 2σ²)`` on the whole numbers.

    ``σ`` is taken as the exact rational that the float is. Its variance is at most ``σ²``.
    Source: Canonne, Kamath & Steinke 2020, "The Discrete Gaussian for Differential Privacy",
    definition 1. Chapter 14. Raises ``ValueError`` unless ``0.05 ≤ σ ≤ 2^16``.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0.05 <= self.sigma <= _MOST:
            raise ValueError(
                f"sigma={self.sigma} must lie in [0.05, {_MOST}], in whole-number units: "
                "choose another scale"
            )

    @property
    def reach(self) -> int:
        """No draw is larger, but with probability below 2^-64."""
        return math.ceil(self.sigma * math.sqrt(2 * (_WORD + 1) * math.log(2))) + 1

    def draw(self, count: int, random_bytes: RandomBytes = os.urandom) -> Integers:
        """``count`` independent draws, int64."""
        return _drawn(("gaussian", self.sigma), count, random_bytes)


@dataclass(frozen=True)
class Skellam:
    """The difference of two Poisson numbers of mean ``variance / 2``; sums stay Skellam.

    Source: Agarwal, Kairouz & Liu 2021, "The Skellam Mechanism for Differentially Private Federated
    Learning", section 2. Chapter 14. Raises ``ValueError`` unless the variance lies in
    [0.001, 2^32].
    """

    variance: float

    def __post_init__(self) -> None:
        if not 1e-3 <= self.variance <= _MOST**2:
            raise ValueError(
                f"variance={self.variance} must lie in [0.001, 2^32], in whole-number units: "
                "choose another scale"
            )

    @property
    def reach(self) -> int:
        """No draw is larger, but with probability below 2^-64 (Bernstein's bound)."""
        log = (_WORD + 1) * math.log(2)
        return math.ceil(math.sqrt(2 * self.variance * log) + log) + 1

    def draw(self, count: int, random_bytes: RandomBytes = os.urandom) -> Integers:
        """``count`` independent draws, int64."""
        law = ("poisson", self.variance / 2)
        return _drawn(law, count, random_bytes) - _drawn(law, count, random_bytes)


def discrete_gaussian_plain(sigma: float, below: Callable[[int], int] = secrets.randbelow) -> int:
    """One draw of the discrete Gaussian by rejection, on whole numbers alone: slow, for reading.

    A discrete Laplace number ``y`` of scale ``t = ⌊σ⌋ + 1`` is kept with probability
    ``exp(−(|y| − σ²/t)² / 2σ²)``. ``below(n)`` is uniform on 0..n−1.
    Source: Canonne, Kamath & Steinke 2020, algorithms 1 to 3. Chapter 14.
    """
    square, t = Fraction(sigma) ** 2, math.floor(sigma) + 1
    while True:
        y = _discrete_laplace(t, below)
        if _coin_exp((abs(y) - square / t) ** 2 / (2 * square), below):
            return y


def _discrete_laplace(t: int, below: Callable[[int], int]) -> int:
    while True:
        u = below(t)
        if not _coin_exp(Fraction(u, t), below):
            continue
        v = 0
        while _coin_exp(Fraction(1), below):
            v += 1
        size, negative = u + t * v, below(2)
        if size or not negative:
            return -size if negative else size


def _coin_exp(gamma: Fraction, below: Callable[[int], int]) -> bool:
    """True with probability ``exp(−γ)``: algorithm 1."""
    while gamma > 1:
        if not _coin_exp(Fraction(1), below):
            return False
        gamma -= 1
    k = 1
    while below(gamma.denominator * k) < gamma.numerator:
        k += 1
    return k % 2 == 1


# --- the table --------------------------------------------------------------------------------


def _gaussian_weights(sigma: float, bits: int) -> tuple[int, list[int]]:
    """``exp(−x²/2σ²)`` for ``|x| ≤ K``, each from the one before: ``w_{x+1} = w_x·r·s^x``."""
    square = 2 * Fraction(sigma) ** 2
    last = math.ceil(sigma * math.sqrt(2 * math.log(2) * bits)) + 1
    ratio, factor = _exp_minus(1 / square, bits), _exp_minus(2 / square, bits)
    weight, half = 1 << bits, [1 << bits]
    for _ in range(last):
        weight = weight * ratio >> bits
        ratio = ratio * factor >> bits
        half.append(weight)
    return -last, half[:0:-1] + half


def _poisson_weights(mean: float, bits: int) -> tuple[int, list[int]]:
    """``λ^k / k!`` as parts of the largest, from the mode up and down until nothing is left."""
    rate = Fraction(mean)
    mode, up, down = math.floor(rate), [1 << bits], []
    k = mode
    while up[-1]:
        k += 1
        up.append(up[-1] * rate.numerator // (rate.denominator * k))
    weight = up[0]
    for k in range(mode, 0, -1):
        weight = weight * k * rate.denominator // rate.numerator
        down.append(weight)
        if not weight:
            break
    return mode - len(down), down[::-1] + up


def _exp_minus(x: Fraction, bits: int) -> int:
    """``⌊e^{−x}·2^bits⌋``, but for its last digit."""
    with decimal.localcontext() as context:
        context.prec = bits // 3 + 20
        context.Emin, context.Emax = decimal.MIN_EMIN, decimal.MAX_EMAX
        power = (-decimal.Decimal(x.numerator) / decimal.Decimal(x.denominator)).exp()
        return int(power * (1 << bits))


@lru_cache(maxsize=16)
def _boundaries(law: tuple[str, float], bits: int) -> tuple[int, list[int], int]:
    """First value, ``⌊2^bits·P(X ≤ first + i)⌋``, and how far each of these may be off."""
    make = {"gaussian": _gaussian_weights, "poisson": _poisson_weights}[law[0]]
    working = bits + _GUARD
    first, weights = make(law[1], working)
    total = sum(weights)
    return first, [(part << bits) // total for part in accumulate(weights)], 2


@lru_cache(maxsize=16)
def _table(law: tuple[str, float]) -> tuple[int, NDArray[np.uint64], NDArray[np.uint64]]:
    """Below ``low[i]``, 64 bits surely mean a value up to ``first + i``; from ``high[i]``, more."""
    first, bounds, slack = _boundaries(law, 2 * _WORD)
    low = [max(bound - slack, 0) >> _WORD for bound in bounds]
    high = [((bound + slack) >> _WORD) + 1 for bound in bounds]
    top = 2**_WORD - 1
    cut = [np.array([min(v, top) for v in side], np.uint64) for side in (low, high)]
    return first, cut[0], cut[1]


def _drawn(law: tuple[str, float], count: int, random_bytes: RandomBytes) -> Integers:
    first, low, high = _table(law)
    uniform = np.frombuffer(random_bytes(8 * count), "<u8")
    # The value is the number of boundaries that U has surely passed, if it is near no other.
    places = np.searchsorted(high, uniform, side="right")
    unsure = places != np.searchsorted(low, uniform, side="right")
    unsure |= uniform == 2**_WORD - 1  # the last boundaries do not fit into 64 bits
    values = first + places.astype(np.int64)
    for i in np.flatnonzero(unsure):
        values[i] = _refined(law, int(uniform[i]), random_bytes)
    return values


def _refined(law: tuple[str, float], uniform: int, random_bytes: RandomBytes) -> int:
    """What ``U`` means, with as many further bits as that takes."""
    bits = _WORD
    while True:
        uniform = uniform << _WORD | int.from_bytes(random_bytes(8), "little")
        bits += _WORD
        first, bounds, slack = _boundaries(law, bits)
        place = bisect_right(bounds, uniform)
        near = bounds[max(place - 1, 0) : place + 1]
        surely = place < len(bounds) and all(
            uniform >= bound + slack or uniform + 1 <= bound - slack for bound in near
        )
        if surely:
            return first + place
