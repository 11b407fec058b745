"""Calibration, composition and the accountant: against closed forms, published numbers, peers."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from flcourse.privacy import (
    METHODS,
    Accountant,
    Release,
    classic_epsilon,
    classic_noise_multiplier,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
    noise_multiplier,
    trade_off,
)
from flcourse.privacy.composition import advanced_epsilon, basic_epsilon
from flcourse.privacy.rdp import best_order, fixed_size_rdp, rdp, rdp_epsilon

UNSAMPLED = ("pld", "gdp", "rdp", "zcdp", "advanced", "basic")


# --- one noisy sum ------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_delta_is_the_integral_of_what_exceeds_the_likelihood_bound(z, eps):
    def excess(x):
        return max(norm.pdf(x, 1, z) - math.exp(eps) * norm.pdf(x, 0, z), 0.0)

    edge = eps * z**2 + 0.5  # above, the first is the larger
    assert gaussian_delta(eps, z) == pytest.approx(quad(excess, edge, 1 + 12 * z)[0], rel=1e-7)


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("eps", [1e-3, 0.5, 8.0, 64.0])
def test_epsilon_delta_and_noise_invert_each_other(eps, delta):
    z = gaussian_noise_multiplier(eps, delta)
    assert gaussian_delta(eps, z) == pytest.approx(delta, rel=1e-8)
    assert gaussian_delta(eps, z) <= delta
    assert gaussian_epsilon(z, delta) == pytest.approx(eps, rel=1e-8)


def test_large_and_tiny_values_stay_finite():
    assert gaussian_epsilon(0.011, 1e-5) == pytest.approx(4519, abs=1)
    assert gaussian_epsilon(1e6, 1e-5) == 0.0
    assert gaussian_delta(3000.0, 0.011) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "claimed, true", [(2, 1.61), (4, 3.51), (8, 7.91), (16, 18.9), (64, 142.7)]
)
def test_the_classic_formula_beyond_its_theorem_promises_what_it_does_not_keep(claimed, true):
    z = classic_noise_multiplier(claimed, 1e-5, beyond_theorem=True)
    assert gaussian_epsilon(z, 1e-5) == pytest.approx(true, rel=5e-3)
    with pytest.raises(ValueError, match=r"ε < 1.*gaussian_noise_multiplier"):
        classic_noise_multiplier(claimed, 1e-5)


@pytest.mark.parametrize("eps", [0.05, 0.5, 0.999])
def test_within_its_theorem_the_classic_formula_is_safe(eps):
    z = classic_noise_multiplier(eps, 1e-5)
    assert gaussian_epsilon(z, 1e-5) < eps
    assert classic_epsilon(z, 1e-5) == pytest.approx(eps)


def test_the_trade_off_curve_is_the_best_test_on_draws():
    rng = np.random.default_rng(0)
    z, threshold = 1.3, 0.8
    out, inside = rng.normal(0, z, 200_000), rng.normal(1, z, 200_000)
    false_alarms, missed = (out > threshold).mean(), (inside <= threshold).mean()
    assert trade_off(z, false_alarms) == pytest.approx(missed, abs=0.005)
    assert trade_off(z, [0.0, 1.0]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        trade_off(z, 1.5)


# --- published and hand-made numbers ------------------------------------------------------------


def test_the_worked_example_of_basic_composition():
    """C = 1.5, ε = 1, δ = 5e-6 over 50 rounds: ε_t = 0.02, δ_t = 1e-7."""
    sigma = 1.5 * noise_multiplier(1, 50, 5e-6, method="basic")
    assert sigma == pytest.approx(1.5 * math.sqrt(2 * math.log(1.25e7)) / 0.02, rel=1e-6)
    assert sigma == pytest.approx(428.8, abs=0.05)
    assert epsilon(sigma / 1.5, 50, 5e-6) == pytest.approx(0.0788, abs=5e-5)
    assert 1.5 * noise_multiplier(1, 50, 5e-6) == pytest.approx(41.2, abs=0.05)


@pytest.mark.parametrize(
    "goal, published, true, enough",
    [
        (64, 0.597, 59.2, 0.567),
        (16, 1.707, 14.0, 1.539),
        (8, 3.09, 6.76, 2.684),
        (4, 5.796, 3.25, 4.835),
        (1, 21.916, 0.742, 16.684),
    ],
)
def test_the_published_table_of_dp_fedavg_is_zcdp(goal, published, true, enough):
    z = noise_multiplier(goal, 20, 1e-5, method="zcdp")
    assert z == pytest.approx(published, abs=3e-3)
    assert epsilon(z, 20, 1e-5) == pytest.approx(true, rel=2e-3)
    assert noise_multiplier(goal, 20, 1e-5) == pytest.approx(enough, abs=1e-3)


def test_simple_composition_of_the_same_table():
    assert noise_multiplier(8, 20, 1e-5, method="basic") == pytest.approx(13.57, abs=0.005)


def test_gdp_is_the_exact_answer_for_unsampled_steps():
    assert epsilon(3.0, 9, 1e-6, method="gdp") == pytest.approx(gaussian_epsilon(1.0, 1e-6))
    assert epsilon(3.0, 9, 1e-6) == pytest.approx(gaussian_epsilon(1.0, 1e-6))


def test_advanced_composition_by_hand():
    """10,000 steps, δ' = δ/2, δ_t = δ/2T, with the formula of the textbook."""
    step = math.sqrt(2 * math.log(1.25 / (1e-5 / 20_000))) / 2000
    total = math.sqrt(2 * 10_000 * math.log(2e5)) * step + 10_000 * step * math.expm1(step)
    assert epsilon(2000, 10_000, 1e-5, method="advanced") == pytest.approx(total)
    assert total < epsilon(2000, 10_000, 1e-5, method="basic")


