"""What the ciphers of chapter 14 share: the plan of a sum, who holds which key, the libraries.

A vector is ``d`` whole numbers of at most ``plan.bound``; `flcourse.secagg.homomorphic` makes them
from reals and the bytes that travel.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flcourse.secagg.field import FixedPoint, bits_needed

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

_MOST_PRECISION = 32


@dataclass(frozen=True)
class Plan:
    """What every party knows beforehand: how vectors become slots that no sum can overflow.

    Attributes:
        num_values: ``d``.
        num_clients: ``n``, how many vectors are added at most.
        clip: every value lies in ``[−clip, clip]``.
        precision: bits of one client's value with its sign: ``L ≥ 2^(precision−1) − 1`` levels.
        noise_room: the largest absolute noise that is added under encryption, in steps.

    Raises ``ValueError`` for options outside their range, or slots wider than 58 bits.
    """

    num_values: int
    num_clients: int
    clip: float
    precision: int = 16
    noise_room: int = 0

    def __post_init__(self) -> None:
        if self.num_values < 1:
            raise ValueError(f"num_values={self.num_values} must be at least 1")
        if not 2 <= self.precision <= _MOST_PRECISION:
            raise ValueError(
                f"precision={self.precision} must lie in 2 to {_MOST_PRECISION}: bits of one value"
            )
        if self.noise_room < 0:
            raise ValueError(f"noise_room={self.noise_room} must be 0 or more")
        _ = self.codec  # refuses a bad clip or number of clients
        if self.slot_bits > 58:
            raise ValueError(
                f"precision={self.precision} for {self.num_clients} clients and noise of "
                f"{self.noise_room} steps needs {self.slot_bits} bits a value, more than 58: "
                "lower the precision"
            )

    @property
    def codec(self) -> FixedPoint:
        """Reals ↔ whole numbers of at most ``level``."""
        bits = max(bits_needed(2 ** (self.precision - 1) - 1, self.num_clients), 8)
        return FixedPoint(self.clip, self.num_clients, min(bits, 64))

    @property
    def bound(self) -> int:
        """``n·L + noise_room``: no sum is larger."""
        return self.num_clients * self.codec.level + self.noise_room

    @property
    def slot_bits(self) -> int:
        """Bits that hold any sum, whatever its sign."""
        return (2 * self.bound).bit_length()


class PublicPart(Protocol):
    """What the adder holds: it can encrypt and add, and read nothing."""

    def encrypt(self, values: Integers, offset: int) -> list[bytes]: ...
    def add(self, messages: Sequence[list[bytes]]) -> list[bytes]: ...
    def check(self, blobs: Sequence[bytes]) -> None: ...


class Holder(PublicPart, Protocol):
    """What a client holds: the secret key too."""

    public: bytes

    def decrypt(self, blobs: Sequence[bytes], offset: int) -> Reals: ...


def library(name: str) -> Any:
    """Import ``phe`` or ``tenseal``; ``ImportError`` names the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"homomorphic encryption needs {name}: pip install {name} (or flcourse[he])"
        ) from error
