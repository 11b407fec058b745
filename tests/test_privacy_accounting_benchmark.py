"""The benchmark's own code: it must not rot, and must refuse a loose accountant."""

import itertools
import json
import statistics

import pytest

pytest.importorskip("dp_accounting")
pytest.importorskip("opacus")

from benchmarks import privacy_accounting as benchmark

RUN = benchmark.Run(1.5, 0.05, 300, 1e-5)


def test_a_run_is_bracketed_raced_and_shown():
    entry, seconds = benchmark.bracket(RUN), benchmark.race(RUN, 1)
    assert all(len(times) == 1 and times[0] > 0 for times in seconds.values())
    line = benchmark.row(RUN, entry, benchmark.accountants(RUN), benchmark.opacus(RUN), seconds)
    assert line["PLD"].startswith("2.89") and line["BASIC"] == "–" and line["RDP"] == "3.184"
    json.dumps([entry, line])
    slower = benchmark.against([seconds], "dp-accounting")["median"]
    ours = statistics.median(seconds["ours"])
    assert slower == pytest.approx(seconds["dp-accounting"][0] / ours)


@pytest.mark.parametrize("error", [-0.05, 0.01])
def test_an_accountant_outside_of_the_bracket_stops_the_script(error, monkeypatch):
    right = benchmark.epsilon

    def wrong(*args):
        return right(*args) + error

    monkeypatch.setattr(benchmark, "epsilon", wrong)
    with pytest.raises(AssertionError):
        benchmark.bracket(RUN)


def test_the_random_runs_are_always_the_same_and_not_trivial():
    first, again = (list(itertools.islice(benchmark.random_runs(), 5)) for _ in range(2))
    assert first == again and len(set(first)) == 5
    assert all(0.01 <= benchmark.ours(run) <= 60 for run in first)


def test_a_competitor_that_fails_is_left_out():
    def fails():
        raise RuntimeError("no")

    assert benchmark.timed(fails)[0] is None
