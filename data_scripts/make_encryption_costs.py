"""Make the stored result `encryption_costs`: what encrypting a 1.1 M-parameter update takes.

    python data_scripts/make_encryption_costs.py

Each scheme encrypts updates of a few sizes, adds those of five clients and decrypts the sum, on one
core, timed by the processor's clock (so other programs do not count). Schemes that are too slow for
the whole update are extrapolated from the largest size, in proportion, and marked. Masks
(chapter 13) stand beside them: one client's masked row in a complete graph, as many bits a value.
About a minute. Chapter 14 shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from flcourse.claims import save_stored
from flcourse.secagg.ciphers import Plan
from flcourse.secagg.field import pack
from flcourse.secagg.homomorphic import Adder, KeyHolder
from flcourse.secagg.masking import add_masks

PARAMETERS, CLIENTS, PRECISION, CLIP, SEED = 1_100_000, 5, 16, 1.0, 0
LARGE = {"ring": 8192, "moduli": (60, 40, 40, 60), "scale_bits": 40}
# name -> scheme, options, sizes that are measured
SCHEMES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "Paillier, one by one": ("paillier", {"packed": False}, (50, 200)),
    "Paillier": ("paillier", {}, (1_000, 5_000)),
    "Paillier, 3072 bits": ("paillier", {"key_bits": 3072}, (1_000, 3_000)),
    "BFV": ("bfv", {}, (100_000, PARAMETERS)),
    "CKKS": ("ckks", {}, (100_000, PARAMETERS)),
    "CKKS, 8192": ("ckks", LARGE, (100_000, PARAMETERS)),
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the processor's seconds that it took."""
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def rows(size: int) -> np.ndarray:
    """Updates of five clients, `[5, size]`."""
    return np.random.default_rng(SEED).uniform(-CLIP, CLIP, (CLIENTS, size))


def measured(name: str, size: int) -> dict[str, float]:
    """Seconds of one client and of the server, bytes that a client sends, the sum's worst error."""
    scheme, options, _ = SCHEMES[name]
    plan, values = Plan(size, CLIENTS, CLIP, PRECISION), rows(size)
    holder, keys = timed(lambda: KeyHolder(plan, scheme, **options))
    adder = Adder(plan, scheme, holder.public, **options)
    messages, encrypt = timed(lambda: [holder.encrypt(row) for row in values])
    answer, add = timed(lambda: adder.add(messages))
    total, decrypt = timed(lambda: holder.decrypt(answer))
    return {
        "values": size,
        "keys": keys,
        "encrypt": encrypt / CLIENTS,
        "add": add,
        "decrypt": decrypt,
        "bytes": len(messages[0]),
        "error": float(np.abs(total - values.sum(axis=0)).max()),
    }


def masked(size: int) -> dict[str, float]:
    """The same for masks: fixed point, a mask for each of four neighbours and oneself, packed."""
    codec = Plan(size, CLIENTS, CLIP, PRECISION).codec
    values = rows(size)[0]
    seeds = [bytes([i] * 32) for i in range(CLIENTS)]

    def work() -> bytes:
        words = codec.encode(values)
        add_masks(words, [(seed, 1) for seed in seeds])
        return pack(words, codec.bits)

    sent, encrypt = timed(work)
    return {"values": size, "encrypt": encrypt, "bytes": len(sent)}


def whole(parts: list[dict[str, float]]) -> dict[str, Any]:
    """The largest measured size, in proportion up to the whole update where that is larger."""
    last = parts[-1]
    factor = PARAMETERS / last["values"]
    scaled = {key: last[key] * factor for key in ("encrypt", "add", "decrypt", "bytes")}
    return {**scaled, "extrapolated": factor > 1, "error": last["error"]}


def main() -> None:
    results: dict[str, Any] = {}
    for name, (_, _, sizes) in SCHEMES.items():
        parts = [measured(name, size) for size in sizes]
        results[name] = {"measured": parts, "update": whole(parts)}
        print(name, results[name]["update"], flush=True)
    masks = masked(PARAMETERS)
    results["masks"] = {"measured": [masks], "update": {**masks, "extrapolated": False}}
    config = {
        "seed": SEED, "parameters": PARAMETERS, "clients": CLIENTS, "precision": PRECISION,
        "clip": CLIP, "schemes": {name: list(spec) for name, spec in SCHEMES.items()},
    }  # fmt: skip
    print(save_stored("encryption_costs", config=config, results=results))


if __name__ == "__main__":
    main()
