"""Clipping and noise: against numpy, scipy's distributions, Opacus, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flcourse.models import MLP
from flcourse.privacy import (
    AdaptiveClip,
    Clipped,
    ClippedSum,
    SecureNoise,
    clip_layers,
    clip_rows,
    gaussian_rows,
    gaussian_sum,
    laplace_rows,
    laplace_sum,
)
from flcourse.privacy.clipping import row_norms
from flcourse.privacy.noise import normal, uniform
from flcourse.runtime import generator
from flcourse.vectors import layout

ROWS = torch.randn(5, 9000, generator=generator(0, "rows")) * torch.tensor(
    [[1e-6], [0.01], [0.02], [1.0], [1e4]]
)
BAD = [math.nan, math.inf, -math.inf]
ZEROS = clip_rows(torch.zeros(3, 40_000), 2.0)
ZEROS_1 = clip_rows(torch.zeros(3, 40_000), 2.0, order=1)


# --- clipping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_is_shortened_to_the_clip_norm_and_a_shorter_one_left_alone(
    order: int, dtype: torch.dtype
) -> None:
    rows = ROWS.to(dtype)
    clipped = clip_rows(rows, 1.5, order=order)
    plain = rows.double().numpy()
    norms = np.linalg.norm(plain, ord=order, axis=1)
    expected = plain * np.minimum(1, 1.5 / norms)[:, None]
    assert np.allclose(clipped.rows.double().numpy(), expected, rtol=1e-5)
    assert clipped.rows.dtype == dtype
    assert (norms <= 1.5).any() and (norms > 1.5).any()
    for row, result, norm in zip(rows, clipped.rows, norms, strict=True):
        assert norm > 1.5 or torch.equal(row, result)


def test_norms_agree_with_numpy_also_where_squares_overflow() -> None:
    rows = torch.cat([ROWS, torch.full((1, 9000), 1e30), torch.zeros(1, 9000)])
    expected = np.linalg.norm(rows.double().numpy(), axis=1)
    assert np.allclose(row_norms(rows).numpy(), expected, rtol=1e-6)
    assert float(row_norms(clip_rows(rows, 1.0).rows)[-2]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("bad", BAD)
def test_nan_and_infinity_never_pass(bad: float) -> None:
    rows = ROWS.clone()
    rows[1, 77], rows[3, 0] = bad, bad
    with pytest.raises(ValueError, match=r"row\(s\) \[1, 3\] hold NaN or infinity"):
        clip_rows(rows, 1.0)
    with pytest.raises(ValueError, match=r"row\(s\) \[1, 3\] hold NaN or infinity"):
        clip_layers(rows, _layers(9000), 1.0)
    clipped = clip_rows(rows, 1.0, not_finite="drop")
    assert clipped.dropped == (1, 3) and clipped.rows[[1, 3]].abs().sum() == 0
    assert torch.equal(clipped.rows[[0, 2, 4]], clip_rows(ROWS, 1.0).rows[[0, 2, 4]])
    with pytest.raises(ValueError, match="more than clip_norm"):
        Clipped(rows, 1.0)


def _layers(size: int) -> tuple:  # of a model with so many values
    return layout(torch.nn.Linear(size // 9 - 1, 9))


def test_layers_are_clipped_apart_and_the_whole_row_is_at_most_c() -> None:
    model = MLP(20, 8, 3)
    slots = layout(model)
    rows = torch.randn(6, sum(s.size for s in slots), generator=generator(1, "rows")) * 3
    shares = [1.0, 2.0, 1.0, 2.0]
    for given in (None, shares):
        clipped = clip_layers(rows, slots, 0.7, shares=given)
        bounds = 0.7 * np.array(given or [1.0] * 4) / np.linalg.norm(given or [1.0] * 4)
        for slot, bound in zip(slots, bounds, strict=True):
            part = clipped.rows[:, slot.start : slot.start + slot.size].numpy()
            before = rows[:, slot.start : slot.start + slot.size].numpy()
            assert np.allclose(np.linalg.norm(part, axis=1), bound, rtol=1e-5)
            cosine = (part * before).sum(1) / np.linalg.norm(part, axis=1)
            assert np.allclose(cosine / np.linalg.norm(before, axis=1), 1, rtol=1e-5)
        assert np.allclose(row_norms(clipped.rows), 0.7, rtol=1e-5)
    with pytest.raises(ValueError, match="the layers have"):
        clip_layers(rows[:, 1:], slots, 0.7)
    with pytest.raises(ValueError, match="shares"):
        clip_layers(rows, slots, 0.7, shares=[1.0, 1.0])


def test_sensitivity_is_what_removing_or_replacing_a_row_can_do() -> None:
    clipped = clip_rows(ROWS, 0.5)
    total = clipped.rows.double().sum(0)
    without = clipped.rows[:-1].double().sum(0)
    assert float((total - without).norm()) == pytest.approx(clipped.sensitivity, rel=1e-5)
    replaced = clip_rows(torch.cat([ROWS[:-1], -ROWS[-1:]]), 0.5, adjacency="replace-one")
    moved = float((total - replaced.rows.double().sum(0)).norm())
    assert moved == pytest.approx(replaced.sensitivity, rel=1e-5)
    assert clipped.unit == "client" and clipped.adjacency == "add/remove"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be a positive"),
        ({"clip_norm": math.nan}, "clip_norm=nan"),
        ({"clip_norm": 1.0, "unit": "device"}, "unit='device' is unknown"),
        ({"clip_norm": 1.0, "adjacency": "swap"}, "adjacency='swap' is unknown"),
        ({"clip_norm": 1.0, "order": 3}, "order=3"),
        ({"clip_norm": 1.0, "not_finite": "zero"}, "not_finite='zero'"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clip_rows(ROWS, **options)


def test_rows_of_another_shape_or_type_are_refused() -> None:
    for rows in (ROWS[0], ROWS.half(), ROWS.long()):
        with pytest.raises(ValueError, match=r"expected rows|rows of torch"):
            clip_rows(rows, 1.0)


# --- noise --------------------------------------------------------------------------------------


def test_noise_is_refused_on_what_was_never_clipped() -> None:
    for function in (gaussian_sum, laplace_sum, gaussian_rows, laplace_rows):
        with pytest.raises(TypeError, match="never clipped"):
            function(ROWS, 1.0, generator(0, "noise"))
    with pytest.raises(ValueError, match=r"length .* more than clip_norm=1\.0"):
        Clipped(ROWS, 1.0)
    with pytest.raises(ValueError, match="is no sum of 5 rows"):
        ClippedSum(ROWS.sum(0), 5, 1.0)
    with pytest.raises(ValueError, match="Laplace noise needs rows clipped in the L1 norm"):
        laplace_sum(clip_rows(ROWS, 1.0), 1.0, generator(0, "noise"))
    with pytest.raises(ValueError, match="Gaussian noise needs rows clipped in the L2 norm"):
        gaussian_sum(clip_rows(ROWS, 1.0, order=1), 1.0, generator(0, "noise"))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise_multiplier="):
            gaussian_sum(ZEROS, wrong, generator(0, "noise"))
        with pytest.raises(ValueError, match="epsilon="):
            laplace_sum(ZEROS_1, wrong, generator(0, "noise"))


def test_sums_are_the_sum_plus_the_same_noise() -> None:
    clipped = clip_rows(ROWS, 1.0)
    noisy = gaussian_sum(clipped, 0.3, generator(5, "noise"))
    bare = gaussian_sum(clip_rows(torch.zeros(1, 9000), 1.0), 0.3, generator(5, "noise"))
    assert torch.allclose(noisy - bare, clipped.rows.sum(0), atol=1e-5)
    assert torch.equal(noisy, gaussian_sum(clipped.total(), 0.3, generator(5, "noise")))
    assert not torch.equal(noisy, gaussian_sum(clipped, 0.3, generator(6, "noise")))


SAMPLERS = {
    "gaussian sum": lambda g, k: gaussian_sum(ZEROS, 1.5 * k, g),
    "gaussian rows": lambda g, k: gaussian_rows(ZEROS, 1.5 * k, g)[1],
    "laplace sum": lambda g, k: laplace_sum(ZEROS_1, 0.4 / k, g),
    "laplace rows": lambda g, k: laplace_rows(ZEROS_1, 0.4 / k, g)[2],
}
EXPECTED = {  # C = 2: sigma is z·C, Laplace's scale is C / epsilon
    "gaussian": stats.norm(scale=3.0),
    "laplace": stats.laplace(scale=5.0),
}


@pytest.mark.parametrize("source", ["seeded", "secure"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_has_its_distribution_and_a_scale_off_by_a_tenth_is_noticed(
    name: str, source: str
) -> None:
    """Kolmogorov and Smirnov's test of 40,000 values: at 10 % off p is below 1e-6."""
    expected = EXPECTED[name.split()[0]]

    def p_value(factor: float) -> float:
        noise = generator(7, "noise") if source == "seeded" else SecureNoise()
        return stats.kstest(SAMPLERS[name](noise, factor).numpy(), expected.cdf).pvalue

    assert p_value(1.0) > (1e-3 if source == "seeded" else 1e-6)
    assert p_value(1.1) < 1e-6 and p_value(0.9) < 1e-6


