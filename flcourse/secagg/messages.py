"""What travels: bytes with a version, a kind, the round and the sender; clients' messages signed.

    version 1 · kind 1 · round 16 · sender 4 · body · (clients only) Ed25519 signature 64

The signature covers all before it, so a message of another round, stage or client is refused. A
parser accepts exactly what the writer makes and raises ``ProtocolError`` for everything else.
Numbers are little-endian. Chapter 13.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.masking import KEY_BYTES

VERSION = 1
SERVER = 2**32 - 1
ROUND_BYTES, SIGNATURE_BYTES, DIGEST_BYTES = 16, 64, 32
_HEADER = struct.Struct("<BB16sI")
_ITEM = struct.Struct("<IH")
_COUNT = struct.Struct("<I")
HEADER_BYTES = _HEADER.size


class Kind(IntEnum):
    """The ten messages of a round: what clients send is odd, what the server answers even."""

    ADVERTISE = 1
    KEY_LIST = 2
    SHARES = 3
    SHARE_DELIVERY = 4
    MASKED_INPUT = 5
    SURVIVORS = 6
    AGREEMENT = 7
    AGREEMENTS = 8
    UNMASK = 9
    RESULT = 10


@dataclass(frozen=True)
class Message:
    """A parsed message: its kind, who claims to have sent it, and its body."""

    kind: Kind
    round_id: bytes
    sender: int
    body: bytes


@dataclass(frozen=True)
class Keys:
    """What a client advertises: two public keys, and the hash of its self-mask secret."""

    cipher_key: bytes
    mask_key: bytes
    commitment: bytes


# --- envelopes --------------------------------------------------------------------------------


def write(kind: Kind, round_id: bytes, body: bytes) -> bytes:
    """A message of the server."""
    return _HEADER.pack(VERSION, kind, round_id, SERVER) + body


def write_signed(
    kind: Kind, round_id: bytes, sender: int, body: bytes, identity: Ed25519PrivateKey
) -> bytes:
    """A message of client ``sender``, signed with its identity key."""
    text = _HEADER.pack(VERSION, kind, round_id, sender) + body
    return text + identity.sign(hashlib.sha256(text).digest())


def read(data: bytes, kind: Kind, round_id: bytes) -> Message:
    """A message of the server. Raises ``ProtocolError`` unless it is of this kind and round."""
    message = _open(data, kind, round_id)
    if message.sender != SERVER:
        raise ProtocolError(f"the message says it is from client {message.sender}, not the server")
    return message


def read_signed(
    data: bytes,
    kind: Kind,
    round_id: bytes,
    identities: Mapping[int, bytes],
) -> Message:
    """A client's message; ``identities`` are the public keys of those who may send it now.

    Raises ``ProtocolError`` for a damaged message, one of another kind or round, an unexpected
    sender, or a signature that is not that sender's.
    """
    if len(data) < _HEADER.size + SIGNATURE_BYTES:
        raise ProtocolError(f"{len(data)} bytes are too few for a signed message")
    text, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    message = _open(text, kind, round_id)
    if message.sender not in identities:
        raise ProtocolError(f"no {kind.name} message is expected from client {message.sender}")
    key = Ed25519PublicKey.from_public_bytes(identities[message.sender])
    try:
        key.verify(signature, hashlib.sha256(text).digest())
    except InvalidSignature:
        raise ProtocolError(f"the signature is not that of client {message.sender}") from None
    return message


def _open(data: bytes, kind: Kind, round_id: bytes) -> Message:
    if len(data) < _HEADER.size:
        raise ProtocolError(f"{len(data)} bytes are too few for a message")
    version, number, round_seen, sender = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ProtocolError(f"version {version} is unknown: this is version {VERSION}")
    if number != kind:
        raise ProtocolError(f"expected {kind.name}, got a message of kind {number}")
    if round_seen != round_id:
        raise ProtocolError(f"the {kind.name} message belongs to another round: a replay")
    return Message(kind, round_seen, sender, data[_HEADER.size :])


# --- bodies -----------------------------------------------------------------------------------


def write_keys(keys: Keys) -> bytes:
    """96 bytes."""
    return keys.cipher_key + keys.mask_key + keys.commitment


def read_keys(body: bytes) -> Keys:
    """The inverse of ``write_keys``. Raises ``ProtocolError`` for another length."""
    if len(body) != 2 * KEY_BYTES + DIGEST_BYTES:
        raise ProtocolError(f"{len(body)} bytes are no two keys and a commitment")
    first, second = body[:KEY_BYTES], body[KEY_BYTES : 2 * KEY_BYTES]
    return Keys(first, second, body[2 * KEY_BYTES :])


def write_items(items: Mapping[int, bytes]) -> bytes:
    """A count, then for each client index, ascending: index, length, content."""
    parts = [_COUNT.pack(len(items))]
    for index in sorted(items):
        parts += [_ITEM.pack(index, len(items[index])), items[index]]
    return b"".join(parts)


def read_items(body: bytes, num_clients: int, length: int | None = None) -> dict[int, bytes]:
    """The inverse of ``write_items``; ``length`` is that of every content, where it is fixed.

    Raises ``ProtocolError`` for a body cut short or too long, an index that repeats, is out of
    order or not below ``num_clients``, and a content of another length.
    """
    if len(body) < _COUNT.size:
        raise ProtocolError("the list has no count")
    (count,), at = _COUNT.unpack_from(body), _COUNT.size
    items: dict[int, bytes] = {}
    last = -1
    for _ in range(count):
        if at + _ITEM.size > len(body):
            raise ProtocolError("the list is cut short")
        index, size = _ITEM.unpack_from(body, at)
        at += _ITEM.size
        if not last < index < num_clients:
            raise ProtocolError(f"client {index} after {last}: out of order or range, or twice")
        if at + size > len(body) or (length is not None and size != length):
            raise ProtocolError(f"the content of client {index} has the wrong length ({size})")
        items[index], last = body[at : at + size], index
        at += size
    if at != len(body):
        raise ProtocolError(f"{len(body) - at} bytes stand behind the list")
    return items


def items_size(count: int, length: int) -> int:
    """Bytes of a list of ``count`` contents of ``length`` bytes."""
    return _COUNT.size + count * (_ITEM.size + length)


def write_survivors(alive: Collection[int], dropped: Collection[int], num_clients: int) -> bytes:
    """Two bit maps over all clients: whose vectors are in the sum, and who shared keys but left."""
    return _bitmap(alive, num_clients) + _bitmap(dropped, num_clients)


def read_survivors(body: bytes, num_clients: int) -> tuple[frozenset[int], frozenset[int]]:
    """The inverse of ``write_survivors``.

    Raises ``ProtocolError`` for another length, a bit beyond the clients, and a client in both
    maps: shares of both kinds would open its vector.
    """
    size = -(-num_clients // 8)
    if len(body) != 2 * size:
        raise ProtocolError(f"{len(body)} bytes are no two bit maps of {num_clients} clients")
    alive, dropped = (_members(part, num_clients) for part in (body[:size], body[size:]))
    if both := alive & dropped:
        raise ProtocolError(
            f"both kinds of share of client {min(both)} are asked for: they would open its vector"
        )
    return alive, dropped


def digest(body: bytes) -> bytes:
    """SHA-256: what the clients sign of the survivors' list."""
    return hashlib.sha256(body).digest()


def commit(secret: bytes, round_id: bytes) -> bytes:
    """The hash that a client publishes of its self-mask secret, so an altered one is noticed."""
    return hashlib.sha256(b"self-mask commitment" + round_id + secret).digest()


def _bitmap(members: Collection[int], num_clients: int) -> bytes:
    return sum(1 << index for index in set(members)).to_bytes(-(-num_clients // 8), "little")


def _members(bitmap: bytes, num_clients: int) -> frozenset[int]:
    number = int.from_bytes(bitmap, "little")
    if number >> num_clients:
        raise ProtocolError(f"the bit map names clients beyond the {num_clients} of the round")
    return frozenset(index for index in range(num_clients) if number >> index & 1)
