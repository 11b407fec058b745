"""Attacks on gradients: ours beside the published ones, on the same messages, taking turns.

    OMP_NUM_THREADS=1 python -m benchmarks.leakage --quick      # does it run?
    OMP_NUM_THREADS=1 python -m benchmarks.leakage              # half an hour on one quiet core
    ... --pictures cifar10 --root FOLDER, --pictures photos64, --only "SimpleCNN, one picture"

On each message every attack runs once, then comes the next message, so noise of the machine hits
all alike; ratios are formed within a message. CPU seconds are those of the process. Prints the
table, says which targets were reached, and writes results/leakage.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.leakage_parts import (
    FULL,
    QUICK,
    SETS,
    Attack,
    Budget,
    Message,
    Part,
    load_pictures,
    parts,
)
from benchmarks.leakage_table import Record, markdown, rows, shown, verdicts
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.scoring import score, succeeded
from flcourse.attacks.types import Recovery
from flcourse.data import Dataset, load_dataset
from flcourse.models import SimpleCNN
from flcourse.runtime import progress, provenance

RESULT = Path(__file__).parent / "results" / "leakage.json"
WORK = Path("runs") / "leakage_table"  # shared with data_scripts/make_leakage_table.py
RESTARTS = 8
NOTE = (
    "One message at a time, every attack on it in turn, then the next: ratios are formed within a "
    "message and their median stands with the least and the most. PSNR: median (quartiles) over "
    "pictures. Success: above 20 dB and 3 dB above the flat picture, whose PSNR is the floor. CPU "
    "seconds of one process with one thread, without oneDNN; ratios against iDLG and Inverting "
    "Gradients."
)


def quiet() -> None:
    """One thread, and without oneDNN: on one small picture every attack here is faster so.

    An evaluation of the LeNet takes 1.5 times as long with it, in the published loops as in ours.
    """
    torch.set_num_threads(1)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]


# --- measuring ----------------------------------------------------------------------------------


def measure(
    part: Part, pictures: Dataset, budget: Budget, work: Path | None = None
) -> list[Record]:
    """One record for each attack and message; messages that lie in the file `work` are not redone.

    A message is finished or not: its attacks have always run one after the other.
    """
    lines = work.read_text().splitlines() if work and work.exists() else []
    done: list[list[Record]] = [json.loads(line) for line in lines]
    turns = [(index, seed) for seed in budget.seeds for index in range(part.count)]
    if len(done) < len(turns):
        _warm_up(part, pictures, budget)
    for number, (index, seed) in list(enumerate(turns))[len(done) :]:
        message = part.message(pictures, index, seed)
        done.append(
            [
                {"part": part.name, "attack": name, "picture": index * part.batch, "seed": seed}
                | turn(attack, message, seed)
                for name, attack in part.attacks.items()
                if number < part.few.get(name, len(turns))
            ]
        )
        if work:
            with work.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    return [record for message in done for record in message]


def turn(attack: Attack, message: Message, seed: int) -> Record:
    """One attack on one message: seconds, and scores per picture."""
    begun = time.process_time()
    recovery, stopped = attack(message.model, message.leak, seed)
    seconds = time.process_time() - begun
    message.model.zero_grad()
    record: Record = {"cpu_seconds": seconds, "evaluations": recovery.evaluations}
    record |= _scored(recovery, message)
    if stopped is not None:
        early = Recovery(images=stopped.images, labels=stopped.labels, method="stopped")
        record["stopped"] = {"cpu_seconds": stopped.seconds, **_scored(early, message)}
    return record


def _scored(recovery: Recovery, message: Message) -> Record:
    scores = score(recovery, message.images, message.labels)
    return {
        "psnr": scores.psnr.tolist(),
        "ssim": scores.ssim.tolist(),
        "floor": scores.floor.tolist(),
        "success": succeeded(scores).tolist(),
        "label_match": scores.label_match,
    }


def _warm_up(part: Part, pictures: Dataset, budget: Budget) -> None:
    """First calls allocate and import: let them, on a message that is not counted."""
    if budget == QUICK:
        return
    message = part.message(pictures, 0, 0)
    for name, attack in part.attacks.items():
        if name.startswith(("peel", "invert_features")):
            attack(message.model, message.leak, 0)


def peak_memory(restarts: int = RESTARTS, steps: int = 20) -> Record:
    """Peak memory in MiB of a fresh process that attacks SimpleCNN with so many restarts.

    ``before`` is what Python, torch and the model take. The peak comes at the first evaluations, so
    ``steps`` are few.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.leakage",
        "--memory",
        json.dumps([restarts, steps]),
    ]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    record: Record = json.loads(answer.stdout.splitlines()[-1])
    return record


