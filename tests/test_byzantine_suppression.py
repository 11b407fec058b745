"""Colluders that cancel: sums by hand, lengths, what a rule makes of rows around one row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flcourse import fedavg
from flcourse.byzantine import (
    centered_clipping,
    geometric_median,
    group_means,
    krum,
    norm_filter,
    stealth_suppression,
    suppression,
)
from flcourse.runtime import generator

ATTACKS = {"plain": suppression, "stealth": stealth_suppression}


def draw(seed: int = 0) -> torch.Generator:
    return generator(seed, "test suppression")


def rows(count: int, d: int = 200, seed: int = 0) -> Tensor:
    """Updates that agree somewhat and have different lengths, [count, d] float32."""
    rng = generator(seed, "rows", count)
    lengths = 0.5 + torch.rand(count, 1, generator=rng)
    return lengths * (1 + torch.randn(count, d, generator=rng))


def exact_mean(*parts: Tensor) -> np.ndarray:
    return np.concatenate([part.double().numpy() for part in parts]).mean(axis=0)


def alone(row: Tensor, n: int) -> np.ndarray:
    return row.double().numpy() / n


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("colluders", [2, 3, 4, 5, 8])
def test_the_mean_is_what_the_others_leave(name: str, colluders: int) -> None:
    honest, own = rows(1), rows(colluders, seed=1)
    lies = ATTACKS[name](honest, own, generator=draw())
    assert lies.shape == own.shape and lies.dtype == torch.float32
    expected = alone(honest[0], colluders + 1)
    scale = float(lies.abs().max())
    np.testing.assert_allclose(exact_mean(honest, lies), expected, atol=2e-7 * scale)
    assert float((lies[0] + lies[1]).abs().max()) == 0 or colluders == 3


@pytest.mark.parametrize("target", [0, 2, 5])
def test_with_a_target_the_other_honest_rows_go_as_well(target: int) -> None:
    honest, own = rows(6), rows(4, seed=1)
    lies = suppression(honest, own, generator=draw(), target=target)
    expected = alone(honest[target], 10)
    np.testing.assert_allclose(exact_mean(honest, lies), expected, atol=1e-5)
    without = exact_mean(honest, suppression(honest, own, generator=draw()))
    np.testing.assert_allclose(without, exact_mean(honest) * 6 / 10, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 10.0, 1000.0])
@pytest.mark.parametrize("colluders", [2, 3, 6])
def test_each_row_is_as_long_as_told(scale: float, colluders: int) -> None:
    own = rows(colluders, seed=1)
    lies = suppression(rows(1), own, generator=draw(), scale=scale)
    expected = scale * np.linalg.norm(own.double().numpy(), axis=1).mean()
    np.testing.assert_allclose(lies.double().norm(dim=1).numpy(), expected, rtol=1e-6)


def test_weights_make_the_weighted_sum_cancel() -> None:
    honest, own = rows(1), rows(4, seed=1)
    counts = torch.tensor([10.0, 300.0, 20.0, 25.0])
    all_counts = torch.cat([torch.tensor([50.0]), counts])
    share = 50 / 405
    lies = suppression(honest, own, generator=draw(), weights=counts)
    got = fedavg.mean(torch.cat([honest, lies]).double(), all_counts)
    assert got.numpy() == pytest.approx(share * honest[0].double().numpy(), abs=1e-4)
    careless = suppression(honest, own, generator=draw())
    wrong = fedavg.mean(torch.cat([honest, careless]).double(), all_counts)
    assert float((wrong - share * honest[0]).norm() / (share * honest[0]).norm()) > 5


def test_float32_loses_a_small_rest_beside_a_large_pair_and_the_clock_does_not() -> None:
    honest, own = rows(1), rows(4, seed=1)

    def error(scale: float) -> float:
        together = torch.cat([honest, suppression(honest, own, generator=draw(), scale=scale)])
        rest = together.mean(dim=0).double().numpy() * 5 - honest[0].numpy()
        return float(np.abs(rest).max())

    assert error(10.0) < 1e-4 < 0.1 < error(1e7)
    large = suppression(honest, own, generator=draw(), scale=1e7)
    together = torch.cat([honest, large]).double()
    view = group_means(together, (tuple(range(5)),), clip=16.0, beyond="wrap")
    assert float((view.means[0] * 5 - honest[0]).abs().max()) < 1e-6


# --- stealth --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("colluders", [2, 5, 10])
def test_stealth_stays_in_the_envelope(width: float, colluders: int) -> None:
    own = rows(colluders, seed=1)
    lengths = np.linalg.norm(own.double().numpy(), axis=1)
    low, high = lengths.mean() + width * lengths.std(ddof=1) * np.array([-1, 1])
    for seed in range(5):
        lies = stealth_suppression(rows(1), own, generator=draw(seed), width=width)
        sent = lies.double().norm(dim=1).numpy()
        assert (sent > low * (1 - 1e-6)).all() and (sent < high * (1 + 1e-6)).all()


def test_stealth_moves_only_what_own_training_moves() -> None:
    own = rows(4, d=2000, seed=1)
    own[:, :500] = 0
    own[:, 500:600] *= 10
    lies = stealth_suppression(rows(1, d=2000), own, generator=draw())
    size = lies.double().square().mean(dim=0).sqrt()
    assert float(size[:500].max()) == 0
    assert float(size[500:600].mean() / size[600:].mean()) == pytest.approx(10, rel=0.2)


def test_stealth_with_a_target_needs_enough_colluders_to_carry_the_rest() -> None:
    honest = rows(4)
    lies = stealth_suppression(honest, own := rows(6, seed=1), generator=draw(), target=1)
    np.testing.assert_allclose(exact_mean(honest, lies), alone(honest[1], 10), atol=1e-6)
    lengths = own.double().norm(dim=1)
    assert float(lies.double().norm(dim=1).max()) <= float(lengths.mean() + lengths.std()) * 1.001
    with pytest.raises(ValueError, match="more colluders"):
        stealth_suppression(honest, rows(2, seed=1), generator=draw(), target=1)


# --- what rules make of it: the target's row itself -----------------------------------------------


@pytest.mark.parametrize("colluders", [2, 4, 6])
def test_the_median_of_pairs_around_one_row_is_that_row(colluders: int) -> None:
    honest, own = rows(1), rows(colluders, seed=1)
    lies = suppression(honest, own, generator=draw(), scale=1000.0)
    median = np.median(torch.cat([lies, honest]).numpy(), axis=0)
    inside = (lies.abs() > honest.abs()).all(dim=0).numpy()
    assert inside.mean() > 0.9
    np.testing.assert_array_equal(median[inside], honest[0].numpy()[inside])
    near = lies.abs().min(dim=0).values.numpy()
    np.testing.assert_array_equal(median, np.clip(honest[0].numpy(), -near, near))


def test_krum_by_hand_picks_the_only_honest_row() -> None:
    honest, own = rows(1), rows(4, seed=1)
    sent = torch.cat([suppression(honest, own, generator=draw()), honest]).double().numpy()
    squares = ((sent[:, None] - sent[None]) ** 2).sum(axis=2)
    scores = np.sort(squares, axis=1)[:, 1:3].sum(axis=1)  # f = 1: n - f - 2 = 2 neighbours
    assert int(scores.argmin()) == 4


@pytest.mark.parametrize(
    ("rule", "cosine"),
    [
        (lambda rows: krum(rows, 1), 1.0),
        (geometric_median, 0.999),
        (lambda rows: centered_clipping(rows, float(rows.norm(dim=1).median())), 0.95),
        (lambda rows: norm_filter(rows, 3 * float(rows.norm(dim=1).min())), 1.0),
    ],
    ids=["krum", "geometric median", "centred clipping", "norm filter"],
)
def test_robust_rules_point_at_the_only_honest_row(rule, cosine: float) -> None:
    """The story of chapter 17: outside their condition they isolate it as the mean does."""
    for seed in range(3):
        honest, own = rows(1, d=3000, seed=seed), rows(4, d=3000, seed=seed + 10)
        lies = suppression(honest, own, generator=draw(seed))
        result = rule(torch.cat([lies[:2], honest, lies[2:]]))
        got = float(torch.nn.functional.cosine_similarity(result, honest[0], dim=0))
        assert got >= cosine - 1e-6
        untold = rule(torch.cat([own[:2], honest, own[2:]]))  # nobody lies
        if cosine < 1:
            apart = torch.nn.functional.cosine_similarity(untold, honest[0], dim=0)
            assert float(apart) < 0.95


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_refusals(name: str) -> None:
    attack, good = ATTACKS[name], (rows(3), rows(4))
    with pytest.raises(ValueError, match="at least two"):
        attack(rows(3), rows(1), generator=draw())
    with pytest.raises(ValueError, match="none of the 3 honest rows"):
        attack(*good, generator=draw(), target=3)
    with pytest.raises(ValueError, match=r"\[3, 7\]"):
        attack(rows(3, d=7), rows(4), generator=draw())


def test_more_refusals() -> None:
    good = (rows(3), rows(4))
    with pytest.raises(ValueError, match="scale=0"):
        suppression(*good, generator=draw(), scale=0)
    with pytest.raises(ValueError, match="width=-1"):
        stealth_suppression(*good, generator=draw(), width=-1)
    with pytest.raises(ValueError, match="4 positive"):
        suppression(*good, generator=draw(), weights=torch.ones(3))
    with pytest.raises(ValueError, match="weights with target"):
        suppression(*good, generator=draw(), weights=torch.ones(4), target=0)


def test_the_draw_decides_and_nothing_else() -> None:
    good = (rows(1), rows(4))
    for attack in ATTACKS.values():
        first, again, other = (attack(*good, generator=draw(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert attack(rows(1).double(), rows(4).double(), generator=draw()).dtype == torch.float64
