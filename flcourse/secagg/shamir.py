"""Shamir's secret sharing: any t shares give the secret, t − 1 give nothing.

    shares = split(secret, threshold=3, num_shares=5)
    combine(shares[1:4])                        # the secret

A secret is cut into 16-bit limbs; each is the constant term of a random polynomial of degree
``t − 1`` over GF(65537), and share ``x`` holds its values at ``x``. Products of two field elements
stay below 2^33, so float64 matrix products are exact, and many secrets share their weights: one
matrix product for all. ``split_plain`` and ``combine_plain`` are the same in Python integers, over
any prime. Source: Shamir 1979, "How to Share a Secret". Chapter 13.
"""

from __future__ import annotations

import functools
import os
import secrets as system
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import RandomBytes, pack, packed_size, unpack

Elements = NDArray[np.int64]

PRIME = 65537  # 2^16 + 1: one more than a limb of 16 bits
LIMB_BYTES = 2
SHARE_BITS = 17  # a value of a share lies in 0..65536
_ROOT = 3  # its powers are all of 1..65536


@dataclass(frozen=True)
class Share:
    """One share of a secret of ``length`` bytes that ``threshold`` shares open.

    Attributes:
        index: ``x``, the point at which the polynomials were taken, 1..65536.
        values: one value in 0..65536 for each limb.
        length: bytes of the secret.
        threshold: ``t``.
    """

    index: int
    values: tuple[int, ...]
    length: int
    threshold: int


def split(
    secret: bytes, threshold: int, num_shares: int, *, random_bytes: RandomBytes = os.urandom
) -> list[Share]:
    """``num_shares`` shares of ``secret``, of which any ``threshold`` give it back.

    ``random_bytes`` is the source of the coefficients: the system's, unless a test needs another.
    Raises ``ValueError`` for an empty secret or a threshold outside 1..num_shares.
    """
    points = range(1, num_shares + 1)
    values = split_many([secret], threshold, points, random_bytes=random_bytes)[:, 0]
    return [
        Share(point, tuple(row.tolist()), len(secret), threshold)
        for point, row in zip(points, values, strict=True)
    ]


def combine(shares: Sequence[Share]) -> bytes:
    """The secret. All shares are used: what is beyond ``threshold`` must lie on the same curve.

    Raises ``ValueError`` for too few shares, two of one index, an index or value outside its range,
    shares of different secrets (length, threshold), and shares that do not fit together.
    """
    if not shares:
        raise ValueError("there are no shares to combine")
    first = shares[0]
    if any((s.length, s.threshold) != (first.length, first.threshold) for s in shares):
        raise ValueError("the shares belong to secrets of different length or threshold")
    if len(shares) < first.threshold:
        raise ValueError(f"{len(shares)} shares are too few: the secret needs {first.threshold}")
    limbs = _num_limbs(first.length)
    if any(len(s.values) != limbs for s in shares):
        raise ValueError(f"a share of {first.length} bytes has {limbs} values")
    values = np.array([s.values for s in shares], np.int64)[:, None, :]
    points = [s.index for s in shares]
    check_points(points)
    used = first.threshold
    secret = combine_many(points[:used], values[:used], first.length)[0]
    beyond = values[used:, 0]
    expected = values_at(points[used:], points[:used], values[:used, 0])
    if (beyond != expected).any():
        wrong = int(np.argwhere((beyond != expected).any(axis=1))[0, 0])
        raise ValueError(
            f"share {points[used + wrong]} does not fit the first {used}: one of them was altered"
        )
    if secret is None:
        raise ValueError("the shares give no secret of this length: one of them was altered")
    return secret


# --- many secrets at once ---------------------------------------------------------------------