def test_values_are_independent_of_each_other_and_between_rows() -> None:
    noise = gaussian_rows(ZEROS, 1.0, generator(3, "noise")).double().numpy()
    assert np.abs(np.corrcoef(noise) - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(noise[0, 1:], noise[0, :-1])[0, 1]) < 0.02


def test_replace_one_does_not_change_sigma_but_laplace_pays_for_it() -> None:
    rows, order = torch.zeros(1, 5000), {"order": 1}
    twice = clip_rows(rows, 2.0, adjacency="replace-one")
    once = clip_rows(rows, 2.0)
    assert torch.equal(
        gaussian_sum(twice, 1, generator(0, "x")), gaussian_sum(once, 1, generator(0, "x"))
    )
    wide = laplace_sum(clip_rows(rows, 2.0, adjacency="replace-one", **order), 1, generator(0, "x"))
    narrow = laplace_sum(clip_rows(rows, 2.0, **order), 1, generator(0, "x"))
    assert torch.allclose(wide, 2 * narrow)


def test_secure_noise_cannot_be_repeated_and_reaches_the_tails() -> None:
    source = SecureNoise()
    assert not torch.equal(normal((1000,), source), normal((1000,), source))
    draws = uniform((200_000,), source)
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    assert stats.kstest(draws.numpy(), "uniform").pvalue > 1e-6
    assert draws.dtype == torch.float64 and len(torch.unique(draws)) == 200_000


