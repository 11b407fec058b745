"""Integer noise against the laws themselves; what a noisy sum costs against exact divergences."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from flcourse.privacy import Accountant, clip_rows, epsilon, gaussian_epsilon
from flcourse.secagg import integer_noise
from flcourse.secagg.distributed_dp import (
    DistributedDP,
    distributed_aggregate,
    masked_sum,
    modular_sum,
    private_sum,
)
from flcourse.secagg.integer_noise import DiscreteGaussian, Skellam, discrete_gaussian_plain


def gaussian_law(sigma, reach):
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def skellam_law(variance, reach):
    return stats.skellam.pmf(np.arange(-reach, reach + 1), variance / 2, variance / 2)


def chi_square(draws, law, reach):
    """The p-value of the draws, cells with fewer than 8 expected joined."""
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    expected = len(draws) * law / law.sum()
    rare = expected < 8
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    keep = wanted > 1e-9
    return stats.chisquare(seen[keep], wanted[keep] * seen[keep].sum() / wanted[keep].sum()).pvalue


def seeded(seed):
    return np.random.default_rng(seed).bytes


# ------------------------------------------------------------------------------------ the noise


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.7, 40.0])
def test_the_discrete_gaussian_has_its_law(sigma):
    reach = math.ceil(8 * sigma) + 1
    draws = DiscreteGaussian(sigma).draw(200_000, seeded(1))
    assert draws.dtype == np.int64
    assert chi_square(draws, gaussian_law(sigma, reach), reach) > 1e-4


@pytest.mark.parametrize("variance", [0.09, 1.0, 13.7, 1600.0])
def test_the_skellam_has_its_law(variance):
    reach = math.ceil(9 * math.sqrt(variance)) + 4
    draws = Skellam(variance).draw(200_000, seeded(2))
    assert chi_square(draws, skellam_law(variance, reach), reach) > 1e-4


def test_the_plain_sampler_has_the_same_law():
    source = np.random.default_rng(3)
    draws = [discrete_gaussian_plain(1.5, lambda n: int(source.integers(n))) for _ in range(20_000)]
    assert chi_square(np.array(draws), gaussian_law(1.5, 12), 12) > 1e-4


def test_the_table_is_the_distribution_function_to_the_last_of_its_bits():
    from mpmath import mp, mpf  # comes with torch (sympy)

    mp.prec = 400
    for sigma in (0.5, 2.25, 30.0):
        first, bounds, slack = integer_noise._boundaries(("gaussian", sigma), 128)
        reach = len(bounds) + 50
        law = [mp.exp(-(mpf(x) ** 2) / (2 * mpf(sigma) ** 2)) for x in range(-reach, reach + 1)]
        total, below = mp.fsum(law), mp.fsum(law[: first + reach])
        for i, bound in enumerate(bounds):
            below += law[first + reach + i]
            assert abs(mpf(bound) - below / total * mpf(2) ** 128) < slack
    for mean in (0.25, 7.5, 300.0):
        first, bounds, slack = integer_noise._boundaries(("poisson", mean), 128)
        below = mp.fsum(mpf(mean) ** k / mp.factorial(k) for k in range(first))
        for i, bound in enumerate(bounds):
            below += mpf(mean) ** (first + i) / mp.factorial(first + i)
            assert abs(mpf(bound) - below * mp.exp(-mpf(mean)) * mpf(2) ** 128) < slack


def test_bits_are_drawn_until_they_decide():
    """U starts as 64 bits that end exactly at a boundary: the next ones say on which side it is."""
    law = ("gaussian", 2.0)
    first, bounds, _ = integer_noise._boundaries(law, 128)
    place = 2 - first  # the boundary above the value 2
    start = bounds[place] >> 64
    rest = bounds[place] & (2**64 - 1)

    def source(*words):
        left = [int(word).to_bytes(8, "little") for word in words]

        def take(count):
            assert count == 8
            return left.pop(0)

        return take, left

    for word, value in ((rest - 1000, 2), (rest + 1000, 3)):
        take, left = source(start, word)
        assert DiscreteGaussian(2.0).draw(1, take).tolist() == [value] and not left
    # As close as 128 bits can say: it takes a third word.
    wider, longer, _ = integer_noise._boundaries(law, 192)
    exact = longer[2 - wider]
    for word, value in (((exact & (2**64 - 1)) - 9, 2), ((exact & (2**64 - 1)) + 9, 3)):
        take, left = source(start, (exact >> 64) & (2**64 - 1), word)
        assert DiscreteGaussian(2.0).draw(1, take).tolist() == [value] and not left


def test_the_ends_of_the_table():
    def constant(byte):
        return lambda count: bytes([byte]) * count

    low = DiscreteGaussian(1.0).draw(1, lambda n: b"\x00" * (n - 1) + b"\x01")
    assert low[0] < -2
    flips = iter([b"\xff" * 8, b"\x00" * 8])
    high = DiscreteGaussian(1.0).draw(1, lambda n: next(flips))
    assert 8 <= high[0] <= DiscreteGaussian(1.0).reach
    assert DiscreteGaussian(1.0).draw(3, constant(0x80)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("law", [DiscreteGaussian(0.4), DiscreteGaussian(50.0), Skellam(2.0)])
def test_reach_holds_all_but_2_to_the_minus_64(law):
    if isinstance(law, DiscreteGaussian):
        x = np.arange(law.reach, law.reach + 400).astype(float)
        beyond = 2 * np.exp(-(x**2) / (2 * law.sigma**2)).sum() / max(law.sigma, 1)
    else:
        beyond = 2 * stats.skellam.sf(law.reach, law.variance / 2, law.variance / 2)
    assert beyond <= 2.0**-64


def test_noise_is_fresh_each_time_and_refuses_other_scales():
    assert (DiscreteGaussian(30.0).draw(50) != DiscreteGaussian(30.0).draw(50)).any()
    for bad in (0.0, -1.0, math.nan, math.inf, 1e6):
        with pytest.raises(ValueError, match="sigma"):
            DiscreteGaussian(bad)
    for bad in (0.0, math.nan, 1e12):
        with pytest.raises(ValueError, match="variance"):
            Skellam(bad)


# ------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
@pytest.mark.parametrize("rotate", [True, False])
def test_the_noise_of_the_sum_has_the_promised_size(noise, rotate):
    clipped = clip_rows(torch.randn(10, 700, generator=torch.Generator().manual_seed(0)), 2.0)
    dp = DistributedDP(2.0, 0.8, 10, 700, noise=noise, rotate=rotate)
    errors = []
    for seed in range(4):
        found = private_sum(clipped, dp, random_bytes=seeded(seed))
        errors.append(found - clipped.rows.double().sum(dim=0))
    error = torch.cat(errors)
    assert error.dtype == torch.float64 and abs(float(error.mean())) < 5 * 1.6 / math.sqrt(2800)
    assert float(error.std()) == pytest.approx(0.8 * 2.0, rel=0.06)  # 4 standard errors: 0.053


def test_without_noise_only_rounding_is_left(monkeypatch):
    rows = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    clipped = clip_rows(rows, 1.0)
    monkeypatch.setattr(Skellam, "draw", lambda self, count, _bytes: np.zeros(count, np.int64))
    for rotate in (True, False):
        dp = DistributedDP(1.0, 1.0, 5, 100, noise="skellam", rotate=rotate)
        error = private_sum(clipped, dp) - clipped.rows.double().sum(dim=0)
        assert 0 < float(error.abs().max()) < 5 * 4 * dp.step


def test_rounding_never_breaks_the_bound_that_privacy_counts_on(monkeypatch):
    monkeypatch.setattr(DiscreteGaussian, "draw", lambda self, n, _bytes: np.zeros(n, np.int64))
    row = torch.randn(64, generator=torch.Generator().manual_seed(0))
    row = row / row.norm()
    for precision in (3, 5, 9):
        dp = DistributedDP(1.0, 3.0, 2, 64, precision=precision)
        squares = [int((dp.encode(row) ** 2).sum()) for _ in range(60)]
        assert max(squares) <= dp.largest_square < (2 ** (precision - 1) + 8) ** 2 + 1
    assert len(set(squares)) > 5  # rounding is random


def test_the_masked_sum_is_the_modular_sum():
    dp = DistributedDP(1.0, 1.0, 6, 50, precision=10)
    rows = clip_rows(torch.randn(6, 50), 1.0).rows
    numbers = np.stack([dp.encode(row) for row in rows])
    assert np.array_equal(modular_sum(numbers, dp.bits), numbers.sum(axis=0))
    assert np.array_equal(masked_sum(numbers, dp.bits), numbers.sum(axis=0))
    dropped = masked_sum(numbers, dp.bits, dropouts={"masked_input": [2]})
    assert np.array_equal(dropped, np.delete(numbers, 2, axis=0).sum(axis=0))
    found = private_sum(clip_rows(rows, 1.0), dp, add=masked_sum)
    assert float((found - rows.double().sum(dim=0)).norm()) < 2 * math.sqrt(50)
    with pytest.raises(ValueError, match="lower the precision"):
        masked_sum(numbers, 40)


def test_numbers_wrap_modulo_2_to_the_bits():
    numbers = np.array([[100, -100], [100, -100]])
    assert modular_sum(numbers, 8).tolist() == [200 - 256, 56]
    dp = DistributedDP(1.0, 1.0, 100, 1000)
    assert 100 * dp.value_bound < 2 ** (dp.bits - 1)


def test_rotation_takes_fewer_bits():
    wide = {"noise_multiplier": 0.05, "num_clients": 1000, "num_values": 2**16}
    turned, plain = (DistributedDP(1.0, **wide, rotate=rotate) for rotate in (True, False))
    assert turned.bits < plain.bits - 2


def test_the_aggregate_clips_and_averages():
    rows = torch.ones(50, 20)  # each of length √20
    dp = DistributedDP(1.0, 0.01, 50, 20, noise="skellam")
    found = distributed_aggregate(dp)(rows, torch.ones(50))
    assert found.dtype == torch.float32
    assert float((found - 1 / math.sqrt(20)).abs().max()) < 0.01


def test_refusals():
    dp = DistributedDP(1.0, 1.0, 3, 4)
    with pytest.raises(TypeError, match="never clipped"):
        private_sum(torch.zeros(3, 4), dp)
    for rows, words in (
        (clip_rows(torch.ones(3, 4), 2.0), "planned"),
        (clip_rows(torch.ones(4, 4), 1.0), "planned"),
        (clip_rows(torch.ones(3, 4), 1.0, order=1), "planned"),
        (clip_rows(torch.ones(2, 4), 1.0), "lower honest"),
        (clip_rows(torch.ones(3, 5), 1.0), "shape"),
    ):
        with pytest.raises(ValueError, match=words):
            private_sum(rows, dp)
    for row in (torch.ones(4), torch.tensor([math.nan, 0, 0, 0])):
        with pytest.raises(ValueError, match="clip_rows"):
            dp.encode(row)
    for words, options in {
        "clip_norm": {"clip_norm": 0.0},
        "noise_multiplier": {"noise_multiplier": math.nan},
        "num_clients": {"num_clients": 0},
        "honest": {"honest": 4},
        "noise=": {"noise": "laplace"},
        "adjacency": {"adjacency": "add"},
        "precision=1": {"precision": 1},
        "raise precision": {"noise_multiplier": 0.1, "precision": 3},
        "change precision": {"noise_multiplier": 100.0, "precision": 24},
    }.items():
        with pytest.raises(ValueError, match=words):
            DistributedDP(**({"clip_norm": 1.0, "noise_multiplier": 1.0, "num_clients": 3,
                              "num_values": 4} | options))  # fmt: skip
    with pytest.raises(ValueError, match="steps=0"):
        dp.epsilon(1e-5, 0)
    with pytest.raises(ValueError, match="order"):
        dp.rdp(1.0)


# -------------------------------------------------------------------------------- what it costs


def divergence(law, shift, order):
    """``D_α`` between a law on whole numbers and itself moved by ``shift``, by its definition."""
    p, q = law[shift:], law[:-shift]
    keep = (p > 0) & (q > 0)
    terms = order * np.log(p[keep]) - (order - 1) * np.log(q[keep])
    return float(np.logaddexp.reduce(terms)) / (order - 1)


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
@pytest.mark.parametrize("shares", [1, 4])
@pytest.mark.parametrize("precision", [2, 3])
def test_the_bound_is_above_the_exact_divergence_and_near_it(noise, shares, precision):
    """One value: neighbours move the sum by Δ at most, and its law is a convolution."""
    dp = DistributedDP(1.0, 2.0, shares, 1, noise=noise, precision=precision, rotate=False)
    shift, _ = dp.sensitivity
    assert shift == int(shift) or dp.largest_square >= 4
    shift, std = math.floor(shift), dp.local_std
    reach = math.ceil(14 * std) + 6
    one = gaussian_law(std, reach) if noise == "gaussian" else skellam_law(std**2, reach)
    law = one
    for _ in range(shares - 1):
        law = np.convolve(law, one)
    law = law[law > 1e-290]
    loose = shift**2 / dp.sensitivity[0] ** 2  # Δ need not be whole, the worst move is
    for order in (1.5, 2.0, 3.0, 6.0):
        exact = divergence(law, shift, order)
        assert exact <= dp.rdp(order) * (1 + 1e-9)
        assert exact >= 0.5 * loose * dp.rdp(order)


def test_epsilon_is_above_the_continuous_gaussian_and_comes_near_it():
    for noise in ("gaussian", "skellam"):
        dp = DistributedDP(1.0, 1.2, 100, 1000, noise=noise)
        for steps in (1, 20):
            continuous = epsilon(1.2, steps, 1e-5, method="rdp")
            assert continuous < dp.epsilon(1e-5, steps) < 1.01 * continuous
            assert dp.epsilon(1e-5, steps) > gaussian_epsilon(1.2 / math.sqrt(steps), 1e-5)


def test_coarse_steps_cost_privacy_and_are_counted():
    costs = [DistributedDP(1.0, 1.0, 10, 4096, precision=p).epsilon(1e-5) for p in (7, 9, 12)]
    assert costs[0] > 1.1 * costs[1] > 1.1 * costs[2]


def test_tau_by_hand():
    dp = DistributedDP(1.0, 2.0, 3, 1, precision=2, rotate=False)  # σ = 4 / √3 steps
    square = (2 * Fraction(2)) ** 2 / 3
    by_hand = 10 * sum(math.exp(-2 * math.pi**2 * float(square) * k / (k + 1)) for k in (1, 2))
    assert dp.tau == pytest.approx(by_hand, rel=1e-12)
    assert DistributedDP(1.0, 2.0, 3, 1, noise="skellam").tau == 0


def test_fewer_honest_clients_mean_more_noise_each_and_the_same_cost():
    all_of_them = DistributedDP(1.0, 1.0, 100, 500)
    half = DistributedDP(1.0, 1.0, 100, 500, honest=50)
    assert half.local_std == pytest.approx(math.sqrt(2) * all_of_them.local_std)
    assert half.epsilon(1e-5) == pytest.approx(all_of_them.epsilon(1e-5), rel=1e-6)
    replaced = DistributedDP(1.0, 1.0, 100, 500, adjacency="replace-one")
    assert replaced.epsilon(1e-5) == pytest.approx(
        DistributedDP(1.0, 0.5, 100, 500).epsilon(1e-5), rel=1e-6
    )


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_the_accountant_takes_it_beside_others(noise):
    dp = DistributedDP(1.0, 1.5, 50, 200, noise=noise)
    for order in (1.1, 2.0, 8.0, 100.0):
        assert dp.rdp(order) <= order / (2 * dp.rdp_multiplier**2) * (1 + 1e-12)
    accountant = Accountant()
    accountant.record(dp.rdp_multiplier, steps=10)
    alone = accountant.epsilon(1e-5, method="rdp")
    assert dp.epsilon(1e-5, 10) * (1 - 1e-3) <= alone <= 1.02 * dp.epsilon(1e-5, 10)
    accountant.record(2.0, steps=5)
    assert accountant.epsilon(1e-5, method="rdp") > alone


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_calibration_keeps_the_budget_and_wastes_nothing(noise):
    dp = DistributedDP(1.0, 1.0, 20, 300, noise=noise).calibrated(3.0, 1e-5, 10)
    assert 3.0 * (1 - 1e-3) < dp.epsilon(1e-5, 10) <= 3.0


def test_the_counts_of_many_draws_add_up():
    draws = Counter(DiscreteGaussian(1.0).draw(1000).tolist())
    assert sum(draws.values()) == 1000 and draws[0] > 300
