"""DP-SGD: gradient descent whose every step is a noisy sum of clipped per-sample gradients.

    g_i = ∇ loss(x_i, y_i)                                        # per_sample.py, ghost.py
    w  ← w − lr · (Σ_i g_i · min(1, C/‖g_i‖) + N(0, (zC)² I)) / B  # B fixed: q·n

Protects single examples. The three ways to the clipped sum (``vmap``, ``ghost``, Opacus) give the
same step from the same noise.

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1. Chapter 12.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from flcourse.data import Client
from flcourse.fedavg import apply_update
from flcourse.local import Loss, cross_entropy, per_sample
from flcourse.privacy.clipping import ClippedSum
from flcourse.privacy.federated import Records
from flcourse.privacy.ghost import clipped_by_ghost
from flcourse.privacy.noise import Source, gaussian_sum
from flcourse.privacy.per_sample import check_separable, clip_and_add, clipped_by_vmap
from flcourse.runtime import generator as seeded_generator
from flcourse.vectors import flatten, layout

_VALUES_AT_ONCE = 2**23 - 1  # of one parameter's per-sample gradients: under 32 MiB


def clipped_gradients(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    clip_norm: float,
    method: str = "vmap",
    chunk_size: int | None = None,
    loss: Loss | None = None,
    adjacency: str = "add/remove",
) -> ClippedSum:
    """``Σ_i g_i · min(1, C/‖g_i‖)`` over the examples ``[b, ...], [b]``: the sum ``[d]``.

    ``chunk_size`` examples are differentiated, clipped and added up at a time. ``None``: all, but
    with ``"vmap"`` so many that each tensor of gradients stays under 32 MiB, which is fastest,
    too: larger ones are fresh pages from the system each time.
    ``method``: ``"vmap"`` (any model that does not mix samples), ``"ghost"`` (linear layers and
    convolutions; fast where they are large), ``"opacus"`` (its hooks; needs that library).

    Raises ``ValueError`` for a model that the method cannot do, and for gradients that are NaN.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use {', '.join(METHODS)}")
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip_norm={clip_norm} must be a positive number")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1, or None for all")
    check_separable(model)
    total = torch.zeros_like(flatten(model))
    # A Poisson batch may be empty: its sum is zero, and gets noise as any other.
    for few, their in _chunks(inputs, labels, chunk_size or _default_chunk(model, method)):
        found = METHODS[method](model, loss or cross_entropy, few, their, clip_norm)
        for slot in layout(model):
            if slot.name in found:
                total[slot.start : slot.start + slot.size] += found[slot.name].reshape(-1)
    return ClippedSum(total, len(inputs), clip_norm, adjacency)


def _default_chunk(model: nn.Module, method: str) -> int:
    largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=1)
    return max(_VALUES_AT_ONCE // largest, 1) if method == "vmap" else sys.maxsize


def _chunks(inputs: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size], labels[start : start + size]


def private_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    generator: Source,
    method: str = "vmap",
    chunk_size: int | None = None,
    loss: Loss | None = None,
) -> Tensor:
    """``(Σ_i clip(g_i) + N(0, (zC)² I)) / B``, ``[d]``: what a step of DP-SGD releases.

    ``expected_batch_size`` ``B = q·n`` is fixed beforehand, whatever the batch came to: its size is
    private, too. The noise is drawn once, for the whole batch, in the order of ``flatten(model)``.

    Raises as ``clipped_gradients`` and ``gaussian_sum`` do.
    """
    if not (expected_batch_size > 0 and math.isfinite(expected_batch_size)):
        raise ValueError(f"expected_batch_size={expected_batch_size} must be a positive number")
    total = clipped_gradients(
        model, inputs, labels, clip_norm=clip_norm, method=method, chunk_size=chunk_size, loss=loss
    )
    return gaussian_sum(total, noise_multiplier, generator) / expected_batch_size


