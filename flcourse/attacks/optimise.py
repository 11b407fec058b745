"""Search methods for many starts at once: each start is a generator that asks for evaluations.

    point = next(search)                    # where the search wants to know the objective
    point = search.send((loss, gradient))   # the answer; the search names the next point

So a method is written as if it were alone, with its line search in the middle of it, and ``run``
gathers what all running searches ask for into one batched evaluation. Chapter 03.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]
Answer = tuple[float, Vector]
Search = Generator[Vector, Answer, str]
Evaluate = Callable[[list[int], Vector], tuple[Vector, Vector]]
Project = Callable[[Vector], Vector]

OPTIMISERS = ("lbfgs", "adam", "signed-adam", "adamw", "sgd")
SCHEDULES = ("none", "cosine", "steps")
_STEP_DECAYS = (3 / 8, 5 / 8, 7 / 8)
_FLAT = 1e-12  # an absolute slope or gradient below which nothing moves in float32
_SUFFICIENT, _CURVATURE = 1e-4, 0.9  # the two Wolfe conditions, as Nocedal & Wright recommend
_MAX_BRACKETS = 25
_SHORTEST = 1e-9  # a bracket whose points differ by less has only rounding left in it


# --- L-BFGS -------------------------------------------------------------------------------------


def lbfgs(
    start: Vector,
    *,
    lr: float = 1.0,
    history: int = 100,
    line_search: bool = True,
    flat: float = _FLAT,
) -> Search:
    """Limited-memory BFGS: ``x ← x - t·H·g``, ``H`` from the last ``history`` pairs of steps.

    With ``line_search``, ``t`` meets the strong Wolfe conditions; without, ``t = lr`` always (the
    first step is ``lr·min(1, 1/‖g‖₁)``): the same iterates as ``torch.optim.LBFGS`` up to
    rounding. Ends where the objective is flat, or not finite.
    Source: Nocedal & Wright, "Numerical Optimization", algorithms 7.4 and 7.5. Chapter 03.
    """
    x = start
    loss, gradient = yield x
    pairs: deque[tuple[Vector, Vector, float]] = deque(maxlen=history)
    size = lr * min(1.0, 1.0 / max(float(np.abs(gradient).sum()), 1e-300))
    while True:
        if not _finite(loss, gradient):
            return "not finite"
        direction = -_times_inverse_hessian(gradient, pairs)
        slope = float(gradient @ direction)
        if slope > -flat or np.abs(gradient).max() <= flat:
            return "flat"
        previous, step = gradient, direction * size
        if line_search:
            size, loss, gradient = yield from strong_wolfe(
                x, direction, size, loss, gradient, slope
            )
            step = direction * size
        else:
            loss, gradient = yield x + step
        if not np.any(step):
            return "no step"
        x = x + step
        change = gradient - previous
        if (curvature := float(change @ step)) > 1e-10 * _curvature_scale(line_search, change):
            pairs.append((step, change, curvature))
        size = lr


def _curvature_scale(line_search: bool, change: Vector) -> float:
    """The published code skips a pair of curvature below an absolute 1e-10; ours a relative one."""
    return 1.0 if not line_search else min(1.0, float(change @ change))


def _times_inverse_hessian(
    gradient: Vector, pairs: Sequence[tuple[Vector, Vector, float]]
) -> Vector:
    """The two-loop recursion: ``H·g`` from the pairs ``(s, y, s·y)``, without ever forming H."""
    if not pairs:
        return gradient
    result, weights = gradient.copy(), []
    for step, change, curvature in reversed(pairs):
        weight = float(step @ result) / curvature
        result -= weight * change
        weights.append(weight)
    _, change, curvature = pairs[-1]
    result *= curvature / float(change @ change)
    for (step, change, curvature), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - float(change @ result) / curvature) * step
    return result


@dataclass(frozen=True)
class _Trial:
    """The objective along a line: how far, its value, its gradient, its slope."""

    t: float
    loss: float
    gradient: Vector
    slope: float


def strong_wolfe(
    x: Vector, direction: Vector, t: float, loss: float, gradient: Vector, slope: float
) -> Generator[Vector, Answer, tuple[float, float, Vector]]:
    """A step size along ``direction`` that lowers the loss enough and flattens the slope enough.

    Steps forward (to at most ten times the last) until a minimum lies between two points, then
    narrows these by cubic interpolation: the decisions of ``torch.optim.LBFGS``. Returns the step,
    its loss and its gradient; step 0 where no point lowers the loss.
    Source: Nocedal & Wright, algorithms 3.5 and 3.6.
    """
    start = _Trial(0.0, loss, gradient, slope)
    longest = float(np.abs(direction).max())

    def too_high(trial: _Trial) -> bool:
        return trial.loss > loss + _SUFFICIENT * trial.t * slope

    def flat_enough(trial: _Trial) -> bool:
        return abs(trial.slope) <= -_CURVATURE * slope

    before, tries = start, 0
    trial = yield from _try(x, direction, t, before)
    while tries < _MAX_BRACKETS:
        if too_high(trial) or (tries > 1 and trial.loss >= before.loss):
            break
        if flat_enough(trial):
            return trial.t, trial.loss, trial.gradient
        if trial.slope >= 0:
            break
        reach = (trial.t + 0.01 * (trial.t - before.t), 10 * trial.t)
        t = _cubic_minimum(before, trial, reach)
        before, tries = trial, tries + 1
        trial = yield from _try(x, direction, t, before)
    else:
        before = start

    low, high = (before, trial) if before.loss <= trial.loss else (trial, before)
    stalled = False
    while tries < _MAX_BRACKETS and abs(high.t - low.t) * longest >= _SHORTEST:
        t, stalled = _inside(low, high, stalled)
        trial, tries = (yield from _try(x, direction, t, low)), tries + 1
        if too_high(trial) or trial.loss >= low.loss:
            low, high = (low, trial) if low.loss <= trial.loss else (trial, low)
            continue
        if flat_enough(trial):
            low = trial
            break
        if trial.slope * (high.t - low.t) >= 0:
            high = low
        low = trial
    return low.t, low.loss, low.gradient


def _try(x: Vector, direction: Vector, t: float, near: _Trial) -> Generator[Vector, Answer, _Trial]:
    """Evaluate at ``t``; where the answer is not finite, come closer to a point where it is."""
    for _ in range(_MAX_BRACKETS):
        loss, gradient = yield x + t * direction
        if _finite(loss, gradient):
            return _Trial(t, loss, gradient, float(gradient @ direction))
        t = near.t + 0.1 * (t - near.t)
    return near


def _inside(low: _Trial, high: _Trial, stalled: bool) -> tuple[float, bool]:
    """The next step size between the two: the cubic's minimum, not twice at an end."""
    left, right = sorted((low.t, high.t))
    t = _cubic_minimum(low, high, (left, right))
    margin = 0.1 * (right - left)
    if min(right - t, t - left) >= margin:
        return t, False
    if not (stalled or t >= right or t <= left):
        return t, True
    return (right - margin if abs(t - right) < abs(t - left) else left + margin), False


