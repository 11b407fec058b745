"""Masks: both ends agree, they cancel, look uniform, and take no memory that grows."""

from __future__ import annotations

import hmac
import itertools
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.graph import choose_neighbours, default_threshold, neighbour_sets
from flcourse.secagg.masking import (
    add_masks,
    agree,
    check_point,
    derive,
    mask_seed,
    new_private_key,
    public_bytes,
)

ROUND = bytes(range(16))
FIELD = 2**255 - 19
# u-coordinates of points whose order divides 8: 0, 1, −1 and those of order 8.
SMALL_ORDER = [
    value.to_bytes(32, "little")
    for value in (
        0,
        1,
        FIELD - 1,
        FIELD,
        FIELD + 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
]


def ladder(scalar: bytes, point: bytes) -> bytes:
    """X25519 as RFC 7748, section 5, writes it down."""
    k = int.from_bytes(scalar, "little") & ~7 & (2**254 - 1) | 2**254
    u = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in range(254, -1, -1):
        swap = k >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        e, da, cb = a * a - b * b, d * a, c * b
        x3, z3 = (da + cb) ** 2 % FIELD, u * (da - cb) ** 2 % FIELD
        x2, z2 = a * a * b * b % FIELD, e * (a * a + 121665 * e) % FIELD
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, FIELD - 2, FIELD) % FIELD).to_bytes(32, "little")


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869, one block of output."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def stream(seed: bytes, size: int) -> bytes:
    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(size))


def test_key_agreement_is_that_of_rfc_7748():
    for number in range(5):
        own, other = (bytes((number * 7 + i * s) % 256 for i in range(32)) for s in (3, 5))
        base = (9).to_bytes(32, "little")
        assert public_bytes(new_private_key(own)) == ladder(own, base)
        expected = ladder(own, ladder(other, base))
        assert agree(new_private_key(own), public_bytes(new_private_key(other))) == expected


def test_both_ends_get_one_seed_and_it_is_bound_to_the_round():
    a, b, c = (new_private_key() for _ in range(3))
    seed = mask_seed(a, public_bytes(b), ROUND)
    assert seed == mask_seed(b, public_bytes(a), ROUND)
    shared = agree(a, public_bytes(b))
    ends = b"".join(sorted([public_bytes(a), public_bytes(b)]))
    assert seed == hkdf(shared, ROUND, b"pairwise mask" + ends)
    assert derive(b"x" * 32, ROUND, b"p") == hkdf(b"x" * 32, ROUND, b"p")
    others = {mask_seed(a, public_bytes(c), ROUND), mask_seed(a, public_bytes(b), bytes(16))}
    assert len(others | {seed}) == 3


@pytest.mark.parametrize("point", [*SMALL_ORDER, b"", bytes(31), bytes(33)])
def test_points_that_give_no_secret_are_refused(point):
    if len(point) == 32:  # the reason: the result is zero, whatever the private key
        assert ladder(bytes(range(32)), point) == bytes(32)
    with pytest.raises(ProtocolError, match="no usable curve point"):
        agree(new_private_key(), point)
    with pytest.raises(ProtocolError, match="no usable curve point"):
        check_point(point)


