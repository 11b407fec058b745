"""Clipping: how far one participant can move the sum, which is what noise is measured against.

    clipped = clip_rows(rows, clip_norm)                       # no row is longer than C
    total = gaussian_sum(clipped, noise_multiplier, generator) # in flcourse.privacy.noise

Noise protects only what is bounded, so the functions that add noise take a ``Clipped`` and nothing
else. A ``Clipped`` says what was bounded, for whom, and between which neighbouring data sets.
Chapter 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flcourse.vectors import Slot

ADJACENCIES = ("add/remove", "replace-one")
UNITS = ("client", "example")
_COLUMNS_AT_ONCE = 2**12  # of rows, in a norm
_ROUNDING = 1e-5  # of a norm: a float32 row scaled to length C is C long up to its last digits


@dataclass(frozen=True)
class Clipped:
    """Rows ``[n, d]`` of which none is longer than ``clip_norm``, and what that protects.

    Attributes:
        rows: what each protected unit contributes, ``[n, d]``, float32 or float64.
        clip_norm: ``C``, the greatest length of a row (of all its layers together).
        adjacency: ``"add/remove"`` (neighbouring data sets differ in one unit being there or not)
            or ``"replace-one"`` (one unit's data are replaced by any others).
        unit: whose presence is protected: a ``"client"`` with all its data, or an ``"example"``.
        order: the norm that was bounded: 2 for Gaussian noise, 1 for Laplace noise.
        dropped: which rows held NaN or infinity and count as rows of zeros.

    Raises ``ValueError`` if a row is longer than ``clip_norm`` or not finite: what says that it was
    clipped, was.
    """

    rows: Tensor
    clip_norm: float
    adjacency: str = "add/remove"
    unit: str = "client"
    order: int = 2
    dropped: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_choice(self.clip_norm, self.adjacency, self.unit, self.order)
        norms = row_norms(self.rows, self.order)
        allowed = self.clip_norm * (1 + _ROUNDING)
        if not bool((norms <= allowed).all()):  # also where a norm is NaN
            worst = int(norms.nan_to_num(nan=math.inf).argmax())
            raise ValueError(
                f"row {worst} has length {float(norms[worst]):g}, more than "
                f"clip_norm={self.clip_norm}: make a Clipped with clip_rows(rows, clip_norm)"
            )

    @property
    def sensitivity(self) -> float:
        """How far the sum moves at most between neighbours: ``C``, or ``2C`` for replace-one.

        With a row removed the sum changes by that row; with a row replaced, by the difference of
        two rows, which may point in opposite directions.
        """
        return self.clip_norm * (1.0 if self.adjacency == "add/remove" else 2.0)

    def total(self) -> ClippedSum:
        """``Σ_i row_i``, added in float64, and what it is the sum of."""
        total = exact(self.rows).sum(dim=0).to(self.rows)
        terms = (len(self.rows), self.clip_norm, self.adjacency, self.unit, self.order)
        return ClippedSum(total, *terms)


@dataclass(frozen=True)
class ClippedSum:
    """The sum ``[d]`` of ``count`` clipped rows that were never all in memory (DP-SGD in chunks).

    The other attributes are those of ``Clipped``. Raises ``ValueError`` for a sum that is not
    finite, or longer than ``count`` rows of length ``clip_norm`` can make it.
    """

    total: Tensor
    count: int
    clip_norm: float
    adjacency: str = "add/remove"
    unit: str = "example"
    order: int = 2

    def __post_init__(self) -> None:
        _check_choice(self.clip_norm, self.adjacency, self.unit, self.order)
        length = float(row_norms(self.total[None], self.order))
        if not length <= self.count * self.clip_norm * (1 + _ROUNDING):
            raise ValueError(
                f"a sum of length {length:g} is no sum of {self.count} rows of at most "
                f"clip_norm={self.clip_norm}: clip each row before adding"
            )

    @property
    def sensitivity(self) -> float:
        """As ``Clipped.sensitivity``."""
        return self.clip_norm * (1.0 if self.adjacency == "add/remove" else 2.0)


def clip_rows(
    rows: Tensor,
    clip_norm: float,
    *,
    unit: str = "client",
    adjacency: str = "add/remove",
    order: int = 2,
    not_finite: str = "refuse",
) -> Clipped:
    """``row · min(1, C / ‖row‖)`` for each row ``[n, d]``: flat clipping.

    ``order`` is that of the norm. ``not_finite``: rows with NaN or infinity are refused
    (``"refuse"``), or count as zeros and are listed in ``Clipped.dropped`` (``"drop"``). In a
    deployment use the latter: whether a round failed is itself an output that depends on the data.
    A plain ``row * min(1, C / norm)`` lets NaN pass.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1 (examples);
    McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", section 2.2
    (clients). Chapter 10.
    Raises ``ValueError`` for rows that are not finite, not a float32 or float64 matrix, or options
    outside their range.
    """
    _check_choice(clip_norm, adjacency, unit, order)
    rows, dropped = _finite(rows, not_finite)
    return Clipped(
        _shorten(rows, torch.tensor(clip_norm), order), clip_norm, adjacency, unit, order, dropped
    )


def clip_layers(
    rows: Tensor,
    layers: Sequence[Slot],
    clip_norm: float,
    *,
    shares: Sequence[float] | None = None,
    unit: str = "client",
    adjacency: str = "add/remove",
    not_finite: str = "refuse",
) -> Clipped:
    """Clip each layer of each row to a bound of its own, ``C_l = C · s_l / √Σ s²``: ``[n, d]``.

    ``layers`` are the slots of ``flcourse.vectors.layout(model)``; ``shares`` ``s_l`` are equal
    unless given. Since ``Σ C_l² = C²``, a whole row is at most ``C`` long, and sensitivity and
    noise are those of flat clipping.

    Source: McMahan et al. 2018, section 2.2, "per-layer clipping". Chapter 10.
    Raises ``ValueError`` as ``clip_rows`` does, and where layers or shares do not fit the rows.
    """
    _check_choice(clip_norm, adjacency, unit, 2)
    rows, dropped = _finite(rows, not_finite)
    sizes = [layer.size for layer in layers]
    if sum(sizes) != rows.shape[1]:
        raise ValueError(f"the layers have {sum(sizes)} values, the rows {rows.shape[1]}")
    parts = torch.ones(len(sizes)) if shares is None else torch.as_tensor(shares).double()
    if parts.shape != (len(sizes),) or not bool((parts > 0).all()):
        raise ValueError(f"shares={shares} must be {len(sizes)} positive numbers, one for a layer")
    bounds = clip_norm * parts.double() / parts.double().norm()
    cut = [
        _shorten(part, bound, 2)
        for part, bound in zip(rows.split(sizes, dim=1), bounds, strict=True)
    ]
    return Clipped(torch.cat(cut, dim=1), clip_norm, adjacency, unit, 2, dropped)


def row_norms(rows: Tensor, order: int = 2) -> Tensor:
    """``‖row‖`` of each row ``[n, d] -> [n]``, float64.

    Pieces in the rows' own precision (a tenth of the time), their norms in float64; where a square
    overflows, all of it in float64.
    """
    pieces = [
        exact(torch.linalg.vector_norm(piece, ord=order, dim=1))
        for piece in rows.split(_COLUMNS_AT_ONCE, dim=1)
    ]
    norms = torch.linalg.vector_norm(torch.stack(pieces), ord=order, dim=0)
    over = torch.isinf(norms)
    if bool(over.any()):
        norms[over] = torch.linalg.vector_norm(exact(rows[over.to(rows.device)]), ord=order, dim=1)
    return norms


def exact(values: Tensor) -> Tensor:
    """The same values in float64, on the CPU where their device has none (MPS)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def _shorten(rows: Tensor, bound: Tensor, order: int) -> Tensor:
    norms = row_norms(rows, order)
    return rows * (bound.to(norms) / norms.clamp(min=float(bound))).to(rows)[:, None]


def _finite(rows: Tensor, not_finite: str) -> tuple[Tensor, tuple[int, ...]]:
    """The rows, and which of them were set to zero since they held NaN or infinity."""
    if not_finite not in ("refuse", "drop"):
        raise ValueError(f"not_finite={not_finite!r} is unknown: use 'refuse' or 'drop'")
    if rows.dim() != 2 or not rows.shape[1]:
        raise ValueError(f"expected rows [n, d], got {list(rows.shape)}")
    if rows.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rows of {rows.dtype}: clipping works on float32 and float64, .float()")
    sound = torch.isfinite(row_norms(rows)).to(rows.device)
    if bool(sound.all()):
        return rows, ()
    bad = (~sound).nonzero().flatten().tolist()
    if not_finite == "refuse":
        raise ValueError(
            f"row(s) {bad} hold NaN or infinity, which clipping does not bound: leave them out, or "
            "count them as zeros with not_finite='drop'"
        )
    return torch.where(sound[:, None], rows, torch.zeros_like(rows)), tuple(bad)


def _check_choice(clip_norm: float, adjacency: str, unit: str, order: int) -> None:
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip_norm={clip_norm} must be a positive number")
    if adjacency not in ADJACENCIES:
        raise ValueError(f"adjacency={adjacency!r} is unknown: use {' or '.join(ADJACENCIES)}")
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is unknown: use {' or '.join(UNITS)}")
    if order not in (1, 2):
        raise ValueError(f"order={order} must be 2 (Gaussian noise) or 1 (Laplace noise)")
