"""How tight and how fast is the accountant? Ours beside dp-accounting's PLD and Opacus' PRV.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.privacy_accounting    # about eight minutes

The truth lies between dp-accounting's optimistic and pessimistic PLD, on a grid of losses no wider
than q / z / 100: on 13 settings of real runs and on 90 random ones, ours must not be below the
first, nor more than 1e-3 above the second, or the script fails. Competitors take turns; ratios are
formed within a setting. Writes results/privacy_accounting.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from dp_accounting import dp_event
from dp_accounting.mechanism_calibration import LowerEndpointAndGuess, calibrate_dp_mechanism
from dp_accounting.pld import privacy_loss_distribution as peer
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from opacus.accountants import PRVAccountant

from benchmarks.fedavg_rounds import ratio
from flcourse.privacy import METHODS, epsilon, noise_multiplier
from flcourse.runtime import provenance

RESULT = Path(__file__).resolve().parent / "results" / "privacy_accounting.json"
DEFAULT = 1e-4  # dp-accounting's own width of the grid
ALLOWED = 1e-3  # how far above the pessimistic bound ours may be


class Run(NamedTuple):
    """One training run: z = σ/C, sampling rate, steps, δ."""

    z: float
    q: float
    steps: int
    delta: float

    def __str__(self) -> str:
        return f"z = {self.z:g}, q = {self.q:.3g}, T = {self.steps:,}, δ = {self.delta:.0e}"


GRID = (
    Run(1.1, 0.01, 1000, 1e-5),
    Run(1.0, 1e-3, 2000, 1e-9),
    Run(0.6, 0.01, 500, 1e-5),
    Run(0.8, 0.005, 4000, 1e-6),
    Run(1.5, 0.05, 300, 1e-5),
    Run(2.0, 0.1, 1000, 1e-6),
    Run(4.0, 0.2, 5000, 1e-7),
    Run(0.5, 0.002, 1000, 1e-5),
    Run(1.0, 0.02, 50, 1e-6),
    Run(10.0, 0.5, 100, 1e-5),
    Run(1.3, 256 / 60000, 14063, 1e-5),
    Run(0.35, 0.01, 100, 1e-5),
    Run(3.0, 0.01, 10000, 1e-8),
)


def random_runs(seed: int = 0) -> Iterator[Run]:
    """Endless: log-uniform in all four, kept where 0.01 ≤ ε ≤ 60."""
    rng = np.random.default_rng(seed)
    while True:
        run = Run(
            round(math.exp(rng.uniform(math.log(0.4), math.log(8))), 4),
            float(f"{math.exp(rng.uniform(math.log(1e-3), math.log(0.5))):.4g}"),
            int(math.exp(rng.uniform(0, math.log(1e4)))),
            float(f"{10 ** rng.uniform(-9, -4):.3g}"),
        )
        if 0.01 <= epsilon(run.z, run.steps, run.delta, run.q) <= 60:
            yield run


def ours(run: Run, method: str = "pld") -> float:
    return epsilon(run.z, run.steps, run.delta, run.q, method)


def google(run: Run, width: float, *, pessimistic: bool = True) -> float:
    """dp-accounting's ε, with connect-the-dots where it can (it is pessimistic)."""
    step = peer.from_gaussian_mechanism(
        run.z, sampling_prob=run.q, pessimistic_estimate=pessimistic,
        value_discretization_interval=width, use_connect_dots=pessimistic,
    )  # fmt: skip
    return float(step.self_compose(run.steps).get_epsilon_for_delta(run.delta))


def opacus(run: Run) -> float:
    accountant = PRVAccountant()
    accountant.history = [(run.z, run.q, run.steps)]
    return float(accountant.get_epsilon(run.delta))


def timed(function: Callable[[], float]) -> tuple[float | None, float]:
    """What it returns, None if it raises, and the seconds that it took."""
    started = time.perf_counter()
    try:
        value = function()
    except (RuntimeError, ValueError):
        value = None
    return value, time.perf_counter() - started


def width_for(run: Run) -> float:
    """At most q / z / 100, and no wider than dp-accounting's default."""
    return min(DEFAULT, run.q / run.z / 100)


def bracket(run: Run) -> dict[str, Any]:
    """Ours, and what the truth lies between."""
    width = width_for(run)
    entry = {
        "run": run._asdict(),
        "pld": ours(run),
        "optimistic": google(run, width, pessimistic=False),
        "pessimistic": google(run, width),
        "width": width,
    }
    entry["rdp"] = ours(run, "rdp")
    entry["clt"] = ours(run, "clt")
    assert entry["optimistic"] <= entry["pld"] <= entry["pessimistic"] + ALLOWED, entry
    assert entry["pld"] <= entry["rdp"], entry
    return entry


def accountants(run: Run) -> dict[str, float | None]:
    """The ε of every method; None where its theorem does not cover the run."""
    found: dict[str, float | None] = {}
    for method in METHODS:
        try:
            found[method] = ours(run, method)
        except ValueError:
            found[method] = None
    return found


