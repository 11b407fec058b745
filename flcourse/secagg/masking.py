"""Masks that cancel: agreed on in pairs (X25519, HKDF), expanded by AES-256-CTR into a sum.

    seed = mask_seed(own_private, their_public, round_id)      # both ends get the same 32 bytes
    add_masks(words, [(seed, +1)])                             # one end adds, the other subtracts

A mask is never held whole: the stream is made in blocks that stay in the cache, and each block goes
straight into the sum, so memory does not grow with the number of neighbours. Chapter 13.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import Words

SEED_BYTES = 32
KEY_BYTES = 32
BLOCK_BYTES = 2**17  # three of them (sum, zeros, stream) fit into a core's own cache
_STREAMS_AT_ONCE = 64
_SPARE = 16  # update_into wants room for a block of the cipher beyond the text
_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(32)))  # secret from nobody: see below


def new_private_key(random_bytes: bytes | None = None) -> X25519PrivateKey:
    """An X25519 private key from the system's randomness (or from 32 bytes given)."""
    return X25519PrivateKey.from_private_bytes(random_bytes or os.urandom(KEY_BYTES))


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The 32 bytes of the public key."""
    return key.public_key().public_bytes_raw()


def private_bytes(key: X25519PrivateKey) -> bytes:
    """The 32 bytes of the private key: what Shamir's shares are made of."""
    return key.private_bytes_raw()


def agree(own: X25519PrivateKey, public: bytes) -> bytes:
    """The 32 bytes that both owners get: Diffie–Hellman on Curve25519 (RFC 7748).

    Raises ``ProtocolError`` for a public key of another length, or a point of small order, whose
    result would be zero and known to all.
    """
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError(
            f"public key {public.hex()} is no usable curve point: {error}"
        ) from None


def check_point(public: bytes) -> None:
    """Raises ``ProtocolError`` if nobody could agree on a key with ``public``.

    A point of small order gives zero with every private key, so a known one tells as well.
    """
    agree(_PROBE, public)


def derive(secret: bytes, round_id: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose in one round: HKDF-SHA-256, salted with the round (RFC 5869)."""
    return HKDF(hashes.SHA256(), SEED_BYTES, round_id, purpose).derive(secret)


def mask_seed(own: X25519PrivateKey, public: bytes, round_id: bytes) -> bytes:
    """The seed of the mask that two clients share; both public keys are bound into it."""
    ends = b"".join(sorted((public_bytes(own), public)))
    return derive(agree(own, public), round_id, b"pairwise mask" + ends)


def self_seed(secret: bytes, round_id: bytes) -> bytes:
    """The seed of a client's self mask, from the 32 secret bytes that it shares out."""
    return derive(secret, round_id, b"self mask")


def add_masks(total: Words, seeds: Iterable[tuple[bytes, int]]) -> None:
    """``total ← total + Σ sign · PRG(seed)``, in place, modulo the word: ``[d]`` uint32 or uint64.

    ``PRG`` is the AES-256-CTR key stream of the seed. Each ``(seed, sign)`` has 32 bytes and ±1.

    Source: Bonawitz et al. 2017, section 4. Chapter 13.
    Raises ``ValueError`` for a seed of another length (a short seed can be guessed), another sign,
    or a ``total`` that is no contiguous uint32 or uint64 vector.
    """
    if total.dtype not in ("<u4", "<u8") or total.ndim != 1 or not total.flags.c_contiguous:
        raise ValueError(f"expected a contiguous uint32 or uint64 vector, got {total.dtype}")
    size = min(BLOCK_BYTES, total.nbytes)
    zeros, stream = memoryview(bytes(size)), bytearray(size + _SPARE)
    words = np.frombuffer(stream, total.dtype, size // total.itemsize)
    length = max(len(words), 1)
    blocks = [total[start : start + length] for start in range(0, len(total), length)]
    waiting = iter(seeds)
    while streams := [_opened(seed, sign) for seed, sign in islice(waiting, _STREAMS_AT_ONCE)]:
        for block in blocks:  # a block of the sum stays in the cache while all streams pass
            source, part = zeros[: block.nbytes], words[: len(block)]
            for cipher, combine in streams:
                cipher.update_into(source, stream)
                combine(block, part, out=block)


def _opened(seed: bytes, sign: int) -> tuple[CipherContext, np.ufunc]:
    if len(seed) != SEED_BYTES or sign not in (1, -1):
        raise ValueError(f"a mask needs {SEED_BYTES} bytes and a sign of ±1, got {len(seed)}")
    cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    return cipher, np.add if sign == 1 else np.subtract
