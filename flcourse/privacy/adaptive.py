"""A clip norm that looks after itself, and pays for looking. Chapter 12."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from flcourse.privacy.noise import Source, normal


@dataclass
class AdaptiveClip:
    """A clip norm that follows a quantile of the update norms, itself estimated with noise.

    After each round ``b̃ = 1/2 + (Σ_i (b_i − 1/2) + N(0, σ_b²)) / m`` estimates the share of the
    ``m`` expected clients with ``b_i = [‖row_i‖ ≤ C]``, and ``C ← C · exp(−η · (b̃ − γ))``.
    ``b_i − 1/2`` is ±1/2, so the count has sensitivity 1/2 and costs as much as a Gaussian of
    multiplier ``2σ_b``: for the round as a whole to have multiplier ``z``, the rows must get
    ``rows_noise_multiplier(z)``, which is larger than ``z``.

    Attributes:
        clip_norm: ``C``, changed by ``update``.
        expected_clients: ``m = q·N``, fixed beforehand.
        quantile: ``γ``. learning_rate: ``η``. count_noise: ``σ_b``; ``m / 20`` unless given.

    Source: Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping",
    Algorithm 1 and Theorem 1. Chapter 10.
    """

    clip_norm: float
    expected_clients: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None
    history: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.count_noise is None:
            self.count_noise = self.expected_clients / 20
        values = (self.clip_norm, self.expected_clients, self.learning_rate, self.count_noise)
        if not all(value > 0 and math.isfinite(value) for value in values):
            raise ValueError(
                f"clip_norm, expected_clients, learning_rate and count_noise {values} "
                "must be positive numbers"
            )
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile={self.quantile} must lie in (0, 1)")

    def rows_noise_multiplier(self, noise_multiplier: float) -> float:
        """``z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2)``: what the rows need so that all of it has ``z``.

        Raises ``ValueError`` if ``z ≥ 2σ_b``: the count alone would tell more than is allowed.
        """
        assert self.count_noise is not None
        left = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if not left > 0:
            raise ValueError(
                f"noise_multiplier={noise_multiplier} with count_noise={self.count_noise}: the "
                f"count alone tells more than that; count_noise must exceed {noise_multiplier / 2}"
            )
        return left**-0.5

    def update(self, norms: Tensor, generator: Source) -> float:
        """Move ``clip_norm`` by the norms ``[n]`` of this round's unclipped rows; the new value.

        A norm that is NaN or infinite counts as too long. The noise comes from ``generator``.
        """
        assert self.count_noise is not None
        self.history.append(self.clip_norm)
        # NaN compares as "not within", so a broken client counts as one that is too long.
        signs = (norms <= self.clip_norm).double().sum() - norms.numel() / 2
        noisy = float(signs) + self.count_noise * float(normal((1,), generator))
        share = 0.5 + noisy / self.expected_clients
        self.clip_norm *= math.exp(-self.learning_rate * (share - self.quantile))
        return self.clip_norm
