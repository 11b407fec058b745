"""Local privacy: each client lies by a known rule before anything leaves it. Chapter 10.

    reports = randomised_response(bits, epsilon, generator)
    reports.frequencies(), reports.variance()      # unbiased, and how uncertain

The unit is the client, and adjacency is replace-one: whatever a client's value is, each message has
nearly the same probability, whoever reads it. All three rules are described by two chances: a value
is supported by its own client's report with probability ``p``, by another's with probability ``q``.

Source: Wang et al. 2017, "Locally Differentially Private Protocols for Frequency Estimation".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flcourse.privacy.noise import Source, uniform


@dataclass(frozen=True)
class Reports:
    """What ``n`` clients sent about a value out of ``k``, and the rule that they followed.

    Attributes:
        values: the messages: ``[n]`` int64 in 0..k-1, or ``[n, k]`` bits for unary encodings.
        num_values: ``k``.
        epsilon: what each message costs its client (δ = 0).
        keep: ``p``, the chance that a client's report supports its true value.
        lie: ``q``, the chance that it supports a given other value.
    """

    values: Tensor
    num_values: int
    epsilon: float
    keep: float
    lie: float
    unit: ClassVar[str] = "client"
    adjacency: ClassVar[str] = "replace-one"

    def counts(self) -> Tensor:
        """How many reports support each value, ``[k]`` int64."""
        if self.values.dim() == 2:
            return self.values.long().sum(dim=0)
        return torch.bincount(self.values, minlength=self.num_values)

    def frequencies(self) -> Tensor:
        """Unbiased: ``f̂_v = (c_v / n − q) / (p − q)``, ``[k]`` float64; may leave [0, 1]."""
        return (self.counts().double() / len(self.values) - self.lie) / (self.keep - self.lie)

    def variance(self, frequencies: Tensor | None = None) -> Tensor:
        """``(f·p(1−p) + (1−f)·q(1−q)) / (n·(p−q)²)`` for each value, ``[k]`` float64.

        Over the clients' coins, their values being what they are. ``frequencies`` are the true
        ones; without them the estimates, cut to [0, 1], take their place.
        """
        shares = self.frequencies().clamp(0, 1) if frequencies is None else frequencies.double()
        p, q = self.keep, self.lie
        spread = shares * p * (1 - p) + (1 - shares) * q * (1 - q)
        return spread / (len(self.values) * (p - q) ** 2)


def randomised_response(bits: Tensor, epsilon: float, generator: Source) -> Reports:
    """Tell the truth with probability ``e^ε / (1 + e^ε)``, else the opposite: bits ``[n]``.

    Source: Warner 1965, "Randomized Response". Raises ``ValueError`` for values other than 0 and 1
    (or booleans), none at all, or an ε that is not positive.
    """
    return k_randomised_response(bits, 2, epsilon, generator)


def k_randomised_response(
    values: Tensor, num_values: int, epsilon: float, generator: Source
) -> Reports:
    """The true value of ``k`` with probability ``e^ε / (e^ε + k − 1)``, else any other: ``[n]``.

    Source: Kairouz, Oh & Viswanath 2014, "Extremal Mechanisms for Local Differential Privacy".
    Raises as ``randomised_response`` does, for values outside 0..k-1.
    """
    values = _checked(values, num_values, epsilon)
    keep = 1 / (1 + (num_values - 1) * math.exp(-epsilon))
    honest = uniform(values.shape, generator) < keep
    shift = 1 + (uniform(values.shape, generator) * (num_values - 1)).long()
    sent = torch.where(honest, values, (values + shift) % num_values)
    return Reports(sent, num_values, epsilon, keep, (1 - keep) / (num_values - 1))


def unary_encoding(
    values: Tensor, num_values: int, epsilon: float, generator: Source, *, optimised: bool = False
) -> Reports:
    """A bit for each of ``k`` values (one of them 1), each bit flipped by its own coin: ``[n, k]``.

    Two clients differ in two bits, so each bit gets half of ε: ``p = e^{ε/2} / (1 + e^{ε/2})`` and
    ``q = 1 − p``, as in basic one-time RAPPOR. ``optimised``: ``p = 1/2, q = 1 / (1 + e^ε)``, the
    same ε at less variance for rare values, since the many zeros are what matters there.

    Source: Erlingsson, Pihur & Korolova 2014, "RAPPOR"; Wang et al. 2017, section 4.2 and 4.3.
    Raises as ``k_randomised_response`` does.
    """
    values = _checked(values, num_values, epsilon)
    half = 1 / (1 + math.exp(-epsilon / 2))
    keep, lie = (0.5, 1 / (1 + math.exp(epsilon))) if optimised else (half, 1 - half)
    own = torch.nn.functional.one_hot(values, num_values).bool()
    chance = torch.where(own, keep, lie)
    sent = uniform(own.shape, generator) < chance
    return Reports(sent, num_values, epsilon, keep, lie)


def _checked(values: Tensor, num_values: int, epsilon: float) -> Tensor:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon={epsilon} must be a positive number")
    if num_values < 2:
        raise ValueError(f"num_values={num_values} must be at least 2: one value tells nothing")
    if values.dim() != 1 or not len(values) or values.is_floating_point():
        raise ValueError(
            f"expected one whole number or boolean for each client, [n], got {values.dtype} of "
            f"shape {list(values.shape)}"
        )
    values = values.long()
    if int(values.min()) < 0 or int(values.max()) >= num_values:
        raise ValueError(
            f"values from {int(values.min())} to {int(values.max())} do not all lie in "
            f"0..{num_values - 1}: count them from 0"
        )
    return values.cpu()
