"""Gradient inversion: find the picture whose message is the one that was seen.

``match_gradients`` with no option uses the best method known for the leak at hand; every part of it
is an option (``presets.Options``), and presets reproduce published attacks. Chapters 03 and 06.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.attacks.basis import Basis, fourier_noise, make_basis
from flcourse.attacks.objective import Client, Matching, Objective, Target, Weights, looks_pruned
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
from flcourse.attacks.types import LabelGuess, Leak, Recovery, Snapshot
from flcourse.runtime import generator

_STEPS = {"lbfgs": 300}
_FIRST_ORDER_STEPS = 2000
_RACE = 40  # evaluations of every candidate label before the worse ones are dropped
_FINALISTS = 2
_BREAK = 0.05  # standard deviation that sets pictures of one label apart in a grey start


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
    search from grey. Where noise is public (``leak.noise_std``) the objective is the negative log
    posterior, where a client made several local steps they are unrolled, where a message is pruned
    only its kept values are matched. If the label of a single sample is not certain, the likeliest
    ``candidates`` run side by side and the lowest objective wins.

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
    problem = _Problem(model, leak, chosen, seed)
    targets = _targets(problem, labels)
    answer = _search(problem, targets, restarts, snapshots)
    return replace(answer, seconds=time.process_time() - began)


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
            steps=options.steps or _STEPS.get(options.optimiser, _FIRST_ORDER_STEPS),
        )
        self.client = Client(model, leak, unroll=options.unroll is not False)
        kept = options.support == "kept" or (
            options.support == "auto"
            and looks_pruned(self.client, leak, generator(seed, "support"))
        )
        matching = Matching(
            distance=distance,
            layers=options.layers,
            layer_weights=_weights(options.layer_weights, distance),
            tv=options.tv,
            prior=options.prior,
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


def _weights(given: Weights, distance: str) -> Weights:
    return "balanced" if given is None and distance == "relative" else given


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
    guess = _guess(problem.model, problem.leak)
    certain = guess.certain or problem.leak.batch_size > 1 or problem.options.candidates == 1
    if certain:
        return _one_hot(guess.labels, num_outputs)[None]
    ranked = guess.scores.argsort(descending=True)[: problem.options.candidates]
    return torch.stack([_one_hot(label[None], num_outputs) for label in ranked])


def _guess(model: nn.Module, leak: Leak) -> LabelGuess:
    import flcourse.attacks.labels as rules

    if hasattr(rules, "infer_labels"):
        guess: LabelGuess = rules.infer_labels(model, leak)
        return guess
    return rules.sign_rule([g for g in leak.gradients.values() if g.dim() == 1][-1])


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
    objective = Objective(problem.client, problem.target, problem.basis, per_run)
    starts = [_start(problem, k, targets is None) for k in range(restarts)]
    project = _box(problem) if options.clamp and options.optimiser != "lbfgs" else None
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


# --- starts -------------------------------------------------------------------------------------


def _start(problem: _Problem, restart: int, with_labels: bool) -> Vector:
    """The first point of one restart: pictures as unknowns, then label logits from N(0, 1)."""
    pictures = _start_pictures(problem, restart)
    point = problem.basis.encode(pictures).flatten()
    if with_labels:
        rng = generator(problem.seed, "start labels", restart)
        count = problem.leak.batch_size * problem.client.num_outputs
        point = torch.cat([point, torch.randn(count, generator=rng, dtype=torch.float64)])
    return np.asarray(point.numpy(), dtype=np.float64)


def _start_pictures(problem: _Problem, restart: int) -> Tensor:
    options, leak = problem.options, problem.leak
    shape = (leak.batch_size, *leak.image_shape)
    if isinstance(options.start, Tensor):
        return _given_start(options.start, shape, restart)
    rng = generator(problem.seed, "start", restart)
    scale = options.start_scale
    if options.start == "normal":
        return scale * torch.randn(shape, generator=rng).double()
    if options.start == "uniform":
        return scale * torch.rand(shape, generator=rng).double()
    if len(leak.image_shape) != 3:
        return 0.5 + 0.1 * scale * torch.randn(shape, generator=rng).double()
    noise = torch.stack([fourier_noise(leak.image_shape, rng) - 0.5 for _ in range(shape[0])])
    if options.start == "fourier":
        return 0.5 + scale * noise
    # Grey. A second restart must begin elsewhere, and two pictures of one label must not begin
    # equal: their gradients would stay equal for ever.
    spread = 0.0 if restart == 0 and leak.batch_size == 1 else _BREAK if restart == 0 else 1.0
    return 0.5 + spread * scale * noise


def _given_start(start: Tensor, shape: tuple[int, ...], restart: int) -> Tensor:
    start = start.detach().cpu().double()
    if tuple(start.shape) == shape:
        return start
    if tuple(start.shape[1:]) == shape and restart < len(start):
        return start[restart]
    raise ValueError(
        f"start of shape {list(start.shape)} does not fit: give {list(shape)}, or one for each of "
        "the restarts"
    )


def _box(problem: _Problem) -> Project:
    """Put an unknown's pictures back into [0, 1]; label logits stay."""
    shape = (problem.leak.batch_size, *problem.leak.image_shape)
    size = int(np.prod(shape))

    def project(point: Vector) -> Vector:
        pictures = problem.basis.decode(torch.from_numpy(point[:size]).reshape(shape))
        if float(pictures.min()) >= 0 and float(pictures.max()) <= 1:
            return point
        inside = problem.basis.encode(pictures.clamp(0, 1)).flatten().numpy()
        return np.concatenate([inside, point[size:]])

    return project
