"""Checks of chapter 13: masks modulo 2^k by hand, shares put together, whose update was it.

13.3 is in ``_shares13``, 13.4 in ``_signatures13``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flcourse.exercises import _shares13, _signatures13
from flcourse.exercises._core import Wrong, exercise
from flcourse.secagg.shamir import split_plain

Masks = dict[tuple[int, int], int]
ELSEWHERE = _shares13, _signatures13  # imported, so registered
LENGTH, CLIENTS, WEAK_SEEDS = 400, 5, 2**12
WORD = 2**16


# --- 13.1 -----------------------------------------------------------------------------------------


@exercise(
    "13.1",
    title="masks modulo 2^k, by hand",
    hints=(
        "Start from a copy of the values. For each (i, j), m in masks.items(): client i adds m, "
        "client j takes m away. Then every message modulo 2**bits: Python's % is never negative.",
        "The total is the sum of the messages modulo 2**bits. If it is 2**(bits − 1) or more it "
        "stands for a negative number: take 2**bits away.",
    ),
)
def by_hand(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(13)
    first = ([8, 5, 11], {(1, 0): 4, (2, 0): 7, (2, 1): 2}, 8)
    _check_round(answer, *first)
    for edge in ([-64, -64], [64, 63]):  # the ends of the signed range
        _check_round(answer, edge, {(0, 1): 200}, 8)
    for bits, clients in ((8, 3), (8, 2), (12, 5), (32, 4)):
        for sign in (1, -1, 0):
            top = (2 ** (bits - 1) - 1) // clients
            drawn = draw.integers(-top, top + 1, clients)
            if sign:
                drawn = sign * (np.abs(drawn) // 2 + top // 2)
            pairs = itertools.combinations(range(clients), 2)
            masks = {pair: int(draw.integers(2**bits)) for pair in pairs}
            _check_round(answer, [int(v) for v in drawn], masks, bits)
    return "Every message can be any of 2^k numbers, and the sum comes back, negative ones too."


def _check_round(answer: Callable[..., Any], values: list[int], masks: Masks, bits: int) -> None:
    size = 2**bits
    got = answer(list(values), dict(masks), bits)
    if not (isinstance(got, (tuple, list)) and len(got) == 2):
        raise Wrong("Return two things: the list of messages, and the total.")
    messages, total = [_whole(m, "a message") for m in got[0]], _whole(got[1], "the total")
    given = f"For values {values}, masks {masks} and bits={bits}"
    if len(messages) != len(values):
        raise Wrong(f"{given} you send {len(messages)} messages; there are {len(values)} clients.")
    expected = _messages(values, masks, size)
    if messages != expected:
        raise Wrong(f"{given} {_why_messages(messages, values, masks, size)}")
    if total != sum(values):
        raise Wrong(f"{given} {_why_total(total, messages, sum(values), size)}")


def _messages(values: list[int], masks: Masks, size: int, signs: tuple[int, int] = (1, -1)) -> Any:
    sent = list(values)
    for (i, j), mask in masks.items():
        sent[i] += signs[0] * mask
        sent[j] += signs[1] * mask
    return [number % size for number in sent] if size else sent


def _why_messages(messages: list[int], values: list[int], masks: Masks, size: int) -> str:
    told = {
        "the messages are the values: nothing is masked.": [v % size for v in values],
        "your messages are right, but not taken modulo 2^k: a message must say nothing, and one "
        "outside 0..2^k − 1 says something.": _messages(values, masks, 0),
        "both ends add the mask: then it does not cancel. Client j takes it away.": _messages(
            values, masks, size, (1, 1)
        ),
        "the signs are turned round: client i of (i, j) adds, client j takes away.": _messages(
            values, masks, size, (-1, 1)
        ),
        "you take the messages modulo 2^k − 1. The numbers 0..2^k − 1 are 2^k many.": _messages(
            values, masks, size - 1
        ),
    }
    for reason, wrong in told.items():
        if messages == wrong:
            return reason
    return f"the messages are {_messages(values, masks, size)}, you send {messages}."


def _why_total(total: int, messages: list[int], expected: int, size: int) -> str:
    if total == expected % size and expected < 0:
        return (
            f"the total is {expected}, you return {total}: from 2^(k−1) on a number stands for a "
            "negative one, so take 2^k away."
        )
    if total == sum(messages):
        return "you add the messages but do not take the sum modulo 2^k."
    if total == expected - size:
        return (
            f"the total is {expected}, you return {total}: only numbers from 2^(k−1) on are "
            "negative ones."
        )
    return f"the total is {expected}, you return {total}."


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise Wrong(
            f"{what[0].upper()}{what[1:]} is {value!r}, of type {type(value).__name__}: whole "
            "numbers only. A float has 53 bits and drops the rest."
        )
    return int(value.__index__())


# --- 13.2 -----------------------------------------------------------------------------------------


@exercise(
    "13.2",
    title="put the shares together",
    hints=(
        "For each share (x, y): the weight is the product, over all other x', of x' / (x' − x). "
        "Dividing modulo a prime is multiplying by pow(x' − x, -1, prime).",
        "Add up y · weight over the shares, and take it modulo prime. Use all the shares that you "
        "are given, whatever their x.",
    ),
)
def together(answer: Callable[..., Any]) -> str:
    draw = np.random.default_rng(132)
    for prime in (11, 97, 65537, 2**127 - 1):
        for threshold, count in ((1, 1), (2, 3), (3, 5), (4, 10)):
            secret = int(draw.integers(2**62)) ** 2 % prime
            coefficients = [1 + int(draw.integers(2**62)) ** 2 % (prime - 1)
                            for _ in range(threshold - 1)]  # fmt: skip
            shares = split_plain(secret, threshold, count, prime, coefficients)
            keep = draw.permutation(count)[:threshold]
            kept = {int(x) + 1: shares[int(x) + 1] for x in keep}
            _check_secret(answer, kept, prime, secret)
    return "Any t shares will do, whoever is left. In whole numbers there is no rounding."


def _check_secret(
    answer: Callable[..., Any], shares: dict[int, int], prime: int, secret: int
) -> None:
    value = answer(dict(shares), prime)
    given = f"For shares {shares} modulo {prime}"
    if isinstance(value, float):
        raise Wrong(
            f"{given} you return the float {value:.6g}. Shares live modulo a prime: there 1/3 is "
            "the whole number that 3 is multiplied by to give 1, pow(3, -1, prime)."
        )
    got = _whole(value, "the secret")
    if got == secret:
        return
    told = {
        "You do not take the result modulo the prime.": got % prime == secret,
        "The sign of some weights is wrong: the factor is x' / (x' − x), not x' / (x − x').": (
            got == _lagrange(shares, prime, turned=True)
        ),
        "You add the shares; each must be multiplied by its weight.": (
            got == sum(shares.values()) % prime
        ),
        "That is the curve at 1. The secret is its value at 0.": got == _lagrange(shares, prime, 1),
        "You return a share as it is. It is a point of the curve, and the secret is another.": (
            len(shares) > 1 and got in shares.values()
        ),
        "This is what dividing with // gives: in whole numbers it rounds down. Divide by "
        "multiplying with pow(x' − x, -1, prime).": got == _floored(shares, prime),
        "The weights are right only for x = 1, 2, 3, …: use the x that the shares have.": (
            got == _renumbered(shares, prime)
        ),
    }
    for reason, holds in told.items():
        if holds:
            raise Wrong(f"{given}: {reason}")
    raise Wrong(f"{given} the secret is {secret}, you return {got}.")


def _lagrange(shares: Mapping[int, int], prime: int, at: int = 0, *, turned: bool = False) -> int:
    total = 0
    for x, y in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                below = x - other if turned else other - x
                weight = weight * (other - at) * pow(below, -1, prime) % prime
        total += y * weight
    return total % prime


def _floored(shares: Mapping[int, int], prime: int) -> int:
    total = 0
    for x, y in shares.items():
        above, below = 1, 1
        for other in shares:
            if other != x:
                above, below = above * other, below * (other - x)
        total += y * (above // below)
    return total % prime


def _renumbered(shares: Mapping[int, int], prime: int) -> int:
    return _lagrange(dict(enumerate(shares.values(), start=1)), prime)


# --- 13.5 -----------------------------------------------------------------------------------------


def expand(seed: int, length: int = LENGTH) -> NDArray[np.int64]:
    """``length`` numbers in 0..65535 from a seed of any size: the exercise's stream."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, WORD, length)


