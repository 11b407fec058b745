"""Federated averaging: a round is five lines; attacks and defences plug into two of them.

    cohort = sample_clients(clients, fraction, generator)
    rows, weights = local_updates(model, cohort, epochs=..., batch_size=..., lr=..., ...)
    rows = transform(rows, context)         # liars lie, clients clip or mask
    step = aggregate(rows, weights)         # mean, median, secure sum, plus noise
    apply_update(model, step, server_lr)

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", Algorithm 1. Chapter 01.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.data import Client, Dataset
from flcourse.local import Loss, cross_entropy, local_updates, per_sample
from flcourse.runtime import device, finite_json, generator, progress, provenance
from flcourse.vectors import flatten, load_row, num_values, unflatten

__all__ = [
    "Aggregate",
    "Checkpoint",
    "History",
    "Round",
    "RoundContext",
    "Transform",
    "apply_update",
    "evaluate",
    "local_updates",
    "mean",
    "pooled",
    "run_rounds",
    "sample_clients",
    "train",
]

Aggregate = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor, "RoundContext"], Tensor]

BYTES_PER_VALUE = 4  # an update travels as float32
_COLUMNS_AT_ONCE = 2**16  # of rows, in a mean: no second copy of a large matrix


@dataclass(frozen=True)
class RoundContext:
    """What a ``transform`` may know: the round, the seed, who takes part, the global model.

    ``model`` is a copy: to train on it or to change it does not touch the server's.
    """

    round: int
    seed: int
    cohort: Sequence[Client]
    weights: Tensor
    model: nn.Module

    def generator(self, purpose: str, client: int | None = None) -> torch.Generator:
        """A generator for this round and purpose (and client): ``transform`` draws from it."""
        parts = (purpose, self.round) if client is None else (purpose, self.round, client)
        return generator(self.seed, *parts)


@dataclass(frozen=True)
class Round:
    """One round as it went. Bytes count float32 rows for the whole cohort, without overhead."""

    round: int
    accuracy: float
    loss: float
    clients: list[int]
    update_norms: list[float]
    bytes_up: int
    bytes_down: int
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """All that training needs to go on after ``round`` as if it had never stopped."""

    round: int
    row: Tensor
    velocity: Tensor


@dataclass
class History:
    """The configuration of a run and a record per round."""

    config: dict[str, Any]
    rounds: list[Round] = field(default_factory=list)

    @property
    def accuracy(self) -> list[float]:
        """Test accuracy after each round."""
        return [record.accuracy for record in self.rounds]

    @property
    def megabytes(self) -> list[float]:
        """Megabytes (10⁶ bytes) sent so far after each round, up and down, over all clients.

        Counted over these records: a resumed run's history starts where it was resumed.
        """
        sent, total = [], 0
        for record in self.rounds:
            total += record.bytes_up + record.bytes_down
            sent.append(total / 1e6)
        return sent

    def to_json(self, path: str | Path | None = None) -> str:
        """Configuration, records and provenance as JSON; also written to ``path`` if given.

        JSON has no infinity and no NaN: they are written as the texts "inf", "-inf" and "nan".
        """
        content = {
            "config": self.config,
            "rounds": [asdict(record) for record in self.rounds],
            "provenance": provenance(),
        }
        text = json.dumps(finite_json(content), indent=1, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text


# --- the five lines ---------------------------------------------------------------------------


def sample_clients(
    clients: Sequence[Client], fraction: float, generator: torch.Generator
) -> list[Client]:
    """Draw ``max(round(fraction · K), 1)`` of the ``K`` clients, without replacement.

    Raises ``ValueError`` if there are no clients or ``fraction`` is outside (0, 1].
    """
    if not clients:
        raise ValueError("there are no clients to sample from")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in (0, 1]: the part of clients in a round")
    count = max(round(fraction * len(clients)), 1)
    chosen = torch.randperm(len(clients), generator=generator)[:count].sort().values
    return [clients[i] for i in chosen.tolist()]


def mean(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of rows, ``Σ n_k · row_k / Σ n_k``: ``[n, d], [n] -> [d]``.

    Raises ``ValueError`` if the shapes do not fit, the rows are integers (decode them first), a
    weight is negative or not finite, or all are zero.
    """
    if rows.dim() != 2 or weights.shape != rows.shape[:1]:
        raise ValueError(
            f"expected rows [n, d] and weights [n], "
            f"got {list(rows.shape)} and {list(weights.shape)}"
        )
    if not rows.is_floating_point():
        raise ValueError(f"rows of {rows.dtype} have no mean of their own type: decode them first")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not weights.sum() > 0:
        raise ValueError(
            f"the weights {weights.tolist()} must be finite, none negative, at least one positive"
        )
    exact = weights.to(torch.promote_types(weights.dtype, rows.dtype))
    shares = (exact / exact.sum()).to(rows)[:, None]
    # Sums in pairs, where a matrix product adds one by one: 10⁶ rows stay exact to rounding.
    return torch.cat([(shares * part).sum(dim=0) for part in rows.split(_COLUMNS_AT_ONCE, dim=1)])


