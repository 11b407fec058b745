"""Rules that choose rows by their distances to the others: Krum, multi-Krum, Bulyan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flcourse.byzantine.coordinates import average, sorted_slabs
from flcourse.byzantine.geometry import geometry
from flcourse.byzantine.screening import Condition, admitted, whole_number

KRUM = Condition(2, 3)
BULYAN = Condition(4, 3)


def krum(rows: Tensor, num_byzantine: int) -> Tensor:
    """The one row with the least ``Σ |x_i − x_j|²`` over its ``n − f − 2`` nearest others ``j``.

    ``[n, d] -> [d]``. Distances are squared, and a row is no neighbour of itself. Of equal scores
    the one wins whose next neighbour is nearer. What one client sent is a noisy step: where clients
    differ, Krum is worse than the mean unless somebody lies. Weights are ignored.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries", section 4. Chapter 15.
    Raises ``ValueError`` unless ``n ≥ 2f + 3``, of the rows left after ``DroppedRows``.
    """
    rows, norms = admitted(rows, "krum")
    KRUM.check("krum", len(rows), num_byzantine)
    best = _ranking(geometry(rows, norms).squared, num_byzantine)[0]
    return rows[best].clone()


def multi_krum(rows: Tensor, num_byzantine: int, num_selected: int | None = None) -> Tensor:
    """The mean of the ``m = num_selected`` rows of least Krum score: ``[n, d] -> [d]``.

    ``m = 1`` is Krum; ``m = n − f`` the default. Weights are ignored.

    Source: Blanchard et al. 2017, "Machine Learning with Adversaries", section 5. Chapter 15.
    Raises ``ValueError`` unless ``n ≥ 2f + 3`` and ``1 ≤ m ≤ n − f``, of the rows left after
    ``DroppedRows``.
    """
    rows, norms = admitted(rows, "multi_krum")
    KRUM.check("multi_krum", len(rows), num_byzantine)
    most = len(rows) - num_byzantine
    count = most if num_selected is None else num_selected
    if not (whole_number(count) and 1 <= count <= most):
        raise ValueError(
            f"num_selected={count} must be a whole number in 1 … n − f = {most}: more would take "
            "a liar in"
        )
    around = geometry(rows, norms)
    best = _ranking(around.squared, num_byzantine)[:count]
    weights = torch.zeros(1, len(rows), dtype=torch.float64)
    weights[0, best] = 1 / count
    return around.centred.combine(weights)[0]


def bulyan(rows: Tensor, num_byzantine: int) -> Tensor:
    """Choose ``θ = n − 2f`` rows by Krum, one at a time; then average each coordinate's middle.

    ``[n, d] -> [d]``. The middle are the ``β = θ − 2f`` values nearest to the chosen rows' median.
    Weights are ignored.

    Source: El Mhamdi et al. 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium",
    section 4. Chapter 16.
    Raises ``ValueError`` unless ``n ≥ 4f + 3``, of the rows left after ``DroppedRows``.
    """
    rows, norms = admitted(rows, "bulyan")
    BULYAN.check("bulyan", len(rows), num_byzantine)
    chosen = _choose(geometry(rows, norms).squared, num_byzantine)
    result = rows.new_empty(rows.shape[1])
    for columns, ordered in sorted_slabs(rows, chosen):
        result[columns] = average(_nearest_middle(ordered, len(chosen) - 2 * num_byzantine))
    return result


def krum_scores(squared: Tensor, num_byzantine: int) -> Tensor:
    """``Σ |x_i − x_j|²`` over the ``n − f − 2`` nearest others: squared distances [n, n] -> [n].

    Chapter 15. Of fewer rows than Krum needs (late in Bulyan) at least one neighbour counts.
    """
    return _nearest_others(squared)[:, : _neighbours(squared, num_byzantine)].sum(dim=1)


def _neighbours(squared: Tensor, num_byzantine: int) -> int:
    return max(len(squared) - num_byzantine - 2, 1)


def _nearest_others(squared: Tensor) -> Tensor:
    return squared.clone().fill_diagonal_(-1).sort(dim=1).values[:, 1:]


def _ranking(squared: Tensor, num_byzantine: int) -> list[int]:
    """Rows by Krum score, least first; of equal scores by that with one neighbour more.

    Ties are no accident: with one neighbour, two rows nearest to each other always tie, and the
    order of the rows would decide.
    """
    nearest, count = _nearest_others(squared), _neighbours(squared, num_byzantine)
    keys = (nearest[:, : count + 1].sum(dim=1), nearest[:, :count].sum(dim=1))
    return np.lexsort(tuple(key.numpy() for key in keys)).tolist()


def _choose(squared: Tensor, num_byzantine: int) -> Tensor:
    """Krum's choice again and again, without what was chosen before: ``[n − 2f]`` row indices."""
    left, chosen = list(range(len(squared))), []
    for _ in range(len(squared) - 2 * num_byzantine):
        best = _ranking(squared[left][:, left], num_byzantine)[0]
        chosen.append(left.pop(best))
    return torch.tensor(sorted(chosen))


def _nearest_middle(ordered: Tensor, count: int) -> Tensor:
    """The ``count`` values nearest to each sorted line's median: ``[columns, θ] -> [.., count]``.

    They are neighbours in the order. The run moves up by one while the value that it gains is
    nearer than the one that it loses, ``s_k + s_(k+count) < 2·median``; that sum only grows with k.
    """
    size = ordered.shape[1]
    # Relative to the lower median, which keeps the digits; in halves, which do not overflow.
    half = 0.5 * ordered - 0.5 * ordered[:, (size - 1) // 2, None]
    gains = half[:, : size - count] + half[:, count:] < half[:, size // 2, None]
    first = gains.sum(dim=1, keepdim=True)
    return ordered.gather(1, first + torch.arange(count, device=ordered.device))