def split_many(
    secrets: Sequence[bytes],
    threshold: int,
    points: Sequence[int],
    *,
    random_bytes: RandomBytes = os.urandom,
) -> Elements:
    """Shares of ``m`` secrets of equal length at all ``points``: ``[n, m, limbs]``, 0..65536.

    One product: the powers of the points ``[n, t]`` times the coefficients ``[t, m·limbs]``.
    Raises ``ValueError`` as ``split`` does, and for points that are not distinct in 1..65536.
    """
    points = tuple(points)
    check_points(points)
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold={threshold} must lie in 1..{len(points)}, the shares made")
    if len({len(secret) for secret in secrets}) != 1 or not secrets[0]:
        raise ValueError("the secrets must have equal length, at least one byte each")
    constant = np.stack([_limbs(secret) for secret in secrets])
    rest = random_elements((threshold - 1) * constant.size, random_bytes)
    coefficients = np.concatenate(
        [constant.reshape(1, -1), rest.reshape(threshold - 1, constant.size)]
    )
    shares = product(powers(points, threshold), coefficients.astype(np.float64))
    return shares.reshape(len(points), *constant.shape)


def combine_many(points: Sequence[int], values: Elements, length: int) -> list[bytes | None]:
    """``m`` secrets of ``length`` bytes from exactly ``t`` points and values ``[t, m, limbs]``.

    The Lagrange weights are computed once for all. None stands where the result is no secret of
    this length: some share was altered. Raises ``ValueError`` for points or values outside their
    range or repeated.
    """
    values = np.asarray(values)
    if values.ndim != 3 or values.shape[::2] != (len(points), _num_limbs(length)):
        raise ValueError(f"values of shape {list(values.shape)} are not [t, m, limbs]")
    if values.size and not (values.min() >= 0 and values.max() < PRIME):
        raise ValueError(f"a value of a share is outside 0..{PRIME - 1}: it was altered")
    weights = lagrange_weights(points).astype(np.float64)
    flat = values.reshape(len(points), -1).astype(np.float64)
    return [_from_limbs(row, length) for row in product(weights, flat).reshape(values.shape[1:])]


def lagrange_weights(points: Sequence[int]) -> Elements:
    """``λ_i = Π_{j≠i} x_j / (x_j − x_i)`` modulo 65537, ``[t]``: ``f(0) = Σ λ_i f(x_i)``.

    Products are sums of logarithms to the base 3, modulo 65536: one table look-up a factor.
    Raises ``ValueError`` for points that are not distinct in 1..65536.
    """
    check_points(points)
    x = np.array(points, np.int64)
    log, power = _tables()
    differences = (x[None, :] - x[:, None]) % PRIME
    np.fill_diagonal(differences, 1)
    own = log[x]
    return power[(own.sum() - own - log[differences].sum(axis=1)) % (PRIME - 1)]


def random_elements(count: int, random_bytes: RandomBytes = os.urandom) -> Elements:
    """``count`` numbers uniform in 0..65536: 32 bits modulo 65537, the one excess value redrawn.

    ``2^32 = 65535 · 65537 + 1``, so without the redraw zero would be a hair too frequent.
    """
    draws = np.frombuffer(random_bytes(4 * count), "<u4").astype(np.int64)
    while (excess := draws == 2**32 - 1).any():
        draws[excess] = np.frombuffer(random_bytes(4 * int(excess.sum())), "<u4")
    return draws % PRIME


def share_bytes(values: Elements) -> bytes:
    """The values of shares ``[...]`` at 17 bits each: 34 bytes for a secret of 32.

    Shares of secrets of a multiple of 16 bytes end on a whole byte, so they can be cut apart.
    """
    return pack(values.reshape(-1).astype("<u4"), SHARE_BITS)


def share_size(length: int) -> int:
    """Bytes of a share of a secret of ``length`` bytes."""
    return packed_size(_num_limbs(length), SHARE_BITS)


def parse_shares(data: bytes, count: int, length: int) -> Elements:
    """The inverse of ``share_bytes`` for ``count`` secrets of ``length`` bytes: ``[m, limbs]``.

    Raises ``ProtocolError`` for another length, or a value beyond 65536.
    """
    values = unpack(data, SHARE_BITS, count * _num_limbs(length)).astype(np.int64)
    if (values >= PRIME).any():
        raise ProtocolError(f"a share holds {int(values.max())}, beyond {PRIME - 1}")
    return values.reshape(count, _num_limbs(length))