def private_step(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    clip_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    lr: float,
    generator: Source,
    method: str = "vmap",
    chunk_size: int | None = None,
    loss: Loss | None = None,
) -> None:
    """``w ← w − lr · private_gradient``, in place. Raises as ``private_gradient`` does."""
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr} must be a positive number")
    gradient = private_gradient(
        model,
        inputs,
        labels,
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier,
        expected_batch_size=expected_batch_size,
        generator=generator,
        method=method,
        chunk_size=chunk_size,
        loss=loss,
    )
    apply_update(model, gradient, -lr)


def train_dpsgd(
    model: nn.Module,
    data: Client,
    *,
    steps: int,
    sample_rate: float,
    clip_norm: float,
    noise_multiplier: float,
    lr: float,
    expected_batch_size: float | None = None,
    seed: int = 0,
    round: int = 0,
    method: str = "vmap",
    chunk_size: int | None = None,
    loss: Loss | None = None,
    accountant: Records | None = None,
) -> None:
    """``steps`` steps of DP-SGD on ``data``, in place; each example is in a batch by its own coin.

    Poisson batches of rate ``q``; costs the ε of ``epsilon(z, steps, delta, q)`` for add/remove of
    one example, which ``accountant`` (or a ``Budget``) is told beforehand.
    ``expected_batch_size`` is ``q·n`` unless given, which takes it that the client's ``n`` is
    public; where it is not, give a number of your own.
    Raises as ``private_step`` does, and if ``sample_rate`` is outside (0, 1] or ``steps < 1``.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate={sample_rate} must lie in (0, 1]")
    if not len(data):
        raise ValueError(f"client {data.index} holds no samples: leave it out")
    if accountant is not None:  # before anything is released: a budget may refuse
        accountant.record(noise_multiplier, steps, sample_rate)
    coins = seeded_generator(seed, "dpsgd batch", round, data.index)
    noise = seeded_generator(seed, "dpsgd noise", round, data.index)
    expected = expected_batch_size if expected_batch_size is not None else sample_rate * len(data)
    for _ in range(steps):
        chosen = torch.rand(len(data), generator=coins, dtype=torch.float64) < sample_rate
        chosen = chosen.to(data.inputs.device)
        private_step(
            model,
            data.inputs[chosen],
            data.labels[chosen],
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            expected_batch_size=expected,
            lr=lr,
            generator=noise,
            method=method,
            chunk_size=chunk_size,
            loss=loss,
        )


def dpsgd_updates(
    model: nn.Module, cohort: Sequence[Client], **options: float | int | str | Loss | None
) -> tuple[Tensor, Tensor]:
    """``local_updates`` with DP-SGD inside each client: rows ``[n, d]`` and weights ``[n]``.

    The options are those of ``train_dpsgd`` (but not its ``accountant``: each client has a budget
    of its own, ``epsilon(z, steps · rounds it took part in, delta, q)``). Each row is private for
    the client's examples, whoever sees it; what the client as a whole is like stays visible.
    """
    start, rows = flatten(model), []
    for client in cohort:
        local = copy.deepcopy(model)
        train_dpsgd(local, client.to(start.device), **options)  # type: ignore[arg-type]
        rows.append(flatten(local) - start)
    if not rows:
        raise ValueError("the cohort is empty: sample at least one client")
    return torch.stack(rows), start.new_tensor([float(len(client)) for client in cohort])


def clipped_by_opacus(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor, clip_norm: float
) -> dict[str, Tensor]:
    """``clipped_by_vmap`` with Opacus' hooks, which fill ``parameter.grad_sample`` as they go."""
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError as error:
        raise ImportError(
            "method='opacus' needs that library: pip install opacus, or method='vmap'"
        ) from error
    hooked = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    per_sample(loss, hooked(inputs), labels).sum().backward()
    named = hooked._module.named_parameters()
    return clip_and_add({name: p.grad_sample for name, p in named if p.requires_grad}, clip_norm)


Method = Callable[[nn.Module, Loss, Tensor, Tensor, float], dict[str, Tensor]]
METHODS: dict[str, Method] = {
    "vmap": clipped_by_vmap,
    "ghost": clipped_by_ghost,
    "opacus": clipped_by_opacus,
}
