"""Group-wise masking: the server sees sums of small groups, and a robust rule over those.

    groups = group_clients(20, size=5, generator=generator)   # four groups of five
    view = group_means(rows, groups, clip=1.0)                # [4, d]: all that the server sees
    step = coordinate_median(view.means)

Secure aggregation hides the rows that a robust rule must see. Between one sum over everybody
(nothing to compare) and no masks (nothing hidden) lie sums over groups of ``g``: a client hides
among ``g``, and a liar spoils the ``g`` rows of its group. Chapter 17.

Source: So, Güler & Avestimehr 2020, "Byzantine-Resilient Secure Federated Learning", section 1
(the tension); Velicheti, Xia & Koyejo 2021, "Secure Byzantine-Robust Distributed Learning via
Clustering" (sums of random groups, robust rule over them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flcourse.byzantine.coordinates import MAJORITY
from flcourse.runtime import generator as make_generator
from flcourse.secagg import FixedPoint, run_round
from flcourse.secagg.field import Words, as_reals, reduced, word_type

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class GroupView:
    """What the server has after a round of masked groups: no row, only a mean for each group.

    Attributes:
        means: ``[m, d]``, the plain mean of each group's rows.
        groups: who was in which, as indices of rows.
        bytes_up: what each client sent, ``[n]``.
    """

    means: Tensor
    groups: Groups
    bytes_up: tuple[int, ...]


def group_clients(num_clients: int, size: int, generator: torch.Generator) -> Groups:
    """``⌊n/g⌋`` random groups of at least ``size = g`` clients: nobody hides among fewer.

    What is left over when ``g`` does not divide ``n`` joins the first groups.
    Raises ``ValueError`` unless ``1 ≤ size ≤ num_clients``.
    """
    if not 1 <= size <= num_clients:
        raise ValueError(f"size={size} must lie in 1 to num_clients={num_clients}")
    order = torch.randperm(num_clients, generator=generator).tolist()
    count = num_clients // size
    return tuple(tuple(sorted(order[start::count])) for start in range(count))


def group_means(
    rows: Tensor, groups: Groups, *, clip: float, bits: int = 32, beyond: str = "refuse"
) -> GroupView:
    """A secure sum in each group, divided by its size: rows ``[n, d]`` -> means ``[m, d]``.

    Each group runs the protocol of chapter 13 on its own. Weights are not used: a group's mean is
    over clients. ``clip`` is the range of every value. A liar's program need not check it:
    ``beyond="wrap"`` sends such values modulo ``2^bits``, as any word can be sent, so that the mean
    of a group still lies within about ``± clip``; ``"refuse"`` raises, as honest clients do.
    A group of one has nothing to mask with: its row is sent as it is.

    Raises ``ValueError`` for values beyond ``clip`` (``"refuse"``), NaN or infinity (no word stands
    for them), or groups that are not a partition of the rows.
    """
    if beyond not in ("refuse", "wrap"):
        raise ValueError(f"beyond={beyond!r} is unknown: use 'refuse' or 'wrap'")
    members = sorted(index for group in groups for index in group)
    if members != list(range(len(rows))) or not all(groups):
        raise ValueError(f"groups {groups} must hold each of the {len(rows)} rows once, none empty")
    means, sent = [], [0] * len(rows)
    for group in groups:
        codec = FixedPoint(clip, len(group), bits)
        values = rows[list(group)].detach().cpu()
        words = _wrapped(values, codec) if beyond == "wrap" else codec.encode(values)
        total, up = _summed(words, bits)
        means.append(torch.from_numpy(codec.decode(total)) / len(group))
        for index, size in zip(group, up, strict=True):
            sent[index] = size
    return GroupView(torch.stack(means).to(rows), groups, tuple(sent))


def _summed(words: Words, bits: int) -> tuple[Words, list[int]]:
    """The sum of a group modulo ``2^bits`` and the bytes of each member."""
    if len(words) == 1:
        return words[0], [-(-words.shape[1] * bits // 8)]
    run = run_round(words, bits=bits)
    return run.total, [int(size) for size in run.bytes.up]


def _wrapped(values: Tensor, codec: FixedPoint) -> Words:
    """Words of any finite values: ``round(x · L / clip)`` modulo ``2^bits``, unchecked."""
    reals = as_reals(values).astype(np.float64)
    if not np.isfinite(reals).all():
        raise ValueError("rows hold NaN or infinity: no word of the masked sum stands for them")
    ring = 2.0**codec.bits
    signed = np.fmod(np.rint(reals / codec.step), ring)  # exact in float64
    signed = np.where(signed >= ring / 2, signed - ring, signed)
    signed = np.where(signed < -ring / 2, signed + ring, signed)
    return reduced(signed.astype(np.int64).astype(word_type(codec.bits)), codec.bits)


class Grouped:
    """An ``aggregate`` for ``fedavg.train``: masked groups, then a robust rule over their means.

    ``rule`` maps ``[m, d]`` to ``[d]``; what ``as_aggregate`` makes will do. Clients are
    grouped anew in each call, at random from ``seed`` and the number of the call; ``view`` keeps
    what the server saw of the last call.
    Weights are ignored. Options and errors are those of ``group_clients`` and ``group_means``.
    """

    def __init__(
        self,
        rule: Callable[[Tensor], Tensor],
        size: int,
        *,
        clip: float,
        bits: int = 32,
        beyond: str = "refuse",
        seed: int = 0,
    ) -> None:
        self.rule, self.size, self.seed = rule, size, seed
        self.options = {"clip": clip, "bits": bits, "beyond": beyond}
        self.calls = 0
        self.view: GroupView | None = None
        inner = getattr(rule, "__name__", None) or repr(rule)
        self.__name__ = f"grouped({inner}, size={size})"

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        self.calls += 1
        draw = make_generator(self.seed, "groups", self.calls)
        groups = group_clients(len(rows), self.size, draw)
        self.view = group_means(rows, groups, **self.options)  # type: ignore[arg-type]
        return self.rule(self.view.means)


# --- how many liars ---------------------------------------------------------------------------


def tolerated_liars(
    num_clients: int, size: int, max_byzantine: Callable[[int], int] = MAJORITY.max_byzantine
) -> int:
    """How many liars cannot spoil too many groups, wherever they are: ``max_byzantine(⌊n/g⌋)``.

    Each spoils at most one group. ``max_byzantine(m)`` is what the rule tolerates among ``m`` rows;
    as it stands that of the median, ``⌊(m − 1)/2⌋``. With ``size = n`` there is one group: nobody.
    0 also where the rule is not defined for so few groups.
    Raises ``ValueError`` unless ``1 ≤ size ≤ num_clients``.
    """
    if not 1 <= size <= num_clients:
        raise ValueError(f"size={size} must lie in 1 to num_clients={num_clients}")
    return max(max_byzantine(num_clients // size), 0)


def spoilt_groups(sizes: Sequence[int], liars: int) -> list[float]:
    """The chance that liars placed at random are in exactly 0, 1, …, m of the groups: ``[m + 1]``.

    The number of ways to choose ``f`` of the clients such that ``k`` groups are hit is the
    coefficient of ``x^f y^k`` in ``Π_j (1 + y·((1 + x)^{g_j} − 1))``, here in exact integers; over
    all ``C(n, f)`` ways. (For one group it is the hypergeometric distribution's tail.)
    Raises ``ValueError`` unless ``0 ≤ liars ≤ Σ sizes`` and every size is positive.
    """
    if min(sizes, default=0) < 1 or not 0 <= liars <= sum(sizes):
        raise ValueError(f"liars={liars} must lie in 0 to {sum(sizes)}, sizes {sizes} be positive")
    ways = [[1] + [0] * liars]  # ways[k][f]
    for size in sizes:
        hit = [0] + [math.comb(size, f) for f in range(1, liars + 1)]
        spoilt = [_product(row, hit) for row in ways]
        empty = [0] * (liars + 1)
        ways = [
            [a + b for a, b in zip(clean, dirty, strict=True)]
            for clean, dirty in zip([*ways, empty], [empty, *spoilt], strict=True)
        ]
    return [row[liars] / math.comb(sum(sizes), liars) for row in ways]


def _product(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Coefficients of a product of polynomials, cut at the length of ``left``."""
    return [sum(left[i] * right[k - i] for i in range(k + 1)) for k in range(len(left))]
