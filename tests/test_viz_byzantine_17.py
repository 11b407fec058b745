"""Figures of chapter 17: captions from the data that is drawn."""

import pytest

from flcourse import viz
from tests.figures import assert_speaks_for_itself

RUNS = {"mean": [35.0, 31.0], "Krum": [float("inf"), 30.0]}
TABLE = {"1": {"success": [0.1, 0.2], "clean": [0.9, 0.8]},
         "20": {"success": [0.9, 1.0], "clean": [0.7, 0.6]}}  # fmt: skip
SIZES = {"1": [35.0], "4": [18.0]}

FIGURES = {
    "cancelling": lambda: viz.cancelling(3, (7, 4)),
    "given away": lambda: viz.given_away(
        {"x": RUNS, "y": RUNS}, 12.0, names={"x": "nobody lies", "y": "four collude"}
    ),
    "scale": lambda: viz.backdoor_by_scale({"square": TABLE, "dot": TABLE}),
    "defences": lambda: viz.backdoor_defences({"one shot": TABLE, "patient": TABLE}, 0.02),
    "groups": lambda: viz.price_of_groups(
        {"0 liars": {"1": [0.9], "4": [0.8]}, "2 liars": {"1": [0.7], "4": [0.5]}},
        SIZES,
        12.0,
        marked="4",
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    said = FIGURES["cancelling"]().caption
    assert "mean is 3/5 = 0.6. The median is 3." in said and "+7, −7, +4, −4" in said
    assert "median is 4" in viz.cancelling(9, (7, 4)).caption  # held back by the nearest pair
    assert "four collude: mean 33, Krum 90" in FIGURES["given away"]().caption
    assert "square at 20: success 95 %, accuracy 65 %" in FIGURES["scale"]().caption
    assert "patient: least success 15 % (1), most 95 % (20)" in FIGURES["defences"]().caption
    assert "80 at 4; 2 liars: 70 at 1, 50 at 4)" in FIGURES["groups"]().caption
    assert "35 dB at 1 and 18 at 4" in FIGURES["groups"]().caption
