"""Rules against liars beside byzfl, and Bulyan beside Flower's: speed, memory, and equal results.

    benchmarks/make_byzfl_env.sh && benchmarks/make_flower_env.sh # once, two minutes each
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.byzantine    # six minutes; --tiny: a check

Both sides get the same rows in one process and take turns (`byzfl_peer.py`,
`flower_bulyan_peer.py`, each in the library's own environment, with the same torch and numpy). The
results are compared with each other and with `byzantine_oracles.py`; what differs must be what is
explained, or the script fails. Writes results/byzantine.json.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flcourse import byzantine as rules
from flcourse.runtime import generator, provenance

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "byzantine.json"
MARK = "@peer "
PEERS = {"byzfl": "byzfl_peer", "flower": "flower_bulyan_peer"}
SPREAD = 0.01  # of an honest client's update around the common step, which is as long


class Setting(NamedTuple):
    """How many rows of how many entries, how many of them lie, how often each rule runs."""

    clients: int = 50
    liars: int = 11
    entries: int = 10**6
    turns: int = 7
    draws: int = 200  # small matrices on which choices are compared with brute force


TINY = Setting(entries=5_000, turns=2, draws=10)


class Case(NamedTuple):
    """A rule, and what it is to reach: times faster, at most so many copies of the matrix."""

    ours: Callable[[Tensor, int], Tensor]
    times: float
    copies: float


def clip_norm(entries: int) -> float:
    """Cuts the liars and the noisier half of the honest."""
    return 1.5 * SPREAD * entries**0.5


def _clipping(iterations: int) -> Callable[[Tensor, int], Tensor]:
    def rule(rows: Tensor, liars: int) -> Tensor:
        bound, start = clip_norm(rows.shape[1]), torch.zeros_like(rows[0])
        return rules.centered_clipping(rows, bound, start, iterations=iterations)

    return rule


def _mixed(rows: Tensor, liars: int) -> Tensor:
    return rules.trimmed_mean(rules.nearest_neighbour_mixing(rows, liars), liars)


CASES = {
    "Krum": Case(rules.krum, 3, 0.2),
    "multi-Krum": Case(rules.multi_krum, 3, 0.2),
    "median": Case(lambda rows, f: rules.coordinate_median(rows), 6, 0.2),
    "trimmed mean": Case(rules.trimmed_mean, 8, 0.2),
    "geometric median": Case(lambda rows, f: rules.geometric_median(rows), 4, 0.2),
    "centred clipping, 1 step": Case(_clipping(1), 3, 0.2),
    "centred clipping, 3 steps": Case(_clipping(3), 3, 0.2),
    "mixing, trimmed mean": Case(_mixed, 20, 1.2),
}
BULYAN = Case(rules.bulyan, 2, 1.2)


def updates(setting: Setting, seed: int = 0) -> Tensor:
    """A common step, honest rows around it with unequal spreads, liars who send it back ×5.

    Made in place: `[n, d]`, float32, and never a second matrix.
    """
    draws = generator(seed, "byzantine benchmark")
    spread = SPREAD * (0.5 + torch.rand(setting.clients, 1, generator=draws))
    step = SPREAD * torch.randn(setting.entries, generator=draws)
    rows = torch.empty(setting.clients, setting.entries).normal_(generator=draws)
    rows.mul_(spread).add_(step)
    rows[: setting.liars].mul_(-5)
    return rows


# --- what a peer does, in its own environment ------------------------------------------------


def take_turns(
    competitors: Mapping[str, Callable[[], object]], turns: int
) -> dict[str, list[float]]:
    """CPU milliseconds of each, turn by turn, another one first each time; turn 0 warms up."""
    took: dict[str, list[float]] = {name: [] for name in competitors}
    names = list(competitors)
    for turn in range(turns + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            competitors[name]()
            took[name].append(1000 * (time.process_time() - start))
    return {name: values[1:] for name, values in took.items()}


def compared(took: Mapping[str, list[float]], ours: str, theirs: str) -> dict[str, Any]:
    """The median ratio of two competitors, formed within a turn, with the least and the most."""
    ratios = [b / a for a, b in zip(took[ours], took[theirs], strict=True)]
    return {"times faster": statistics.median(ratios), "least and most": [min(ratios), max(ratios)]}


def extra_copies(function: Callable[[Tensor], object], rows: Tensor) -> float:
    """Memory that a call takes at its peak, its result included, in copies of the matrix.

    Measured in a process of its own, split off here: pages that a process holds already and uses
    again do not count.
    """
    with multiprocessing.get_context("fork").Pool(1, _measured, (function, rows)) as pool:
        return pool.apply(_extra_copies)


_given: list[Any] = []  # what the split-off process measures: functions do not travel otherwise


def _measured(*given: Any) -> None:
    _given[:] = given


def _extra_copies() -> float:
    function, rows = _given
    function(rows[:, :2000].clone())  # loads what a library loads once
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _peak()
    function(rows)
    return (_peak() - before) / (rows.numel() * rows.element_size())


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def answer(peer: Mapping[str, Callable[[Setting], Any]]) -> None:
    """The main of a peer: every part for the setting asked for, as JSON after `MARK`."""
    torch.set_num_threads(1)
    setting = Setting(*json.loads(sys.argv[1]))
    found = {name: part(setting) for name, part in peer.items()}
    print(MARK + json.dumps(found), flush=True)


def judged(
    case: Case, took: Mapping[str, list[float]], theirs: str, memory: Mapping[str, float]
) -> dict[str, Any]:
    """The row of a rule: milliseconds, ratio and memory, beside what it is to reach."""
    ratio = compared(took, "ours", theirs)
    others = {
        f"beside {name}": compared(took, "ours", name)
        for name in took
        if name.startswith(f"{theirs}, ")
    }
    return {
        "CPU milliseconds": {name: statistics.median(values) for name, values in took.items()},
        **ratio,
        **others,
        "extra memory, copies": memory,
        "aim": {"times faster": case.times, "copies": case.copies},
        "reached": ratio["times faster"] >= case.times and memory["ours"] <= case.copies,
    }


# --- asking them ------------------------------------------------------------------------------


def ask(environment: str, module: str, setting: Setting, limit: float) -> Any:
    """What a peer answers; it runs in `.venv-ENVIRONMENT`, where our code is the same."""
    python = ROOT / f".venv-{environment}" / "bin" / "python"
    process = subprocess.run(
        [str(python), "-m", f"benchmarks.{module}", json.dumps(setting)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=limit, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                          "OPENBLAS_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
    )  # fmt: skip
    line = next(x for x in process.stdout.splitlines() if x.startswith(MARK))
    return json.loads(line[len(MARK) :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes; nothing is stored")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a peer gets")
    chosen = parser.parse_args()
    setting, source = TINY if chosen.tiny else Setting(), provenance()
    found: dict[str, Any] = {"setting": setting._asdict()}
    for library, peer in PEERS.items():
        if not (ROOT / f".venv-{library}").exists():
            sys.exit(f"benchmarks/make_{library}_env.sh makes .venv-{library}, which is missing")
        found[library] = ask(library, peer, setting, chosen.limit)
        print(library, json.dumps(found[library], indent=1), flush=True)
    if not chosen.tiny:
        content = {"found": found, "provenance": source}
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
