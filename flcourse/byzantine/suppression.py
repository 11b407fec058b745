"""Colluders that cancel each other, so that the average is one client's update. Chapter 17.

    lies = suppression(honest, own, scale=10.0, generator=generator)   # [f, d], their sum is zero
    mean(cat(honest, lies)) = Σ honest / n                             # f · scale plays no role

Where all clients but one collude, that mean is the last client's update divided by n, for everybody
who sees the model before and after the round. Where they are few, nothing happens but a step that
is shorter by f/n. With ``target`` the colluders cancel the other honest rows as well, which they
then must know.

A robust rule sees pairs of opposite rows around one honest row, and may well return that row
itself, not divided by n: the coordinate-wise median of t and ±M is t wherever ``|t| < |M|``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flcourse.byzantine.attacks import check_rows
from flcourse.privacy.clipping import exact


def suppression(
    honest: Tensor,
    own: Tensor,
    *,
    generator: torch.Generator,
    scale: float = 10.0,
    target: int | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Rows ``[f, d]`` that cancel: ``+M, −M`` in pairs, ``‖M‖ = scale ·`` the mean of ``‖own‖``.

    ``M`` has a random direction for each pair; with an odd ``f`` the last three lie at 120°. So
    ``mean = Σ honest / n``. With ``target = t`` each row also carries ``−Σ_{j≠t} honest_j / f``,
    and the mean is ``honest_t / n``.

    ``weights`` ``[f]`` are the colluders' own sample counts where the server weights by them: each
    row is then divided by its weight over the mean one, so that the weighted sum cancels
    (``target`` takes equal weights). Without it, unequal weights leave a rest.

    What must be known: own rows (for their length); with ``target``, all other honest rows.
    In floating point ``+M − M`` is exactly zero, yet a rest that is small beside ``M`` loses digits
    on the way: from ``scale ≈ 10⁶`` on float32 has little of it left. Integers modulo ``2^k``
    (chapter 13) lose none.

    Chapter 17. Raises ``ValueError`` for fewer than two colluders, a ``scale`` that is not
    positive, a ``target`` that is no row of ``honest``, or weights that do not fit.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale={scale} must be a positive number: the length of M over own rows")
    carried = _carried(honest, own, target)
    length = scale * exact(own).norm(dim=1).mean()
    away = _cancelling(torch.ones_like(exact(own)), carried, generator)
    lies = length * away + carried
    return (lies / _shares(weights, own, target)).to(own)


def stealth_suppression(
    honest: Tensor,
    own: Tensor,
    *,
    generator: torch.Generator,
    width: float = 1.0,
    target: int | None = None,
) -> Tensor:
    """The same within the envelope of honest lengths, as estimated from own rows: ``[f, d]``.

    The lengths lie in ``mean ± width · std`` of ``‖own_i‖``, drawn once for each cancelling pair,
    and values have the size that own rows have in that coordinate,
    ``M_k ∝ g_k · √mean_i own_ik²`` with ``g`` normal: a weight that no colluder trained stays
    where it is. No rule that looks at lengths tells these rows from honest ones.

    What must be known: own rows; with ``target``, all other honest rows.
    Chapter 17. Raises ``ValueError`` for fewer than two colluders, a negative ``width``, a
    ``target`` that is no row of ``honest``, and where what must be cancelled (with ``target``) is
    longer for each colluder than the envelope allows.
    """
    if not (width >= 0 and math.isfinite(width)):
        raise ValueError(f"width={width} must be 0 or more: standard deviations of own lengths")
    carried = _carried(honest, own, target)
    lengths = exact(own).norm(dim=1)
    low, high = _envelope(lengths, width)
    if carried.norm() > high:
        raise ValueError(
            f"each of {len(own)} colluders must carry {float(carried.norm()):.3g} of the other "
            f"honest rows, and the envelope ends at {float(high):.3g}: more colluders, or width"
        )
    shape = exact(own).square().mean(dim=0).sqrt().expand(own.shape)
    away = _cancelling(shape, carried, generator)
    draws = torch.rand(len(own) // 2, 1, generator=generator, dtype=torch.float64).to(low.device)
    drawn = (low + (high - low) * draws).clamp(min=carried.norm())
    free = (drawn.square() - carried.square().sum()).clamp(min=0).sqrt()
    return (free[_pair_of(len(own))] * away + carried).to(own)


def _envelope(lengths: Tensor, width: float) -> tuple[Tensor, Tensor]:
    spread = width * lengths.std(unbiased=True)
    return (lengths.mean() - spread).clamp(min=0), lengths.mean() + spread


def _carried(honest: Tensor, own: Tensor, target: int | None) -> Tensor:
    """What each colluder adds so that only the target is left: ``−Σ_{j≠t} honest_j / f``."""
    check_rows(honest, own)
    if len(own) < 2:
        raise ValueError(
            f"{len(own)} colluder(s) cannot cancel each other: at least two are needed"
        )
    if target is None:
        return torch.zeros_like(exact(own[0]))
    if not 0 <= target < len(honest):
        raise ValueError(f"target={target} is none of the {len(honest)} honest rows (from 0)")
    others = torch.cat([honest[:target], honest[target + 1 :]])
    return -exact(others).sum(dim=0) / len(own)


def _shares(weights: Tensor | None, own: Tensor, target: int | None) -> Tensor:
    if weights is None:
        return torch.ones_like(exact(own[:1, :1]))
    if target is not None:
        raise ValueError("weights with target: the honest rows' weights would be needed as well")
    if weights.shape != own.shape[:1] or not bool((weights > 0).all()):
        raise ValueError(f"weights={weights.tolist()} must be {len(own)} positive sample counts")
    shares = exact(weights) / exact(weights).mean()
    return shares[:, None].to(exact(own))


def _pair_of(count: int) -> list[int]:
    """Which pair a row belongs to; of an odd count the last three are together."""
    return [min(i // 2, count // 2 - 1) for i in range(count)]


def _cancelling(shape: Tensor, across: Tensor, generator: torch.Generator) -> Tensor:
    """Unit rows ``[f, d]`` that sum to zero, each at a right angle to ``across`` ``[d]``.

    Values are normal, times ``shape``. Rows of zeros where there is no such direction.
    """
    count = len(shape)
    normal = torch.randn(shape.shape, generator=generator, dtype=torch.float64).to(shape.device)
    drawn = normal * shape
    if bool(across.any()):
        unit = across / across.norm()
        drawn -= (drawn @ unit)[:, None] * unit
    drawn = _unit(drawn)
    for i in range(0, count - 1, 2):
        drawn[i + 1] = -drawn[i]
    if count % 2:
        drawn[-3:] = _triple(drawn[-3], drawn[-1])
    return drawn


def _triple(first: Tensor, other: Tensor) -> Tensor:
    """Three unit rows at 120° in the plane of two: they sum to zero."""
    second = _unit((other - (other @ first) * first)[None])[0]
    sideways = math.sqrt(3) / 2 * second
    return torch.stack([first, -first / 2 + sideways, -first / 2 - sideways])


def _unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))
