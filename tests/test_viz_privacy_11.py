"""The figures of chapter 11: numbers of the caption come from the data, and misuse is told."""

from __future__ import annotations

import numpy as np
import pytest

from flcourse import viz
from tests.figures import assert_speaks_for_itself

RUNS = {"basic": ("basic", [1.0, 3.0]), "pld": ("PLD", [0.2, 0.5])}
AUDIT = (1.0, 5.0, {"as written": [0.5, 0.7], "clip missing": [3.0]})


def said() -> dict[str, tuple[str, float | str]]:
    return {"pld": ("PLD", 0.5), "zcdp": ("zCDP", "needs q = 1"), "basic": ("basic", 2e5)}


FIGURES = {
    "noise": lambda: viz.noise_by_accountant({"basic": 286.0, "PLD": 27.5}, best="PLD"),
    "scores": lambda: viz.scores_by_rounds({1: (np.arange(100.0), np.arange(50.0, 150.0))}),
    "claimed": lambda: viz.claimed_and_true({"z = 3": (8.0, 6.76), "lie": (1.0, 2.0)}),
    "steps": lambda: viz.epsilon_over_steps([1, 10], RUNS),
    "accountants": lambda: viz.epsilon_by_accountant(said()),
    "grid": lambda: viz.claimed_over_true([[1.0, 8.0]], [[2.0, 4.0]], [10], [0.5, 1.0]),
    "audits": lambda: viz.audits({"sums": AUDIT, "runs": AUDIT}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_the_share_that_is_found_is_counted_from_the_scores() -> None:
    # Of 50 … 149, those above the 99 % quantile of 0 … 99: half of them.
    assert "51% after 1" in FIGURES["scores"]().caption


def test_captions_carry_the_numbers_and_the_reasons() -> None:
    assert "zCDP: needs q = 1" in FIGURES["accountants"]().caption
    assert "Too little in 1 of 2 cells" in FIGURES["grid"]().caption
    assert "as written 0.50–0.70, clip missing 3.00." in FIGURES["audits"]().caption
    assert "lie: 1 → 2" in FIGURES["claimed"]().caption


def test_the_best_bar_must_exist() -> None:
    with pytest.raises(ValueError, match="best='RDP'"):
        viz.noise_by_accountant({"PLD": 1.0}, best="RDP")