def test_basic_composition_of_sampled_steps_by_hand():
    """δ_t = 1e-6 of each of 10 steps is q·δ₀ with δ₀ = 1e-5; its ε₀ is amplified, then summed."""
    step = math.sqrt(2 * math.log(1.25 / 1e-5)) / 40
    total = 10 * math.log(1 + 0.1 * (math.exp(step) - 1))
    assert epsilon(40.0, 10, 1e-5, 0.1, "basic") == pytest.approx(total)


def test_basic_and_advanced_can_use_the_exact_step():
    releases = [Release(1.1, 10, 0.01), Release(2.0, 5)]
    for bound in (basic_epsilon, advanced_epsilon):
        with pytest.raises(ValueError, match="ε < 1"):
            bound(releases, 1e-5)
        assert bound(releases, 1e-5, per_step="exact") > epsilon(2.0, 5, 1e-5)
        with pytest.raises(ValueError, match="per_step='guess'"):
            bound(releases, 1e-5, per_step="guess")


# --- every method -------------------------------------------------------------------------------


def test_no_bound_is_below_the_exact_answer():
    exact = epsilon(30.0, 40, 1e-6, method="gdp")
    for method in UNSAMPLED:
        assert epsilon(30.0, 40, 1e-6, method=method) >= exact * (1 - 1e-9), method


@pytest.mark.parametrize("method", [*UNSAMPLED, "clt"])
def test_calibration_inverts_epsilon_on_the_safe_side(method):
    for rate in (1.0, 0.02):
        if method in (("clt",) if rate == 1 else ("gdp", "zcdp")):
            continue  # not covered
        z = noise_multiplier(0.7, 60, 1e-6, rate, method)
        found = epsilon(z, 60, 1e-6, rate, method)
        assert 0.7 * (1 - 1e-5) <= found <= 0.7, (method, rate)


