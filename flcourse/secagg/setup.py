"""What all parties of a round know before it starts: public, the same for all. Chapter 13."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from flcourse.secagg.field import check_bits
from flcourse.secagg.graph import default_threshold, neighbour_sets, num_neighbours
from flcourse.secagg.messages import ROUND_BYTES
from flcourse.secagg.shamir import PRIME

STAGES = ("advertise_keys", "share_keys", "masked_input", "consistency_check", "unmasking")


@dataclass(frozen=True)
class Setup:
    """The public parameters of one round.

    Attributes:
        identities: the Ed25519 public key of each client, known to all beforehand (a directory).
        length: ``d``, entries of a vector.
        bits: ``k``, log2 of the modulus.
        neighbours: how many clients each client shares masks with; None for all others.
        threshold: ``t``, how many of the holders (neighbours and the client itself) open a secret;
            None for ``⌊2h/3⌋ + 1``. A server in league with ``c`` of the holders can tell two
            groups of ``t`` different lists unless ``2t > h + c``: the default stands ``c < h/3``.
        round_id: 16 fresh bytes: a message of any other round is refused.

    Raises ``ValueError`` for fewer than two clients, a threshold of at most half the holders (two
    disjoint groups could open both kinds of share), and other values outside their range.
    """

    identities: tuple[bytes, ...]
    length: int
    bits: int = 32
    neighbours: int | None = None
    threshold: int | None = None
    round_id: bytes = field(default_factory=lambda: os.urandom(ROUND_BYTES))

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if not 2 <= self.num_clients < PRIME:
            raise ValueError(
                f"{self.num_clients} clients: a sum needs at least 2 (the sum of one is its "
                f"vector), and shares reach for at most {PRIME - 1}"
            )
        if self.length < 1:
            raise ValueError("the vectors are empty: there is nothing to add")
        if len(self.round_id) != ROUND_BYTES:
            raise ValueError(f"round_id has {len(self.round_id)} bytes, expected {ROUND_BYTES}")
        if not self.holders // 2 < self.needed <= self.holders:
            raise ValueError(
                f"threshold={self.needed} must be more than half and at most all of the "
                f"{self.holders} clients that hold shares of a secret: two groups that do not "
                "meet could otherwise open both masks of one client"
            )

    @property
    def num_clients(self) -> int:
        """``n``."""
        return len(self.identities)

    @property
    def holders(self) -> int:
        """``h``: a client's neighbours and itself."""
        return num_neighbours(self.num_clients, self.neighbours) + 1

    @property
    def needed(self) -> int:
        """``t``."""
        return default_threshold(self.holders) if self.threshold is None else self.threshold

    @property
    def quorum(self) -> int:
        """``⌈t·n/h⌉``: how many of all clients must be in a sum (on the complete graph ``t``)."""
        return -(-self.needed * self.num_clients // self.holders)

    @functools.cached_property
    def graph(self) -> list[frozenset[int]]:
        """The neighbours of each client; all compute it from the round, nobody is told."""
        return neighbour_sets(self.num_clients, self.holders - 1, self.round_id)


def new_identities(num_clients: int) -> list[Ed25519PrivateKey]:
    """A signing key for each client: in a deployment they are made once and enrolled."""
    return [Ed25519PrivateKey.generate() for _ in range(num_clients)]


def directory(identities: list[Ed25519PrivateKey]) -> tuple[bytes, ...]:
    """The public halves."""
    return tuple(key.public_key().public_bytes_raw() for key in identities)
