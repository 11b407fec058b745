"""The input of a linear layer, by algebra alone: one sample by a division. Chapters 03 and 05.

A linear layer ``z = W x + b`` has ``∂W = Σ_s δ_s x_sᵀ`` and ``∂b = Σ_s δ_s``: for one sample every
row of ``∂W`` is the input, times a number that ``∂b`` gives away.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flcourse.attacks.types import Leak, Recovery


@dataclass(frozen=True)
class Entry:
    """The linear layer that mixes first: its name, and its input as ``scale·picture + shift``.

    ``weight`` ``[h, f]`` and ``bias`` ``[h]`` are its gradients, ``scale`` and ``shift`` ``[f]``;
    all in float64 on the CPU.
    """

    name: str
    layer: nn.Linear
    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def pictures(self, inputs: Tensor, leak: Leak) -> Tensor:
        """Inputs of the layer ``[b, f]`` -> pictures, on the model's device and in its dtype."""
        pictures = (inputs - self.shift) / self.scale
        return pictures.reshape(-1, *leak.image_shape).to(self.layer.weight.detach())


def divide(model: nn.Module, leak: Leak) -> Recovery:
    """The private input of one sample: ``x = Σ_i ∂b_i ∂W_i / Σ_i ∂b_i²``, over the rows ``i``.

    Works where a linear layer mixes first (flatten and a normalisation by channel may precede it,
    and are undone); any activation, label and loss may follow. Rows are weighed as least squares
    wants it, so a neuron that hardly fired adds hardly any rounding. It holds for an update of many
    local steps, too: every step adds a multiple of the same ``x`` to both sums.

    ``loss`` is the relative residual ``‖∂W - ∂b xᵀ‖ / ‖∂W‖``: about 1e-7 where the message holds
    one float32 sample, more under noise or pruning. ``labels`` is the class whose gradient points
    along ``∂b``. ``stopped_at`` where every neuron was off (``∂b = 0``): then nothing leaked here.

    Source: Phong et al. 2018, "Privacy-Preserving Deep Learning via Additively Homomorphic
    Encryption", section 3; Geiping et al. 2020, proposition 3.1. Chapters 03 and 05.
    Raises ``ValueError`` for more than one sample, a layer without bias, or a model in which
    something else mixes first; the message names the attack to use instead.
    """
    start = time.process_time()
    if leak.batch_size != 1:
        raise ValueError(
            f"batch_size={leak.batch_size}: the division is for one sample; use exact_batch behind "
            "a linear layer with ReLU, or match_gradients"
        )
    entry = find_entry(model, leak)
    size = entry.bias.square().sum()
    if not float(size) > 0:
        if not bool(torch.isfinite(entry.bias).all()):
            raise ValueError("the leak holds values that are not finite: nothing to divide")
        reason = f"{entry.name}: its bias gradient is 0, no neuron passed anything on"
        return Recovery(None, None, "divide", stopped_at=reason, seconds=_since(start))
    inputs = (entry.bias @ entry.weight / size)[None]
    residual = (entry.weight - torch.outer(entry.bias, inputs[0])).norm() / entry.weight.norm()
    images = entry.pictures(inputs, leak)
    labels = labels_along(model, entry, images, entry.bias[None])
    return Recovery(images, labels, "divide", loss=float(residual), seconds=_since(start))


