"""Before any rule: which rows are numbers at all, how long they are, and is n large enough for f.

A client may send anything, also NaN, infinity or a row whose square no float32 can hold. What is
not finite is dropped before a rule sees it, and said; everything else stays. Chapter 15.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from flcourse.privacy.clipping import exact

_COLUMNS_AT_ONCE = 2**16
# Between these a sum of squares in float32 neither overflows nor loses small values.
_SAFE = {torch.float32: (1e-12, 1e18), torch.float64: (1e-140, 1e140)}
_LONGEST = 1e140  # no float32 row comes near; (n · 1e140)² is still a float64


class DroppedRows(UserWarning):
    """Rows that held NaN or infinity were left out before the rule; the text says which."""


@dataclass(frozen=True)
class Condition:
    """``n ≥ times · f + plus``: how many rows a rule needs to stand ``f`` liars."""

    times: int
    plus: int

    def __str__(self) -> str:
        return f"n ≥ {self.times}f + {self.plus}"

    def max_byzantine(self, num_rows: int) -> int:
        """The largest ``f`` allowed with ``n`` rows; −1 if the rule needs more rows even for 0."""
        return max((num_rows - self.plus) // self.times, -1)

    def check(self, rule: str, num_rows: int, num_byzantine: int) -> None:
        """Raise ``ValueError`` unless ``rule`` is defined for these ``n`` and ``f``."""
        if not whole_number(num_byzantine) or num_byzantine < 0:
            raise ValueError(f"num_byzantine={num_byzantine!r} must be a whole number, at least 0")
        if num_byzantine > (most := self.max_byzantine(num_rows)):
            remedy = f"at most num_byzantine={most}" if most >= 0 else "more rows"
            raise ValueError(
                f"{rule} needs {self}: num_byzantine={num_byzantine} asks for "
                f"{self.times * num_byzantine + self.plus} rows, there are {num_rows}; "
                f"use {remedy}, or another rule"
            )


def whole_number(value: object) -> bool:
    """Whether it is an integer, also one of numpy's; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def screen(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Leave out the rows that hold NaN or infinity: ``[n, d] -> ([m, d], dropped)``.

    ``dropped`` are indices into ``rows``, ascending. If nothing is dropped the same tensor comes
    back, not a copy. A row of 3e38 is finite and stays: to bear it is the rule's work. (A float64
    row longer than 1e140 goes: the square of its length is infinite.)

    Chapter 15. Raises ``ValueError`` for what is no float32 or float64 matrix.
    """
    rows, _, dropped = screened(rows)
    return rows, dropped


def screened(rows: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """As ``screen``, with the lengths ``[m]`` of the rows left: the same pass yields them."""
    if rows.dim() != 2 or not rows.shape[1]:
        raise ValueError(f"expected rows [n, d], got {list(rows.shape)}")
    if rows.dtype not in _SAFE:
        raise ValueError(f"rows of {rows.dtype}: rules work on float32 and float64, use .float()")
    rows = rows.detach()
    norms = lengths(rows)
    sound = norms < _LONGEST  # false for NaN as well
    if bool(sound.all()):
        return rows, norms, []
    return rows[sound.to(rows.device)], norms[sound], (~sound).nonzero().flatten().tolist()


def admitted(rows: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """The rows a rule works on and their lengths; warns ``DroppedRows`` if any were left out.

    Raises ``ValueError`` as ``screen`` does, and if no row is left.
    """
    left, norms, dropped = screened(rows)
    if not len(left):
        raise ValueError(f"{rule} has nothing to work on: {len(rows)} rows, none of them finite")
    if dropped:
        message = (
            f"{rule} left out row(s) {dropped} of {len(rows)}: NaN, infinity or beyond {_LONGEST:g}"
        )
        warnings.warn(message, DroppedRows, stacklevel=3)
    return left, norms


def lengths(rows: Tensor) -> Tensor:
    """``‖row‖`` of each row, float64 on the CPU; NaN or inf if not finite: ``[n, d] -> [n]``.

    Also of float32 rows of 3e38 or 1e-30, whose squares are no float32.
    """
    pieces = [torch.linalg.vector_norm(part, dim=1) for part in rows.split(_COLUMNS_AT_ONCE, dim=1)]
    norms = torch.linalg.vector_norm(torch.stack(pieces).cpu().double(), dim=0)
    low, high = _SAFE[rows.dtype]
    for index in (~((norms > low) & (norms < high))).nonzero().flatten().tolist():
        norms[index] = _length(rows[index])
    return norms


def _length(row: Tensor) -> float:
    peak = float(row.abs().max())
    if peak == 0 or not peak < float("inf"):
        return peak
    return peak * float(torch.linalg.vector_norm(exact(row) / peak))
