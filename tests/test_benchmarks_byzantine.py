"""The Byzantine benchmark's own code, and our rules beside its brute force, without byzfl."""

import numpy as np
import pytest
import torch

from benchmarks import byzantine as benchmark
from benchmarks import byzantine_oracles as oracles
from benchmarks.byzantine import BULYAN, CASES, SPREAD, Setting
from flcourse import byzantine as rules

SMALL = Setting(entries=3000)
LIARS = SMALL.liars
ROUNDING = 64 * oracles.FLOAT32


@pytest.fixture(scope="module", params=[0.0, 10.0], ids=["updates", "offset"])
def rows(request):
    return benchmark.updates(SMALL) + request.param


def test_liars_send_the_common_step_back_five_times():
    rows = benchmark.updates(SMALL).double()
    honest, lies = rows[LIARS:].mean(dim=0), rows[:LIARS].mean(dim=0)
    assert torch.cosine_similarity(honest, lies, dim=0) < -0.9
    assert 4.5 < lies.norm() / honest.norm() < 5.5


def test_our_choices_are_those_of_brute_force(rows):
    squared = oracles.squared_distances(rows.numpy())
    assert torch.equal(rules.krum(rows, LIARS), rows[oracles.krum_choice(squared, LIARS)])
    chosen = oracles.multi_krum_choice(squared, LIARS, SMALL.clients - LIARS)
    exact = rows.double()[chosen].mean(dim=0)
    assert (rules.multi_krum(rows, LIARS) - exact).abs().max() < ROUNDING * rows.abs().max()


def test_our_coordinate_rules_are_those_of_brute_force(rows):
    size = float(rows.abs().max())
    median = np.median(rows.double().numpy(), axis=0)
    assert np.abs(oracles.median(rows.numpy())[0] - median).max() < 1e-15
    assert np.abs(rules.coordinate_median(rows).numpy() - median).max() < oracles.FLOAT32 * size
    trimmed, _ = oracles.trimmed_mean(rows.numpy(), LIARS)
    assert np.abs(rules.trimmed_mean(rows, LIARS).numpy() - trimmed).max() < ROUNDING * size


def test_our_bulyan_is_that_of_brute_force_but_for_ties(rows):
    squared = oracles.squared_distances(rows.numpy())
    chosen = rows.numpy()[oracles.bulyan_choice(squared, LIARS)]
    exact, gap = oracles.nearest_to_middle(chosen, SMALL.clients - 4 * LIARS)
    clear = gap > 4 * oracles.FLOAT32 * np.abs(chosen).max()
    assert clear.mean() > 0.9
    apart = np.abs(BULYAN.ours(rows, LIARS).numpy() - exact)
    assert apart[clear].max() < ROUNDING * np.abs(chosen).max()


def test_our_mixing_is_that_of_brute_force(rows):
    squared = oracles.squared_distances(rows.numpy())
    exact = oracles.mixed(rows.numpy(), squared, LIARS)
    got = rules.nearest_neighbour_mixing(rows, LIARS).numpy()
    assert np.abs(got - exact).max() < ROUNDING * float(rows.abs().max())


@pytest.mark.parametrize("steps", [1, 3])
def test_our_clipping_is_that_of_brute_force(steps):
    rows = benchmark.updates(SMALL)
    name = "centred clipping, 1 step" if steps == 1 else "centred clipping, 3 steps"
    exact = oracles.clipped(rows.numpy(), benchmark.clip_norm(SMALL.entries), steps)
    assert np.abs(CASES[name].ours(rows, LIARS).numpy() - exact).max() < ROUNDING * SPREAD
    norms = rows.norm(dim=1)
    assert 0 < (norms > benchmark.clip_norm(SMALL.entries)).sum() < len(rows)


def test_nothing_near_our_geometric_median_is_better(rows):
    best = CASES["geometric median"].ours(rows, LIARS).numpy().astype(np.float64)
    least = oracles.total_distance(rows.numpy(), best)
    for step in 1e-3 * SPREAD * np.random.default_rng(0).standard_normal((20, SMALL.entries)):
        assert oracles.total_distance(rows.numpy(), best + step) > least


def test_brute_force_krum_by_hand():
    points = np.array([[0.0], [1.0], [3.0], [7.0], [100.0]])
    squared = oracles.squared_distances(points)
    assert squared[1].tolist() == [1, 0, 4, 36, 9801]
    assert oracles.krum_scores(squared, 2).tolist() == [10, 5, 13, 52, 93**2 + 97**2]
    assert oracles.krum_choice(squared, 1) == 1
    assert oracles.multi_krum_choice(squared, 1, 3) == [0, 1, 2]


def test_turns_start_with_another_each_time_and_drop_the_first():
    calls = []
    took = benchmark.take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "abbaab"
    assert {name: len(values) for name, values in took.items()} == {"a": 2, "b": 2}


def test_ratios_are_formed_within_a_turn():
    found = benchmark.compared({"ours": [1, 2, 4], "peer": [3, 10, 4]}, "ours", "peer")
    assert found == {"times faster": 3, "least and most": [1, 5]}


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_memory_is_counted_in_copies_of_the_matrix(copies):
    rows = torch.ones(50, 100_000)

    def take(part):
        return [part + i for i in range(copies)]

    assert benchmark.extra_copies(take, rows) == pytest.approx(copies, abs=0.15)


@pytest.mark.parametrize("ratio, copies, reached", [(4, 0.1, True), (2, 0.1, False), (4, 1, False)])
def test_a_rule_reaches_its_aim_in_speed_and_memory(ratio, copies, reached):
    case = benchmark.Case(rules.krum, 3, 0.2)
    memory = {"ours": copies, "peer": 9.0}
    found = benchmark.judged(case, {"ours": [1.0], "peer": [float(ratio)]}, "peer", memory)
    assert found["reached"] is reached