def _cubic_minimum(a: _Trial, b: _Trial, bounds: tuple[float, float]) -> float:
    """Where the cubic through two values and two slopes is lowest, within bounds."""
    if a.t > b.t:
        a, b = b, a
    if a.t == b.t:
        return sum(bounds) / 2
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return sum(bounds) / 2
    d2 = math.sqrt(square)
    bottom = b.slope - a.slope + 2 * d2
    if bottom == 0:
        return sum(bounds) / 2
    t = b.t - (b.t - a.t) * (b.slope + d2 - d1) / bottom
    return min(max(t, bounds[0]), bounds[1])


# --- first-order methods ------------------------------------------------------------------------


def first_order(
    start: Vector,
    *,
    optimiser: str = "adam",
    lr: float = 0.1,
    momentum: float = 0.0,
    schedule: str = "none",
    steps: int = 1000,
    project: Project | None = None,
) -> Search:
    """Adam, Adam on the gradient's sign (``"signed-adam"``), AdamW or SGD, by ``torch.optim``.

    ``schedule`` multiplies ``lr`` over ``steps``: ``"cosine"`` falls to 0; ``"steps"`` divides it
    by 10 after 3/8, 5/8 and 7/8, as Geiping et al. 2020 do. ``project`` puts each new point back
    into a box. Ends where the objective is not finite. Chapter 06.
    """
    x = torch.from_numpy(start.copy()).requires_grad_()
    rule = _torch_optimiser(optimiser, x, lr, momentum)
    taken = 0
    while True:
        loss, gradient = yield x.detach().numpy().copy()
        if not _finite(loss, gradient):
            return "not finite"
        x.grad = torch.from_numpy(np.sign(gradient) if optimiser == "signed-adam" else gradient)
        rule.param_groups[0]["lr"] = lr * _decay(schedule, taken, steps)
        rule.step()
        taken += 1
        if project is not None:
            x.data = torch.from_numpy(project(x.detach().numpy()))


