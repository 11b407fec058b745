"""Auditing: a lower bound on ε that no argument about the code can talk away. Chapter 11.

Run the mechanism many times with and without one canary, guess which it was, and count how often
the guess is right. (ε, δ)-DP allows ``P(S with) ≤ e^ε · P(S without) + δ`` for every set of outputs
``S``, and the same the other way round; rates that break this for an ε refute that ε. An accountant
bounds ε from above on paper, an audit from below in fact: a claim below the audit is wrong.

Source: Jagielski, Ullman & Oprea 2020, "Auditing Differentially Private Machine Learning"; Nasr et
al. 2021, "Adversary Instantiation". The intervals: Clopper & Pearson 1934.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from flcourse.data import Client
from flcourse.privacy.clipping import Clipped, clip_rows
from flcourse.privacy.noise import gaussian_rows
from flcourse.privacy.per_sample import per_sample_gradients
from flcourse.runtime import derive_seed
from flcourse.runtime import generator as seeded_generator
from flcourse.vectors import flatten

# present, how many trials, randomness -> the attacker's scores [trials]: high says "present".
Mechanism = Callable[[bool, int, torch.Generator], Tensor]

MISTAKES = ("noise", "clip", "sampling")
_THRESHOLDS = 400


@dataclass(frozen=True)
class Audit:
    """What was counted, and the ε that it refutes.

    Attributes:
        epsilon_lower: with probability ``confidence`` the mechanism's ε at ``delta`` is at least
            this; 0 where nothing was shown.
        true_positive: share of the trials with the canary that were called so.
        false_positive: share of those without it that were.
        threshold: the score from which on "present" was said, fixed on other trials.
        trials: how many were counted with, and how many without.
        largest: what so many trials could show at best, for a mechanism without any privacy.
    """

    epsilon_lower: float
    true_positive: float
    false_positive: float
    threshold: float
    trials: int
    delta: float
    confidence: float
    largest: float

    def refutes(self, epsilon: float) -> bool:
        """Whether a claimed ε is too low to be true."""
        return self.epsilon_lower > epsilon


def audit(
    mechanism: Mechanism,
    *,
    delta: float,
    trials: int = 100_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """Run ``mechanism`` with and without its canary, and bound its ε at ``delta`` from below.

    ``2·trials`` runs choose the threshold and the kind of error to count, ``2·trials`` others are
    counted: a threshold picked on the runs that it is judged by would show too much.

    Raises ``ValueError`` for options outside their range, or scores that are NaN.
    """
    check_options(trials, delta, confidence)

    def scores(purpose: str, present: bool) -> NDArray[np.float64]:
        noise = seeded_generator(seed, "audit", purpose, int(present))
        return _scores(mechanism, present, trials, noise)

    threshold, missed = _choose(scores("choose", False), scores("choose", True), delta, confidence)
    absent, present = ((scores("count", there) >= threshold).sum() for there in (False, True))
    bounds = _bounds(np.array([present]), np.array([absent]), trials, delta, confidence)
    return Audit(
        epsilon_lower=float(bounds[int(missed)][0]),
        true_positive=float(present / trials),
        false_positive=float(absent / trials),
        threshold=float(threshold),
        trials=trials,
        delta=delta,
        confidence=confidence,
        largest=largest_epsilon(trials, delta, confidence),
    )


def largest_epsilon(trials: int, delta: float, confidence: float = 0.95) -> float:
    """The most that ``trials`` with and without can show: every guess was right.

    ``ln((p − δ) / (1 − p))`` with ``p = α^(1/trials)``, ``α = (1 − confidence)/2``: 1,000 trials
    end at 5.6, 100,000 at 10.2. Chapter 11.
    """
    check_options(trials, delta, confidence)
    sure = ((1 - confidence) / 2) ** (1 / trials)
    return math.log((sure - delta) / (1 - sure)) if sure > delta else 0.0


def gaussian_canary(
    noise_multiplier: float,
    *,
    clip_norm: float = 1.0,
    sample_rate: float = 1.0,
    steps: int = 1,
    dimension: int = 4,
    mistake: str | None = None,
) -> Mechanism:
    """``steps`` noisy sums of clipped rows; all other rows are known, the canary is ``10·C`` long.

    The score is the log-likelihood ratio of the mechanism as it is *said* to be: no other test is
    better for a correct one. All trials run side by side, through ``clip_rows`` and
    ``gaussian_rows``. ``mistake`` plants what is really seen: ``"noise"`` (σ is half of ``z·C``),
    ``"clip"`` (left out), ``"sampling"`` (accounted for, but everybody is in each step).
    """
    if mistake not in (None, *MISTAKES):
        raise ValueError(f"mistake={mistake!r} is unknown: use {', '.join(MISTAKES)} or None")
    sigma = noise_multiplier * clip_norm
    direction = torch.ones(dimension, dtype=torch.float64) / math.sqrt(dimension)

    def run(present: bool, trials: int, generator: torch.Generator) -> Tensor:
        rows = (10 * clip_norm * float(present)) * direction.expand(trials, dimension)
        bound = 10 * clip_norm if mistake == "clip" else clip_norm
        sent = clip_rows(rows, bound).rows
        z = sigma / bound / (2 if mistake == "noise" else 1)
        total = torch.zeros(trials, dtype=torch.float64)
        for _ in range(steps):
            coins = torch.rand(trials, 1, generator=generator, dtype=torch.float64)
            drawn = sent * (coins < (1.0 if mistake == "sampling" else sample_rate))
            seen = gaussian_rows(Clipped(drawn, bound), z, generator) @ direction
            ratio = (2 * clip_norm * seen - clip_norm**2) / (2 * sigma**2)
            total += _log_mixture(ratio, sample_rate)
        return total

    return run


def training_canary(
    train: Callable[[nn.Module, Client, int], None],
    model: nn.Module,
    data: Client,
    canary: tuple[Tensor, Tensor],
) -> Mechanism:
    """Train from ``model`` on ``data`` with or without one more example; score where it went.

    ``train(model, data, seed)`` trains in place; ``canary`` is an input ``[...]`` and a label. The
    score is how far the weights moved along the canary's own step, ``−⟨w_T − w_0, ∇loss⟩``. One
    training run a trial, so a few hundred trials of a small model: what they can show ends early
    (``largest_epsilon``), and an adversary who sees every step may see more.
    """
    image, label = canary[0][None], torch.as_tensor(canary[1]).reshape(1)
    more = Client(data.index, torch.cat([data.inputs, image]), torch.cat([data.labels, label]))
    start, gradient = flatten(model), per_sample_gradients(model, None, image, label)[0]

    def run(present: bool, trials: int, generator: torch.Generator) -> Tensor:
        base = int(torch.randint(2**62, (1,), generator=generator))
        scores = []
        for number in range(trials):
            trained = copy.deepcopy(model)
            train(trained, more if present else data, derive_seed(base, "trial", number))
            scores.append((start - flatten(trained)) @ gradient)
        return torch.stack(scores)

    return run


def check_options(trials: int, delta: float, confidence: float) -> None:
    """Raise ``ValueError`` for options outside their range."""
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1")
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta} must lie in [0, 1)")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in (0, 1)")


def _scores(
    mechanism: Mechanism, present: bool, trials: int, generator: torch.Generator
) -> NDArray[np.float64]:
    scores = mechanism(present, trials, generator).double().cpu().numpy()
    if scores.shape != (trials,) or np.isnan(scores).any():
        raise ValueError(
            f"the mechanism must give {trials} scores without NaN, got shape {list(scores.shape)}"
        )
    return scores


def _choose(
    absent: NDArray[np.float64], present: NDArray[np.float64], delta: float, confidence: float
) -> tuple[float, bool]:
    """The threshold that would have shown most, and whether it is misses that show it.

    Quantiles of both sides together, close at the ends, where large ε show.
    """
    trials = len(absent)
    both = np.sort(np.concatenate([absent, present]))
    ends = np.geomspace(1, len(both) / 2, _THRESHOLDS // 2).astype(int)
    candidates = both[np.unique(np.concatenate([ends - 1, len(both) - ends]))]
    with_it, without = (
        trials - np.searchsorted(np.sort(scores), candidates) for scores in (present, absent)
    )
    alarms, misses = _bounds(with_it, without, trials, delta, confidence)
    missed = bool(misses.max() > alarms.max())
    return float(candidates[(misses if missed else alarms).argmax()]), missed


def _bounds(
    present: NDArray[np.int64],
    absent: NDArray[np.int64],
    trials: int,
    delta: float,
    confidence: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower bounds on ε from counts above the threshold: by the alarms, and by the misses."""
    shown = []
    for often, rare in ((present, absent), (trials - absent, trials - present)):
        low, high = _at_least(often, trials, confidence), _at_most(rare, trials, confidence)
        shown.append(np.log(np.maximum((low - delta) / high, 1.0)))
    return shown[0], shown[1]


def _at_least(count: NDArray[np.int64], trials: int, confidence: float) -> NDArray[np.float64]:
    """Clopper and Pearson's lower limit of a chance, missed with probability (1 − confidence)/2."""
    miss = (1 - confidence) / 2
    limit: NDArray[np.float64] = stats.beta.ppf(miss, np.maximum(count, 1), trials - count + 1)
    return np.where(count > 0, limit, 0.0)


def _at_most(count: NDArray[np.int64], trials: int, confidence: float) -> NDArray[np.float64]:
    return 1 - _at_least(trials - count, trials, confidence)


def _log_mixture(ratio: Tensor, rate: float) -> Tensor:
    """``ln(1 − q + q·e^ratio)``."""
    if rate == 1:
        return ratio
    return torch.logaddexp(torch.tensor(math.log1p(-rate)).double(), math.log(rate) + ratio)
