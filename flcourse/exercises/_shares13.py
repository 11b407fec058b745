"""Check 13.3: coefficients of shares that can be guessed, and their repair."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from flcourse.exercises._core import Wrong, exercise, expect_functions
from flcourse.secagg.shamir import split_plain

Draw = Callable[[int, int], list[int]]
WINDOW = 600  # seconds


@exercise(
    "13.3",
    title="find the flaw: the coefficients",
    takes="value",
    hints=(
        "Try all coefficients (c₁, …, c_{t−1}) that may have been drawn: "
        "itertools.product(range(limit), repeat=threshold - 1), or draw(second, threshold - 1) for "
        "each of the 600 seconds. Each choice turns a share (x, y) into a secret, "
        "(y − c₁x − c₂x² − …) % prime. It fits if all shares give the same one.",
        "The repair: every number from 0 to prime − 1, equally likely, unpredictable: "
        "secrets.randbelow(prime), for each coefficient.",
    ),
)
def coefficients(answer: Any) -> str:
    names = "from_range, from_clock, coefficients"
    ranged, clocked, repair = expect_functions(answer, "13.3", names)
    draw = np.random.default_rng(133)
    for case in ((65537, 2, 1, 256), (65537, 3, 2, 40), (257, 3, 2, 16), (65537, 4, 2, 7)):
        _check_range(ranged, draw, *case)
    for prime, threshold, held in ((65537, 3, 2), (65537, 2, 1), (2**127 - 1, 5, 2)):
        for age in (0, WINDOW - 1, int(draw.integers(WINDOW))):
            _check_clock(clocked, draw, prime, threshold, held, age)
    _check_repair(repair)
    return (
        "Fewer than t shares told the secret, and the sum of the round was right all the time. "
        "With your coefficients every secret fits equally well."
    )


def _held(
    draw: np.random.Generator, prime: int, threshold: int, held: int, slopes: Sequence[int]
) -> tuple[int, dict[int, int]]:
    """A secret, and ``held`` of its shares, at points that are not simply 1, 2, …"""
    secret = int(draw.integers(min(prime, 2**62)))
    shares = split_plain(secret, threshold, threshold + 6, prime, slopes)
    points = sorted(int(x) + 1 for x in draw.permutation(threshold + 6)[:held])
    return secret, {x: shares[x] for x in points}


def _check_range(
    ranged: Callable[..., Any],
    draw: np.random.Generator,
    prime: int,
    threshold: int,
    held: int,
    limit: int,
) -> None:
    slopes = [0, *(int(c) for c in draw.integers(limit, size=threshold - 2))]  # zero is drawn, too
    for some in (slopes, [limit - 1] * (threshold - 1)):
        secret, shares = _held(draw, prime, threshold, held, some)
        got = ranged(dict(shares), threshold, prime, limit)
        tried = list(itertools.product(range(limit), repeat=threshold - 1))
        where = f"from_range, shares {shares} of t={threshold} modulo {prime}, below {limit}"
        _compare(got, secret, shares, prime, tried, where)


def _statistical(prime: int) -> Draw:
    """What the flawed library does: the round's second as the seed."""

    def draw(second: int, count: int) -> list[int]:
        source = random.Random(second)
        return [source.randrange(prime) for _ in range(count)]

    return draw


def _check_clock(
    clocked: Callable[..., Any],
    draw: np.random.Generator,
    prime: int,
    threshold: int,
    held: int,
    age: int,
) -> None:
    now, library = 1_700_000_000 + int(draw.integers(10**6)), _statistical(prime)
    secret, shares = _held(draw, prime, threshold, held, library(now - age, threshold - 1))
    got = clocked(dict(shares), threshold, prime, library, now)
    tried = [library(now - back, threshold - 1) for back in range(WINDOW)]
    where = f"from_clock, shares {shares} of t={threshold}, drawn {age} seconds before now={now}"
    _compare(got, secret, shares, prime, tried, where)


def _fitting(
    shares: Mapping[int, int], prime: int, tried: Sequence[Sequence[int]], first: int = 1
) -> set[int]:
    found = set()
    for slopes in tried:
        values = {
            (y - sum(c * x**power for power, c in enumerate(slopes, first))) % prime
            for x, y in shares.items()
        }
        if len(values) == 1:
            found |= values
    return found


