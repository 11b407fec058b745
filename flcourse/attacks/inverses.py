"""Activations backwards: from an output ``h`` to its input ``z = act⁻¹(h)``. Chapter 05."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Outputs this close to an end of the range (as a part of it) are moved to here: rounding can put a
# recovered sigmoid at 1.0000001, of which there is no logit. Their equations weigh next to nothing.
EDGE = 1e-9

Rule = Callable[[Any, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Inverse:
    """``z`` and where it is ``known`` (else only a bound: ReLU's zeros); ``slope = act'(z)``."""

    z: Tensor
    slope: Tensor
    known: Tensor


def has_inverse(module: nn.Module) -> bool:
    """Whether ``invert`` knows this activation; a subclass may compute anything, so it is not."""
    if type(module) is nn.LeakyReLU:
        return module.negative_slope > 0  # else two inputs share an output
    if type(module) is nn.PReLU:
        return bool((module.weight > 0).all())
    return type(module) in _RULES


def is_exact(module: nn.Module) -> bool:
    """Whether every output has one input, as behind a sigmoid and not behind a ReLU."""
    return has_inverse(module) and type(module) not in (nn.ReLU, nn.ReLU6, nn.Hardtanh)


def invert(module: nn.Module, h: Tensor, tolerance: float = 0.0) -> Inverse:
    """``z``, ``act'(z)`` and where they hold, from an output ``h`` known up to ``tolerance``.

    Sigmoid, tanh, leaky ReLU (PReLU), ELU, softplus and the identity exactly; SiLU and GELU on the
    branch right of their minimum, by bisection (they fall before it, so a small negative output
    has a second input); ReLU, ReLU6 and Hardtanh strictly inside their range, where ``tolerance``
    decides what counts as inside. Raises ``ValueError`` for another module.
    """
    if not has_inverse(module):
        raise ValueError(f"{type(module).__name__} has no inverse here")
    z, known = _RULES[type(module)](module, h, tolerance)
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(module(point[None].clone()).sum(), point)
    slope = slope.detach()
    if not is_exact(module):
        slope = torch.where(known, slope, torch.zeros_like(slope))
    return Inverse(z, slope, known)


def _everywhere(
    rule: Callable[[nn.Module, Tensor], Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
    def inner(module: nn.Module, h: Tensor, _tolerance: float) -> tuple[Tensor, Tensor]:
        return rule(module, h), torch.ones_like(h, dtype=torch.bool)

    return inner


def _leaky(module: Any, h: Tensor) -> Tensor:
    if type(module) is nn.LeakyReLU:
        return torch.where(h > 0, h, h / module.negative_slope)
    slope = module.weight.detach().to(h)
    if len(slope) > 1:
        slope = slope.reshape(-1, *(1,) * (h.dim() - 1))
    return torch.where(h > 0, h, h / slope)


def _elu(module: Any, h: Tensor) -> Tensor:
    alpha = module.alpha
    return torch.where(h > 0, h, torch.log1p(h.clamp(min=-alpha * (1 - EDGE)) / alpha))


def _softplus(module: Any, h: Tensor) -> Tensor:
    scaled = (h * module.beta).clamp(min=EDGE)
    return (scaled + torch.log(-torch.expm1(-scaled))) / module.beta


def _right_branch(module: Any, h: Tensor) -> Tensor:
    """Bisection right of the minimum, for functions that rise there and pass ``z`` from below."""
    grid = torch.linspace(-3, 0, 3001, dtype=h.dtype)
    low = torch.full_like(h, float(grid[module(grid).argmin()]))
    high = h.clamp(min=0) + 2
    for _ in range(60):
        middle = (low + high) / 2
        above = module(middle) > h
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


def _between(low: float, high: float) -> Rule:
    def inner(module: Any, h: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        bottom = getattr(module, "min_val", low)
        top = getattr(module, "max_val", high)
        return h.clamp(bottom, top), (h > bottom + tolerance) & (h < top - tolerance)

    return inner


_RULES: dict[type[nn.Module], Rule] = {
    nn.Sigmoid: _everywhere(lambda _m, h: torch.logit(h, eps=EDGE)),
    nn.Tanh: _everywhere(lambda _m, h: torch.atanh(h.clamp(EDGE - 1, 1 - EDGE))),
    nn.LeakyReLU: _everywhere(_leaky),
    nn.PReLU: _everywhere(_leaky),
    nn.ELU: _everywhere(_elu),
    nn.Softplus: _everywhere(_softplus),
    nn.SiLU: _everywhere(_right_branch),
    nn.GELU: _everywhere(_right_branch),
    nn.ReLU: _between(0.0, float("inf")),
    nn.ReLU6: _between(0.0, 6.0),
    nn.Hardtanh: _between(-1.0, 1.0),
}
