"""Sums of encrypted vectors: the server adds what it cannot read, the clients decrypt the sum.

    result = homomorphic_sum(rows, clip=1.0, scheme="ckks")
    result.total, result.bytes_up, result.seconds

All clients share one secret key; the server has the public key. So one client that hands its key to
the server opens every message: unlike masks (chapter 13), this protects against the server only as
long as **no** client works with it. Nothing here is DP either: the sum is exact, unless noise is
added under encryption. Chapter 14.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flcourse.fedavg import Aggregate
from flcourse.secagg.ciphers import Integers, Plan, Reals
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import RandomBytes, as_reals
from flcourse.secagg.schemes import SCHEMES, new_holder, public_part

VERSION, MAGIC = 1, b"FLHE"
_HEADER = struct.Struct("<4sBBBIQI")  # magic, version, scheme, noisy, added, values, ciphertexts
_LENGTH = struct.Struct("<I")
_DIGEST = 32


class Noise(Protocol):
    """Whole-number noise: `DiscreteGaussian` and `Skellam` of `flcourse.secagg.distributed_dp`."""

    @property
    def reach(self) -> int: ...

    def draw(self, count: int, random_bytes: RandomBytes = ...) -> Integers: ...


@dataclass(frozen=True)
class Envelope:
    """A parsed message: how many vectors it adds up, whether noise is in it, ciphertexts."""

    scheme: str
    added: int
    noisy: bool
    num_values: int
    blobs: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """``header · (length · ciphertext)* · SHA-256``: a damaged message is always noticed."""
        code = SCHEMES.index(self.scheme)
        head = (MAGIC, VERSION, code, self.noisy, self.added, self.num_values, len(self.blobs))
        parts = [_HEADER.pack(*head)]
        for blob in self.blobs:
            parts += [_LENGTH.pack(len(blob)), blob]
        body = b"".join(parts)
        return body + hashlib.sha256(body).digest()

    @classmethod
    def parse(cls, data: bytes) -> Envelope:
        """The inverse of ``to_bytes``. Raises ``ProtocolError`` for anything damaged.

        The digest is no signature: it finds accidents, and who may send is another layer's matter.
        """
        body, digest = data[:-_DIGEST], data[-_DIGEST:]
        if len(body) < _HEADER.size or hashlib.sha256(body).digest() != digest:
            raise ProtocolError(f"{len(data)} bytes that are damaged or no encrypted vector")
        magic, version, code, noisy, added, values, count = _HEADER.unpack_from(body)
        if magic != MAGIC or version != VERSION or code >= len(SCHEMES) or noisy > 1:
            raise ProtocolError("no encrypted vector of this version")
        blobs, at = [], _HEADER.size
        for _ in range(count):
            if at + _LENGTH.size > len(body):
                raise ProtocolError("fewer ciphertexts than announced")
            (length,) = _LENGTH.unpack_from(body, at)
            at += _LENGTH.size
            if at + length > len(body):
                raise ProtocolError("a ciphertext is cut short")
            blobs.append(body[at : at + length])
            at += length
        if at != len(body):
            raise ProtocolError(f"{len(body) - at} bytes behind the last ciphertext")
        return cls(SCHEMES[code], added, bool(noisy), values, tuple(blobs))


class KeyHolder:
    """A client: it encrypts its own vector, and decrypts the sum.

    ``public`` is what the server is given. ``options``: ``key_bits`` and ``packed`` for Paillier,
    ``ring`` for BFV, ``ring``, ``moduli`` and ``scale_bits`` for CKKS (`flcourse.secagg.lattice`).
    Chapter 14. Raises ``ValueError`` and ``ImportError`` as `new_holder` does.
    """

    def __init__(self, plan: Plan, scheme: str, **options: Any) -> None:
        self.plan, self.scheme = plan, scheme
        self._cipher = new_holder(plan, scheme, **options)
        self.public = self._cipher.public

    def encrypt(self, values: object) -> bytes:
        """``[d]`` reals to one message.

        Raises ``ValueError`` with the index of a value beyond ``clip``, NaN or infinite.
        """
        numbers = integers(self.plan, values)
        blobs = self._cipher.encrypt(numbers, self.plan.codec.level)
        return Envelope(self.scheme, 1, False, len(numbers), tuple(blobs)).to_bytes()

    def decrypt(self, message: bytes) -> Reals:
        """The sum in a message, float64 ``[d]``. Raises ``ProtocolError`` for a damaged one."""
        envelope = _checked(self.plan, self.scheme, message)
        self._cipher.check(envelope.blobs)
        offset = envelope.added * self.plan.codec.level + envelope.noisy * self.plan.noise_room
        return self._cipher.decrypt(envelope.blobs, offset) * self.plan.codec.step


class Adder:
    """The server: it has the public key, adds messages, and cannot read one.

    Chapter 14. Raises ``ProtocolError`` for a damaged key.
    """

    def __init__(self, plan: Plan, scheme: str, public: bytes, **options: Any) -> None:
        self.plan, self.scheme = plan, scheme
        self._cipher = public_part(plan, scheme, public, **options)

    def add(self, messages: Sequence[bytes], noise: Integers | None = None) -> bytes:
        """One message with the sum of all, and of ``noise`` in steps, encrypted here.

        Noise known to the server alone: those who decrypt see a noisy sum, and the server, who
        could take the noise out, never sees the sum.
        Raises ``ProtocolError`` for a damaged message, more vectors than planned, or noise twice;
        ``ValueError`` for none at all, or noise beyond ``plan.noise_room``.
        """
        if not messages:
            raise ValueError("there is nothing to add: give at least one message")
        envelopes = [_checked(self.plan, self.scheme, message) for message in messages]
        added = sum(envelope.added for envelope in envelopes)
        noisy = sum(envelope.noisy for envelope in envelopes) + (noise is not None)
        if added > self.plan.num_clients or noisy > 1:
            raise ProtocolError(
                f"{added} vectors and {noisy} noises, planned for {self.plan.num_clients} and 1: "
                "the slots would overflow"
            )
        for envelope in envelopes:
            self._cipher.check(envelope.blobs)
        columns = [list(envelope.blobs) for envelope in envelopes]
        if noise is not None:
            columns.append(self._cipher.encrypt(self._fits(noise), self.plan.noise_room))
        total = tuple(self._cipher.add(columns))
        return Envelope(self.scheme, added, bool(noisy), self.plan.num_values, total).to_bytes()

    def _fits(self, noise: Integers) -> Integers:
        room = self.plan.noise_room
        if noise.shape != (self.plan.num_values,) or noise.dtype.kind != "i":
            raise ValueError(
                f"noise of shape {list(noise.shape)} and {noise.dtype}: give "
                f"{self.plan.num_values} whole numbers, in steps"
            )
        if len(noise) and int(np.abs(noise).max()) > room:
            raise ValueError(f"noise beyond noise_room={room} steps: plan with a larger noise_room")
        return noise.astype(np.int64)


def integers(plan: Plan, values: object) -> Integers:
    """``[d]`` reals as whole numbers of at most ``plan.codec.level``, by `FixedPoint`."""
    reals = as_reals(values)
    if reals.shape != (plan.num_values,):
        raise ValueError(f"values of shape {list(reals.shape)}: expected [{plan.num_values}]")
    codec = plan.codec
    words = codec.encode(reals).astype(np.int64)
    half, whole = 1 << (codec.bits - 1), 1 << codec.bits
    return np.where(words >= half, words - whole, words) if codec.bits < 64 else words


def _checked(plan: Plan, scheme: str, message: bytes) -> Envelope:
    envelope = Envelope.parse(message)
    if (envelope.scheme, envelope.num_values) != (scheme, plan.num_values):
        raise ProtocolError(
            f"a message of {envelope.num_values} values under {envelope.scheme} where "
            f"{plan.num_values} under {scheme} were agreed on"
        )
    if not 1 <= envelope.added <= plan.num_clients:
        raise ProtocolError(f"a sum of {envelope.added} vectors, planned for {plan.num_clients}")
    return envelope


# --- a whole round -----------------------------------------------------------------------------


@dataclass(frozen=True)
class HomomorphicSum:
    """A sum that was formed under encryption, and what it cost.

    Attributes:
        total: the sum, float64 ``[d]`` (a tensor if tensors came in).
        bytes_up: what each client sent, ``[n]``.
        bytes_down: the encrypted sum that each client receives.
        seconds: ``keys``, ``encrypt`` (all clients), ``add``, ``decrypt`` (once).
        error_bound: of an entry, from fixed point alone: CKKS adds its own error, noise its own.
        seen: what the server saw, the messages themselves (only with ``keep=True``).
    """

    total: Any
    bytes_up: list[int]
    bytes_down: int
    seconds: dict[str, float]
    error_bound: float
    seen: list[bytes] = field(default_factory=list, repr=False)


def homomorphic_sum(
    vectors: Any,
    *,
    clip: float,
    scheme: str = "ckks",
    precision: int = 16,
    noise: Noise | None = None,
    keep: bool = False,
    **options: Any,
) -> HomomorphicSum:
    """``Σ_i vectors_i`` of ``[n, d]``, encrypted by each client, added by a server without the key.

    ``precision``: bits of a client's value; ``clip``: its declared range. ``noise`` is drawn and
    encrypted by the server (`Adder.add`), in steps of ``clip / L``. ``options`` as `KeyHolder`.
    Exact up to ``error_bound`` for Paillier and BFV; CKKS adds about 2^-20 to 2^-30 of ``clip``.

    Chapter 14. Raises ``ValueError`` for a value beyond ``clip``, NaN or infinite, and options
    outside their range; ``ImportError`` where the library is missing.
    """
    rows = as_reals(vectors)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"expected vectors [n, d], got {list(rows.shape)}")
    room = 0 if noise is None else noise.reach
    plan = Plan(rows.shape[1], rows.shape[0], clip, precision, room)
    plan.codec.encode(rows)  # refuses, with the index, before a key is made
    started = time.perf_counter()
    holder = KeyHolder(plan, scheme, **options)
    adder = Adder(plan, scheme, holder.public, **options)
    times = [time.perf_counter()]
    messages = [holder.encrypt(row) for row in rows]
    times.append(time.perf_counter())
    drawn = None if noise is None else noise.draw(plan.num_values)
    answer = adder.add(messages, drawn)
    times.append(time.perf_counter())
    total = holder.decrypt(answer)
    times.append(time.perf_counter())
    spent = np.diff([started, *times]).tolist()
    seconds = dict(zip(("keys", "encrypt", "add", "decrypt"), spent, strict=True))
    result = torch.from_numpy(total) if isinstance(vectors, Tensor) else total
    sizes = [len(message) for message in messages]
    bound = plan.codec.error_bound(len(rows))
    seen = [*messages, answer] if keep else []
    return HomomorphicSum(result, sizes, len(answer), seconds, bound, seen)


def he_aggregate(
    *, clip: float, scheme: str = "ckks", precision: int = 16, **options: Any
) -> Aggregate:
    """An ``aggregate`` for ``fedavg.train``: the weighted mean, formed under encryption.

    Client ``k`` encrypts ``(w_k·row_k, w_k·clip)`` with ``w_k = n_k / max n``; the last entry of
    the sum is the total weight, so the server learns neither rows nor sample counts. ``clip`` is
    the range of every value of a row. Chapter 14. Raises as `homomorphic_sum` does.
    """

    def aggregate(rows: Tensor, weights: Tensor) -> Tensor:
        shares = (weights.double() / weights.double().max()).cpu()[:, None]
        lasts = torch.full((len(rows), 1), clip, dtype=torch.float64)
        sent = shares * torch.cat([rows.detach().cpu().double(), lasts], dim=1)
        spent = homomorphic_sum(sent, clip=clip, scheme=scheme, precision=precision, **options)
        return (spent.total[:-1] / (spent.total[-1] / clip)).to(rows)

    aggregate.__name__ = f"he_aggregate({scheme}, {precision} bits)"
    return aggregate
