"""A whole round in one call: clients and server in one process, exchanging nothing but bytes.

    result = secure_sum(rows, clip=1.0, neighbours=100, dropouts={"masked_input": [3, 7]})
    result.total, result.survivors               # the sum [d] of those still in it

Chapter 13.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flcourse.fedavg import Aggregate
from flcourse.secagg.client import Client
from flcourse.secagg.errors import ProtocolError
from flcourse.secagg.field import FixedPoint, RandomBytes, Words, as_reals, word_type
from flcourse.secagg.server import Server
from flcourse.secagg.setup import STAGES, Setup, directory, new_identities

Dropouts = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Sent:
    """One message of a round: ``sender`` and ``receiver`` are client indices, −1 is the server.

    ``content`` holds the bytes where ``secure_sum`` was asked to keep them, else None.
    """

    stage: str
    sender: int
    receiver: int
    size: int
    content: bytes | None = None


@dataclass
class Traffic:
    """Bytes of each client over the round, ``[n]``: sent (``up``) and received (``down``)."""

    up: NDArray[np.int64]
    down: NDArray[np.int64]


@dataclass
class Seconds:
    """CPU seconds of each stage: ``client`` ``[5, n]``, ``server`` ``[5]``, which ends unmasked."""

    client: NDArray[np.float64]
    server: NDArray[np.float64]

    @property
    def total(self) -> float:
        """All clients and the server, one after the other."""
        return float(self.client.sum() + self.server.sum())


@dataclass(frozen=True)
class SecureSum:
    """What the server knows after a round, and what it cost.

    Attributes:
        total: the sum of the survivors' vectors, float64 ``[d]`` (a tensor if tensors came in).
        survivors: sorted indices of the clients whose vectors are in the total.
        bytes: what each client sent and received.
        seconds: what each client and the server took.
        transcript: every message, in order.
        error_bound: how far an entry of ``total`` may be from the exact sum, by rounding.
    """

    total: Any
    survivors: tuple[int, ...]
    bytes: Traffic
    seconds: Seconds
    transcript: tuple[Sent, ...]
    error_bound: float


@dataclass
class Run:
    """A round on words: the total modulo ``2^bits``, and the records that ``SecureSum`` has."""

    total: Words
    survivors: tuple[int, ...]
    bytes: Traffic
    seconds: Seconds
    transcript: list[Sent] = field(default_factory=list)


def secure_sum(
    vectors: object,
    *,
    clip: float,
    bits: int = 32,
    threshold: int | None = None,
    neighbours: int | None = None,
    dropouts: Dropouts | None = None,
    rounding: str = "nearest",
    keep: bool = False,
    random_bytes: RandomBytes = os.urandom,
) -> SecureSum:
    """``Σ_{i survives} vectors_i``, of which the server sees only masked terms: ``[n, d] -> [d]``.

    Args:
        vectors: ``[n, d]``, numpy or torch.
        clip: the range of every value is ``[−clip, clip]``.
        bits: log2 of the modulus, 8 to 64.
        threshold: of the clients that hold shares of a secret, how many open it; ``⌊2h/3⌋ + 1``.
        neighbours: clients that each shares masks with (even); None: all others.
        dropouts: stage → clients that vanish before sending in it: "advertise_keys", "share_keys",
            "masked_input", "consistency_check", "unmasking" (from the fourth on they are in the
            sum).
        rounding: of the fixed point, "nearest" or "stochastic" (drawn from ``random_bytes``).
        keep: whether the transcript holds the messages themselves.

    Source: Bonawitz et al. 2017, Figure 4; Bell et al. 2020, Algorithm 2. Chapter 13.
    Raises ``ValueError`` for a value beyond ``clip``, NaN or infinite, with its index, and options
    outside their range; ``AbortError`` where too many clients vanish: then nothing was opened.
    """
    rows = as_reals(vectors)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"expected vectors [n, d], got shape {list(rows.shape)}")
    codec = FixedPoint(clip, len(rows), bits, rounding)
    run = run_round(
        codec.encode(rows, random_bytes), bits=bits, threshold=threshold, neighbours=neighbours,
        dropouts=dropouts, keep=keep,
    )  # fmt: skip
    total: Any = codec.decode(run.total)
    return SecureSum(
        torch.from_numpy(total) if isinstance(vectors, Tensor) else total,
        run.survivors,
        run.bytes,
        run.seconds,
        tuple(run.transcript),
        codec.error_bound(len(run.survivors)),
    )


def run_round(
    words: Words,
    *,
    bits: int = 32,
    threshold: int | None = None,
    neighbours: int | None = None,
    dropouts: Dropouts | None = None,
    keep: bool = False,
) -> Run:
    """The protocol on words ``[n, d]`` that are encoded already; the total is modulo ``2^bits``.

    Raises as ``secure_sum`` does.
    """
    words = np.ascontiguousarray(words, word_type(bits))
    gone = _checked_dropouts(dropouts or {}, len(words))
    identities = new_identities(len(words))
    setup = Setup(directory(identities), words.shape[1], bits, neighbours, threshold)
    clients = [Client(setup, i, row, identities[i]) for i, row in enumerate(words)]
    return _drive(clients, Server(setup), gone, keep)


def _drive(clients: list[Client], server: Server, gone: Mapping[int, str], keep: bool) -> Run:
    """Five times: those that are left answer, the server takes it and replies."""
    size = len(clients)
    traffic = Traffic(np.zeros(size, np.int64), np.zeros(size, np.int64))
    seconds = Seconds(np.zeros((len(STAGES), size)), np.zeros(len(STAGES)))
    sent: list[Sent] = []
    inbox: dict[int, bytes] = dict.fromkeys(range(size), b"")
    for number, stage in enumerate(STAGES):
        for index, message in inbox.items():
            if STAGES.index(gone.get(index, STAGES[-1])) <= number and index in gone:
                continue
            start = time.process_time()
            answer = _answer(clients[index], stage, message)
            middle = time.process_time()
            seconds.client[number, index] = middle - start
            if answer is None:
                continue
            server.receive(answer)
            seconds.server[number] += time.process_time() - middle
            traffic.up[index] += len(answer)
            sent.append(Sent(stage, index, -1, len(answer), answer if keep else None))
        start = time.process_time()
        inbox = server.advance()
        seconds.server[number] += time.process_time() - start
        for index, message in inbox.items():
            traffic.down[index] += len(message)
            sent.append(Sent(stage, -1, index, len(message), message if keep else None))
    start = time.process_time()
    total = server.total()
    seconds.server[-1] += time.process_time() - start
    return Run(total, server.survivors, traffic, seconds, sent)


def _answer(client: Client, stage: str, message: bytes) -> bytes | None:
    """What the client sends; None where it gives up (too few of its neighbours are left)."""
    step = getattr(client, stage)
    try:
        answer: bytes = step(message) if message else step()
    except ProtocolError:
        return None
    return answer


def _checked_dropouts(dropouts: Dropouts, num_clients: int) -> dict[int, str]:
    """Client → the stage before which it vanishes."""
    gone: dict[int, str] = {}
    for stage, indices in dropouts.items():
        if stage not in STAGES:
            raise ValueError(f"dropouts at {stage!r}: the stages are {', '.join(STAGES)}")
        for index in indices:
            if not 0 <= index < num_clients:
                raise ValueError(f"client {index} cannot drop out: there are {num_clients}")
            if index in gone:
                raise ValueError(f"client {index} drops out twice: at {gone[index]} and {stage}")
            gone[int(index)] = stage
    return gone


# --- in the training loop -----------------------------------------------------------------------


def as_aggregate(
    *,
    clip: float,
    max_weight: float,
    bits: int = 32,
    threshold: int | None = None,
    neighbours: int | None = None,
    dropouts: Dropouts | None = None,
    on_sum: Callable[[SecureSum], object] | None = None,
) -> Aggregate:
    """A weighted mean for ``fedavg.train`` of which the server sees only sums.

    Client ``i`` sends ``(w_i/W)·(row_i, clip)`` with ``W = max_weight``: the last entry carries its
    weight inside the masked vector, so the server learns ``Σ w_i·row_i`` and ``Σ w_i`` of the
    survivors, and no client's sample count. ``on_sum`` is called with each round's ``SecureSum``.

    Source: McMahan et al. 2017, Algorithm 1, on Bonawitz et al. 2017. Chapter 13.
    Raises ``ValueError`` as ``secure_sum`` does, and for weights outside ``[0, max_weight]`` or
    with sum zero; ``AbortError`` where too many clients vanish.
    """
    if not max_weight > 0:
        raise ValueError(f"max_weight={max_weight} must be positive: the most samples of a client")
    options: dict[str, Any] = {"clip": clip, "bits": bits, "threshold": threshold}
    options |= {"neighbours": neighbours, "dropouts": dropouts}

    def secure_mean(rows: Tensor, weights: Tensor) -> Tensor:
        if not bool(((weights >= 0) & (weights <= max_weight)).all()):
            raise ValueError(
                f"the weights {weights.tolist()} must lie in [0, max_weight={max_weight}]"
            )
        values = rows.detach().cpu()
        _check_range(values, clip)
        # Checked above; what is cut is float32's rounding of clip, as in FixedPoint.limit.
        parts = (weights.detach().cpu().double() / max_weight)[:, None]
        ends = torch.full((len(values), 1), float(clip), dtype=torch.float64)
        weighted = parts * torch.cat([values.double().clamp(-clip, clip), ends], dim=1)
        result = secure_sum(weighted, **options)
        if on_sum is not None:
            on_sum(result)
        share = result.total[-1] / clip
        if not share > result.error_bound / clip:
            raise ValueError("the survivors' weights sum to zero: there is no mean")
        return (result.total[:-1] / share).to(rows)

    return secure_mean


def _check_range(values: Tensor, clip: float) -> None:
    """As ``FixedPoint.encode``: before weights make small what was too large."""
    FixedPoint(clip, 1, 64).encode(values)
