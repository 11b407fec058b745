"""Mistakes people really make in the exercises of chapter 11, and what they must be told."""

import itertools
import math

from scipy.special import gammaln, logsumexp

from flcourse.exercises.ch11 import one_order
from flcourse.privacy import epsilon


def zcdp(z, delta, *, power=2, half=2.0, root=2.0, log=math.log, share=1):
    """A correct answer with switches for what can go wrong."""
    rho = sum(1 / (half * one**power) for one in z) / share
    return rho + root * math.sqrt(rho * log(1 / delta))


def each_then_sum(z, delta):
    return sum(zcdp([one], delta) for one in z)


GRID = [(0.4, 1, 3), (1, 100, 2000), (1e-7, 1e-5), (0.01, 0.2, 1.0)]


def catch(account, lies, grid=GRID):
    """The first run of a grid for which ``lies(said, true)``."""
    for run in itertools.product(*grid):
        if lies(account(*run), epsilon(*run)):
            return run
    return ()


def too_low(said, true):
    return not said >= 0.99 * true


def rdp_step(z, q, order):
    k = range(order + 1)
    terms = (
        [
            gammaln(order + 1)
            - gammaln(i + 1)
            - gammaln(order - i + 1)
            + i * math.log(q)
            + ((order - i) * math.log1p(-q) if i < order else 0)
            + i * (i - 1) / (2 * z**2)
            for i in k
        ]
        if q < 1
        else [order * (order - 1) / (2 * z**2)]
    )
    return float(logsumexp(terms)) / (order - 1)


def repaired(z, steps, delta, q, *, orders=range(2, 512), pick=min, step=rdp_step):
    return pick(steps * step(z, q, a) + math.log(1 / delta) / (a - 1) for a in orders)


def squared(z, q, order):
    return q**2 * order / (2 * z**2)


def added(where, std, clip, n, *, sum=1, mean=None, each=None):
    """The right multiplier with switches."""
    factor = {"sum": sum, "mean": mean or n, "each": each or math.sqrt(n)}
    return factor[where] * std / clip


WRONG = {
    "11.1": [
        ("ε of each, added", each_then_sum, "ρ that adds up"),
        ("not squared", lambda z, d: zcdp(z, d, power=1), "squared"),
        ("no half", lambda z, d: zcdp(z, d, half=1), "half is missing"),
        ("log10", lambda z, d: zcdp(z, d, log=math.log10), "natural"),
        ("no 2", lambda z, d: zcdp(z, d, root=1), "factor 2"),
        ("rho alone", lambda z, d: zcdp(z, d, root=0), "ρ alone"),
        ("the mean", lambda z, d: zcdp(z, d, share=len(z)), "one release only"),
        ("δ divided", lambda z, d: zcdp(z, d / len(z)), "δ is spent once"),
        ("one each", lambda z, d: [zcdp([one], d) for one in z], "one ε for all"),
    ],
    "11.2": [
        ("any difference", lambda a: catch(a, lambda said, true: said != true),
         "does not lie"),
        ("too large is a lie", lambda a: catch(a, lambda said, true: said > 1.5 * true),
         "does not lie"),
        ("no tolerance", lambda a: catch(a, lambda said, true: said < true), "allow a percent"),
        ("everybody takes part", lambda a: catch(a, too_low, [*GRID[:3], (1.0,)]), "let a liar"),
        ("one δ", lambda a: catch(a, too_low, [*GRID[:2], (1e-4,), GRID[3]]), "let a liar"),
        ("few steps", lambda a: catch(a, too_low, [GRID[0], (1, 5), *GRID[2:]]), "let a liar"),
        ("blind to NaN", lambda a: catch(a, lambda said, true: said < 0.99 * true), "nan"),
        ("never", lambda a: (), "single order"),
        ("yes or no", lambda a: bool(catch(a, too_low)), "return the run"),
    ],
    "11.3": [
        ("nothing changed", one_order, "nothing changed"),
        ("q², many orders", lambda *run: repaired(*run, step=squared), "q² times"),
        ("small orders", lambda *run: repaired(*run, orders=range(2, 6)), "more orders"),
        ("one order", lambda *run: repaired(*run, orders=[8]), "orders"),
        ("largest", lambda *run: repaired(*run, pick=max), "keep the least"),
        ("one step", lambda z, steps, d, q: repaired(z, 1, d, q), "one step costs"),
        ("no sampling", lambda z, steps, d, q: repaired(z, steps, d, 1.0), "without sampling"),
        ("all of them", lambda *run: repaired(*run, pick=list), "one ε"),
    ],
    "11.4": [
        ("divided by n", lambda w, s, c, n: added(w, s, c, n, sum=1 / n), "dividing it by n"),
        ("mean as sum", lambda w, s, c, n: added(w, s, c, n, mean=1), "n times as much"),
        ("one client's", lambda w, s, c, n: added(w, s, c, n, each=1), "more than one client"),
        ("stds add", lambda w, s, c, n: added(w, s, c, n, each=n), "√n times"),
        ("averaged away", lambda w, s, c, n: added(w, s, c, n, each=n**-0.5), "not less"),
        ("no clip norm", lambda w, s, c, n: added(w, s, 1.0, n), "clip norm"),
        ("times the clip norm", lambda w, s, c, n: added(w, s, 1 / c, n), "multiply by the clip"),
    ],
}  # fmt: skip
