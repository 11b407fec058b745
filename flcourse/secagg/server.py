"""The server of secure aggregation: it takes bytes, passes bytes on, and learns one sum.

    for message in …: server.receive(message)        # raises ProtocolError for a bad one, unharmed
    replies = server.advance()                       # closes the stage: {client: bytes}
    …                                                # five times
    server.total()                                   # Σ of the survivors' words, modulo 2^bits

A message that is refused changes nothing: its sender counts as gone unless a good one follows.
Chapter 13.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from flcourse.secagg import messages as wire
from flcourse.secagg.client import CIPHERTEXT_BYTES, PAIR, SELF, SHARE_BYTES
from flcourse.secagg.decoding import find_altered
from flcourse.secagg.errors import AbortError, ProtocolError
from flcourse.secagg.field import Words, reduced, unpack, word_type
from flcourse.secagg.masking import (
    SEED_BYTES,
    add_masks,
    check_point,
    mask_seed,
    new_private_key,
    public_bytes,
    self_seed,
)
from flcourse.secagg.messages import Keys, Kind, Message
from flcourse.secagg.setup import STAGES, Setup
from flcourse.secagg.shamir import Elements, combine_many, parse_shares

_KINDS = (Kind.ADVERTISE, Kind.SHARES, Kind.MASKED_INPUT, Kind.AGREEMENT, Kind.UNMASK)


class Server:
    """The state of one round. ``alive`` holds, for each closed stage, who got through it.

    Source: Bonawitz et al. 2017, Figure 4; Bell et al. 2020 for sparse graphs.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.alive: list[tuple[int, ...]] = []
        self._sets: list[frozenset[int]] = []  # the same
        self._expected = dict(enumerate(setup.identities))
        self.altered: set[int] = set()
        self._here: dict[int, bytes] = {}  # messages of this stage, as they came
        self._sum = np.zeros(setup.length, word_type(setup.bits))
        self._keys: dict[int, Keys] = {}
        self._taken: set[bytes] = set()
        self._boxes: dict[int, dict[int, bytes]] = defaultdict(dict)  # receiver → sender → shares
        self._list = b""
        self._opened: dict[int, dict[int, Elements]] = defaultdict(dict)  # owner → holder → share

    @property
    def stage(self) -> str:
        """The stage whose messages are taken now; "done" after the last."""
        return STAGES[len(self.alive)] if len(self.alive) < len(STAGES) else "done"

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients whose vectors are in the sum. Raises ``ProtocolError`` while it is open."""
        if len(self.alive) < 3:
            raise ProtocolError(f"who is in the sum is not known yet: the stage is {self.stage}")
        return self.alive[2]

    def receive(self, data: bytes) -> int:
        """Takes one client's message of this stage and returns its sender.

        Raises ``ProtocolError``, with nothing changed, for a message that is damaged, forged, of
        another round or stage, not expected from this client, or a second one.
        """
        if self.stage == "done":
            raise ProtocolError("the round is over: no message is expected")
        kind = _KINDS[len(self.alive)]
        message = wire.read_signed(bytes(data), kind, self.setup.round_id, self._expected)
        if message.sender in self._here:
            raise ProtocolError(f"client {message.sender} sent a second {kind.name} message")
        getattr(self, f"_take_{self.stage}")(message)
        raw = kind in (Kind.ADVERTISE, Kind.AGREEMENT)  # these are passed on, signature and all
        self._here[message.sender] = bytes(data) if raw else b""
        return message.sender

    def advance(self) -> dict[int, bytes]:
        """Closes the stage; what each client that got through it is to be sent.

        Raises ``AbortError`` where fewer clients are left than a sum must have: nothing is opened.
        """
        if self.stage == "done":
            raise ProtocolError("the round is over: there is no stage to close")
        stage, here = self.stage, tuple(sorted(self._here))
        if len(here) < self.setup.quorum:
            raise AbortError(
                f"{len(here)} of {self.setup.num_clients} clients got through {stage}, "
                f"{self.setup.quorum} must: the round ends without a sum"
            )
        self.alive.append(here)
        self._sets.append(frozenset(here))
        self._expected = {index: self.setup.identities[index] for index in here}
        replies = dict(getattr(self, f"_reply_{stage}")())
        self._here = {}
        return replies

    def total(self) -> Words:
        """The sum of the survivors' words modulo ``2^bits``, its masks taken off.

        Raises ``AbortError`` where a mask cannot be opened (too few good shares of its secret).
        """
        if self.stage != "done":
            raise ProtocolError(f"the masks are still on: the stage is {self.stage}")
        secrets = self._secrets()
        total = self._sum.copy()
        add_masks(total, self._masks_left(secrets))
        return reduced(total, self.setup.bits)

    # --- what each stage takes ------------------------------------------------------------------

    def _take_advertise_keys(self, message: Message) -> None:
        keys = wire.read_keys(message.body)
        for key in (keys.cipher_key, keys.mask_key):
            check_point(key)
            if key in self._taken or keys.cipher_key == keys.mask_key:
                raise ProtocolError(f"client {message.sender} advertises a key that is in use")
        self._keys[message.sender] = keys
        self._taken |= {keys.cipher_key, keys.mask_key}

    def _take_share_keys(self, message: Message) -> None:
        items = wire.read_items(message.body, self.setup.num_clients, CIPHERTEXT_BYTES)
        if items.keys() != self._near(message.sender, 0):
            raise ProtocolError(f"client {message.sender} did not share with all its neighbours")
        for receiver, sealed in items.items():
            self._boxes[receiver][message.sender] = sealed

    def _take_masked_input(self, message: Message) -> None:
        words = unpack(message.body, self.setup.bits, self.setup.length)
        np.add(self._sum, words, out=self._sum)

    def _take_consistency_check(self, message: Message) -> None:
        if message.body != wire.digest(self._list):
            raise ProtocolError(f"client {message.sender} signed another list of survivors")

    def _take_unmasking(self, message: Message) -> None:
        length = 1 + SHARE_BYTES
        items = wire.read_items(message.body, self.setup.num_clients, length)
        holds = self._near(message.sender, 1) | {message.sender}
        if strangers := items.keys() - holds:
            raise ProtocolError(f"client {message.sender} holds no share of {min(strangers)}")
        for owner, content in items.items():
            if content[0] != (SELF if owner in self._sets[2] else PAIR):
                raise ProtocolError(f"client {message.sender} opens the wrong kind for {owner}")
        joined = b"".join(content[1:] for content in items.values())
        shares = parse_shares(joined, len(items), SEED_BYTES)
        for owner, share in zip(items, shares, strict=True):
            self._opened[owner][message.sender] = share

    # --- what each stage answers ----------------------------------------------------------------

    def _reply_advertise_keys(self) -> Iterator[tuple[int, bytes]]:
        for index in self.alive[0]:
            near = {other: self._here[other] for other in self._near(index, 0)}
            yield index, self._write(Kind.KEY_LIST, wire.write_items(near))

    def _reply_share_keys(self) -> Iterator[tuple[int, bytes]]:
        for index in self.alive[1]:
            yield index, self._write(Kind.SHARE_DELIVERY, wire.write_items(self._boxes[index]))
        self._boxes.clear()

    def _reply_masked_input(self) -> Iterator[tuple[int, bytes]]:
        dropped = self._sets[1] - self._sets[2]
        self._list = wire.write_survivors(self.alive[2], dropped, self.setup.num_clients)
        message = self._write(Kind.SURVIVORS, self._list)
        return ((index, message) for index in self.alive[2])

    def _reply_consistency_check(self) -> Iterator[tuple[int, bytes]]:
        for index in self.alive[3]:
            near = {other: self._here[other] for other in self._near(index, 3)}
            yield index, self._write(Kind.AGREEMENTS, wire.write_items(near))

    def _reply_unmasking(self) -> Iterator[tuple[int, bytes]]:
        return iter(())

    def _near(self, index: int, stage: int) -> frozenset[int]:
        return self.setup.graph[index] & self._sets[stage]

    def _write(self, kind: Kind, body: bytes) -> bytes:
        return wire.write(kind, self.setup.round_id, body)

    # --- taking the masks off -------------------------------------------------------------------

    def _secrets(self) -> dict[int, bytes]:
        """The secret of each client that shared keys and is needed: opened in groups of one set of
        holders, whose weights are the same."""
        wanted = [u for u in self.alive[1] if u in self._sets[2] or self._near(u, 2)]
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for owner in wanted:
            holders = sorted(self._opened[owner])
            if len(holders) < self.setup.needed:
                raise AbortError(
                    f"{len(holders)} shares of client {owner}'s secret came, "
                    f"{self.setup.needed} are needed: the masks stay on"
                )
            groups[tuple(holders[: self.setup.needed])].append(owner)
        secrets: dict[int, bytes] = {}
        for used, owners in groups.items():
            secrets |= self._open(used, owners)
        return secrets

    def _open(self, holders: tuple[int, ...], owners: list[int]) -> dict[int, bytes]:
        values = np.stack([[self._opened[u][h] for u in owners] for h in holders])
        found = combine_many([h + 1 for h in holders], values, SEED_BYTES)
        return {
            owner: secret if secret and self._fits(owner, secret) else self._repaired(owner)
            for owner, secret in zip(owners, found, strict=True)
        }

    def _fits(self, owner: int, secret: bytes) -> bool:
        """A self-mask secret must give the commitment, a private key the public one."""
        if owner in self._sets[2]:
            return wire.commit(secret, self.setup.round_id) == self._keys[owner].commitment
        return public_bytes(new_private_key(secret)) == self._keys[owner].mask_key

    def _repaired(self, owner: int) -> bytes:
        """The secret without the altered shares, where there are enough others to tell them by."""
        shares, needed = self._opened[owner], self.setup.needed
        holders = sorted(set(shares) - self.altered)
        points = [h + 1 for h in holders]
        wrong = find_altered(points, np.stack([shares[h] for h in holders]), needed)
        good = [h for h in holders if wrong is not None and h + 1 not in wrong][:needed]
        if wrong is not None and len(good) == needed:
            values = np.stack([shares[h] for h in good])[:, None]
            secret = combine_many([h + 1 for h in good], values, SEED_BYTES)[0]
            if secret is not None and self._fits(owner, secret):
                self.altered |= {point - 1 for point in wrong}
                return secret
        raise AbortError(f"shares of client {owner}'s secret were altered: its mask stays on")

    def _masks_left(self, secrets: Mapping[int, bytes]) -> Iterator[tuple[bytes, int]]:
        """Each survivor's self mask, and the survivors' masks with each client that left."""
        for owner, secret in secrets.items():
            if owner in self._sets[2]:
                yield self_seed(secret, self.setup.round_id), -1
                continue
            key = new_private_key(secret)
            for other in self._near(owner, 2):
                seed = mask_seed(key, self._keys[other].mask_key, self.setup.round_id)
                yield seed, -1 if other < owner else +1
