"""A model as one flat row, and back: the representation that everything in this course shares.

A model with ``d`` floating-point values (parameters and buffers) is a row ``[d]``; an update is the
difference of two rows, ``local - global``. Explained in chapter 01.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Slot:
    """Where one tensor of a model lies in the row: ``row[start : start + size]``."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int
    size: int


def layout(model: nn.Module) -> tuple[Slot, ...]:
    """The places of all floating-point parameters, then buffers, in the order of the module.

    A tensor that is shared (tied weights) has one place, under its first name.
    Raises ``ValueError`` for a complex tensor or one whose shape is not known yet (a lazy module).
    """
    slots, start = [], 0
    for name, tensor in _values(model).items():
        slots.append(Slot(name, tensor.shape, tensor.dtype, start, tensor.numel()))
        start += tensor.numel()
    return tuple(slots)


def left_alone(model: nn.Module) -> tuple[str, ...]:
    """Names of integer and boolean tensors: they are not part of the row and are never changed.

    BatchNorm's ``num_batches_tracked`` is the usual one: averaging a counter has no meaning.
    """
    return tuple(name for name, tensor in _tensors(model) if not tensor.is_floating_point())


def num_values(model: nn.Module) -> int:
    """``d``, the length of the model's row."""
    return sum(tensor.numel() for tensor in _values(model).values())


def flatten(model: nn.Module) -> Tensor:
    """Copy the model into a new row ``[d]``, detached, on the model's device.

    The row is float32, or float64 if the model holds a float64 tensor, so that no value is rounded.
    Raises ``ValueError`` if the model has no floating-point tensor, or parts on several devices.
    """
    tensors = list(_values(model).values())
    if not tensors:
        raise ValueError(f"{type(model).__name__} has no floating-point values to flatten")
    if len(devices := {str(tensor.device) for tensor in tensors}) > 1:
        raise ValueError(f"the model's parts lie on {sorted(devices)}: move it to one device first")
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])


def unflatten(row: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Cut a row ``[d]`` into tensors by name, with the model's shapes and dtypes.

    The model only gives the layout; it is not changed. Differentiable with respect to ``row``.
    Raises ``ValueError`` if the row does not have the model's length.
    """
    slots = layout(model)
    size = sum(slot.size for slot in slots)
    if row.shape != (size,):
        raise ValueError(
            f"a row of shape {list(row.shape)} does not fit {type(model).__name__}, "
            f"which has {size} floating-point values: expected shape [{size}]"
        )
    return {
        slot.name: row[slot.start : slot.start + slot.size].reshape(slot.shape).to(slot.dtype)
        for slot in slots
    }


@torch.no_grad()
def load_row(model: nn.Module, row: Tensor) -> None:
    """Write a row ``[d]`` into the model, in place, on whatever device the model is.

    Raises ``ValueError`` if the row does not fit.
    """
    tensors = _values(model)
    for name, value in unflatten(row.detach(), model).items():
        tensors[name].copy_(value)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, also where several modules hold the same tensor."""
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        if is_lazy(tensor):
            raise ValueError(f"{name} has no shape yet: run one batch through the lazy model first")
        if tensor.is_complex():
            raise ValueError(f"{name} is complex; store its real and imaginary part separately")
    return named


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _tensors(model) if tensor.is_floating_point()}
