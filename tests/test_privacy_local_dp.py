"""Local privacy: chances by exact count, estimates and variances against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flcourse.privacy import (
    Reports,
    SecureNoise,
    k_randomised_response,
    randomised_response,
    unary_encoding,
)
from flcourse.runtime import generator

RULES = {
    "k-ary": lambda values, eps, g: k_randomised_response(values, 4, eps, g),
    "unary": lambda values, eps, g: unary_encoding(values, 4, eps, g),
    "optimised": lambda values, eps, g: unary_encoding(values, 4, eps, g, optimised=True),
}
TRUTH = torch.tensor([0.55, 0.3, 0.15, 0.0])


def _people(count: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(4), (TRUTH * count).round().long())


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 4.0])
def test_the_chances_give_exactly_epsilon(epsilon: float) -> None:
    """The worst ratio of any message's probability under two values is e^epsilon, not less."""
    two = randomised_response(torch.tensor([1]), epsilon, generator(0, "x"))
    assert math.log(two.keep / two.lie) == pytest.approx(epsilon)
    assert two.keep + two.lie == pytest.approx(1)
    many = RULES["k-ary"](_people(20), epsilon, generator(0, "x"))
    assert math.log(many.keep / many.lie) == pytest.approx(epsilon)
    assert many.keep + 3 * many.lie == pytest.approx(1)
    for name in ("unary", "optimised"):
        bits = RULES[name](_people(20), epsilon, generator(0, "x"))
        p, q = bits.keep, bits.lie
        # The worst message sets the one value's bit and clears the other's.
        assert math.log(p * (1 - q) / ((1 - p) * q)) == pytest.approx(epsilon)


@pytest.mark.parametrize("name", RULES)
def test_reports_follow_the_chances(name: str) -> None:
    reports = RULES[name](torch.full((100_000,), 2), 1.2, generator(4, "x"))
    counts = reports.counts().tolist()
    for value, count in enumerate(counts):
        chance = reports.keep if value == 2 else reports.lie
        assert stats.binomtest(count, 100_000, chance).pvalue > 1e-4, value
        assert stats.binomtest(count, 100_000, chance * 1.1).pvalue < 1e-6, value


@pytest.mark.parametrize("name", RULES)
def test_estimates_are_unbiased_and_have_the_variance_that_they_state(name: str) -> None:
    values, runs = _people(400), 1500
    noise = generator(2, "x")
    reports = [RULES[name](values, 1.0, noise) for _ in range(runs)]
    estimates = np.stack([report.frequencies().numpy() for report in reports])
    stated = reports[0].variance(TRUTH).numpy()
    assert np.abs((estimates.mean(0) - TRUTH.numpy()) / np.sqrt(stated / runs)).max() < 4
    # A variance over 1,500 runs is known to 3.7 %; a scale off by a tenth would be 21 % off.
    assert np.abs(estimates.var(0, ddof=1) / stated - 1).max() < 0.15
    guessed = np.stack([report.variance().numpy() for report in reports]).mean(0)
    assert np.allclose(guessed, stated, rtol=0.1)


def test_the_optimised_encoding_has_less_variance_and_the_binary_one_its_closed_form() -> None:
    values = _people(100)
    plain, better = (RULES[n](values, 1.0, generator(0, "x")) for n in ("unary", "optimised"))
    assert float(better.variance(TRUTH)[3]) < 0.95 * float(plain.variance(TRUTH)[3])  # a rare value
    bits = randomised_response(torch.tensor([True, False] * 50), 1.0, generator(0, "x"))
    p = math.e / (1 + math.e)
    expected = p * (1 - p) / (100 * (2 * p - 1) ** 2)
    assert torch.allclose(bits.variance(), torch.full((2,), expected, dtype=torch.float64))


def test_a_secure_source_works_and_what_is_protected_is_stated() -> None:
    reports = randomised_response(torch.ones(20_000, dtype=torch.int64), 1.0, SecureNoise())
    share = float(reports.values.double().mean())
    assert share == pytest.approx(reports.keep, abs=0.02)
    assert Reports.unit == "client" and Reports.adjacency == "replace-one"


@pytest.mark.parametrize(
    ("values", "count", "epsilon", "words"),
    [
        (torch.tensor([0, 4]), 4, 1.0, "from 0 to 4"),
        (torch.tensor([-1, 2]), 4, 1.0, "from -1 to 2"),
        (torch.tensor([0.5]), 4, 1.0, "whole number"),
        (torch.tensor([], dtype=torch.int64), 4, 1.0, "each client"),
        (torch.tensor([[1]]), 4, 1.0, "each client"),
        (torch.tensor([1]), 1, 1.0, "num_values=1"),
        (torch.tensor([1]), 4, 0.0, "epsilon=0"),
        (torch.tensor([1]), 4, math.nan, "epsilon=nan"),
    ],
)
def test_what_makes_no_sense_is_refused(
    values: torch.Tensor, count: int, epsilon: float, words: str
) -> None:
    for rule in (k_randomised_response, unary_encoding):
        with pytest.raises(ValueError, match=words):
            rule(values, count, epsilon, generator(0, "x"))
