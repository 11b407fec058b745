"""Rules that ask who can be trusted: a small clean set of the server's own, or company. Chapter 16.

Both look at directions: FLTrust at the angle to what the server would have done, the cluster filter
at the angles between clients. An angle says nothing about length, so both also set the lengths.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.byzantine.geometry import centred, geometry, majority_radius, typical
from flcourse.byzantine.screening import admitted, lengths
from flcourse.data import Client, Dataset
from flcourse.fedavg import local_updates

_COMPARABLE = 6  # lengths within 2⁶ of the typical one need no help
_ROUNDING = 1 + 1e-9  # a radius taken from the distances themselves includes the row that gave it


def fltrust(rows: Tensor, server_update: Tensor) -> Tensor:
    """``Σ t_i (|g|/|x_i|) x_i / Σ t_i``, trust ``t_i = max(cos(x_i, g), 0)``: ``[n, d] -> [d]``.

    ``g = server_update`` [d] is what the server trained on a clean root set of its own (some 100
    samples: ``root_update``). Angle and length are those of whole rows, not of layers. If all rows
    point away from ``g`` nobody is trusted and the result is zero: no step. Bears any number of
    liars, but is no better than the root set. Weights are ignored.

    Source: Cao et al. 2021, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
    Algorithm 2. Chapters 16 and 17.
    Raises ``ValueError`` for a server update of another shape, not finite or zero; warns
    ``DroppedRows``.
    """
    rows, norms = admitted(rows, "fltrust")
    root = _server_row(server_update, rows)
    length = float(lengths(root[None]))
    unit = (root.double() / length).to(root)  # the length of a row of 3e38 is no float32
    trust = _cosines(rows, norms, unit).clamp(min=0)
    if not float(trust.sum()) > 0:
        return torch.zeros_like(root)
    shares = torch.where(trust > 0, trust / trust.sum() * (length / norms), torch.zeros_like(trust))
    return centred(rows, norms, torch.zeros_like(root)).combine(shares[None])[0]


def cluster_filter(
    rows: Tensor, *, eps: float | None = None, min_samples: int | None = None
) -> Tensor:
    """The mean of the largest DBSCAN cluster by cosine distance ``1 − cos``: ``[n, d] -> [d]``.

    ``min_samples``: a majority, ``⌊n/2⌋ + 1``, unless given. ``eps``: the median over rows of the
    distance at which a row has that many around it, itself included, unless given; with a fixed one
    of 0.5, honest clients that differ, whose updates are all but orthogonal, are all thrown out.
    The rows kept are first cut to their median length. ``n ≥ 2f + 1``. Weights are ignored.

    Source: Ester et al. 1996 (DBSCAN); Nguyen et al. 2022, "FLAME: Taming Backdoors in Federated
    Learning", section 4 (there HDBSCAN, majority clusters and median lengths). Chapter 16.
    Raises ``ValueError`` for options outside their range, or if every row is noise; warns
    ``DroppedRows``.
    """
    rows, norms = admitted(rows, "cluster_filter")
    rows, scaled = _comparable(rows, norms)
    around = geometry(rows, scaled)
    distances = _cosine_distances(around.squared, scaled)
    count = len(rows) // 2 + 1 if min_samples is None else min_samples
    radius = _radius(distances, count) if eps is None else eps
    if not (count >= 1 and radius >= 0):
        raise ValueError(f"eps={eps} must be positive and min_samples={min_samples} at least 1")
    kept = _largest_cluster(distances, max(radius, 1e-12), count)
    wanted = norms.clamp(max=norms[kept].median())
    shares = torch.where(kept & (scaled > 0), wanted / scaled, torch.zeros_like(scaled))
    if not float(shares.sum()) > 0:
        return torch.zeros_like(rows[0])
    result = around.centred.combine((shares / shares.sum())[None])[0]
    return result * float(shares.sum() / kept.sum())


def root_set(data: Dataset, size: int = 100, *, generator: torch.Generator) -> Client:
    """``size`` samples drawn from ``data`` as the server's own clean set (index −1), for FLTrust.

    Chapter 17. Raises ``ValueError`` if there are fewer.
    """
    if not 1 <= size <= len(data):
        raise ValueError(f"size={size} must lie in 1 … {len(data)}, the samples there are")
    chosen = torch.randperm(len(data), generator=generator)[:size]
    return Client(-1, data.inputs[chosen], data.labels[chosen])


def root_update(model: nn.Module, root: Client, **local: Any) -> Callable[[], Tensor]:
    """A function that trains on the root set from ``model`` as it is when called: ``() -> [d]``.

    For ``as_aggregate("fltrust", server_update=root_update(model, root, epochs=1, ...))`` with the
    model that ``train`` trains in place: ``aggregate`` is called before the round's step, so the
    server starts where the clients did. ``local`` are the options of ``local_updates``. The n-th
    call shuffles as round n. Chapter 17.
    """
    calls = itertools.count(1)

    def server_update() -> Tensor:
        return local_updates(model, [root], round=next(calls), **local)[0][0]

    return server_update


def _comparable(rows: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Rows much longer or shorter than the typical one, times a power of two; and their lengths.

    No angle changes, and ``_cosine_distances`` keeps its digits.
    """
    usual = norms[typical(norms)]
    ratio = torch.where((norms > 0) & (usual > 0), usual / norms, torch.ones_like(norms))
    exponent = torch.frexp(ratio).exponent.clamp(max=240)
    exponent *= exponent.abs() > _COMPARABLE
    if not bool(exponent.any()):
        return rows, norms
    first = exponent // 2  # in two halves: neither 2²⁴⁰ nor 2⁻¹⁶⁰ is a float32
    for part in (first, exponent - first):
        factors = torch.ldexp(torch.ones_like(norms), part)
        rows, norms = rows * factors.to(rows)[:, None], norms * factors
    return rows, norms


