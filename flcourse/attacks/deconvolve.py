"""The input of a convolution, from its weight gradient and its output: least squares. Chapter 05.

With ``z = conv(x)`` and ``δ = ∂loss/∂z``, the weight gradient is linear in the input:
``∂W[o, i, a, b] = Σ_uv δ[o, u, v] · x[i, su + a, sv + b]``. So ``∂W_i = G x_i`` for every input
channel ``i``, with one matrix ``G`` of shifted copies of ``δ``. Where ``G`` lacks rank, the
equations ``conv(x) = z`` of the forward pass fill its null space.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Singular values of G, as parts of the largest: from FIRM on, its equations hold exactly; below,
# where rounding of 1e-7 is blown up, they weigh less and less; below RANK they are no equations.
FIRM = 1e-3
RANK = 1e-6


@dataclass(frozen=True)
class Solution:
    """``x`` ``[i, h, w]``; relative residuals of both systems; equations against unknowns."""

    x: Tensor
    gradient_residual: float
    forward_residual: float
    rank: int
    equations: int
    unknowns: int
    iterations: int


@dataclass(frozen=True)
class Rows:
    """Equations ``rows · x_i = values_i`` on every channel: ``[r, n]`` and ``[i, r]``."""

    rows: Tensor
    values: Tensor


def solve_input(
    conv: nn.Conv2d,
    gradient: Tensor | None,
    delta: Tensor,
    z: Tensor,
    trust: Tensor,
    in_shape: tuple[int, ...],
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 3000,
) -> Solution:
    """The ``x`` with ``G x_i = ∂W_i``, and ``conv(x) = z`` in the null space of ``G``; in float64.

    ``gradient`` is ``∂W`` ``[o, i, kh, kw]``; ``delta``, ``z`` and ``trust`` are ``[o, h, w]``, the
    last in [0, 1]: 0 where ``z`` is not known. ``G`` is whitened (left as it is, conjugate
    gradients need thousands of steps where its condition is in the hundreds), and the steps then
    stay inside its null space. Of several solutions, the smallest.
    """
    bias = conv.bias.detach()[:, None, None] if conv.bias is not None else 0.0
    firm, soft = whiten(shift_matrix(conv, delta, in_shape), gradient, in_shape[0])
    weight = float(conv.weight.detach().flatten(1).norm(dim=1).mean())
    soft = Rows(weight * soft.rows, weight * soft.values)
    x, iterations = _descend(
        conv, trust, trust * (z - bias), firm, soft, in_shape, tolerance, max_iterations
    )
    off = trust * (conv_only(conv, x) - (z - bias))
    missing = 0.0
    if gradient is not None:
        missing = relative(weight_gradient(conv, x, delta) - gradient, gradient)
    rank = len(firm.rows) + len(soft.rows)
    equations = rank * in_shape[0] + int((trust > 0).sum())
    if rank < in_shape[1] * in_shape[2]:
        # Σ_i,a,b w_p ∂W_o = Σ δ_o (z_p - b_p) for every pair of outputs: told by both systems.
        equations -= conv.out_channels**2
    forward = relative(off, trust * (z - bias))
    return Solution(x, missing, forward, rank, equations, x.numel(), iterations)


def shift_matrix(conv: nn.Conv2d, delta: Tensor, in_shape: tuple[int, ...]) -> Tensor:
    """``G`` ``[o·kh·kw, h·w]``: row ``(o, a, b)`` is ``δ_o`` where the filter's ``(a, b)`` looked.

    Formula: ``(G x_i)[o, a, b] = ∂W[o, i, a, b]``.
    """
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    ph, pw = pads(conv)
    _, height, width = in_shape
    out, down, across = delta.shape
    matrix = delta.new_zeros(out, kh, kw, height + 2 * ph, width + 2 * pw)
    rows, columns = (down - 1) * sh + 1, (across - 1) * sw + 1
    for a in range(kh):
        for b in range(kw):
            top, left = a * dh, b * dw
            matrix[:, a, b, top : top + rows : sh, left : left + columns : sw] = delta
    inside = matrix[..., ph : ph + height, pw : pw + width]
    return inside.reshape(out * kh * kw, height * width)


def conv_only(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution without its bias, ``[i, h, w]`` -> ``[o, h, w]``."""
    weight = conv.weight.detach()
    return F.conv2d(x[None], weight, None, conv.stride, pads(conv), conv.dilation)[0]


