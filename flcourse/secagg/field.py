"""Real vectors as integers modulo 2^k: where masks are uniform and sums wrap without loss.

    codec = FixedPoint(clip=1.0, num_clients=100, bits=32)
    words = codec.encode(values)              # uint32 [d]
    codec.decode(sum of words, modulo 2^k)    # float64 [d], the sum of the values

Fixed point: ``q = round(x · L / clip)`` with the largest level ``L`` for which ``n · L`` still lies
below ``2^(k−1)``, so no sum of ``n`` clients can overflow. Chapter 13.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flcourse.secagg.errors import ProtocolError

Words = NDArray[np.unsignedinteger]
RandomBytes = Callable[[int], bytes]

MIN_BITS, MAX_BITS = 8, 64
ROUNDINGS = ("nearest", "stochastic")
_FINEST = 2**48  # levels beyond it are below the rounding of float64 itself
_SMALLEST, _LARGEST = 1e-30, 1e30  # of clip: its ratio to L stays far from the ends of float32
_PACKED_AT_ONCE = 2**15  # words, a multiple of 8: no byte-a-bit copy of a whole vector


@dataclass(frozen=True)
class FixedPoint:
    """How ``num_clients`` clients write values of ``[−clip, clip]`` as integers modulo ``2^bits``.

    Attributes:
        clip: the declared range of every value, in the units of the values.
        num_clients: ``n``, how many vectors are added at most.
        bits: ``k``, log2 of the modulus, from 8 to 64.
        rounding: ``"nearest"``, or ``"stochastic"`` (up or down by chance, right on average).

    Exact error bound, with ``step = clip / L`` and ``m`` vectors added:
    ``|decode(Σ words) − Σ x| ≤ m·(step/2 + clip·2^−50)`` for nearest rounding,
    ``m·(step + clip·2^−50)`` for stochastic; the second part is float64's own rounding. A float32
    value is compared with ``clip`` as float32.

    Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", section 4 (integers modulo R); Kairouz, Liu & Steinke 2021, "The
    Distributed Discrete Gaussian Mechanism", section 4 (stochastic rounding). Chapter 13.
    Raises ``ValueError`` for options outside their range, and where ``bits`` leaves not even one
    level to each client.
    """

    clip: float
    num_clients: int
    bits: int = 32
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not (_SMALLEST <= self.clip <= _LARGEST):
            raise ValueError(
                f"clip={self.clip} must lie in [{_SMALLEST:g}, {_LARGEST:g}]: the largest absolute "
                "value that a client may send"
            )
        if self.num_clients < 1:
            raise ValueError(f"num_clients={self.num_clients} must be at least 1")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"rounding={self.rounding!r}: use {' or '.join(ROUNDINGS)}")
        if self.level < 1:
            raise ValueError(
                f"bits={self.bits} cannot hold a sum of {self.num_clients} clients: use at least "
                f"{bits_needed(1, self.num_clients)}"
            )

    @property
    def level(self) -> int:
        """``L``: ``clip`` becomes this integer; ``n·L ≤ 2^(k−1) − 1``, at most 2^48."""
        return min((2 ** (self.bits - 1) - 1) // self.num_clients, _FINEST)

    @property
    def limit(self) -> float:
        """``clip``, or its float32 neighbour where that is larger (0.1 is, as float32)."""
        return max(self.clip, float(np.float32(self.clip)))

    @property
    def step(self) -> float:
        """What one unit of the integer means: ``limit / L``."""
        return self.limit / self.level

    def error_bound(self, count: int | None = None) -> float:
        """The greatest error of an entry of a sum of ``count`` vectors (``n`` unless given)."""
        added = self.num_clients if count is None else count
        half = 0.5 if self.rounding == "nearest" else 1.0
        return added * (half * self.step + self.limit * 2.0**-50)

    def encode(self, values: object, random_bytes: RandomBytes = os.urandom) -> Words:
        """``[..., d]`` reals to words (uint32 up to 32 bits, else uint64), negative ones wrapped.

        ``random_bytes`` decides the roundings of ``"stochastic"``.
        Raises ``ValueError`` with the index of a value that is NaN, infinite or beyond ``clip``.
        """
        reals = as_reals(values)
        limit = self.limit if reals.dtype == np.float32 else self.clip
        inside = np.abs(reals) <= limit
        if not inside.all():
            where = tuple(int(i) for i in np.argwhere(~inside)[0])
            at = where[0] if len(where) == 1 else where
            raise ValueError(
                f"value {reals[where]!r} at index {at} is outside [−{self.clip:g}, {self.clip:g}]: "
                "clip before encoding, or declare a larger clip"
            )
        scaled = reals.astype(np.float64) * (self.level / self.limit)
        np.clip(scaled, -self.level, self.level, out=scaled)  # float64's last digit, never a value
        signed = self._rounded(scaled, random_bytes).astype(np.int64)
        return reduced(signed.astype(word_type(self.bits)), self.bits)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Words modulo ``2^k`` read as signed numbers, times ``step``: float64, the same shape."""
        width = 8 * word_type(self.bits).itemsize
        shift = width - self.bits
        lifted = (words.astype(word_type(self.bits)) << np.array(shift, words.dtype)).view(
            np.int32 if width == 32 else np.int64
        )
        return (lifted >> shift).astype(np.float64) * self.step

    def _rounded(
        self, scaled: NDArray[np.float64], random_bytes: RandomBytes
    ) -> NDArray[np.float64]:
        if self.rounding == "nearest":
            return np.rint(scaled)
        below = np.floor(scaled)
        draws = np.frombuffer(random_bytes(8 * scaled.size), "<u8") >> np.uint64(11)
        up = draws.reshape(scaled.shape) * 2.0**-53 < scaled - below
        return below + up


