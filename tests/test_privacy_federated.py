"""DP-FedAvg: each sum by hand, noise where it is said to be, and what must be refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from flcourse.data import Client, Dataset, load_dataset, partition
from flcourse.fedavg import RoundContext, local_updates, train
from flcourse.models import MLP
from flcourse.privacy import (
    Accountant,
    AdaptiveClip,
    Budget,
    BudgetExceededError,
    DPFedAvg,
    clip_layers,
    epsilon,
    sample_poisson,
    train_private,
)
from flcourse.privacy.clipping import row_norms
from flcourse.runtime import generator
from flcourse.vectors import flatten, layout

MODEL = MLP(200, 20, 4)
SIZE = len(flatten(MODEL))
ROWS = torch.randn(8, SIZE, generator=generator(0, "rows")) * torch.linspace(1e-3, 1, 8)[:, None]
WEIGHTS = torch.arange(1.0, 9.0)


def _context(number: int = 1, count: int = 8, seed: int = 0) -> RoundContext:
    cohort = [Client(k, torch.zeros(1, 200), torch.zeros(1).long()) for k in range(count)]
    return RoundContext(number, seed, cohort, WEIGHTS[:count], MODEL)


def _step(dp: DPFedAvg, rows: Tensor = ROWS, number: int = 1) -> Tensor:
    context = _context(number, len(rows))
    return dp.aggregate(dp.transform(rows, context), WEIGHTS[: len(rows)])


def _clipped(rows: Tensor, norm: float) -> np.ndarray:
    plain = rows.double().numpy()
    return plain * np.minimum(1, norm / np.linalg.norm(plain, axis=1))[:, None]


# --- the sum ------------------------------------------------------------------------------------


def test_without_noise_it_is_the_sum_of_clipped_rows_over_the_expected_number() -> None:
    """Weights are ignored, and the denominator is q·N whoever came."""
    dp = DPFedAvg(0.5, 0.0, num_clients=40, sample_rate=0.25)
    expected = _clipped(ROWS, 0.5).sum(0) / 10
    assert np.allclose(_step(dp).numpy(), expected, atol=1e-6)
    assert np.allclose(_step(dp, ROWS[:3]).numpy(), _clipped(ROWS[:3], 0.5).sum(0) / 10, atol=1e-6)


def test_layers_are_clipped_apart_where_asked() -> None:
    dp = DPFedAvg(0.5, 0.0, num_clients=8, per_layer=True)
    expected = clip_layers(ROWS, layout(MODEL), 0.5).rows.mean(0)
    assert torch.allclose(_step(dp), expected, atol=1e-6)


STDS = {  # of one value of the step: C = 0.5, z = 2, N = 8, d = 4,104
    "server": 0.5 * 2 / 8,
    "distributed": 0.5 * 2 / 8,
    "local": 0.5 * 2 * math.sqrt(8) / 8,
}


@pytest.mark.parametrize("where", STDS)
def test_noise_has_the_size_that_each_place_gives_it(where: str) -> None:
    dp = DPFedAvg(0.5, 2.0, num_clients=8, where=where)
    noise = np.concatenate(
        [(_step(dp, number=r) - torch.as_tensor(_clipped(ROWS, 0.5)).mean(0)).numpy()
         for r in range(1, 11)]
    )  # fmt: skip
    std = STDS[where]
    assert stats.kstest(noise, stats.norm(scale=std).cdf).pvalue > 1e-3
    for factor in (0.9, 1.1):
        assert stats.kstest(noise, stats.norm(scale=std * factor).cdf).pvalue < 1e-6
    assert dp.noise_norm(SIZE) == pytest.approx(std * math.sqrt(SIZE))


@pytest.mark.parametrize("where", ["distributed", "local"])
def test_each_client_adds_noise_of_its_own(where: str) -> None:
    dp = DPFedAvg(0.5, 2.0, num_clients=8, where=where, honest=0.5)
    noise = dp.transform(ROWS, _context()).double().numpy() - _clipped(ROWS, 0.5)
    each = 1.0 if where == "local" else 1.0 / math.sqrt(0.5 * 8)
    assert np.allclose(noise.std(1), each, rtol=0.06)
    assert np.abs(np.corrcoef(noise) - np.eye(8)).max() < 0.08
    if where == "distributed":  # the half that is honest gives the whole of the server's noise
        assert noise[:4].sum(0).std() == pytest.approx(1.0, rel=0.06)
        assert dp.noise_norm(SIZE) == pytest.approx(math.sqrt(2 * SIZE) / 8)


def test_noise_differs_by_round_and_seed_and_secure_noise_always() -> None:
    dp = DPFedAvg(0.5, 2.0, num_clients=8)
    assert torch.equal(_step(dp), _step(dp)) and not torch.equal(_step(dp), _step(dp, number=2))
    assert not torch.equal(_step(dp), _step(DPFedAvg(0.5, 2.0, num_clients=8, seed=1)))
    secure = DPFedAvg(0.5, 2.0, num_clients=8, secure=True)
    assert not torch.equal(_step(secure), _step(secure))
    assert float(_step(secure).std()) == pytest.approx(float(_step(dp).std()), rel=0.1)


@pytest.mark.parametrize("where", ["server", "distributed"])
def test_a_round_to_which_nobody_came_still_has_its_noise(where: str) -> None:
    dp = DPFedAvg(0.5, 2.0, num_clients=80, sample_rate=0.1, where=where)
    assert float(_step(dp, ROWS[:0]).std()) == pytest.approx(0.5 * 2 / 8, rel=0.06)


# --- accounts -----------------------------------------------------------------------------------


def test_what_is_recorded_is_what_was_released() -> None:
    accountant = Accountant()
    dp = DPFedAvg(0.5, 1.1, num_clients=80, sample_rate=0.1, accountant=accountant)
    for number in range(1, 6):
        _step(dp, number=number)
    assert accountant.epsilon(1e-5) == pytest.approx(epsilon(1.1, 5, 1e-5, 0.1), rel=1e-6)


def test_a_budget_stops_the_round_that_would_overspend(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.json", epsilon=epsilon(1.1, 3, 1e-5), delta=1e-5)
    dp = DPFedAvg(0.5, 1.1, num_clients=8, accountant=budget)
    for number in range(1, 4):
        _step(dp, number=number)
    with pytest.raises(BudgetExceededError):
        _step(dp, number=4)


def test_local_noise_is_not_amplified_and_replacing_costs_what_half_the_noise_does() -> None:
    for options, z in (
        ({"where": "local", "sample_rate": 0.1, "num_clients": 80}, 1.1),
        ({"adjacency": "replace-one", "num_clients": 8}, 0.55),
    ):
        accountant = Accountant()
        _step(DPFedAvg(0.5, 1.1, accountant=accountant, **options))
        assert accountant.epsilon(1e-5) == pytest.approx(epsilon(z, 1, 1e-5), rel=1e-6)


def test_fixed_cohorts_get_their_own_bound_never_poissons() -> None:
    accountant = Accountant()
    dp = DPFedAvg(
        0.5, 1.1, num_clients=80, sample_rate=0.1, sampling="fixed", accountant=accountant
    )
    assert dp.adjacency == "replace-one"
    for number in range(1, 6):
        _step(dp, number=number)
    assert {r.sampling for r in accountant.releases} == {"fixed"}
    with pytest.raises(ValueError, match="fixed"):
        accountant.epsilon(1e-5, method="pld")
    assert accountant.epsilon(1e-5, method="rdp") > epsilon(1.1, 5, 1e-5, 0.1)
    with pytest.raises(ValueError, match="a cohort of 7, but 8 were expected"):
        _step(dp, ROWS[:7])


# --- refusals -----------------------------------------------------------------------------------


def test_noise_without_clipping_is_refused() -> None:
    dp = DPFedAvg(0.5, 2.0, num_clients=8)
    with pytest.raises(ValueError, match="aggregate without transform"):
        dp.aggregate(ROWS, WEIGHTS)
    dp.transform(ROWS, _context())
    with pytest.raises(ValueError, match=r"more than clip_norm=0\.5"):
        dp.aggregate(ROWS, WEIGHTS)
    _step(dp)
    with pytest.raises(ValueError, match="aggregate without transform"):
        dp.aggregate(ROWS, WEIGHTS)  # a second time: the same noise


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_client_is_refused_or_dropped(bad: float) -> None:
    rows = ROWS.clone()
    rows[2, 5] = bad
    with pytest.raises(ValueError, match=r"row\(s\) \[2\]"):
        _step(DPFedAvg(0.5, 2.0, num_clients=8), rows)
    dropped = DPFedAvg(0.5, 0.0, num_clients=8, not_finite="drop")
    expected = _clipped(ROWS, 0.5)[[0, 1, 3, 4, 5, 6, 7]].sum(0) / 8
    assert np.allclose(_step(dropped, rows).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_norm": -1.0}, "clip_norm=-1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"noise_multiplier": 0.0, "accountant": Accountant()}, "nothing to account for"),
        ({"sample_rate": 0.0}, "sample_rate=0"),
        ({"num_clients": 0}, "num_clients=0"),
        ({"where": "cloud"}, "where='cloud' is unknown"),
        ({"sampling": "cyclic"}, "sampling='cyclic' is unknown"),
        ({"honest": 0.0}, "honest=0"),
        ({"adjacency": "replace-one", "sample_rate": 0.5}, "has no theorem here"),
        ({"adjacency": "add/remove", "sampling": "fixed", "sample_rate": 0.5}, "no theorem here"),
        ({"clip_norm": AdaptiveClip(1.0, 8), "where": "local"}, "AdaptiveClip needs"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DPFedAvg(**({"clip_norm": 1.0, "noise_multiplier": 1.0, "num_clients": 8} | options))


# --- runs ---------------------------------------------------------------------------------------


def test_poisson_cohorts_are_independent_coins() -> None:
    clients = [Client(k, torch.zeros(1, 2), torch.zeros(1).long()) for k in range(200)]
    sizes, together, runs = [], 0, 500
    for number in range(runs):
        cohort = sample_poisson(clients, 0.3, generator(0, "cohort", number))
        sizes.append(len(cohort))
        together += {3, 150} <= {client.index for client in cohort}
    # A fixed number would have no spread; Poisson sampling's is that of 200 coins.
    assert np.mean(sizes) == pytest.approx(60, abs=1)
    assert np.std(sizes) == pytest.approx(math.sqrt(200 * 0.3 * 0.7), rel=0.12)
    assert stats.binomtest(together, runs, 0.09).pvalue > 1e-3
    assert sample_poisson(clients, 1.0, generator(0, "x")) == clients
    with pytest.raises(ValueError, match="rate=0"):
        sample_poisson(clients, 0.0, generator(0, "x"))


@pytest.fixture(scope="module")
def federation() -> tuple[list[Client], Dataset]:
    split = load_dataset("digits")
    return partition(split.train, "iid", 20, seed=0), split.test


Federation = tuple[list[Client], Dataset]


def test_with_everybody_and_no_noise_it_is_fedavg(federation: Federation) -> None:
    clients, test = federation
    plain, private = MLP(64, 32, 10), MLP(64, 32, 10)
    dp = DPFedAvg(1e3, 0.0, num_clients=20)
    options = {"rounds": 4, "lr": 0.1, "seed": 3, "batch_size": 8}

    def unweighted(rows: Tensor, weights: Tensor) -> Tensor:
        return rows.mean(dim=0)

    one = train(plain, clients, test, aggregate=unweighted, **options)
    two = train_private(private, clients, test, dp, **options)
    assert torch.allclose(flatten(plain), flatten(private), atol=1e-5)
    assert one.accuracy == pytest.approx(two.accuracy, abs=0.01) and one.accuracy[-1] > 0.3
    assert [r.clients for r in two.rounds] == [list(range(20))] * 4


def test_a_private_run_plugs_into_both_loops_and_learns(federation: Federation) -> None:
    clients, test = federation
    ends, options = [], {"rounds": 12, "lr": 0.1, "batch_size": 8}
    for z in (0.05, 3.0):
        dp = DPFedAvg(1.0, z, num_clients=20)
        loop = {"transform": dp.transform, "aggregate": dp.aggregate}
        history = train(MLP(64, 32, 10), clients, test, **options, **loop)
        poisson = DPFedAvg(1.0, z, num_clients=20, sample_rate=0.5)
        drawn = train_private(MLP(64, 32, 10), clients, test, poisson, **options)
        ends.append((history.accuracy[-1], drawn.accuracy[-1]))
        assert len({len(r.clients) for r in drawn.rounds}) > 1
    assert min(ends[0]) > 0.7  # little noise: seen .83 and .85
    assert max(ends[1]) < 0.6  # much: seen .52 and .21


def test_adaptive_clipping_follows_the_norms(federation: Federation) -> None:
    clients, test = federation
    clip = AdaptiveClip(0.01, 20, count_noise=0.5, learning_rate=0.5)
    dp = DPFedAvg(clip, 0.1, num_clients=20)
    history = train_private(MLP(64, 32, 10), clients, test, dp, rounds=25, lr=0.1)
    late = np.median(history.rounds[-1].update_norms)
    assert clip.history[0] == 0.01 and late / 2 < clip.clip_norm < late * 2


def test_the_wrong_federation_is_refused(federation: Federation) -> None:
    clients, test = federation
    with pytest.raises(ValueError, match="num_clients=8, but there are 20"):
        train_private(MLP(64), clients, test, DPFedAvg(1.0, 1.0, num_clients=8), rounds=1)
    fixed = DPFedAvg(1.0, 1.0, num_clients=20, sample_rate=0.5, sampling="fixed")
    with pytest.raises(ValueError, match="by Poisson"):
        train_private(MLP(64), clients, test, fixed, rounds=1)
    poisson = DPFedAvg(1.0, 1.0, num_clients=20)
    with pytest.raises(ValueError, match="a cohort of 10, but 20 were expected"):
        train(MLP(64), clients, test, rounds=1, fraction=0.5,
              transform=poisson.transform, aggregate=poisson.aggregate)  # fmt: skip


def test_rows_of_a_real_round_are_clipped(federation: Federation) -> None:
    clients, _ = federation
    model: nn.Module = MLP(64, 32, 10)
    rows, weights = local_updates(model, clients, epochs=1, batch_size=8, lr=0.1)
    dp = DPFedAvg(0.1, 1.0, num_clients=20)
    sent = dp.transform(rows, RoundContext(1, 0, clients, weights, model))
    assert (row_norms(rows) > 0.1).all() and torch.allclose(
        row_norms(sent), torch.full((20,), 0.1, dtype=torch.float64), rtol=1e-5
    )
