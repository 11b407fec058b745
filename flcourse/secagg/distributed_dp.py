"""Distributed DP: each client adds a share of the noise inside the masked sum.

    dp = DistributedDP(clip_norm=1.0, noise_multiplier=1.1, num_clients=100, num_values=1000)
    total = private_sum(clip_rows(rows, 1.0), dp)        # float64 [d], the noise is in it
    dp.epsilon(delta=1e-5, steps=10)

A server that adds the noise itself must be trusted with the exact sum; a client that makes its own
message private (chapter 10) needs √n times as much. Masks hide the messages, so nobody is trusted
and shares of ``1/n`` of the variance are enough. Masks live on whole numbers, so the noise does
too. Chapter 14.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from flcourse.fedavg import Aggregate
from flcourse.privacy.clipping import Clipped, clip_rows
from flcourse.privacy.rdp import rdp_to_epsilon
from flcourse.privacy.releases import check_delta, check_epsilon
from flcourse.runtime import generator
from flcourse.secagg.field import FixedPoint, RandomBytes, bits_needed
from flcourse.secagg.integer_noise import DiscreteGaussian, Integers, Skellam

NOISES, ADJACENCIES = ("gaussian", "skellam"), ("zero-out", "replace-one")
_ORDERS = 1 + 10 ** np.linspace(-3, 4, 1500)  # each gives a true bound: a grid costs tightness only
_ROUNDING = 1e-5  # of a norm in float32
_RARE = 64 * math.log(2)  # of 2^-64, where a rotation meets a bound only almost surely
_EXACT = 2**24  # whole numbers that float32 holds

Adder = Callable[[Integers, int], Integers]


@dataclass(frozen=True)
class DistributedDP:
    """A noisy sum of ``n`` clients' rows ``[d]`` modulo ``2^bits``, and what it costs.

    Attributes:
        clip_norm: ``C``, the greatest length of a row.
        noise_multiplier: ``z``: the noise of the sum has standard deviation ``z·C`` a value, where
            ``honest`` clients add their shares.
        num_clients: ``n``, how many rows are added at most.
        num_values: ``d``.
        noise: ``"gaussian"`` (discrete) or ``"skellam"``.
        honest: how many shares of noise are surely in the sum and known to no attacker (``n`` less
            those who drop out or collude; all unless given). More shares only add to the noise.
        precision: ``C`` becomes ``2^(precision−1)`` steps.
        rotate: first rotate at random (Hadamard, public signs from ``seed``), so that no value is
            large and few bits are enough.
        adjacency: ``"zero-out"`` (one client's row becomes zeros; it stays, and adds its noise), or
            ``"replace-one"`` (any other row, twice the sensitivity).

    Source: Kairouz, Liu & Steinke 2021, "The Distributed Discrete Gaussian Mechanism for Federated
    Learning with Secure Aggregation", algorithms 1 and 2; Agarwal, Kairouz & Liu 2021, "The Skellam
    Mechanism for Differentially Private Federated Learning", algorithm 1. Chapter 14.
    Raises ``ValueError`` for options outside their range, and where the local noise of a discrete
    Gaussian is below half a step (the theorem's condition): raise the precision.
    """

    clip_norm: float
    noise_multiplier: float
    num_clients: int
    num_values: int
    noise: str = "gaussian"
    honest: int | None = None
    precision: int = 14
    rotate: bool = True
    adjacency: str = "zero-out"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be a positive number")
        if self.num_clients < 1 or self.num_values < 1:
            raise ValueError(
                f"num_clients={self.num_clients} and num_values={self.num_values}: both must be 1 "
                "or more"
            )
        if not 1 <= self.shares <= self.num_clients:
            raise ValueError(f"honest={self.honest} must lie in 1 to {self.num_clients}")
        if self.noise not in NOISES:
            raise ValueError(f"noise={self.noise!r} is unknown: use {' or '.join(NOISES)}")
        if self.adjacency not in ADJACENCIES:
            raise ValueError(f"adjacency={self.adjacency!r}: use {' or '.join(ADJACENCIES)}")
        if not 2 <= self.precision <= 24:
            raise ValueError(f"precision={self.precision} must lie in 2 to 24 bits")
        if self.noise == "gaussian" and self.local_std < 0.5:
            raise ValueError(
                f"a local noise of {self.local_std:.3g} steps is too coarse for the theorem, which "
                "wants 0.5: raise precision, or use noise='skellam'"
            )
        try:
            _ = self.local_noise
        except ValueError as error:
            raise ValueError(
                f"a local noise of {self.local_std:.3g} steps is beyond the sampler ({error}): "
                "change precision, each bit less halves it"
            ) from error

    # --- units: whole-number steps ------------------------------------------------------------

    @property
    def shares(self) -> int:
        """``h``: honest shares of noise."""
        return self.num_clients if self.honest is None else self.honest

    @property
    def steps_per_clip(self) -> int:
        """``C`` in steps: ``2^(precision−1)``."""
        return int(2 ** (self.precision - 1))

    @property
    def step(self) -> float:
        """What one unit of the whole numbers means, in the rows' units."""
        return self.clip_norm / self.steps_per_clip

    @property
    def width(self) -> int:
        """``d``, or the power of two above it, which a rotation needs."""
        return 1 << (self.num_values - 1).bit_length() if self.rotate else self.num_values

    @property
    def largest_square(self) -> int:
        """``⌊Δ²⌋``: no rounded row has a larger sum of squares, in steps.

        ``Δ² = min((R + √d)², R² + d/4 + √(2 ln 1/β)·(R + √d/2))`` with ``R = C`` in steps and
        ``β = e^{−1/2}``; rounding is repeated until it holds, as it does with chance ``1 − β``.
        Source: Kairouz et al. 2021, algorithm 1 (conditional randomised rounding).
        """
        radius, root = self.steps_per_clip, math.sqrt(self.width)
        likely = radius**2 + self.width / 4 + radius + root / 2
        return math.floor(min((radius + root) ** 2, likely))

    @property
    def sensitivity(self) -> tuple[float, float]:
        """``(Δ₂, Δ₁)`` of the sum in steps; of whole numbers ``Δ₁ ≤ min(√d·Δ₂, Δ₂²)``."""
        times = 1 if self.adjacency == "zero-out" else 2
        square = float(self.largest_square)
        return times * math.sqrt(square), times * min(math.sqrt(self.width * square), square)

    @property
    def local_std(self) -> float:
        """A client's own noise, in steps: ``z·R / √h``."""
        return self.noise_multiplier * self.steps_per_clip / math.sqrt(self.shares)

    @property
    def local_noise(self) -> DiscreteGaussian | Skellam:
        """What each client draws from."""
        if self.noise == "gaussian":
            return DiscreteGaussian(self.local_std)
        return Skellam(self.local_std**2)

    @property
    def value_bound(self) -> int:
        """No whole number of a client's message is larger (a rotated one with chance 1 − 2^-64)."""
        spread = 1.0
        if self.rotate:
            tail = 2 * (math.log(2 * self.width) + _RARE)
            spread = min(1.0, math.sqrt(tail / self.width))
        return math.ceil(self.steps_per_clip * spread) + 1 + self.local_noise.reach

    @property
    def bits(self) -> int:
        """Of the modulus: no sum of ``n`` messages overflows."""
        return max(bits_needed(self.value_bound, self.num_clients), 8)

    # --- a client, and the sum ------------------------------------------------------------------

    def encode(self, row: object, random_bytes: RandomBytes = os.urandom) -> Integers:
        """One client's message: rotated, rounded at random, noise added: ``[d] -> int64 [width]``.

        Raises ``ValueError`` for a row longer than ``clip_norm``, of another shape or not finite.
        """
        values = torch.as_tensor(row).detach().cpu().double().numpy()
        if values.shape != (self.num_values,):
            raise ValueError(f"a row of shape {list(values.shape)}: expected [{self.num_values}]")
        length = float(np.linalg.norm(values))
        if not length <= self.clip_norm * (1 + _ROUNDING):
            raise ValueError(
                f"a row of length {length:g} is longer than clip_norm={self.clip_norm} or not "
                "finite: use clip_rows first"
            )
        scaled = self._rotated(values * (1 / max(length / self.clip_norm, 1.0)) / self.step)
        numbers = self._rounded(scaled, random_bytes)
        numbers = numbers + self.local_noise.draw(self.width, random_bytes)
        if int(np.abs(numbers).max()) > self.value_bound:
            raise ValueError("this rotation made a value too large: use another seed")
        return numbers

    def decode(self, total: Integers) -> NDArray[np.float64]:
        """The sum ``[width]`` of messages back in the rows' units and directions, ``[d]``."""
        values = total.astype(np.float64)
        if self.rotate:
            values = _hadamard(values) * self._signs()
        return values[: self.num_values] * self.step

    def _rotated(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self.rotate:
            return values
        padded = np.zeros(self.width)
        padded[: len(values)] = values
        return _hadamard(padded * self._signs())

    def _signs(self) -> NDArray[np.float64]:
        source = generator(self.seed, "distributed-dp", "signs")
        return 1.0 - 2.0 * torch.randint(0, 2, (self.width,), generator=source).double().numpy()

    def _rounded(self, scaled: NDArray[np.float64], random_bytes: RandomBytes) -> Integers:
        below, most = np.floor(scaled), self.largest_square
        while True:
            draws = np.frombuffer(random_bytes(8 * len(scaled)), "<u8") >> np.uint64(11)
            numbers = (below + (draws * 2.0**-53 < scaled - below)).astype(np.int64)
            if int(np.dot(numbers, numbers)) <= most:
                return numbers

    # --- what it costs ---------------------------------------------------------------------------

    def rdp(self, order: float) -> float:
        """The Rényi divergence of order ``α`` of one sum between neighbours, at most.

        Discrete Gaussian, ``h`` shares of variance ``σ²``, with
        ``τ = 10·Σ_{k=1}^{h−1} e^{−2π²σ²·k/(k+1)}`` for a sum that is not quite one itself:
        ``min(αΔ₂²/2hσ² + τd, α/2·(Δ₂²/hσ² + 2Δ₁τ/√h·σ + τ²d), α/2·(Δ₂/√h·σ + τ√d)²)``.
        Skellam of variance ``μ`` in all:
        ``αΔ₂²/2μ + min(((2α − 1)Δ₂² + 6Δ₁)/4μ², 3Δ₁/2μ)``.
        Source: Kairouz et al. 2021, proposition 14; Agarwal et al. 2021, corollary 4.1.
        """
        if not order > 1:
            raise ValueError(f"order={order} must be greater than 1")
        two, one = self.sensitivity
        central = self.local_std * math.sqrt(self.shares)
        if self.noise == "skellam":
            rest = ((2 * order - 1) * two**2 + 6 * one) / (4 * central**4)
            return order * two**2 / (2 * central**2) + min(rest, 3 * one / (2 * central**2))
        ratio, tau, width = two / central, self.tau, self.width
        return min(
            order * ratio**2 / 2 + tau * width,
            order / 2 * (ratio**2 + 2 * one * tau / central + tau**2 * width),
            order / 2 * (ratio + tau * math.sqrt(width)) ** 2,
        )

    @property
    def tau(self) -> float:
        """How far a sum of discrete Gaussians is from one: 0 for Skellam, which adds exactly."""
        if self.noise == "skellam":
            return 0.0
        k = np.arange(1, self.shares)
        return float(10 * np.exp(-2 * (math.pi * self.local_std) ** 2 * k / (k + 1)).sum())

    @property
    def rdp_multiplier(self) -> float:
        """The ``z`` of a Gaussian mechanism whose Rényi divergence is nowhere below this one's.

        ``Accountant().record(dp.rdp_multiplier)`` with ``method="rdp"`` (or ``"zcdp"``) is a true
        bound beside other releases; ``"pld"`` and ``"gdp"`` hold for Gaussian noise only.
        """
        two, one = self.sensitivity
        central = self.local_std * math.sqrt(self.shares)
        if self.noise == "skellam":
            return central / math.sqrt(two**2 + 3 * one)
        return 1 / (two / central + self.tau * math.sqrt(self.width))

    def epsilon(self, delta: float, steps: int = 1) -> float:
        """The ε at ``δ`` of ``steps`` sums in which every client takes part, by Rényi DP.

        No bonus for sampling clients is counted. Raises ``ValueError`` if ``δ`` is outside (0, 1)
        or ``steps < 1``.
        """
        check_delta(delta)
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        return min(rdp_to_epsilon(steps * self.rdp(a), a, delta) for a in _ORDERS.tolist())

    def calibrated(self, epsilon: float, delta: float, steps: int = 1) -> DistributedDP:
        """The same with the least noise that keeps (ε, δ) in ``steps`` sums, to 1e-4 of ``z``.

        Raises ``ValueError`` for a budget that no noise in the sampler's range keeps.
        """
        check_epsilon(epsilon)

        def excess(log_z: float) -> float:
            return self._with(log_z).epsilon(delta, steps) - epsilon

        low = high = 0.0
        while excess(high) > 0:
            low, high = high, high + 0.5
        while low == high or excess(low) <= 0:
            low -= 0.5
        found = self._with(float(brentq(excess, low, high, xtol=2e-5)) + 2e-5)
        return found

    def _with(self, log_z: float) -> DistributedDP:
        return replace(self, noise_multiplier=math.exp(log_z))


def private_sum(
    clipped: Clipped,
    dp: DistributedDP,
    *,
    add: Adder | None = None,
    random_bytes: RandomBytes = os.urandom,
) -> Tensor:
    """``Σ rows + noise``, each client's share of noise in its own message: float64 ``[d]``.

    ``add(numbers [n, width], bits)`` is what the server computes, `modular_sum` unless given;
    `masked_sum` runs the protocol of chapter 13. Chapter 14.
    Raises ``TypeError`` for rows that were never clipped, ``ValueError`` for more rows, other
    lengths or a larger norm than planned.
    """
    if not isinstance(clipped, Clipped):
        raise TypeError(
            f"noise on a {type(clipped).__name__} that was never clipped protects nobody: "
            "pass clip_rows(rows, clip_norm)"
        )
    rows = clipped.rows
    if clipped.order != 2 or clipped.clip_norm > dp.clip_norm or len(rows) > dp.num_clients:
        raise ValueError(
            f"{len(rows)} rows clipped to {clipped.clip_norm} in L{clipped.order}: planned for at "
            f"most {dp.num_clients} rows, {dp.clip_norm} in L2"
        )
    if len(rows) < dp.shares:
        raise ValueError(
            f"{len(rows)} clients add less noise than the {dp.shares} that were counted on: "
            "lower honest"
        )
    numbers = np.stack([dp.encode(row, random_bytes) for row in rows])
    return torch.from_numpy(dp.decode((add or modular_sum)(numbers, dp.bits)))


def modular_sum(numbers: Integers, bits: int) -> Integers:
    """``Σ`` over clients modulo ``2^bits``, read with its sign: ``[n, d] -> [d]``, no masks."""
    residues = numbers.sum(axis=0) % (1 << bits)
    return np.where(residues >= 1 << (bits - 1), residues - (1 << bits), residues)


def masked_sum(numbers: Integers, bits: int, **options: Any) -> Integers:
    """The same by the protocol of chapter 13; ``options`` are those of ``secure_sum``.

    Rows of clients that drop out are missing from the sum, with their noise: count on fewer with
    ``DistributedDP(honest=…)``, at most the threshold. Raises ``ValueError`` for numbers beyond
    2^24, and as ``secure_sum`` does.
    """
    from flcourse.secagg.protocol import secure_sum

    level = FixedPoint(1.0, len(numbers), bits).level  # as clip it makes a step of exactly 1
    if level > _EXACT:
        raise ValueError(f"numbers up to {level} lose digits in float32: lower the precision")
    result = secure_sum(numbers.astype(np.float64), clip=float(level), bits=bits, **options)
    return np.rint(np.asarray(result.total)).astype(np.int64)


def distributed_aggregate(dp: DistributedDP, *, add: Adder | None = None) -> Aggregate:
    """An ``aggregate`` for ``fedavg.train``: rows clipped, noisy sum, divided by their number.

    Every client counts once: sample counts are private, and would change the sensitivity.
    Each call releases once: account for ``dp.epsilon(δ, steps=rounds)``. Chapter 14.
    """

    def aggregate(rows: Tensor, weights: Tensor) -> Tensor:
        clipped = clip_rows(rows, dp.clip_norm, not_finite="drop")
        return (private_sum(clipped, dp, add=add) / len(rows)).to(rows)

    aggregate.__name__ = f"distributed_aggregate({dp!r})"
    return aggregate


def _hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``H·x / √d`` for a power of two ``d``, in ``d log d`` additions; it is its own inverse."""
    found, half = values, 1
    while half < len(values):
        pairs = found.reshape(-1, 2, half)
        sums, differences = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        found = np.stack([sums, differences], axis=1).reshape(-1)
        half *= 2
    return found / math.sqrt(len(values))