def bits_needed(level: int, num_clients: int) -> int:
    """The fewest bits ``k`` with ``n·L ≤ 2^(k−1) − 1``: signed sums of ``n`` integers ≤ ``L``."""
    return int(num_clients * level).bit_length() + 1


def as_reals(values: object) -> NDArray[np.floating]:
    """A float32 or float64 array of ``values`` (numpy, torch, lists, integers below 2^53).

    Raises ``ValueError`` for complex numbers, texts and integers that float64 cannot hold.
    """
    if hasattr(values, "detach"):
        tensor = values.detach().cpu()
        tensor = tensor if str(tensor.dtype) in ("torch.float32", "torch.float64") else (
            tensor.float() if tensor.is_floating_point() else tensor
        )  # fmt: skip
        values = tensor.numpy()
    array = np.asarray(values)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype.kind in "iub" and (not array.size or int(np.abs(array).max()) < 2**53):
        return array.astype(np.float64)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    raise ValueError(f"values of {array.dtype}: use float32, float64 or integers below 2^53")


# --- words and bits ---------------------------------------------------------------------------


def check_bits(bits: int) -> None:
    """Raises ``ValueError`` unless ``bits`` is a whole number from 8 to 64."""
    if bits != int(bits) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits={bits} must be a whole number from {MIN_BITS} to {MAX_BITS}")


def word_type(bits: int) -> np.dtype[np.unsignedinteger]:
    """What masks are added in: uint32 up to 32 bits, uint64 beyond (they wrap, as they should)."""
    return np.dtype("<u4") if bits <= 32 else np.dtype("<u8")


def reduced(words: Words, bits: int) -> Words:
    """The words modulo ``2^bits``."""
    if bits in (32, 64):
        return words
    return words & words.dtype.type(2**bits - 1)


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` packed numbers: ``⌈count·bits/8⌉``."""
    return -(-count * bits // 8)


def pack(words: Words, bits: int) -> bytes:
    """The lowest ``bits`` of each word, one after the other, lowest bit first."""
    width = 8 * words.dtype.itemsize
    if bits == width:
        return words.tobytes()
    if bits in (8, 16):
        return words.astype(f"<u{bits // 8}").tobytes()
    parts = []
    for start in range(0, len(words), _PACKED_AT_ONCE):
        part = np.ascontiguousarray(words[start : start + _PACKED_AT_ONCE]).view(np.uint8)
        spread = np.unpackbits(part.reshape(-1, width // 8), axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(spread, bitorder="little").tobytes())
    return b"".join(parts)


def unpack(data: bytes | memoryview, bits: int, count: int) -> Words:
    """The inverse of ``pack``: ``count`` words of ``word_type(bits)``.

    Raises ``ProtocolError`` if the length does not fit, or a padding bit is set.
    """
    if len(data) != packed_size(count, bits):
        raise ProtocolError(
            f"{len(data)} bytes are not {count} numbers of {bits} bits, "
            f"which take {packed_size(count, bits)}"
        )
    kind = word_type(bits)
    if bits in (8, 16, 32, 64):
        return np.frombuffer(data, f"<u{bits // 8}").astype(kind)
    words = np.zeros(count, kind)
    for start in range(0, count, _PACKED_AT_ONCE):
        size = min(_PACKED_AT_ONCE, count - start)
        first = start * bits // 8
        raw = np.frombuffer(data, np.uint8, packed_size(size, bits), first)
        spread = np.unpackbits(raw, bitorder="little")
        if spread[size * bits :].any():
            raise ProtocolError("the padding behind the last number is not zero")
        filled = np.zeros((size, kind.itemsize), np.uint8)
        whole = np.packbits(spread[: size * bits].reshape(size, bits), axis=1, bitorder="little")
        filled[:, : whole.shape[1]] = whole
        words[start : start + size] = filled.view(kind)[:, 0]
    return words