def _cosine_distances(squared: Tensor, norms: Tensor) -> Tensor:
    """``1 − cos(x_i, x_j)``: ``[n, n]``, float64; 1 where a row is zero, 0 on the diagonal.

    As ``(|x_i − x_j|² − (|x_i| − |x_j|)²) / (2 |x_i| |x_j|)``: a common offset makes all angles
    small, and a cosine near one has no digits left to tell them.
    """
    both = 2 * norms[:, None] * norms
    part = squared - (norms[:, None] - norms).square()
    distances = torch.where(both > 0, part / both, torch.ones_like(both))
    return distances.clamp(0, 2).fill_diagonal_(0)


def _server_row(server_update: Tensor, rows: Tensor) -> Tensor:
    if server_update.shape != rows.shape[1:]:
        raise ValueError(
            f"a server_update of shape {list(server_update.shape)} does not fit rows "
            f"{list(rows.shape)}"
        )
    root = server_update.detach().to(rows)
    if not 0 < float(lengths(root[None])) < math.inf:
        raise ValueError("the server_update is zero or not finite: it has no direction to trust")
    return root


def _cosines(rows: Tensor, norms: Tensor, unit: Tensor) -> Tensor:
    """``x_i·u / |x_i|`` for a unit row ``u``; 0 for rows of zeros: ``[n]``, float64."""
    plain = centred(rows, norms, torch.zeros_like(unit))
    dots = torch.zeros(len(rows), dtype=torch.float64)
    for columns, slab in plain.slabs():
        dots += (slab @ unit[columns]).cpu().double()
    if plain.scale is not None:
        dots /= plain.scale
    return torch.where(norms > 0, dots / norms, torch.zeros_like(dots))


def _radius(distances: Tensor, count: int) -> float:
    if count == len(distances) // 2 + 1:
        reach = majority_radius(distances)
    else:
        reach = distances.sort(dim=1).values[:, min(max(count, 1), len(distances)) - 1]
    return float(reach.median()) * _ROUNDING


def _largest_cluster(distances: Tensor, eps: float, min_samples: int) -> Tensor:
    from sklearn.cluster import DBSCAN  # a second to import, for this rule alone

    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distances.numpy())
    labels = torch.from_numpy(found.labels_)
    if not bool((labels >= 0).any()):
        raise ValueError(
            f"no row has {min_samples} rows within eps={eps:g} of its direction: all would be "
            "noise; raise eps or lower min_samples"
        )
    return labels == labels[labels >= 0].mode().values
