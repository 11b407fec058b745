"""What an honest-but-curious server sees: every signal of federated learning, as a ``Leak``.

The functions run the client's or the federation's own code and keep only what travels and what the
protocol makes public. No function changes the model that it is given. Chapters 03 and 06.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.attacks.types import Leak, task_loss
from flcourse.data import Client, Dataset
from flcourse.fedavg import (
    Aggregate,
    RoundContext,
    Transform,
    local_updates,
    mean,
    sample_clients,
    train,
)
from flcourse.runtime import generator, seeded
from flcourse.vectors import flatten, unflatten

# --- one client ---------------------------------------------------------------------------------


def observe_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0, send_loss: bool = False
) -> Leak:
    """The mean gradient of one batch, ``1/b · Σ_i ∂loss(f(x_i), y_i)/∂w``: what DLG attacks.

    ``images`` are ``[b, c, h, w]`` in [0, 1], or a table ``[b, f]`` of any unit, or int64 tokens
    for a model that embeds; ``labels`` are int64 ``[b]``; the loss is ``task_loss``. Parameters
    that do not require grad are left out; one that the loss does not reach sends zeros.

    The model is used in the mode that it is in. In training mode, BatchNorm normalises by the batch
    (its running statistics stay as they are), and dropout draws from ``seed``; in evaluation mode,
    BatchNorm uses its running statistics. ``send_loss`` puts the mean loss into the message, too.

    Source: Zhu, Liu & Han 2019, "Deep Leakage from Gradients", section 3. Chapter 03.
    Raises ``ValueError`` for pictures outside [0, 1], labels that do not fit, or a frozen model.
    """
    images, labels = check_batch(model, images, labels)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires_grad: unfreeze one"
        )
    worker = copy.deepcopy(model)  # BatchNorm would write its statistics into the caller's model
    parameters = dict(worker.named_parameters())
    with torch.enable_grad(), seeded(seed, "dropout"):
        loss = checked_loss(worker(images), labels).mean()
        gradients = torch.autograd.grad(
            loss, [parameters[name] for name in trained], allow_unused=True, materialize_grads=True
        )
    return Leak(
        kind="gradient",
        values=dict(zip(trained, (g.detach() for g in gradients), strict=True)),
        batch_size=len(images),
        image_shape=tuple(images.shape[1:]),
        loss=float(loss.detach()) if send_loss else None,
    )


def observe_step(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float) -> Leak:
    """The update ``local - global`` of one SGD step over the whole batch, ``-lr · gradient``.

    As ``observe_update`` with one epoch and one batch, so it is rounded as a real update is: a
    weight ``w`` of float32 hides what is below ``6e-8·|w| / lr`` of its gradient.
    """
    return observe_update(model, images, labels, lr=lr, epochs=1, batch_size=None)


def observe_update(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    epochs: int,
    batch_size: int | None,
    momentum: float = 0.0,
    seed: int = 0,
) -> Leak:
    """A FedAvg client's update: ``local - global`` after ``epochs`` of SGD in batches.

    It is ``flcourse.local.local_updates`` for client 0 in round 0: trained in training mode,
    whatever mode the model is in (BatchNorm normalises by the batch and its running statistics are
    part of the message, as ``Leak.buffers`` says; dropout and the order of samples follow from
    ``seed``, which the attacker does not have). ``batch_size=None`` takes all samples at once.

    Source: McMahan et al. 2017, Algorithm 1, ``ClientUpdate``. Chapter 06.
    Raises ``ValueError`` as ``observe_gradient`` and ``local_updates`` do.
    """
    images, labels = check_batch(model, images, labels)
    rows, _ = local_updates(
        model,
        [Client(0, images, labels)],
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        momentum=momentum,
        loss=checked_loss,
        seed=seed,
        engine="loop",
    )
    public = {"lr": lr, "epochs": epochs, "local_batch_size": batch_size, "momentum": momentum}
    return _update(model, rows[0], len(images), tuple(images.shape[1:]), **public)


# --- many clients -------------------------------------------------------------------------------


def aggregate(
    leaks: Sequence[Leak],
    weights: Sequence[float] | Tensor | None = None,
    *,
    normalise: bool = False,
) -> Leak:
    """The mean of many clients' messages, ``Σ_k n_k · row_k / Σ_k n_k``: what the server adds up.

    ``weights`` default to the batch sizes, as in FedAvg. With ``normalise``, each message is scaled
    to length one first, so the length of the result means nothing (``Leak.normalised``).
    Where every client added noise, that of the mean is ``σ²·Σ share_k²``; ``clip_norm`` stays if
    all share it and then says what each *one* was clipped to.

    Chapter 06. Raises ``ValueError`` if the messages are not of one protocol and one model, the
    weights do not fit, or a message to normalise is zero.
    """
    leaks = list(leaks)
    _check_alike(leaks)
    shares = torch.as_tensor(
        [leak.batch_size for leak in leaks] if weights is None else weights, dtype=torch.float64
    ).cpu()
    rows = torch.stack([leak.row for leak in leaks])
    step = mean(_unit(rows) if normalise else rows, shares.to(rows.device))
    first = leaks[0]
    noise = [leak.noise_std or 0.0 for leak in leaks]
    if normalise:
        noise = [std / float(row.norm()) for std, row in zip(noise, rows, strict=True)]
    parts = zip((shares / shares.sum()).tolist(), noise, strict=True)
    std = math.sqrt(sum((share * own) ** 2 for share, own in parts))
    clip_norms = {leak.clip_norm for leak in leaks}
    return first.with_row(
        step,
        batch_size=sum(leak.batch_size for leak in leaks),
        num_clients=sum(leak.num_clients for leak in leaks),
        normalised=normalise or first.normalised,
        noise_std=std or None,
        clip_norm=clip_norms.pop() if len(clip_norms) == 1 else None,
        loss=None,
    )


def observe_models(
    before: nn.Module,
    after: nn.Module,
    *,
    batch_size: int,
    image_shape: tuple[int, ...],
    lr: float,
    server_lr: float = 1.0,
    num_clients: int = 1,
    epochs: int = 1,
    local_batch_size: int | None = None,
    momentum: float = 0.0,
    normalised: bool = False,
    clip_norm: float | None = None,
    noise_std: float | None = None,
) -> Leak:
    """The aggregate as a *client* sees it: ``(after - before) / server_lr`` of two global models.

    Whoever receives the model before and after one aggregated step knows the aggregate, up to the
    rounding of the weights. ``batch_size`` counts the samples of all ``num_clients``. Parameters
    that do not require grad in ``before`` are left out. Chapter 06.
    Raises ``ValueError`` if the two models differ in layout, or ``server_lr`` is not positive.
    """
    if not (server_lr > 0 and math.isfinite(server_lr)):
        raise ValueError(f"server_lr={server_lr} must be a positive number")
    if not batch_size >= num_clients >= 1:
        raise ValueError(
            f"batch_size={batch_size} counts the samples of all num_clients={num_clients}: "
            "each has at least one"
        )
    old, new = flatten(before), flatten(after).to(next(before.parameters()).device)
    if old.shape != new.shape:
        raise ValueError(f"before has {len(old)} values and after {len(new)}: give the same model")
    return _update(
        before,
        (new - old) / server_lr,
        batch_size,
        tuple(image_shape),
        lr=lr,
        num_clients=num_clients,
        epochs=epochs,
        local_batch_size=local_batch_size,
        momentum=momentum,
        normalised=normalised,
        clip_norm=clip_norm,
        noise_std=noise_std,
    )


def observe_round(
    model: nn.Module,
    clients: Sequence[Client],
    *,
    client: int | None,
    round: int,
    epochs: int,
    batch_size: int | None,
    lr: float,
    momentum: float = 0.0,
    proximal: float = 0.0,
    fraction: float = 1.0,
    server_lr: float = 1.0,
    server_momentum: float = 0.0,
    transform: Transform | None = None,
    aggregate: Aggregate = mean,
    normalise: bool = False,
    clip_norm: float | None = None,
    noise_std: float | None = None,
    seed: int = 0,
) -> tuple[nn.Module, Leak]:
    """Run a federation up to ``round`` (from 1) and listen: the model broadcast in it, one message.

    Options are those of ``fedavg.train``, and so is the run, to the last bit. ``client`` is the
    index of the client to observe, or ``None`` for the aggregate (with ``normalise``, of messages
    scaled to length one). ``transform`` holds the clients' defence; what it publishes,
    ``clip_norm`` and ``noise_std`` *of one message*, is stated beside it (the aggregate's noise
    follows, ``σ²·Σ share_k²``, if ``aggregate`` is the mean). Chapter 06.

    Raises ``ValueError`` if the client takes no part in that round, or as ``fedavg.train`` does.
    """
    if round < 1:
        raise ValueError(f"round={round} must be at least 1: the first round is number 1")
    local: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    local |= {"momentum": momentum, "proximal": proximal, "loss": task_loss, "seed": seed}
    for one in clients:
        check_batch(model, one.inputs, one.labels)
    broadcast = copy.deepcopy(model)
    if round > 1:
        # The test set plays no part in training: one sample keeps its evaluation cheap.
        test = Dataset("none", clients[0].inputs[:1], clients[0].labels[:1], ())
        options = {"server_lr": server_lr, "server_momentum": server_momentum, **local}
        options |= {"aggregate": aggregate, "transform": transform, "fraction": fraction}
        train(broadcast, clients, test, rounds=round - 1, **options)
    cohort = sample_clients(clients, fraction, generator(seed, "cohort", round))
    indices = [one.index for one in cohort]
    if client is not None and client not in indices:
        raise ValueError(f"client {client} takes no part in round {round}: choose one of {indices}")
    rows, weights = local_updates(broadcast, cohort, round=round, **local)
    if transform is not None:
        context = RoundContext(round, seed, cohort, weights, copy.deepcopy(broadcast))
        rows = transform(rows, context)
    public: dict[str, Any] = {"lr": lr, "epochs": epochs, "local_batch_size": batch_size}
    public |= {"momentum": momentum, "clip_norm": clip_norm}
    shape = tuple(clients[0].inputs.shape[1:])
    if client is not None:
        k = indices.index(client)
        size, public["noise_std"] = len(cohort[k]), noise_std
        return broadcast, _update(broadcast, rows[k], size, shape, **public)
    step = aggregate(_unit(rows) if normalise else rows, weights)
    if noise_std is not None:
        scale = 1 / rows.norm(dim=1) if normalise else torch.ones_like(weights)
        public["noise_std"] = noise_std * float((weights / weights.sum() * scale).norm())
    public |= {"num_clients": len(cohort), "normalised": normalise}
    return broadcast, _update(broadcast, step, int(weights.sum()), shape, **public)


# --- what all of them share ---------------------------------------------------------------------


def check_batch(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The batch on the model's device, and as wide as the model; refused if it is not a batch.

    Raises ``ValueError`` for integer pictures, pictures outside [0, 1], values that are not finite,
    a float type wider than the model's, or labels that are not int64 ``[b]``.
    """
    if labels.dtype != torch.int64 or labels.dim() != 1 or len(labels) != len(images):
        raise ValueError(
            f"labels of {labels.dtype} and shape {list(labels.shape)} for {len(images)} samples: "
            "give int64 classes, shape [b]"
        )
    if not len(images):
        raise ValueError("the batch is empty: give at least one sample")
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        raise ValueError(f"{type(model).__name__} has no parameters: there is nothing to leak")
    labels = labels.to(like.device)
    if images.dtype == torch.int64 and any(isinstance(m, nn.Embedding) for m in model.modules()):
        return images.to(like.device), labels
    if not images.is_floating_point():
        raise ValueError(f"inputs of {images.dtype}: divide bytes by 255 for pictures in [0, 1]")
    if torch.promote_types(images.dtype, like.dtype) != like.dtype:
        raise ValueError(
            f"inputs of {images.dtype} for a model of {like.dtype}: convert one of the two"
        )
    if images.dim() not in (2, 4):
        raise ValueError(
            f"inputs of shape {list(images.shape)}: give pictures [b, c, h, w] or a table [b, f]"
        )
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(low + high):
        raise ValueError("the inputs hold NaN or infinity: clean them first")
    if images.dim() == 4 and not 0 <= low <= high <= 1:
        raise ValueError(
            f"pictures span [{low:.3g}, {high:.3g}]: give them in [0, 1] and let the model's first "
            "layer normalise (flcourse.models.Normalise)"
        )
    return images.to(like.device, like.dtype), labels


