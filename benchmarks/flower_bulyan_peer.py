"""Our whole Bulyan beside the last step of Flower's, on the rows that Bulyan chooses.

    .venv-flower/bin/python -m benchmarks.flower_bulyan_peer '[50, 11, 1000000, 7, 200]'

Runs in `.venv-flower` (`make_flower_env.sh`), asked by `benchmarks/byzantine.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray

from benchmarks import byzantine_oracles as oracles
from benchmarks.byzantine import (
    BULYAN,
    SPREAD,
    Setting,
    answer,
    extra_copies,
    judged,
    take_turns,
    updates,
)
from flcourse.runtime import generator

Rows = NDArray[np.float32]
LAST = "Flower, last step"
DIFFERENCES = {
    "choice": "Flower takes the n - 2f rows of least Krum score at once, the paper one at a time, "
    "with scores anew among the rows left",
    "last step": "the same but where two values are equally near the median up to rounding",
}


def last_step(chosen: Sequence[Rows] | Rows, count: int) -> Rows:
    """As Flower's strategy does it after its choice, for a model of one layer."""
    weights = [[row] for row in chosen]
    middle = [np.median(layer, axis=0) for layer in zip(*weights, strict=True)]
    return aggregate_n_closest_weights(middle, weights, count)[0]


def chosen_rows(setting: Setting, rows: torch.Tensor) -> Rows:
    """The `n − 2f` rows that the paper's procedure takes, by brute force."""
    squared = oracles.squared_distances(rows.numpy())
    return rows.numpy()[oracles.bulyan_choice(squared, setting.liars)]


def table(setting: Setting) -> dict[str, Any]:
    """CPU milliseconds in turns, and memory in copies of the matrix of all rows."""
    rows, count = updates(setting), setting.clients - 4 * setting.liars
    chosen = chosen_rows(setting, rows)
    alone: dict[str, Callable[[torch.Tensor], object]] = {
        "ours": lambda x: BULYAN.ours(x, setting.liars),
        LAST: lambda x: last_step(list(x.numpy()[: len(chosen)]), count),
    }
    memory = {who: extra_copies(function, rows) for who, function in alone.items()}
    took = take_turns(
        {"ours": lambda: BULYAN.ours(rows, setting.liars), LAST: lambda: last_step(chosen, count)},
        setting.turns,
    )
    return {"Bulyan": judged(BULYAN, took, LAST, memory)}


def results(setting: Setting) -> dict[str, Any]:
    """Ours, Flower's last step and brute force agree but where two values are equally near."""
    rows, count = updates(setting), setting.clients - 4 * setting.liars
    chosen = chosen_rows(setting, rows)
    exact, gap = oracles.nearest_to_middle(chosen, count)
    size = np.abs(chosen).max(axis=0)
    points = {
        "ours": BULYAN.ours(rows, setting.liars).numpy(),
        "Flower": last_step(chosen, count),
    }
    found = {}
    for name, point in points.items():
        other = np.abs(point - exact) > 16 * oracles.FLOAT32 * size
        if (ties := gap[other] / (oracles.FLOAT32 * size[other])).size and ties.max() > 4:
            raise AssertionError(f"{name} took a value that is {ties.max()} units too far")
        found[f"coordinates where {name} broke a tie of rounding otherwise"] = int(other.sum())
    return found | {"draws in which Flower's choice is Bulyan's": _choices(setting)}


def _choices(setting: Setting) -> float:
    """Flower takes the rows of least Krum score at once, the paper one at a time."""
    same = []
    for draw in range(setting.draws):
        numbers = generator(draw, "choices")
        rows = (SPREAD * torch.randn(setting.clients, 1000, generator=numbers)).numpy()
        contents = [RecordDict({"arrays": ArrayRecord([row])}) for row in rows]
        taken = select_multikrum(contents, setting.liars, setting.clients - 2 * setting.liars)
        picked = sorted(next(i for i, c in enumerate(contents) if c is one) for one in taken)
        exact = oracles.bulyan_choice(oracles.squared_distances(rows), setting.liars)
        same.append(picked == exact)
    return sum(same) / len(same)


def versions(setting: Setting) -> dict[str, str]:
    """Of what was measured."""
    return {name: metadata.version(name) for name in ("flwr", "torch", "numpy")}


if __name__ == "__main__":
    answer(
        {
            "rules": table,
            "results": results,
            "differences": lambda setting: DIFFERENCES,
            "versions": versions,
        }
    )
