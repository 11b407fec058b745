"""Secure aggregation: masks beside the raw cipher, a round beside Flower's SecAgg+, large rounds.

    benchmarks/make_flower_env.sh                            # once, about two minutes
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.secagg  # six minutes; --tiny: does it run?

Every sum is verified against the plain one, within the bound that the fixed point promises. Seconds
of clients and servers are CPU seconds; ratios are formed in one run. Our clients sign, and check
signatures and survivor lists; Flower's do not. Writes results/secagg.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from flcourse.runtime import provenance
from flcourse.secagg import (
    STAGES,
    FixedPoint,
    SecureSum,
    add_masks,
    new_identities,
    secure_sum,
    upload_bytes,
)
from flcourse.secagg import messages as wire
from flcourse.secagg.masking import BLOCK_BYTES
from flcourse.secagg.messages import Kind
from flcourse.secagg.shamir import (
    PRIME,
    combine_many,
    combine_plain,
    lagrange_weights,
    split_many,
    split_plain,
)

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "secagg.json"
FLOWER = ROOT / ".venv-flower" / "bin" / "python"
MARK = "@peer "  # as in flower_secagg_peer.py, which cannot be imported without Flower
# clients, neighbours, entries: a tenth of the clients drops out after sharing its keys
ROUNDS = ((1000, 100, 100_000), (500, None, 100_000))


def timed(function: Callable[[], Any]) -> float:
    """CPU milliseconds of one call."""
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


# --- masks --------------------------------------------------------------------------------------


def cipher_stream(num_bytes: int, seed: bytes = b"k" * 32) -> None:
    """The raw figure: AES-256-CTR over a block that stays in the cache, into a buffer that does."""
    size = min(BLOCK_BYTES, num_bytes)
    zeros, stream = bytes(size), bytearray(size + 16)
    cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    for _ in range(num_bytes // size):
        cipher.update_into(zeros, stream)


def masking(length: int, neighbours: int, turns: int) -> dict[str, Any]:
    """Masks of all neighbours added to a vector, beside the raw stream over the same bytes."""
    seeds = [(bytes([i % 256]) * 32, 1 if i % 2 else -1) for i in range(neighbours)]
    total = np.zeros(length, np.uint32)
    rows = []
    for _ in range(turns + 1):
        ours = timed(lambda: add_masks(total, seeds))
        rows.append((ours, timed(lambda: cipher_stream(4 * length * neighbours))))
    shares = [raw / ours for ours, raw in rows[1:]]
    return {
        "length": length,
        "neighbours": neighbours,
        "milliseconds": statistics.median(ours for ours, _ in rows[1:]),
        "raw stream, milliseconds": statistics.median(raw for _, raw in rows[1:]),
        "share of the raw stream": statistics.median(shares),
        "least and most": [min(shares), max(shares)],
        "peak bytes beyond the vector": {str(k): _peak(length, k) for k in (2, neighbours)},
    }


def _peak(length: int, neighbours: int) -> int:
    total = np.zeros(length, np.uint32)
    tracemalloc.start()
    add_masks(total, ((bytes([i % 256]) * 32, 1) for i in range(neighbours)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# --- shares -------------------------------------------------------------------------------------


def sharing(num_clients: int, turns: int = 5) -> dict[str, Any]:
    """One secret of 32 bytes split and combined at ⌊2n/3⌋ + 1, beside plain Python integers."""
    threshold, points = 2 * num_clients // 3 + 1, range(1, num_clients + 1)
    secret = bytes(range(32))
    shares = split_many([secret], threshold, points)
    kept, values = points[-threshold:], shares[-threshold:]
    assert combine_many(kept, values, 32) == [secret]
    limbs = np.frombuffer(secret, "<u2").tolist()
    plain = [split_plain(limb, threshold, num_clients, PRIME) for limb in limbs[:1]]
    assert combine_plain({x: plain[0][x] for x in kept}, PRIME) == limbs[0]
    many = np.repeat(values, 100, axis=1)

    def median(function: Callable[[], Any]) -> float:
        return statistics.median(timed(function) for _ in range(turns))

    weights = median(lambda: lagrange_weights(kept))
    return {
        "clients": num_clients,
        "threshold": threshold,
        "split, milliseconds": median(lambda: split_many([secret], threshold, points)),
        "weights once, milliseconds": weights,
        "combine 100 secrets, milliseconds": median(lambda: combine_many(kept, many, 32)),
        "plain split of 16 limbs, milliseconds (from one)": len(limbs)
        * timed(lambda: split_plain(limbs[0], threshold, num_clients, PRIME)),
        "plain combine of 16 limbs, milliseconds (from one)": len(limbs)
        * timed(lambda: combine_plain({x: plain[0][x] for x in kept}, PRIME)),
    }


# --- whole rounds -------------------------------------------------------------------------------


def one_round(
    vectors: np.ndarray, gone: list[int], **options: Any
) -> tuple[SecureSum, dict[str, Any]]:
    """A round in which `gone` vanish before they send their vectors; the sum is verified."""
    start = time.perf_counter()
    result = secure_sum(vectors, clip=1.0, dropouts={"masked_input": gone}, **options)
    clock = time.perf_counter() - start
    alive = sorted(set(range(len(vectors))) - set(gone))
    error = float(np.abs(result.total - vectors[alive].sum(axis=0, dtype=np.float64)).max())
    if list(result.survivors) != alive or error > result.error_bound:
        raise AssertionError(f"the sum is off by {error}, allowed {result.error_bound}")
    plain = 4 * vectors.shape[1]
    return result, {
        "CPU seconds, all clients and the server": result.seconds.total,
        "clock seconds, with encoding": clock,
        "server seconds": float(result.seconds.server.sum()),
        "client milliseconds": dict(
            zip(STAGES, (1000 * np.median(result.seconds.client[:, alive], axis=1)).tolist(),
                strict=True)
        ),
        "sent over a plain uint32 vector": float(result.bytes.up.max() / plain),
        "received bytes": int(result.bytes.down.max()),
        "error": error,
        "error bound": result.error_bound,
    }  # fmt: skip


def large(num_clients: int, neighbours: int | None, length: int) -> dict[str, Any]:
    """One round of `ROUNDS`."""
    draws = np.random.default_rng(0)
    vectors = draws.uniform(-1, 1, (num_clients, length)).astype(np.float32)
    gone = sorted(draws.choice(num_clients, num_clients // 10, replace=False).tolist())
    _, record = one_round(vectors, gone, neighbours=neighbours)
    setting = {"clients": num_clients, "neighbours": neighbours or num_clients - 1}
    return setting | {"entries": length, "dropped": len(gone)} | record


def published_setting() -> dict[str, Any]:
    """Bytes over entries of 16 bits, packed to what a sum needs, as Bonawitz et al. 2017 state."""
    found = {}
    for clients, entries, stated in ((10, 20, 1.73), (14, 24, 1.98)):
        bits = 16 + clients  # a sum of 2^clients values
        sent = sum(upload_bytes(2**clients, 2**entries, bits=bits).values())
        found[f"2^{clients} clients, 2^{entries} entries"] = {
            "ours": sent / (2 * 2**entries), "floor": bits / 16, "the paper states": stated
        }  # fmt: skip
    return found


# --- beside Flower ------------------------------------------------------------------------------


def beside_flower(num_clients: int, length: int, dropped: int, limit: float) -> dict[str, Any]:
    """The same vectors, threshold and dropouts in Flower's SecAgg+ and in ours."""
    vectors = np.random.default_rng(0).uniform(-1, 1, (num_clients, length)).astype(np.float32)
    gone, threshold = list(range(1, 1 + dropped)), 2 * num_clients // 3 + 1
    request = {"clients": num_clients, "length": length, "gone": gone, "threshold": threshold}
    process = subprocess.run(
        [str(FLOWER), "-m", "benchmarks.flower_secagg_peer", json.dumps(request)],
        cwd=ROOT, capture_output=True, text=True, timeout=limit, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"},
    )  # fmt: skip
    line = next(x for x in process.stdout.splitlines() if x.startswith(MARK))
    theirs = json.loads(line[len(MARK) :])
    if theirs["error"] > 1e-4:
        raise AssertionError(f"Flower's mean is off by {theirs['error']}")
    _, ours = one_round(vectors, gone)
    quantise = statistics.median(
        timed(lambda: FixedPoint(1.0, num_clients).encode(vectors[0])) for _ in range(9)
    )
    mine = ours["client milliseconds"] | {"quantise": quantise}
    checking = signature_checks(num_clients - 1)
    flower = {stage: 1000 * statistics.median(took) for stage, took in theirs["client"].items()}
    server, their_server = ours["server seconds"], sum(theirs["server"].values())
    return request | {
        "ours, client milliseconds": mine,
        "Flower, client milliseconds": flower,
        "server seconds": {"ours": server, "Flower": their_server},
        "times faster": {
            "masked input, with quantisation": flower["masked_input"]
            / (mine["masked_input"] + quantise),
            "key sharing, signatures not checked": flower["share_keys"]
            / (mine["share_keys"] - checking),
            "key sharing, signatures checked": flower["share_keys"] / mine["share_keys"],
            "whole client": sum(flower.values()) / sum(mine.values()),
            "server": their_server / server,
        },
        "of our key sharing, checking signatures, milliseconds": checking,
    }


