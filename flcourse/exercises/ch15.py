"""Checks of chapter 15: aim a mean, how loud to turn it, a trimmed mean, evidence of flaws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flcourse.exercises._core import Wrong, as_tensor, exercise, expect_close
from flcourse.exercises._evidence import read_case
from flcourse.runtime import generator

Rule = Callable[[Tensor, int], Tensor]


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def _counts(draw: torch.Generator, count: int) -> Tensor:
    return torch.randint(1, 200, (count,), generator=draw).double()


# --- 15.1 -----------------------------------------------------------------------------------------


@exercise(
    "15.1",
    title="aim a weighted mean",
    hints=(
        "(Σ w_i Δ_i + w · lie) / (Σ w_i + w) = target. Solve for the lie.",
        "With total = weights.sum() + own_weight: (total * target − weights @ honest) / own_weight",
    ),
)
def aimed(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 15.1")
    for n, d in ((5, 2), (2, 3), (8, 1), (20, 50)):
        honest, weights = _normal(draw, n - 1, d), _counts(draw, n - 1)
        target, own = 3 * _normal(draw, d), float(_counts(draw, 1))
        total, said = weights.sum() + own, weights @ honest
        mistakes: dict[str, object] = {
            "This is the lie for a plain mean. The weighted mean counts sample numbers, not "
            "clients.": n * target - honest.sum(dim=0),
            "Almost: your row still counts own_weight times. Divide by own_weight.": total * target
            - said,
            "The total is the weight of all n clients, yours included.": (
                weights.sum() * target - said
            )
            / own,
            "The others' rows must be taken away, each times its weight: you add them.": (
                total * target + said
            )
            / own,
            "You send the target itself: the mean of it and the others is somewhere between.": (
                target
            ),
            "The others' rows count with their weights, too: weights @ honest.": (
                total * target - honest.sum(dim=0)
            )
            / own,
            "You divide the others' weighted sum by their weight. That is their mean; the sum is "
            "needed.": (total * target - said / weights.sum()) / own,
        }
        got = answer(target.clone(), honest.clone(), weights.clone(), own)
        expect_close(got, (total * target - said) / own, "your row", mistakes=mistakes)
    return (
        "The weighted mean is where you wanted it, for any weights. With a large one a short row."
    )


# --- 15.2 -----------------------------------------------------------------------------------------


@exercise(
    "15.2",
    title="how loud?",
    hints=(
        "The mean is ((honest weight) − s · (liars' weight)) / total times μ. When is it zero?",
        "sum(honest_weights) / sum(liar_weights), and math.inf for an empty list of liars.",
    ),
)
def turning_scale(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 15.2")
    cases = [([10] * 16, [10] * 4), ([50, 5, 5, 5, 5], [200]), ([3, 3], [1, 1, 1])]
    for n, f in ((6, 2), (15, 5), (9, 1)):
        cases.append((_counts(draw, n).int().tolist(), _counts(draw, f).int().tolist()))
    for honest, liars in cases:
        good, bad = float(sum(honest)), float(sum(liars))
        mistakes: dict[str, object] = {
            "You count clients. A weighted mean counts samples.": len(honest) / len(liars),
            "Turned over: the more weight the liars have, the less loud they need to be.": bad
            / good,
            "The weight of all over the liars': but the liars' own weight does not speak for μ.": (
                good + bad
            )
            / bad,
            "You compare mean weights. All honest clients speak for μ, all liars against it.": (
                good / len(honest)
            )
            / (bad / len(liars)),
        }
        got = as_tensor(answer(list(honest), list(liars)), "the scale")
        expect_close(got, torch.tensor(good / bad), "your scale", mistakes=mistakes)
    if float(as_tensor(answer([4, 7], []), "the scale")) != math.inf:
        raise Wrong("Where nobody lies no scale turns the mean round: return math.inf.")
    return "One liar with most of the samples need not even shout: its scale is below one."


# --- 15.3 -----------------------------------------------------------------------------------------


@exercise(
    "15.3",
    title="a trimmed mean that trims",
    hints=(
        "Sort each coordinate over the clients: rows.sort(dim=0).values. Keep rows f to n − f − 1.",
        "ordered[f : n - f].mean(dim=0); before it, raise ValueError if n <= 2 * f.",
    ),
)
def trimmed(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 15.3")
    for n, f, d in ((22, 5, 12), (5, 1, 4), (7, 3, 5), (6, 0, 3), (9, 2, 9), (11, 5, 1)):
        rows = _normal(draw, n, d) + 2
        rows[:f] = 50 * _normal(draw, f, d)  # liars to both sides
        _check_trimmed(answer, rows, f)
    _check_refuses(answer, _normal(draw, 4, 3), 2)
    _check_refuses(answer, _normal(draw, 5, 3), 3)
    return "It trims f at each end, of every coordinate, and refuses when nothing would be left."


def _check_trimmed(answer: Callable[..., Any], rows: Tensor, f: int) -> None:
    n = len(rows)
    try:
        got = as_tensor(answer(rows.clone(), f), "the trimmed mean")
    except Exception as error:
        if isinstance(error.__cause__, ValueError):
            raise Wrong(
                f"For n = {n}, f = {f} you raise ValueError ({error.__cause__}); refuse only where "
                "n ≤ 2f."
            ) from error
        raise
    if f == 0 and bool(got.isnan().any()):
        raise Wrong("With f = 0 you keep nothing: the slice [0:-0] is empty. Use [f : n - f].")
    if got.numel() == n != rows.shape[1]:
        raise Wrong(f"You return {n} values, one a client. Sort and average over clients: dim=0.")
    expected = rows.sort(dim=0).values[f : n - f].mean(dim=0)
    what = f"the trimmed mean for n = {n}, f = {f}"
    expect_close(got, expected, what, mistakes=_trimmed_wrongly(rows, f), rtol=1e-5)


def _trimmed_wrongly(rows: Tensor, f: int) -> dict[str, object]:
    n, ordered, share = len(rows), rows.sort(dim=0).values, int(0.1 * len(rows))
    by_length = rows[rows.norm(dim=1).argsort()]
    from_mean = rows[(rows - rows.mean(dim=0)).norm(dim=1).argsort()]
    by_size = rows.gather(0, rows.abs().argsort(dim=0))
    kept: dict[str, Tensor] = {
        "That is the plain mean: nobody is trimmed.": rows,
        f"You trim a share: a tenth of {n} is {share} at each end, whatever f is.": ordered[
            share : n - share
        ],
        "You trim one end only, the upper one. The liars choose which.": ordered[: n - f],
        "You trim one end only, the lower one. The liars choose which.": ordered[f:],
        "f in all, half at each end: if all liars lie upwards, half of them stay. Trim f at each "
        "end.": ordered[f // 2 : n - (f - f // 2)],
        "You drop whole rows, those far out: a trimmed mean trims each coordinate on its own.": (
            by_length[: n - f]
        ),
        "You drop whole rows, the farthest from the mean, and the liar moves the mean.": from_mean[
            : n - f
        ],
        "You drop the largest by absolute value. Keep the sign: drop the least and the largest.": (
            by_size[: n - f]
        ),
        "You sort along each row. Sort over clients: dim=0.": rows.sort(dim=1).values[f : n - f],
        "That is the median: it trims all but the middle, whatever f is.": ordered[
            (n - 1) // 2 : n // 2 + 1
        ],
    }
    wrong: dict[str, object] = {text: left.mean(dim=0) for text, left in kept.items()}
    nearest = (rows - _median(rows)).abs().argsort(dim=0)[: n - 2 * f]
    wrong["You keep the values nearest to the median; drop f at each end, wherever they are."] = (
        rows.gather(0, nearest).mean(dim=0)
    )
    wrong["You move the outer values in to the last one kept: they still count. Drop them."] = (
        rows.clamp(ordered[f], ordered[n - f - 1]).mean(dim=0)
    )
    wrong["You divide by n; only n − 2f values are left."] = ordered[f : n - f].sum(dim=0) / n
    return wrong


def _check_refuses(answer: Callable[..., Any], rows: Tensor, f: int) -> None:
    try:
        got = answer(rows.clone(), f)
    except Exception as error:
        if isinstance(error.__cause__, ValueError):
            return
        raise
    raise Wrong(
        f"For n = {len(rows)} and f = {f} nothing is left to average, and you return "
        f"{as_tensor(got, 'the trimmed mean').tolist()}: raise ValueError if n <= 2 * f."
    )


# --- 15.4 -----------------------------------------------------------------------------------------


def _median(rows: Tensor) -> Tensor:
    n, ordered = len(rows), rows.sort(dim=0).values
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _trim(rows: Tensor, cut: int) -> Tensor:
    return rows.sort(dim=0).values[cut : len(rows) - cut].mean(dim=0)


def _clip(rows: Tensor, start: Tensor) -> Tensor:
    away = rows - start
    return start + (away * (1 / away.norm(dim=1, keepdim=True)).clamp(max=1)).mean(dim=0)


def _scores(rows: Tensor, f: int, *, power: int = 2, own: int = 0) -> Tensor:
    """Krum's scores; ``own=1`` counts the row itself as its nearest neighbour."""
    apart = (rows[:, None] - rows).norm(dim=2).pow(power)
    first = 1 - own
    return apart.sort(dim=1).values[:, first : first + len(rows) - f - 2].sum(dim=1)


