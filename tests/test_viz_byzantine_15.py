"""Figures of chapter 15: captions from the data, a colour a rule, what a log axis cannot show."""

import math

import pytest

from flcourse import viz
from flcourse.viz import byzantine_15
from tests.figures import assert_speaks_for_itself

HONEST, LIE = [[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [3.0, 2.0]], [-12.0, -11.0]
ERRORS = {
    "mean": (0.0, 50.0, 100.0),
    "trimmed": (0.1, 0.2, math.nan),
    "trimmed, told 1": (0.1, 0.2, 40.0),
    "Krum": (1.0, math.nan, math.nan),
}
RUNS = {"mean": [0.9, 0.95], "median": [0.8, 0.9]}

FIGURES = {
    "liar": lambda: viz.one_liar(HONEST, LIE, also={"the median": [1, 1]}),
    "turning": lambda: viz.turning_point(
        (0, 4, 6), {"mean": [[0.9, 0.92], [0.1, 0.12], [0.1, 0.1]]}, 4.0, chance=0.1
    ),
    "training": lambda: viz.lies_and_training(
        [1.0, 1.1, 0.9], [-5.0], {"mean": -0.5, "median": 0.8},
        {"mean": [0.1, 0.1], "median": [0.5, 0.9]}, chance=0.1,
    ),
    "pulls": lambda: viz.pulls((0, 5, 10), {"mean": (0, 0.25, 0.5), "median": (0, 0.1, 0.1)}),
    "breakdown": lambda: viz.breakdown((0, 1, 2), ERRORS, num_clients=4),
    "accuracy": lambda: viz.robust_accuracy(
        {"calm": RUNS, "lies": RUNS}, attacked={"lies"}, chance=0.1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    liar = FIGURES["liar"]().caption
    assert "mean at (1.75, 1.5). One liar sends (−12, −11), and the mean of all 5 is (−1, −1)" in (
        liar
    )
    assert "91 % at 0, 11 % at 4, 10 % at 6" in FIGURES["turning"]().caption
    assert "3 honest rows (blue) and 1 lie (vermilion)" in FIGURES["training"]().caption
    assert "mean −0.50; median 0.80" in FIGURES["training"]().caption
    assert "At 10 spreads: mean 0.50, median 0.10" in FIGURES["pulls"]().caption
    assert "calm: mean 92, median 85" in FIGURES["accuracy"]().caption


def test_breakdown_says_who_is_carried_off_and_who_refuses() -> None:
    caption = FIGURES["breakdown"]().caption
    assert "mean is carried off from 1" in caption
    assert "trimmed refuses from 2" in caption and "Krum refuses from 1" in caption
    assert "trimmed, told 1 is carried off from 2" in caption


def test_a_rule_keeps_its_colour_and_a_second_setting_is_dashed() -> None:
    looks = byzantine_15._looks(list(ERRORS))
    assert looks["trimmed"]["color"] == looks["trimmed, told 1"]["color"]
    assert looks["trimmed"]["ls"] != looks["trimmed, told 1"]["ls"]
    assert looks["mean"]["color"] == viz.COLOURS["server"]
    assert byzantine_15._looks(["mean", "median"])["median"]["color"] == viz.COLOURS["defence"]
    with pytest.raises(ValueError, match="6 rules"):
        byzantine_15._looks(list("abcdef"))
