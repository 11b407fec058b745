"""A model as a flat list of layers with the shapes between them: what closed-form attacks read.

Nested ``nn.Sequential`` are opened; everything else is one link, and a kind of layer that the
algebra does not know is "opaque". Chapter 05.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flcourse.attacks.inverses import has_inverse
from flcourse.attacks.types import Leak
from flcourse.models import Normalise

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@dataclass(frozen=True, eq=False)
class Link:
    """One layer: its path in the model, its module (float64, CPU), shapes without the batch.

    ``kind`` is "linear", "conv", "activation", "affine" (a scale and a shift per channel),
    "reshape" or "opaque"; ``why`` says what makes it opaque.
    """

    name: str
    module: nn.Module
    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    why: str = ""

    @property
    def title(self) -> str:
        """The name on the page: ``"4 (Conv2d)"``."""
        kind = type(self.module).__name__
        return f"{self.name} ({kind})" if self.name else kind

    def parameter(self, name: str) -> str:
        """The name in the model of this layer's own parameter ``name``."""
        return f"{self.name}.{name}" if self.name else name


def read_chain(model: nn.Module, image_shape: Sequence[int]) -> tuple[Link, ...]:
    """The model's layers in the order in which they run, read from a float64 copy on the CPU.

    ``image_shape`` is ``(c, h, w)`` or ``(f,)``. The model itself is neither run nor changed.
    Raises ``ValueError`` where pictures of that shape do not pass through the model.
    """
    model = copy.deepcopy(model).cpu().double()
    modules = list(_flat(model, ""))
    owners = Counter(id(p) for _, module in modules for p in module.parameters(recurse=True))
    value = torch.full((1, *image_shape), 0.5, dtype=torch.float64)
    links = []
    with torch.no_grad():
        for name, module in modules:
            before = tuple(value.shape[1:])
            training = module.training
            try:
                value = module.eval()(value)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise ValueError(
                    f"pictures of shape {list(image_shape)} do not pass {name or 'the model'} "
                    f"({type(module).__name__}), whose input is then {list(before)}: {error}"
                ) from error
            module.train(training)
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"{name or 'the model'} ({type(module).__name__}) returns a "
                    f"{type(value).__name__}, not a tensor: wrap it in a module that does"
                )
            shared = any(owners[id(p)] > 1 for p in module.parameters())
            kind, why = _kind(module, before, tuple(value.shape[1:]), shared)
            links.append(Link(name, module, kind, before, tuple(value.shape[1:]), why))
    return tuple(links)


def check_leak(model: nn.Module, leak: Leak) -> dict[str, Tensor]:
    """The leak's gradient by parameter in float64 on the CPU, once it fits the model.

    A parameter that does not require grad may be missing. Raises ``ValueError`` for a value that is
    not finite, names or shapes of another model, and an update of several local steps, of which no
    gradient is known exactly.
    """
    parameters = dict(model.named_parameters())
    if unknown := [n for n in leak.values if n not in parameters and n not in leak.buffers]:
        raise ValueError(f"the leak holds {unknown[0]!r}, which is no parameter of the model")
    for name, parameter in parameters.items():
        value = leak.values.get(name)
        if value is None:
            if parameter.requires_grad:
                raise ValueError(f"the leak lacks {name!r}: give the leak of this model, complete")
        elif value.shape != parameter.shape:
            raise ValueError(
                f"{name!r} has shape {list(value.shape)} in the leak, {list(parameter.shape)} in "
                "the model: give the weights that the leak was taken at"
            )
        elif not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name!r} holds NaN or infinity in the leak: no algebra applies")
    if leak.kind == "update" and leak.steps > 1:
        raise ValueError(
            f"an update of {leak.steps} local steps holds no single gradient: use match_gradients, "
            "which unrolls them"
        )
    gradients = leak.gradients
    return {n: gradients[n].detach().cpu().double() for n in parameters if n in gradients}


def _flat(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    # A subclass with a forward of its own is not a chain, whatever its children are; hooks change
    # what a layer computes, so a container with one is taken as it is.
    plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if not plain or _hooked(module):
        return [(name, module)]
    prefix = f"{name}." if name else ""
    children = module._modules.items()  # a layer that stands twice is run twice
    return [pair for n, child in children if child for pair in _flat(child, prefix + n)]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _kind(
    module: nn.Module, before: tuple[int, ...], after: tuple[int, ...], shared: bool
) -> tuple[str, str]:
    if shared:
        return "opaque", "its weights are used by two layers, whose gradients add up"
    if _hooked(module):
        return "opaque", "a forward hook may change what it computes"
    if type(module) is nn.Linear:
        if len(before) == 1:
            return "linear", ""
        return "opaque", f"it is applied {math.prod(before[:-1])} times, the gradients add up"
    if type(module) is nn.Conv2d:
        if len(before) != 3:
            return "opaque", f"its input has shape {list(before)}, not [c, h, w]"
        if module.groups != 1 or module.padding_mode != "zeros":
            return "opaque", f"groups={module.groups}, padding_mode={module.padding_mode!r}"
        return "conv", ""
    if has_inverse(module):
        return "activation", ""
    if type(module) is Normalise:
        return "affine", ""
    if isinstance(module, NORMS):
        if module.training or module.running_mean is None:
            return "opaque", "BatchNorm in training mode normalises by the batch itself"
        return "affine", ""
    if type(module) is nn.Identity:
        return "reshape", ""
    if isinstance(module, DROPOUTS):
        if module.training and module.p > 0:
            return "opaque", "in training mode it drops values at random"
        return "reshape", ""
    if type(module) in (nn.Flatten, nn.Unflatten):
        return "reshape", ""
    if "Pool" in type(module).__name__:
        if before == after and getattr(module, "kernel_size", None) in (1, (1, 1)):
            return "reshape", ""
        return "opaque", _pool(module)
    return "opaque", "the algebra does not know this layer"


def _pool(module: nn.Module) -> str:
    if "Max" in type(module).__name__:
        return "a max-pool keeps one value of each window and not its place"
    return "a pool keeps one mean of each window, not the values"


def channel_affine(link: Link) -> tuple[Tensor, Tensor]:
    """Scale and shift of an affine layer, shaped to broadcast over its input without the batch."""
    with torch.no_grad():
        zero = torch.zeros(1, *link.in_shape, dtype=torch.float64)
        shift = link.module(zero)[0]
        return link.module(zero + 1)[0] - shift, shift
