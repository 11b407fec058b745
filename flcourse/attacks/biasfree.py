"""The last layer without a bias: the label's softmax equation fixes the unknown factor."""

from __future__ import annotations

import torch
from torch import Tensor


def last_input(weight: Tensor, gradient: Tensor, label: int) -> tuple[Tensor, str]:
    """``δ = p - y`` ``[k]`` of a last linear layer without a bias, for softmax cross-entropy.

    ``∂W = δ hᵀ`` has rank one: ``h = c v`` with a known direction ``v``. The factor ``c`` solves
    ``softmax(c W v) - y = ∂W v / c``: one unknown, ``k`` equations, searched on a grid over ten
    decades and both signs and then refined. One logit: ``sigmoid(c w·v) - y = ∂w·v / c``.
    """
    direction = torch.linalg.svd(gradient, full_matrices=False).Vh[0]
    logits, pull = weight @ direction, gradient @ direction

    def delta(c: Tensor) -> Tensor:
        scores = c[:, None] * logits
        if len(weight) == 1:
            return torch.sigmoid(scores) - label
        chances = scores.softmax(dim=1)
        chances[:, label] -= 1
        return chances

    def mismatch(c: Tensor) -> Tensor:
        want = pull / c[:, None]
        return (delta(c) - want).norm(dim=1) / want.norm(dim=1)

    sizes = torch.logspace(-5, 5, 2001, dtype=weight.dtype)
    grid = torch.cat([-sizes, sizes])
    best = grid[mismatch(grid).argmin()]
    width = 0.02
    for _ in range(12):
        around = best * (1 + torch.linspace(-width, width, 41, dtype=weight.dtype))
        best, width = around[mismatch(around).argmin()], width / 10
    return pull / best, "∂W = (p - y)xᵀ, its factor from softmax"