def checked_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """``task_loss``, refused for labels that the outputs have no place for.

    Raises ``ValueError`` for outputs that are not ``[b, k]``, or labels outside ``0 … k - 1`` (0
    and 1 where there is one logit).
    """
    if outputs.dim() != 2:
        raise ValueError(f"expected logits [b, k] from the model, got {list(outputs.shape)}")
    top = max(outputs.shape[1], 2) - 1
    if int(labels.min()) < 0 or int(labels.max()) > top:
        raise ValueError(
            f"labels span {int(labels.min())} to {int(labels.max())}, but a model with "
            f"{outputs.shape[1]} output(s) knows 0 to {top}"
        )
    return task_loss(outputs, labels)


def _update(
    model: nn.Module, row: Tensor, batch_size: int, image_shape: tuple[int, ...], **public: Any
) -> Leak:
    """A row of the whole model as a leak: trained parameters and float buffers, no frozen ones."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    parts: Mapping[str, Tensor] = unflatten(row.detach(), model)
    values = {name: part.clone() for name, part in parts.items() if name not in frozen}
    parameters = dict(model.named_parameters())
    return Leak(
        kind="update",
        values=values,
        batch_size=batch_size,
        image_shape=image_shape,
        buffers=tuple(name for name in values if name not in parameters),
        **public,
    )


def _unit(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(norms).all() and (norms > 0).all()):
        raise ValueError(
            f"messages of length {norms.flatten().tolist()} cannot all be scaled to one: "
            "leave out those that are zero or not finite"
        )
    return rows / norms


def _check_alike(leaks: Sequence[Leak]) -> None:
    if not leaks:
        raise ValueError("there is nothing to aggregate: give at least one leak")
    first = leaks[0]
    shapes = {name: value.shape for name, value in first.values.items()}
    protocol = ("kind", "image_shape", "lr", "epochs", "local_batch_size", "momentum", "normalised")
    for leak in leaks[1:]:
        for name in protocol:
            if getattr(leak, name) != getattr(first, name):
                raise ValueError(
                    f"{name} differs, {getattr(first, name)!r} and {getattr(leak, name)!r}: "
                    "one round has one protocol"
                )
        if {name: value.shape for name, value in leak.values.items()} != shapes:
            raise ValueError("the messages come from different models: their tensors do not fit")


__all__ = [
    "aggregate",
    "check_batch",
    "checked_loss",
    "observe_gradient",
    "observe_models",
    "observe_round",
    "observe_step",
    "observe_update",
]
