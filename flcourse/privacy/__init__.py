"""Differential privacy: bound what one participant can change, add noise, count what it cost.

    clipped = clip_rows(rows, clip_norm=1.0)
    total = gaussian_sum(clipped, noise_multiplier, generator)

The noise multiplier is ``z = σ/C`` everywhere. Chapters 10, 11 and 12.
"""

from flcourse.privacy.adaptive import AdaptiveClip
from flcourse.privacy.clipping import Clipped, clip_layers, clip_rows
from flcourse.privacy.federated import DPFedAvg, sample_poisson, train_private
from flcourse.privacy.noise import (
    SecureNoise,
    gaussian_rows,
    gaussian_sum,
    laplace_rows,
    laplace_sum,
)

__all__ = [
    "AdaptiveClip",
    "Clipped",
    "DPFedAvg",
    "SecureNoise",
    "clip_layers",
    "clip_rows",
    "gaussian_rows",
    "gaussian_sum",
    "laplace_rows",
    "laplace_sum",
    "sample_poisson",
    "train_private",
]
