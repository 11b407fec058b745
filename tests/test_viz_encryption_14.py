"""Figures of chapter 14: captions from the data, and sums that really come out."""

import numpy as np
import pytest

from flcourse import viz
from flcourse.viz.encryption_14 import duration, megabytes, spelt
from tests.figures import assert_speaks_for_itself

NUMBERS = np.array([[5, -7, 3, 7], [-2, -7, 7, 7], [1, -6, 6, 7]])
BITS = (8, 12, 16)
COSTS = {
    "masks": {"encrypt": 0.0098, "bytes": 4.4e6, "extrapolated": False},
    "Paillier": {"encrypt": 216.0, "bytes": 5.35e6, "extrapolated": True},
}
FIGURES = {
    "paillier": lambda: viz.paillier_sum((8, 5, 11), (2, 3, 4), 5, 7),
    "one client": lambda: viz.paillier_sum((8,), (2,), 5, 7),
    "slots": lambda: viz.slots(NUMBERS, 6, 7),
    "narrow slots": lambda: viz.slots(NUMBERS, 4, 7),
    "precision": lambda: viz.price_of_precision(
        BITS, {"masks": [1, 2, 3], "BFV": [22, 22, 22]}, [1e-2, 1e-3, 1e-4], 1
    ),
    "costs": lambda: viz.update_costs(COSTS),
    "noise": lambda: viz.noise_by_trust(
        {"local": {10: 0.3, 100: 0.1}, "central": {10: 0.1, 100: 0.01}},
        {"local": lambda n: n**-0.5, "central": lambda n: 1 / n},
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    assert "decrypts 24 = 8 + 5 + 11" in FIGURES["paillier"]().caption
    assert "Every sum is right" in FIGURES["slots"]().caption
    narrow = FIGURES["narrow slots"]().caption
    assert spelt(NUMBERS.sum(axis=0).tolist()) in narrow and "carry runs out" in narrow
    assert "masks 2, BFV 22" in FIGURES["precision"]().caption
    costs = FIGURES["costs"]().caption
    assert "masks 9.8 ms, 4.4 MB" in costs and "Paillier about 3.6 min, 5.3 MB" in costs
    assert "local 0.3 to 0.1; central 0.1 to 0.01" in FIGURES["noise"]().caption


def test_a_wrapped_sum_is_drawn_as_it_comes_out() -> None:
    caption = viz.paillier_sum((20, 20), (2, 3), 5, 7).caption
    assert "decrypts 5" in caption and "40 modulo 35" in caption


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0098, "9.8 ms"), (0.85, "850 ms"), (1.7, "1.7 s"), (216, "3.6 min")]
)
def test_times_in_the_unit_that_a_person_uses(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert megabytes(568.4) == "568 MB" and megabytes(4.44) == "4.4 MB"
