"""Mistakes people really make in the exercises of chapter 16, and what they must be told."""

import torch

from flcourse.exercises.ch16 import escapes, off, roots


def reach(honest, push, *, bound="pairs", pick="min", root=True):
    """A correct answer to 16.1 with switches for what can go wrong."""
    honest, push = honest.double(), push.double()
    squared = torch.cdist(honest, honest).square().max()
    centred = (honest - honest.mean(dim=0)).square().sum(dim=1).max()
    right = {"pairs": squared, "mean": centred, "unsquared": squared.sqrt()}[bound]
    each = roots(honest, push, right)
    return float(each.min() if pick == "min" else each.max())


def most_opposed(honest, push):
    """γ for the row that lies most against the push; another may be nearer its bound."""
    centred = (honest - honest.mean(dim=0)).double()
    bound = torch.cdist(honest.double(), honest.double()).square().max()
    each = roots(honest.double(), push.double(), bound)
    return float(each[(centred @ push.double()).argmin()])


def around_the_mean(honest, push):
    return float(torch.cdist(honest.double(), honest.double()).max() / push.double().norm())


def as_min_sum(honest, push):
    return float((honest - honest.mean(dim=0)).norm(dim=1).max() / push.norm())


def coarse(honest, push):
    """By steps of a tenth instead of halving."""
    gamma = 0.0
    widest = torch.cdist(honest, honest).max()
    while (honest - honest.mean(dim=0) - gamma * push).norm(dim=1).max() <= widest:
        gamma += 0.1
    return gamma


def harmful(table, points, *, unit=100, together=all, sign=1, skip=True, rules=None):
    """A correct answer to 16.2 with switches."""
    return [
        (lie, rule)
        for lie, row in table.items()
        for rule, values in row.items()
        if rule not in (rules if rules is not None else ("mean",)) and (values or not skip)
        if together(
            unit * sign * (m - v) > points for v, m in zip(values, row["mean"], strict=False)
        )
    ]


def averages(table, points):
    return [
        (lie, rule)
        for lie, row in table.items()
        for rule, values in row.items()
        if values and 100 * (sum(row["mean"]) - sum(values)) / 5 > points
    ]


def turned_round(table, points):
    return [(rule, lie) for lie, rule in harmful(table, points)]


def near(n, d, f, *, push=10.0, narrow=0.01):
    """Honest rows, and lies at their mean but for one value."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(f))
    rows[:, 0] *= narrow
    rows[-f:] = rows[:-f].mean(dim=0)
    rows[-f:, 0] += push
    return rows, f


def whoever(rule):
    return near(35, 500, 8)


def one_liar_only(rule):
    rows, f = near(7, 500, 1)
    return (rows, f) if escapes(rule, rows, f) else ()


def far_away(rule):
    rows = torch.randn(19, 50, generator=torch.Generator().manual_seed(0))
    rows[-4:] = 1000.0
    return (rows, 4) if escapes(rule, rows, 4) else ()


def two_values(rule):
    rows, f = near(35, 2, 8)
    return (rows, f) if escapes(rule, rows, f) else ()


def too_few(rule):
    return near(10, 500, 2)


def models(n=40, offset=100.0, first=0.0):
    rows = 0.01 * torch.randn(n, 50, generator=torch.Generator().manual_seed(n)) + offset
    rows[0] += first
    return rows


def distances(*cases):
    """Try these rows only."""

    def answer(rule):
        return next((rows for rows in cases if off(rule, rows)), ())

    return answer


WRONG = {
    "16.1": [
        ("near one row", lambda h, p: reach(h, p, pick="max"), "every one of them"),
        ("row and mean", lambda h, p: reach(h, p, bound="mean"), "not of a row and the mean"),
        ("most opposed row", most_opposed, "halve the gap"),
        ("around the mean", around_the_mean, "those to the honest rows"),
        ("min-sum", as_min_sum, "min-sum"),
        ("unsquared", lambda h, p: reach(h, p, bound="unsquared"), "one that is not"),
        ("sign", lambda h, p: -reach(h, p), "the sign"),
        ("length", lambda h, p: reach(h, p) * float(p.norm()), "how long γp is"),
        ("coarse", coarse, "halve the gap"),
        ("the row", lambda h, p: h.mean(dim=0) + reach(h, p) * p, "one number"),
    ],
    "16.2": [
        ("averages", averages, "averages"),
        ("one seed", lambda t, p: harmful(t, p, together=any), "in every seed"),
        ("not in points", lambda t, p: harmful(t, p, unit=1), "a point is 0.01"),
        ("wins", lambda t, p: harmful(t, p, sign=-1), "where the rule wins"),
        ("undefined", lambda t, p: harmful(t, p, skip=False), "not defined"),
        ("turned round", turned_round, "in that order"),
        ("names", lambda t, p: [rule for _, rule in harmful(t, p)], "pairs"),
        ("one too many", lambda t, p: [*harmful(t, p), ("none", "median")], "does not belong"),
    ],
    "16.3": [
        ("accuses all", whoever, "sound bulyan"),
        ("one liar", one_liar_only, "a quarter is enough while f is small"),
        ("far away", far_away, "a flaw passes"),
        ("two values", two_values, "a flaw passes"),
        ("too few rows", too_few, "promises nothing"),
        ("yes", lambda rule: True, "evidence itself"),
    ],
    "16.4": [
        ("accuses all", lambda rule: models(), "sound distances"),
        ("few rows", distances(models(10)), "try forty"),
        ("no liar first", distances(models(10), models()), "first row"),
        ("no offset", distances(models(offset=0.0)), "add the same 100"),
        ("yes", lambda rule: True, "evidence itself"),
        ("a row", lambda rule: models()[0], "float tensor [n, d]"),
    ],
}
