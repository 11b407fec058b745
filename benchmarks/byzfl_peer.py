"""byzfl's rules and ours on the same rows, in turns; memory; results held to brute force.

    .venv-byzfl/bin/python -m benchmarks.byzfl_peer '[50, 11, 1000000, 7, 200]'

Runs in `.venv-byzfl` (`make_byzfl_env.sh`), asked by `benchmarks/byzantine.py`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import byzfl
import numpy as np
import torch
from torch import Tensor

from benchmarks import byzantine_oracles as oracles
from benchmarks.byzantine import (
    CASES,
    SPREAD,
    Case,
    Setting,
    answer,
    clip_norm,
    extra_copies,
    judged,
    take_turns,
    updates,
)
from benchmarks.byzantine_oracles import FLOAT32, Array
from flcourse import byzantine as rules
from flcourse.runtime import generator

SLOW = {"mixing, trimmed mean": 3}  # turns: byzfl's holds 40 copies of the matrix
DIFFERENCES = {
    "Krum": "byzfl adds up the n - f - 1 nearest others, the paper (section 4) n - f - 2; and it "
    "takes distances by torch.cdist, which is wrong where rows share an offset (choices)",
    "multi-Krum": "the same scores; the mean of the same rows here",
    "geometric median": "byzfl stops after 3 steps; after 300 the two agree. It leaves out rows "
    "that hold infinity, not those that hold NaN",
    "centred clipping": "byzfl's norms of 10^6 entries are one float32 sum, which shows in its "
    "cuts. It starts at zero, as any start is refused (its check of the type never passes); ours "
    "starts at zero here, else at the previous step or the median",
    "mixing": "the same n - f neighbours, the row itself among them; sums in another order",
    "rounding": "median and trimmed mean differ by the order of sums and by a + (b - a) / 2 "
    "against a / 2 + b / 2",
    "hostile rows": "byzfl screens nothing: a row of NaN makes median, Krum, geometric median and "
    "clipping NaN; the distances of a row of 3e38 are NaN in torch.cdist, and argmin takes NaN",
}
CONVERGED = 300  # steps of byzfl's geometric median, which stops after 3 unless told otherwise


def theirs(name: str, liars: int, entries: int) -> Callable[[Any], Any]:
    """byzfl's rule, new for each call: its centred clipping remembers where it ended."""
    bound = clip_norm(entries)
    made: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "Krum": lambda: byzfl.Krum(liars),
        "multi-Krum": lambda: byzfl.MultiKrum(liars),
        "median": byzfl.Median,
        "trimmed mean": lambda: byzfl.TrMean(liars),
        "geometric median": byzfl.GeometricMedian,
        "centred clipping, 1 step": lambda: byzfl.CenteredClipping(L=1, tau=bound),
        "centred clipping, 3 steps": lambda: byzfl.CenteredClipping(L=3, tau=bound),
        "mixing, trimmed mean": lambda: lambda x: byzfl.TrMean(liars)(byzfl.NNM(liars)(x)),
    }
    return lambda rows: made[name]()(rows)


def table(setting: Setting) -> dict[str, Any]:
    """Every rule: CPU milliseconds in turns, and memory on the tensor."""
    rows = updates(setting)
    return {name: _beside(name, case, rows, setting) for name, case in CASES.items()}


def _beside(name: str, case: Case, rows: Tensor, setting: Setting) -> dict[str, Any]:
    """Ours, byzfl given the same tensor, byzfl given a numpy array of it."""
    peer, array = theirs(name, setting.liars, setting.entries), rows.numpy()
    alone = {"ours": lambda x: case.ours(x, setting.liars), "byzfl": peer}
    memory = {who: extra_copies(function, rows) for who, function in alone.items()}
    took = take_turns(
        {
            "ours": lambda: case.ours(rows, setting.liars),
            "byzfl": lambda: peer(rows),
            "byzfl, numpy array": lambda: peer(array),
            **_more(name, rows),
        },
        min(SLOW.get(name, setting.turns), setting.turns),
    )
    found = judged(case, took, "byzfl", memory)
    print(name, json.dumps(found), file=sys.stderr, flush=True)
    return found


