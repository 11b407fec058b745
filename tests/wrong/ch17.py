"""Mistakes people really make in the exercises of chapter 17, and what they must be told."""

import torch


def paired(moves, weights, *, ratio=lambda a, b: a / b, sign=-1.0):
    """A correct answer to 17.1 with switches for what can go wrong."""
    rows = torch.empty(len(weights), moves.shape[1])
    rows[::2] = moves
    rows[1::2] = sign * moves * ratio(weights[::2], weights[1::2])[:, None]
    return rows


def one_for_all(moves, weights):
    """The last colluder alone makes up for every move."""
    rows = torch.zeros(len(weights), moves.shape[1])
    rows[::2] = moves
    rows[-1] = -(weights[::2] @ moves) / weights[-1]
    return rows


def nearest(lies):
    return lies.abs().min(dim=0).values


def whole_only(rule):
    """Tests one row that is the server's own: every flawed rule gives it back."""
    g = torch.tensor([3.0, 4.0])
    return not torch.allclose(rule(g[None], g, [1, 1]), g)


def one_uneven_row(rule):
    g, x = torch.tensor([2.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 4.0, 3.0])
    return not torch.allclose(rule(x[None], g, [2, 2]), x * g.norm() / x.norm())


def no_all_opposed(rule):
    g, x = torch.tensor([2.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 4.0, 3.0])
    right = x * g.norm() / x.norm()
    cases = [x[None], torch.stack([x, -x])]
    return not all(torch.allclose(rule(rows, g, [2, 2]), right) for rows in cases)


def to_the_last_digit(rule):
    g = torch.tensor([2.0, 0.0, 0.0, 1.0])
    x = torch.tensor([1.1, 0.3, 4.7, 3.9])
    return not torch.equal(rule(x[None], g, [2, 2]).double(), x.double() * g.norm() / x.norm())


WRONG = {
    "17.1": [
        (
            "no weights",
            lambda m, w: paired(m, w, ratio=lambda a, b: a * 0 + 1),
            "the server weights",
        ),
        ("turned round", lambda m, w: paired(m, w, ratio=lambda a, b: b / a), "turned round"),
        ("no minus", lambda m, w: paired(m, w, sign=1.0), "minus sign"),
        ("halves", lambda m, w: torch.cat([m, -m * (w[::2] / w[1::2])[:, None]]), "next to each"),
        ("one for all", one_for_all, "by itself"),
        ("one row a pair", lambda m, w: m, "a row for each"),
    ],
    "17.2": [
        ("or equal", lambda m, lies: m.abs() <= nearest(lies), "< not ≤"),
        (
            "the furthest",
            lambda m, lies: m.abs() < lies.abs().max(dim=0).values,
            "nearest one counts",
        ),
        ("signed", lambda m, lies: m < nearest(lies), "absolute values"),
        ("one bound", lambda m, lies: m.abs() < lies.abs().min(), "in each coordinate"),
        ("numbers", lambda m, lies: m, "truth value"),
    ],
    "17.3": [
        ("all", lambda p, y, t: (p == t).float().mean(), "own class"),
        ("divided by all", lambda p, y, t: ((p == t) & (y != t)).float().mean(), "divide by"),
        ("accuracy", lambda p, y, t: (p == y).float().mean(), "accuracy"),
        ("any error", lambda p, y, t: (p != y).float().mean(), "every error"),
    ],
    "17.4": [
        ("the server's own row", whole_only, "passes your test"),
        ("one row", one_uneven_row, "passes your test"),
        ("nobody opposed", no_all_opposed, "averages them"),
        ("too strict", to_the_last_digit, "sound rule flawed"),
        ("always", lambda rule: True, "sound rule flawed"),
    ],
}
