"""Rules that look at one coordinate at a time: the mean, the median, the trimmed mean. Chapter 15.

The rows of a slab of columns are turned into columns, ``[columns, n]``, so that each coordinate's
``n`` values lie side by side and fit the cache; numpy sorts them several times faster than torch.
On a GPU torch sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from flcourse.byzantine.geometry import centred, on_cpu, slab_columns, typical
from flcourse.byzantine.screening import Condition, admitted

MAJORITY = Condition(2, 1)


def mean(rows: Tensor) -> Tensor:
    """``1/n Σ x_i``: ``[n, d] -> [d]``. One liar moves it anywhere.

    Unweighted, as all rules here: a client could lie about its number of samples too. Of
    ``f`` rows ``−scale·x`` among equal ones it turns round if ``f·scale > n − f``.

    Chapter 15. Raises ``ValueError`` and warns ``DroppedRows`` as every rule does.
    """
    rows, norms = admitted(rows, "mean")
    weights = torch.full((1, len(rows)), 1 / len(rows), dtype=torch.float64)
    return centred(rows, norms, rows[typical(norms)]).combine(weights)[0]


def coordinate_median(rows: Tensor) -> Tensor:
    """The median of each coordinate: ``[n, d] -> [d]``; of an even ``n`` the middle of two.

    Stays within the honest rows' range in each coordinate while ``n ≥ 2f + 1``. Weights are
    ignored.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 1. Chapter 15.
    Raises ``ValueError`` for what is no float32 or float64 matrix; warns ``DroppedRows``.
    """
    rows, _ = admitted(rows, "coordinate_median")
    return _by_coordinate(rows, middle)


def trimmed_mean(rows: Tensor, num_byzantine: int) -> Tensor:
    """Of each coordinate drop the ``f`` lowest and highest, average the rest: ``[n, d] -> [d]``.

    ``f`` is a number of rows, not a share of them: a tenth of five rows trims nobody. Weights are
    ignored.

    Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 2. Chapter 15.
    Raises ``ValueError`` unless ``n ≥ 2f + 1``, of the rows left after ``DroppedRows``.
    """
    rows, _ = admitted(rows, "trimmed_mean")
    MAJORITY.check("trimmed_mean", len(rows), num_byzantine)
    return _by_coordinate(rows, lambda s: average(s[:, num_byzantine : len(rows) - num_byzantine]))


def middle(ordered: Tensor) -> Tensor:
    """The median of each sorted line: ``[columns, n] -> [columns]``. Halves first: no overflow."""
    n = ordered.shape[1]
    low, high = ordered[:, (n - 1) // 2], ordered[:, n // 2]
    return low.clone() if n % 2 else 0.5 * low + 0.5 * high


def average(values: Tensor) -> Tensor:
    """The mean of each line, relative to its middle: ``[columns, k] -> [columns]``.

    Equal values give that value to the bit, and a common offset costs no digits.
    """
    count = values.shape[1]
    centre = values[:, count // 2]
    result = centre + (values - centre[:, None]).sum(dim=1) / count
    # Differences of values beyond half the range of floats overflow, a sum of shares does not.
    return result if bool(torch.isfinite(result).all()) else (values / count).sum(dim=1)


def sorted_slabs(rows: Tensor, chosen: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Columns, and their values sorted: ``[columns, n]``; of the ``chosen`` rows only, if given."""
    for columns in slab_columns(rows):
        part = rows[:, columns] if chosen is None else rows[:, columns][chosen.to(rows.device)]
        yield columns, _sort(part)


def _sort(part: Tensor) -> Tensor:
    if not on_cpu(part):
        return part.sort(dim=0).values.T
    lines = np.array(part.numpy().T, order="C", copy=True)  # a view would sort the clients' rows
    lines.sort(axis=1)
    return torch.from_numpy(lines)


def _by_coordinate(rows: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    result = rows.new_empty(rows.shape[1])
    for columns, ordered in sorted_slabs(rows):
        result[columns] = rule(ordered)
    return result
