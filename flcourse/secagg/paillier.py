"""Paillier sums, packed, on python-paillier's keys. Chapter 14."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from flcourse.secagg.ciphers import Integers, Plan, Reals, library
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import pack, packed_size, unpack

KEY_BITS = 2048  # below it n can be factored
_LEAST_KEY_BITS = 256


class Paillier:
    """``c = (1 + n·m)·r^n mod n²``; the product of ciphertexts decrypts to the sum of plaintexts.

    ``⌊(key_bits − 1) / slot_bits⌋`` values share a plaintext, each shifted by ``offset`` so that
    none is negative and no slot borrows from the next. ``packed=False`` puts one into each.

    A client knows ``p`` and ``q``, so its ``r^n mod n²`` costs two powers with exponents and moduli
    of half the length: with ``u`` uniform modulo ``p``, ``u^p mod p²`` is uniform among the n-th
    powers there. It is the same distribution as python-paillier's, in about a quarter of the time.

    Source: Paillier 1999, "Public-Key Cryptosystems Based on Composite Degree Residuosity Classes",
    scheme 1 and section 7 (CRT). Chapter 14.
    Raises ``ValueError`` for a key length that is odd, below 256, or too short for one slot.
    """

    name = "paillier"

    def __init__(self, plan: Plan, key: Any, secret: Any = None, packed: bool = True) -> None:
        self.plan, self.key, self.secret = plan, key, secret
        self.key_bits = int(key.n).bit_length()
        self.slots = (self.key_bits - 1) // plan.slot_bits if packed else 1
        if self.slots < 1:
            raise ValueError(
                f"key_bits={self.key_bits} holds no value of {plan.slot_bits} bits: "
                "use a longer key"
            )
        self.public = int(key.n).to_bytes(-(-self.key_bits // 8), "little")
        self.size = -(-2 * self.key_bits // 8)
        if secret is not None:
            self._squares = secret.p**2, secret.q**2
            self._inverse = pow(self._squares[0], -1, self._squares[1])

    @classmethod
    def generate(cls, plan: Plan, key_bits: int = KEY_BITS, packed: bool = True) -> Paillier:
        if key_bits < _LEAST_KEY_BITS or key_bits % 2:
            raise ValueError(
                f"key_bits={key_bits} must be even and at least {_LEAST_KEY_BITS} "
                f"({KEY_BITS} or more to be secure)"
            )
        public, secret = library("phe").paillier.generate_paillier_keypair(n_length=key_bits)
        return cls(plan, public, secret, packed)

    @classmethod
    def from_public(
        cls, plan: Plan, public: bytes, key_bits: int | None = None, packed: bool = True
    ) -> Paillier:
        n = int.from_bytes(public, "little")
        if n.bit_length() < _LEAST_KEY_BITS or n % 2 == 0:
            raise ProtocolError(f"{len(public)} bytes are no Paillier key")
        if key_bits is not None and n.bit_length() != key_bits:
            raise ProtocolError(f"a key of {n.bit_length()} bits where {key_bits} were agreed on")
        return cls(plan, library("phe").paillier.PaillierPublicKey(n), None, packed)

    def encrypt(self, values: Integers, offset: int) -> list[bytes]:
        shifted, width = (values + offset).astype("<u8"), self.plan.slot_bits
        blobs = []
        for start in range(0, len(shifted), self.slots):
            plain = int.from_bytes(pack(shifted[start : start + self.slots], width), "little")
            blobs.append(self._encrypted(plain).to_bytes(self.size, "little"))
        return blobs

    def _encrypted(self, plain: int) -> int:
        if self.secret is None:
            return int(self.key.raw_encrypt(plain))
        (p, q), (p2, q2) = (self.secret.p, self.secret.q), self._squares
        first = pow(secrets.randbelow(p - 1) + 1, p, p2)
        second = pow(secrets.randbelow(q - 1) + 1, q, q2)
        mask = first + p2 * ((second - first) * self._inverse % q2)
        return int((1 + self.key.n * plain) * mask % self.key.nsquare)

    def add(self, messages: Sequence[list[bytes]]) -> list[bytes]:
        sums = []
        for column in zip(*messages, strict=True):
            product = 1
            for blob in column:
                product = product * int.from_bytes(blob, "little") % self.key.nsquare
            sums.append(product.to_bytes(self.size, "little"))
        return sums

    def check(self, blobs: Sequence[bytes]) -> None:
        wanted = -(-self.plan.num_values // self.slots)
        if len(blobs) != wanted or any(len(blob) != self.size for blob in blobs):
            raise ProtocolError(f"expected {wanted} ciphertexts of {self.size} bytes")
        for blob in blobs:
            value = int.from_bytes(blob, "little")
            if not 0 < value < self.key.nsquare or math.gcd(value, self.key.n) != 1:
                raise ProtocolError("a number that is no Paillier ciphertext under this key")

    def decrypt(self, blobs: Sequence[bytes], offset: int) -> Reals:
        if self.secret is None:
            raise ValueError("only the key holder can decrypt: this is the public part")
        width, count = self.plan.slot_bits, self.plan.num_values
        parts: list[Integers] = []
        for blob in blobs:
            plain = int(self.secret.raw_decrypt(int.from_bytes(blob, "little")))
            size = min(self.slots, count - self.slots * len(parts))
            length = packed_size(size, width)
            if plain.bit_length() > size * width:
                raise ProtocolError("a plaintext larger than its slots: more was added than agreed")
            parts.append(unpack(plain.to_bytes(length, "little"), width, size).astype(np.int64))
        return (np.concatenate(parts) - offset).astype(np.float64)
