"""Geometric median, centred clipping and the norm filter against closed forms and scipy."""

import math

import pytest
import scipy.optimize
import torch

from flcourse.byzantine import (
    DroppedRows,
    centered_clipping,
    coordinate_median,
    geometric_median,
    norm_filter,
)


def rows_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def brute_clipping(rows, clip_norm, start, iterations):
    v = start.double()
    for _ in range(iterations):
        apart = rows.double() - v
        v = v + (apart * (clip_norm / apart.norm(dim=1)).clamp(max=1)[:, None]).mean(0)
    return v


# --- the geometric median ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_no_point_has_a_smaller_sum_of_distances(seed: int) -> None:
    rows = rows_of(9, 3, seed).double() * torch.logspace(0, 1, 9, dtype=torch.float64)[:, None]

    def cost(z):
        return float((rows - torch.as_tensor(z)).norm(dim=1).sum())

    best = scipy.optimize.minimize(
        cost, rows.mean(0).numpy(), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    mine = geometric_median(rows)
    assert cost(mine) <= best.fun + 1e-9
    torch.testing.assert_close(mine, torch.as_tensor(best.x), rtol=1e-4, atol=1e-4)


def test_forces_balance_at_the_geometric_median() -> None:
    rows = rows_of(20, 1000)
    apart = rows.double() - geometric_median(rows).double()
    pull = (apart / apart.norm(dim=1, keepdim=True)).sum(0)
    assert pull.norm() < 1e-4


def test_the_fermat_point_of_an_equilateral_triangle_is_its_centre() -> None:
    corners = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, math.sqrt(3)]], dtype=torch.float64)
    wanted = torch.tensor([1.0, 1 / math.sqrt(3)], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(corners), wanted, rtol=1e-7, atol=1e-7)


def test_a_wide_corner_is_its_own_fermat_point() -> None:
    """Where one corner has 120 degrees or more, the minimum lies on it, not inside."""
    corners = torch.tensor([[0.0, 0.0], [5.0, 0.5], [-5.0, 0.5]], dtype=torch.float64)
    assert geometric_median(corners).norm() < 1e-5


def test_on_a_line_it_is_the_median() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.5], [30.0], [1e6]], dtype=torch.float64)
    assert geometric_median(rows).item() == pytest.approx(2.5, abs=1e-5)


def test_a_far_row_pulls_no_more_than_a_near_one_in_its_direction() -> None:
    honest = rows_of(15, 300)
    near = geometric_median(torch.cat([honest, torch.full((4, 300), 1e4)]))
    for far in (1e10, 1e19, 3e38):
        pulled = geometric_median(torch.cat([honest, torch.full((4, 300), far)]))
        assert (pulled - near).norm() < 1e-2
    assert (near - honest.mean(0)).norm() < 0.5 * (honest - honest.mean(0)).norm(dim=1).mean()


def test_two_rows_and_one() -> None:
    one = rows_of(1, 4)
    assert torch.equal(geometric_median(one), one[0])
    pair = geometric_median(torch.tensor([[0.0], [1.0]]))
    assert 0 <= pair.item() <= 1


def test_a_majority_that_agrees_is_the_median_to_the_bit() -> None:
    rows = torch.cat([rows_of(1, 500).expand(6, 500), rows_of(5, 500, 1) * 100])
    assert torch.equal(geometric_median(rows), rows[0])
    assert torch.equal(geometric_median(rows.flip(0)), rows[0])


def test_where_the_minimum_is_flat_it_ends_on_it() -> None:
    """Two equal camps: every point between is a geometric median; so is the result."""
    rows = torch.cat([rows_of(10, 100) * 0.01, rows_of(10, 100, 1) * 0.01 + 100]).double()

    def cost(z):
        return float((rows - z).norm(dim=1).sum())

    least = min(cost(t * rows[:10].mean(0) + (1 - t) * rows[10:].mean(0)) for t in (0.2, 0.5, 0.8))
    assert cost(geometric_median(rows)) <= least * (1 + 1e-6)


def test_geometric_median_refuses() -> None:
    with pytest.raises(ValueError, match="tolerance=0"):
        geometric_median(rows_of(3, 2), tolerance=0)
    with pytest.raises(ValueError, match="max_iterations"):
        geometric_median(rows_of(9, 2), max_iterations=0)


