"""Fixed point modulo 2^k: sums are exact, errors bounded, overflow impossible or refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import FixedPoint, bits_needed, pack, packed_size, unpack, word_type


def integers(data: bytes, bits: int, count: int) -> list[int]:
    """An independent reading of packed numbers: one big integer, cut by shifts."""
    number = int.from_bytes(data, "little")
    return [number >> (bits * i) & (2**bits - 1) for i in range(count)]


@given(bits=st.integers(8, 64), count=st.integers(0, 70), seed=st.integers(0, 2**32))
def test_packing_is_the_binary_expansion(bits, count, seed):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**bits - 1, count, dtype=np.uint64, endpoint=True)
    words = words.astype(word_type(bits))
    data = pack(words, bits)
    assert len(data) == packed_size(count, bits) == math.ceil(count * bits / 8)
    assert integers(data, bits, count) == words.tolist()
    back = unpack(data, bits, count)
    assert back.dtype == word_type(bits) and back.tolist() == words.tolist()


@pytest.mark.parametrize("bits", [9, 17, 26, 33, 63])
def test_packing_more_than_one_block(bits):
    count, start = 2**15 + 11, 2**15 - 16
    words = np.arange(count, dtype=word_type(bits)) * 40503 % (2**bits - 1)
    data = pack(words, bits)
    tail = data[start * bits // 8 :]  # 8 numbers end on a whole byte
    assert integers(tail, bits, count - start) == words[start:].tolist()
    assert np.array_equal(unpack(data, bits, count), words)


def test_unpack_refuses_other_lengths_and_set_padding():
    with pytest.raises(ProtocolError, match="take 5"):
        unpack(b"1234", 9, 4)
    with pytest.raises(ProtocolError, match="padding"):
        unpack(bytes([0, 0, 0, 0, 0x80]), 9, 4)


@given(
    n=st.integers(1, 300), bits=st.integers(8, 64), seed=st.integers(0, 2**32),
    clip=st.sampled_from([1e-12, 0.1, 1.0, 3.7, 1e9]), single=st.booleans(),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)  # fmt: skip
def test_sums_decode_within_the_bound(n, bits, seed, clip, single, rounding):
    if bits < bits_needed(1, n):
        with pytest.raises(ValueError, match=f"use at least {bits_needed(1, n)}"):
            FixedPoint(clip, n, bits)
        return
    rng = np.random.default_rng(seed)
    codec = FixedPoint(clip, n, bits, rounding)
    x = rng.uniform(-clip, clip, (n, 3)).astype(np.float32 if single else np.float64)
    x[:, 0] = codec.limit if single else clip  # the greatest sum that there is
    x[:, 1] = -x[:, 0]
    total = np.zeros(3, word_type(bits))
    for row in x:
        total += codec.encode(row)
    exact = [sum(Fraction(float(v)) for v in column) for column in x.T]
    total &= total.dtype.type(2**bits - 1)
    errors = [abs(Fraction(float(v)) - e) for v, e in zip(codec.decode(total), exact, strict=True)]
    assert max(errors) <= codec.error_bound()


@given(n=st.integers(1, 10**6), bits=st.integers(8, 64))
def test_no_sum_can_overflow(n, bits):
    if bits < bits_needed(1, n):
        with pytest.raises(ValueError, match="cannot hold"):
            FixedPoint(1.0, n, bits)
    else:
        assert n * FixedPoint(1.0, n, bits).level < 2 ** (bits - 1)


def test_bits_needed_at_the_papers_setting():
    # 2^10 clients with entries of 16 bits: 26 bits, Bonawitz et al. 2017, section 7.
    assert bits_needed(2**15 - 1, 2**10) == 26
    assert FixedPoint(1.0, 2**10, 26).level == 2**15 - 1


def test_nearest_rounding_is_to_the_nearest():
    codec = FixedPoint(1.0, 1, 8)  # 127 levels
    assert codec.encode(np.array([0.0, 1.0, -1.0, 63.4 / 127, -63.6 / 127])).tolist() == [
        0, 127, 256 - 127, 63, 256 - 64,
    ]  # fmt: skip


def test_stochastic_rounding_is_right_on_average():
    codec = FixedPoint(1.0, 1, 8, "stochastic")
    x = np.full(40_000, 10.3 / 127)
    levels = codec.decode(codec.encode(x)) / codec.step
    assert set(np.round(levels).astype(int).tolist()) == {10, 11}
    spread = math.sqrt(0.3 * 0.7 / len(x))
    assert abs(levels.mean() - 10.3) < 6 * spread


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0001, -1.0001])
def test_values_outside_are_refused_with_their_index(bad):
    x = np.zeros((2, 5))
    x[1, 3] = bad
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        FixedPoint(1.0, 2).encode(x)
    with pytest.raises(ValueError, match="index 3"):
        FixedPoint(1.0, 2).encode(torch.tensor(x[1], dtype=torch.float32))


def test_a_float32_clip_is_its_own_bound():
    codec = FixedPoint(0.1, 3)
    edge = torch.full((2,), 9.0).clamp(-0.1, 0.1)  # float32(0.1) is a hair above 0.1
    assert float(edge[0]) > 0.1
    decoded = codec.decode(codec.encode(edge))
    assert decoded == pytest.approx(float(edge[0]), rel=0, abs=codec.error_bound(1))
    with pytest.raises(ValueError, match="index 0"):
        codec.encode(edge.double())


@pytest.mark.parametrize(
    "options", [{"clip": 0.0}, {"clip": math.nan}, {"clip": math.inf}, {"bits": 7}, {"bits": 65},
                {"num_clients": 0}, {"rounding": "down"}],
)  # fmt: skip
def test_options_outside_their_range(options):
    with pytest.raises(ValueError):
        FixedPoint(**{"clip": 1.0, "num_clients": 2} | options)


@pytest.mark.parametrize("values", [np.array([1j]), np.array(["a"]), np.array([2**60])])
def test_other_types_are_refused(values):
    with pytest.raises(ValueError, match="use float32"):
        FixedPoint(1.0, 2).encode(values)
