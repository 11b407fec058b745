"""The rules again, in float64 and by brute force after their papers: what all results are held to.

Distances are of differences, pair by pair; nothing is shared with `flcourse.byzantine`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_COLUMNS_AT_ONCE = 50_000
FLOAT32 = float(np.finfo(np.float32).eps)


def slabs(rows: NDArray[np.floating]) -> Iterator[tuple[slice, Array]]:
    """Columns and those columns of the rows, exactly, in float64."""
    for start in range(0, rows.shape[1], _COLUMNS_AT_ONCE):
        columns = slice(start, start + _COLUMNS_AT_ONCE)
        yield columns, rows[:, columns].astype(np.float64)


def squared_distances(rows: NDArray[np.floating]) -> Array:
    """`|x_i − x_j|²` from differences: `[n, d] -> [n, n]`."""
    total = np.zeros((len(rows), len(rows)))
    for _, part in slabs(rows):
        total += np.stack([np.square(part - row).sum(axis=1) for row in part])
    return total


def krum_scores(squared: Array, neighbours: int) -> Array:
    """The sum over that many nearest others of each row."""
    return np.array(
        [np.sort(np.delete(line, i))[:neighbours].sum() for i, line in enumerate(squared)]
    )


def krum_choice(squared: Array, liars: int) -> int:
    """Blanchard et al. 2017: the row of least score over `n − f − 2` others."""
    return int(np.argmin(krum_scores(squared, len(squared) - liars - 2)))


def multi_krum_choice(squared: Array, liars: int, count: int) -> list[int]:
    """The `count` rows of least score, ascending."""
    scores = krum_scores(squared, len(squared) - liars - 2)
    return sorted(np.argsort(scores, kind="stable")[:count].tolist())


def bulyan_choice(squared: Array, liars: int) -> list[int]:
    """El Mhamdi et al. 2018: `n − 2f` rows, Krum's choice of those left, one at a time."""
    left, chosen = list(range(len(squared))), []
    while len(chosen) < len(squared) - 2 * liars:
        scores = krum_scores(squared[np.ix_(left, left)], max(len(left) - liars - 2, 1))
        chosen.append(left.pop(int(np.argmin(scores))))
    return sorted(chosen)


def median(rows: NDArray[np.floating]) -> tuple[Array, Array]:
    """The middle of each coordinate: the mean of the one or two values there; their mean size."""
    return trimmed_mean(rows, (len(rows) - 1) // 2)


def trimmed_mean(rows: NDArray[np.floating], liars: int) -> tuple[Array, Array]:
    """The mean of each coordinate without `f` values at both ends; the mean size of the rest."""
    kept = [np.sort(part, axis=0)[liars : len(rows) - liars] for _, part in slabs(rows)]
    mean = np.concatenate([values.mean(axis=0) for values in kept])
    return mean, np.concatenate([np.abs(values).mean(axis=0) for values in kept])


def mixed(rows: NDArray[np.floating], squared: Array, liars: int) -> Array:
    """Allouah et al. 2023: each row becomes the mean of its `n − f` nearest, itself among them."""
    near = np.argsort(squared, axis=1, kind="stable")[:, : len(rows) - liars]
    result = np.empty(rows.shape)
    for columns, part in slabs(rows):
        result[:, columns] = np.stack([part[chosen].mean(axis=0) for chosen in near])
    return result


def clipped(rows: NDArray[np.floating], clip_norm: float, steps: int) -> Array:
    """Karimireddy et al. 2021: `v + mean of (x − v)·min(1, C/|x − v|)`, that often, from zero."""
    centre = np.zeros(rows.shape[1])
    for _ in range(steps):
        norms = np.sqrt(sum(np.square(part - centre[c]).sum(axis=1) for c, part in slabs(rows)))
        factors = np.minimum(1, clip_norm / norms)[:, None]
        moves = [((part - centre[c]) * factors).mean(axis=0) for c, part in slabs(rows)]
        centre = centre + np.concatenate(moves)
    return centre


def total_distance(rows: NDArray[np.floating], point: NDArray[np.floating]) -> float:
    """`Σ |x_i − z|`, which the geometric median makes least."""
    at = point.astype(np.float64)
    return float(np.sqrt(sum(np.square(part - at[c]).sum(axis=1) for c, part in slabs(rows))).sum())


def nearest_to_middle(rows: NDArray[np.floating], count: int) -> tuple[Array, Array]:
    """The mean of the `count` values nearest to each coordinate's median, and how clear that is.

    The second is the distance of the next value less that of the last one taken: 0 is a tie.
    """
    means, gaps = [], []
    for _, part in slabs(rows):
        away = np.abs(part - np.median(part, axis=0))
        order = np.argsort(away, axis=0)
        means.append(np.take_along_axis(part, order[:count], axis=0).mean(axis=0))
        ends = np.take_along_axis(away, order[count - 1 : count + 1], axis=0)
        gaps.append(ends[1] - ends[0])
    return np.concatenate(means), np.concatenate(gaps)