# --- centred clipping --------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("clip_norm", [1e-3, 5.0, 1e3])
def test_clipping_is_the_formula(clip_norm: float, iterations: int) -> None:
    rows, start = rows_of(12, 400), rows_of(1, 400, 1)[0]
    rows[0] *= 100
    mine = centered_clipping(rows, clip_norm, start, iterations=iterations)
    wanted = brute_clipping(rows, clip_norm, start, iterations)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_bound_beyond_all_rows_gives_the_mean() -> None:
    rows = rows_of(12, 400)
    torch.testing.assert_close(centered_clipping(rows, 1e6), rows.mean(0), rtol=1e-5, atol=1e-5)


def test_without_a_start_it_starts_at_the_median_and_one_liar_moves_it_by_c_over_n() -> None:
    honest = rows_of(11, 400)
    rows = torch.cat([honest, torch.full((1, 400), 3e38)])
    result = centered_clipping(rows, 2.0)
    wanted = brute_clipping(rows, 2.0, coordinate_median(rows), 1)
    torch.testing.assert_close(result.double(), wanted, rtol=1e-4, atol=1e-5)
    without = brute_clipping(rows[:-1], 2.0, coordinate_median(rows), 1) * 11 / 12
    without += coordinate_median(rows).double() / 12
    assert (result - without).norm() <= 2.0 / 12 + 1e-4


def test_started_at_the_mean_it_follows_the_liar() -> None:
    rows = torch.cat([rows_of(11, 400), torch.full((1, 400), 1e6)])
    assert centered_clipping(rows, 2.0, rows.mean(0)).mean() > 1e4
    assert centered_clipping(rows, 2.0).abs().max() < 2


@pytest.mark.parametrize("lie", [1e19, 3e38])
def test_many_steps_from_a_huge_row(lie: float) -> None:
    rows = torch.cat([rows_of(11, 400), torch.full((2, 400), -lie)])
    mine = centered_clipping(rows, 3.0, iterations=5)
    wanted = brute_clipping(rows, 3.0, coordinate_median(rows), 5)
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-4, atol=1e-4)


def test_clipping_refuses() -> None:
    rows = rows_of(5, 4)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="clip_norm"):
            centered_clipping(rows, wrong)
    with pytest.raises(ValueError, match="iterations=0"):
        centered_clipping(rows, 1.0, iterations=0)
    with pytest.raises(ValueError, match=r"shape \[3\] does not fit \[5, 4\]"):
        centered_clipping(rows, 1.0, torch.zeros(3))
    with pytest.raises(ValueError, match="start holds NaN"):
        centered_clipping(rows, 1.0, torch.full((4,), math.nan))
    with pytest.raises(ValueError, match=r"a number beyond torch\.float32"):
        centered_clipping(rows, 1.0, torch.full((4,), 1e39, dtype=torch.float64))


# --- the norm filter ---------------------------------------------------------------------------


def test_the_filter_averages_the_short_rows() -> None:
    rows = rows_of(10, 100)
    rows[3] *= 50
    rows[7] = 3e38
    kept = [0, 1, 2, 4, 5, 6, 8, 9]
    torch.testing.assert_close(norm_filter(rows, 20.0), rows[kept].mean(0), rtol=1e-5, atol=1e-6)


def test_the_bound_itself_is_kept() -> None:
    assert norm_filter(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), 5.0).tolist() == [3.0, 4.0]


def test_a_bound_below_all_rows_is_an_error_that_names_them() -> None:
    with pytest.raises(ValueError, match=r"max_norm=1.*the shortest is 5 long.*raise max_norm"):
        norm_filter(torch.tensor([[3.0, 4.0], [6.0, 8.0]]), 1.0)
    with pytest.raises(ValueError, match="max_norm=0"):
        norm_filter(rows_of(3, 2), 0)


@pytest.mark.parametrize(
    "rule",
    [
        geometric_median,
        lambda rows: centered_clipping(rows, 1.0),
        lambda rows: norm_filter(rows, 99.0),
    ],
)
def test_nan_is_dropped_and_said(rule) -> None:
    rows = rows_of(9, 50)
    bad = torch.cat([rows, torch.full((1, 50), math.nan)])
    with pytest.warns(DroppedRows, match=r"\[9\] of 10"):
        assert torch.equal(rule(bad), rule(rows))