class Log(NamedTuple):
    """One server's log: a message, the candidates, and the seeds that the round opened."""

    name: str
    message: NDArray[Any]
    candidates: NDArray[np.int64]
    opened: list[tuple[int, int]]
    truth: int  # which candidate it is; −1 where the log does not tell
    advice: str


@exercise(
    "13.5",
    title="find the flaw: the masks",
    hints=(
        "Three flaws. Floats: which candidate is nearest? (The squared distance adds up over all "
        "values; the masks do not.) Words: take away every opened mask, sign · expand(seed), "
        "modulo 65536; is what is left a candidate? If not: is it a candidate plus expand(s) for "
        "some s below 4096?",
        "Compare words modulo 65536: ((left − candidates) % 65536 == 0).all(axis=1). Return −1 "
        "where nothing fits: that round is sound.",
    ),
)
def whose(answer: Callable[..., Any]) -> str:
    logs = _logs()
    for log in logs:
        message = log.message.copy()
        got = answer(message, log.candidates.copy(), list(log.opened), expand)
        _check_log(log, _whole(got, "your answer"))
    flawed = sum(log.truth >= 0 for log in logs)
    return (
        f"{flawed} logs read, {len(logs) - flawed} sound rounds left alone. None of the three "
        "flaws changes the sum, so no test of the sum finds them."
    )