def parts(tiny: bool, limit: float) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    flower = (8, 1000, 1) if tiny else (40, 100_000, 4)
    rounds = ((30, 6, 1000), (20, None, 1000)) if tiny else ROUNDS
    found: dict[str, Callable[[], Any]] = {
        "masking": lambda: masking(*((10**5, 5, 3) if tiny else (10**6, 100, 15))),
        "sharing": lambda: [sharing(n) for n in ((20,) if tiny else (100, 1000))],
        "published setting": published_setting,
        "Flower": lambda: beside_flower(*flower, limit=limit),
        "sparse round": lambda: large(*rounds[0]),
        "complete round": lambda: large(*rounds[1]),
    }
    return found


def signature_checks(count: int) -> float:
    """CPU milliseconds to check the signatures of `count` clients' keys: Flower's have none."""
    identity, round_id = new_identities(1)[0], bytes(16)
    message = wire.write_signed(Kind.ADVERTISE, round_id, 0, bytes(96), identity)
    known = {0: identity.public_key().public_bytes_raw()}

    def check() -> None:
        for _ in range(count):
            wire.read_signed(message, Kind.ADVERTISE, round_id, known)

    return statistics.median(timed(check) for _ in range(9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes; nothing is stored")
    parser.add_argument("--limit", type=float, default=500, help="seconds that Flower gets")
    parser.add_argument("--only", nargs="*", help="parts to measure; the others stay as stored")
    chosen = parser.parse_args()
    start = provenance()  # before the result file changes: the tree is as it was committed
    stored = {} if chosen.tiny or not RESULT.exists() else json.loads(RESULT.read_text("utf-8"))
    for name, measure in parts(chosen.tiny, chosen.limit).items():
        if chosen.only and name not in chosen.only:
            continue
        if name == "Flower" and not FLOWER.exists():
            print(f"{name}: not measured, benchmarks/make_flower_env.sh makes {FLOWER.parent}")
            continue
        stored[name] = {"found": measure(), "provenance": start}
        print(name, json.dumps(stored[name]["found"], indent=1), flush=True)
        if not chosen.tiny:
            RESULT.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
