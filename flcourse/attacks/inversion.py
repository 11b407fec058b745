"""Gradient inversion: find the picture whose message is the one that was seen.

``match_gradients`` with no option uses the best method known for the leak at hand; every part of it
is an option (``presets.Options``), and presets reproduce published attacks. Chapters 03 and 06.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.basis import Basis, make_basis
from flcourse.attacks.features import invert_features
from flcourse.attacks.labels import infer_labels
from flcourse.attacks.objective import Matching, Objective, Target, Weights, looks_pruned
from flcourse.attacks.optimise import (
    Batch,
    Project,
    Search,
    Vector,
    first_order,
    lbfgs,
    spaced,
)
from flcourse.attacks.presets import Options, resolve
from flcourse.attacks.recursive import peel
from flcourse.attacks.simulate import Client
from flcourse.attacks.starts import box, start_point
from flcourse.attacks.types import Leak, Recovery, Snapshot
from flcourse.runtime import generator

# Evaluations where the options do not say: what was measured to pay.
_SINGLE, _UNROLLED, _NOISY, _BATCH, _BATCH_AT_MOST = 250, 150, 120, 500, 1000
_FIRST_ORDER_STEPS = 2000
# A batch has more unknowns than its gradient has numbers: a trace of the prior decides the rest.
_BATCH_PRIOR = 1e-10
_FEATURE_STEPS = 160
_RACE = 40  # evaluations of every candidate label before the worse ones are dropped
_FINALISTS = 2
_TRUSTED = 0.05  # the features' misfit above which they do not explain a picture


def match_gradients(
    model: nn.Module,
    leak: Leak,
    *,
    preset: str | None = None,
    labels: Tensor | str | None = None,
    restarts: int = 1,
    seed: int = 0,
    snapshots: int = 0,
    **options: Any,
) -> Recovery:
    """Search for pictures whose message matches the leak: ``min_x distance(message(x), leak)``.

    Without options: labels are inferred; the unknown are DCT coefficients in opponent colours,
    weighted by the spectrum of natural pictures; the search is L-BFGS with a strong Wolfe line
    search from grey. A single picture behind ReLU or max-pool is found by its exact features
    instead (``start="exact"``, chapter 05). Where noise is public (``leak.noise_std``) the
    objective is the negative log posterior; where a client made several local steps they are
    unrolled; where a message is pruned only its kept values are matched. If the label of a single
    sample is not certain, the likeliest ``candidates`` run side by side and the lowest objective
    wins.

    ``labels``: ``None`` to infer them, int64 ``[b]`` (or probabilities ``[b, k]``) if known, or
    ``"optimise"`` to make label logits unknowns too, as DLG does. ``preset``: ``"zhu2019"``,
    ``"zhao2020"`` or ``"geiping2020"``; options given beside it win. ``restarts`` run as one batch
    and the lowest objective wins: what an attacker can see. ``snapshots`` keeps about so many
    states, evenly spaced on a log scale. ``options``: see ``presets.Options``.

    Works on any module whose forward pass is twice differentiable; on the model's device. The
    pictures are not clamped, and the order within a batch is the labels'.
    Source: Zhu et al. 2019; Geiping et al. 2020; the MAP view as Balunović et al. 2022, "Bayesian
    Framework for Gradient Leakage". Chapters 03 and 06.
    Raises ``ValueError`` for a leak that is not of this model or values that are not choices,
    ``TypeError`` for an unknown option.
    """
    began = time.process_time()
    chosen, extra = resolve(preset, options)
    labels = extra.get("labels") if labels is None else labels
    if restarts < 1:
        raise ValueError(f"restarts={restarts} must be at least 1")
    if chosen.start == "exact" or (preset is None and not options and _stops_algebra(model)):
        found = _from_features(model, leak, chosen, labels, seed, snapshots)
        if found is not None:
            return replace(found, seconds=time.process_time() - began)
    problem = _Problem(model, leak, chosen, seed)
    targets = _targets(problem, labels)
    answer = _search(problem, targets, restarts, snapshots)
    return replace(answer, seconds=time.process_time() - began)


def _stops_algebra(model: nn.Module) -> bool:
    """Whether the model has layers that lose what a closed form would need: ReLU, pooling."""
    lossy = (nn.ReLU, nn.ReLU6, nn.MaxPool2d, nn.AvgPool2d)
    return any(isinstance(module, lossy) for module in model.modules())


def _from_features(
    model: nn.Module,
    leak: Leak,
    options: Options,
    labels: Tensor | str | None,
    seed: int,
    snapshots: int,
) -> Recovery | None:
    """From the exact features of a later layer; None where there are none and nobody insists.

    Matching gradients from there on was measured to change nothing (within 0.1 dB).
    """
    insists = options.start == "exact"
    known = isinstance(labels, Tensor) and not labels.is_floating_point() and len(labels) == 1
    if not insists and (leak.batch_size > 1 or leak.steps > 1 or leak.noise_std is not None):
        return None
    try:
        closed = peel(model, leak, label=int(labels[0]) if known and labels is not None else None)
        if closed.images is None:
            budget = options.steps or _FEATURE_STEPS
            closed = invert_features(
                model, leak, closed, evaluations=budget, snapshots=snapshots, seed=seed
            )
    except ValueError:
        if insists:
            raise
        return None
    return closed if insists or closed.loss < _TRUSTED else None


class _Problem:
    """One leak with every choice made: what the search, the starts and the labels share."""

    def __init__(self, model: nn.Module, leak: Leak, options: Options, seed: int) -> None:
        self.model, self.seed = model, seed
        device = next(model.parameters()).device
        self.leak = leak = leak.to(device)
        noisy = leak.noise_std is not None
        distance = options.distance or ("map" if noisy else _plain_distance(leak))
        if distance == "map" and not noisy:
            raise ValueError(
                "distance='map' needs the noise's standard deviation: the leak's noise_std is None"
            )
        basis = options.basis or ("dct" if len(leak.image_shape) == 3 else "pixels")
        self.options = options = replace(
            options,
            distance=distance,
            basis=basis,
            steps=options.steps or _default_steps(leak, options),
        )
        self.client = Client(model, leak, unroll=options.unroll is not False)
        kept = options.support == "kept" or (
            options.support == "auto"
            and looks_pruned(self.client, leak, generator(seed, "support"))
        )
        matching = Matching(
            distance=distance,
            layers=options.layers,
            layer_weights=_weights(options.layer_weights, distance, leak.batch_size),
            tv=options.tv,
            prior=_prior(options.prior, distance, leak),
            box=options.clamp and options.optimiser == "lbfgs",
        )
        self.target = Target(leak, matching, kept, self.client.start[0])
        self.basis: Basis = make_basis(
            basis, leak.image_shape, options.spectrum, prior=distance == "map"
        )
        parts = ["L-BFGS" if options.optimiser == "lbfgs" else options.optimiser, basis, distance]
        parts += ["kept values"] if kept else []
        parts += [f"{leak.steps} steps unrolled"] if self.client.unroll else []
        self.method = ", ".join(parts)


def _plain_distance(leak: Leak) -> str:
    """Relative, unless the message has no lengths: all its values alike, as after ``sign``."""
    sizes = leak.row.abs()
    sizes = sizes[sizes > 0]
    return "cosine" if len(sizes) > 1 and bool((sizes == sizes[0]).all()) else "relative"


def _default_steps(leak: Leak, options: Options) -> int:
    if options.optimiser != "lbfgs":
        return _FIRST_ORDER_STEPS
    if leak.steps > 1 and options.unroll is not False:
        return _UNROLLED * min(leak.batch_size, 4)
    if leak.noise_std is not None:
        return _NOISY * min(leak.batch_size, 3)
    return _SINGLE if leak.batch_size == 1 else min(_BATCH * leak.batch_size, _BATCH_AT_MOST)


def _weights(given: Weights, distance: str, batch_size: int) -> Weights:
    return "balanced" if given is None and distance == "relative" and batch_size == 1 else given


def _prior(given: float | None, distance: str, leak: Leak) -> float:
    if given is not None:
        return given
    return _BATCH_PRIOR if distance == "relative" and leak.batch_size > 1 else 0.0


# --- labels -------------------------------------------------------------------------------------


def _targets(problem: _Problem, labels: Tensor | str | None) -> Tensor | None:
    """Label probabilities ``[candidates, b, k]`` to try, the likeliest first; None: optimise."""
    size, num_outputs = problem.leak.batch_size, problem.client.num_outputs
    if isinstance(labels, str):
        if labels != "optimise":
            raise ValueError(f"labels={labels!r} is unknown: use 'optimise', a tensor or None")
        return None
    if labels is None:
        return _inferred(problem)
    if labels.shape[:1] != (size,):
        raise ValueError(f"labels of shape {list(labels.shape)} for a batch of {size}: give [b]")
    if labels.is_floating_point() and labels.dim() == 2:
        return labels[None]
    return _one_hot(labels, num_outputs)[None]


def _inferred(problem: _Problem) -> Tensor:
    num_outputs = problem.client.num_outputs
    guess = infer_labels(problem.model, problem.leak)
    certain = guess.certain or problem.leak.batch_size > 1 or problem.options.candidates == 1
    if certain:
        return _one_hot(guess.labels, num_outputs)[None]
    ranked = guess.scores.argsort(descending=True)[: problem.options.candidates]
    return torch.stack([_one_hot(label[None], num_outputs) for label in ranked])


def _one_hot(labels: Tensor, num_outputs: int) -> Tensor:
    """``[b] -> [b, k]`` probabilities; for a single output, the label itself ``[b, 1]``."""
    labels = labels.cpu().long()
    classes = max(num_outputs, 2)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels {labels.tolist()} must lie in 0 to {classes - 1}")
    return labels[:, None].double() if num_outputs == 1 else F.one_hot(labels, num_outputs).double()


# --- the search ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Runs:
    """Which candidate label and which restart each search is."""

    candidates: int
    restarts: int

    @property
    def label(self) -> list[int]:
        return [c for c in range(self.candidates) for _ in range(self.restarts)]

    @property
    def restart(self) -> list[int]:
        return [r for _ in range(self.candidates) for r in range(self.restarts)]


def _search(problem: _Problem, targets: Tensor | None, restarts: int, snapshots: int) -> Recovery:
    options, steps = problem.options, problem.options.steps or 0
    runs = _Runs(1 if targets is None else len(targets), restarts)
    per_run = None if targets is None else targets[runs.label]
    objective = Objective(problem.client, problem.target, problem.basis, per_run, options.spectrum)
    logits = problem.leak.batch_size * problem.client.num_outputs if targets is None else 0
    starts = [
        start_point(problem.leak, problem.basis, options, problem.seed, k, logits)
        for k in range(restarts)
    ]
    project = (
        box(problem.leak, problem.basis) if options.clamp and options.optimiser != "lbfgs" else None
    )
    batch = Batch(
        [_one_search(options, starts[k], project) for k in runs.restart],
        objective,
        patience=options.patience,
        tolerance=options.tolerance,
        snapshot_at=spaced(snapshots, steps),
        chunk=objective.chunk,
    )
    if runs.candidates > 1:
        batch.advance(min(_RACE, steps))
        batch.advance(steps, batch.ranking()[: max(_FINALISTS, restarts)])
    else:
        batch.advance(steps)
    return _answer(problem, objective, batch)


def _one_search(options: Options, start: Vector, project: Project | None) -> Search:
    if options.optimiser == "lbfgs":
        return lbfgs(
            start,
            lr=options.lr or 1.0,
            history=options.history,
            line_search=options.line_search,
        )
    return first_order(
        start,
        optimiser=options.optimiser,
        lr=options.lr or 0.1,
        momentum=options.momentum,
        schedule=options.schedule,
        steps=options.steps or 0,
        project=project,
    )


def _answer(problem: _Problem, objective: Objective, batch: Batch) -> Recovery:
    last = problem.options.keep == "last"
    winner = batch.ranking()[0]
    track = batch.tracks[winner]
    point = track.last if last and track.last is not None else track.best
    images, probabilities = _pictures(objective, winner, point)
    taken = [*track.snapshots]
    if taken and taken[-1][0] != len(track.losses):
        taken.append((len(track.losses), track.best_loss, track.best))
    return Recovery(
        images=images,
        labels=_hard(probabilities),
        method=problem.method,
        loss=track.losses[-1] if last else track.best_loss,
        evaluations=batch.evaluations,
        history=tuple(track.losses),
        snapshots=tuple(
            Snapshot(count, loss, _pictures(objective, winner, at)[0]) for count, loss, at in taken
        ),
        restart_losses=tuple(t.best_loss for t in batch.tracks),
    )


def _pictures(objective: Objective, which: int, point: Vector) -> tuple[Tensor, Tensor]:
    vector = torch.from_numpy(point).to(objective.like.device, objective.like.dtype)
    with torch.no_grad():
        images, probabilities = objective.split(vector)
    if probabilities is None:
        assert objective.targets is not None
        probabilities = objective.targets[which]
    return images, probabilities


def _hard(probabilities: Tensor) -> Tensor:
    if probabilities.shape[-1] == 1:
        return (probabilities[:, 0] > 0.5).long()
    return probabilities.argmax(-1)