def _check_log(log: Log, got: int) -> None:
    if got == log.truth:
        return
    if log.truth < 0:
        raise Wrong(
            f"You name candidate {got} in a sound round ({log.name}): every candidate fits this "
            "message equally well. Return −1 where nothing gives it away."
        )
    if got < 0:
        raise Wrong(f"A flaw passes: {log.name}. {log.advice}")
    raise Wrong(
        f"{log.name[0].upper()}{log.name[1:]}: it was candidate {log.truth}, you name {got}. "
        f"{log.advice}"
    )


def _logs() -> list[Log]:
    draw = np.random.default_rng(133)
    logs = []
    for _ in range(2):
        candidates = draw.normal(0, 30, (CLIENTS, LENGTH)).astype(np.int64)
        candidates[int(draw.integers(CLIENTS))] *= 4  # one row is longer than the others
        for make in (_floats, _weak, _both, _sound, _sound_closed):
            logs.append(make(draw, candidates))
    return logs


def _seed(draw: np.random.Generator) -> int:
    return int.from_bytes(draw.bytes(32), "little")


def _floats(draw: np.random.Generator, candidates: NDArray[np.int64]) -> Log:
    own = int(draw.integers(CLIENTS))
    message = candidates[own] + draw.normal(0, 80, LENGTH)
    advice = "Words are whole numbers; this is noise. The nearest candidate is the likeliest."
    return Log("masks drawn as floats from a normal", message, candidates, [], own, advice)


def _weak(draw: np.random.Generator, candidates: NDArray[np.int64]) -> Log:
    own, opened = int(draw.integers(CLIENTS)), _seed(draw)
    message = candidates[own] + expand(opened) + expand(int(draw.integers(WEAK_SEEDS)))
    advice = "Take away the opened self mask, then try every seed below 4096."
    name = "a pair's mask from a seed of 12 bits"
    return Log(name, message % WORD, candidates, [(opened, 1)], own, advice)


def _both(draw: np.random.Generator, candidates: NDArray[np.int64]) -> Log:
    own, seeds = int(draw.integers(CLIENTS)), [_seed(draw) for _ in range(3)]
    signs = (1, 1, -1)
    message = candidates[own] + sum(s * expand(n) for s, n in zip(signs, seeds, strict=True))
    opened = list(zip(seeds, signs, strict=True))
    advice = "All its seeds are in the log: take away each, sign · expand(seed), modulo 65536."
    return Log(
        "both kinds of share were handed out", message % WORD, candidates, opened, own, advice
    )


def _sound(draw: np.random.Generator, candidates: NDArray[np.int64]) -> Log:
    own, opened = int(draw.integers(CLIENTS)), _seed(draw)
    message = candidates[own] + expand(opened) + expand(_seed(draw)) - expand(_seed(draw))
    return Log(
        "its self mask opened, as it must be", message % WORD, candidates, [(opened, 1)], -1, ""
    )


def _sound_closed(draw: np.random.Generator, candidates: NDArray[np.int64]) -> Log:
    own, opened = int(draw.integers(CLIENTS)), _seed(draw)
    message = candidates[own] + expand(_seed(draw)) - expand(opened)
    return Log(
        "it left, its pair's mask opened", message % WORD, candidates, [(opened, -1)], -1, ""
    )
