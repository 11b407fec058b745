"""What do sums under encryption cost? Paillier, BFV and CKKS: seconds, bytes and error.

    OMP_NUM_THREADS=1 python -m benchmarks.homomorphic          # about six minutes; --tiny

Each scheme adds the vectors of some clients; the decrypted sum is compared with the plain one and
must be within its bound, or the script fails. Seconds are CPU seconds of one thread. Numbers for
the 1.1 million parameters of an update are extrapolated in proportion to the values, and marked so;
BFV and CKKS are also measured there. Writes results/homomorphic.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flcourse.runtime import provenance
from flcourse.secagg.ciphers import Plan, library
from flcourse.secagg.homomorphic import Adder, KeyHolder
from flcourse.secagg.lattice import CKKS_8192, CKKS_8192_LARGE, CKKS_ADDITIONS

RESULT = Path(__file__).resolve().parent / "results" / "homomorphic.json"
UPDATE = 1_100_000  # parameters
CLIP, PRECISION = 1.0, 16
CKKS_ERROR = 2.0**-14  # of clip and client, at most: the worst set here is at about 2^-17


class Case(NamedTuple):
    """One row of the table."""

    name: str
    scheme: str
    num_values: int
    num_clients: int
    options: dict[str, Any]


def ckks(setting: tuple[int, tuple[int, ...], int]) -> dict[str, Any]:
    return dict(zip(("ring", "moduli", "scale_bits"), setting, strict=True))


CASES = (
    Case("Paillier 2048, a value each", "paillier", 1_000, 2, {"key_bits": 2048, "packed": False}),
    Case("Paillier 2048, packed", "paillier", 10_000, 3, {"key_bits": 2048}),
    Case("Paillier 3072, packed", "paillier", 10_000, 3, {"key_bits": 3072}),
    Case("BFV 4096", "bfv", 100_000, 5, {}),
    Case("CKKS 4096 [60, 49]", "ckks", 100_000, 5, ckks(CKKS_ADDITIONS)),
    Case("CKKS 8192 [50, 30, 50]", "ckks", 100_000, 5, ckks(CKKS_8192)),
    Case("CKKS 8192 [60, 40, 40, 60]", "ckks", 100_000, 5, ckks(CKKS_8192_LARGE)),
)
TINY = {"paillier": (40, {"key_bits": 512}), "bfv": (5000, {}), "ckks": (5000, {})}


def measure(case: Case, seed: int = 0) -> dict[str, Any]:
    """One sum: CPU seconds of each part, bytes a value, the largest error beside its bound."""
    rng = np.random.default_rng(seed)
    rows = rng.uniform(-CLIP, CLIP, (case.num_clients, case.num_values))
    plan = Plan(case.num_values, case.num_clients, CLIP, PRECISION)
    clock = [time.process_time()]
    holder = KeyHolder(plan, case.scheme, **case.options)
    adder = Adder(plan, case.scheme, holder.public, **case.options)
    clock.append(time.process_time())
    messages = [holder.encrypt(row) for row in rows]
    clock.append(time.process_time())
    answer = adder.add(messages)
    clock.append(time.process_time())
    total = holder.decrypt(answer)
    clock.append(time.process_time())
    keys, encrypt, add, decrypt = np.diff(clock).tolist()
    error = float(np.abs(total - rows.sum(axis=0)).max())
    rounded = plan.codec.decode(plan.codec.encode(rows)).sum(axis=0)
    bound = plan.codec.error_bound() + (case.scheme == "ckks") * CKKS_ERROR * case.num_clients
    if not error <= bound:
        raise AssertionError(f"{case.name}: error {error:g} above its bound {bound:g}")
    return {
        "name": case.name,
        "scheme": case.scheme,
        "num_values": case.num_values,
        "num_clients": case.num_clients,
        "options": case.options,
        "keys_seconds": keys,
        "encrypt_seconds_a_client": encrypt / case.num_clients,
        "add_seconds_a_message": add / case.num_clients,
        "decrypt_seconds": decrypt,
        "bytes_a_value_up": len(messages[0]) / case.num_values,
        "bytes_a_value_down": len(answer) / case.num_values,
        "times_float32": len(messages[0]) / case.num_values / 4,
        "error": error,
        "error_bound": bound,
        "error_of_the_cipher": float(np.abs(total - rounded).max()),
        "exact_in_fixed_point": case.scheme != "ckks",
    }


def extrapolated(found: dict[str, Any], values: int = UPDATE) -> dict[str, Any]:
    """The same for ``values`` values, in proportion: not measured."""
    times = values / found["num_values"]
    names = ("encrypt_seconds_a_client", "add_seconds_a_message", "decrypt_seconds")
    return {
        "extrapolated": True,
        "from_values": found["num_values"],
        "num_values": values,
        **{name: times * found[name] for name in names},
        "megabytes_up": values * found["bytes_a_value_up"] / 1e6,
        "megabytes_down": values * found["bytes_a_value_down"] / 1e6,
    }


def library_beside_ours(key_bits: int, count: int) -> dict[str, Any]:
    """python-paillier's encryption of a number, and ours by CRT, in turns: CPU time."""
    plan = Plan(count, 2, CLIP, PRECISION)
    holder = KeyHolder(plan, "paillier", key_bits=key_bits, packed=False)
    cipher: Any = holder._cipher
    theirs, ours = [], []
    for number in range(count):
        start = time.process_time()
        cipher.key.raw_encrypt(number)
        middle = time.process_time()
        cipher._encrypted(number)
        theirs.append(middle - start)
        ours.append(time.process_time() - middle)
    ratios = np.divide(theirs, ours)
    return {
        "key_bits": key_bits,
        "gmpy2": library("phe").util.HAVE_GMP,
        "python_paillier_ms": 1e3 * float(np.median(theirs)),
        "ours_ms": 1e3 * float(np.median(ours)),
        "ratio_median": float(np.median(ratios)),
        "ratio_least": float(ratios.min()),
        "ratio_most": float(ratios.max()),
    }


def tiny(case: Case) -> Case:
    values, options = TINY[case.scheme]
    return case._replace(num_values=values, options=case.options | options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="does it run? Writes nothing")
    small = parser.parse_args().tiny
    rows = []
    for case in CASES:
        found = measure(tiny(case) if small else case)
        found["update"] = extrapolated(found)
        if case.scheme != "paillier" and not small:
            whole = measure(case._replace(num_values=UPDATE, num_clients=2))
            found["update_measured"] = whole | {"extrapolated": False}
        rows.append(found)
        print(
            f"{found['name']:<28} {found['encrypt_seconds_a_client']:9.3f} s a client at "
            f"{found['num_values']:,}, {found['bytes_a_value_up']:6.2f} bytes a value, error "
            f"{found['error']:.1e}; {UPDATE:,} extrapolated: "
            f"{found['update']['encrypt_seconds_a_client']:.4g} s, "
            f"{found['update']['megabytes_up']:.4g} MB",
            flush=True,
        )
    beside = library_beside_ours(512 if small else 2048, 5 if small else 40)
    print(beside)
    if not small:
        versions = {name: metadata.version(name) for name in ("phe", "tenseal")}
        content = {"clip": CLIP, "precision": PRECISION, "versions": versions, "rows": rows,
                   "paillier_by_crt": beside, "provenance": provenance()}  # fmt: skip
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