# --- adaptive clipping --------------------------------------------------------------------------


def test_the_clip_norm_finds_the_quantile() -> None:
    norms = torch.linspace(0.01, 10, 1000)
    for quantile in (0.2, 0.5, 0.9):
        clip = AdaptiveClip(0.1, 1000, quantile=quantile, count_noise=10.0)
        for number in range(200):
            clip.update(norms, generator(0, "count", number))
        assert clip.clip_norm == pytest.approx(10 * quantile, rel=0.1)
        assert len(clip.history) == 200 and clip.history[0] == 0.1


def test_one_update_by_hand_and_broken_norms_count_as_too_long() -> None:
    norms = torch.tensor([0.5, 0.9, 3.0, math.nan, math.inf])
    clip = AdaptiveClip(1.0, 5, quantile=0.5, learning_rate=0.2, count_noise=0.5)
    noise = 0.5 * float(normal((1,), generator(1, "count")))
    share = 0.5 + (2 - 2.5 + noise) / 5
    assert clip.update(norms, generator(1, "count")) == pytest.approx(
        math.exp(-0.2 * (share - 0.5))
    )


def test_rows_pay_for_the_count() -> None:
    """Two independent Gaussians about one client add up as 1/z² = 1/z_rows² + 1/(2 sigma_b)²."""
    clip = AdaptiveClip(1.0, 100)
    rows = clip.rows_noise_multiplier(1.1)
    assert rows > 1.1 and clip.count_noise == 5.0
    assert 1 / rows**2 + 1 / 10**2 == pytest.approx(1 / 1.1**2)
    with pytest.raises(ValueError, match=r"count_noise must exceed 5\.5"):
        clip.rows_noise_multiplier(11.0)
    with pytest.raises(ValueError, match=r"quantile=1\.0"):
        AdaptiveClip(1.0, 100, quantile=1.0)
    with pytest.raises(ValueError, match="positive"):
        AdaptiveClip(math.nan, 100)