def _more(name: str, rows: Tensor) -> dict[str, Callable[[], object]]:
    """What else of ours to time beside a case: clipping from where it starts unless told."""
    if not name.endswith("1 step"):
        return {}
    bound = clip_norm(rows.shape[1])
    return {"ours, from the median": lambda: rules.centered_clipping(rows, bound)}


# --- results ----------------------------------------------------------------------------------


class Pair:
    """Both results for a rule on one matrix, and how far they are from the exact one."""

    def __init__(self, name: str, rows: Tensor, liars: int) -> None:
        self.ours = CASES[name].ours(rows, liars).numpy()
        self.byzfl = theirs(name, liars, rows.shape[1])(rows).numpy()

    def off(self, exact: Array, size: Array | float, bound: float) -> dict[str, float]:
        """Largest errors in units of rounding, `2⁻²³ · size`; ours must be within `bound`."""

        def units(difference: Array) -> float:
            return float((np.abs(difference) / (FLOAT32 * size)).max())

        found = {
            "ours": units(self.ours - exact),
            "byzfl": units(self.byzfl - exact),
            "apart": units(self.ours.astype(np.float64) - self.byzfl),
        }
        must(found["ours"] <= bound, f"off by {found['ours']} units of rounding")
        return found


def must(holds: bool, what: str) -> None:
    """Stop where a result is not what is claimed."""
    if not holds:
        raise AssertionError(what)


def results(setting: Setting) -> dict[str, Any]:
    """Every rule on the large matrix against its oracle, then choices on many small ones."""
    rows = updates(setting)
    squared = oracles.squared_distances(rows.numpy())
    return {
        "unit": "rounding: 2^-23 of the size of what is averaged",
        "median": _median(rows, setting.liars),
        "trimmed mean": _trimmed(rows, setting.liars),
        "Krum": _krum(rows, squared, setting.liars),
        "multi-Krum": _multi_krum(rows, squared, setting.liars),
        "geometric median": _geometric(rows, setting.liars),
        "centred clipping": {str(steps): _clipping(rows, steps, setting) for steps in (1, 3)},
        "mixing, trimmed mean": _mixing(rows, squared, setting.liars),
        "choices": choices(setting),
    }


def _median(rows: Tensor, liars: int) -> dict[str, float]:
    exact, size = oracles.median(rows.numpy())
    found = Pair("median", rows, liars).off(exact, size, 1.0)
    must(found["apart"] <= 4, f"the medians are {found['apart']} units apart")
    return found


def _trimmed(rows: Tensor, liars: int) -> dict[str, float]:
    exact, size = oracles.trimmed_mean(rows.numpy(), liars)
    found = Pair("trimmed mean", rows, liars).off(exact, size, 8)
    must(found["apart"] <= 16, f"the trimmed means are {found['apart']} units apart")
    return found


def _krum(rows: Tensor, squared: Array, liars: int) -> dict[str, bool]:
    pair, exact = Pair("Krum", rows, liars), rows[oracles.krum_choice(squared, liars)].numpy()
    must(np.array_equal(pair.ours, exact), "Krum took another row than brute force")
    return {"ours": True, "byzfl": np.array_equal(pair.byzfl, exact)}


def _multi_krum(rows: Tensor, squared: Array, liars: int) -> dict[str, float]:
    chosen = rows.numpy()[oracles.multi_krum_choice(squared, liars, len(rows) - liars)]
    exact, size = oracles.trimmed_mean(chosen, 0)
    return Pair("multi-Krum", rows, liars).off(exact, size, 32)


