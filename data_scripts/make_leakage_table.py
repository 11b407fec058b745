"""Make the stored result `leakage_table`: what every attack gets out of a gradient, on three sets.

    OMP_NUM_THREADS=1 python -m data_scripts.make_leakage_table --root FOLDER   # with CIFAR-10

The table of `benchmarks/leakage.py` on the photos, on CIFAR-10's first test picture of each class,
and on the photos at 64×64, with every picture's PSNR. About an hour on one quiet core; finished
messages are kept in --work. Chapters 03, 05 and 06 show it and recompute one cell.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.leakage import WORK, measure, quiet
from benchmarks.leakage_parts import FULL, SETS, UPDATE_LR, Budget, Part, load_pictures, parts
from benchmarks.leakage_table import rows
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.recursive import peel
from flcourse.attacks.scoring import MARGIN_DB, SUCCESS_DB, score
from flcourse.claims import save_stored
from flcourse.data import Dataset
from flcourse.runtime import progress

# What matters on the other sets is whether our attacks hold there: the published ones, and updates,
# get a few messages. On 64×64 an evaluation takes four times as long.
BUDGETS: dict[str, Budget] = {
    "photos": FULL,
    "cifar10": replace(
        FULL, published=3, dlg=1, hopeless=1, cosine=4, one_gradient=2, more_pictures=8,
        batch_pictures=8,
    ),
    "photos64": replace(
        FULL, published=1, dlg=1, hopeless=1, cosine=2, one_gradient=1, more_pictures=8,
    ),
}  # fmt: skip
PICTURES = {"photos64": {"batch": 1, "update": 1}, "cifar10": {"update": 2}}  # messages a seed
ONE_SEED = ("photos64",)  # for its batches and updates


def planned(name: str) -> dict[str, tuple[Part, Budget]]:
    """The parts of the table on one set of pictures, each with its budget."""
    budget, fewer = BUDGETS[name], PICTURES.get(name, {})
    short = replace(budget, seeds=FULL.seeds[:1]) if name in ONE_SEED else budget
    found = {}
    for key, part in parts(budget).items():
        kind = "update" if part.local_steps else "batch" if part.batch > 1 else "one"
        part = replace(part, count=fewer.get(kind, part.count))
        found[key] = (part, budget if kind == "one" else short)
    return found


def probe(name: str, picture: int, seed: int, root: str | None = None) -> dict[str, float]:
    """One cell that takes seconds: PSNR of `peel` and `match_gradients` on one LeNet message."""
    part, _ = planned(name)["LeNet, one picture"]
    message = part.message(load_pictures(name, root), picture, seed)
    found = {
        "peel": peel(message.model, message.leak),
        "match_gradients": match_gradients(message.model, message.leak, seed=seed),
    }
    return {
        attack: float(score(recovery, message.images).psnr) for attack, recovery in found.items()
    }


def stored_row(row: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, Any]:
    """The table's line, and each message's figures in the order they were measured."""
    mine = [r for r in records if (r["part"], r["attack"]) == (row["part"], row["attack"])]
    return row | {
        "messages": [[r["picture"], r["seed"]] for r in mine],
        "psnrs": [[round(value, 2) for value in r["psnr"]] for r in mine],
        "seconds": [round(r["cpu_seconds"], 3) for r in mine],
    }


def measured(name: str, pictures: Dataset, work: Path) -> list[dict[str, Any]]:
    """All records of one set; finished messages are read from `work`."""
    (work / name).mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for part, budget in progress(planned(name).values(), name):
        records += measure(part, pictures, budget, work / name / f"{part.name}.jsonl")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", help="the folder that holds CIFAR-10 (default: FLCOURSE_DATA)")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    quiet()
    results: dict[str, Any] = {}
    for name in SETS:
        pictures = load_pictures(name, options.root)
        records = measured(name, pictures, options.work)
        lines = rows(records, {part.name: part.yardstick for part, _ in planned(name).values()})
        results[name] = [stored_row(line, records) for line in lines]
    config = {
        "seeds": FULL.seeds,
        "networks": "LeNet(num_classes=100), SimpleCNN(num_classes=10), as initialised",
        "pictures": {
            "photos": "the first ones of the photos, 32×32",
            "cifar10": "the first test picture of each class",
            "photos64": "the first ones of the photos, 64×64",
        },
        "batch": "the picture and those that follow it",
        "update": f"full batch, learning rate {UPDATE_LR:g}",
        "labels": "inferred from the message",
        "success": f"PSNR above {SUCCESS_DB:g} dB and {MARGIN_DB:g} dB above the flat picture",
        "cpu_seconds": "of the process; ratios are formed within a message",
    }
    print(save_stored("leakage_table", config=config, results=results))


if __name__ == "__main__":
    main()
