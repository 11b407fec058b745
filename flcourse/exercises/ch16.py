"""Checks of chapter 16: how far a lie may go, reading a matrix, two flaws to be shown by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from flcourse import byzantine
from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.exercises._evidence import nothing_found, read_case, read_rows
from flcourse.runtime import generator

Distances = Callable[[Tensor], Tensor]
Bulyan = Callable[[Tensor, int], Tensor]
MOST_ROWS = 200  # of evidence


# --- 16.1 -----------------------------------------------------------------------------------------


def roots(honest: Tensor, push: Tensor, bound: Tensor) -> Tensor:
    """For each honest row the largest γ with ``‖μ + γp − g_i‖² ≤ bound``, float64 ``[n]``."""
    centred = honest - honest.mean(dim=0)
    along, length = centred @ push, push.square().sum()
    inside = (along.square() + length * (bound - centred.square().sum(dim=1))).clamp(min=0)
    return (along + inside.sqrt()) / length


@exercise(
    "16.1",
    title="how far may a lie go?",
    hints=(
        "First the right side, once: the largest distance of two honest rows. Then a function of γ "
        "that says whether the lie keeps within it of every honest row.",
        "Keep two numbers, low (it fits) and high (it does not), and halve the gap sixty times.",
    ),
)
def reach(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 16.1")
    for n, d, scale in ((5, 3, 1.0), (16, 40, 0.1), (9, 12, 5.0), (16, 200, 1.0)):
        honest = scale * torch.randn(n, d, generator=draw, dtype=torch.float64) + scale / 2
        if n == 9:  # one row far off, across the push: the tightest is not the most opposed
            honest[4, :2] += 8 * scale * torch.tensor([1.0, -1.0])
        push = -honest.std(dim=0) if n > 9 else -torch.ones(d, dtype=torch.float64)
        squared = torch.cdist(honest, honest).square()
        centred = (honest - honest.mean(dim=0)).square().sum(dim=1)
        each = roots(honest, push, squared.max())
        mistakes: dict[str, object] = {
            "That is as far as the lie keeps near one honest row. It must keep near every one of "
            "them: the smallest of these γ.": each.max(),
            "The right side is the largest distance of two honest rows, not of a row and the "
            "mean.": roots(honest, push, centred.max()).min(),
            "That keeps the lie within the largest distance of the honest mean. The distances that "
            "count are those to the honest rows.": squared.max().sqrt() / push.norm(),
            "That is the γ of min-sum: it bounds the sum of squared distances, not the largest "
            "one.": centred.max().sqrt() / push.norm(),
            "That is how long γp is. γ itself is that over ‖p‖.": each.min() * push.norm(),
            "The sign: p already points away from the mean, and γ is positive.": -each.min(),
            "You compare a squared distance with one that is not.": roots(
                honest, push, squared.max().sqrt()
            ).min(),
        }
        got = as_tensor(answer(honest.float(), push.float()), "γ").reshape(-1)
        if got.numel() != 1:
            raise Wrong(f"Return one number γ, not {got.numel()}: the row itself is μ + γp.")
        what = f"your γ for {n} honest rows of {d} values"
        hint = "Halve the gap until it is a thousandth of γ, or solve the quadratic."
        expect_close(got[0], each.min(), what, hint, mistakes=mistakes, rtol=2e-3)
    return "The furthest lie within the honest distances. The paper's liars halve the gap, too."


# --- 16.2 -----------------------------------------------------------------------------------------

Table = Mapping[str, Mapping[str, list[float]]]


def losses(
    table: Table, points: float, *, every: Callable[..., bool] = all
) -> set[tuple[str, str]]:
    """The (lie, rule) pairs where the rule is ``points`` below the mean in ``every`` seed."""
    return {
        (lie, rule)
        for lie, row in table.items()
        for rule, values in row.items()
        if rule != "mean" and values
        if every(100 * (m - v) > points for v, m in zip(values, row["mean"], strict=True))
    }


def _average(table: Table, points: float) -> set[tuple[str, str]]:
    return {
        (lie, rule)
        for lie, row in table.items()
        for rule, values in row.items()
        if rule != "mean" and values
        if 100 * (sum(row["mean"]) - sum(values)) / len(values) > points
    }


def _tables() -> list[Table]:
    draw = generator(0, "exercise 16.2")
    made: list[Table] = []
    for _ in range(3):
        means = 0.5 + 0.3 * torch.rand(4, 1, generator=draw)
        table: dict[str, dict[str, list[float]]] = {}
        for lie, base in zip(("none", "flip", "ALIE", "IPM"), means, strict=True):
            seeds = base + 0.08 * torch.randn(5, generator=draw)
            shift = torch.tensor([0.0, -0.06, -0.005, 0.12, -0.2])[:, None]
            noise = 0.04 * torch.randn(5, 5, generator=draw)
            rows = (seeds + shift + noise * (shift != 0)).clamp(0, 1).tolist()
            names = ("mean", "median", "mixing", "filter", "krum")
            table[lie] = dict(zip(names, rows, strict=True)) | {"bulyan": []}
        made.append(table)
    return made


@exercise(
    "16.2",
    title="where is the defence the damage?",
    hints=(
        "Two loops, over lies and over rules. zip(values, row['mean']) pairs the same seed.",
        "A rule that is not defined has an empty list, of which all(…) is True: skip it first.",
    ),
)
def harmful(answer: Callable[..., Any]) -> str:
    for table in _tables():
        for points in (3.0, 10.0):
            found = answer({lie: dict(row) for lie, row in table.items()}, points)
            _compare(_pairs(found), table, points)
    return "Seed against seed: the same data, liars and start, so their luck drops out."


def _pairs(found: object) -> set[tuple[str, str]]:
    if isinstance(found, (str, Mapping)) or not isinstance(found, Iterable):
        raise Wrong("Return a list (or set) of pairs (lie, rule).")
    pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else pair for pair in found]
    if bad := [pair for pair in pairs if not (isinstance(pair, tuple) and len(pair) == 2)]:
        raise Wrong(f"Return pairs (lie, rule), such as ('flip', 'krum'); you have {bad[0]!r}.")
    return set(pairs)


def _compare(found: set[tuple[str, str]], table: Table, points: float) -> None:
    right = losses(table, points)
    if found == right:
        return
    if right and not found:
        raise Wrong("You find none. Accuracies lie in [0, 1], and a point is 0.01.")
    told: list[tuple[set[tuple[str, str]], str]] = [
        ({(rule, lie) for lie, rule in right}, "The pairs are (lie, rule), in that order."),
        ({pair for pair in found if pair[1] == "mean"} and found,
         "The mean cannot lose to itself."),
        ({pair for pair in found if not table.get(pair[0], {}).get(pair[1])} and found,
         "A rule that is not defined has no accuracies: an empty list is no loss."),
        (_average(table, points),
         "You compare averages. Compare seed with seed, and ask that every one loses."),
        (losses(table, -points), "Below by more than so many points, not above by less."),
        ({(lie, rule) for lie, row in table.items() for rule, values in row.items()
          if values and rule != "mean"
          and all(100 * (v - m) > points for v, m in zip(values, row["mean"], strict=True))},
         "That is where the rule wins. Asked are the pairs where it loses to the mean."),
        (losses(table, points, every=any),
         "In every seed: one bad seed of five may be bad luck."),
    ]  # fmt: skip
    for wrong, message in told:
        if wrong and found == wrong:
            raise Wrong(message)
    missing, extra = sorted(right - found), sorted(found - right)
    place = f"{missing[0]} is missing" if missing else f"{extra[0]} does not belong there"
    raise Wrong(f"At {points:g} points {place}. Look at each of its seeds beside the mean's.")


# --- 16.3 -----------------------------------------------------------------------------------------


def chosen(rows: Tensor, f: int) -> Tensor:
    """Bulyan's first half: ``n − 2f`` rows, each Krum's choice among those that are left."""
    left, taken = list(range(len(rows))), []
    apart = torch.cdist(rows.double(), rows.double()).square()
    for _ in range(len(rows) - 2 * f):
        near = apart[left][:, left].sort(dim=1).values[:, 1:]
        scores = near[:, : max(len(left) - f - 2, 1)].sum(dim=1)
        taken.append(left.pop(int(scores.argmin())))
    return rows[taken]


def middle(rows: Tensor, keep: int) -> Tensor:
    """In each coordinate the mean of the ``keep`` values nearest to the median."""
    ordered = rows.sort(dim=0).values
    median = (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2
    order = (rows - median).abs().argsort(dim=0)[:keep]
    return rows.gather(0, order).mean(dim=0)


def trims(rows: Tensor, f: int, cut: Callable[[int], int]) -> Tensor:
    """Bulyan that leaves out ``cut(number of rows chosen)`` values of each coordinate."""
    if len(rows) < 4 * f + 3:
        raise ValueError(f"n = {len(rows)} rows, Bulyan needs 4f + 3 = {4 * f + 3}")
    picked = chosen(rows, f)
    return middle(picked, len(picked) - cut(len(picked)))


FLAWED_BULYAN: dict[str, tuple[Bulyan, str]] = {
    "leaves out a quarter of the values instead of 2f": (
        lambda rows, f: trims(rows, f, lambda count: count // 4),
        "A quarter is enough while f is small. Try more liars, who all lie in one coordinate.",
    ),
    "leaves out none": (
        lambda rows, f: trims(rows, f, lambda count: 0),
        "Its first half takes rows by distance. How large may one value be in a row of hundreds "
        "that is near the others?",
    ),
}
SOUND_BULYAN: dict[str, Bulyan] = {
    "the library's": lambda rows, f: byzantine.bulyan(rows, f),
    "one written plainly": lambda rows, f: trims(rows, f, lambda count: 2 * f),
}


@exercise(
    "16.3",
    title="find the flaw: Bulyan",
    hints=(
        "The lies must be chosen in the first half, so they must be near: send the mean of the "
        "honest rows, 500 values or more, and change one value.",
        "Let the honest values differ little in that one coordinate, all f liars send 10 there, "
        "and try f = 1, 2, 4, 8 with n = 4f + 3.",
    ),
)
def bulyan_evidence(answer: Callable[..., Any]) -> str:
    for what, rule in SOUND_BULYAN.items():
        found = _evidence(answer(rule))
        if found is not None and not escapes(rule, *found):
            raise Wrong(f"You accuse a sound Bulyan ({what}): on your rows it keeps its promise.")
    for what, (rule, advice) in FLAWED_BULYAN.items():
        found = _evidence(answer(rule))
        if found is None:
            raise Wrong(f"A flaw passes: a Bulyan that {what}. {advice}")
        if not escapes(rule, *found):
            raise Wrong(
                f"Your rows (n = {len(found[0])}, f = {found[1]}) show nothing wrong with a Bulyan "
                f"that {what}: every value stays near the honest ones. {advice}"
            )
    return f"{len(FLAWED_BULYAN)} flaws shown; with one liar, one of them cannot be seen at all."


def escapes(rule: Bulyan, rows: Tensor, f: int) -> bool:
    """Whether a value of the step lies further outside the honest ones than these differ."""
    honest, step = rows[: len(rows) - f].double(), rule(rows, f).double()
    low, high = honest.min(dim=0).values, honest.max(dim=0).values
    width = high - low + 1e-5 * honest.abs().max()  # the last digits of a mean are no lie
    return not bool(((step <= high + width) & (step >= low - width)).all())


def _evidence(found: Any) -> tuple[Tensor, int] | None:
    remark = "at least 1: somebody must lie"
    case = read_case(found, most=MOST_ROWS, least=1, order=" with the lies last", remark=remark)
    if case is None:
        return None
    n, f = len(case[0]), case[1]
    if n < 4 * f + 3:
        raise Wrong(f"For n = {n} and f = {f} Bulyan promises nothing: it needs 4f + 3.")
    return case


# --- 16.4 -----------------------------------------------------------------------------------------


def expanded(rows: Tensor) -> Tensor:
    """``|x|² + |y|² − 2x·y``, in the rows' own precision."""
    squares = rows.square().sum(dim=1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0).sqrt()


