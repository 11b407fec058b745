"""Figures of chapter 12: what is drawn stands in the caption."""

import pytest

from flcourse import viz
from tests.figures import assert_speaks_for_itself

LOST = {"ε = 8": {10: [60.0, 64.0], 100: [4.0], 1_000: [0.5]}, "ε = 1": {10: [77.0], 1_000: [2.0]}}
TRAINING = {"server": {0.1: [0.9, 0.8], 1.0: [0.7]}, "local": {0.1: [0.8], 1.0: [0.2, 0.3]}}
PICTURES = {"adapts": {0.01: [20.0], 0.1: [15.0], 1.0: [10.0]}, "plain": {0.01: [9.0], 0.1: [6.0]}}
MEANING = {"one message": {0.01: 5426.0, 0.1: 92.0, 1.0: 4.4}, "training": {1.0: 4.7}}
FIGURES = {
    "clients": lambda: viz.cost_by_clients(LOST, trained=100),
    "price": lambda: viz.price_of_noise(
        TRAINING, PICTURES, 11.5, {0.01: [1.0], 0.1: [1.0], 1.0: [0.0, 0.1]}, MEANING, chance=0.1
    ),
    "bars": lambda: viz.accuracy_bars({"CNN": {"FedAvg": [0.4, 0.5], "ε = 1": [0.1]}}, chance=0.1),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    clients, price, bars = (FIGURES[name]().caption for name in ("clients", "price", "bars"))
    assert "ε = 8: 62.0 at 10, 4.0 at 100" in clients and "the updates of 100" in clients
    assert "server: 85% at 0.1" in price and "local: 80% at 0.1, 25% at 1" in price
    assert "flat picture 11.5 dB" in price and "labels: 100% at 0.01" in price
    assert "CNN, FedAvg: 45.0 %; CNN, ε = 1: 10.0 %" in bars