def _attack_with_restarts(restarts: int, steps: int) -> Record:
    photos = load_dataset("photos").train
    model = SimpleCNN(10)
    leak = observe_gradient(model, photos.inputs[:1], photos.labels[:1])
    before = _peak()
    begun = time.process_time()
    # From noise: the default would begin at exact features, where there is nothing to restart.
    recovery = match_gradients(model, leak, restarts=restarts, start="normal", steps=steps)
    return {
        "restarts": restarts,
        "before_mib": before,
        "peak_mib": _peak(),
        "cpu_seconds": time.process_time() - begun,
        "evaluations": recovery.evaluations,
    }


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)


# --- command ------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one message, a few steps: does it run?")
    size.add_argument("--full", action="store_true", help="the whole table (default)")
    parser.add_argument("--only", action="append", help="a part, or 'memory'; may be repeated")
    parser.add_argument("--pictures", choices=SETS, default="photos")
    parser.add_argument("--root", help="the folder that holds CIFAR-10 (default: FLCOURSE_DATA)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--work", type=Path, default=WORK, help="finished messages are kept here")
    parser.add_argument("--remark", default="", help="a sentence about the machine, for the note")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.memory:
        print(json.dumps(_attack_with_restarts(*json.loads(options.memory))))
        return
    budget = QUICK if options.quick else FULL
    available = parts(budget)
    wanted = options.only or [*available, "memory"]
    if unknown := [name for name in wanted if name not in available and name != "memory"]:
        parser.error(f"no part {unknown[0]!r}: use {', '.join([*available, 'memory'])}")
    load = os.getloadavg()[0]
    pictures = load_pictures(options.pictures, options.root)
    work = None if options.quick else options.work / options.pictures
    if work:
        work.mkdir(parents=True, exist_ok=True)
    record = run(wanted, available, pictures, budget, work)
    print(markdown(record["lines"]))
    if options.quick:
        print("a quick run: it says nothing about targets, and nothing is written")
        return
    print("\n".join(record["verdicts"]))
    record |= {
        "seeds": list(budget.seeds),
        "note": f"{NOTE} {options.remark}".rstrip(),
        "pictures": options.pictures,
        "load_average_before": round(load, 2),
        "provenance": provenance(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(record), indent=1, ensure_ascii=False)
    options.out.write_text(text + "\n")
    print(options.out)


def _rounded(value: Any) -> Any:
    """Five digits: scores and seconds hold no more."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def run(
    wanted: Sequence[str],
    available: dict[str, Part],
    pictures: Dataset,
    budget: Budget,
    work: Path | None = None,
) -> Record:
    """All parts that are wanted, and their table."""
    records: list[Record] = []
    for name in progress([name for name in wanted if name != "memory"], "parts"):
        path = work / f"{name}.jsonl" if work else None
        records += measure(available[name], pictures, budget, path)
    memory = peak_memory() if "memory" in wanted else None
    lines = rows(records, {name: part.yardstick for name, part in available.items()})
    return {
        "name": "leakage",
        "title": "Attacks on gradients, ours beside the published ones",
        "rows": [shown(line) for line in lines],
        "lines": lines,
        "memory": memory,
        "verdicts": verdicts(lines, memory),
        "records": records,
    }


if __name__ == "__main__":
    main()
