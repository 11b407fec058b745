"""Ghost clipping: the norm of each sample's gradient without the gradient. Chapter 12.

A linear layer's gradient for sample i is the outer product ``g_i a_iᵀ`` of what came back and what
went in, so its norm is ``‖g_i‖·‖a_i‖``: two vectors, no matrix. A convolution is a linear layer at
every place, ``G_i A_iᵀ`` with ``A_i`` the unfolded patches. With the norms known, one more product
gives ``Σ_i c_i G_i A_iᵀ`` for the whole batch, and no second backward pass.

Source: Goodfellow 2015, "Efficient Per-Example Gradient Computations" (linear layers); Rochette,
Manoel & Tramel 2019 (convolutions); Li et al. 2022, "Large Language Models Can Be Strong
Differentially Private Learners", section 4 (sequences, "ghost"); Bu et al. 2023, "Differentially
Private Optimization on Large Model at Small Cost" (book-keeping: reuse instead of a second pass).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from flcourse.local import Loss, per_sample
from flcourse.privacy.clipping import exact, row_norms
from flcourse.privacy.per_sample import factors_of


@dataclass(frozen=True)
class _Call:
    """One layer as it ran: what went in and came out, and their version counters."""

    name: str
    layer: nn.Linear | nn.Conv2d
    inputs: Tensor
    outputs: Tensor
    versions: tuple[int, int]

    def untouched(self) -> bool:
        return (self.inputs._version, self.outputs._version) == self.versions


def clipped_by_ghost(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor, clip_norm: float
) -> dict[str, Tensor]:
    """``Σ_i g_i · min(1, C/‖g_i‖)`` by parameter, as ``clipped_by_vmap``.

    Raises ``ValueError`` for trained parameters outside ``nn.Linear`` and plain ``nn.Conv2d``,
    layers that are used twice, and operations in place on what a layer took or gave.
    """
    check_ghost(model)
    calls, back = _forward_backward(model, loss, inputs, labels)
    squares = [_squared_norms(call, g) for call, g in zip(calls, back, strict=True)]
    factors = factors_of(torch.stack(squares).sum(dim=0).sqrt(), clip_norm)
    found: dict[str, Tensor] = {}
    for call, g in zip(calls, back, strict=True):
        found |= _sum_of(call, g * factors.to(g).reshape(-1, *[1] * (g.dim() - 1)))
    return found


def check_ghost(model: nn.Module) -> None:
    """Raise ``ValueError`` if the model has trained parameters that ghost clipping cannot do."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if not isinstance(module, nn.Linear) and not _plain_convolution(module):
                raise ValueError(
                    f"{name}.{key} belongs to a {type(module).__name__}: ghost clipping knows "
                    "nn.Linear and plain nn.Conv2d here; use method='vmap'"
                )
            if id(parameter) in owners:
                raise ValueError(
                    f"{name}.{key} is {owners[id(parameter)]}: ghost clipping wants each parameter "
                    "used once; use method='vmap'"
                )
            owners[id(parameter)] = f"{name}.{key}"


def _plain_convolution(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _forward_backward(
    model: nn.Module, loss: Loss, inputs: Tensor, labels: Tensor
) -> tuple[Sequence[_Call], Sequence[Tensor]]:
    """The layers' calls, and the gradient of the summed loss at each one's output."""
    with torch.enable_grad(), _recorded(model) as calls:
        losses = per_sample(loss, model(inputs), labels)
    names = [call.name for call in calls]
    if len(set(names)) < len(names):
        raise ValueError(f"a layer of {names} runs twice: use method='vmap'")
    if touched := [call.name for call in calls if not call.untouched()]:
        raise ValueError(
            f"what {touched} took or gave was changed in place (ReLU(inplace=True)?): "
            "use inplace=False, or method='vmap'"
        )
    # Only as far as the layers' outputs: no sum over the batch of any weight's gradient is made.
    return calls, torch.autograd.grad(losses.sum(), [call.outputs for call in calls])


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Call]]:
    calls: list[_Call] = []
    handles = []
    for name, module in model.named_modules():
        trained = any(p.requires_grad for p in module.parameters(recurse=False))
        if trained and isinstance(module, (nn.Linear, nn.Conv2d)):

            def keep(
                layer: nn.Linear | nn.Conv2d, given: tuple[Tensor], result: Tensor, name: str = name
            ) -> None:
                versions = (given[0]._version, result._version)
                calls.append(_Call(name, layer, given[0].detach(), result, versions))

            handles.append(module.register_forward_hook(keep))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _squared_norms(call: _Call, g: Tensor) -> Tensor:
    """``‖G_i A_iᵀ‖²`` (and the bias's share) of each sample: ``[b]`` float64."""
    a, g = _as_sequences(call, g)  # [b, T, in], [b, T, out]
    weight, bias = call.layer.weight, call.layer.bias
    found = row_norms(g.sum(dim=1)).square() * float(bias is not None and bias.requires_grad)
    return found + _outer_norms(a, g) if weight.requires_grad else found


def _outer_norms(a: Tensor, g: Tensor) -> Tensor:
    """``‖Σ_t g_t a_tᵀ‖²`` by whichever is less work: the matrices, or the Grams over places t."""
    places, width, height = a.shape[1], a.shape[2], g.shape[2]
    if places == 1:
        return (row_norms(a[:, 0]) * row_norms(g[:, 0])).square()
    if places * (width + height) < width * height:
        grams = torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))
        return exact(grams).sum(dim=(1, 2)).clamp(min=0)
    return row_norms(torch.bmm(g.transpose(1, 2), a).flatten(1)).square()


def _as_sequences(call: _Call, g: Tensor) -> tuple[Tensor, Tensor]:
    """What went in and what came back as ``[b, T, in]`` and ``[b, T, out]``."""
    layer, a = call.layer, call.inputs
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # check_ghost
        patches = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2), g.flatten(2).transpose(1, 2)
    return a.reshape(len(a), -1, a.shape[-1]), g.reshape(len(g), -1, g.shape[-1])


def _sum_of(call: _Call, g: Tensor) -> dict[str, Tensor]:
    """``Σ_i G_i A_iᵀ`` (and the bias's ``Σ_i g_i``) of one layer, by name; ``g`` is scaled."""
    layer, found = call.layer, {}
    if isinstance(layer, nn.Conv2d):
        weight = conv2d_weight(
            call.inputs, layer.weight.shape, g, layer.stride, layer.padding, layer.dilation
        )
        bias = g.sum(dim=(0, 2, 3))
    else:
        flat = g.reshape(-1, g.shape[-1])
        weight, bias = flat.T @ call.inputs.reshape(-1, call.inputs.shape[-1]), flat.sum(dim=0)
    prefix = f"{call.name}." if call.name else ""
    if layer.weight.requires_grad:
        found[f"{prefix}weight"] = weight
    if layer.bias is not None and layer.bias.requires_grad:
        found[f"{prefix}bias"] = bias
    return found
