"""The audit: its statistics against exact ones, honest mechanisms pass, planted mistakes do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from flcourse.data import Client
from flcourse.models import Logistic
from flcourse.privacy import Audit, audit, epsilon, gaussian_canary, gaussian_epsilon, train_dpsgd
from flcourse.privacy.audit import MISTAKES, _bounds, largest_epsilon, training_canary
from flcourse.runtime import generator

DELTA = 1e-5
CLAIMS = [(1.0, 1.0, 1), (1.5, 1.0, 1), (2.0, 0.3, 5)]  # z, q, T


# --- the statistics -----------------------------------------------------------------------------


def test_a_thousand_trials_end_at_5_6_and_a_hundred_thousand_at_10_2() -> None:
    assert largest_epsilon(1000, DELTA) == pytest.approx(5.6, abs=0.01)
    assert largest_epsilon(100_000, DELTA) == pytest.approx(10.2, abs=0.01)
    assert audit(_no_privacy, delta=DELTA, trials=1000).epsilon_lower == pytest.approx(
        largest_epsilon(1000, DELTA)
    )
    assert largest_epsilon(1, 0.5) == 0


def _no_privacy(present: bool, trials: int, generator: torch.Generator) -> Tensor:
    return torch.full((trials,), float(present))


def test_bounds_are_clopper_and_pearsons() -> None:
    """Against scipy's exact interval of a binomial chance."""
    present, absent, trials = 700, 40, 1000
    low = stats.binomtest(present, trials).proportion_ci(0.95, "exact").low
    high = stats.binomtest(absent, trials).proportion_ci(0.95, "exact").high
    alarms, misses = _bounds(np.array([present]), np.array([absent]), trials, 1e-3, 0.95)
    assert float(alarms[0]) == pytest.approx(math.log((low - 1e-3) / high))
    low = stats.binomtest(trials - absent, trials).proportion_ci(0.95, "exact").low
    high = stats.binomtest(trials - present, trials).proportion_ci(0.95, "exact").high
    assert float(misses[0]) == pytest.approx(math.log((low - 1e-3) / high))


def test_a_mechanism_that_ignores_the_canary_is_hardly_ever_refuted() -> None:
    """At a confidence of 95 % the bound is above the truth, 0, in at most one run of twenty."""

    def silent(present: bool, trials: int, generator: torch.Generator) -> Tensor:
        return torch.randn(trials, generator=generator)

    wrong = sum(audit(silent, delta=0, trials=200, seed=s).epsilon_lower > 0 for s in range(200))
    assert stats.binomtest(wrong, 200, 0.05, alternative="greater").pvalue > 0.01


# --- the mechanism in low dimension -------------------------------------------------------------


@pytest.mark.parametrize(("z", "q", "steps"), CLAIMS)
def test_an_honest_mechanism_passes_and_the_bound_is_not_empty(
    z: float, q: float, steps: int
) -> None:
    claim = epsilon(z, steps, DELTA, q)
    for seed in range(3):
        found = audit(gaussian_canary(z, sample_rate=q, steps=steps), delta=DELTA, seed=seed)
        assert not found.refutes(claim)
        assert found.epsilon_lower > 0.4 * claim


@pytest.mark.parametrize(
    ("z", "q", "steps", "mistake"),
    # Where everybody takes part, sampling cannot be forgotten.
    [(*claim, m) for claim in CLAIMS for m in MISTAKES if m != "sampling" or claim[1] < 1],
)
def test_each_planted_mistake_is_caught(z: float, q: float, steps: int, mistake: str) -> None:
    claim = epsilon(z, steps, DELTA, q)
    for seed in range(2):
        canary = gaussian_canary(z, sample_rate=q, steps=steps, mistake=mistake)
        assert audit(canary, delta=DELTA, seed=seed).refutes(claim)


def test_the_bound_never_passes_the_exact_epsilon_and_grows_with_the_trials() -> None:
    few, many = (
        audit(gaussian_canary(1.0), delta=DELTA, trials=count).epsilon_lower
        for count in (1000, 200_000)
    )
    assert few < many < gaussian_epsilon(1.0, DELTA)
    # The best threshold's true rates give what no number of trials exceeds.
    grid = np.linspace(-4, 4, 2001)
    best = np.log((stats.norm.sf(grid - 1) - DELTA) / stats.norm.sf(grid))
    assert many < np.nanmax(best) + 0.02


def test_the_same_seed_gives_the_same_audit() -> None:
    first, again, other = (
        audit(gaussian_canary(1.0), delta=DELTA, trials=2000, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert isinstance(first, Audit) and first.trials == 2000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 0}, "trials=0"),
        ({"delta": 1.0}, "delta=1"),
        ({"delta": math.nan}, "delta=nan"),
        ({"confidence": 1.0}, "confidence=1"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        audit(gaussian_canary(1.0), **({"delta": DELTA} | options))


def test_broken_mechanisms_are_refused() -> None:
    for scores in (torch.full((10,), math.nan), torch.zeros(9)):
        with pytest.raises(ValueError, match="scores without NaN"):
            audit(lambda present, trials, noise, s=scores: s, delta=DELTA, trials=10)
    with pytest.raises(ValueError, match="mistake='seed' is unknown"):
        gaussian_canary(1.0, mistake="seed")


# --- a small training run -----------------------------------------------------------------------

Z, RATE, STEPS, LOOSE = 1.5, 0.1, 3, 1e-2  # z, q, T, delta: a claim of 0.17
RUNS: dict[str, dict[str, float]] = {
    "honest": {},
    "noise divided by the sample count": {"noise_multiplier": Z / 10},
    "clip missing": {"clip_norm": 100.0, "noise_multiplier": Z / 100},
    "sampling not done": {"sample_rate": 1.0},
}


def _training(changed: dict[str, float]) -> Callable[[nn.Module, Client, int], None]:
    said = {"clip_norm": 1.0, "noise_multiplier": Z, "sample_rate": RATE}

    def train(model: nn.Module, data: Client, seed: int) -> None:
        train_dpsgd(
            model, data, steps=STEPS, lr=0.05, expected_batch_size=1.0, seed=seed, method="ghost",
            **(said | changed),
        )  # fmt: skip

    return train


@pytest.mark.parametrize("name", RUNS)
def test_training_runs_are_audited_too(name: str) -> None:
    draws = generator(0, "data")
    inputs, labels = 0.2 * torch.randn(10, 8, generator=draws), torch.arange(10) % 3
    canary = (torch.full((8,), 5.0), torch.tensor(2))
    data, train = Client(0, inputs, labels), _training(RUNS[name])
    mechanism = training_canary(train, Logistic(8, 3), data, canary)
    found = audit(mechanism, delta=LOOSE, trials=200)
    claim = epsilon(Z, STEPS, LOOSE, RATE)
    assert claim < 0.2
    if name == "honest":
        assert not found.refutes(claim)
    else:
        assert found.epsilon_lower > claim + 0.5  # seen 1.2 and more
