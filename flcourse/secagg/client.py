"""One client of secure aggregation: a state machine that takes bytes and gives bytes.

    hello   = client.advertise_keys()                # → server
    shares  = client.share_keys(key_list)            # ← all keys          → encrypted shares
    masked  = client.masked_input(delivery)          # ← others' shares    → masked vector
    agreed  = client.consistency_check(survivors)    # ← who is in the sum → signature over it
    opened  = client.unmasking(agreements)           # ← others' signatures → one share of each

Each step can be done once, in this order. Whatever the client refuses ends the round for it: its
secrets are forgotten, and every later call raises. Chapter 13.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flcourse.secagg import messages as wire
from flcourse.secagg.errors import AbortError, ProtocolError
from flcourse.secagg.field import Words, pack, reduced, word_type
from flcourse.secagg.masking import (
    SEED_BYTES,
    add_masks,
    agree,
    derive,
    mask_seed,
    new_private_key,
    private_bytes,
    public_bytes,
    self_seed,
)
from flcourse.secagg.messages import Keys, Kind
from flcourse.secagg.setup import STAGES, Setup
from flcourse.secagg.shamir import share_bytes, share_size, split_many

SHARE_BYTES = share_size(SEED_BYTES)
TAG_BYTES = 16
CIPHERTEXT_BYTES = 2 * SHARE_BYTES + TAG_BYTES
SELF, PAIR = 0, 1  # which secret a share opens: the self mask, or the key of the pairwise masks
_ENDS = struct.Struct("<II")
_NONCE = bytes(12)  # each key encrypts one message: see _channel


class Client:
    """Client ``index`` with its vector as words modulo ``2^bits`` (see ``FixedPoint.encode``).

    Every step raises ``ProtocolError`` for what it refuses (``AbortError`` where too few clients
    are left), and after that the client takes part no more.

    Source: Bonawitz et al. 2017, Figure 4 (with signatures); Bell et al. 2020 for sparse graphs.
    Raises ``ValueError`` if the vector or the index does not fit the set-up.
    """

    def __init__(self, setup: Setup, index: int, words: Words, identity: Ed25519PrivateKey) -> None:
        if not 0 <= index < setup.num_clients:
            raise ValueError(f"client {index} is not one of 0..{setup.num_clients - 1}")
        if words.shape != (setup.length,) or words.dtype != word_type(setup.bits):
            raise ValueError(
                f"expected {setup.length} words of {word_type(setup.bits)}, "
                f"got {words.dtype} of shape {list(words.shape)}: encode the vector first"
            )
        self.setup, self.index = setup, index
        self._words, self._identity = words, identity
        self._stage = 0
        self._aborted = False
        self._cipher_key, self._mask_key = new_private_key(), new_private_key()
        self._secret = os.urandom(SEED_BYTES)
        self._keys: dict[int, Keys] = {}
        self._agreed: dict[int, bytes] = {}
        self._own_shares: bytes = b""
        self._received: dict[int, bytes] = {}
        self._list: bytes = b""

    def advertise_keys(self) -> bytes:
        """Two fresh public keys and the commitment to the self-mask secret."""
        with self._step("advertise_keys"):
            keys = Keys(
                public_bytes(self._cipher_key),
                public_bytes(self._mask_key),
                wire.commit(self._secret, self.setup.round_id),
            )
            return self._send(Kind.ADVERTISE, wire.write_keys(keys))

    def share_keys(self, key_list: bytes) -> bytes:
        """Checks the neighbours' keys; shares of both own secrets, encrypted for each of them."""
        with self._step("share_keys"):
            body = self._receive(key_list, Kind.KEY_LIST)
            self._keys = self._checked_keys(wire.read_items(body, self.setup.num_clients))
            self._enough(len(self._keys) + 1, "advertised keys")
            holders = sorted({self.index, *self._keys})
            shares = split_many(
                [self._secret, private_bytes(self._mask_key)],
                self.setup.needed,
                [holder + 1 for holder in holders],
            )
            packed, size = share_bytes(shares), 2 * SHARE_BYTES
            plain = {
                holder: packed[size * place : size * (place + 1)]
                for place, holder in enumerate(holders)
            }
            self._own_shares = plain.pop(self.index)
            sealed = {holder: self._seal(holder, text) for holder, text in plain.items()}
            return self._send(Kind.SHARES, wire.write_items(sealed))

    def masked_input(self, delivery: bytes) -> bytes:
        """The vector plus the self mask plus or minus a mask for each neighbour that shared."""
        with self._step("masked_input"):
            body = self._receive(delivery, Kind.SHARE_DELIVERY)
            items = wire.read_items(body, self.setup.num_clients, CIPHERTEXT_BYTES)
            if strangers := items.keys() - self._keys.keys():
                raise ProtocolError(f"shares of client {min(strangers)}, whose keys never came")
            self._enough(len(items) + 1, "shared their keys")
            self._received = items
            masked = self._words.copy()
            add_masks(masked, self._seeds())
            self._words = masked[:0]  # the vector itself is needed no more
            data = pack(reduced(masked, self.setup.bits), self.setup.bits)
            return self._send(Kind.MASKED_INPUT, data)

    def consistency_check(self, survivors: bytes) -> bytes:
        """Signs the list of those in the sum, once it is sound: enough, and no one asked twice."""
        with self._step("consistency_check"):
            self._list = self._receive(survivors, Kind.SURVIVORS)
            alive, dropped = wire.read_survivors(self._list, self.setup.num_clients)
            if self.index not in alive:
                raise ProtocolError(f"client {self.index} sent its vector but is not in the list")
            if len(alive) < self.setup.quorum:
                raise AbortError(f"a sum of {len(alive)} clients: need {self.setup.quorum}")
            near = self.setup.graph[self.index]
            if near & (alive | dropped) != self._received.keys():
                raise ProtocolError("the list does not name those whose shares were delivered")
            self._enough(len(near & alive) + 1, "are in the sum")
            self._alive, self._dropped = alive, dropped
            return self._send(Kind.AGREEMENT, wire.digest(self._list))

    def unmasking(self, agreements: bytes) -> bytes:
        """Once ``t`` holders signed the same list: one share of each neighbour, of one kind."""
        with self._step("unmasking"):
            body = self._receive(agreements, Kind.AGREEMENTS)
            signed = wire.read_items(body, self.setup.num_clients)
            self._check_agreement(signed)
            opened = {self.index: bytes([SELF]) + self._own_shares[:SHARE_BYTES]}
            for owner, sealed in self._received.items():
                plain = self._unseal(owner, sealed)
                if plain is None:  # altered on its way: worth nothing, and not worth the round
                    continue
                kind = SELF if owner in self._alive else PAIR
                opened[owner] = bytes([kind]) + plain[kind * SHARE_BYTES :][:SHARE_BYTES]
            self._forget()
            return self._send(Kind.UNMASK, wire.write_items(opened))

    # --- pieces -------------------------------------------------------------------------------

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """In order and once; an error inside ends the round for this client."""
        expected = "nothing: its round is over" if self._over else STAGES[self._stage]
        if self._over or name != expected:
            self._abort()
            raise ProtocolError(f"client {self.index} was asked for {name}, next is {expected}")
        try:
            yield
        except Exception:
            self._abort()
            raise
        self._stage += 1

    @property
    def _over(self) -> bool:
        return self._aborted or self._stage == len(STAGES)

    def _abort(self) -> None:
        self._aborted = True
        self._forget()

    def _forget(self) -> None:
        self._received, self._agreed, self._own_shares, self._secret = {}, {}, b"", b""
        self._words = self._words[:0]

    def _send(self, kind: Kind, body: bytes) -> bytes:
        return wire.write_signed(kind, self.setup.round_id, self.index, body, self._identity)

    def _receive(self, data: bytes, kind: Kind) -> bytes:
        return wire.read(data, kind, self.setup.round_id).body

    def _enough(self, count: int, what: str) -> None:
        if count < self.setup.needed:
            raise AbortError(
                f"{count} holders of client {self.index}'s secrets {what}: need {self.setup.needed}"
            )

    def _checked_keys(self, items: dict[int, bytes]) -> dict[int, Keys]:
        near = self.setup.graph[self.index]
        known = {index: self.setup.identities[index] for index in near}
        keys = {}
        for index, raw in items.items():
            message = wire.read_signed(raw, Kind.ADVERTISE, self.setup.round_id, known)
            if message.sender != index:
                raise ProtocolError(f"the keys of client {message.sender} came as {index}'s")
            keys[index] = wire.read_keys(message.body)
        publics = [key for own in keys.values() for key in (own.cipher_key, own.mask_key)]
        if len(set(publics)) != len(publics):
            raise ProtocolError("two clients advertise the same key: one of them is a copy")
        return keys

    def _seeds(self) -> Iterator[tuple[bytes, int]]:
        yield self_seed(self._secret, self.setup.round_id), +1
        for other in self._received:
            seed = mask_seed(self._mask_key, self._keys[other].mask_key, self.setup.round_id)
            yield seed, +1 if self.index < other else -1

    def _channel(self, other: int, sender: int, receiver: int) -> tuple[AESGCM, bytes]:
        """The cipher of one direction: fresh keys in each round, so a key sees one message."""
        ends = _ENDS.pack(sender, receiver)
        if other not in self._agreed:
            self._agreed[other] = agree(self._cipher_key, self._keys[other].cipher_key)
        return AESGCM(derive(self._agreed[other], self.setup.round_id, b"shares" + ends)), ends

    def _seal(self, receiver: int, text: bytes) -> bytes:
        cipher, ends = self._channel(receiver, self.index, receiver)
        return cipher.encrypt(_NONCE, text, ends)

    def _unseal(self, owner: int, sealed: bytes) -> bytes | None:
        cipher, ends = self._channel(owner, owner, self.index)
        try:
            plain = cipher.decrypt(_NONCE, sealed, ends)
        except InvalidTag:
            return None
        return plain if len(plain) == 2 * SHARE_BYTES else None

    def _check_agreement(self, signed: dict[int, bytes]) -> None:
        """``t`` holders, this one included, signed the very list that this one signed."""
        holders = self.setup.graph[self.index] & self._alive
        known = {index: self.setup.identities[index] for index in holders}
        own, agreed = wire.digest(self._list), 1
        for index, raw in signed.items():
            if index == self.index:
                continue
            message = wire.read_signed(raw, Kind.AGREEMENT, self.setup.round_id, known)
            if message.sender != index or message.body != own:
                raise ProtocolError(
                    f"client {message.sender} signed another list of survivors: the server told "
                    "two stories"
                )
            agreed += 1
            if agreed >= self.setup.needed:
                return
        self._enough(agreed, "signed the list of survivors")