def race(run: Run, turns: int) -> dict[str, list[float]]:
    """Seconds of one ε: all competitors, taking turns."""
    competitors: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(run),
        "dp-accounting": lambda: google(run, DEFAULT),
        "dp-accounting, fine": lambda: google(run, width_for(run)),
        "Opacus PRV": lambda: opacus(run),
    }
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(turns):
        for name, compute in competitors.items():
            value, took = timed(compute)
            if value is not None:
                seconds[name].append(took)
    return seconds


def calibrate(run: Run, goal: float) -> dict[str, Any]:
    """The noise multiplier for ε = ``goal``: ours, and dp-accounting's to three digits."""

    def event(z: float) -> dp_event.DpEvent:
        step = dp_event.PoissonSampledDpEvent(run.q, dp_event.GaussianDpEvent(z))
        return dp_event.SelfComposedDpEvent(step, run.steps)

    def theirs() -> float:
        return float(
            calibrate_dp_mechanism(
                lambda: PLDAccountant(value_discretization_interval=DEFAULT), event, goal,
                run.delta, bracket_interval=LowerEndpointAndGuess(0.2, 1.0), tol=1e-3,
            )
        )  # fmt: skip

    z, mine = timed(lambda: noise_multiplier(goal, run.steps, run.delta, run.q))
    z_theirs, seconds = timed(theirs)
    return {"run": run._asdict(), "epsilon": goal, "z": z, "z_theirs": z_theirs,
            "seconds": {"ours": [mine], "dp-accounting": [seconds]}}  # fmt: skip


def row(run: Run, entry: dict[str, Any], methods: dict[str, float | None], prv: float | None,
        seconds: dict[str, list[float]]) -> dict[str, str]:  # fmt: skip
    """One line of the status page's table."""

    def show(value: float | None) -> str:
        return "–" if value is None else f"{value:.4g}"

    return {
        "run": str(run),
        "truth between": f"{entry['optimistic']:.4f} and {entry['pessimistic']:.4f}",
        "PLD": f"{entry['pld']:.4f}",
        "Opacus PRV": show(prv),
        **{name.upper(): show(methods[name]) for name in ("rdp", "advanced", "basic", "clt")},
        "ms": f"{1000 * statistics.median(seconds['ours']):.1f}",
        "÷ dp-accounting": ratio(seconds["dp-accounting"], seconds["ours"]),
        "÷ Opacus PRV": ratio(seconds["Opacus PRV"], seconds["ours"]),
    }


def middle(ratios: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def against(races: list[dict[str, list[float]]], name: str) -> dict[str, float]:
    """How many times slower a competitor is, setting by setting."""
    medians = (
        statistics.median(one[name]) / statistics.median(one["ours"]) for one in races if one[name]
    )
    return middle(list(medians))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--random", type=int, default=90, help="number of random runs")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two settings: does it run?")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the peers' own
    load = os.getloadavg()[0]
    grid = GRID[:2] if options.tiny else GRID
    entries, rows, races = [], [], []
    for run in grid:
        entries.append(bracket(run))
        races.append(race(run, options.turns))
        prv, _ = timed(lambda run=run: opacus(run))
        entries[-1] |= {"accountants": accountants(run), "opacus_prv": prv, "seconds": races[-1]}
        rows.append(row(run, entries[-1], entries[-1]["accountants"], prv, races[-1]))
        print(*rows[-1].values(), sep=" | ", flush=True)
    runs = random_runs()
    cases = [bracket(next(runs)) for _ in range(3 if options.tiny else options.random)]
    print(len(cases), "random runs are bracketed", flush=True)
    calibrations = [calibrate(run, goal) for run in grid[:5] for goal in (1.0, 8.0)]
    everything = entries + cases
    summary = {
        "above the pessimistic bound, most": max(e["pld"] - e["pessimistic"] for e in everything),
        "above the optimistic bound, least": min(e["pld"] - e["optimistic"] for e in everything),
        "RDP ÷ ours": middle([e["rdp"] / e["pld"] for e in everything]),
        "CLT ÷ ours": middle([e["clt"] / e["pld"] for e in everything]),
        **{f"{name} ÷ ours, seconds": against(races, name) for name in list(races[0])[1:]},
        "calibration, dp-accounting ÷ ours, seconds": against(
            [one["seconds"] for one in calibrations], "dp-accounting"
        ),
    }
    print(json.dumps(summary, indent=1, ensure_ascii=False))
    record = {
        "name": "privacy_accounting",
        "title": "ε of the same run by every accountant, and how long one takes",
        "note": "Add/remove, Poisson sampling. The truth lies between dp-accounting's optimistic "
        "and pessimistic PLD (width of the grid at most q / z / 100). – : the method's theorem "
        "does not cover the run. CLT is an approximation, no bound. Milliseconds: median of "
        f"{options.turns} turns on one thread; ÷: how many times longer the other takes, in its "
        f"own default setting (least–most). On {len(cases)} random runs and these {len(entries)} "
        f"ours is at most {summary['above the pessimistic bound, most']:.1e} above the "
        "pessimistic bound, and never below the optimistic one.",
        "provenance": provenance(),
        "load_average_before": round(load, 2),
        "rows": rows,
        "summary": summary,
        "measurements": entries,
        "random": cases,
        "calibrations": calibrations,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
