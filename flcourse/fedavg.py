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
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flcourse.data import Client, Dataset
from flcourse.runtime import device, generator, progress, provenance
from flcourse.vectors import flatten, layout, load_row

Loss = Callable[[Tensor, Tensor], Tensor]
Aggregate = Callable[[Tensor, Tensor], Tensor]
Transform = Callable[[Tensor, "RoundContext"], Tensor]

BYTES_PER_VALUE = 4  # an update travels as float32
# Model values trained side by side: 8 MiB a tensor stays in cache, and memory does not grow with n.
_VALUES_AT_ONCE = 2**21
_SMALL_STEP = 16  # samples; measured on small CNNs, see benchmarks/README.md


@dataclass(frozen=True)
class RoundContext:
    """What a ``transform`` may know: the round, the seed, who takes part, the global model."""

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
        """Megabytes (10⁶ bytes) sent so far after each round, up and down, over all clients."""
        sent, total = [], 0
        for record in self.rounds:
            total += record.bytes_up + record.bytes_down
            sent.append(total / 1e6)
        return sent

    def to_json(self, path: str | Path | None = None) -> str:
        """Configuration, records and provenance as JSON; also written to ``path`` if given."""
        content = {
            "config": self.config,
            "rounds": [asdict(record) for record in self.rounds],
            "provenance": provenance(),
        }
        text = json.dumps(content, indent=1)
        if path is not None:
            Path(path).write_text(text + "\n")
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


