"""Rules that bound how far one row can pull: geometric median, clipping, filter. Chapter 15."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flcourse.byzantine.coordinates import coordinate_median
from flcourse.byzantine.geometry import centred, geometry, majority_radius, typical
from flcourse.byzantine.screening import admitted

_SMOOTHING = 1e-6  # of the majority's radius: nearer than that counts as that near


def geometric_median(
    rows: Tensor, *, tolerance: float = 1e-8, max_iterations: int = 10_000
) -> Tensor:
    """The point ``z`` of least ``Σ |x_i − z|``, by smoothed Weiszfeld: ``[n, d] -> [d]``.

    ``z ← Σ w_i x_i / Σ w_i`` with ``w_i = 1 / max(|x_i − z|, ν)``, until ``z`` moves by less than
    ``tolerance`` of the radius that holds a majority; ``ν`` is 1e-6 of it. ``z`` is held as weights
    of the rows and ``|x_i − z|`` follows from their products, so a step costs ``n²``, not ``n·d``.
    Where the minimum is flat (two equal camps, evenly many points on a line) ``z`` creeps along it;
    then ``max_iterations`` ends it, at a sum of distances that is the least to some 1e-6.
    Bears less than half of liars, ``n ≥ 2f + 1``: within ``2(n − f)/(n − 2f)`` of the honest
    rows' radius. Weights are ignored.

    Source: Pillutla et al. 2022, "Robust Aggregation for Federated Learning" (RFA), Algorithm 2.
    Chapter 15. Raises ``ValueError`` for options outside their range; warns ``DroppedRows``.
    """
    if not 0 < tolerance < 1 or max_iterations < 1:
        raise ValueError(f"tolerance={tolerance} must lie in (0, 1), max_iterations be at least 1")
    around = geometry(*admitted(rows, "geometric_median"))
    radius = math.sqrt(float(majority_radius(around.squared).min()))
    weights = _weiszfeld(around.gram, radius, tolerance, max_iterations)
    return around.centred.combine(weights[None])[0]


def centered_clipping(
    rows: Tensor, clip_norm: float, start: Tensor | None = None, *, iterations: int = 1
) -> Tensor:
    """``v + 1/n Σ (x_i − v) · min(1, C / |x_i − v|)`` from ``v = start``: ``[n, d] -> [d]``.

    ``C`` is ``clip_norm``. ``start`` [d] is the previous step (``as_aggregate`` keeps it), else
    the coordinate-wise median: never the mean, from which one huge row cannot be undone.
    ``iterations`` repeats the step with the result as ``v``. One row moves the result by at most
    ``C/n`` an iteration; the median start wants ``n ≥ 2f + 1``. Weights are ignored.

    Source: Karimireddy et al. 2021, "Learning from History for Byzantine Robust Optimization",
    section 4. Chapter 15.
    Raises ``ValueError`` for a ``clip_norm`` that is not positive, fewer than one iteration, or a
    start of another shape or not finite; warns ``DroppedRows``.
    """
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip_norm={clip_norm} must be a positive number")
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    rows, norms = admitted(rows, "centered_clipping")
    first = coordinate_median(rows) if start is None else _start(start, rows)
    around = centred(rows, norms, first)
    if iterations == 1:
        factors = _cut(around.lengths(), clip_norm) / len(rows)
    else:
        factors = _clip_again(around.gram(), clip_norm, iterations)
    return around.combine(factors[None])[0]


def norm_filter(rows: Tensor, max_norm: float) -> Tensor:
    """The mean of the rows with ``|x_i| ≤ max_norm``: ``[n, d] -> [d]``.

    Stops boasters only: a liar of ordinary length is averaged like anyone. Weights are ignored.

    Source: Sun et al. 2019, "Can You Really Backdoor Federated Learning?", section 5 (there cut to
    the bound, here left out). Chapter 15.
    Raises ``ValueError`` if ``max_norm`` is not positive, or no row is that short; warns
    ``DroppedRows``.
    """
    if not (max_norm > 0 and math.isfinite(max_norm)):
        raise ValueError(f"max_norm={max_norm} must be a positive number")
    rows, norms = admitted(rows, "norm_filter")
    kept = norms <= max_norm
    if not bool(kept.any()):
        raise ValueError(
            f"no row is as short as max_norm={max_norm}: the shortest is {float(norms.min()):g} "
            f"long, the median {float(norms.median()):g}; raise max_norm"
        )
    centre = rows[kept.nonzero().flatten()[typical(norms[kept])]]
    return centred(rows, norms, centre).combine((kept.double() / kept.sum())[None])[0]


def _weiszfeld(gram: Tensor, radius: float, tolerance: float, max_iterations: int) -> Tensor:
    """The weights ``[n]``, sum 1, of the geometric median of rows with these products."""
    weights = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
    if radius == 0:  # a majority agrees: that point is the median
        return _agreed(gram)
    for _ in range(max_iterations):
        distance = _distances(gram, weights).clamp(min=_SMOOTHING * radius)
        new = (1 / distance) / (1 / distance).sum()
        change = new - weights
        weights = new
        if math.sqrt(max(float(change @ gram @ change), 0.0)) <= tolerance * radius:
            break
    return weights


def _agreed(gram: Tensor) -> Tensor:
    weights = torch.zeros(len(gram), dtype=torch.float64)
    weights[int(gram.diagonal().argmin())] = 1
    return weights


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    """``|x_i − z|`` for ``z = Σ w_j x_j``, from products of rows around any centre: ``[n]``."""
    seen = gram @ weights
    return (gram.diagonal() - 2 * seen + weights @ seen).clamp(min=0).sqrt()


def _cut(distance: Tensor, clip_norm: float) -> Tensor:
    return clip_norm / distance.clamp(min=clip_norm)


def _clip_again(gram: Tensor, clip_norm: float, iterations: int) -> Tensor:
    """Factors ``a`` with ``v = start + Σ a_i (x_i − start)`` after that many steps: ``[n]``."""
    factors = torch.zeros(len(gram), dtype=torch.float64)
    for _ in range(iterations):
        share = _cut(_distances(gram, factors), clip_norm) / len(gram)
        factors = factors * (1 - share.sum()) + share
    return factors


def _start(start: Tensor, rows: Tensor) -> Tensor:
    if start.shape != rows.shape[1:]:
        raise ValueError(f"a start of shape {list(start.shape)} does not fit {list(rows.shape)}")
    first = start.detach().to(rows)  # a float64 start of 1e39 is no float32
    if not bool(torch.isfinite(first).all()):
        raise ValueError(
            f"start holds NaN, infinity or a number beyond {rows.dtype}: give the last finite "
            "step, or None"
        )
    return first
