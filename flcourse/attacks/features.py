"""On from exact features: a picture whose features are those that the algebra found. Chapter 05.

Where a max-pool stops ``peel``, thousands of exact numbers about the picture are known already. To
fit them takes one forward and one backward pass a step, not the double backward pass of matching
gradients, and the numbers carry more than a gradient's direction does.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from flcourse.attacks.basis import Basis, make_basis
from flcourse.attacks.chain import read_chain
from flcourse.attacks.recursive import peel
from flcourse.attacks.types import Leak, Recovery, Snapshot
from flcourse.runtime import generator

# Pictures drawn from the prior to see how features vary, and the least variance that counts, as a
# part of the largest.
_DRAWS = 16
_FLOOR = 0.1


def invert_features(
    model: nn.Module,
    leak: Leak,
    recovery: Recovery | None = None,
    *,
    evaluations: int = 160,
    basis: str | Basis = "dct",
    prior: float = 1e-4,
    snapshots: int = 0,
    seed: int = 0,
) -> Recovery:
    """The picture whose features agree with the exact ones that ``peel`` stopped at.

    Minimises ``‖W(f(x) - h)‖² / ‖Wh‖² + prior · mean(u²)`` by L-BFGS from grey, for at most
    ``evaluations`` forward and backward passes: ``f`` is the model up to ``features_at``, ``h`` the
    features, ``u`` the picture's coefficients in ``basis`` (``"dct"``, ``"pixels"`` or a ``Basis``
    that was learnt from public pictures). ``W`` evens out the features' channels, which vary by
    orders of magnitude and together: it is the inverse root of their covariance over pictures drawn
    from the prior, with ``seed``.

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
    front = _front(model, shape, recovery.features_at).to(reference)
    target = recovery.features.to(reference)
    objective = _Objective(front, target, chosen, prior, _evener(front, chosen, target, seed))
    objective.kept = set(np.linspace(1, evaluations, snapshots).astype(int).tolist())
    minimize(
        objective,
        np.zeros(chosen.std.numel()),
        jac=True,
        method="L-BFGS-B",
        options={"maxfun": evaluations, "maxiter": evaluations, "maxcor": 20, "ftol": 0, "gtol": 0},
    )
    return replace(
        recovery,
        images=objective.best[None],
        method="peel, then invert_features",
        loss=min(objective.history),
        evaluations=recovery.evaluations + len(objective.history),
        seconds=recovery.seconds + time.process_time() - start,
        history=tuple(objective.history),
        snapshots=tuple(objective.snapshots),
    )


def _front(model: nn.Module, shape: tuple[int, ...], last: str) -> nn.Sequential:
    """The layers up to the one named, frozen."""
    links = read_chain(model, shape)
    names = [link.name for link in links]
    if last not in names:
        raise ValueError(f"the model has no layer {last!r}: give the model that was peeled")
    front = nn.Sequential(*(link.module for link in links[: names.index(last) + 1]))
    return front.requires_grad_(False)


class _Objective:
    """Value and gradient for scipy, at coefficients given as a flat float64 row."""

    def __init__(
        self, front: nn.Module, target: Tensor, basis: Basis, prior: float, even: Tensor | None
    ) -> None:
        self.front, self.target, self.basis, self.prior = front, target, basis, prior
        self.even = even
        self.size = float(self._evened(target).square().sum()) or 1.0
        self.history: list[float] = []
        self.snapshots: list[Snapshot] = []
        self.kept: set[int] = set()
        self.best = basis.decode(torch.zeros_like(basis.std))

    def _evened(self, features: Tensor) -> Tensor:
        flat = features.flatten(2) if features.dim() > 2 else features[:, :, None]
        return flat if self.even is None else self.even @ flat

    @torch.enable_grad()
    def __call__(self, row: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        unknown = torch.from_numpy(row).to(self.basis.std).reshape(self.basis.shape)
        unknown.requires_grad_()
        picture = self.basis.decode(unknown)
        error = self._evened(self.front(picture[None]) - self.target).square().sum() / self.size
        loss = error + self.prior * unknown.square().mean()
        (gradient,) = torch.autograd.grad(loss, unknown)
        value = float(loss.detach())
        if not self.history or value < min(self.history):
            self.best = picture.detach()
        self.history.append(value)
        if len(self.history) in self.kept:
            images = self.best[None].clone()
            self.snapshots.append(Snapshot(len(self.history), min(self.history), images))
        return value, gradient.reshape(-1).double().cpu().numpy()


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