def find_entry(model: nn.Module, leak: Leak) -> Entry:
    """The linear layer that sees the picture first, found by showing a copy of the model probes.

    The layer's input must be the picture itself, each value scaled and shifted. Two probes (all 0,
    all 1) give scale and shift, random ones test them: so any ``nn.Module`` can be read, and what
    a forward pass does between its layers counts, too.
    Raises ``ValueError`` with the remedy where the model is not like that, or has no bias there.
    """
    shown = probes(leak.image_shape)
    calls = _linear_calls(model, shown)
    if not calls:
        raise ValueError(f"{type(model).__name__} has no linear layer: use match_gradients")
    name, layer, seen = calls[0]
    shift, scale = seen[0], seen[1] - seen[0]
    fits = seen.dim() == 2 and seen.shape[1] == shown[0].numel()
    if fits:
        expected = shown.flatten(1) * scale + shift
        fits = bool((scale != 0).all()) and bool(torch.allclose(seen, expected))
        # A BatchNorm in training mode scales by its batch: other company, another input.
        fits = fits and bool(torch.allclose(_linear_calls(model, shown[1:])[0][2], seen[1:]))
    if not fits:
        raise ValueError(
            f"the input of the first linear layer, {name!r}, is not the picture itself: something "
            "mixes before it. Behind convolutions use peel, or match_gradients"
        )
    if [other for other, _, _ in calls].count(name) > 1:
        raise ValueError(f"{name!r} is used more than once, its gradients add up: match_gradients")
    if layer.bias is None:
        raise ValueError(
            f"{name!r} has no bias: its gradient gives the picture up to a factor only; use "
            "match_gradients"
        )
    gradients, names = leak.gradients, [f"{name}.{p}".lstrip(".") for p in ("weight", "bias")]
    if missing := [name for name in names if name not in gradients]:
        raise ValueError(f"the leak holds no gradient of {missing}: it was not sent, or is frozen")
    weight, bias = (gradients[name].detach().cpu().double() for name in names)
    return Entry(name, layer, weight, bias, scale, shift)


def labels_along(model: nn.Module, entry: Entry, images: Tensor, deltas: Tensor) -> Tensor | None:
    """The class of each picture whose ``∂loss/∂z`` points along its ``deltas`` ``[b, h]``.

    ``z`` is the output of the entry layer. Only directions count, so that a clipped gradient, or
    a sum over local steps, has the same answer. ``None`` where the outputs are not ``[b, k]``.
    """
    candidates = candidate_deltas(model, entry, images)
    if candidates is None:
        return None
    return torch.cosine_similarity(candidates, deltas[None], dim=2).argmax(dim=0).to(images.device)


@torch.enable_grad()
def candidate_deltas(model: nn.Module, entry: Entry, images: Tensor) -> Tensor | None:
    """``∂loss_s/∂z_s`` of every sample for every label that it might have, ``[k, b, h]``, float64.

    For logits ``f`` it is ``Σ_c (p_c - 1[c = y]) ∂f_c/∂z``, so a pass per class serves every label.
    """
    model = copy.deepcopy(model)
    kept: list[Tensor] = []
    hook = model.get_submodule(entry.name).register_forward_hook(lambda _m, _i, z: kept.append(z))
    logits = model(images)
    hook.remove()
    if logits.dim() != 2:
        return None
    classes = logits.shape[1]
    each = torch.eye(classes).to(logits)[:, None].expand(classes, len(images), classes)
    (rows,) = torch.autograd.grad(logits, kept[0], each, is_grads_batched=True)
    rows, logits = rows.detach().cpu().double(), logits.detach().cpu().double()
    if classes == 1:
        chance = logits.sigmoid()
        return torch.cat([rows * chance, rows * (chance - 1)])
    return torch.einsum("bk,kbh->bh", logits.softmax(dim=1), rows) - rows


@torch.no_grad()
def _linear_calls(model: nn.Module, shown: Tensor) -> list[tuple[str, nn.Linear, Tensor]]:
    """Every use of a linear layer on probes, in order: name, layer, its input in float64."""
    # A copy, for a BatchNorm would take the probes into its statistics; in float64, for a table
    # with a large mean and a small spread loses digits between the probes 0 and 1.
    probed = copy.deepcopy(model).cpu().double()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    calls: list[tuple[str, nn.Linear, Tensor]] = []

    def hook_for(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append((name, layers[name], inputs[0].detach()))

        return hook

    for name in layers:
        probed.get_submodule(name).register_forward_pre_hook(hook_for(name))
    if layers:
        probed(shown)
    return calls


def probes(shape: tuple[int, ...]) -> Tensor:
    """All 0, all 1, and two patterns without order in them: ``[4, *shape]``."""
    count = torch.Size(shape).numel()
    steps = torch.arange(1, 2 * count + 1, dtype=torch.float64)
    patterns = (steps * 0.6180339887498949).frac()  # the golden ratio: evenly spread, no draws
    return torch.cat([torch.zeros(count).double(), torch.ones(count).double(), patterns]).reshape(
        4, *shape
    )


def _since(start: float) -> float:
    return time.process_time() - start
