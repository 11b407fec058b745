"""The privacy loss distribution against dp-accounting, Opacus and closed forms."""

import math

import numpy as np
import pytest

from flcourse.privacy import Accountant, Release, epsilon, gaussian_delta, gaussian_epsilon
from flcourse.privacy import pld as module
from flcourse.privacy.pld import discretise, pld_epsilon

RUNS = [  # z, q, T, δ
    (1.1, 0.01, 1000, 1e-5),
    (0.6, 0.05, 100, 1e-6),
    (2.0, 0.1, 1000, 1e-6),
    (4.0, 0.2, 5000, 1e-7),
    (1.5, 0.05, 5, 1e-9),
    (10.0, 0.5, 100, 1e-5),
    (3.0, 0.02, 300, 1e-4),
]


def google(z, q, steps, delta, *, pessimistic=True):
    peer = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    step = peer.from_gaussian_mechanism(
        z, sampling_prob=q, pessimistic_estimate=pessimistic, use_connect_dots=pessimistic,
        value_discretization_interval=min(1e-4, q / z / 100),
    )  # fmt: skip
    return step.self_compose(steps).get_epsilon_for_delta(delta)


@pytest.mark.parametrize("z, q, steps, delta", RUNS)
def test_the_truth_is_where_dp_accounting_says(z, q, steps, delta):
    ours = epsilon(z, steps, delta, q)
    assert google(z, q, steps, delta, pessimistic=False) <= ours
    above = google(z, q, steps, delta)
    # Theirs has an excess of its own; ours may be that much better.
    assert above - 1e-3 <= ours <= above + 1e-3


@pytest.mark.parametrize("z, q, steps, delta", RUNS[:3])
def test_opacus_agrees_within_its_stated_error(z, q, steps, delta):
    peer = pytest.importorskip("opacus.accountants")
    accountant = peer.PRVAccountant()
    accountant.history = [(z, q, steps)]
    assert epsilon(z, steps, delta, q) == pytest.approx(accountant.get_epsilon(delta), abs=0.011)


def test_published_settings():
    assert epsilon(1.1, 1000, 1e-5, 0.01) == pytest.approx(1.515, abs=1e-3)
    assert epsilon(1.0, 2000, 1e-9, 1e-3) == pytest.approx(0.468, abs=1e-3)


@pytest.mark.parametrize("delta", [1e-20, 1e-9, 1e-4])
@pytest.mark.parametrize("z, q", [(0.7, 0.3), (2.0, 0.05), (1.0, 1e-3), (0.3, 0.5)])
def test_one_sampled_step_has_a_closed_form(z, q, delta):
    """ln(1 + q(e^ε₀ − 1)) with ε₀ at δ/q: tight for one step (Balle, Barthe & Gaboardi 2018)."""
    exact = math.log1p(q * math.expm1(gaussian_epsilon(z, delta / q)))
    assert exact * (1 - 1e-9) <= epsilon(z, 1, delta, q) <= exact + 3e-4 * min(exact, 1.0)


def test_sampling_that_takes_nearly_everybody_is_nearly_none():
    exact = epsilon(3.0, 40, 1e-6)
    assert epsilon(3.0, 40, 1e-6, 0.9999999) == pytest.approx(exact, abs=4e-4)
    assert exact == pytest.approx(gaussian_epsilon(3.0 / math.sqrt(40), 1e-6))


@pytest.mark.parametrize("steps", [2, 60])
def test_the_grid_is_right_where_nothing_is_sampled(steps, monkeypatch):
    """Many unsampled steps through grid and FFT against the exact answer of one Gaussian."""
    exact = gaussian_epsilon(5.0 / math.sqrt(steps), 1e-7)
    release = Release(5.0, steps, 1 - 1e-12)
    assert exact * (1 - 1e-8) <= pld_epsilon([release], 1e-7) <= exact + 3e-4
    monkeypatch.setattr(module, "_EXCESS", 1e-6)
    assert exact * (1 - 1e-8) <= pld_epsilon([release], 1e-7) <= exact + 1e-6


# --- one step on the grid -----------------------------------------------------------------------


