"""Distances, Krum and Bulyan against brute force in float64, and where shortcuts are wrong."""

import itertools

import pytest
import torch

from flcourse.byzantine import (
    DroppedRows,
    bulyan,
    krum,
    krum_scores,
    multi_krum,
    squared_distances,
)


def rows_of(n: int, d: int, seed: int = 0, spread: float = 1.0, offset: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * spread + offset


def brute_distances(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double()
    return torch.stack([(rows - row).square().sum(dim=1) for row in rows])


def brute_scores(rows: torch.Tensor, f: int, more: int = 0) -> list[float]:
    squared = brute_distances(rows).tolist()
    return [
        sum(sorted(line[:i] + line[i + 1 :])[: max(len(rows) - f - 2, 1) + more])
        for i, line in enumerate(squared)
    ]


def brute_krum(rows: torch.Tensor, f: int) -> int:
    scores = list(zip(brute_scores(rows, f), brute_scores(rows, f, more=1), strict=True))
    return scores.index(min(scores))


def brute_bulyan(rows: torch.Tensor, f: int) -> torch.Tensor:
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        chosen.append(left.pop(brute_krum(rows[left], f)))
    picked = rows[chosen].double()
    median = picked.quantile(0.5, dim=0)
    order = (picked - median).abs().argsort(dim=0)[: len(chosen) - 2 * f]
    return picked.gather(0, order).mean(0)


@pytest.mark.parametrize(("spread", "offset"), [(1, 0), (1e-4, 0), (0.01, 10), (0.01, 100), (1, 0)])
def test_distances_are_exact_whatever_the_offset(spread: float, offset: float) -> None:
    rows = rows_of(30, 20_000, spread=spread, offset=offset)
    torch.testing.assert_close(squared_distances(rows), brute_distances(rows), rtol=1e-5, atol=0)


def test_the_usual_shortcut_is_wrong_there() -> None:
    rows = rows_of(30, 20_000, spread=0.01, offset=10)
    wrong = torch.cdist(rows, rows).double().square()
    off = ~torch.eye(30, dtype=torch.bool)
    assert ((wrong / brute_distances(rows))[off] - 1).abs().max() > 0.1


def test_a_liar_of_ordinary_length_at_the_far_side_does_not_blur_the_others() -> None:
    """Opposite rows of median norm: whoever centres on one of them loses the honest digits."""
    honest = rows_of(11, 5000, spread=0.01, offset=10)
    middle = honest.norm(dim=1).median()
    liars = -honest[:9]
    liars *= (middle / liars.norm(dim=1))[:, None]
    for rows in (torch.cat([liars, honest]), torch.cat([honest, liars])):
        honest_ones = (rows.mean(dim=1) > 0).nonzero().flatten()
        mine, true = squared_distances(rows)[honest_ones], brute_distances(rows)[honest_ones]
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spreads", [20.0, 40.0, 100.0])
@pytest.mark.parametrize("d", [10, 1000])
def test_a_liar_of_ordinary_length_some_spreads_away_does_not_either(
    d: int, spreads: float
) -> None:
    """Near enough to be overlooked as a bad centre, far enough to cost three digits."""
    honest = rows_of(11, d) + spreads * rows_of(1, d, 1)
    liar = honest.mean(0) + spreads * rows_of(1, d, 2)[0]
    liar *= honest.norm(dim=1).median() / liar.norm()
    rows = torch.cat([liar.expand(9, d), honest])
    mine, true = squared_distances(rows)[9:, 9:], brute_distances(rows)[9:, 9:]
    torch.testing.assert_close(mine, true, rtol=3e-5, atol=0)


@pytest.mark.parametrize(("seed", "apart"), [(1, 3e-4), (3, 1e-3), (4, 3e-4)])
def test_liars_that_offer_themselves_as_centres_one_after_the_other(
    seed: int, apart: float
) -> None:
    """What rounding hides around the first, the second ones look central in."""
    honest = rows_of(11, 10, seed, spread=1e-5, offset=1)
    first = -honest[:1] * (honest.norm(dim=1).median() / honest[0].norm())
    others = honest.mean(0) + apart * rows_of(4, 10, seed + 50)
    rows = torch.cat([first.expand(5, 10), others, honest])
    mine, true = squared_distances(rows)[9:, 9:], brute_distances(rows)[9:, 9:]
    torch.testing.assert_close(mine, true, rtol=1e-5, atol=0)


def test_huge_and_tiny_rows_do_not_overflow_or_vanish() -> None:
    rows = rows_of(12, 3000)
    rows[3], rows[5], rows[7] = 3e38, -3e38, 1e-30
    torch.testing.assert_close(squared_distances(rows), brute_distances(rows), rtol=1e-5, atol=0)
    tiny = rows_of(12, 3000) * 1e-30
    torch.testing.assert_close(squared_distances(tiny), brute_distances(tiny), rtol=1e-5, atol=0)
    doubles = rows_of(12, 30).double()
    doubles[3], doubles[5], doubles[7] = 1e130, -1e130, 1e-130
    torch.testing.assert_close(
        squared_distances(doubles), brute_distances(doubles), rtol=1e-12, atol=0
    )


def test_scores_by_hand() -> None:
    rows = torch.tensor([[0.0], [1.0], [3.0], [10.0], [11.0]])
    # n − f − 2 = 2 nearest others: 1 + 9, 1 + 4, 4 + 9, 1 + 49, 1 + 64
    assert krum_scores(squared_distances(rows), 1).tolist() == [10, 5, 13, 50, 65]
    assert krum(rows, 1).tolist() == [1.0]


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("n", "f"), [(3, 0), (5, 1), (20, 4), (20, 8), (50, 11)])
def test_krum_is_the_brute_force_choice(n: int, f: int, offset: float) -> None:
    for seed in range(15):
        rows = rows_of(n, 40, seed, offset=offset)
        assert torch.equal(krum(rows, f), rows[brute_krum(rows, f)])


def test_other_krums_choose_other_rows() -> None:
    """Unsquared distances, a row as its own neighbour: each differs from Krum in some draws."""
    unsquared = itself = 0
    for seed in range(200):
        rows = rows_of(10, 4, seed)
        squared = squared_distances(rows)
        chosen = int(krum_scores(squared, 2).argmin())
        unsquared += int(krum_scores(squared.sqrt(), 2).argmin()) != chosen
        itself += int(squared.sort(dim=1).values[:, :6].sum(dim=1).argmin()) != chosen
    assert unsquared > 5
    assert itself > 5


@pytest.mark.parametrize("count", [1, 3, 16])
def test_multi_krum_averages_the_best(count: int) -> None:
    rows = rows_of(20, 500)
    scores = torch.tensor(brute_scores(rows, 4))
    wanted = rows[scores.argsort()[:count]].double().mean(0).float()
    torch.testing.assert_close(multi_krum(rows, 4, count), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(multi_krum(rows, 4), multi_krum(rows, 4, 16))


def test_multi_krum_of_one_is_krum() -> None:
    rows = rows_of(20, 500)
    torch.testing.assert_close(multi_krum(rows, 4, 1), krum(rows, 4), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (20, 4), (23, 5), (50, 11)])
def test_bulyan_is_the_brute_force(n: int, f: int) -> None:
    for seed in range(4):
        rows = rows_of(n, 400, seed)
        torch.testing.assert_close(
            bulyan(rows, f), brute_bulyan(rows, f).float(), rtol=1e-5, atol=1e-6
        )


def test_bulyan_in_float64() -> None:
    rows = rows_of(20, 400).double()
    torch.testing.assert_close(bulyan(rows, 4), brute_bulyan(rows, 4), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rule", "n", "f"), [(krum, 10, 4), (multi_krum, 10, 4), (bulyan, 18, 4), (krum, 2, 0)]
)
def test_outside_its_condition_a_rule_refuses(rule, n: int, f: int) -> None:
    needed = {krum: 2 * f + 3, multi_krum: 2 * f + 3, bulyan: 4 * f + 3}[rule]
    with pytest.raises(ValueError, match=f"asks for {needed} rows, there are {n}"):
        rule(rows_of(n, 5), f)
    rule(rows_of(needed, 5), f)


def test_the_condition_is_checked_on_the_rows_left() -> None:
    rows = rows_of(11, 5)
    rows[0, 0] = float("nan")
    with pytest.warns(DroppedRows), pytest.raises(ValueError, match="there are 10"):
        krum(rows, 4)
    with pytest.warns(DroppedRows, match=r"krum left out row\(s\) \[0\]"):
        assert torch.equal(krum(rows, 3), krum(rows[1:], 3))


def test_multi_krum_refuses_to_take_liars_in() -> None:
    for count in (0, 17, 3.5):
        with pytest.raises(
            ValueError, match=f"num_selected={count} must be a whole number in 1 … n − f"
        ):
            multi_krum(rows_of(20, 5), 4, count)


def test_krum_never_chooses_the_far_group() -> None:
    honest = rows_of(13, 300)
    for lie in (20.0, 1e10, 3e38):
        rows = torch.cat([torch.full((5, 300), lie), honest])
        assert any(torch.equal(krum(rows, 5), row) for row in honest)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = rows_of(7, 50)
    for order in itertools.islice(itertools.permutations(range(7)), 0, 5040, 500):
        shuffled = rows[list(order)]
        assert torch.equal(krum(shuffled, 2), krum(rows, 2))
        torch.testing.assert_close(bulyan(shuffled, 1), bulyan(rows, 1))
