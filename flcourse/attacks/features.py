"""On from exact features: a picture whose features are those that the algebra found. Chapter 05.

Where a max-pool stops ``peel``, thousands of exact numbers about the picture are known already. To
fit them takes one forward and one backward pass a step, not the double backward pass of matching
gradients, and the numbers carry more than a gradient's direction does.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from flcourse.attacks.basis import Basis, make_basis
from flcourse.attacks.chain import Link, check_leak, read_chain
from flcourse.attacks.deconvolve import Rows
from flcourse.attacks.recursive import peel
from flcourse.attacks.routing import Pooled, pooled_block
from flcourse.attacks.types import Leak, Recovery, Snapshot
from flcourse.runtime import generator

Vector = NDArray[np.float64]

# Pictures drawn from the prior to see how features vary, and the least variance that counts, as a
# part of the largest.
_DRAWS = 16
_FLOOR = 0.1


def invert_features(
    model: nn.Module,
    leak: Leak,
    recovery: Recovery | None = None,
    *,
    evaluations: int = 240,
    basis: str | Basis = "dct",
    prior: float = 1e-4,
    snapshots: int = 0,
    seed: int = 0,
) -> Recovery:
    """The picture whose features agree with the exact ones that ``peel`` stopped at.

    Minimises ``‖W(f(x) - h)‖² / ‖Wh‖² + prior · mean(u²)`` by L-BFGS from grey, in about
    ``evaluations`` forward and backward passes: ``f`` is the model up to ``features_at``, ``h`` the
    features, ``u`` the picture's coefficients in ``basis`` (``"dct"``, ``"pixels"`` or a ``Basis``
    that was learnt from public pictures). ``W`` evens out the features' channels, which vary by
    orders of magnitude and together: it is the inverse root of their covariance over pictures drawn
    from the prior, with ``seed``.

    Where a max-pool behind a convolution gave the features, that convolution's weight gradient
    joins in after a quarter of the passes: linear in the convolution's input once ``δ`` has its
    places, which the picture so far tells, with its doubts, and tells again after each quarter. No
    step needs a double backward pass.

    ``recovery`` is the answer of ``peel`` for the same model and leak; without it ``peel`` is
    called. One that already holds a picture is returned as it is. ``snapshots`` keeps so many
    pictures on the way. ``loss`` is the objective at the answer.

    Source: Mahendran & Vedaldi 2015, "Understanding deep image representations by inverting them",
    section 2. Chapter 05. Raises ``ValueError`` as ``peel`` does, where no features are known, or
    for options outside their range.
    """
    if evaluations < 1 or snapshots < 0 or not prior >= 0:
        raise ValueError(
            f"evaluations={evaluations} must be at least 1, snapshots={snapshots} and "
            f"prior={prior} at least 0"
        )
    recovery = peel(model, leak) if recovery is None else recovery
    if recovery.images is not None:
        return recovery
    if recovery.features is None or recovery.features_at is None:
        raise ValueError(f"no features are known ({recovery.stopped_at}): use match_gradients")
    start = time.process_time()
    shape = tuple(leak.image_shape)
    chosen = basis if isinstance(basis, Basis) else make_basis(basis, shape, prior=True)
    reference = next(model.parameters()).detach()
    chosen = chosen.to(reference.device, reference.dtype)
    links, last = _front(model, shape, recovery.features_at)
    label = None if recovery.labels is None else int(recovery.labels[0])
    exact = recovery.features[0].detach().cpu().double()
    block = pooled_block(links, last, exact, label, check_leak(model, leak))
    front = copy.deepcopy(nn.Sequential(*(link.module for link in links[: last + 1])))
    front = front.requires_grad_(False).to(reference)
    cut = 0 if block is None else block.index
    target = recovery.features.to(reference)
    objective = _Objective(front, cut, target, chosen, prior, _evener(front, chosen, target, seed))
    objective.kept = set(np.linspace(1, evaluations, snapshots).astype(int).tolist())
    first, each = (evaluations, 0) if block is None else _shares(evaluations)
    row = _search(objective, np.zeros(chosen.std.numel()), first)
    while block is not None and len(objective.history) < evaluations:
        objective.place(block, row)
        row = _search(objective, row, min(each, evaluations - len(objective.history)))
    images = objective.picture(row)[None]
    objective(row)
    return replace(
        recovery,
        images=images,
        method="peel, then invert_features",
        loss=objective.history[-1],
        evaluations=recovery.evaluations + len(objective.history),
        seconds=recovery.seconds + time.process_time() - start,
        history=tuple(objective.history),
        snapshots=tuple(objective.snapshots),
    )


def _front(model: nn.Module, shape: tuple[int, ...], last: str) -> tuple[tuple[Link, ...], int]:
    """The model's layers, and which of them is the one named."""
    links = read_chain(model, shape)
    names = [link.name for link in links]
    if last not in names:
        raise ValueError(f"the model has no layer {last!r}: give the model that was peeled")
    return links, names.index(last)