@pytest.mark.parametrize("method", ["pld", "rdp", "advanced", "basic", "clt"])
def test_epsilon_falls_with_noise_and_grows_with_rate_and_steps(method):
    def at(z=20.0, steps=100, rate=0.05, delta=1e-6):
        return epsilon(z, steps, delta, rate, method)

    noises = [at(z=z) for z in (12.0, 20.0, 50.0)]
    assert noises == sorted(noises, reverse=True) and noises[0] > noises[-1]
    for grows in (
        [at(rate=q) for q in (0.01, 0.05, 0.3)],
        [at(steps=t) for t in (10, 100, 1000)],
        [at(delta=d) for d in (1e-4, 1e-6, 1e-8)],
    ):
        assert grows == sorted(grows) and grows[0] < grows[-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "change, words",
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta": math.nan}, "delta=nan"),
        ({"sample_rate": 0.0}, "sample_rate=0.0"),
        ({"sample_rate": 1.1}, "sample_rate=1.1"),
        ({"sample_rate": math.nan}, "sample_rate=nan"),
    ],
)
def test_values_that_mean_nothing_are_refused(method, change, words):
    values = {"noise_multiplier": 40.0, "steps": 10, "delta": 1e-5, "sample_rate": 0.5} | change
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        epsilon(**values, method=method)
    if "noise_multiplier" not in change:
        del values["noise_multiplier"]
        with pytest.raises(ValueError, match=words.replace(".", r"\.")):
            noise_multiplier(epsilon=1.0, **values, method=method)


@pytest.mark.parametrize(
    "method, rate, words",
    [
        ("gdp", 0.1, "sample_rate=0.1"),
        ("zcdp", 0.1, "does not amplify"),
        ("clt", 1.0, "'gdp' is exact"),
        ("magic", 1.0, "method='magic' is unknown"),
    ],
)
def test_a_method_refuses_what_its_theorem_does_not_cover(method, rate, words):
    with pytest.raises(ValueError, match=words):
        epsilon(5.0, 10, 1e-5, rate, method)
    with pytest.raises(ValueError, match=words):
        noise_multiplier(1.0, 10, 1e-5, rate, method)


def test_the_classic_formula_is_not_used_beyond_its_theorem():
    with pytest.raises(ValueError, match="proved only for ε < 1"):
        epsilon(1.0, 10, 1e-5, method="basic")
    with pytest.raises(ValueError, match=r"epsilon=100.*use 'pld'"):
        noise_multiplier(100, 20, 1e-5, method="basic")


@pytest.mark.parametrize("goal", [0.0, -1.0, math.nan, math.inf])
def test_calibration_refuses_an_epsilon_that_means_nothing(goal):
    with pytest.raises(ValueError, match="epsilon="):
        noise_multiplier(goal, 10, 1e-5)


def test_a_budget_that_any_noise_keeps_is_pointed_out():
    with pytest.raises(ValueError, match="every noise"):
        noise_multiplier(1.0, 10, 1e-3, 1e-5)


# --- Rényi --------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1e-3, 0.1, 0.9])
@pytest.mark.parametrize("z", [0.4, 1.0, 6.0])
def test_rdp_agrees_with_both_libraries(z, q):
    """dp-accounting at whole orders (its series for others overestimates), Opacus at all."""
    google = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    opacus = pytest.importorskip("opacus.accountants.analysis.rdp")
    for order in (1.3, 2.0, 2.5, 7.0, 33.0):
        ours = rdp(Release(z, 3, q), order) / 3
        theirs = opacus.compute_rdp(q=q, noise_multiplier=z, steps=1, orders=order)
        assert ours == pytest.approx(float(theirs), rel=1e-6), order
        if order == int(order):
            (theirs,) = google._compute_rdp_poisson_subsampled_gaussian(q, z, [order])
            assert ours == pytest.approx(float(theirs), rel=1e-6), order


@pytest.mark.parametrize("z, q, steps", [(1.1, 0.01, 1000), (0.7, 0.2, 50), (5.0, 1.0, 30)])
def test_the_best_order_is_at_least_as_good_as_any_of_dp_accountings(z, q, steps):
    peer = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    event = pytest.importorskip("dp_accounting.dp_event")
    accountant = peer.RdpAccountant()
    accountant.compose(event.PoissonSampledDpEvent(q, event.GaussianDpEvent(z)), steps)
    theirs = accountant.get_epsilon(1e-5)
    assert theirs * 0.99 < epsilon(z, steps, 1e-5, q, "rdp") <= theirs * (1 + 1e-9)


