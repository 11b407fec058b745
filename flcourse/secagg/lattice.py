"""BFV (whole numbers, exact) and CKKS (reals, approximate) sums by TenSEAL.

Only additions are needed, so there are no relinearisation or rotation keys, and the smallest ring
that 128-bit security allows for the modulus is the fastest and shortest. Chapter 14.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from flcourse.secagg.ciphers import Integers, Plan, Reals, library
from flcourse.secagg.errors import ProtocolError

# Bits of the whole modulus for 128-bit security, by ring: HomomorphicEncryption.org standard 2018,
# table 1 (ternary secret), as SEAL has it.
MOST_MODULUS_BITS = {4096: 109, 8192: 218, 16384: 438}
# (ring, moduli, scale): the last modulus is SEAL's key modulus and no part of a ciphertext.
CKKS_ADDITIONS = (4096, (60, 49), 40)
CKKS_8192 = (8192, (50, 30, 50), 30)
CKKS_8192_LARGE = (8192, (60, 40, 40, 60), 40)
_SEAL, _SIZE_AT = b"\x5e\xa1\x10", 8  # SEAL: magic and length of header; where the size stands
_NARROW = 36  # plain bits up to which BFV's ring of 4096 keeps room for the noise of 2^20 sums


class _Lattice:
    """What BFV and CKKS share: pieces of ``slots`` values, a ciphertext each."""

    name: str
    slots: int
    scale: float | None = None
    _type: str

    def __init__(self, plan: Plan, context: Any, decrypts: bool) -> None:
        self.plan, self.context, self._decrypts = plan, context, decrypts
        self.public: bytes = context.serialize(
            save_public_key=True,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=False,
        )

    def _pieces(self) -> list[int]:
        full, rest = divmod(self.plan.num_values, self.slots)
        return [self.slots] * full + [rest] * bool(rest)

    def _seal(self, piece: Any) -> bytes:
        vector = getattr(self._ts, f"{self._type}_vector")(self.context, piece)
        return self._bare(bytes(vector.serialize()), len(piece))

    def _frame(self, size: int, length: int) -> tuple[bytes, bytes]:
        """TenSEAL's protocol buffer around one ciphertext of ``length`` bytes: before and behind.

        It never travels: TenSEAL 0.3 crashes the process on frames that contradict themselves.
        """
        sizes = _varint(size)
        before = b"\x0a" + _varint(len(sizes)) + sizes + b"\x12" + _varint(length)
        scale = self.scale
        return before, b"" if scale is None else b"\x19" + struct.pack("<d", scale)

    def _bare(self, framed: bytes, size: int) -> bytes:
        """SEAL's own bytes out of TenSEAL's frame."""
        tail = len(self._frame(size, 0)[1])
        (length,) = struct.unpack_from("<Q", framed, framed.index(_SEAL) + _SIZE_AT)
        before = self._frame(size, length)[0]
        if len(before) + length + tail != len(framed) or not framed.startswith(before):
            raise RuntimeError("this version of TenSEAL writes another format: use tenseal 0.3")
        return framed[len(before) : len(before) + length]

    def _open(self, blob: bytes, size: int) -> Any:
        well = len(blob) > _SIZE_AT + 8 and blob.startswith(_SEAL)
        if not well or struct.unpack_from("<Q", blob, _SIZE_AT)[0] != len(blob):
            raise ProtocolError(f"bytes that are no {self.name} ciphertext: no header of SEAL")
        before, behind = self._frame(size, len(blob))
        try:
            framed = before + blob + behind
            vector = getattr(self._ts, f"{self._type}_vector_from")(self.context, framed)
            found = vector.size()
        except Exception as error:  # a C++ library's own, of several types
            raise ProtocolError(
                f"bytes that are no {self.name} ciphertext under this key"
            ) from error
        if found != size:  # TenSEAL would stretch a vector of one value
            raise ProtocolError(f"a ciphertext of {found} values where {size} are expected")
        return vector

    @property
    def _ts(self) -> Any:
        return library("tenseal")

    def check(self, blobs: Sequence[bytes]) -> None:
        sizes = self._pieces()
        if len(blobs) != len(sizes):
            raise ProtocolError(f"{len(blobs)} ciphertexts where {len(sizes)} are expected")
        for blob, size in zip(blobs, sizes, strict=True):
            self._open(blob, size)

    def add(self, messages: Sequence[list[bytes]]) -> list[bytes]:
        sums = []
        for size, column in zip(self._pieces(), zip(*messages, strict=True), strict=True):
            total = self._open(column[0], size)
            for blob in column[1:]:
                try:
                    total += self._open(blob, size)
                except (ValueError, RuntimeError) as error:
                    raise ProtocolError("ciphertexts of different parameters") from error
            sums.append(self._bare(bytes(total.serialize()), size))
        return sums

    def _decrypted(self, blobs: Sequence[bytes]) -> Reals:
        if not self._decrypts:
            raise ValueError("only the key holder can decrypt: this is the public part")
        opened = [self._open(b, s) for b, s in zip(blobs, self._pieces(), strict=True)]
        return np.concatenate([np.array(vector.decrypt(), np.float64) for vector in opened])

    def _split(self, values: Any) -> list[Any]:
        return [values[i : i + self.slots] for i in range(0, len(values), self.slots)]


class BFV(_Lattice):
    """Whole numbers modulo a prime ``t`` of ``slot_bits + 1`` bits, ``ring`` of them a ciphertext.

    Source: Brakerski 2012; Fan & Vercauteren 2012, "Somewhat Practical Fully Homomorphic
    Encryption", section 3; slots: Smart & Vercauteren 2014, "Fully Homomorphic SIMD Operations".
    Chapter 14. Raises ``ValueError`` for a ring that is unknown, or too small for the slots.
    """

    name, _type = "bfv", "bfv"

    @classmethod
    def generate(cls, plan: Plan, ring: int | None = None) -> BFV:
        ts, size = library("tenseal"), cls._ring(plan, ring)
        context = ts.context(
            ts.SCHEME_TYPE.BFV,
            size,
            plain_modulus=_slot_prime(plan.slot_bits + 1, size),
            n_threads=1,
        )
        return cls(plan, context, size, True)

    @classmethod
    def from_public(cls, plan: Plan, public: bytes, ring: int | None = None) -> BFV:
        return cls(plan, _context(public), cls._ring(plan, ring), False)

    def __init__(self, plan: Plan, context: Any, ring: int, decrypts: bool) -> None:
        super().__init__(plan, context, decrypts)
        self.slots, self.modulus = ring, _slot_prime(plan.slot_bits + 1, ring)

    @staticmethod
    def _ring(plan: Plan, ring: int | None) -> int:
        least = 4096 if plan.slot_bits + 1 <= _NARROW else 8192
        size = least if ring is None else ring
        if size not in MOST_MODULUS_BITS or size < least:
            raise ValueError(f"ring={ring} for slots of {plan.slot_bits} bits: use {least} or more")
        return size

    def encrypt(self, values: Integers, offset: int) -> list[bytes]:
        return [self._seal(piece.tolist()) for piece in self._split(values)]

    def decrypt(self, blobs: Sequence[bytes], offset: int) -> Reals:
        residues = self._decrypted(blobs).astype(np.int64) % self.modulus
        residues[residues > self.modulus // 2] -= self.modulus
        return residues.astype(np.float64)


class CKKS(_Lattice):
    """Approximate reals, ``ring / 2`` a ciphertext: sums off by about 2^-20 to 2^-30 of clip.

    Values are sent as parts of ``clip``. The error is part of the security proof, and a decrypted
    sum shows it: who publishes decryptions should add noise first (Li & Micciancio 2021, "On the
    Security of Homomorphic Encryption on Approximate Numbers").
    Source: Cheon, Kim, Kim & Song 2017, "Homomorphic Encryption for Arithmetic of Approximate
    Numbers". Chapter 14. Raises ``ValueError`` for a modulus too large for the ring's security, or
    too small for ``num_clients`` values of this scale.
    """

    name, _type = "ckks", "ckks"

    @classmethod
    def generate(
        cls,
        plan: Plan,
        ring: int = CKKS_ADDITIONS[0],
        moduli: tuple[int, ...] = CKKS_ADDITIONS[1],
        scale_bits: int = CKKS_ADDITIONS[2],
    ) -> CKKS:
        most = MOST_MODULUS_BITS.get(ring)
        if most is None or sum(moduli) > most:
            raise ValueError(
                f"ring={ring} with moduli of {sum(moduli)} bits is not secure at 128 bits: at most "
                f"{MOST_MODULUS_BITS}"
            )
        largest = plan.bound / plan.codec.level
        if largest >= 2.0 ** (sum(moduli[:-1]) - 2 - scale_bits):
            raise ValueError(
                f"sums up to {largest:g} times clip do not fit moduli={moduli} at "
                f"scale_bits={scale_bits}: lower the scale"
            )
        ts = library("tenseal")
        context = ts.context(ts.SCHEME_TYPE.CKKS, ring, coeff_mod_bit_sizes=moduli, n_threads=1)
        context.global_scale = 2.0**scale_bits
        return cls(plan, context, ring // 2, True)

    @classmethod
    def from_public(
        cls, plan: Plan, public: bytes, ring: int = CKKS_ADDITIONS[0], **_options: Any
    ) -> CKKS:
        return cls(plan, _context(public), ring // 2, False)

    def __init__(self, plan: Plan, context: Any, slots: int, decrypts: bool) -> None:
        super().__init__(plan, context, decrypts)
        self.slots, self.scale = slots, float(context.global_scale)

    def encrypt(self, values: Integers, offset: int) -> list[bytes]:
        return [self._seal(piece) for piece in self._split(values / self.plan.codec.level)]

    def decrypt(self, blobs: Sequence[bytes], offset: int) -> Reals:
        return self._decrypted(blobs) * self.plan.codec.level


def _varint(number: int) -> bytes:
    """A whole number as protocol buffers have it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _context(public: bytes) -> Any:
    try:
        context = library("tenseal").context_from(public, 1)
        private = context.is_private()
    except ImportError:
        raise
    except Exception as error:  # a C++ library's own, of several types
        raise ProtocolError(f"{len(public)} bytes are no TenSEAL context") from error
    if private:
        raise ProtocolError("a context with its secret key: the adder must not have it")
    return context


@cache
def _slot_prime(bits: int, ring: int) -> int:
    """The smallest prime ``t ≡ 1 mod 2·ring`` of at least ``bits`` bits (for ``ring`` slots)."""
    candidate = (1 << (bits - 1)) + 1
    candidate += -(candidate - 1) % (2 * ring)
    while not _is_prime(candidate):
        candidate += 2 * ring
    return candidate


def _is_prime(number: int) -> bool:
    """Miller & Rabin with the bases that decide every number below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(number % base == 0 for base in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        x = pow(base, odd, number)
        if x in (1, number - 1):
            continue
        if not any((x := x * x % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True
