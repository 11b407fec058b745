"""Noise for sums of clipped rows: Gaussian, Laplace, and where the random numbers come from.

``gaussian_sum`` and ``laplace_sum`` take a ``Clipped`` only, since noise on what was never clipped
protects nobody. Noise is drawn in float64 on the CPU, then moved: float32 normals end at 5.8
standard deviations, and a δ of 10⁻⁹ is about what happens beyond 6.

**Floating-point noise leaks.** The proofs are about real numbers, and the sum ``x + noise`` of
doubles is not one: which doubles can come out depends on ``x``. Mironov 2012 ("On Significance of
the Least Significant Bits for Differential Privacy") tells neighbours apart by the lowest bits
alone, for any ε, with noise of exactly the right scale. ``SecureNoise`` cures another weakness (a
generator whose seed can be guessed or whose state can be worked out) and makes the lowest bits
harder to use by adding four draws, but only integers cure this one: discrete noise (Canonne, Kamath
& Steinke 2020) on rounded sums, as the secure aggregation of chapter 14 has it. Chapter 10.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from flcourse.privacy.clipping import Clipped, ClippedSum

T = TypeVar("T", Clipped, ClippedSum)

_DRAWS = 4  # normals added to one in SecureNoise


class SecureNoise:
    """Random numbers from the operating system (``os.urandom``); no seed, nothing to repeat.

    For deployments: a seed in a configuration, or one of 32 bits, is noise that can be subtracted.
    Each normal is the sum of four over 2, as Holohan & Braghin 2021 ("Secure Random Sampling in
    Differential Privacy", section 4) propose against attacks on the lowest bits. Slow next to a
    seeded generator. Takes the place of a ``generator`` wherever this package adds noise.
    """

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Float64 in [0, 1) with 53 random bits."""
        count = math.prod(shape)
        raw = torch.frombuffer(bytearray(os.urandom(8 * count)), dtype=torch.int64)
        return ((raw & (2**53 - 1)).double() / 2**53).reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Float64 standard normals: Box & Muller's transform of uniforms, four added up over 2."""
        first, second = self.uniform([_DRAWS, *shape]), self.uniform([_DRAWS, *shape])
        draws = (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
        return draws.sum(dim=0) / math.sqrt(_DRAWS)


Source = torch.Generator | SecureNoise


def gaussian_sum(
    clipped: Clipped | ClippedSum, noise_multiplier: float, generator: Source
) -> Tensor:
    """``Σ_i row_i + N(0, (z·C)² I)``, ``[n, d] -> [d]``: the Gaussian mechanism.

    ``z`` is the noise multiplier ``σ/C``. Between neighbours by add/remove the sum moves by at most
    ``C``, and this costs ``flcourse.privacy.epsilon(z, steps=1, delta=δ)``; by replace-one it moves
    by up to ``2C``, and this costs the ε of ``z/2``.

    Source: Dwork & Roth 2014, "The Algorithmic Foundations of Differential Privacy", A. Chapter 10.
    Raises ``TypeError`` for anything that was not clipped, ``ValueError`` for what was clipped in
    another norm or a multiplier that is not positive.
    """
    total = _total(clipped, 2)
    std = noise_std(clipped, noise_multiplier)
    return total + normal(total.shape, generator).mul_(std).to(total)


def gaussian_rows(clipped: Clipped, noise_multiplier: float, generator: Source) -> Tensor:
    """``row_i + N(0, (z·C)² I)`` for each row on its own, ``[n, d] -> [n, d]``.

    The same noise on each row as ``gaussian_sum`` puts on the sum, so ``n`` times its variance in
    the sum: the price of not trusting whoever adds. Raises as ``gaussian_sum`` does. Chapter 10.
    """
    rows = _checked(clipped, Clipped, 2).rows
    scale = noise_std(clipped, noise_multiplier)
    return rows + (scale * normal(rows.shape, generator)).to(rows)


def noise_std(clipped: Clipped | ClippedSum, noise_multiplier: float) -> float:
    """``σ = z · C``: the standard deviation of each value's noise, in the rows' own units."""
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise ValueError(
            f"noise_multiplier={noise_multiplier} must be a positive number; "
            "for a sum without privacy, add up clipped.rows"
        )
    return noise_multiplier * clipped.clip_norm


def laplace_sum(clipped: Clipped | ClippedSum, epsilon: float, generator: Source) -> Tensor:
    """``Σ_i row_i + Laplace(Δ₁ / ε)`` on each value, ``[n, d] -> [d]``: ε-DP with δ = 0.

    Needs rows clipped in the L1 norm: ``clip_rows(rows, C, order=1)``.

    Source: Dwork et al. 2006, "Calibrating Noise to Sensitivity in Private Data Analysis", section
    3. Chapter 10. Raises ``TypeError`` for anything that is not a ``Clipped``, ``ValueError`` for
    one clipped in another norm or an ε that is not positive.
    """
    total = _total(clipped, 1)
    return total + (_laplace_scale(clipped, epsilon) * laplace(total.shape, generator)).to(total)


def laplace_rows(clipped: Clipped, epsilon: float, generator: Source) -> Tensor:
    """``row_i + Laplace(Δ₁ / ε)`` for each row on its own, ``[n, d]``; as ``laplace_sum``."""
    rows = _checked(clipped, Clipped, 1).rows
    return rows + (_laplace_scale(clipped, epsilon) * laplace(rows.shape, generator)).to(rows)


def normal(shape: Sequence[int], source: Source) -> Tensor:
    """Float64 standard normals on the CPU, from a seeded generator or from ``SecureNoise``."""
    if isinstance(source, SecureNoise):
        return source.normal(shape)
    return torch.randn(tuple(shape), generator=source, dtype=torch.float64)


def uniform(shape: Sequence[int], source: Source) -> Tensor:
    """Float64 in [0, 1) on the CPU, from a seeded generator or from ``SecureNoise``."""
    if isinstance(source, SecureNoise):
        return source.uniform(shape)
    return torch.rand(tuple(shape), generator=source, dtype=torch.float64)


def laplace(shape: Sequence[int], source: Source) -> Tensor:
    """Float64 Laplace draws of scale 1: the difference of two exponentials."""
    first, second = uniform(shape, source), uniform(shape, source)
    return torch.log1p(-second) - torch.log1p(-first)


def _laplace_scale(clipped: Clipped | ClippedSum, epsilon: float) -> float:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon} must be a positive number")
    return clipped.sensitivity / epsilon


def _total(clipped: Clipped | ClippedSum, order: int) -> Tensor:
    if isinstance(clipped, ClippedSum):
        return _checked(clipped, ClippedSum, order).total
    return _checked(clipped, Clipped, order).total().total


def _checked(clipped: T, kind: type[T], order: int) -> T:
    if not isinstance(clipped, kind):
        raise TypeError(
            f"noise on a {type(clipped).__name__} that was never clipped protects nobody: "
            "pass clip_rows(rows, clip_norm)"
        )
    if clipped.order != order:
        name = {1: "Laplace", 2: "Gaussian"}[order]
        raise ValueError(
            f"{name} noise needs rows clipped in the L{order} norm, these were in "
            f"L{clipped.order}: clip_rows(rows, clip_norm, order={order})"
        )
    return clipped