@given(size=st.integers(0, 3000), wide=st.booleans(), count=st.integers(0, 4))
def test_masks_are_the_aes_stream_added_word_by_word(size, wide, count):
    kind = np.dtype("<u8" if wide else "<u4")
    seeds = [(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(count)]
    total = np.arange(size, dtype=kind)
    expected = [int(v) for v in total]
    for seed, sign in seeds:
        data = stream(seed, size * kind.itemsize)
        for i in range(size):
            word = int.from_bytes(data[i * kind.itemsize :][: kind.itemsize], "little")
            expected[i] = (expected[i] + sign * word) % 2 ** (8 * kind.itemsize)
    add_masks(total, seeds)
    assert total.tolist() == expected


@pytest.mark.parametrize("size", [2**15, 2**15 + 1, 3 * 2**15 - 5])
def test_masks_longer_than_a_block(size):
    total = np.zeros(size, "<u4")
    add_masks(total, [(b"k" * 32, 1)])
    assert total.tobytes() == stream(b"k" * 32, 4 * size)
    add_masks(total, [(b"k" * 32, -1)])
    assert not total.any()


def test_memory_does_not_grow_with_the_neighbours():
    total = np.zeros(10**6, np.uint32)
    peaks = []
    for count in (100, 400):
        seeds = [(bytes([i % 256]) * 32, 1) for i in range(count)]
        add_masks(total, seeds[:1])
        tracemalloc.start()
        add_masks(total, seeds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2**20 < total.nbytes  # two blocks, a quarter of one vector
    assert peaks[1] < 1.1 * peaks[0]


def test_masks_are_uniform_and_reach_the_last_value():
    words = np.zeros(2**20, np.uint32)
    add_masks(words, [(b"u" * 32, 1)])
    for part in (words & 0xFF, words >> 24):
        assert stats.chisquare(np.bincount(part, minlength=256)).pvalue > 1e-6
    assert (words >> 16 == 2**16 - 1).sum() == pytest.approx(16, abs=16)


@pytest.mark.parametrize("seed", [(b"short", 1), (b"k" * 16, 1), (b"k" * 32, 0)])
def test_short_seeds_and_other_signs_are_refused(seed):
    with pytest.raises(ValueError, match="32 bytes"):
        add_masks(np.zeros(4, np.uint32), [seed])


@pytest.mark.parametrize(
    "total", [np.zeros(4), np.zeros(8, np.uint32)[::2], np.zeros((2, 2), np.uint32)]
)
def test_other_sums_are_refused(total):
    with pytest.raises(ValueError, match="contiguous"):
        add_masks(total, [])


# --- graphs -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(n=st.integers(2, 60), half=st.integers(1, 20), seed=st.binary(max_size=4))
def test_graphs_are_regular_symmetric_and_connected(n, half, seed):
    sets = neighbour_sets(n, min(2 * half, n - 1), seed)
    degree = min(2 * half, n - 1)
    for index, near in enumerate(sets):
        assert len(near) == degree and index not in near
        assert all(index in sets[other] for other in near)
    reached, edge = {0}, {0}
    while edge:
        edge = set().union(*(sets[i] for i in edge)) - reached
        reached |= edge
    assert len(reached) == n


def test_the_order_of_the_ring_depends_on_the_seed_and_is_unbiased():
    assert neighbour_sets(30, 4, b"a") == neighbour_sets(30, 4, b"a")
    counts = np.zeros(12)
    for number in range(1500):
        for other in neighbour_sets(12, 4, number.to_bytes(4, "big"))[0]:
            counts[other] += 1
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6


@pytest.mark.parametrize("neighbours", [0, 1, 3, -2])
def test_odd_and_small_degrees_are_refused(neighbours):
    with pytest.raises(ValueError, match="even"):
        neighbour_sets(10, neighbours, b"")


def test_default_threshold():
    assert [default_threshold(n) for n in (2, 3, 4, 10, 100)] == [2, 3, 3, 7, 67]


def test_choice_of_degree_holds_in_simulation_and_grows_slowly():
    sizes = [100, 1000, 10_000]
    chosen = [choose_neighbours(n, dropout_rate=0.05, corrupt_rate=0.05) for n in sizes]
    degrees = [choice.neighbours for choice in chosen]
    assert degrees[0] <= degrees[1] <= degrees[2] < 100
    assert all(choice.threshold > (choice.neighbours + 1) / 2 for choice in chosen)
    # What was promised to fail in 2^−20 must not fail in 300 draws; a smaller degree does, often.
    rng = np.random.default_rng(0)
    for k, t, may_fail in ((degrees[1], chosen[1].threshold, False), (6, 6, True)):
        failures = 0
        for number in range(20):
            sets = neighbour_sets(1000, k, bytes([number]))
            gone = set(rng.choice(1000, 50, replace=False).tolist())
            failures += any(len(near - gone) < t for near in sets)
        assert bool(failures) == may_fail


def test_no_smaller_choice_would_do():
    """Each condition, computed exactly from factorials, holds for the choice and not for k − 2."""
    n, drop, bad = 200, 20, 10
    choice = choose_neighbours(n, dropout_rate=0.1, corrupt_rate=0.05)

    def good(k: int, t: int) -> bool:
        both = [x for x in range(bad + 1) if 2 * t <= k + 1 + x]  # two groups of t with x in each
        leak = n * stats.hypergeom(n - 1, bad, k).pmf(both).sum()
        fail = n * stats.hypergeom(n - 1, n - drop, k).cdf(t - 1)
        cut = n * 0.15 ** (k // 2)
        return leak + cut <= 2.0**-39 and fail <= 2.0**-20

    assert good(choice.neighbours, choice.threshold)
    smaller = itertools.product(range(2, choice.neighbours, 2), range(1, choice.neighbours))
    assert not any(
        n * 0.15 ** (k // 2) <= 2.0**-41 and t > k // 2 and good(k, t) for k, t in smaller if t <= k
    )


def test_where_no_sparse_graph_will_do_all_are_joined():
    choice = choose_neighbours(20, dropout_rate=0.3, corrupt_rate=0.3)
    assert (choice.neighbours, choice.threshold) == (19, 14)
    with pytest.raises(ValueError, match="less than 1"):
        choose_neighbours(20, dropout_rate=0.5, corrupt_rate=0.5)
