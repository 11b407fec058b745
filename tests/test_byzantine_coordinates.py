"""Median and trimmed mean against numpy and scipy, and against rows made to break them."""

import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from flcourse.byzantine import DroppedRows, coordinate_median, mean, screen, trimmed_mean


def rows_of(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 49, 50])
def test_the_median_is_numpys(n: int, dtype: torch.dtype) -> None:
    rows = rows_of(n, 30_001, dtype)
    result = coordinate_median(rows)
    assert result.dtype == dtype
    np.testing.assert_allclose(result.numpy(), np.median(rows.numpy(), axis=0), rtol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 0), (5, 2), (20, 4), (50, 11)])
def test_the_trimmed_mean_is_scipys(n: int, f: int, dtype: torch.dtype) -> None:
    rows = rows_of(n, 20_003, dtype)
    wanted = scipy.stats.trim_mean(rows.double().numpy(), (f + 1e-9) / n, axis=0)
    result = trimmed_mean(rows, f)
    assert result.dtype == dtype
    close = 1e-6 if dtype == torch.float32 else 1e-14
    np.testing.assert_allclose(result.numpy(), wanted, rtol=close, atol=close)


def test_the_mean_is_the_mean_also_at_an_offset() -> None:
    rows = rows_of(50, 10_001) * 1e-2 + 10
    torch.testing.assert_close(mean(rows), rows.double().mean(0).float(), rtol=1e-7, atol=1e-6)


def test_by_hand() -> None:
    rows = torch.tensor([[1.0, -9.0], [2.0, 0.0], [3.0, 1.0], [4.0, 2.0], [100.0, 3.0]])
    assert coordinate_median(rows).tolist() == [3.0, 1.0]
    assert trimmed_mean(rows, 1).tolist() == [3.0, 1.0]
    assert mean(rows)[0] == 22.0


def test_a_trim_of_none_is_the_mean_and_a_trim_of_all_but_one_the_median() -> None:
    rows = rows_of(9, 1000)
    torch.testing.assert_close(trimmed_mean(rows, 0), rows.mean(0))
    torch.testing.assert_close(trimmed_mean(rows, 4), coordinate_median(rows), rtol=0, atol=0)


@pytest.mark.parametrize("f", [1, 3, 9])
def test_f_liars_cannot_leave_the_honest_range_and_f_plus_one_can(f: int) -> None:
    n = 2 * f + 1
    honest = rows_of(n - f, 500)
    low, high = honest.min(0).values, honest.max(0).values
    for lie in (3e38, -3e38, 0.5):
        rows = torch.cat([honest, torch.full((f, 500), lie)])
        for result in (coordinate_median(rows), trimmed_mean(rows, f)):
            assert bool(((result >= low) & (result <= high)).all())
    rows = torch.cat([honest[1:], torch.full((f + 1, 500), 1e6)])
    assert coordinate_median(rows).min() == 1e6
    assert trimmed_mean(rows, f).min() == 1e6


def test_one_value_too_many_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"num_byzantine=2.*n ≥|n ≥ 2f \+ 1") as error:
        trimmed_mean(rows_of(4, 3), 2)
    assert "asks for 5 rows, there are 4" in str(error.value)
    assert "num_byzantine=1" in str(error.value)
    for wrong in (-1, 0.1, True):
        with pytest.raises(ValueError, match="whole number"):
            trimmed_mean(rows_of(4, 3), wrong)  # type: ignore[arg-type]


def test_a_whole_number_may_be_numpys() -> None:
    rows = rows_of(9, 50)
    assert torch.equal(trimmed_mean(rows, np.int64(3)), trimmed_mean(rows, 3))


def test_values_near_the_end_of_the_range_do_not_overflow() -> None:
    rows = torch.tensor([[3e38], [3e38], [3e38], [-3e38]])
    assert coordinate_median(rows).item() == pytest.approx(3e38)
    assert trimmed_mean(rows, 0).item() == pytest.approx(1.5e38, rel=1e-6)
    assert mean(rows).item() == pytest.approx(1.5e38, rel=1e-6)


def test_rows_that_are_not_finite_are_dropped_and_said() -> None:
    rows = rows_of(7, 100)
    bad = rows.clone()
    bad[2, 5], bad[4, 0] = float("nan"), -float("inf")
    with pytest.warns(DroppedRows, match=r"coordinate_median left out row\(s\) \[2, 4\] of 7"):
        result = coordinate_median(bad)
    torch.testing.assert_close(result, coordinate_median(rows[[0, 1, 3, 5, 6]]), rtol=0, atol=0)
    with pytest.warns(DroppedRows), pytest.raises(ValueError, match="there are 5"):
        trimmed_mean(bad, 3)  # 7 rows would do, 5 do not
    kept, dropped = screen(bad)
    assert dropped == [2, 4]
    assert torch.equal(kept, rows[[0, 1, 3, 5, 6]])


def test_infinities_that_cancel_and_huge_rows_are_told_apart() -> None:
    rows = torch.zeros(5, 70_000)
    rows[1, 3], rows[1, 69_999] = float("inf"), -float("inf")
    rows[2] = 3e38
    rows[3] = 1e-30
    _, dropped = screen(rows)
    assert dropped == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert coordinate_median(rows[[0, 2, 3]])[0] == pytest.approx(1e-30)


def test_a_float64_row_whose_square_is_infinite_is_dropped_too() -> None:
    rows = torch.ones(4, 10, dtype=torch.float64)
    rows[1], rows[2] = 1e160, 1e130
    assert screen(rows)[1] == [1]
    with pytest.warns(DroppedRows, match=r"\[1\] of 4: NaN, infinity or beyond 1e\+140"):
        assert coordinate_median(rows)[0] == 1


def test_screening_copies_nothing_where_nothing_is_dropped() -> None:
    rows = rows_of(4, 10)
    kept, dropped = screen(rows)
    assert kept.data_ptr() == rows.data_ptr()
    assert dropped == []


@pytest.mark.parametrize("rule", [coordinate_median, mean, screen])
def test_what_is_no_float_matrix_is_refused(rule) -> None:
    with pytest.raises(ValueError, match=r"\[n, d\]"):
        rule(torch.zeros(3))
    with pytest.raises(ValueError, match="int64"):
        rule(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"float16.*\.float\(\)"):
        rule(torch.zeros(3, 2, dtype=torch.float16))


def test_no_row_left_is_an_error_not_a_number() -> None:
    with pytest.raises(ValueError, match="2 rows, none of them finite"):
        coordinate_median(torch.full((2, 3), float("nan")))
    with pytest.raises(ValueError, match="0 rows"):
        mean(torch.zeros(0, 3))


def test_the_rows_stay_as_they_were() -> None:
    for rows in (
        rows_of(6, 5000),
        rows_of(6, 1),
        rows_of(5000, 6).T,
    ):  # the last: columns lie whole
        before = rows.clone()
        coordinate_median(rows), trimmed_mean(rows, 2), mean(rows)
        assert torch.equal(rows, before)
    grown = rows.clone().requires_grad_()
    assert not coordinate_median(grown).requires_grad


def test_rows_that_are_not_contiguous() -> None:
    rows = rows_of(300, 8).T
    torch.testing.assert_close(coordinate_median(rows), coordinate_median(rows.contiguous()))
