"""Mixing and bucketing against loops, and what they are for: honest rows closer together."""

import pytest
import torch

from flcourse.byzantine import (
    DroppedRows,
    bucketing,
    nearest_neighbour_mixing,
    trimmed_mean,
)


def rows_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def spread(rows: torch.Tensor) -> float:
    return float((rows - rows.mean(0)).square().sum(dim=1).mean())


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("n", "f"), [(1, 0), (5, 2), (20, 4), (50, 11)])
def test_each_row_becomes_the_mean_of_its_nearest(n: int, f: int, offset: float) -> None:
    rows = rows_of(n, 700) + offset
    mixed = nearest_neighbour_mixing(rows, f)
    assert mixed.shape == rows.shape
    assert mixed.dtype == rows.dtype
    for i, row in enumerate(rows.double()):
        near = sorted(range(n), key=lambda j: float((rows[j].double() - row).norm()))[: n - f]
        assert i in near
        wanted = rows[near].double().mean(0)
        torch.testing.assert_close(mixed[i].double(), wanted, rtol=2e-7, atol=1e-6)


def test_mixing_of_none_gives_everybody_the_mean() -> None:
    rows = rows_of(8, 50)
    mixed = nearest_neighbour_mixing(rows, 0)
    torch.testing.assert_close(mixed, rows.mean(0).expand(8, 50), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lie", [50.0, 1e19, 3e38])
def test_honest_rows_take_no_liar_in_and_come_closer(lie: float) -> None:
    honest = rows_of(15, 300)
    mixed = nearest_neighbour_mixing(torch.cat([torch.full((5, 300), lie), honest]), 5)
    torch.testing.assert_close(
        mixed[5:], honest.mean(0).expand(15, 300), rtol=1e-5, atol=1e-6
    )  # the 15 nearest to an honest row are the honest ones
    assert torch.isfinite(mixed).all()


def test_a_hidden_lie_is_diluted() -> None:
    """Rows within the honest spread get in, and the trimmed mean is nearer for the mixing."""
    honest = rows_of(16, 1000)
    liars = (honest.mean(0) - 1.5 * honest.std(0)).expand(4, 1000)
    rows = torch.cat([liars, honest])
    mixed = nearest_neighbour_mixing(rows, 4)
    assert spread(mixed[4:]) < 0.2 * spread(honest)


def test_mixing_refuses_half_liars_and_counts_the_rows_left() -> None:
    rows = rows_of(8, 5)
    with pytest.raises(ValueError, match=r"nearest_neighbour_mixing needs n ≥ 2f \+ 1"):
        nearest_neighbour_mixing(rows, 4)
    rows[0] = float("nan")
    with pytest.warns(DroppedRows, match=r"\[0\] of 8"):
        mixed = nearest_neighbour_mixing(rows, 3)
    assert torch.equal(mixed, nearest_neighbour_mixing(rows[1:], 3))


@pytest.mark.parametrize(("n", "size"), [(12, 1), (12, 3), (13, 4), (5, 5), (7, 2)])
def test_buckets_are_means_of_rows_dealt_once(n: int, size: int) -> None:
    rows = torch.eye(n, dtype=torch.float64)  # a mean of unit rows shows who is in it
    dealt = bucketing(rows, size, torch.Generator().manual_seed(1))
    assert dealt.shape == (-(-n // size), n)
    members = (dealt > 1e-9).sum(dim=1)
    assert members[:-1].tolist() == [size] * (len(dealt) - 1)
    torch.testing.assert_close((dealt * members[:, None]).sum(0), torch.ones(n).double())


def test_buckets_are_dealt_anew_by_the_generator() -> None:
    rows, generator = rows_of(20, 30), torch.Generator().manual_seed(0)
    first, second = bucketing(rows, 2, generator), bucketing(rows, 2, generator)
    assert not torch.allclose(first, second)
    assert torch.equal(first, bucketing(rows, 2, torch.Generator().manual_seed(0)))


def test_bucketing_halves_the_spread_of_honest_rows() -> None:
    rows = rows_of(400, 200)
    dealt = bucketing(rows, 2, torch.Generator().manual_seed(0))
    assert spread(dealt) == pytest.approx(spread(rows) / 2, rel=0.05)


def test_f_liars_spoil_at_most_f_buckets() -> None:
    rows = torch.cat([rows_of(16, 100), torch.full((4, 100), 3e38)])
    dealt = bucketing(rows, 2, torch.Generator().manual_seed(0))
    assert (dealt.abs().max(dim=1).values > 1e30).sum() <= 4
    assert trimmed_mean(dealt, 4).abs().max() < 5


def test_bucketing_refuses() -> None:
    for size in (0, 6, 2.0):
        with pytest.raises(ValueError, match=f"size={size} must be a whole number in 1 … 5"):
            bucketing(rows_of(5, 3), size, torch.Generator())