def _geometric(rows: Tensor, liars: int) -> dict[str, float]:
    array, pair = rows.numpy(), Pair("geometric median", rows, liars)
    ours, stopped = (oracles.total_distance(array, point) for point in (pair.ours, pair.byzfl))
    part = rows[:, : max(rows.shape[1] // 10, 5000)].clone()  # its steps are dear
    mine = rules.geometric_median(part).double()
    long = byzfl.GeometricMedian(nu=1e-6, T=CONVERGED)(part).double()
    apart = float((mine - long).norm() / (part.double() - mine).norm(dim=1).median())
    must(ours <= stopped * (1 + 1e-7), "byzfl's three steps found a better point")
    must(apart <= 1e-5, f"the geometric medians are {apart} of the radius apart")
    return {
        "sum of distances, byzfl's 3 steps over ours": stopped / ours,
        f"apart from {CONVERGED} steps of byzfl, of the median distance": apart,
    }


def _clipping(rows: Tensor, steps: int, setting: Setting) -> dict[str, float]:
    name = f"centred clipping, {steps} step" + "s" * (steps > 1)
    exact = oracles.clipped(rows.numpy(), clip_norm(setting.entries), steps)
    return Pair(name, rows, setting.liars).off(exact, SPREAD, 32)


def _mixing(rows: Tensor, squared: Array, liars: int) -> dict[str, float]:
    exact, size = oracles.trimmed_mean(oracles.mixed(rows.numpy(), squared, liars), liars)
    return Pair("mixing, trimmed mean", rows, liars).off(exact, np.maximum(size, SPREAD), 32)


def choices(setting: Setting) -> dict[str, dict[str, float]]:
    """In which share of draws Krum takes the row that brute force takes, among equal clients."""
    few = setting._replace(clients=10, liars=2)  # one neighbour more counts where there are few
    return {
        "updates": _choices(setting, 0.0),
        "updates, n = 10, f = 2": _choices(few, 0.0),
        "whole models, an offset 1,000 times the spread": _choices(setting, 1000 * SPREAD),
    }


def _choices(setting: Setting, offset: float) -> dict[str, float]:
    wider = "byzfl, against brute force over n - f - 1"
    same: dict[str, list[bool]] = {"ours": [], "byzfl": [], wider: []}
    for draw in range(setting.draws):
        numbers = generator(draw, "choices")
        rows = offset + SPREAD * torch.randn(setting.clients, 1000, generator=numbers)
        squared, liars = oracles.squared_distances(rows.numpy()), setting.liars
        exact = rows[oracles.krum_choice(squared, liars)]
        more = rows[int(np.argmin(oracles.krum_scores(squared, len(rows) - liars - 1)))]
        got = byzfl.Krum(liars)(rows)
        same["ours"].append(torch.equal(rules.krum(rows, liars), exact))
        same["byzfl"].append(torch.equal(got, exact))
        same[wider].append(torch.equal(got, more))
    shares = {name: sum(found) / len(found) for name, found in same.items()}
    must(shares["ours"] == 1, f"our Krum took another row than brute force: {shares}")
    return shares


def hostile(setting: Setting) -> dict[str, dict[str, dict[str, Any]]]:
    """One row of NaN, or of 3e38: how far from the honest mean each rule ends, in median distances.

    "inf" and "nan" as text: the result is no number.
    """
    small = setting._replace(entries=2000)
    return {
        label: {name: _hostile(small, name, value) for name in CASES}
        for label, value in (("a row of NaN", float("nan")), ("a row of 3e38", 3e38))
    }


def _hostile(setting: Setting, name: str, value: float) -> dict[str, Any]:
    rows, liars = updates(setting), setting.liars
    honest = rows[liars:].double()
    rows[0] = value
    radius = float((honest - honest.mean(dim=0)).norm(dim=1).median())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = {
            "ours": CASES[name].ours(rows, liars),
            "byzfl": theirs(name, liars, setting.entries)(rows),
        }
    far = {
        who: float((z.double() - honest.mean(dim=0)).norm()) / radius for who, z in points.items()
    }
    must(far["ours"] <= 2, f"{name} beside a row of {value} ends {far['ours']} radii away")
    return {who: x if np.isfinite(x) else str(x) for who, x in far.items()}


def versions(setting: Setting) -> dict[str, str]:
    """Of what was measured."""
    return {name: metadata.version(name) for name in ("byzfl", "torch", "numpy")}


if __name__ == "__main__":
    answer(
        {
            "rules": table,
            "results": results,
            "hostile rows": hostile,
            "differences": lambda setting: DIFFERENCES,
            "versions": versions,
        }
    )