def _krum(rows: Tensor, f: int, *, guard: bool = True, **flaw: int) -> Tensor:
    if guard and len(rows) < 2 * f + 3:
        raise ValueError(f"n = {len(rows)} rows, Krum needs 2f + 3 = {2 * f + 3}")
    return rows[int(_scores(rows, f, **flaw).argmin())].clone()


def _trim_checked(rows: Tensor, f: int, cut: int) -> Tensor:
    if len(rows) <= 2 * f:
        raise ValueError(f"n = {len(rows)} rows, trimming needs more than 2f = {2 * f}")
    return _trim(rows, cut)


FLAWED: dict[tuple[str, str], tuple[Rule, str]] = {
    ("krum", "sums unsquared distances"): (
        lambda rows, f: _krum(rows, f, power=1),
        "It mostly takes the same row. Compare with a Krum that you trust on many small sets of "
        "random rows.",
    ),
    ("krum", "counts a row as its own neighbour"): (
        lambda rows, f: _krum(rows, f, own=1),
        "It has one neighbour too few. Compare with a Krum that you trust on many small sets of "
        "random rows.",
    ),
    ("krum", "runs with n < 2f + 3"): (
        lambda rows, f: _krum(rows, f, guard=False),
        "Give it n = 6 and f = 2: it must raise ValueError.",
    ),
    ("trimmed mean", "trims a tenth of the rows, whatever f is"): (
        lambda rows, f: _trim_checked(rows, f, int(0.1 * len(rows))),
        "A tenth of fewer than ten rows is nobody: try few rows.",
    ),
    ("trimmed mean", "trims f in all, half at each end"): (
        lambda rows, f: _trim_checked(rows, f, f // 2),
        "Try an f of at least 1 and compare with a mean trimmed by hand.",
    ),
    ("clipping", "starts at the mean"): (
        lambda rows, f: _clip(rows, rows.mean(dim=0)),
        "Where is the mean when one row is huge?",
    ),
}
SOUND: dict[tuple[str, str], Rule] = {
    ("krum", "distances in float64 and from a common centre"): lambda rows, f: (
        _krum((rows - rows.mean(dim=0)).double(), f).to(rows) + rows.mean(dim=0)
    ),
    ("trimmed mean", "sums in another order"): lambda rows, f: _trim_checked(
        rows.double(), f, f
    ).to(rows),
    ("clipping", "starts at the median"): lambda rows, f: _clip(rows, _median(rows)),
}


@exercise(
    "15.4",
    title="find the flaw",
    hints=(
        "Draw a hundred sets of 7 random rows of 2 values. For each name, compare rule(rows, 2) "
        "with what it promises: your Krum, a trimmed mean, the distance to the median. Allow 1e-3 "
        "for rounding. For clipping, make one row huge.",
        "Krum has two promises: call it with n = 6, f = 2 inside try … except ValueError, and "
        "return these rows as evidence if it answers.",
    ),
)
def evidence(answer: Callable[..., Any]) -> str:
    for (name, what), rule in SOUND.items():
        found = _read(answer(name, rule))
        if found is not None and not _broken(name, rule, *found):
            n, f = len(found[0]), found[1]
            told = "to rounding. Allow 1e-3."
            if name == "krum" and n < 2 * f + 3:
                told = f"for with n = {n} and f = {f} it must refuse, and does."
            raise Wrong(
                f'You accuse a sound "{name}" ({what}): on your rows it does what it promises, '
                f"{told}"
            )
    for (name, what), (rule, advice) in FLAWED.items():
        found = _read(answer(name, rule))
        if found is None:
            raise Wrong(f'A flaw passes: a "{name}" that {what}. {advice}')
        if not _broken(name, rule, *found):
            n, f = len(found[0]), found[1]
            raise Wrong(
                f'Your rows (n = {n}, f = {f}) show nothing wrong with a "{name}" that {what}: '
                f"there it keeps its promise. {advice}"
            )
    return f"{len(FLAWED)} flaws shown, {len(SOUND)} sound rules left in peace."


def _read(found: Any) -> tuple[Tensor, int] | None:
    return read_case(found, most=500, least=0, remark="0 or more")


def _broken(name: str, rule: Rule, rows: Tensor, f: int) -> bool:
    """Whether the rule breaks its promise here; what lies outside every promise is no evidence."""
    n = len(rows)
    if name != "krum" and n <= 2 * f:
        raise Wrong(f'For n = {n} and f = {f} "{name}" promises nothing: n must exceed 2f.')
    try:
        result = rule(rows.clone(), f).double()
    except ValueError:
        return False  # refused, as it may where its promise does not hold
    rows = rows.double()
    size = 1e-4 * float(rows.abs().max() + 1)
    if name == "krum":
        return n < 2 * f + 3 or not _is_krum(result, rows, f, size)
    if name == "trimmed mean":
        return bool((result - _trim(rows, f)).abs().max() > size)
    return float((result - _median(rows)).norm()) > 1 + size


def _is_krum(result: Tensor, rows: Tensor, f: int, size: float) -> bool:
    """The result is a row, and no row's score is clearly less than its."""
    scores, gap = _scores(rows, f), (rows - result).norm(dim=1)
    row = int(gap.argmin())
    return float(gap[row]) <= size and float(scores[row]) <= float(scores.min()) * (1 + 1e-4) + size
