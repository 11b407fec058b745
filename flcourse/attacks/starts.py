"""Where a search begins, and the box that it may not leave. Chapters 03 and 06."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flcourse.attacks.basis import Basis, fourier_noise
from flcourse.attacks.optimise import Project, Vector
from flcourse.attacks.presets import Options
from flcourse.attacks.types import Leak
from flcourse.runtime import generator

_BREAK = 0.001  # standard deviations that set pictures of one label apart in a grey start


def start_point(
    leak: Leak, basis: Basis, options: Options, seed: int, restart: int, num_logits: int
) -> Vector:
    """The first point of one restart: pictures as unknowns, then label logits from N(0, 1)."""
    point = basis.encode(_start_pictures(leak, options, seed, restart)).flatten()
    rng = generator(seed, "start labels", restart)
    logits = torch.randn(num_logits, generator=rng, dtype=torch.float64)
    return np.asarray(torch.cat([point, logits]).numpy(), dtype=np.float64)


def _start_pictures(leak: Leak, options: Options, seed: int, restart: int) -> Tensor:
    shape = (leak.batch_size, *leak.image_shape)
    if isinstance(options.start, Tensor):
        return _given_start(options.start, shape, restart)
    rng = generator(seed, "start", restart)
    scale = options.start_scale
    if options.start == "normal":
        return scale * torch.randn(shape, generator=rng).double()
    if options.start == "uniform":
        return scale * torch.rand(shape, generator=rng).double()
    if len(leak.image_shape) != 3:
        return 0.5 + 0.1 * scale * torch.randn(shape, generator=rng).double()
    noise = torch.stack([fourier_noise(leak.image_shape, rng) - 0.5 for _ in range(shape[0])])
    if options.start == "fourier":
        return 0.5 + scale * noise
    # Grey. A second restart must begin elsewhere, and two pictures of one label must not begin
    # equal: their gradients would stay equal for ever.
    spread = 0.0 if restart == 0 and leak.batch_size == 1 else _BREAK if restart == 0 else 1.0
    return 0.5 + spread * scale * noise


def _given_start(start: Tensor, shape: tuple[int, ...], restart: int) -> Tensor:
    start = start.detach().cpu().double()
    if tuple(start.shape) == shape:
        return start
    if tuple(start.shape[1:]) == shape and restart < len(start):
        return start[restart]
    raise ValueError(
        f"start of shape {list(start.shape)} does not fit: give {list(shape)}, or one for each of "
        "the restarts"
    )


def box(leak: Leak, basis: Basis) -> Project:
    """Put an unknown's pictures back into [0, 1]; label logits stay."""
    shape = (leak.batch_size, *leak.image_shape)
    size = int(np.prod(shape))

    def project(point: Vector) -> Vector:
        pictures = basis.decode(torch.from_numpy(point[:size]).reshape(shape))
        if float(pictures.min()) >= 0 and float(pictures.max()) <= 1:
            return point
        inside = basis.encode(pictures.clamp(0, 1)).flatten().numpy()
        return np.concatenate([inside, point[size:]])

    return project