def _shares(evaluations: int) -> tuple[int, int]:
    """Of so many evaluations, those by features alone, and those between two placements."""
    quarter = max(1, evaluations // 4)
    return quarter, max(20, quarter)


def _search(objective: _Objective, row: Vector, evaluations: int) -> Vector:
    options = {"maxfun": evaluations, "maxiter": evaluations, "maxcor": 20, "ftol": 0, "gtol": 0}
    found = minimize(objective, row, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x)


class _Objective:
    """Value and gradient for scipy, at coefficients given as a flat float64 row."""

    def __init__(
        self,
        front: nn.Sequential,
        cut: int,
        target: Tensor,
        basis: Basis,
        prior: float,
        even: Tensor | None,
    ) -> None:
        self.lower, self.upper = front[:cut], front[cut:]
        self.target, self.basis, self.prior = target, basis, prior
        self.even = even
        self.history: list[float] = []
        self.snapshots: list[Snapshot] = []
        self.kept: set[int] = set()
        self.placed: Rows | None = None

    def picture(self, row: Vector) -> Tensor:
        return self.basis.decode(self._unknown(row))

    def place(self, block: Pooled, row: Vector) -> None:
        """Take the weight gradient of the block's convolution in, placed by the picture so far."""
        with torch.no_grad():
            inputs = self.lower(self.picture(row)[None])[0]
        placed = block.equations(inputs.cpu().double())
        self.placed = Rows(placed.rows.to(self.target), placed.values.to(self.target))

    @torch.enable_grad()
    def __call__(self, row: Vector) -> tuple[float, Vector]:
        unknown = self._unknown(row).requires_grad_()
        picture = self.basis.decode(unknown)
        inputs = self.lower(picture[None])
        loss = self._misfit(inputs) + self.prior * unknown.square().mean()
        self._note(picture.detach(), float(loss.detach()))
        if self.placed is not None:
            off = inputs[0].flatten(1) @ self.placed.rows.T - self.placed.values
            loss = loss + off.square().sum() / self.placed.values.square().sum()
        (gradient,) = torch.autograd.grad(loss, unknown)
        return float(loss.detach()), gradient.reshape(-1).double().cpu().numpy()

    def _unknown(self, row: Vector) -> Tensor:
        return torch.from_numpy(row).to(self.basis.std).reshape(self.basis.shape)

    def _misfit(self, inputs: Tensor) -> Tensor:
        off = self._evened(self.upper(inputs) - self.target).square().sum()
        return off / self._evened(self.target).square().sum().clamp(min=1e-30)

    def _evened(self, features: Tensor) -> Tensor:
        flat = features.flatten(2) if features.dim() > 2 else features[:, :, None]
        return flat if self.even is None else self.even @ flat

    def _note(self, picture: Tensor, loss: float) -> None:
        self.history.append(loss)
        if len(self.history) in self.kept:
            self.snapshots.append(Snapshot(len(self.history), loss, picture[None]))


@torch.no_grad()
def _evener(front: nn.Module, basis: Basis, target: Tensor, seed: int) -> Tensor | None:
    """``(C + floor)^(-1/2)`` ``[c, c]`` of the channels; ``None`` where features have no places."""
    if target.dim() != 4:
        return None
    draws = torch.randn(_DRAWS, *basis.shape, generator=generator(seed, "invert_features"))
    features = torch.cat([front(basis.decode(draws.to(basis.std))), target])
    rows = features.transpose(0, 1).flatten(1).double().cpu()
    rows = rows - rows.mean(dim=1, keepdim=True)
    variances, axes = torch.linalg.eigh(rows @ rows.T / rows.shape[1])
    if not float(variances.max()) > 0:
        return None
    roots = (variances.clamp(min=0) + _FLOOR * variances.max()).rsqrt()
    return ((axes * roots) @ axes.T).to(target)