def exact(rows: Tensor) -> Tensor:
    """From differences, in float64."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(rows.double(), rows.double(), compute_mode=mode)


FLAWED_DISTANCES: dict[str, tuple[Distances, str]] = {
    "|x|² + |y|² − 2x·y, of whole models": (
        expanded,
        "Two large numbers that nearly cancel: add the same 100 to every value of every row.",
    ),
    "torch.cdist as it comes, of whole models": (
        lambda rows: torch.cdist(rows, rows),
        "For few rows it subtracts, for many it takes the short cut. Try forty.",
    ),
    "the first row taken away from all before": (
        lambda rows: expanded(rows - rows[0]),
        "What if the first row is a liar's, and far away?",
    ),
}
SOUND_DISTANCES: dict[str, Distances] = {
    "differences, in float64": exact,
    "differences, in the rows' own precision": lambda rows: (rows[:, None] - rows).norm(dim=2),
    "the library's": lambda rows: byzantine.squared_distances(rows).sqrt(),
}


@exercise(
    "16.4",
    title="find the flaw: distances",
    hints=(
        "Rows that differ by 0.01 and share a large offset; the exact answer from "
        "(rows[:, None] - rows).double().norm(dim=2).",
        "Loop over 10 and 40 rows, over an offset of 100 for all, and one for the first row only.",
    ),
)
def distance_evidence(answer: Callable[..., Any]) -> str:
    for what, rule in SOUND_DISTANCES.items():
        rows = _maybe(answer(rule))
        if rows is not None and not off(rule, rows):
            raise Wrong(f"You accuse sound distances ({what}): on your rows they are right.")
    for what, (rule, advice) in FLAWED_DISTANCES.items():
        rows = _maybe(answer(rule))
        if rows is None:
            raise Wrong(f"A flaw passes: {what}. {advice}")
        if not off(rule, rows):
            raise Wrong(
                f"On your {len(rows)} rows every distance is right to a percent for: {what}. "
                f"{advice}"
            )
    return f"{len(FLAWED_DISTANCES)} flaws shown. Subtract first, and from a typical row."


def off(rule: Distances, rows: Tensor) -> bool:
    """Whether a distance of two different rows is wrong by more than a percent."""
    true = exact(rows)
    wrong = ~((rule(rows).double() - true).abs() <= 0.01 * true)
    return bool((wrong & (true > 0)).any())


def _maybe(found: Any) -> Tensor | None:
    return None if nothing_found(found, "rows [n, d]") else read_rows(found, most=MOST_ROWS)