def apply_update(model: nn.Module, step: Tensor, server_lr: float = 1.0) -> None:
    """``global ← global + server_lr · step``, in place; the model is changed in full or not at all.

    Raises ``ValueError`` if the step has another length, or if a value of the step or of the new
    model is NaN or infinite (also in a model of half precision, whose range is small).
    """
    row = flatten(model)
    if step.shape != row.shape:
        raise ValueError(f"a step of shape {list(step.shape)} does not fit a row of {row.numel()}")
    new = row + server_lr * step.to(row)
    stored = torch.cat([part.reshape(-1).to(row) for part in unflatten(new, model).values()])
    if bad := int((~torch.isfinite(stored)).sum()):
        raise ValueError(
            f"the step makes {bad} of {row.numel()} values of the model NaN or infinite: "
            "lower lr or server_lr, or drop such rows before averaging"
        )
    load_row(model, new)


def train(
    model: nn.Module,
    clients: Sequence[Client],
    test: Dataset,
    *,
    rounds: int,
    fraction: float = 1.0,
    epochs: int = 1,
    batch_size: int | None = 32,
    lr: float = 0.05,
    momentum: float = 0.0,
    proximal: float = 0.0,
    server_lr: float = 1.0,
    server_momentum: float = 0.0,
    aggregate: Aggregate = mean,
    transform: Transform | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    engine: str = "auto",
    resume: Checkpoint | None = None,
    on_round: Callable[[Round, Checkpoint], None] | None = None,
) -> History:
    """Run federated averaging and return its history; ``model`` is trained in place.

    It is trained on ``device()`` and comes back to the device that it was on.

    A round is ``sample_clients``, ``local_updates``, ``transform``, ``aggregate``,
    ``apply_update``; then the model is tested on all of ``test``.
    ``transform(rows, context)`` returns rows of the same shape ``[n, d]``;
    ``aggregate(rows, weights)`` returns the step ``[d]``.
    FedSGD is ``epochs=1, batch_size=None``; FedProx is ``proximal > 0``; server momentum
    ``v ← β·v + step`` (FedAvgM, Hsu et al. 2019) is ``server_momentum=β``.
    ``on_round(record, checkpoint)`` is called after each round; a run that is given one of these
    checkpoints as ``resume`` goes on with the next round and ends with the same model; its history
    holds the rounds still to do.

    Source: McMahan et al. 2017, Algorithm 1. Chapter 01.
    Raises ``ValueError`` for options outside their range, a ``transform`` or ``aggregate`` whose
    result has the wrong shape, and as ``local_updates`` and ``apply_update`` do.
    """
    local = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "proximal": proximal,
        "engine": engine,
    }
    plugged = {"aggregate": aggregate, "transform": transform, "loss": loss}
    server = {"server_lr": server_lr, "server_momentum": server_momentum}
    config = (
        {"rounds": rounds, "num_clients": len(clients), "fraction": fraction, **local, **server}
        | {name: _name(function) for name, function in plugged.items()}
        | {"seed": seed, "model": type(model).__name__, "num_values": num_values(model)}
    )
    return run_rounds(
        model,
        clients,
        test,
        rounds=rounds,
        sample=lambda those, generator: sample_clients(those, fraction, generator),
        local=local,
        aggregate=aggregate,
        transform=transform,
        loss=loss,
        server_lr=server_lr,
        server_momentum=server_momentum,
        seed=seed,
        resume=resume,
        on_round=on_round,
        config=config,
    )


