"""Which shares were altered: more than t of them determine the curve and show who is off it.

Chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flcourse.secagg.shamir import (
    PRIME,
    Elements,
    check_points,
    powers,
    product,
    random_elements,
    values_at,
)


def find_altered(points: Sequence[int], values: Elements, threshold: int) -> set[int] | None:
    """The points whose values ``[n, limbs]`` are not on the curve of the others; None if too many.

    Up to ``⌊(n − t)/2⌋`` are found. A random combination of the limbs is decoded: it is wrong
    where any limb is, but for one chance in 65537. With the error locator ``E`` (monic, degree
    ``e``) and ``Q = E·f``, ``Q(x) = y·E(x)`` holds at all points: linear in the coefficients.

    Source: Berlekamp & Welch 1986, "Error Correction for Algebraic Block Codes"; McEliece & Sarwate
    1981, "On Sharing Secrets and Reed-Solomon Codes". Raises as ``combine_many`` does.
    """
    points = tuple(points)
    check_points(points)
    errors = (len(points) - threshold) // 2
    if errors < 1:
        return None
    mixed = product(values.astype(np.float64), random_elements(values.shape[1]).astype(np.float64))
    table = powers(points, errors + threshold).astype(np.int64)
    own = table[:, : errors + 1] * mixed[:, None] % PRIME
    solution = _solve(np.concatenate([table, -own[:, :errors] % PRIME], axis=1), own[:, errors])
    if solution is None:
        return None
    locator = np.append(solution[errors + threshold :], 1).astype(np.float64)
    roots = product(powers(points, errors + 1), locator) == 0
    kept = [i for i, root in enumerate(roots) if not root]
    if len(kept) < threshold:
        return None
    wrong = _off_curve(points, mixed, kept[:threshold])
    return wrong if len(wrong) <= errors else None


def _off_curve(points: Sequence[int], values: Elements, base: Sequence[int]) -> set[int]:
    """The points whose values ``[n]`` are not on the curve through those at ``base``."""
    others = [i for i in range(len(points)) if i not in set(base)]
    expected = values_at(
        [points[i] for i in others], [points[i] for i in base], values[list(base)][:, None]
    )
    return {
        points[i] for i, value in zip(others, expected[:, 0], strict=True) if value != values[i]
    }


def _solve(matrix: Elements, right: Elements) -> Elements | None:
    """A solution of ``matrix · x = right`` modulo 65537 (free unknowns are zero), or None."""
    work = np.concatenate([matrix, right[:, None]], axis=1)
    pivots: list[int] = []
    for column in range(matrix.shape[1]):
        row = len(pivots)
        found = np.flatnonzero(work[row:, column])
        if not len(found):
            continue
        work[[row, row + found[0]]] = work[[row + found[0], row]]
        work[row] = work[row] * pow(int(work[row, column]), -1, PRIME) % PRIME
        factors = work[:, column].copy()
        factors[row] = 0
        work = (work - factors[:, None] * work[row]) % PRIME
        pivots.append(column)
        if len(pivots) == len(work):
            break
    if work[len(pivots) :, -1].any():
        return None
    solution = np.zeros(matrix.shape[1], np.int64)
    solution[pivots] = work[: len(pivots), -1]
    return solution