# --- the same, plainly ------------------------------------------------------------------------


def split_plain(
    secret: int,
    threshold: int,
    num_shares: int,
    prime: int,
    coefficients: Sequence[int] | None = None,
) -> dict[int, int]:
    """``{x: secret + c₁x + c₂x² + … mod prime}`` for ``x = 1..num_shares``, in Python integers.

    ``coefficients`` ``c₁ …`` (``threshold − 1`` of them) are drawn from ``secrets`` unless given.
    Raises ``ValueError`` for a secret, threshold, number of shares or coefficients out of range.
    """
    if not 0 <= secret < prime or not 1 <= threshold <= num_shares < prime:
        raise ValueError(
            f"need 0 ≤ secret={secret} < prime={prime} and 1 ≤ threshold={threshold} ≤ "
            f"num_shares={num_shares} < prime"
        )
    if coefficients is None:
        coefficients = [system.randbelow(prime) for _ in range(threshold - 1)]
    if len(coefficients) != threshold - 1:
        raise ValueError(f"{len(coefficients)} coefficients given, need {threshold - 1}")
    terms = [secret, *coefficients]
    return {
        x: sum(c * pow(x, power, prime) for power, c in enumerate(terms)) % prime
        for x in range(1, num_shares + 1)
    }


def combine_plain(shares: Mapping[int, int], prime: int) -> int:
    """``f(0) = Σ_i y_i Π_{j≠i} x_j / (x_j − x_i) mod prime``; too few shares give anything."""
    total = 0
    for x, y in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = weight * other * pow(other - x, -1, prime) % prime
        total += y * weight
    return total % prime


# --- pieces -----------------------------------------------------------------------------------


def check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points):
        raise ValueError("two shares have the same index: each point counts once")
    for point in points:
        if not 0 < point < PRIME:
            raise ValueError(f"share index {point} is outside 1..{PRIME - 1} (0 is the secret)")


def _num_limbs(length: int) -> int:
    return -(-length // LIMB_BYTES)


def _limbs(secret: bytes) -> Elements:
    return np.frombuffer(secret + bytes(len(secret) % LIMB_BYTES), "<u2").astype(np.int64)


def _from_limbs(row: Elements, length: int) -> bytes | None:
    data = b"" if (row > 0xFFFF).any() else row.astype("<u2").tobytes()
    return data[:length] if data and not any(data[length:]) else None


@functools.lru_cache(maxsize=1)
def _tables() -> tuple[Elements, Elements]:
    """``log[3^i] = i`` and ``power[i] = 3^i`` modulo 65537, for ``i = 0..65535``."""
    power = np.ones(PRIME - 1, np.int64)
    done = 1
    while done < len(power):
        power[done : 2 * done] = power[:done] * pow(_ROOT, done, PRIME) % PRIME
        done *= 2
    log = np.zeros(PRIME, np.int64)
    log[power] = np.arange(PRIME - 1)
    return log, power


@functools.lru_cache(maxsize=8)
def powers(points: tuple[int, ...], count: int) -> NDArray[np.float64]:
    """``x^j`` modulo 65537, ``[n, count]``, by logarithms; the last few are kept."""
    log, power = _tables()
    exponents = log[np.array(points)][:, None] * np.arange(count) % (PRIME - 1)
    return power[exponents].astype(np.float64)


def product(left: NDArray[np.float64], right: NDArray[np.float64]) -> Elements:
    """``left @ right`` modulo 65537, exact: sums of at most 2^16 products below 2^33 in float64."""
    return (left @ right).astype(np.int64) % PRIME


def values_at(targets: Sequence[int], points: Sequence[int], values: Elements) -> Elements:
    """The curves through ``(points, values [t, limbs])`` at other points: ``[targets, limbs]``."""
    if not targets:
        return np.zeros((0, values.shape[1]), np.int64)
    shifted = [lagrange_weights([(p - target) % PRIME for p in points]) for target in targets]
    return product(np.stack(shifted).astype(np.float64), values.astype(np.float64))
