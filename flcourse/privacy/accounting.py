"""How much privacy is left: ε of a run, the noise that a budget needs, and one accountant for both.

    epsilon(1.1, steps=1000, delta=1e-5, sample_rate=0.01)            # 1.515
    noise_multiplier(1.5, steps=1000, delta=1e-5, sample_rate=0.01)   # 1.116

``noise_multiplier`` is always ``z = σ / C``. Sampling is Poisson and neighbours differ by one row
that is there or not (add/remove), unless a release says otherwise. Explained in chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from scipy.optimize import brentq

from flcourse.privacy.composition import (
    advanced_epsilon,
    basic_epsilon,
    clt_epsilon,
    gdp_epsilon,
    zcdp_epsilon,
)
from flcourse.privacy.gaussian import gaussian_noise_multiplier
from flcourse.privacy.pld import pld_epsilon
from flcourse.privacy.rdp import rdp_epsilon
from flcourse.privacy.releases import Release, check_delta, check_epsilon, merged

_LEAST_NOISE = 1e-4  # below this the search for a noise multiplier gives up


class Method(NamedTuple):
    """One way to account: what it is called on a page, what its number means, what it covers."""

    title: str
    kind: str  # "exact", "upper bound" or "approximation"
    covers: str
    epsilon: Callable[[Sequence[Release], float], float]


# From the tightest bound to the loosest, the approximation last.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "pld": Method(
            "privacy loss distribution", "upper bound", "q ≤ 1, tight to about 1e-4", pld_epsilon
        ),
        "gdp": Method("Gaussian DP", "exact", "q = 1", gdp_epsilon),
        "rdp": Method("Rényi DP", "upper bound", "q ≤ 1, also samples of fixed size", rdp_epsilon),
        "zcdp": Method("zero-concentrated DP", "upper bound", "q = 1", zcdp_epsilon),
        "advanced": Method(
            "advanced composition", "upper bound", "q ≤ 1, ε_t < 1 a step", advanced_epsilon
        ),
        "basic": Method("basic composition", "upper bound", "q ≤ 1, ε_t < 1 a step", basic_epsilon),
        "clt": Method("Gaussian DP's central limit", "approximation", "q < 1", clt_epsilon),
    }
)


def epsilon(
    noise_multiplier: float,
    steps: int,
    delta: float,
    sample_rate: float = 1.0,
    method: str = "pld",
) -> float:
    """The ε at ``δ`` of ``steps`` noisy sums with ``z = σ / C``, rows in with ``sample_rate``.

    ``method`` is one of `METHODS`. All are upper bounds on the truth but ``"gdp"``, which is the
    truth, and ``"clt"``, which is an approximation and mostly understates.
    Raises ``ValueError`` if ``z`` is not a positive number, ``steps < 1``, ``δ`` is outside (0, 1),
    ``sample_rate`` outside (0, 1], or the method's theorem does not cover the input. Chapter 11.
    """
    check_delta(delta)
    return _method(method)([Release(noise_multiplier, steps, sample_rate)], delta)


def noise_multiplier(
    epsilon: float,
    steps: int,
    delta: float,
    sample_rate: float = 1.0,
    method: str = "pld",
) -> float:
    """The least ``z = σ / C`` with which ``steps`` noisy sums keep (ε, δ): inverts `epsilon`.

    The answer errs to the safe side: ``epsilon(noise_multiplier(ε, …), …) ≤ ε``, by at most 1e-5
    of ``ε`` below. Raises ``ValueError`` as `epsilon` does; where the method's theorem covers no
    noise that gives this ``ε``; and where every noise does (``δ`` above the chance to be sampled).
    Chapter 11.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    Release(1.0, steps, sample_rate)  # refuses bad steps and rates before the search
    account = _method(method)
    refusals: list[ValueError] = []

    @cache
    def excess(log_z: float) -> float:
        try:
            return account([Release(math.exp(log_z), steps, sample_rate)], delta) - epsilon
        except ValueError as refusal:
            if log_z > 20:  # it is not for too little noise that the theorem does not hold
                raise
            refusals.append(refusal)
            return math.inf

    # The central limit, solved for z, is a good place to start.
    mu = 1 / gaussian_noise_multiplier(epsilon, delta)
    low, high = _bracket(excess, -0.5 * math.log(math.log1p((mu / sample_rate) ** 2 / steps)))
    while excess(low) == math.inf:
        middle = (low + high) / 2
        if high - low < 1e-9:
            raise ValueError(
                f"epsilon={epsilon}: method={method!r} promises less at every noise that it covers,"
                f" and nothing beyond ({refusals[-1] if refusals else 'no bound'}); use 'pld'"
            ) from None
        low, high = (low, middle) if excess(middle) <= 0 else (middle, high)
    log_z = float(brentq(excess, low, high, xtol=1e-8))
    while excess(log_z) > 0:
        log_z += 1e-8
    return math.exp(log_z)


def _bracket(excess: Callable[[float], float], guess: float) -> tuple[float, float]:
    """``low < high`` around the root of a falling function."""
    low, high, step = guess, guess, 0.02
    while excess(high) > 0:
        low, high, step = high, high + step, 2 * step
    while excess(low) <= 0:
        low, high, step = low - step, low, 2 * step
        if low < math.log(_LEAST_NOISE):
            raise ValueError(
                "every noise keeps this budget: delta exceeds the chance to be sampled"
            )
    return low, high


def _method(name: str) -> Callable[[Sequence[Release], float], float]:
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown: use one of {', '.join(METHODS)}")
    return METHODS[name].epsilon


class Accountant:
    """Records what was released about the same people, and answers "ε at δ" for all of it.

    One accountant belongs to one data set and one unit of protection (examples or clients): rows
    that were clipped per client and rows that were clipped per example do not add up. The releases
    may differ in noise, sampling rate and number of steps, and may be chosen from what came before
    only if that choice of noise, steps and rate was fixed in advance. Chapter 11.
    """

    def __init__(self) -> None:
        self._releases: list[Release] = []

    @property
    def releases(self) -> tuple[Release, ...]:
        """What was recorded, in order."""
        return tuple(self._releases)

    def record(
        self,
        noise_multiplier: float,
        steps: int = 1,
        sample_rate: float = 1.0,
        sampling: str = "poisson",
    ) -> None:
        """Add ``steps`` noisy sums. Raises ``ValueError`` as `Release` does."""
        self._releases.append(Release(noise_multiplier, steps, sample_rate, sampling))

    def epsilon(self, delta: float, method: str = "pld") -> float:
        """The ε at ``δ`` of everything recorded, 0 if nothing was.

        Raises ``ValueError`` if ``δ`` is outside (0, 1), or the method does not cover a release:
        samples of fixed size are covered by ``"rdp"`` alone, and never mixed with Poisson samples.
        """
        check_delta(delta)
        account = _method(method)
        return account(merged(self._releases), delta) if self._releases else 0.0
