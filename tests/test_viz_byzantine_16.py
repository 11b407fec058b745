"""Figures of chapter 16: what is drawn stands in caption and alt text."""

import pytest

from flcourse import viz
from flcourse.byzantine.matrix import STANDARD_ATTACKS, STANDARD_RULES
from flcourse.viz.byzantine_16 import SHORT, short
from tests.figures import assert_speaks_for_itself

TABLE = {
    "none": {"mean": [0.9, 0.94], "krum": [0.7, 0.6], "bulyan": [0.5, 0.5]},
    "sign_flip:scale=5": {"mean": [0.1, 0.08], "krum": [0.7, 0.62], "bulyan": []},
    "my_own": {"mean": [0.9, 0.9], "krum": [0.895, 0.9], "bulyan": []},
}
CROWD = {"honest": [[0.5, 1.0], [0.7, 2.0]], "alie": [0.9, 0.5], "ipm:scale=5": [-1.0, 3.0]}
SEARCH = {
    "none": {"mean": [0.9, 0.94], "krum": [0.7]},
    "alie": {"mean": [0.1, 0.08], "krum": [0.71]},
}
FIGURES = {
    "matrix": lambda: viz.lie_rule_matrix(TABLE, caption="More."),
    "cosine": lambda: viz.lie_rule_matrix(TABLE, measure="cosine", title="IID"),
    "lie": lambda: viz.rules_under_lie({"IID": TABLE, "uneven": TABLE}, "sign_flip:scale=5"),
    "rows": lambda: viz.lies_among_rows({"IID": CROWD, "uneven": CROWD}, ["alie", "ipm:scale=5"]),
    "price": lambda: viz.price_of_a_lie({"here": SEARCH, "there": SEARCH}, "alie"),
    "worse": lambda: viz.worse_than_the_mean(TABLE, noise=1),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    matrix, lie, worse = (FIGURES[name]() for name in ("matrix", "lie", "worse"))
    assert "mean over 2 seeds" in matrix.caption and matrix.caption.endswith("More.")
    assert "1 points in the median cell, 5 in the widest" in matrix.caption
    assert "flip ×5: mean 9, Krum 66, Bulyan undefined" in matrix.alt
    rows, price = (FIGURES[name]() for name in ("rows", "price"))
    assert "uneven: honest cosines from 0.50 to 0.70" in rows.caption
    assert "here: mean 83, Krum -1" in price.caption
    single = viz.lie_rule_matrix({"none": {"mean": [0.9]}}).caption
    assert single == "Accuracy in percent, lies down, rules across; one seed."
    assert "Krum 66" in lie.caption and "mean without liars 92" in lie.caption
    assert "Krum better in 1, worse in 1" in worse.caption


def test_every_standard_name_has_a_short_one() -> None:
    for name in (*STANDARD_ATTACKS, *STANDARD_RULES):
        assert name in SHORT or short(name) == name
    assert short("my_own:x=1") == "my own:x=1"