def _compare(
    got: Any,
    secret: int,
    shares: Mapping[int, int],
    prime: int,
    tried: Sequence[Sequence[int]],
    where: str,
) -> None:
    if not isinstance(got, (set, frozenset, list, tuple)):
        raise Wrong(f"{where}: return the set of all secrets that fit; you return {got!r}.")
    found, expected = set(got), _fitting(shares, prime, tried)
    if found == expected:
        return
    one = dict([next(iter(shares.items()))])
    told = {
        "Nothing fits, you say. The true secret does: try every coefficient below the limit, or "
        "every second from now back to now − 599, and compare modulo the prime.": not found,
        "Secrets live modulo the prime: take y − c₁x − … modulo it.": (
            any(not 0 <= value < prime for value in found)
        ),
        "c₁ belongs to x, c₂ to x²: your first coefficient is multiplied by 1.": (
            found == _fitting(shares, prime, tried, first=0)
        ),
        "You look at one share. A choice of coefficients fits only if every share gives the same "
        "secret: that leaves far fewer.": (
            len(shares) > 1 and found == _fitting(one, prime, tried)
        ),
        "A coefficient may be 0, and yours never is.": (
            found == _fitting(shares, prime, [c for c in tried if 0 not in c])
        ),
    }
    for reason, holds in told.items():
        if holds:
            raise Wrong(f"{where}: {reason}")
    if secret not in found:
        raise Wrong(
            f"{where}: the true secret is not among your {len(found)}. Every coefficient from 0 to "
            "limit − 1, every second from now back to now − 599."
        )
    raise Wrong(f"{where}: {len(expected)} secrets fit these shares, you return {len(found)}.")


# --- the repair -------------------------------------------------------------------------------


def _check_repair(repair: Callable[..., Any]) -> None:
    large = 2**127 - 1
    _check_source(repair, 41, large)
    for prime, at_least in ((large, 400), (11, 2000), (251, 20_000)):
        drawn = [c for _ in range(-(-at_least // 40)) for c in _drawn(repair, 41, prime)]
        _check_spread(drawn, prime)


def _drawn(repair: Callable[..., Any], threshold: int, prime: int) -> list[int]:
    got = repair(threshold, prime)
    if got is None or got is Ellipsis:
        raise Wrong("coefficients returns nothing yet: fill it in, and mind the return.")
    found = list(got)
    if len(found) != threshold - 1:
        raise Wrong(
            f"A curve for t={threshold} has {threshold - 1} coefficients beside the secret; you "
            f"return {len(found)}."
        )
    for value in found:
        if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < prime:
            raise Wrong(f"A coefficient is a whole number from 0 to {prime - 1}, not {value!r}.")
    return [int(value) for value in found]


@contextmanager
def _counted(answer: Callable[..., Any]) -> Iterator[list[int]]:
    """How many bytes of the system's randomness are drawn, by ``secrets`` or ``os.urandom``."""
    sizes: list[int] = []
    real = os.urandom

    def urandom(size: int) -> bytes:
        sizes.append(size)
        return real(size)

    space = getattr(answer, "__globals__", {})
    names = [name for name, value in space.items() if value is real]
    with (
        mock.patch.object(os, "urandom", urandom),
        mock.patch.object(random, "_urandom", urandom),
        mock.patch.dict(space, dict.fromkeys(names, urandom)),
    ):
        yield sizes


def _check_source(repair: Callable[..., Any], threshold: int, prime: int) -> None:
    with _counted(repair) as sizes:
        _drawn(repair, threshold, prime)
    needed = (threshold - 1) * prime.bit_length() // 8
    if not sizes:
        raise Wrong(
            "Your coefficients do not come from the system's randomness (secrets, os.urandom). A "
            "generator made for statistics can be seeded, guessed, and read from its output."
        )
    if sum(sizes) < needed:
        raise Wrong(
            f"Only {sum(sizes)} random bytes of the system stand behind {threshold - 1} "
            f"coefficients of {needed} bytes together: too small a range, or a seed that a "
            "generator stretches. Draw each coefficient from secrets."
        )


def _check_spread(drawn: list[int], prime: int) -> None:
    if max(drawn) < 0.9 * prime:
        raise Wrong(
            f"Of {len(drawn)} coefficients modulo {prime} the largest is {max(drawn)}: a range "
            "smaller than the field, and not every secret fits a share any more."
        )
    if prime > len(drawn):
        return
    counts = np.bincount(drawn, minlength=prime)
    if not counts[0]:
        raise Wrong(
            "No coefficient is ever 0. Then t = 2 is broken a little: a share that is not the "
            "secret rules that secret out. All of 0 … prime − 1 must be equally likely."
        )
    expected = len(drawn) / prime
    square = float(((counts - expected) ** 2 / expected).sum())
    if square > prime - 1 + 7 * (2 * (prime - 1)) ** 0.5:
        most = int(counts.argmax())
        raise Wrong(
            f"Modulo {prime} some numbers come too often ({most}: {counts[most]} times, expected "
            f"{expected:.0f}). 256 is no multiple of {prime}: a byte modulo it favours the small."
        )
