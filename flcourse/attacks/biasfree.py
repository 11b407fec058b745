"""The last layer without a bias: the label's softmax equation fixes the unknown factor. Chapter 05.

Source: Zhu & Blaschko 2021, "R-GAP: Recursive Gradient Attack on Privacy", section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A factor solves all k equations if it misses them by no more than this part.
_AGREES = 1e-3


def last_deltas(weight: Tensor, gradient: Tensor, label: int) -> list[Tensor]:
    """Every ``δ = p - y`` ``[k]`` of a last linear layer without a bias that fits its gradient.

    ``∂W = δ hᵀ`` has rank one: ``h = c v`` with a known direction ``v`` and an unknown factor, for
    which ``c·(softmax(c W v) - y) = ∂W v`` holds: ``k`` equations for one unknown (one logit:
    ``c·(sigmoid(c w·v) - y) = ∂w·v``). The label's equation is solved by bisection between the
    changes of sign on a grid over ten decades, and the others sort out false answers. With one or
    two classes there are none to sort with, and up to two answers remain.
    """
    if not bool(gradient.any()):
        return []
    direction = torch.linalg.svd(gradient, full_matrices=False).Vh[0]
    logits, pull = weight @ direction, gradient @ direction

    def excess(factors: Tensor) -> Tensor:
        scores = factors[:, None] * logits
        if len(weight) == 1:
            return factors[:, None] * (torch.sigmoid(scores) - label) - pull
        target = torch.zeros_like(logits)
        target[label] = 1
        return factors[:, None] * (scores.softmax(dim=1) - target) - pull

    row = 0 if len(weight) == 1 else label
    sizes = torch.logspace(-5, 5, 2001, dtype=weight.dtype)
    grid = torch.cat([-sizes.flip(0), sizes])
    values = excess(grid)[:, row]
    change = ((values[:-1] > 0) != (values[1:] > 0)) & (grid[:-1] * grid[1:] > 0)
    low, high, sign = grid[:-1][change], grid[1:][change], values[:-1][change] > 0
    for _ in range(80):
        middle = (low + high) / 2
        same = (excess(middle)[:, row] > 0) == sign
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    roots = (low + high) / 2
    misses = excess(roots).norm(dim=1) / pull.norm()
    return [pull / root for root, miss in zip(roots, misses, strict=True) if miss < _AGREES]
