"""Mistakes people really make in the exercises of chapter 10, and what they must be told."""

import math

import torch

from flcourse.privacy import (
    classic_noise_multiplier,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)


def moves(
    *, long=1e6, against=True, broken=True, wide=True, same=True, measure="length", forget_nan=False
):
    """A correct test of 10.1 with switches for what can go wrong."""
    one = 0.3 * torch.ones(1, 8) if wide else 0.8 * torch.eye(8)[:1]  # shorter than 1
    tried = [one, long * one]
    if broken:
        tried.append(one * math.nan)

    def test(release):
        found = [0.0]
        for row in tried:
            others = -0.5 * row if against and bool(row.isfinite().all()) else 0.1 * one
            moved = release(torch.cat([others, row]), 0) - release(others, 0 if same else 1)
            size = moved.abs().max() if measure == "largest" else moved.norm()
            found.append(float(size))
        if forget_nan:
            return max(found)
        return max(math.inf if math.isnan(size) else size for size in found)

    return test


def halved(epsilon, delta, clip_norm, *, steps=200, low=1e-3, high=1e4, turned=False, safe=True):
    for _ in range(steps):
        middle = math.sqrt(low * high)
        if (gaussian_delta(epsilon, middle) > delta) != turned:
            low = middle
        else:
            high = middle
    return (high if safe else low) * clip_norm


def first_term_only(epsilon, delta, clip_norm):
    low, high = 1e-3, 1e4
    for _ in range(100):
        z = math.sqrt(low * high)
        first = torch.special.ndtr(torch.tensor(0.5 / z - epsilon * z, dtype=torch.float64))
        low, high = (z, high) if float(first) > delta else (low, z)
    return high * clip_norm


def p(epsilon):
    return math.exp(epsilon) / (1 + math.exp(epsilon))


def share(reports, epsilon):
    return (reports.float().mean() - 1 + p(epsilon)) / (2 * p(epsilon) - 1)


def local(n, epsilon):
    return math.sqrt(p(epsilon) * (1 - p(epsilon)) / n) / (2 * p(epsilon) - 1)


def central(n, epsilon):
    return math.sqrt(2) / (epsilon * n)


WRONG = {
    "10.1": [
        ("short rows only", moves(long=1.0), "very long row"),
        ("never against the sum", moves(against=False), "turns the sum round"),
        ("one value", moves(wide=False), "large in all values"),
        ("the largest value", moves(measure="largest"), "length"),
        ("no NaN", moves(broken=False), "NaN"),
        ("NaN forgotten by max", moves(forget_nan=True), "NaN"),
        ("another seed", moves(same=False), "use the same"),
        ("always infinite", lambda release: math.inf, "is sound"),
        ("nothing moved", lambda release: 0.0, "at least that long"),
    ],
    "10.2": [
        ("classic", lambda e, d, c: c * classic_noise_multiplier(e, d, beyond_theorem=True),
         "classic"),
        ("classic without C", lambda e, d, c: classic_noise_multiplier(e, d, beyond_theorem=True),
         "classic"),
        ("z", lambda e, d, c: gaussian_noise_multiplier(e, d), "σ = z·C"),
        ("divided by C", lambda e, d, c: gaussian_noise_multiplier(e, d) / c, "divide by C"),
        ("variance", lambda e, d, c: (c * gaussian_noise_multiplier(e, d)) ** 2, "variance"),
        ("an ε", lambda e, d, c: gaussian_epsilon(e, d), "an ε"),
        ("turned", lambda e, d, c: halved(e, d, c, turned=True), "ε ="),
        ("stopped early", lambda e, d, c: halved(e, d, c, steps=5), "more than needed"),
        ("stopped early, lower end", lambda e, d, c: halved(e, d, c, steps=5, safe=False),
         "too little"),
        ("one term of δ", first_term_only, "more than needed"),
        ("log to base 10", lambda e, d, c: c * math.sqrt(2 * math.log10(1.25 / d)) / e, "ε ="),
    ],
    "10.3": [
        ("the reports' share", lambda r, e: r.float().mean(), "lies"),
        ("cut to [0, 1]", lambda r, e: share(r, e).clamp(0, 1), "unbiased"),
        ("not divided", lambda r, e: r.float().mean() - 1 + p(e), "2p − 1"),
        ("divided by p", lambda r, e: r.float().mean() / p(e), "2p − 1"),
        ("half of ε", lambda r, e: share(r, e / 2), "unary"),
        ("the lie's chance", lambda r, e: 1 - share(r, e), "chance of a lie"),
        ("a count", lambda r, e: share(r, e) * len(r), "times what it should be"),
    ],
    "10.4": [
        ("variances", lambda n, e: (local(n, e) / central(n, e)) ** 2, "root"),
        ("turned round", lambda n, e: central(n, e) / local(n, e), "turned round"),
        ("Laplace's scale", lambda n, e: local(n, e) * e * n, "√2"),
        ("count not divided", lambda n, e: local(n, e) * e / math.sqrt(2), "divided by n"),
        ("noise over √n", lambda n, e: local(n, e) * e * math.sqrt(n / 2), "√n"),
        ("no 2p − 1", lambda n, e: local(n, e) * (2 * p(e) - 1) / central(n, e), "2p − 1"),
        ("one report", lambda n, e: local(1, e) / central(n, e), "1/n"),
        ("local alone", local, "local error alone"),
        ("central alone", central, "central error alone"),
    ],
}  # fmt: skip