def run_rounds(
    model: nn.Module,
    clients: Sequence[Client],
    test: Dataset,
    *,
    rounds: int,
    sample: Callable[[Sequence[Client], torch.Generator], list[Client]],
    local: Mapping[str, Any],
    aggregate: Aggregate,
    transform: Transform | None,
    loss: Loss | None,
    server_lr: float,
    server_momentum: float,
    seed: int,
    resume: Checkpoint | None,
    on_round: Callable[[Round, Checkpoint], None] | None,
    config: dict[str, Any],
) -> History:
    """The rounds behind ``train``, with cohorts drawn by ``sample(clients, generator)``.

    A cohort may be empty: then ``transform`` and ``aggregate`` get ``[0, d]`` rows. ``local`` are
    the options of ``local_updates``; ``config`` is what the history records.
    """
    _check_server(rounds, server_lr, server_momentum, resume)
    target, home = device(), next(model.parameters()).device
    model.to(target)
    clients = [client.to(target) for client in clients]
    test = test.to(target)
    velocity, done = torch.zeros_like(flatten(model)), 0
    history = History(config)
    if resume is not None:
        load_row(model, resume.row)
        velocity, done = resume.velocity.to(velocity).reshape(velocity.shape), resume.round
    for number in progress(range(done + 1, rounds + 1), "rounds"):
        start = time.perf_counter()
        cohort = sample(clients, generator(seed, "cohort", number))
        rows, weights = velocity.new_zeros(0, velocity.numel()), velocity.new_zeros(0)
        if cohort:
            rows, weights = local_updates(
                model, cohort, loss=loss, seed=seed, round=number, **local
            )
        norms = rows.norm(dim=1).tolist()
        if transform is not None:
            context = RoundContext(number, seed, cohort, weights, copy.deepcopy(model))
            rows = _shaped(transform(rows, context), rows.shape, transform)
        step = _shaped(aggregate(rows, weights), velocity.shape, aggregate)
        velocity = server_momentum * velocity + step.to(velocity)
        apply_update(model, velocity, server_lr)
        accuracy, test_loss = evaluate(model, test, loss=loss)
        sent = BYTES_PER_VALUE * velocity.numel() * len(cohort)
        who, seconds = [int(client.index) for client in cohort], time.perf_counter() - start
        record = Round(number, accuracy, test_loss, who, norms, sent, sent, seconds)
        history.rounds.append(record)
        if on_round is not None:
            on_round(record, Checkpoint(number, flatten(model).cpu(), velocity.cpu()))
    model.to(home)
    return history


# --- what the lines are made of ---------------------------------------------------------------


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Dataset | Client, *, loss: Loss | None = None, batch_size: int = 1000
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean loss over all samples, with the model in evaluation mode.

    Of logits ``[b, k]`` the largest wins; a single logit ``[b, 1]`` says class 1 where positive.
    Raises ``ValueError`` if there are no samples, or for outputs of another shape.
    """
    if not len(data):
        raise ValueError("there is nothing to evaluate on: the data set is empty")
    modes = {module: module.training for module in model.modules()}
    target = next(model.parameters()).device
    model.eval()
    try:
        correct, total = 0, 0.0
        for inputs, labels in zip(
            data.inputs.split(batch_size), data.labels.split(batch_size), strict=True
        ):
            inputs, labels = inputs.to(target), labels.to(target)
            outputs = model(inputs)
            correct += int((_predictions(outputs) == labels).sum())
            total += float(per_sample(loss or cross_entropy, outputs, labels).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return correct / len(data), total / len(data)


def _predictions(outputs: Tensor) -> Tensor:
    if outputs.dim() != 2:
        raise ValueError(f"expected logits [b, k] from the model, got {list(outputs.shape)}")
    return outputs.argmax(dim=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0).long()


def pooled(clients: Sequence[Client]) -> Client:
    """One client that holds everybody's samples: federated averaging with it alone is plain SGD."""
    return Client(
        index=0,
        inputs=torch.cat([client.inputs for client in clients]),
        labels=torch.cat([client.labels for client in clients]),
    )


def _check_server(
    rounds: int, server_lr: float, server_momentum: float, resume: Checkpoint | None
) -> None:
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
    if resume is not None and resume.round > rounds:
        raise ValueError(f"{resume.round} rounds are done already: rounds={rounds} is fewer")
    if not (server_lr > 0 and math.isfinite(server_lr)):
        raise ValueError(f"server_lr={server_lr} must be a positive number")
    if not 0 <= server_momentum < 1:
        raise ValueError(f"server_momentum={server_momentum} must lie in [0, 1)")


def _shaped(result: Tensor, shape: torch.Size, function: Callable[..., Tensor]) -> Tensor:
    """``result``, unless its shape would broadcast to something that nobody asked for."""
    if result.shape != shape:
        raise ValueError(
            f"{_name(function)} returned shape {list(result.shape)}, expected {list(shape)}"
        )
    return result


def _name(plugged: object) -> str | None:
    """How a plugged-in function is recorded: its name, and the options bound to it."""
    if isinstance(plugged, functools.partial):
        bound = [repr(value) for value in plugged.args]
        bound += [f"{key}={value!r}" for key, value in plugged.keywords.items()]
        return f"{_name(plugged.func)}({', '.join(bound)})"
    return None if plugged is None else getattr(plugged, "__name__", repr(plugged))
