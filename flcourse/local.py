"""Local training: what one client does between two messages, for one client or many side by side.

``local_updates`` is the only public way in; ``flcourse.fedavg`` plugs it into a round. The plain
loop is the reference; training side by side gives the same rows up to rounding, faster. Chapter 01.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flcourse.data import Client
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten, layout

Loss = Callable[[Tensor, Tensor], Tensor]

# Values of models, and of samples, that are trained side by side at once. 8 MiB a tensor stays in
# cache, and memory does not grow with the number of clients.
_VALUES_AT_ONCE = 2**21
_SMALL_STEP = 16  # samples; measured on small CNNs, see benchmarks/README.md


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
    batches of ``batch_size`` (``None``: all samples, one batch). ``model`` itself is not changed;
    the samples are moved to its device.
    ``proximal`` is FedProx's mu: the local loss gains ``mu/2 · ‖w - w_global‖²`` (Li et al. 2020).
    ``loss(outputs, labels)`` gives one loss per sample, ``[b]``; the default is cross-entropy.
    The order of samples follows from ``seed``, ``round`` and the client's index: a loop of one's
    own must pass its round, or every round shuffles alike.
    ``engine``: ``"loop"`` trains one client after the other; ``"batched"`` trains them side by side
    with ``vmap`` and gives the same rows up to rounding; ``"auto"`` takes what is faster. Layers
    that mix samples (BatchNorm) or draw numbers (dropout) need the loop.

    Source: McMahan et al. 2017, Algorithm 1, ``ClientUpdate``. Chapter 01.
    Raises ``ValueError`` for an empty cohort or client, options outside their range, a model with
    nothing to train, a loss that is not per sample, and ``engine="batched"`` where it cannot work.
    """
    options = _Local(epochs, batch_size, lr, momentum, proximal, loss or cross_entropy, seed, round)
    options.check()
    _check_cohort(model, cohort)
    target = next(model.parameters()).device
    cohort = [client.to(target) for client in cohort]
    weights = torch.tensor([float(len(client)) for client in cohort])
    rows = _train_cohort(engine, model, cohort, options)
    return rows, weights.to(rows.device)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample: logits ``[b, k]``, labels ``[b]`` -> ``[b]``."""
    return F.cross_entropy(outputs, labels, reduction="none")


def per_sample(loss: Loss, outputs: Tensor, labels: Tensor) -> Tensor:
    """``loss(outputs, labels)``, refused unless it has one value per sample, ``[b]``.

    A mean would weigh the samples of a short batch wrongly, and nothing would look amiss.
    """
    losses = loss(outputs, labels)
    if losses.shape != labels.shape[:1]:
        raise ValueError(
            f"the loss must give one value per sample, [{len(labels)}], but gave "
            f"{list(losses.shape)}: use reduction='none'"
        )
    return losses


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

    def check(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs={self.epochs} must be at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1, or None for all")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr={self.lr} must be a positive number")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1)")
        if not (self.proximal >= 0 and math.isfinite(self.proximal)):
            raise ValueError(f"proximal={self.proximal} must be 0 or more")


# --- one client after the other -----------------------------------------------------------------


def _train_loop(model: nn.Module, cohort: Sequence[Client], options: _Local) -> Tensor:
    return torch.stack([_train_one(model, client, options) for client in cohort])


def _train_one(model: nn.Module, client: Client, options: _Local) -> Tensor:
    local = copy.deepcopy(model).train()
    trained = [parameter for parameter in local.parameters() if parameter.requires_grad]
    anchors = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.SGD(trained, lr=options.lr, momentum=options.momentum)
    # Dropout draws from the global stream: give each client its own, and leave the caller's alone.
    with seeded(options.seed, "dropout", options.round, client.index):
        for chosen in options.batches(client):
            optimiser.zero_grad()
            chosen = chosen.to(client.inputs.device)
            outputs = local(client.inputs[chosen])
            per_sample(options.loss, outputs, client.labels[chosen]).mean().backward()
            if options.proximal:
                for parameter, anchor in zip(trained, anchors, strict=True):
                    if parameter.grad is not None:
                        parameter.grad += options.proximal * (parameter.detach() - anchor)
            optimiser.step()
    return flatten(local) - flatten(model)


# --- many clients side by side ------------------------------------------------------------------


def _train_batched(model: nn.Module, cohort: Sequence[Client], options: _Local) -> Tensor:
    """Clients with the most steps first, so that those still training are always a prefix."""
    plans = [options.batches(client) for client in cohort]
    start, model = flatten(model), copy.deepcopy(model).train()
    rows = start.new_empty(len(cohort), start.numel())
    for group in _groups(cohort, plans, start.numel()):
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
        outputs = functional_call(model, params, (inputs,))
        return (per_sample(options.loss, outputs, labels) * share).sum()

    gradients = vmap(grad(client_loss))
    like = next(iter(values.values()))
    inputs = torch.cat([client.inputs for client in cohort])
    labels = torch.cat([client.labels for client in cohort])
    for step_indices, shares in _side_by_side(cohort, plans):
        active = len(step_indices)
        chosen = step_indices.to(inputs.device)
        now = {name: value[:active] for name, value in values.items()}
        steps = gradients(now, inputs[chosen], labels[chosen], shares.to(like))
        for name, step in steps.items():
            if options.proximal:
                step = step + options.proximal * (now[name] - start[name])
            if options.momentum:
                step = velocity[name][:active].mul_(options.momentum).add_(step)
            now[name].sub_(step, alpha=options.lr)
    return values


def _groups(
    cohort: Sequence[Client], plans: Sequence[list[Tensor]], num_values: int
) -> Iterator[list[int]]:
    """Positions of clients with alike work, the most first, few enough to stay within memory."""
    order = sorted(range(len(cohort)), key=lambda k: (-len(plans[k]), -len(plans[k][0])))
    while order:
        batch = len(plans[order[0]][0]) * cohort[order[0]].inputs[0].numel()
        count = max(_VALUES_AT_ONCE // max(num_values, batch), 1)
        yield order[:count]
        order = order[count:]


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
        shares = torch.zeros(len(active), width, dtype=torch.float64)
        for k, batch in enumerate(active):
            indices[k] = offsets[k]
            indices[k, : len(batch)] += batch
            shares[k, : len(batch)] = 1 / len(batch)
        yield indices, shares


# --- which of the two ---------------------------------------------------------------------------


def _train_cohort(
    engine: str, model: nn.Module, cohort: Sequence[Client], options: _Local
) -> Tensor:
    if _engine(engine, model, cohort, options.batch_size) == "loop":
        return _train_loop(model, cohort, options)
    try:
        return _train_batched(model, cohort, options)
    except RuntimeError as error:  # vmap says so of what it cannot do, at the first batch
        if engine == "auto":
            return _train_loop(model, cohort, options)
        raise ValueError(
            f"engine='batched' cannot train this model: use 'loop' ({error})"
        ) from error


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
    """Layers that draw numbers, or that mix samples: short batches are filled up with others."""
    drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    statistics = bool(getattr(module, "track_running_stats", False))
    mixes = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return drops or statistics or mixes or isinstance(module, nn.RNNBase)


def _check_cohort(model: nn.Module, cohort: Sequence[Client]) -> None:
    if not cohort:
        raise ValueError("the cohort is empty: sample at least one client")
    if empty := [client.index for client in cohort if not len(client)]:
        raise ValueError(f"clients {empty} hold no samples: leave them out of the cohort")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires_grad: unfreeze one"
        )
