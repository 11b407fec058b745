"""Many noisy sums, by the theorems that fit on a line: basic, advanced, zCDP, GDP and its CLT.

Every function takes the releases (they may differ) and ``δ``, and returns the ``ε`` that its
theorem promises for all of them together, add/remove. Explained in chapter 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from flcourse.privacy.gaussian import classic_epsilon, gaussian_epsilon
from flcourse.privacy.releases import Release, check_delta, require_everybody, require_poisson

_PER_STEP: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {"classic": classic_epsilon, "exact": gaussian_epsilon}
)


def basic_epsilon(releases: Sequence[Release], delta: float, *, per_step: str = "classic") -> float:
    """``ε = Σ ε_t``: the promises of the steps add up, and each step gets ``δ_t = δ / T``.

    ``ε_t`` comes from the classic Gaussian formula, as in the recipes that split a budget evenly
    over rounds (``per_step="exact"``: from the exact one, which covers every noise). A sampled
    step counts ``ln(1 + q(e^ε₀ − 1))`` at ``δ_t = q·δ₀``.
    Source: Dwork & Roth 2014, Theorem 3.16; sampling: Balle, Barthe & Gaboardi 2018, Theorem 8.
    Chapter 11. Raises ``ValueError`` where the classic formula does not hold (``ε_t ≥ 1``).
    """
    require_poisson(releases, "basic")
    check_delta(delta)
    each = delta / sum(release.steps for release in releases)
    return sum(release.steps * _step_epsilon(release, each, per_step) for release in releases)


def advanced_epsilon(
    releases: Sequence[Release], delta: float, *, per_step: str = "classic"
) -> float:
    """``ε = √(2 ln(1/δ') Σ ε_t²) + Σ ε_t (e^ε_t − 1)`` with ``δ' = δ/2`` and ``δ_t = δ / 2T``.

    With equal steps this is ``ε_t √(2T ln(1/δ')) + T ε_t (e^ε_t − 1)``. It beats the plain sum
    only where there are many steps with small ``ε_t``. ``per_step`` as in `basic_epsilon`.
    Source: Dwork & Roth 2014, Theorem 3.20 (unequal steps: Rogers et al. 2016). Chapter 11.
    Raises ``ValueError`` where the classic formula does not hold (``ε_t ≥ 1``).
    """
    require_poisson(releases, "advanced")
    check_delta(delta)
    each = delta / 2 / sum(release.steps for release in releases)
    steps = [(release.steps, _step_epsilon(release, each, per_step)) for release in releases]
    squares = sum(count * step**2 for count, step in steps)
    drift = sum(count * step * math.expm1(step) for count, step in steps)
    return math.sqrt(2 * math.log(2 / delta) * squares) + drift


def _step_epsilon(release: Release, delta: float, per_step: str) -> float:
    if per_step not in _PER_STEP:
        raise ValueError(f"per_step={per_step!r} is unknown: use one of {', '.join(_PER_STEP)}")
    q = release.sample_rate
    if delta >= q:
        return 0.0  # a step that touches a row this rarely may as well show it in the clear
    return math.log1p(q * math.expm1(_PER_STEP[per_step](release.noise_multiplier, delta / q)))


def zcdp_epsilon(releases: Sequence[Release], delta: float) -> float:
    """``ε = ρ + 2√(ρ ln(1/δ))`` with ``ρ = Σ 1 / 2z²``: zero-concentrated privacy.

    Source: Bun & Steinke 2016, "Concentrated Differential Privacy", Propositions 1.3 and 1.6,
    Lemma 1.7. Chapter 11. Raises ``ValueError`` for ``q < 1``: sampling does not amplify zCDP.
    """
    require_poisson(releases, "zcdp")
    require_everybody(releases, "zcdp", "sampling does not amplify zCDP; use 'rdp' or 'pld'")
    check_delta(delta)
    rho = sum(release.steps / 2 / release.noise_multiplier**2 for release in releases)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def gdp_epsilon(releases: Sequence[Release], delta: float) -> float:
    """The exact ε of unsampled steps: together they are one Gaussian with ``μ² = Σ 1/z²``.

    Source: Dong, Roth & Su 2019, "Gaussian Differential Privacy", Corollary 3.3 (with ``z = 1/μ``
    in Balle & Wang's formula). Chapter 11. Raises ``ValueError`` for ``q < 1``.
    """
    require_poisson(releases, "gdp")
    require_everybody(releases, "gdp", "use 'pld', or the approximation 'clt'")
    check_delta(delta)
    squares = sum(release.steps / release.noise_multiplier**2 for release in releases)
    return gaussian_epsilon(1 / math.sqrt(squares), delta)


def clt_epsilon(releases: Sequence[Release], delta: float) -> float:
    """An approximation that mostly **understates**: ``μ² = Σ q² (e^{1/z²} − 1)``, then as GDP.

    The central limit of many sampled steps. It is no bound: in most training runs the true ε is
    larger, up to three times at small q; where ``z`` is below about 0.5 the limit is far off on
    the other side. It is here to be compared with, not to be quoted.
    Source: Bu, Dong, Long & Su 2020, "Deep Learning with Gaussian Differential Privacy", section 3.
    Chapter 11. Raises ``ValueError`` for ``q = 1``, where ``"gdp"`` is exact, and where
    ``e^{1/z²}`` overflows (``z < 0.038``).
    """
    require_poisson(releases, "clt")
    check_delta(delta)
    if any(release.sample_rate == 1 for release in releases):
        raise ValueError("method='clt' is the limit of sampled steps: at q = 1 'gdp' is exact")
    z = min(release.noise_multiplier for release in releases)
    if z < 0.038:
        raise ValueError(f"noise_multiplier={z}: e^(1/z²) overflows in method='clt'; use 'pld'")
    squares = sum(
        release.steps * release.sample_rate**2 * math.expm1(release.noise_multiplier**-2)
        for release in releases
    )
    return gaussian_epsilon(1 / math.sqrt(squares), delta)
