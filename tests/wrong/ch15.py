"""Mistakes people really make in the exercises of chapter 15, and what they must be told."""

import math

import torch

from flcourse import byzantine
from flcourse.runtime import generator


def median(rows):
    n, ordered = len(rows), rows.sort(dim=0).values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def trimmed(cut, *, guard=True, divide=False):
    """A trimmed mean with ``cut(ordered, n, f)``: what is left of the sorted rows."""

    def answer(rows, f):
        n = len(rows)
        if guard and n <= 2 * f:
            raise ValueError("n <= 2f")
        left = cut(rows.sort(dim=0).values, n, f)
        return left.sum(dim=0) / n if divide else left.mean(dim=0)

    return answer


def longest_dropped(rows, f):
    if len(rows) <= 2 * f:
        raise ValueError
    return rows[rows.norm(dim=1).argsort()[: len(rows) - f]].mean(dim=0)


def sorted_along_rows(rows, f):
    if len(rows) <= 2 * f:
        raise ValueError
    return rows.sort(dim=1).values[f : len(rows) - f].mean(dim=0)


def nearest_the_median(rows, f):
    if len(rows) <= 2 * f:
        raise ValueError
    order = (rows - median(rows)).abs().argsort(dim=0)
    return rows.gather(0, order)[: len(rows) - 2 * f].mean(dim=0)


def moved_in(rows, f):
    if len(rows) <= 2 * f:
        raise ValueError
    ordered = rows.sort(dim=0).values
    return rows.clamp(ordered[f], ordered[len(rows) - f - 1]).mean(dim=0)


def by_size(rows, f):
    if len(rows) <= 2 * f:
        raise ValueError
    order = rows.abs().argsort(dim=0)
    return rows.gather(0, order)[: len(rows) - f].mean(dim=0)


def evidence(*, tries=200, n=7, f=2, room=1e-3, refusal=True, huge=1e4, krum=True, trim=True):
    """A correct answer to 15.4 with switches for what can go wrong."""

    def answer(name, rule):
        draw = generator(1, "wrong 15.4")
        if name == "krum" and refusal:
            few = torch.randn(6, 2, generator=draw)
            try:
                rule(few, 2)
                return few, 2
            except ValueError:
                pass
        for _ in range(tries):
            rows = torch.randn(n, 2, generator=draw)
            if name == "krum" and krum:
                off = float((rule(rows, f) - byzantine.krum(rows, f)).norm())
            elif name == "trimmed mean" and trim:
                off = float((rule(rows, f) - byzantine.trimmed_mean(rows, f)).norm())
            elif name == "clipping":
                rows[0] *= huge
                off = float((rule(rows, f) - median(rows)).norm()) - 1
            else:
                return ()
            if off > room:
                return rows, f
        return ()

    return answer


def too_many_liars(name, rule):
    if name == "krum":
        return evidence()(name, rule)
    return torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 2


def accuses_a_refusal(name, rule):
    return torch.tensor([[0.0], [1.0], [5.0], [9.0]]), 2


WRONG = {
    "15.1": [
        ("plain mean", lambda t, h, w, o: (len(h) + 1) * t - h.sum(dim=0), "plain mean"),
        ("not divided", lambda t, h, w, o: (w.sum() + o) * t - w @ h, "divide by own_weight"),
        ("own weight forgotten", lambda t, h, w, o: (w.sum() * t - w @ h) / o, "yours included"),
        ("added", lambda t, h, w, o: ((w.sum() + o) * t + w @ h) / o, "you add them"),
        ("the target", lambda t, h, w, o: t, "target itself"),
        ("others unweighted", lambda t, h, w, o: ((w.sum() + o) * t - h.sum(dim=0)) / o,
         "weights @ honest"),
        ("others' mean", lambda t, h, w, o: ((w.sum() + o) * t - w @ h / w.sum()) / o,
         "their mean"),
    ],
    "15.2": [
        ("clients", lambda h, b: len(h) / len(b) if b else math.inf, "count clients"),
        ("inverse", lambda h, b: sum(b) / sum(h) if b else math.inf, "turned over"),
        ("of all", lambda h, b: (sum(h) + sum(b)) / sum(b) if b else math.inf, "weight of all"),
        ("mean weights", lambda h, b: (sum(h) / len(h)) / (sum(b) / len(b)) if b else math.inf,
         "mean weights"),
        ("no liars", lambda h, b: sum(h) / sum(b) if b else 0.0, "math.inf"),
        ("division by zero", lambda h, b: sum(h) / sum(b), "ZeroDivisionError"),
    ],
    "15.3": [
        ("a share", trimmed(lambda o, n, f: o[int(0.1 * n) : n - int(0.1 * n)]), "trim a share"),
        ("nobody", trimmed(lambda o, n, f: o), "nobody is trimmed"),
        ("a fifth", trimmed(lambda o, n, f: o[n // 5 : n - n // 5]), "trimmed mean for n = 22"),
        ("one end", trimmed(lambda o, n, f: o[: n - f]), "one end only"),
        ("lower end", trimmed(lambda o, n, f: o[f:]), "lower one"),
        ("f in all", trimmed(lambda o, n, f: o[f // 2 : n - (f - f // 2)]), "in all"),
        ("divided by n", trimmed(lambda o, n, f: o[f : n - f], divide=True), "divide by n"),
        ("the slice of nothing", trimmed(lambda o, n, f: o[f:-f]), "[0:-0]"),
        ("no refusal", trimmed(lambda o, n, f: o[f : n - f], guard=False), "raise ValueError"),
        ("whole rows", longest_dropped, "whole rows"),
        ("along rows", sorted_along_rows, "dim=0"),
        ("absolute values", by_size, "absolute value"),
        ("nearest the median", nearest_the_median, "nearest to the median"),
        ("moved in", moved_in, "move the outer values"),
        ("the median", lambda rows, f: median(rows), "median"),
    ],
    "15.4": [
        ("finds nothing", lambda name, rule: (), "a flaw passes"),
        ("says yes", lambda name, rule: True, "evidence itself"),
        ("one try", evidence(tries=1), "unsquared"),
        ("no refusal asked", evidence(refusal=False), "n < 2f + 3"),
        ("no Krum compared", evidence(krum=False), "unsquared"),
        ("many rows", evidence(n=20, f=2), "a tenth"),
        ("no room for rounding", evidence(room=0.0), "you accuse"),
        ("no huge row", evidence(huge=1.0), "starts at the mean"),
        ("accuses a refusal", accuses_a_refusal, "must refuse, and does"),
        ("outside the promise", too_many_liars, "promises nothing"),
    ],
}  # fmt: skip