@pytest.mark.parametrize("z, q", [(0.8, 0.1), (2.0, 1.0), (1.0, 0.002)])
def test_connecting_the_dots_keeps_both_distributions_and_is_exact_at_grid_points(z, q):
    width = 0.01
    removed, added = discretise(Release(z, 7, q), width, 1e-13)
    losses = width * (removed.start + np.arange(len(removed.mass)))
    assert removed.mass.sum() + removed.infinite == pytest.approx(1, abs=1e-12)
    assert added.mass.sum() + added.infinite == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(added.mass[::-1], removed.mass * np.exp(-losses), rtol=1e-9)
    assert removed.steps == added.steps == 7
    assert removed.mass.min() >= 0
    for point in range(-removed.start, len(losses) - 1, 40):
        eps = losses[point]
        ours = (removed.mass * np.maximum(-np.expm1(eps - losses), 0)).sum() + removed.infinite
        # The row removed, one sampled step: δ = q·δ₀(ε₀) with ε₀ = ln(1 + (e^ε − 1)/q).
        exact = q * gaussian_delta(math.log1p(math.expm1(eps) / q), z)
        assert ours == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_a_coarser_grid_only_adds_to_epsilon(monkeypatch):
    found = []
    for excess in (1e-6, 1e-4, 1e-2, 0.1):
        monkeypatch.setattr(module, "_EXCESS", excess)
        found.append(epsilon(1.1, 1000, 1e-5, 0.01))
    assert found == sorted(found)
    assert found[0] < found[1] <= found[0] + 1e-4 and found[2] <= found[0] + 1e-2


@pytest.mark.parametrize("z, q", [(0.7, 0.3), (2.0, 0.05)])
def test_what_is_cut_off_is_counted_as_lost(z, q, monkeypatch):
    """A step cut where a part of δ still lies beyond: without that part, ε would be too small."""
    exact = math.log1p(q * math.expm1(gaussian_epsilon(z, 1e-6 / q)))
    whole = module._range
    monkeypatch.setattr(module, "_range", lambda release, tail: whole(release, 1e-5))
    removed, _ = discretise(Release(z, 1, q), 1e-3, 1e-5)
    assert 1e-9 < removed.infinite < 1e-6
    assert exact * (1 - 1e-9) <= epsilon(z, 1, 1e-6, q) <= exact + 3e-4
    monkeypatch.setattr(module, "_TAIL", 0.3)  # Chernoff's bound on what the window leaves out
    assert exact * 1.005 < epsilon(z, 1, 1e-6, q) < 2 * exact


# --- different releases -------------------------------------------------------------------------


def test_different_releases_compose_as_in_dp_accounting():
    peer = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    parts = [(1.2, 0.02, 200), (3.0, 1.0, 4), (0.9, 0.005, 500)]
    accountant, theirs = Accountant(), peer.identity()
    for z, q, steps in parts:
        accountant.record(z, steps, q)
        step = peer.from_gaussian_mechanism(
            z, sampling_prob=q, value_discretization_interval=1e-4, use_connect_dots=True
        )
        theirs = theirs.compose(step.self_compose(steps))
    ours, above = accountant.epsilon(1e-6), theirs.get_epsilon_for_delta(1e-6)
    assert above - 5e-4 <= ours <= above + 1e-3


def test_a_release_that_says_nothing_adds_nothing():
    alone, both = Accountant(), Accountant()
    for accountant in (alone, both):
        accountant.record(1.1, 1000, 0.01)
    both.record(1e6, 3)
    both.record(1e4, 10, 0.01)
    assert both.epsilon(1e-5) == pytest.approx(alone.epsilon(1e-5), abs=2e-4)


# --- everywhere ---------------------------------------------------------------------------------


def test_it_is_never_above_renyi_over_the_whole_range():
    rng = np.random.default_rng(3)
    for _ in range(50):
        z, q = math.exp(rng.uniform(-2, 4)), math.exp(rng.uniform(-12, 0))
        steps, delta = int(math.exp(rng.uniform(0, 12))), 10 ** rng.uniform(-14, -0.5)
        ours, renyi = (epsilon(z, steps, delta, q, method) for method in ("pld", "rdp"))
        assert 0 <= ours <= renyi * (1 + 1e-9) + 3e-7, (z, q, steps, delta)


def test_a_delta_far_below_rounding_errors_is_no_obstacle():
    """The tilt carries precision into the tail: ε grows like the Gaussian tail, down to 1e-200."""
    deltas = [10.0**-k for k in (5, 10, 20, 50, 100, 200)]
    found = [epsilon(4.0, 400, delta, 0.1) for delta in deltas]
    assert found == sorted(found)
    for ours, delta in zip(found, deltas, strict=True):
        renyi = epsilon(4.0, 400, delta, 0.1, "rdp")
        assert 0.85 * renyi < ours < renyi


def test_a_row_that_is_hardly_ever_drawn_is_protected_by_delta_alone():
    assert epsilon(0.1, 10, 2e-4, 1e-5) == 0.0
    assert epsilon(0.1, 10, 1e-5, 1e-5) > 1


def test_without_any_privacy_the_renyi_bound_stands_in():
    for z, q, steps in [(0.03, 0.5, 3), (0.3, 0.5, 10**6)]:
        found = epsilon(z, steps, 1e-5, q)
        assert 300 < found == epsilon(z, steps, 1e-5, q, "rdp") < math.inf
