"""Figures of chapter 10: captions from the data, and curves that the definition allows."""

import numpy as np
import pytest

from flcourse import viz
from flcourse.privacy import gaussian_delta, trade_off
from flcourse.viz.privacy_10 import classic_gives, power, promised
from tests.figures import assert_speaks_for_itself

SCORES = (np.linspace(-2, 2, 50), np.linspace(-1, 3, 50))
WORDS = ("a", "b", "c")
FIGURES = {
    "worlds": lambda: viz.two_worlds(1.0),
    "measured": lambda: viz.two_worlds(0.5, scores=SCORES),
    "classic": viz.classic_against_exact,
    "errors": lambda: viz.errors_by_clients(
        {"local": {100: [0.1, -0.1], 1000: [0.03]}, "central": {100: [0.01], 1000: [0.001]}},
        {"local": lambda n: n**-0.5, "central": lambda n: 1 / n},
    ),
    "histogram": lambda: viz.private_histogram(
        WORDS, [0.5, 0.3, 0.2], {"local": [0.4, 0.4, 0.2], "central": [0.5, 0.3, 0.2]},
        {"local": [0.1] * 3, "central": [0.01] * 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_speaks_for_itself(name: str) -> None:
    assert_speaks_for_itself(FIGURES[name])


def test_captions_are_computed_from_what_is_drawn() -> None:
    worlds = FIGURES["worlds"]().caption
    assert "right in 69.1% of even cases" in worlds and "ε = 4.38, δ = 10⁻⁵" in worlds
    assert "measured releases" in FIGURES["measured"]().caption
    assert "asks for 64 gets 142.7" in FIGURES["classic"]().caption
    errors = FIGURES["errors"]().caption
    assert "local: 0.1 to 0.03; central: 0.01 to 0.001" in errors
    assert "local 10, central 0" in FIGURES["histogram"]().caption


@pytest.mark.parametrize("z", [0.3, 1.0, 5.0])
def test_a_promise_never_says_more_than_the_curve_and_touches_it(z: float) -> None:
    """Every (ε, δ(ε)) lies below the trade-off curve; all of them together are the curve."""
    alpha = np.linspace(0.001, 0.999, 999)
    curve = trade_off(z, alpha)
    pairs = [
        promised(alpha, e, gaussian_delta(e, z)) for e in np.linspace(0, 10 / z + 5 / z**2, 400)
    ]
    assert all((pair <= curve + 1e-9).all() for pair in pairs)
    assert np.abs(np.max(pairs, axis=0) - curve).max() < 2e-3


def test_the_classic_formula_asked_beyond_its_theorem() -> None:
    """Balle & Wang 2018, Theorem 8, on the classic formula's noise at δ = 10⁻⁵."""
    given = [classic_gives(e, 1e-5) for e in (2, 4, 8, 16, 64)]
    assert given == pytest.approx([1.61, 3.51, 7.91, 18.9, 142.7], rel=4e-3)


def test_powers_of_ten_are_written_as_such() -> None:
    assert power(1e-5) == "10⁻⁵" and power(2e-5) == "2e-05"
