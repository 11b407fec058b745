"""Budgets: kept in a file, composed over runs, refused once they are spent."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from flcourse.privacy import Budget, BudgetExceededError, epsilon, noise_multiplier


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "privacy.json"


def test_runs_add_up_over_processes_and_are_composed(path):
    first = Budget(path, epsilon=3.0, delta=1e-5)
    assert (first.spent, first.remaining, first.releases) == (0.0, 3.0, ())
    assert first.spend(1.1, 500, 0.01, what="first run") == epsilon(1.1, 500, 1e-5, 0.01)
    again = Budget(path, epsilon=3.0, delta=1e-5)
    total = again.spend(1.1, 500, 0.01, what="second run")
    assert total == first.spent == epsilon(1.1, 1000, 1e-5, 0.01)
    assert total < 2 * epsilon(1.1, 500, 1e-5, 0.01)
    assert first.remaining == pytest.approx(3.0 - total)
    assert [release.steps for release in first.releases] == [500, 500]


def test_a_budget_is_spent_to_its_end_and_no_further(path):
    budget = Budget(path, epsilon=1.0, delta=1e-6)
    z = noise_multiplier(1.0, 100, 1e-6, 0.1)
    budget.spend(z, 60, 0.1)
    budget.spend(z, 40, 0.1)
    assert budget.spent == pytest.approx(1.0, rel=1e-5)
    before = path.read_text()
    with pytest.raises(BudgetExceededError, match=r"above the budget of 1 .*more noise"):
        budget.spend(z, 1, 0.1)
    assert path.read_text() == before


def test_training_can_be_given_a_budget_as_its_accountant(path):
    budget, rounds = Budget(path, epsilon=2.0, delta=1e-5), 0
    with pytest.raises(BudgetExceededError):
        while rounds < 1000:
            budget.record(4.0, 1, 0.5)
            rounds += 1
    assert epsilon(4.0, rounds, 1e-5, 0.5) <= 2.0 < epsilon(4.0, rounds + 1, 1e-5, 0.5)
    assert len(budget.releases) == 1, "equal rounds are one line of the file"
    assert budget.releases[0].steps == rounds


@pytest.mark.parametrize(
    "change", [{"epsilon": 30.0}, {"delta": 1e-4}, {"unit": "example"}, {"method": "rdp"}]
)
def test_a_budget_is_set_once(path, change):
    terms = {"epsilon": 3.0, "delta": 1e-5}
    Budget(path, **terms).spend(2.0)
    with pytest.raises(ValueError, match="set once"):
        Budget(path, **(terms | change))


def test_each_method_keeps_its_own_count(path):
    budget = Budget(path, epsilon=9.0, delta=1e-5, method="rdp")
    assert budget.spend(2.0, 10) == epsilon(2.0, 10, 1e-5, method="rdp")
    with pytest.raises(ValueError, match="does not cover"):
        Budget(path.with_name("z.json"), 9.0, 1e-5, method="zcdp").spend(2.0, 10, 0.1)
    assert Budget(path.with_name("z.json"), 9.0, 1e-5, method="zcdp").releases == ()


@pytest.mark.parametrize(
    "terms, words",
    [
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"delta": 1.0}, "delta=1"),
        ({"method": "clt"}, "approximation"),
        ({"method": "magic"}, "unknown"),
    ],
)
def test_terms_that_are_no_budget_are_refused_and_leave_no_file(path, terms, words):
    with pytest.raises(ValueError, match=words):
        Budget(path, **({"epsilon": 1.0, "delta": 1e-5} | terms))
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"epsilon": 3.0}', '{"spent": [{}]}'])
def test_a_damaged_file_is_not_taken_for_an_unspent_budget(path, content):
    Budget(path, epsilon=3.0, delta=1e-5)
    path.write_text(content)
    with pytest.raises(ValueError, match="restore it from a backup"):
        Budget(path, epsilon=3.0, delta=1e-5)
    assert path.read_text() == content


def test_a_changed_entry_is_refused(path):
    budget = Budget(path, epsilon=3.0, delta=1e-5)
    budget.spend(2.0)
    content = json.loads(path.read_text())
    content["spent"][0]["release"]["noise_multiplier"] = -1
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="noise_multiplier=-1"):
        budget.spend(2.0)


def test_a_crash_while_writing_leaves_the_old_file(path, monkeypatch):
    budget = Budget(path, epsilon=3.0, delta=1e-5)
    budget.spend(2.0)
    before = path.read_text()

    def crash(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no space"):
            budget.spend(2.0)
    assert path.read_text() == before
    assert budget.spend(2.0) > 0, "the lock was given back"


def test_another_run_that_spends_is_waited_for(path):
    budget = Budget(path, epsilon=3.0, delta=1e-5, patience=0.1)
    lock = path.with_name(path.name + ".lock")
    lock.touch()
    with pytest.raises(TimeoutError, match=r"delete that file"):
        budget.spend(2.0)
    lock.unlink()
    budget.spend(2.0)
    assert not lock.exists()


def test_two_runs_at_once_lose_nothing(path):
    def spend_many(run):
        budget = Budget(path, epsilon=3.0, delta=1e-5)
        return [budget.spend(60.0) for _ in range(10)]

    with ThreadPoolExecutor(2) as pool:
        spent = [total for run in pool.map(spend_many, range(2)) for total in run]
    assert len(set(spent)) == 20, "each saw what the other had spent"
    assert sum(release.steps for release in Budget(path, 3.0, 1e-5).releases) == 20
