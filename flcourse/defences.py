"""Simple defences on messages, the ones that people try first: which of them only look like one.

A row function takes one message ``[d]`` or many ``[n, d]``, treats each message on its own, and
returns the same shape, so it plugs into ``flcourse.fedavg`` as (part of) a ``transform``. A message
of zeros stays zeros (but for noise); one that holds NaN or infinity is refused, since
``min(1, C/‖row‖)`` lets NaN pass. ``SIMPLE_DEFENCES`` are the ten that chapters 04 and 06 compare.

With clipping and noise together this is the mechanism of differential privacy, but no accounting
is done here: how much privacy a noise buys is the subject of chapter 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from flcourse.attacks.types import Leak
from flcourse.runtime import generator as seeded_generator

Defence = Callable[[Leak, int], Leak]


def clip(row: Tensor, clip_norm: float) -> Tensor:
    """``row · min(1, C / ‖row‖)`` with the Euclidean norm of each message: at most ``C`` long.

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1. Chapter 06.
    Raises ``ValueError`` if ``clip_norm`` is not positive, or the row is not finite.
    """
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise ValueError(f"clip_norm={clip_norm} must be a positive number")
    norms = _checked(row).double().norm(dim=-1, keepdim=True)
    return row * (clip_norm / norms.clamp(min=clip_norm)).to(row)


def gaussian(row: Tensor, noise_std: float, generator: torch.Generator) -> Tensor:
    """``row + N(0, noise_std²)`` on every value, in the row's own units.

    Drawn on the CPU from ``generator``, then moved: a GPU adds the same noise. Chapter 06.
    Raises ``ValueError`` if ``noise_std`` is negative or not finite, or the row is not finite.
    """
    if not (noise_std >= 0 and math.isfinite(noise_std)):
        raise ValueError(f"noise_std={noise_std} must be 0 or more")
    noise = torch.randn(_checked(row).shape, generator=generator, dtype=row.dtype)
    return row + noise_std * noise.to(row.device)


def prune(row: Tensor, keep: float) -> Tensor:
    """Keep the ``max(round(keep · d), 1)`` largest magnitudes of each message, zero the others.

    Source: Aji & Heafield 2017, "Sparse Communication for Distributed Gradient Descent". Chapter
    06. Raises ``ValueError`` if ``keep`` is outside (0, 1], or the row is not finite.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]: the part of values that is sent")
    size = _checked(row).shape[-1]
    kept = row.abs().topk(max(round(keep * size), 1), dim=-1).indices
    return torch.zeros_like(row).scatter(-1, kept, row.gather(-1, kept))


def quantise(row: Tensor, bits: int) -> Tensor:
    """Round each value to one of ``2^bits - 1`` equal steps between ``-max|row|`` and ``max|row|``.

    ``s·round(row/s)`` with ``s = max|row| / (2^(bits-1) - 1)``: uniform, symmetric, one scale per
    message, zero stays zero. Chapter 06.
    Raises ``ValueError`` if ``bits`` is outside 2 to 16, or the row is not finite.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits} must lie in 2 to 16; for one bit a value use sign")
    scale = _checked(row).abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (row / scale).round() * scale, row)


def sign(row: Tensor) -> Tensor:
    """One bit a value: ``sign(row) · mean|row|``, the mean over each message; zero stays zero.

    Source: Bernstein et al. 2018, "signSGD"; the scale as Karimireddy et al. 2019, "Error Feedback
    Fixes SignSGD", section 2. Chapter 06. Raises ``ValueError`` if the row is not finite.
    """
    return _checked(row).sign() * row.abs().mean(dim=-1, keepdim=True)


# --- the ten that chapters 04 and 06 compare ----------------------------------------------------


def _clipped(leak: Leak, seed: int) -> Leak:
    return leak.with_row(clip(leak.row, 1.0), clip_norm=1.0)


def _noisy(leak: Leak, seed: int, *, noise_std: float) -> Leak:
    noise = seeded_generator(seed, "defence", "gaussian")
    row = gaussian(clip(leak.row, 1.0), noise_std, noise)
    return leak.with_row(row, clip_norm=1.0, noise_std=noise_std)


def _pruned(leak: Leak, seed: int, *, keep: float) -> Leak:
    return leak.with_row(prune(leak.row, keep))


def _quantised(leak: Leak, seed: int, *, bits: int) -> Leak:
    return leak.with_row(quantise(leak.row, bits))


def _signs(leak: Leak, seed: int) -> Leak:
    return leak.with_row(sign(leak.row))


# Name -> (leak, seed) -> leak, in the order of the chapters' tables. Noise is added to a message
# clipped to length 1, with the standard deviation that stands in the name. Clip norm and noise are
# public, so they stand in the defended leak; what was pruned or rounded can be seen in the values.
SIMPLE_DEFENCES: Mapping[str, Defence] = MappingProxyType(
    {
        "clip to 1": _clipped,
        "noise 1e-3": partial(_noisy, noise_std=1e-3),
        "noise 1e-2": partial(_noisy, noise_std=1e-2),
        "noise 3e-2": partial(_noisy, noise_std=3e-2),
        "noise 1e-1": partial(_noisy, noise_std=1e-1),
        "keep 10 %": partial(_pruned, keep=0.1),
        "keep 1 %": partial(_pruned, keep=0.01),
        "8 bits": partial(_quantised, bits=8),
        "4 bits": partial(_quantised, bits=4),
        "sign": _signs,
    }
)


def _checked(row: Tensor) -> Tensor:
    if row.dim() not in (1, 2) or not row.shape[-1]:
        raise ValueError(f"expected a message [d] or messages [n, d], got {list(row.shape)}")
    if not row.is_floating_point():
        raise ValueError(f"a message of {row.dtype}: defences here work on floating point")
    if not bool(torch.isfinite(row).all()):
        bad = (~torch.isfinite(row)).reshape(-1, row.shape[-1]).any(dim=1).nonzero().flatten()
        raise ValueError(
            f"message(s) {bad.tolist()} hold NaN or infinity, which no defence here makes safe: "
            "leave such clients out first"
        )
    return row
