"""Distances between updates, exact enough that no liar can blur them. Chapter 15.

``|x − y|² = |x|² + |y|² − 2xy`` needs one matrix product for all pairs, and is worthless where the
rows share a large offset: two numbers of 10⁶ are subtracted to find a difference of 1. So all rows
are first taken relative to a *typical* one, the row of median norm; if the distances then show that
a liar sat there (his length may be typical, his place is not), again relative to the row that most
rows are near to. Products are of slabs of columns in the rows' own precision, sums in float64;
a slab fits the cache, so the matrix is never held twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flcourse.byzantine.screening import admitted, lengths

_SLAB_VALUES = {"cpu": 2**19, "other": 2**25}
_LEAST_COLUMNS = 2**10  # of many rows: adding up [n, n] for each slab would cost more than it
# A row longer than 2^high, or shorter than 2^low, is multiplied by a power of two, which is exact,
# before its square overflows or underflows.
_EXPONENTS = {torch.float32: (-30, 60), torch.float64: (-240, 240)}
_FAR = 30  # (distance² of the centre from most) / (least such distance²): the centre is a liar
_LOOKS = 4  # at centres, each nearer by what float32 can tell; colluders may spoil two or three


@dataclass(frozen=True)
class Centred:
    """Rows ``x_i − c``, read slab by slab: ``[n, d]`` that never exists as a whole.

    ``scale`` holds powers of two: slabs are of ``scale_i · (x_i − c)``; ``None`` is all ones.
    """

    rows: Tensor
    centre: Tensor
    scale: Tensor | None

    def slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """Columns and the slab ``[n, columns]``; the next slab overwrites it."""
        scale = None if self.scale is None else self.scale.to(self.rows)[:, None]
        buffer = None
        for columns in slab_columns(self.rows):
            part, centre = self.rows[:, columns], self.centre[columns]
            buffer = torch.empty_like(part) if buffer is None else buffer
            slab = buffer[:, : part.shape[1]]
            if scale is None:
                yield columns, torch.sub(part, centre, out=slab)
            else:
                yield columns, torch.mul(part, scale, out=slab).sub_(centre * scale)

    def gram(self) -> Tensor:
        """``(x_i − c)·(x_j − c)``: ``[n, n]``, float64, on the CPU."""
        total = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64)
        for _, slab in self.slabs():
            total += (slab @ slab.T).cpu().double()
        total = (total + total.T) / 2  # a product of matrices is not symmetric to the bit
        return total if self.scale is None else total / self.scale / self.scale[:, None]

    def lengths(self) -> Tensor:
        """``‖x_i − c‖``: ``[n]``, float64, on the CPU."""
        parts = [torch.linalg.vector_norm(slab, dim=1).cpu().double() for _, slab in self.slabs()]
        norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return norms if self.scale is None else norms / self.scale

    def combine(self, weights: Tensor) -> Tensor:
        """``c + Σ_j W_ij (x_j − c)``: ``[m, n] -> [m, d]``; ``Σ_j W_ij x_j`` if these sum to one.

        Where the rows of positive weight agree with ``c``, the result is ``c`` to the bit.
        """
        shares = (weights if self.scale is None else weights / self.scale).to(self.rows)
        result = _empty(len(weights), self.rows)
        for columns, slab in self.slabs():
            _multiply(shares, slab, result[:, columns])
            result[:, columns] += self.centre[columns]
        return result


@dataclass(frozen=True)
class Geometry:
    """Rows around a typical one, and all their products: what distance rules work on."""

    centred: Centred
    gram: Tensor

    @property
    def squared(self) -> Tensor:
        """``|x_i − x_j|²``: ``[n, n]``, float64, zero on the diagonal."""
        own = self.gram.diagonal()
        squared = (own[:, None] + own - 2 * self.gram).clamp(min=0)
        return squared.fill_diagonal_(0)


def squared_distances(rows: Tensor) -> Tensor:
    """``|x_i − x_j|²`` of all pairs of rows: ``[n, d] -> [n, n]``, float64, on the CPU.

    Of float32 rows right to some 1e-6, with liars about to some 1e-5, whatever offset they share:
    ``torch.cdist`` is wrong by a quarter at an offset 1,000 times the spread. A row of 3e38 is
    just far away, and blurs no other distance.

    Chapter 15. Raises ``ValueError`` and warns ``DroppedRows`` as every rule does.
    """
    return geometry(*admitted(rows, "squared_distances")).squared


def geometry(rows: Tensor, norms: Tensor) -> Geometry:
    """Centre the rows on a typical one and multiply them out; ``norms`` are their ``lengths``."""
    centre = typical(norms)
    around = _around(rows, norms, centre)
    for _ in range(_LOOKS - 1):
        spread = majority_radius(around.squared)
        nearest = int(spread.argmin())
        if spread[centre] <= _FAR * spread[nearest]:
            break
        centre, around = nearest, _around(rows, norms, nearest)
    return around


def majority_radius(distances: Tensor) -> Tensor:
    """For each row how far it must reach to have a majority, itself included: ``[n, n] -> [n]``."""
    return distances.sort(dim=1).values[:, len(distances) // 2]


def typical(norms: Tensor) -> int:
    """The index of the row of median norm (of the lower one, where there are two)."""
    return int(norms.sort(stable=True).indices[(len(norms) - 1) // 2])


def centred(rows: Tensor, norms: Tensor, centre: Tensor) -> Centred:
    """``x_i − c`` for any centre ``[d]``, scaled where squares would leave the range of floats."""
    low, high = _EXPONENTS[rows.dtype]
    longest = torch.maximum(norms, lengths(centre[None]))
    exponent = torch.frexp(longest).exponent
    exponent = torch.where(longest > 0, exponent, torch.zeros_like(exponent))
    over, under = (exponent - high).clamp(min=0), (low - exponent).clamp(min=0, max=2 * high)
    if not bool((over + under).any()):
        return Centred(rows, centre, None)
    return Centred(rows, centre, torch.ldexp(torch.ones_like(longest), under - over))


def on_cpu(values: Tensor) -> bool:
    """Whether numpy can work on these values where they are."""
    return values.device.type == "cpu"


def slab_columns(rows: Tensor) -> Iterator[slice]:
    """Slices of columns, so that ``[n, columns]`` fits the cache (on a GPU: is worth a launch)."""
    values = _SLAB_VALUES.get(rows.device.type, _SLAB_VALUES["other"])
    step = max(values // max(len(rows), 1), _LEAST_COLUMNS)
    yield from (slice(start, start + step) for start in range(0, rows.shape[1], step))


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> None:
    """``out ← left @ right``: numpy writes into a part of a matrix without a copy, torch copies."""
    if on_cpu(out):
        np.matmul(left.numpy(), right.numpy(), out=out.numpy())
    else:
        out.copy_(left @ right)


def _empty(count: int, like: Tensor) -> Tensor:
    """``[count, d]``. numpy asks the system for large pages; to get torch's many small ones takes
    as long as the product that fills them.
    """
    if on_cpu(like):
        return torch.from_numpy(np.empty((count, like.shape[1]), like.numpy().dtype))
    return like.new_empty(count, like.shape[1])


def _around(rows: Tensor, norms: Tensor, index: int) -> Geometry:
    relative = centred(rows, norms, rows[index])
    return Geometry(relative, relative.gram())
