"""Checks of chapter 17: rows that cancel, values that a median gives away, success, a flaw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flcourse.byzantine import fltrust
from flcourse.exercises._core import Wrong, as_tensor, exercise
from flcourse.runtime import generator

Rule = Callable[[Tensor, Tensor, list[int]], Tensor]


# --- 17.1 -----------------------------------------------------------------------------------------


@exercise(
    "17.1",
    title="cancel, in spite of the weights",
    hints=(
        "The server computes Σ w_k·row_k / Σ w_k. The two of a pair must satisfy "
        "w_a·row_a + w_b·row_b = 0, and row_a is given.",
        "rows[2k] = moves[k] and rows[2k + 1] = −moves[k] · weights[2k] / weights[2k + 1].",
    ),
)
def cancel(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 17.1")
    cases = [(torch.tensor([[7.0, -1.0]]), torch.tensor([10.0, 10.0]))]
    for pairs, width in ((1, 3), (2, 5), (3, 4)):
        moves = torch.randn(pairs, width, generator=draw)
        counts = torch.randint(5, 300, (2 * pairs,), generator=draw).float()
        cases.append((moves, counts))
    for moves, weights in cases:
        _check_cancelling(answer, moves, weights)
    return "The weighted sum of the colluders is zero: the mean is the others', and nobody else's."


def _check_cancelling(answer: Callable[..., Any], moves: Tensor, weights: Tensor) -> None:
    rows = as_tensor(answer(moves.clone(), weights.clone()), "the rows").to(moves)
    given = f"For {len(moves)} move(s) and the weights {weights.tolist()}"
    if rows.shape != (len(weights), moves.shape[1]):
        raise Wrong(
            f"{given} return a row for each of the {len(weights)} colluders, "
            f"[{len(weights)}, {moves.shape[1]}]; yours are {list(rows.shape)}."
        )
    if not torch.allclose(rows[::2], moves, atol=1e-5):
        if torch.allclose(rows[: len(moves)], moves, atol=1e-5):
            raise Wrong(f"{given}: partners stand next to each other, rows 0 and 1, then 2 and 3.")
        raise Wrong(
            f"{given}: the first of each pair sends its move as it is, rows[2k] = moves[k]."
        )
    sums = (weights[:, None] * rows).unflatten(0, (-1, 2)).sum(dim=1)
    left = sums[sums.abs().amax(dim=1).argmax()]
    scale = float((weights[:, None] * rows).abs().sum())
    if float(left.abs().max()) <= 1e-5 * scale:
        return
    if torch.allclose(rows[1::2], -moves, atol=1e-5):
        raise Wrong(
            f"{given} your rows cancel in a plain sum, but the server weights them: "
            f"Σ w_k·row_k = {_few(left)}."
        )
    ratio = (weights[1::2] / weights[::2])[:, None]
    if torch.allclose(rows[1::2], -moves * ratio, atol=1e-5):
        raise Wrong(f"{given} the ratio of the weights is turned round: the heavy one sends less.")
    if torch.allclose(rows[1::2], moves / ratio, atol=1e-5):
        raise Wrong(f"{given} the minus sign is missing: partners go opposite ways.")
    if float((weights @ rows).abs().max()) <= 1e-5 * scale:
        raise Wrong(f"{given} all rows together cancel, but each pair must cancel by itself.")
    raise Wrong(f"{given} the weighted sum of a pair is {_few(left)}, not zero.")


def _few(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()[:4]) + "]"


# --- 17.2 -----------------------------------------------------------------------------------------


@exercise(
    "17.2",
    title="which values of the median are the victim's?",
    hints=(
        "In one coordinate the lies are −b, −a, a, b with a ≤ b. The median of them and t is t "
        "while |t| < a, and a or −a otherwise.",
        "Compare median.abs() with lies.abs().min(dim=0).values.",
    ),
)
def own_values(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 17.2")
    for pairs, width in ((1, 6), (2, 40), (3, 200)):
        half = torch.randn(pairs, width, generator=draw)
        lies = torch.stack([half, -half], dim=1).flatten(0, 1)
        row = torch.randn(width, generator=draw)
        row[0] = half[:, 0].abs().max() + 1  # surely beyond every lie
        median = torch.cat([lies, row[None]]).median(dim=0).values
        got = answer(median.clone(), lies.clone())
        as_tensor(got, "your answer")
        _check_values(torch.as_tensor(got), median, lies)
    return "The colluders know which values are exact, and an attack can leave out the others."


def _check_values(got: Tensor, median: Tensor, lies: Tensor) -> None:
    if got.shape != median.shape or got.dtype != torch.bool:
        raise Wrong(
            f"Return one truth value for each of the {len(median)} coordinates; yours are "
            f"{list(got.shape)} of {got.dtype}."
        )
    size, near = median.abs(), lies.abs().min(dim=0).values
    if torch.equal(got, size < near):
        return
    told = {
        "You say yes everywhere. Where the median is as large as the nearest lie it is that lie: "
        "the nearest one counts, and < not ≤.": size <= near,
        "Compare absolute values: the median may be negative.": (median < near) & ~(size < near)
        | (size < near),
        "Compare in each coordinate, not with the least of all lies.": size < lies.abs().min(),
        "Compare with the nearest lie, not with the mean of their sizes.": size
        < lies.abs().mean(dim=0),
        "You have it the wrong way round: true where the value is the victim's.": ~(size < near),
    }
    for reason, wrong in told.items():
        if torch.equal(got, wrong):
            raise Wrong(reason)
    place = int((got != (size < near)).nonzero()[0])
    raise Wrong(
        f"In coordinate {place} the median is {float(median[place]):.3g}, the nearest lie "
        f"{float(near[place]):.3g} away from 0, and you say {bool(got[place])}."
    )


# --- 17.3 -----------------------------------------------------------------------------------------


@exercise(
    "17.3",
    title="attack success rate",
    hints=(
        "Which pictures can show a backdoor? Not those that are of the target's class anyway.",
        "others = labels != target; then the part of predicted[others] that equals target.",
    ),
)
def success(answer: Callable[..., Any]) -> str:
    draw = generator(0, "exercise 17.3")
    for count, classes, target in ((30, 4, 1), (60, 5, 0), (200, 10, 7)):
        labels = torch.randint(classes, (count,), generator=draw)
        labels[:2] = torch.tensor([target, (target + 1) % classes])
        fooled = torch.rand(count, generator=draw) < 0.6
        astray = torch.randint(classes, (count,), generator=draw)
        plain = torch.where(torch.rand(count, generator=draw) < 0.7, labels, astray)
        predicted = torch.where(fooled, torch.full_like(labels, target), plain)
        got = answer(predicted.clone(), labels.clone(), target)
        _check_success(float(as_tensor(got, "the rate")), predicted, labels, target)
    return "A model without a backdoor scores near 0, one that knows nothing but the target 1."


def _check_success(got: float, predicted: Tensor, labels: Tensor, target: int) -> None:
    others, taken = labels != target, predicted == target
    right = float((taken & others).sum()) / float(others.sum())
    if abs(got - right) < 1e-6:
        return
    told = {
        "You count pictures of the target's own class. Any good model calls them so.": float(
            taken.float().mean()
        ),
        "You leave the target's class out of the count but not out of what you divide by.": float(
            (taken & others).float().mean()
        ),
        "That is the accuracy. Success means: taken for the target.": float(
            (predicted == labels).float().mean()
        ),
        "That counts every error. A backdoor wants one certain error: the target.": float(
            (predicted != labels).float().mean()
        ),
        "That is the number of pictures; return the part, in [0, 1].": float(
            (taken & others).sum()
        ),
    }
    for reason, value in told.items():
        if abs(got - value) < 1e-6:
            raise Wrong(f"For target {target}: {reason}")
    raise Wrong(f"For target {target} the rate is {right:.4f}, you return {got:.4f}.")


# --- 17.4 -----------------------------------------------------------------------------------------


class Suspect(NamedTuple):
    """One implementation of FLTrust; ``flaw`` is empty for a sound one."""

    rule: Rule
    flaw: str
    advice: str


@exercise(
    "17.4",
    title="find the flaw in FLTrust",
    hints=(
        "Work out the right answer for three sets of rows by hand: one trusted row x whose layers "
        "are not in proportion to g; x and −x; −x alone.",
        "One trusted row: x·‖g‖/‖x‖, whole rows. x and −x: the same. All opposed: zero. Return "
        "True as soon as torch.allclose says no.",
    ),
)
def flawed(answer: Callable[..., Any]) -> str:
    suspects = _suspects()
    for suspect in suspects:
        said = answer(suspect.rule)
        if not isinstance(said, bool):
            raise Wrong(f"Return True (flawed) or False (sound), not {said!r}.")
        if said and not suspect.flaw:
            raise Wrong("You call a sound rule flawed. Allow for rounding: torch.allclose.")
        if not said and suspect.flaw:
            raise Wrong(f"A flaw passes your test: {suspect.flaw}. {suspect.advice}")
    bad = sum(bool(suspect.flaw) for suspect in suspects)
    return f"{bad} flawed implementations found, {len(suspects) - bad} sound ones left alone."


def _suspects() -> list[Suspect]:
    uneven = "Try one row whose layers are not in proportion to the server's."
    return [
        Suspect(lambda rows, g, sizes: fltrust(rows, g), "", ""),
        Suspect(_layers, "it normalises each layer", uneven),
        Suspect(_as_sent, "rows keep the length that they were sent with", "Try one long row."),
        Suspect(_loop, "", ""),
        Suspect(_heads, "it divides by n and not by the trust", "Try x and −x together."),
        Suspect(_absolute, "an opposed row is trusted", "Try x and −x together."),
        Suspect(_fallback, "all are opposed, and it averages them", "Try −g alone: no step."),
    ]


def _weighted(
    rows: Tensor, g: Tensor, trust: Tensor, *, heads: bool = False, scaled: bool = True
) -> Tensor:
    if not trust.sum() > 0:
        return torch.zeros_like(g)
    lengths = rows.norm(dim=1).clamp(min=1e-12)
    same = rows * (g.norm() / lengths)[:, None] if scaled else rows
    return (trust[:, None] * same).sum(dim=0) / (len(rows) if heads else trust.sum())


def _cosine(rows: Tensor, g: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(rows, g[None], dim=1)


def _loop(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    total, trusted = torch.zeros_like(g), 0.0
    for row in rows:
        trust = max(float(_cosine(row[None], g)), 0.0)
        total = total + trust * row * g.norm() / row.norm().clamp(min=1e-12)
        trusted += trust
    return total / trusted if trusted else total


def _layers(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    parts = zip(rows.split(sizes, dim=1), g.split(sizes), strict=True)
    trust = _cosine(rows, g).clamp(min=0)
    return torch.cat([_weighted(part, layer, trust) for part, layer in parts])


def _as_sent(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    return _weighted(rows, g, _cosine(rows, g).clamp(min=0), scaled=False)


def _heads(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    trust = _cosine(rows, g).clamp(min=0)
    return _weighted(rows, g, (trust > 0).to(trust), heads=True)


def _absolute(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    return _weighted(rows, g, _cosine(rows, g).abs())


def _fallback(rows: Tensor, g: Tensor, sizes: list[int]) -> Tensor:
    trust = _cosine(rows, g).clamp(min=0)
    if not trust.sum() > 0:
        return _weighted(rows, g, torch.ones_like(trust))
    return _weighted(rows, g, trust)