def test_a_single_order_is_a_valid_but_worse_bound():
    releases = [Release(1.1, 1000, 0.01)]
    order, best = best_order(releases, 1e-5)
    assert 8 < order < 11 and best == pytest.approx(1.712, abs=1e-3)
    assert rdp_epsilon(releases, 1e-5, orders=[2]) > 5 * best
    assert rdp_epsilon(releases, 1e-5, orders=[60]) > 5 * best
    assert rdp_epsilon(releases, 1e-5, orders=[2, 60, order]) == pytest.approx(best)
    with pytest.raises(ValueError, match="order=1"):
        rdp_epsilon(releases, 1e-5, orders=[1])


# --- samples of fixed size ----------------------------------------------------------------------


@pytest.mark.parametrize("z, q", [(0.5, 0.01), (2.0, 0.2), (5.0, 1e-3), (4.0, 1.0)])
def test_fixed_size_samples_have_wangs_bound(z, q):
    peer = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
    for order in (2, 3, 8, 17):
        theirs = peer._compute_rdp_sample_wor_gaussian(q, z / 2, [order])[0]  # sensitivity 2C
        ours = fixed_size_rdp(Release(z, 1, q, "fixed"), order)
        assert ours == pytest.approx(float(theirs), rel=1e-7)


def test_poissons_epsilon_is_never_quoted_for_fixed_size_samples():
    accountant = Accountant()
    accountant.record(4.0, 200, 0.05, sampling="fixed")
    assert accountant.epsilon(1e-5, "rdp") > 2 * epsilon(4.0, 200, 1e-5, 0.05, "rdp")
    for method in METHODS:
        if method != "rdp":
            with pytest.raises(ValueError, match=r"sampling='fixed'.*method='rdp'"):
                accountant.epsilon(1e-5, method)
    accountant.record(4.0, 200, 0.05)
    with pytest.raises(ValueError, match="account for them apart"):
        accountant.epsilon(1e-5, "rdp")
    with pytest.raises(ValueError, match=r"order=2\.5"):
        fixed_size_rdp(Release(4.0, 1, 0.05, "fixed"), 2.5)


# --- the accountant -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_an_accountant_of_equal_rounds_is_one_call(method):
    rate = 1.0 if method in ("gdp", "zcdp") else 0.1
    accountant = Accountant()
    for _ in range(30):
        accountant.record(40.0, sample_rate=rate)
    assert accountant.epsilon(1e-6, method) == pytest.approx(epsilon(40.0, 30, 1e-6, rate, method))
    assert len(accountant.releases) == 30 and accountant.releases[0] == Release(40.0, 1, rate)


@pytest.mark.parametrize("method", METHODS)
def test_different_releases_cost_more_than_each_and_at_most_what_basic_composition_says(method):
    rates = (1.0, 1.0) if method in ("gdp", "zcdp") else (0.2, 0.01)
    parts = [Release(30.0, 20, rates[0]), Release(45.0, 500, rates[1])]
    accountant = Accountant()
    for part in parts:
        accountant.record(part.noise_multiplier, part.steps, part.sample_rate)
    apart = [epsilon(p.noise_multiplier, p.steps, 5e-7, p.sample_rate, method) for p in parts]
    whole = accountant.epsilon(1e-6, method)
    one = [epsilon(p.noise_multiplier, p.steps, 1e-6, p.sample_rate, method) for p in parts]
    assert max(one) <= whole
    # Bounds that split δ over steps by their number may lose a little against halving it.
    assert whole <= sum(apart) * (1.1 if method in ("basic", "advanced") else 1)


def test_an_empty_accountant_has_spent_nothing_and_still_checks_its_arguments():
    accountant = Accountant()
    assert accountant.epsilon(1e-5) == 0.0
    with pytest.raises(ValueError, match="delta=2"):
        accountant.epsilon(2)
    with pytest.raises(ValueError, match="method='x'"):
        accountant.epsilon(1e-5, "x")
    with pytest.raises(ValueError, match="sampling='shuffle'"):
        accountant.record(1.0, sampling="shuffle")
    for method in METHODS.values():
        with pytest.raises(ValueError, match="nothing was released"):
            method.epsilon([], 1e-5)