def conv_back(conv: nn.Conv2d, delta: Tensor, in_shape: tuple[int, ...]) -> Tensor:
    """The transposed convolution: the loss's gradient by the input, from the one by the output."""
    uncovered = [
        in_shape[1 + axis]
        + 2 * pads(conv)[axis]
        - (delta.shape[1 + axis] - 1) * conv.stride[axis]
        - conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        - 1
        for axis in (0, 1)
    ]
    weight = conv.weight.detach()
    return F.conv_transpose2d(
        delta[None], weight, None, conv.stride, pads(conv), uncovered, 1, conv.dilation
    )[0]


def weight_gradient(conv: nn.Conv2d, x: Tensor, delta: Tensor) -> Tensor:
    """``∂W`` ``[o, i, kh, kw]`` from the input and the loss's gradient by the output."""
    (kh, kw), where = conv.kernel_size, pads(conv)
    # The roles of stride and dilation swap: δ is the filter that slides over x.
    full = F.conv2d(x[:, None], delta[:, None], None, conv.dilation, where, conv.stride)
    return full.transpose(0, 1)[:, :, :kh, :kw]


def pads(conv: nn.Conv2d) -> tuple[int, int]:
    """Zeros put on each side, ``(vertical, horizontal)``."""
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return 0, 0
        (kh, kw), (dh, dw) = conv.kernel_size, conv.dilation
        return dh * (kh - 1) // 2, dw * (kw - 1) // 2
    return conv.padding[0], conv.padding[1]


def relative(error: Tensor, of: Tensor) -> float:
    """``‖error‖ / ‖of‖``; the plain length where ``of`` is zero."""
    size = float(of.norm())
    return float(error.norm()) / size if size > 0 else float(error.norm())


def whiten(
    matrix: Tensor, gradient: Tensor | None, channels: int, least: float = FIRM
) -> tuple[Rows, Rows]:
    """``G x_i = ∂W_i`` as orthonormal rows: those that hold firmly, and those weighed down.

    ``least`` is the part of the largest singular value that a firm equation has.
    """
    if gradient is None or not bool(matrix.any()):
        none = Rows(matrix.new_zeros(0, matrix.shape[1]), matrix.new_zeros(channels, 0))
        return none, none
    right = gradient.transpose(0, 1).flatten(1).reshape(channels, -1)  # [i, o·kh·kw]
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, basis = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    part = (squares.clamp(min=0) / squares.max()).sqrt()
    kept = part > RANK
    part, basis, size = part[kept], basis[:, kept], squares.max().sqrt()
    if wide:
        rows = (basis.T @ matrix) / (part * size)[:, None]
        values = right @ basis / (part * size)
    else:
        rows = basis.T
        values = (right @ matrix) @ basis / (part * size).square()
    firm = part > least
    weight = part[~firm] / least
    return Rows(rows[firm].contiguous(), values[:, firm]), Rows(
        weight[:, None] * rows[~firm], weight * values[:, ~firm]
    )


def _descend(
    conv: nn.Conv2d,
    trust: Tensor,
    target: Tensor,
    firm: Rows,
    soft: Rows,
    in_shape: tuple[int, ...],
    tolerance: float,
    most: int,
) -> tuple[Tensor, int]:
    """CGLS (Björck 1996, section 7.4) on ``[trust·conv ; soft]``, inside the null space of firm."""

    # Half the memory to read in each step; a direction that leaves the null space by 1e-7 of its
    # length is as good as the gradient, which was rounded to that.
    single = firm.rows.float()

    def back(off: Tensor, soft_off: Tensor) -> Tensor:
        full = conv_back(conv, trust * off, in_shape).flatten(1) + soft_off @ soft.rows
        return full - ((full.float() @ single.T) @ single).double()

    x = firm.values @ firm.rows
    start = float(conv_back(conv, trust * target, in_shape).square().sum())
    off, soft_off = target - trust * conv_only(conv, x.reshape(in_shape)), soft.values
    direction = slope = back(off, soft_off)
    size, steps = float(slope.square().sum()), 0
    while steps < most and size > tolerance**2 * start:
        steps += 1
        image = trust * conv_only(conv, direction.reshape(in_shape))
        soft_image = direction @ soft.rows.T
        step = size / float(image.square().sum() + soft_image.square().sum())
        x = x + step * direction
        off, soft_off = off - step * image, soft_off - step * soft_image
        slope = back(off, soft_off)
        size, before = float(slope.square().sum()), size
        direction = slope + (size / before) * direction
    return x.reshape(in_shape), steps
