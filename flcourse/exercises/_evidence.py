"""What a student returns to show a flaw: rows on which a rule breaks its promise, or nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong


def nothing_found(found: Any, what: str) -> bool:
    """Whether a student found no flaw, ``()``; True and False are no evidence."""
    if isinstance(found, bool):
        raise Wrong(f"Return the evidence itself: {what}, or () if you find none.")
    return isinstance(found, tuple) and not found


def read_rows(value: Any, *, most: int) -> Tensor:
    """Finite rows ``[n, d]``, at most ``most`` of them; raises ``Wrong`` for anything else."""
    rows = torch.as_tensor(value).detach()
    if rows.dim() != 2 or not rows.is_floating_point() or not bool(rows.isfinite().all()):
        raise Wrong("The rows must be a float tensor [n, d] of finite values.")
    if len(rows) > most or rows.shape[1] > 10_000:
        raise Wrong(f"Rows {list(rows.shape)} are more than it takes: a few small ones will do.")
    return rows


def read_case(
    found: Any, *, most: int, least: int, order: str = "", remark: str
) -> tuple[Tensor, int] | None:
    """``(rows, f)`` with ``f >= least``, or None for ``()``; raises ``Wrong`` for anything else.

    ``order`` says how the rows stand, ``remark`` what ``f`` must be.
    """
    if nothing_found(found, "(rows, f)"):
        return None
    if not (isinstance(found, (tuple, list)) and len(found) == 2):
        raise Wrong(f"Return two things, (rows, f){order}, or () if you find nothing.")
    rows, f = read_rows(found[0], most=most), found[1]
    if isinstance(f, bool) or not hasattr(f, "__index__") or f < least:
        raise Wrong(f"f = {f!r} must be a whole number, {remark}.")
    return rows, int(f)