def _torch_optimiser(name: str, x: Tensor, lr: float, momentum: float) -> torch.optim.Optimizer:
    if name in ("adam", "signed-adam"):
        return torch.optim.Adam([x], lr=lr)
    if name == "adamw":
        return torch.optim.AdamW([x], lr=lr)
    return torch.optim.SGD([x], lr=lr, momentum=momentum)


def _decay(schedule: str, taken: int, steps: int) -> float:
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(taken / steps, 1)))
    if schedule == "steps":
        return float(0.1 ** sum(taken >= int(steps * part) for part in _STEP_DECAYS))
    return 1.0


# --- many searches as one batch -----------------------------------------------------------------


@dataclass
class Track:
    """What one search has seen: its best and its last point, and the objective at every one."""

    best: Vector
    best_loss: float = math.inf
    last: Vector | None = None
    losses: list[float] = field(default_factory=list)
    snapshots: list[tuple[int, float, Vector]] = field(default_factory=list)
    improved_at: int = 0
    stopped: str | None = None

    def see(self, point: Vector, loss: float, tolerance: float) -> None:
        self.losses.append(loss)
        self.last = point
        if loss < self.best_loss:
            if loss < self.best_loss - tolerance * abs(self.best_loss):
                self.improved_at = len(self.losses)
            self.best, self.best_loss = point, loss


class Batch:
    """Searches that run side by side: one evaluation of the objective serves all that still run.

    ``evaluate(which, points [a, n])`` gives losses ``[a]`` and gradients ``[a, n]`` of the searches
    numbered ``which``. A search stops alone: where it ends itself, after ``patience`` evaluations
    without a relative improvement above ``tolerance``, or where its objective is not finite; it
    keeps the best that it had. ``chunk`` bounds how many are evaluated at once.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        evaluate: Evaluate,
        *,
        patience: int | None = None,
        tolerance: float = 0.0,
        snapshot_at: Sequence[int] = (),
        chunk: int | None = None,
    ) -> None:
        self._searches = list(searches)
        self._evaluate = evaluate
        self._patience, self._tolerance = patience, tolerance
        self._snapshot_at = frozenset(snapshot_at)
        self._chunk = chunk or max(len(self._searches), 1)
        self._points = [next(search) for search in self._searches]
        self.tracks = [Track(best=point) for point in self._points]

    @property
    def evaluations(self) -> int:
        """Evaluations so far, over all searches."""
        return sum(len(track.losses) for track in self.tracks)

    def advance(self, steps: int, which: Sequence[int] | None = None) -> None:
        """Go on until each search (of ``which``) has ``steps`` evaluations behind it, or ended."""
        chosen = range(len(self.tracks)) if which is None else which
        while running := [
            k
            for k in chosen
            if self.tracks[k].stopped is None and len(self.tracks[k].losses) < steps
        ]:
            for first in range(0, len(running), self._chunk):
                self._answer(running[first : first + self._chunk])

    def ranking(self) -> list[int]:
        """The searches by their own objective, the best first: what an attacker can see."""
        return sorted(range(len(self.tracks)), key=lambda k: self.tracks[k].best_loss)

    def _answer(self, which: list[int]) -> None:
        points = np.stack([self._points[k] for k in which])
        losses, gradients = self._evaluate(which, points)
        for k, loss, gradient in zip(which, losses.tolist(), gradients, strict=True):
            self._send(k, loss, gradient)

    def _send(self, k: int, loss: float, gradient: Vector) -> None:
        track = self.tracks[k]
        track.see(self._points[k], loss, self._tolerance)
        count = len(track.losses)
        if count in self._snapshot_at:
            track.snapshots.append((count, track.best_loss, track.best))
        if self._patience is not None and count - track.improved_at >= self._patience:
            track.stopped = "patience"
            return
        try:
            self._points[k] = self._searches[k].send((loss, gradient))
        except StopIteration as end:
            track.stopped = end.value


def spaced(count: int, steps: int) -> list[int]:
    """About ``count`` evaluation numbers from 1 to ``steps``, evenly spaced on a log scale."""
    if count < 1:
        return []
    if count == 1:
        return [steps]
    return sorted({round(steps ** (k / (count - 1))) for k in range(count)})


def _finite(loss: float, gradient: Vector) -> bool:
    return math.isfinite(loss) and bool(np.isfinite(gradient).all())
