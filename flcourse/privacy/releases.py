"""What was released: the one record that every accountant reads.

A release is ``steps`` runs of the Gaussian mechanism with one noise multiplier ``z = σ / C``: rows
of norm at most ``C`` are summed, and ``N(0, σ²)`` is added to every value of the sum, once. Each
row enters the sum with probability ``sample_rate``.

- Sampling ``"poisson"``: every row enters on its own coin, neighbours differ by one row that is
  there or not (add/remove, sensitivity ``C``).
- Sampling ``"fixed"``: a fixed number of rows is drawn without replacement, neighbours differ by
  one row that is another (replace-one, sensitivity ``2C``). ``z`` is still ``σ / C``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SAMPLINGS = ("poisson", "fixed")


@dataclass(frozen=True)
class Release:
    """``steps`` noisy sums with noise multiplier ``z = σ / C``, each row in with ``sample_rate``.

    Raises ``ValueError`` if ``noise_multiplier`` is not a positive number, ``steps`` is not a whole
    number of at least 1, ``sample_rate`` is outside (0, 1], or ``sampling`` is unknown. Chapter 11.
    """

    noise_multiplier: float
    steps: int = 1
    sample_rate: float = 1.0
    sampling: str = "poisson"

    def __post_init__(self) -> None:
        check_noise_multiplier(self.noise_multiplier)
        if not (self.steps >= 1 and self.steps == int(self.steps)):
            raise ValueError(f"steps={self.steps} must be a whole number of at least 1")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(
                f"sample_rate={self.sample_rate} must lie in (0, 1]: "
                "the probability that a row takes part in a step"
            )
        if self.sampling not in SAMPLINGS:
            raise ValueError(
                f"sampling={self.sampling!r} is unknown: use one of {', '.join(SAMPLINGS)}"
            )


def merged(releases: Iterable[Release]) -> list[Release]:
    """The same releases, equal ones joined: 1,000 rounds recorded one by one are one release."""
    steps: Counter[tuple[float, float, str]] = Counter()
    for release in releases:
        key = (release.noise_multiplier, release.sample_rate, release.sampling)
        steps[key] += int(release.steps)
    return [Release(z, count, q, sampling) for (z, q, sampling), count in steps.items()]


def check_noise_multiplier(noise_multiplier: float) -> None:
    """Raises ``ValueError`` unless ``z`` is a positive number; infinite noise releases nothing."""
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError(
            f"noise_multiplier={noise_multiplier} must be a positive number: "
            "σ divided by the clip norm"
        )


def check_delta(delta: float) -> None:
    """Raises ``ValueError`` unless ``0 < δ < 1``."""
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie in (0, 1), well below 1 / number of people")


def check_epsilon(epsilon: float) -> None:
    """Raises ``ValueError`` unless ``ε`` is a positive number."""
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon} must be a positive number")


def require_poisson(releases: Sequence[Release], method: str) -> None:
    """Raises ``ValueError`` if nothing was released, or a release was not Poisson sampled."""
    if not releases:
        raise ValueError("nothing was released yet: there is no ε to compute")
    if any(release.sampling != "poisson" for release in releases):
        raise ValueError(
            f"method={method!r} has no theorem here for sampling='fixed': use method='rdp', whose "
            "bound for fixed-size samples holds between data sets that differ in one replaced row"
        )


def require_everybody(releases: Sequence[Release], method: str, remedy: str) -> None:
    """Raises ``ValueError`` if some release was subsampled (``q < 1``)."""
    rates = [release.sample_rate for release in releases if release.sample_rate < 1]
    if rates:
        raise ValueError(f"method={method!r} does not cover sample_rate={rates[0]} < 1: {remedy}")
