"""Make the stored result `secagg_costs`: seconds of a secure sum against clients and entries.

    python data_scripts/make_secagg_costs.py

Whole rounds on one core, timed by the processor's clock (so other programs do not count): one
client's five steps together (the median over those that stay), and the server's. A tenth of the
clients vanish after they have handed out their shares, which is the work that the server has most
of. Every pair has a mask, or each client shares masks with 100 neighbours; words of 32 bits.
About four minutes. Chapter 13 shows it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flcourse.claims import save_stored
from flcourse.secagg import secure_sum

SEEDS, NEIGHBOURS, ENTRIES, FEW = (0, 1, 2), 100, 100_000, 30
# graph -> sizes [n, d]; past 300 clients all pairs take minutes
BY_CLIENTS = {
    "all pairs": tuple((n, ENTRIES) for n in (10, 30, 100, 300)),
    "neighbours": tuple((n, ENTRIES) for n in (300, 1000)),
}
BY_ENTRIES = tuple((FEW, d) for d in (1_000, 10_000, 1_000_000))


def cell(graph: str, clients: int, entries: int, seed: int) -> dict[str, float]:
    """One verified round: CPU seconds of a client and of the server, bytes that a client sends."""
    draws = np.random.default_rng(seed)
    rows = draws.uniform(-1, 1, (clients, entries)).astype(np.float32)
    gone = sorted(draws.choice(clients, clients // 10, replace=False).tolist())
    stay = sorted(set(range(clients)) - set(gone))
    found = secure_sum(
        rows, clip=1.0, dropouts={"masked_input": gone},
        neighbours=NEIGHBOURS if graph == "neighbours" else None,
    )  # fmt: skip
    off = np.abs(found.total - rows[stay].sum(axis=0, dtype=np.float64)).max()
    if list(found.survivors) != stay or off > found.error_bound:
        raise AssertionError(f"the sum of {clients} clients is off by {off}")
    return {
        "client": float(np.median(found.seconds.client[:, stay].sum(axis=0))),
        "server": float(found.seconds.server.sum()),
        "bytes": int(found.bytes.up.max()),
    }


def cells() -> list[tuple[str, int, int]]:
    """What is measured: (graph, clients, entries)."""
    by_clients = [(graph, *size) for graph, sizes in BY_CLIENTS.items() for size in sizes]
    return by_clients + [("all pairs", *size) for size in BY_ENTRIES]


def main() -> None:
    cell("all pairs", 10, 1000, 0)  # tables and libraries are loaded
    results: dict[str, Any] = {}
    for graph, clients, entries in cells():
        runs = [cell(graph, clients, entries, seed) for seed in SEEDS]
        name = f"{graph}, n={clients}, d={entries}"
        results[name] = {key: [run[key] for run in runs] for key in ("client", "server")}
        results[name]["bytes"] = runs[0]["bytes"]
        print(name, results[name], flush=True)
    config = {"seeds": list(SEEDS), "neighbours": NEIGHBOURS, "vanish": 0.1, "bits": 32}
    print(save_stored("secagg_costs", config=config, results=results))


if __name__ == "__main__":
    main()
