"""Differential privacy: bound what one participant can change, add noise, count what it cost.

    clipped = clip_rows(rows, clip_norm=1.0)
    total = gaussian_sum(clipped, noise_multiplier, generator)

The noise multiplier is ``z = σ/C`` everywhere. Chapters 10, 11 and 12.
"""

from flcourse.privacy.accounting import METHODS, Accountant, Release, epsilon, noise_multiplier
from flcourse.privacy.adaptive import AdaptiveClip
from flcourse.privacy.audit import (
    Audit,
    audit,
    gaussian_canary,
    largest_epsilon,
    training_canary,
)
from flcourse.privacy.budget import Budget, BudgetExceededError
from flcourse.privacy.clipping import Clipped, ClippedSum, clip_layers, clip_rows
from flcourse.privacy.dpsgd import (
    clipped_gradients,
    dpsgd_updates,
    private_gradient,
    private_step,
    train_dpsgd,
)
from flcourse.privacy.federated import DPFedAvg, sample_poisson, train_private
from flcourse.privacy.gaussian import (
    classic_epsilon,
    classic_noise_multiplier,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    trade_off,
)
from flcourse.privacy.local_dp import (
    Reports,
    k_randomised_response,
    randomised_response,
    unary_encoding,
)
from flcourse.privacy.noise import (
    SecureNoise,
    gaussian_rows,
    gaussian_sum,
    laplace_rows,
    laplace_sum,
)
from flcourse.privacy.per_sample import per_sample_gradients

__all__ = [
    "METHODS",
    "Accountant",
    "AdaptiveClip",
    "Audit",
    "Budget",
    "BudgetExceededError",
    "Clipped",
    "ClippedSum",
    "DPFedAvg",
    "Release",
    "Reports",
    "SecureNoise",
    "audit",
    "classic_epsilon",
    "classic_noise_multiplier",
    "clip_layers",
    "clip_rows",
    "clipped_gradients",
    "dpsgd_updates",
    "epsilon",
    "gaussian_canary",
    "gaussian_delta",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "gaussian_rows",
    "gaussian_sum",
    "k_randomised_response",
    "laplace_rows",
    "laplace_sum",
    "largest_epsilon",
    "noise_multiplier",
    "per_sample_gradients",
    "private_gradient",
    "private_step",
    "randomised_response",
    "sample_poisson",
    "trade_off",
    "train_dpsgd",
    "train_private",
    "training_canary",
    "unary_encoding",
]