def local_updates(
    model: nn.Module,
    cohort: Sequence[Client],
    *,
    epochs: int,
    batch_size: int | None,
    lr: float,
    momentum: float = 0.0,
    proximal: float = 0.0,
    loss: Loss | None = None,
    seed: int = 0,
    round: int = 0,
    engine: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Train a copy of ``model`` on each client: updates ``[n, d]`` and sample counts ``[n]``.

    Row ``k`` is ``local_k - global`` after ``epochs`` passes of SGD over client ``k``'s samples in
    batches of ``batch_size`` (``None``: all samples, one batch). ``model`` itself is not changed.
    ``proximal`` is FedProx's mu: the local loss gains ``mu/2 · ‖w - w_global‖²`` (Li et al. 2020).
    ``loss(outputs, labels)`` gives one loss per sample, ``[b]``; the default is cross-entropy.
    ``engine``: ``"loop"`` trains one client after the other; ``"batched"`` trains them side by side
    with ``vmap`` and gives the same rows up to rounding; ``"auto"`` takes what is faster.

    Raises ``ValueError`` for options outside their range, and for ``engine="batched"`` on a model
    with layers that ``vmap`` cannot train (BatchNorm's running statistics, dropout).
    """
    _check_local(epochs, batch_size, lr, momentum, proximal)
    if not cohort:
        raise ValueError("the cohort is empty: sample at least one client")
    chosen = _engine(engine, model, cohort, batch_size)
    train_cohort = _train_loop if chosen == "loop" else _train_batched
    options = _Local(epochs, batch_size, lr, momentum, proximal, loss or cross_entropy, seed, round)
    weights = torch.tensor([float(len(client)) for client in cohort])
    rows = train_cohort(model, cohort, options)
    return rows, weights.to(rows.device)


def mean(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of rows, ``Σ n_k · row_k / Σ n_k``: ``[n, d], [n] -> [d]``.

    Raises ``ValueError`` if the shapes do not fit or the weights do not sum to something positive.
    """
    if rows.dim() != 2 or weights.shape != rows.shape[:1]:
        raise ValueError(
            f"expected rows [n, d] and weights [n], "
            f"got {list(rows.shape)} and {list(weights.shape)}"
        )
    total = weights.sum()
    if not total > 0:
        raise ValueError(f"the weights sum to {float(total)}: at least one must be positive")
    return (weights / total).to(rows) @ rows


def apply_update(model: nn.Module, step: Tensor, server_lr: float = 1.0) -> None:
    """``global ← global + server_lr · step``, in place.

    Raises ``ValueError`` if the step has another length or holds NaN or infinity.
    """
    bad = int((~torch.isfinite(step)).sum())
    if bad:
        raise ValueError(
            f"the step holds {bad} of {step.numel()} values that are NaN or infinite: "
            "lower lr, or drop such rows before averaging"
        )
    row = flatten(model)
    if step.shape != row.shape:
        raise ValueError(f"a step of shape {list(step.shape)} does not fit a row of {row.numel()}")
    load_row(model, row + server_lr * step.to(row))


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

    FedSGD is ``epochs=1, batch_size=None``; FedProx is ``proximal > 0``; server momentum
    ``v ← β·v + step`` (FedAvgM, Hsu et al. 2019) is ``server_momentum=β``.
    ``on_round(record, checkpoint)`` is called after each round; a run that is given one of these
    checkpoints as ``resume`` goes on with the next round and ends with the same model.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
    target = device()
    model.to(target)
    clients = [client.to(target) for client in clients]
    test = test.to(target)
    config = {
        "rounds": rounds,
        "num_clients": len(clients),
        "fraction": fraction,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "proximal": proximal,
        "server_lr": server_lr,
        "server_momentum": server_momentum,
        "aggregate": _name(aggregate),
        "transform": _name(transform),
        "seed": seed,
        "model": type(model).__name__,
        "num_values": flatten(model).numel(),
    }
    history = History(config)
    velocity = torch.zeros_like(flatten(model))
    first = 1
    if resume is not None:
        load_row(model, resume.row)
        velocity, first = resume.velocity.to(target), resume.round + 1
    for number in progress(range(first, rounds + 1), "rounds"):
        start = time.perf_counter()
        cohort = sample_clients(clients, fraction, generator(seed, "cohort", number))
        rows, weights = local_updates(
            model, cohort, epochs=epochs, batch_size=batch_size, lr=lr, momentum=momentum,
            proximal=proximal, loss=loss, seed=seed, round=number, engine=engine,
        )  # fmt: skip
        norms = rows.norm(dim=1).tolist()
        if transform is not None:
            rows = transform(rows, RoundContext(number, seed, cohort, weights, model))
        velocity = server_momentum * velocity + aggregate(rows, weights)
        apply_update(model, velocity, server_lr)
        accuracy, test_loss = evaluate(model, test, loss=loss)
        sent = BYTES_PER_VALUE * velocity.numel() * len(cohort)
        record = Round(
            number, accuracy, test_loss, [client.index for client in cohort], norms,
            bytes_up=sent, bytes_down=sent, seconds=time.perf_counter() - start,
        )  # fmt: skip
        history.rounds.append(record)
        if on_round is not None:
            on_round(record, Checkpoint(number, flatten(model).cpu(), velocity.cpu()))
    return history


# --- what the lines are made of ---------------------------------------------------------------


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample: logits ``[b, k]``, labels ``[b]`` -> ``[b]``."""
    return F.cross_entropy(outputs, labels, reduction="none")


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Dataset | Client, *, loss: Loss | None = None, batch_size: int = 1000
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean loss over all samples, in evaluation mode.

    Raises ``ValueError`` if there are no samples.
    """
    if not len(data):
        raise ValueError("there is nothing to evaluate on: the data set is empty")
    per_sample = loss or cross_entropy
    was_training = model.training
    model.eval()
    correct, total = 0, 0.0
    for inputs, labels in zip(
        data.inputs.split(batch_size), data.labels.split(batch_size), strict=True
    ):
        outputs = model(inputs)
        correct += int((outputs.argmax(dim=1) == labels).sum())
        total += float(per_sample(outputs, labels).sum())
    model.train(was_training)
    return correct / len(data), total / len(data)


def pooled(clients: Sequence[Client]) -> Client:
    """One client that holds everybody's samples: federated averaging with it alone is plain SGD."""
    return Client(
        index=0,
        inputs=torch.cat([client.inputs for client in clients]),
        labels=torch.cat([client.labels for client in clients]),
    )


def batches(
    size: int, epochs: int, batch_size: int | None, generator: torch.Generator
) -> Iterator[Tensor]:
    """The sample indices of each SGD step: a new order every epoch, the last batch as it falls."""
    for _ in range(epochs):
        yield from torch.randperm(size, generator=generator).split(batch_size or size)


@dataclass(frozen=True)
class _Local:
    epochs: int
    batch_size: int | None
    lr: float
    momentum: float
    proximal: float
    loss: Loss
    seed: int
    round: int

    def batches(self, client: Client) -> list[Tensor]:
        order = generator(self.seed, "shuffle", self.round, client.index)
        return list(batches(len(client), self.epochs, self.batch_size, order))


def _train_loop(model: nn.Module, cohort: Sequence[Client], options: _Local) -> Tensor:
    start, local = flatten(model), copy.deepcopy(model).train()
    rows = start.new_empty(len(cohort), start.numel())
    for row, client in zip(rows, cohort, strict=True):
        _train_one(local, client, options)
        torch.sub(flatten(local), start, out=row)
        _restore(local, model)  # much faster than a fresh copy for the next client
    return rows


def _train_one(local: nn.Module, client: Client, options: _Local) -> None:
    """Train `local` in place on one client's samples."""
    trained = [parameter for parameter in local.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.SGD(trained, lr=options.lr, momentum=options.momentum)
    for chosen in options.batches(client):
        optimiser.zero_grad()
        chosen = chosen.to(client.inputs.device)
        outputs = local(client.inputs[chosen])
        options.loss(outputs, client.labels[chosen]).mean().backward()
        if options.proximal:
            for parameter, anchor in zip(trained, anchors, strict=True):
                if parameter.grad is not None:
                    parameter.grad += options.proximal * (parameter.detach() - anchor)
        optimiser.step()


@torch.no_grad()
def _restore(local: nn.Module, model: nn.Module) -> None:
    """Make `local` equal to `model` again: parameters and all buffers, integer ones too."""
    mine = [*local.parameters(), *local.buffers()]
    original = [*model.parameters(), *model.buffers()]
    for tensor, start in zip(mine, original, strict=True):
        tensor.copy_(start)


def _train_batched(model: nn.Module, cohort: Sequence[Client], options: _Local) -> Tensor:
    """Clients with the most steps first, so that those still training are always a prefix."""
    plans = [options.batches(client) for client in cohort]
    order = sorted(range(len(cohort)), key=lambda k: -len(plans[k]))
    start, model = flatten(model), copy.deepcopy(model).train()
    rows = start.new_empty(len(cohort), start.numel())
    at_once = max(_VALUES_AT_ONCE // start.numel(), 1)
    for first in range(0, len(order), at_once):
        group = order[first : first + at_once]
        trained = _train_group(
            model, [cohort[k] for k in group], [plans[k] for k in group], options
        )
        for slot in layout(model):
            part = slice(slot.start, slot.start + slot.size)
            if slot.name not in trained:  # a frozen parameter or a buffer: it stays as it was
                rows[group, part] = 0
                continue
            # Straight into the rows: their matrix is large, so there is no second copy of it.
            for k, value in zip(group, trained[slot.name], strict=True):
                torch.sub(value.reshape(-1), start[part], out=rows[k, part])
    return rows


def _train_group(
    model: nn.Module, cohort: Sequence[Client], plans: Sequence[list[Tensor]], options: _Local
) -> dict[str, Tensor]:
    """Train ``n`` copies side by side; ``plans`` is sorted by length, the longest first."""
    start = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    values = {name: p.expand(len(cohort), *p.shape).clone() for name, p in start.items()}
    moving = values if options.momentum else {}
    velocity = {name: torch.zeros_like(value) for name, value in moving.items()}

    def client_loss(
        params: dict[str, Tensor], inputs: Tensor, labels: Tensor, share: Tensor
    ) -> Tensor:
        return (options.loss(functional_call(model, params, (inputs,)), labels) * share).sum()

    gradients = vmap(grad(client_loss))
    inputs = torch.cat([client.inputs for client in cohort])
    labels = torch.cat([client.labels for client in cohort])
    for step_indices, shares in _side_by_side(cohort, plans):
        active = len(step_indices)
        chosen = step_indices.to(inputs.device)
        now = {name: value[:active] for name, value in values.items()}
        steps = gradients(now, inputs[chosen], labels[chosen], shares.to(inputs.device))
        for name, step in steps.items():
            if options.proximal:
                step = step + options.proximal * (now[name] - start[name])
            if options.momentum:
                step = velocity[name][:active].mul_(options.momentum).add_(step)
            now[name].sub_(step, alpha=options.lr)
    return values


def _side_by_side(
    cohort: Sequence[Client], plans: Sequence[list[Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step, indices ``[active, b]`` into the concatenated samples and each one's share.

    A batch shorter than the step's longest is filled up with a sample of share 0.
    """
    offsets = [0]
    for client in cohort[:-1]:
        offsets.append(offsets[-1] + len(client))
    for step in range(len(plans[0])):
        active = [plan[step] for plan in plans if step < len(plan)]
        width = max(len(batch) for batch in active)
        indices = torch.zeros(len(active), width, dtype=torch.int64)
        shares = torch.zeros(len(active), width)
        for k, batch in enumerate(active):
            indices[k] = offsets[k]
            indices[k, : len(batch)] += batch
            shares[k, : len(batch)] = 1 / len(batch)
        yield indices, shares


def _engine(engine: str, model: nn.Module, cohort: Sequence[Client], batch_size: int | None) -> str:
    if engine not in ("auto", "loop", "batched"):
        raise ValueError(f"engine={engine!r} is unknown: use 'auto', 'loop' or 'batched'")
    obstacle = next((module for module in model.modules() if _needs_loop(module)), None)
    if engine == "batched" and obstacle is not None:
        raise ValueError(
            f"engine='batched' cannot train {type(obstacle).__name__} side by side: use 'loop'"
        )
    if engine != "auto":
        return engine
    # On a CPU, vmap makes grouped convolutions: slower than a loop, unless steps are so small that
    # the loop spends its time between operations, not in them.
    step = min(max(map(len, cohort)), batch_size or math.inf)
    slow = (
        cohort[0].inputs.device.type == "cpu"
        and step > _SMALL_STEP
        and any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    )
    faster = len(cohort) > 1 and not slow
    return "batched" if faster and obstacle is None else "loop"


def _needs_loop(module: nn.Module) -> bool:
    keeps_statistics = bool(getattr(module, "track_running_stats", False))
    return keeps_statistics or isinstance(module, (nn.modules.dropout._DropoutNd, nn.RNNBase))


def _check_local(
    epochs: int, batch_size: int | None, lr: float, momentum: float, proximal: float
) -> None:
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1, or None for all samples")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr} must be a positive number")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum} must lie in [0, 1)")
    if not (proximal >= 0 and math.isfinite(proximal)):
        raise ValueError(f"proximal={proximal} must be 0 or more")


def _name(plugged: object) -> str | None:
    return None if plugged is None else getattr(plugged, "__name__", type(plugged).__name__)
