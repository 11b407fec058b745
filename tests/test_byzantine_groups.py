"""Masked groups: sums against plain means and Python integers, liars counted by brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from flcourse import fedavg, models
from flcourse.byzantine import (
    Grouped,
    as_aggregate,
    group_clients,
    group_means,
    spoilt_groups,
    tolerated_liars,
)
from flcourse.data import load_dataset, partition
from flcourse.runtime import generator


def rows(count: int, d: int = 50) -> Tensor:
    return torch.randn(count, d, generator=generator(0, "group rows")).clamp(-4, 4) / 4


def median(means: Tensor) -> Tensor:
    """Of an odd or even number of rows."""
    return torch.from_numpy(np.median(means.numpy(), axis=0))


# --- who is with whom -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "g"), [(20, 5), (20, 1), (20, 20), (23, 5), (7, 4), (11, 3)])
def test_groups_are_a_partition_and_none_is_smaller(n: int, g: int) -> None:
    groups = group_clients(n, g, generator(0, "groups"))
    assert sorted(itertools.chain(*groups)) == list(range(n))
    assert len(groups) == n // g and min(map(len, groups)) >= g
    assert max(map(len, groups)) - min(map(len, groups)) <= 1 or n // g == 1


def test_every_client_meets_every_other_equally_often() -> None:
    source, met = generator(0, "meet"), Counter()
    for _ in range(3000):
        for group in group_clients(6, 2, source):
            met[group] += 1
    assert len(met) == 15
    assert stats.chisquare(list(met.values())).pvalue > 0.001


# --- what the server sees -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_means_of_groups_are_plain_means(size: int) -> None:
    sent = rows(12)
    groups = group_clients(12, size, generator(0, "groups"))
    view = group_means(sent, groups, clip=1.0)
    expected = np.stack([sent.double().numpy()[list(group)].mean(axis=0) for group in groups])
    assert view.means.shape == (12 // size, 50) and view.means.dtype == sent.dtype
    np.testing.assert_allclose(view.means.numpy(), expected, atol=2e-7)
    assert min(view.bytes_up) >= 4 * 50


def test_values_beyond_the_clip_are_refused_or_wrap_as_integers_do() -> None:
    sent = rows(4, d=3).double()
    sent[0] = torch.tensor([1e30, -7.0, 2.5])
    groups = ((0, 1, 3), (2,))
    with pytest.raises(ValueError, match="outside"):
        group_means(sent, groups, clip=1.0)
    view = group_means(sent, groups, clip=1.0, beyond="wrap")
    level = (2**31 - 1) // 3
    for place in range(3):
        total = sum(round(float(sent[i, place]) * level) for i in (0, 1, 3)) % 2**32
        signed = total - 2**32 if total >= 2**31 else total
        # 1e30 · level is no exact float64: only that it stays on the clock is certain.
        if place:
            assert float(view.means[0, place]) == pytest.approx(signed / level / 3, abs=1e-8)
    assert float(view.means.abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_word_stands_for_nan(bad: float) -> None:
    sent = rows(4)
    sent[1, 3] = bad
    for beyond in ("wrap", "refuse"):
        with pytest.raises(ValueError, match=r"NaN or infinity|outside"):
            group_means(sent, ((0, 1), (2, 3)), clip=1.0, beyond=beyond)


def test_refusals() -> None:
    for groups in (((0, 1), (1, 2, 3)), ((0, 1),), ((0, 1, 2, 3), ())):
        with pytest.raises(ValueError, match="once, none empty"):
            group_means(rows(4), groups, clip=1.0)
    with pytest.raises(ValueError, match="beyond='clip'"):
        group_means(rows(4), ((0, 1, 2, 3),), clip=1.0, beyond="clip")
    for size in (0, 5):
        with pytest.raises(ValueError, match=f"size={size}"):
            group_clients(4, size, generator(0, "groups"))
        with pytest.raises(ValueError, match=f"size={size}"):
            tolerated_liars(4, size)
    with pytest.raises(ValueError, match="liars=5"):
        spoilt_groups((2, 2), 5)
    with pytest.raises(ValueError, match="sizes"):
        spoilt_groups((2, 0), 1)


# --- in a round -----------------------------------------------------------------------------------


def test_a_liar_spoils_its_group_and_the_median_over_groups_stands_it() -> None:
    honest = 0.3 + rows(12) / 10
    sent = honest.clone()
    sent[5] = -0.9
    grouped = Grouped(median, 4, clip=1.0)
    step = grouped(sent, torch.ones(12))
    middle = honest.mean(dim=0)
    assert float((step - middle).norm()) < 0.3 * float((sent.mean(dim=0) - middle).norm())
    assert grouped.view is not None and grouped.view.means.shape == (3, 50)
    spoilt = [5 in group for group in grouped.view.groups].index(True)
    assert float(grouped.view.means[spoilt].mean()) == pytest.approx(0, abs=0.02)


def test_what_as_aggregate_makes_is_a_rule_over_groups() -> None:
    one, other = (
        Grouped(rule, 4, clip=1.0) for rule in (median, as_aggregate("coordinate_median"))
    )
    torch.testing.assert_close(one(rows(12), torch.ones(12)), other(rows(12), torch.ones(12)))
    assert other.__name__ == "grouped(coordinate_median, size=4)"


def test_groups_change_from_round_to_round_and_follow_from_the_seed() -> None:
    def seen(seed: int) -> list[object]:
        grouped, kept = Grouped(median, 3, clip=1.0, seed=seed), []
        for _ in range(3):
            grouped(rows(12), torch.ones(12))
            kept.append(grouped.view.groups)
        return kept

    assert seen(1) == seen(1) != seen(2)
    assert len(set(seen(1))) == 3


def test_one_group_of_all_is_the_mean_in_training() -> None:
    digits = load_dataset("digits")
    clients = partition(digits.train, "iid", 6, seed=0)
    rules = (fedavg.mean, Grouped(lambda means: means.mean(dim=0), 6, clip=8.0))
    accuracy, weights = [], []
    for rule in rules:
        model = models.Logistic(64, 10, seed=0)
        history = fedavg.train(model, clients, digits.test, rounds=2, aggregate=rule)
        accuracy.append(history.accuracy)
        weights.append(model[1].weight.detach())
    assert {len(client) for client in clients} <= {239, 240}  # nearly equal weights
    assert float((weights[0] - weights[1]).abs().max()) < 1e-3
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.005)


def test_a_history_says_which_rule_ran() -> None:
    assert Grouped(median, 4, clip=1.0).__name__ == "grouped(median, size=4)"


# --- how many liars -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 2), (4, 3, 2), (5,)])
def test_spoilt_groups_by_all_placements(sizes: tuple[int, ...]) -> None:
    owner = [j for j, size in enumerate(sizes) for _ in range(size)]
    for liars in range(len(owner) + 1):
        placements = list(itertools.combinations(owner, liars))
        counted = Counter(len(set(placed)) for placed in placements)
        expected = [counted[k] / len(placements) for k in range(len(sizes) + 1)]
        assert spoilt_groups(sizes, liars) == pytest.approx(expected, abs=1e-12)


def test_spoilt_groups_against_the_hypergeometric_distribution() -> None:
    """A given group is hit unless all its members are among the honest: linearity of the mean."""
    chances = spoilt_groups((5,) * 20, 7)
    clean = stats.hypergeom(100, 7, 5).pmf(0)
    assert sum(chances) == pytest.approx(1)
    assert sum(k * p for k, p in enumerate(chances)) == pytest.approx(20 * (1 - clean))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_as_many_liars_as_promised_never_hold_half_of_the_groups(size: int) -> None:
    groups, promised = 12 // size, tolerated_liars(12, size)
    assert sum(spoilt_groups((size,) * groups, promised)[: (groups + 1) // 2]) == pytest.approx(1)
    more = spoilt_groups((size,) * groups, promised + 1)
    assert sum(more[math.ceil(groups / 2) :]) > 0


def test_another_rule_another_condition() -> None:
    def krum(m: int) -> int:
        return (m - 3) // 2

    assert tolerated_liars(20, 1, krum) == 8
    assert tolerated_liars(20, 4, krum) == 1
    assert tolerated_liars(20, 20) == tolerated_liars(20, 10, krum) == 0
