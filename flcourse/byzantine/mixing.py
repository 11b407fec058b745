"""Pre-aggregation: blend rows before a rule, so that honest ones differ less. Chapter 16.

Both return rows, to which any rule is then applied (``as_aggregate(rule, mix=...)``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flcourse.byzantine.coordinates import MAJORITY
from flcourse.byzantine.geometry import centred, geometry, typical
from flcourse.byzantine.screening import admitted, whole_number


def nearest_neighbour_mixing(rows: Tensor, num_byzantine: int) -> Tensor:
    """Replace each row by the mean of its ``n − f`` nearest, itself included: ``[n, d] -> [n, d]``.

    Every mixed row is then mostly honest, and honest rows lie closer together than before.

    Source: Allouah et al. 2023, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
    Heterogeneity", section 3. Chapter 16.
    Raises ``ValueError`` unless ``n ≥ 2f + 1``, of the rows left after ``DroppedRows``: the result
    has that many rows.
    """
    rows, norms = admitted(rows, "nearest_neighbour_mixing")
    MAJORITY.check("nearest_neighbour_mixing", len(rows), num_byzantine)
    around = geometry(rows, norms)
    count = len(rows) - num_byzantine
    near = around.squared.fill_diagonal_(-1).sort(dim=1, stable=True).indices[:, :count]
    weights = torch.zeros(len(rows), len(rows), dtype=torch.float64).scatter_(1, near, 1 / count)
    return around.centred.combine(weights)


def bucketing(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Shuffle the rows, average each ``size`` in turn: ``[n, d] -> [⌈n/size⌉, d]``.

    ``f`` liars spoil at most ``f`` buckets, now of fewer rows: with ``size = s`` a rule must stand
    ``f`` of ``⌈n/s⌉``. The last bucket holds what is left over. ``generator`` (on the CPU) deals
    the rows; liars must not foresee it.

    Source: Karimireddy et al. 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", Algorithm 1. Chapter 16.
    Raises ``ValueError`` unless ``1 ≤ size ≤ n``; warns ``DroppedRows``.
    """
    rows, norms = admitted(rows, "bucketing")
    if not (whole_number(size) and 1 <= size <= len(rows)):
        raise ValueError(f"size={size} must be a whole number in 1 … {len(rows)}, all rows")
    dealt = torch.randperm(len(rows), generator=generator).split(size)
    weights = torch.zeros(len(dealt), len(rows), dtype=torch.float64)
    for bucket, members in enumerate(dealt):
        weights[bucket, members] = 1 / len(members)
    return centred(rows, norms, rows[typical(norms)]).combine(weights)
