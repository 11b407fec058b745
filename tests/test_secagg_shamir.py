"""Shamir: any t shares open a secret, fewer say nothing, altered ones are noticed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flcourse.secagg.decoding import find_altered
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.shamir import (
    PRIME,
    Share,
    combine,
    combine_many,
    combine_plain,
    lagrange_weights,
    parse_shares,
    random_elements,
    share_bytes,
    share_size,
    split,
    split_many,
    split_plain,
)


@given(secret=st.binary(min_size=1, max_size=70), data=st.data())
def test_any_threshold_many_shares_open_the_secret(secret, data):
    n = data.draw(st.integers(1, 12))
    t = data.draw(st.integers(1, n))
    shares = split(secret, t, n)
    chosen = data.draw(st.permutations(shares))[: data.draw(st.integers(t, n))]
    assert combine(chosen) == secret


def test_the_array_version_is_the_plain_one():
    """Each limb of each share, against Python integers with the same coefficients."""
    secrets, t, points = [b"first secret", b"other secret"], 4, [3, 65536, 17, 20000, 9]
    taken: list[int] = []

    def recorded(size: int) -> bytes:
        data = np.random.default_rng(size).bytes(size)
        taken.extend(np.frombuffer(data, "<u4").tolist())
        return data

    shares = split_many(secrets, t, points, random_bytes=recorded)
    rows = np.array([number % PRIME for number in taken]).reshape(t - 1, 2, 6)
    for m, limb in itertools.product(range(2), range(6)):
        constant = int.from_bytes(secrets[m][2 * limb : 2 * limb + 2], "little")
        terms = [constant, *rows[:, m, limb].tolist()]
        for x, value in zip(points, shares[:, m, limb], strict=True):
            assert value == sum(c * x**i for i, c in enumerate(terms)) % PRIME
        opened = combine_plain({x: int(v) for x, v in zip(points, shares[:, m, limb])}, PRIME)  # noqa: B905
        assert opened == constant
    assert combine_many(points[:t], shares[:t], 12) == secrets


def test_thousand_holders_are_exact():
    secrets = [bytes([i]) * 32 for i in range(1, 4)]
    shares = split_many(secrets, 667, range(1, 1001))
    kept = np.random.default_rng(0).permutation(1000)[:667]
    assert combine_many([int(i) + 1 for i in kept], shares[kept], 32) == secrets


@given(st.lists(st.integers(1, 65536), min_size=1, max_size=40, unique=True))
def test_weights_are_the_lagrange_weights(points):
    for x, weight in zip(points, lagrange_weights(points).tolist(), strict=True):
        expected = 1
        for other in points:
            if other != x:
                expected = expected * other * pow(other - x, -1, PRIME) % PRIME
        assert weight == expected


def test_by_hand():
    # f(x) = 11 + 8x modulo 17, the example that fits on a board.
    assert split_plain(11, 2, 3, 17, [8]) == {1: 2, 2: 10, 3: 1}
    assert combine_plain({1: 2, 3: 1}, 17) == 11
    shares = split_plain(2**89 - 2, 3, 5, 2**89 - 1)
    assert combine_plain({x: shares[x] for x in (1, 4, 5)}, 2**89 - 1) == 2**89 - 2


@pytest.mark.parametrize(
    "arguments",
    [(17, 2, 3, 17), (1, 4, 3, 17), (1, 0, 3, 17), (1, 2, 17, 17), (1, 2, 3, 17, [1, 2])],
)
def test_plain_options_outside_their_range(arguments):
    with pytest.raises(ValueError):
        split_plain(*arguments)


def test_fewer_than_threshold_shares_say_nothing():
    """t − 1 shares of two very different secrets have the same distribution: uniform."""
    counts = {}
    for secret in (b"\x00\x00", b"\xff\xff"):
        shares = split_many([secret] * 20_000, 3, [1, 2, 3])[:, :, 0]
        cells = (shares[0] * 16 // PRIME) * 16 + shares[1] * 16 // PRIME  # the pair, jointly
        counts[secret] = np.bincount(cells, minlength=256)
        assert stats.chisquare(counts[secret]).pvalue > 1e-6
    table = np.stack(list(counts.values()))
    assert stats.chi2_contingency(table).pvalue > 1e-6
    # The same test sees what it should: with coefficients below 2^12 the secret shows through.
    weak = split_many([b"\xff\xff"] * 20_000, 2, [1, 2], random_bytes=_small)[0, :, 0]
    assert stats.chisquare(np.bincount(weak * 16 // PRIME, minlength=16)).pvalue < 1e-100


def _small(size: int) -> bytes:
    draws = np.random.default_rng(0).integers(0, 2**12, size // 4, dtype=np.uint32)
    return draws.tobytes()


def test_every_secret_fits_t_minus_1_shares():
    """Exactly, in a small field: each secret explains two shares by exactly one polynomial."""
    prime, seen = 7, {1: 4, 2: 6}
    explanations = {
        secret: sum(
            {x: split_plain(secret, 3, 2 + 1, prime, [a, b])[x] for x in seen} == seen
            for a, b in itertools.product(range(prime), repeat=2)
        )
        for secret in range(prime)
    }
    assert explanations == dict.fromkeys(range(prime), 1)


def test_random_elements_are_uniform_and_the_excess_is_redrawn():
    draws = random_elements(400_000)
    assert draws.min() >= 0 and draws.max() < PRIME
    assert stats.chisquare(np.bincount(draws // 656)[:99]).pvalue > 1e-6
    answers = [b"\xff\xff\xff\xff" + (5).to_bytes(4, "little"), b"\xff" * 4, bytes([7, 0, 0, 0])]
    assert random_elements(2, lambda size: answers.pop(0)).tolist() == [7, 5]
    assert not answers


def refused(shares: list[Share], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(shares)


def test_shares_that_do_not_belong_together_are_refused():
    shares = split(b"0123456789", 3, 5)
    refused([], "no shares")
    refused(shares[:2], "too few")
    refused([shares[0], shares[0], shares[1]], "same index")
    refused([shares[0], shares[1], replace(shares[2], index=0)], "outside 1")
    refused([shares[0], shares[1], replace(shares[2], index=PRIME)], "outside 1")
    refused([*shares[:2], replace(shares[2], threshold=2)], "different length or threshold")
    refused([*shares[:2], replace(shares[2], values=(1,))], "has 5 values")
    refused([*shares[:2], replace(shares[2], values=(PRIME,) * 5)], "outside 0")
    altered = replace(shares[3], values=(*shares[3].values[:4], (shares[3].values[4] + 1) % PRIME))
    refused([*shares[:3], altered], "share 4 does not fit")


@pytest.mark.parametrize(("secret", "t", "n"), [(b"", 1, 2), (b"x", 0, 2), (b"x", 3, 2)])
def test_split_refuses(secret, t, n):
    with pytest.raises(ValueError):
        split(secret, t, n)
    with pytest.raises(ValueError, match="same index"):
        split_many([b"x"], 1, [1, 1])


@given(count=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_shares_travel_at_17_bits_a_value(count, seed):
    values = np.random.default_rng(seed).integers(0, PRIME, (count, 16))
    values[0, 0] = PRIME - 1
    data = share_bytes(values)
    assert len(data) == count * share_size(32) == 34 * count
    assert np.array_equal(parse_shares(data, count, 32), values)


def test_parsing_refuses_other_lengths_and_values():
    with pytest.raises(ProtocolError):
        parse_shares(bytes(33), 1, 32)
    with pytest.raises(ProtocolError, match="beyond 65536"):
        parse_shares(b"\xff" * 34, 1, 32)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(3, 25), data=st.data(), seed=st.integers(0, 2**32))
def test_altered_shares_are_found_up_to_half_the_spare(n, data, seed):
    rng = np.random.default_rng(seed)
    t = data.draw(st.integers(1, n - 2))
    bad = data.draw(st.integers(0, (n - t) // 2))
    points = rng.permutation(1000)[:n] + 1
    values = split_many([rng.bytes(32)], t, points.tolist())[:, 0]
    wrong = rng.permutation(n)[:bad]
    for i in wrong:
        values[i, rng.integers(16)] += 1 + rng.integers(PRIME - 2)
    found = find_altered(points.tolist(), values % PRIME, t)
    assert found == {int(points[i]) for i in wrong}


def test_too_many_altered_shares_are_not_repaired():
    values = split_many([bytes(32)], 4, range(1, 11))[:, 0]  # 6 to spare: 3 can be found
    values[:4] = (values[:4] + np.arange(1, 5)[:, None]) % PRIME
    found = find_altered(range(1, 11), values, 4)
    assert found is None or found != {1, 2, 3, 4}
    assert find_altered([1, 2], values[:2], 2) is None
