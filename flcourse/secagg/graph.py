"""Who shares a mask with whom: all pairs, or k neighbours for each (Bell et al. 2020). Chapter 13.

With all pairs a client works and sends in proportion to n. With k neighbours it is k, and k need
only grow with log n: chosen so that the honest clients that stay hang together, and that among any
client's neighbours neither too many are corrupt nor too many vanish.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from scipy.stats import hypergeom


@dataclass(frozen=True)
class Degree:
    """A choice of ``neighbours`` (k, even, or n − 1) and ``threshold`` (t of the k + 1 holders)."""

    neighbours: int
    threshold: int


def default_threshold(holders: int) -> int:
    """``⌊2h/3⌋ + 1`` of the ``h`` clients that hold shares of a secret."""
    return min(2 * holders // 3 + 1, holders)


def num_neighbours(num_clients: int, neighbours: int | None) -> int:
    """The degree of the graph: all others unless given; where it is below that, it must be even.

    Raises ``ValueError`` for fewer than two or an odd number of neighbours.
    """
    if neighbours is None or neighbours >= num_clients - 1:
        return num_clients - 1
    if neighbours < 2 or neighbours % 2:
        raise ValueError(
            f"neighbours={neighbours} must be even and at least 2 (half on each side of a ring), "
            "or None for all pairs"
        )
    return neighbours


def neighbour_sets(num_clients: int, neighbours: int, seed: bytes) -> list[frozenset[int]]:
    """For each client the set of its neighbours: a ring in an order that ``seed`` shuffles.

    Each is joined to the ``k/2`` next on either side (a Harary graph); ``neighbours = n − 1`` joins
    all. The order comes from SHA-256 of ``seed`` and the client, so that all can compute it.

    Source: Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
    section 3.1, Algorithm 2. Chapter 13. The proof wants a seed that the server cannot choose.
    """
    everyone = frozenset(range(num_clients))
    if num_neighbours(num_clients, neighbours) == num_clients - 1:
        return [everyone - {index} for index in range(num_clients)]
    keys = [hashlib.sha256(seed + index.to_bytes(4, "little")).digest() for index in everyone]
    ring = sorted(range(num_clients), key=keys.__getitem__)
    steps = [s for s in range(-(neighbours // 2), neighbours // 2 + 1) if s]
    sets: list[frozenset[int]] = [frozenset()] * num_clients
    for place, index in enumerate(ring):
        sets[index] = frozenset(ring[(place + s) % num_clients] for s in steps)
    return sets


def choose_neighbours(
    num_clients: int,
    *,
    dropout_rate: float,
    corrupt_rate: float,
    security_bits: int = 40,
    correctness_bits: int = 20,
) -> Degree:
    """The smallest even ``k`` and its ``t`` that fail with chance below ``2^−σ`` and ``2^−η``.

    ``X`` of a client's ``k`` neighbours are corrupt and ``Y`` stay, both hypergeometric. Security:
    ``n·P(X ≥ 2t − k − 1) ≤ 2^−σ/2``: corrupt holders cannot make up ``t`` with each of two groups
    of honest ones that were told different lists (nor hold ``t`` shares themselves); and
    ``n·(γ + δ)^(k/2) ≤ 2^−σ/2``: no ``k/2`` successive clients of the ring are all corrupt or gone
    (it takes two such runs to cut it). Correctness: ``n·P(Y < t) ≤ 2^−η``.

    Source: Bell et al. 2020, section 3.2 (there with bounds instead of exact tails). Chapter 13.
    Raises ``ValueError`` for rates outside [0, 1) or that sum to 1 or more. Where no sparse graph
    will do, the answer is the complete one with the default threshold.
    """
    if min(dropout_rate, corrupt_rate) < 0 or not dropout_rate + corrupt_rate < 1:
        raise ValueError(
            f"dropout_rate={dropout_rate} and corrupt_rate={corrupt_rate} must be at least 0 and "
            "sum to less than 1"
        )
    corrupt = math.ceil(corrupt_rate * num_clients)
    staying = num_clients - math.ceil(dropout_rate * num_clients)
    for k in range(2, num_clients - 1, 2):
        cut = num_clients * (dropout_rate + corrupt_rate) ** (k // 2)
        if cut > 2.0 ** -(security_bits + 1):
            continue
        others = num_clients - 1
        for threshold in range((k + 1) // 2 + 1, k + 1):
            leak = hypergeom.logsf(2 * threshold - k - 2, others, min(corrupt, others), k)
            fail = hypergeom.logcdf(threshold - 1, others, min(staying, others), k)
            safe = leak + math.log(num_clients) <= -(security_bits + 1) * math.log(2)
            if safe and fail + math.log(num_clients) <= -correctness_bits * math.log(2):
                return Degree(k, threshold)
    return Degree(num_clients - 1, default_threshold(num_clients))
