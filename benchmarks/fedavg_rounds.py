"""Rounds per second of federated averaging: our loop, our batched engine, Flower's simulation.

    benchmarks/make_flower_env.sh                  # once, about two minutes
    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.fedavg_rounds      # about five minutes

All train the same clients on the same batches from the same start, and take turns: round 2 of the
loop, round 2 of the batched engine, round 2 of Flower, round 3 …, so that noise of the machine hits
all alike; ratios are formed within a turn. A round is local training of every client and the mean;
nothing is evaluated. Round 1 (imports, warm-up, Ray) is shown apart. The three global models must
agree: to 1e-12 after three rounds in float64. Writes results/fedavg_rounds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn

from benchmarks.federation import Setting, make_clients, make_model
from flcourse.data import Client
from flcourse.fedavg import apply_update, local_updates, mean
from flcourse.local import _engine
from flcourse.runtime import provenance
from flcourse.vectors import flatten

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fedavg_rounds.json"
FLOWER = ROOT / ".venv-flower" / "bin" / "python"
MARK = "@peer "  # as in flower_peer.py, which cannot be imported without Flower
ENGINES = ("loop", "batched")
# model, clients, samples of each -> rounds after the first
SETTINGS = {
    Setting(model, clients, samples): rounds
    for model in ("MLP", "LightCNN")
    for clients, samples, rounds in ((10, 400, 10), (100, 40, 7), (1000, 10, 3))
}
# The same federations in float64, where the three models must agree to the last digits.
ORACLES = [Setting(model, 10, 40, dtype="float64") for model in ("MLP", "LightCNN")]
# Of the distance that training went. In float32, rounding grows along training with ReLUs: after
# 143 steps of LightCNN it was 9e-4.
TOLERANCES = {"float32": 1e-2, "float64": 1e-12}


class Took(NamedTuple):
    """What a round took: seconds on the clock, and CPU seconds over all processes."""

    clock: float
    cpu: float


class Peer:
    """Flower in its own environment; it does a round when asked to."""

    def __init__(self, setting: Setting, rounds: int, folder: Path, limit: float) -> None:
        self.result, self.log = folder / "model.pt", folder / "errors.log"
        request = asdict(setting) | {"rounds": rounds, "result": str(self.result), "cpus": 2}
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self.stopped = False
        self.started = time.perf_counter()
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(FLOWER), "-m", "benchmarks.flower_peer", json.dumps(request)],
                cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | quiet | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.timer = threading.Timer(limit, self.stop)
        self.timer.start()
        self.answer()  # round 0: it is up, and waits
        self.up = time.perf_counter() - self.started

    def answer(self) -> float | None:
        """Seconds of the round that just ended; None when it was stopped."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return float(json.loads(line.removeprefix(MARK))["seconds"])
        return None

    def round(self) -> Took | None:
        """One more round, or None."""
        assert self.process.stdin is not None
        before = self.cpu()
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        seconds = self.answer()
        return None if seconds is None else Took(seconds, self.cpu() - before)

    def cpu(self) -> float:
        """CPU seconds so far of Flower and of all processes below it."""
        total = 0.0
        try:
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                times = one.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:  # it was stopped
            return total
        return total

    def stop(self) -> None:
        """The limit is over. Ray's processes end with the one that started them."""
        self.stopped = True
        self.process.kill()

    def close(self) -> None:
        """Wait for its end, so that it does not disturb the next setting.

        Raises `RuntimeError` with its last words if it failed.
        """
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.timer.cancel()
        if not self.stopped and not self.result.exists():
            raise RuntimeError(f"Flower failed:\n{self.log.read_text()[-2000:]}")


def one_round(
    model: nn.Module, clients: list[Client], setting: Setting, number: int, engine: str
) -> Took:
    """One round with everybody."""
    started, before = time.perf_counter(), time.process_time()
    rows, weights = local_updates(
        model, clients, epochs=setting.epochs, batch_size=setting.batch_size, lr=setting.lr,
        seed=setting.seed, round=number, engine=engine,
    )  # fmt: skip
    apply_update(model, mean(rows, weights))
    return Took(time.perf_counter() - started, time.process_time() - before)


def first_round(setting: Setting) -> float:
    """Seconds from starting a fresh Python to the end of its first round (engine `auto`)."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.fedavg_rounds",
        "--first",
        json.dumps(vars(setting)),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    return time.perf_counter() - started


def measure(setting: Setting, rounds: int, limit: float, *, flower: bool) -> dict[str, Any]:
    """One setting: all rounds of all competitors, taking turns."""
    clients, start = make_clients(setting), flatten(make_model(setting))
    models = {engine: make_model(setting) for engine in ENGINES}
    took: dict[str, list[Took]] = {name: [] for name in (*ENGINES, "flower")}
    first = {"flcourse": first_round(setting)}
    ends = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(setting, rounds + 1, Path(folder), limit) if flower else None
        for number in range(1, rounds + 2):
            for name in ENGINES if number % 2 else ENGINES[::-1]:
                took[name].append(one_round(models[name], clients, setting, number, name))
            if peer is not None:
                turn = peer.round()
                if number == 1 and turn is not None:
                    first["flower"] = peer.up + turn.clock
                if turn is not None:
                    took["flower"].append(turn)
        if peer is not None:
            peer.close()
            if peer.result.exists():
                end = make_model(setting)
                end.load_state_dict(torch.load(peer.result, weights_only=True))
                ends["flower"] = flatten(end)
    ends |= {name: flatten(model) for name, model in models.items()}
    return {
        **vars(setting),
        "auto": _engine("auto", make_model(setting), clients, setting.batch_size),
        "seconds": {name: [t.clock for t in turns[1:]] for name, turns in took.items()},
        "cpu_seconds": {name: [t.cpu for t in turns[1:]] for name, turns in took.items()},
        "seconds_to_end_of_round_1": first,
        "flower_finished": ("flower" in ends) if flower else None,
        "difference": differences(ends, start, TOLERANCES[setting.dtype]),
    }


def differences(ends: dict[str, Tensor], start: Tensor, tolerance: float) -> dict[str, float]:
    """How far the other models are from the loop's, relative to how far training went.

    Raises `AssertionError` beyond `tolerance`: then the competitors did not do the same work.
    """
    way = (ends["loop"] - start).norm()
    found = {
        name: float((end - ends["loop"]).norm() / way)
        for name, end in ends.items()
        if name != "loop"
    }
    assert all(value < tolerance for value in found.values()), found
    return found


def row(entry: dict[str, Any], limit: float) -> dict[str, Any]:
    """One line of the status page's table."""
    seconds = entry["seconds"]
    loop, batched, flower = seconds["loop"], seconds["batched"], seconds["flower"]
    cpu, auto = entry["cpu_seconds"], entry["auto"]
    first = entry["seconds_to_end_of_round_1"]
    missing = "not run" if entry["flower_finished"] is None else f"not finished in {limit:.0f} s"
    return {
        "model": entry["model"],
        "clients × samples": f"{entry['num_clients']:,} × {entry['samples']}",
        "loop, rounds/s": rate(loop, bold=auto == "loop"),
        "batched, rounds/s": rate(batched, bold=auto == "batched"),
        "Flower, rounds/s": rate(flower) if flower else missing,
        "batched ÷ loop": ratio(loop, batched),
        "ours ÷ Flower": ratio(flower, seconds[auto]) if flower else missing,
        "the same in CPU seconds": ratio(cpu["flower"], cpu[auto]) if flower else missing,
        "start to end of round 1, ours / Flower": f"{first['flcourse']:.1f} s / "
        + (f"{first['flower']:.1f} s" if "flower" in first else missing),
    }


def rate(seconds: list[float], *, bold: bool = False) -> str:
    """Rounds per second: the median (bold: the engine that `auto` takes), and least to most."""
    rates = sorted(1 / value for value in seconds)
    mark = "**" if bold else ""
    return f"{mark}{statistics.median(rates):.3g}{mark} ({rates[0]:.3g}–{rates[-1]:.3g})"


def ratio(slow: list[float], fast: list[float]) -> str:
    """How many times faster, turn by turn: the median, and least to most.

    Flower may have been stopped early: then its turns are fewer.
    """
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=False))
    median, least, most = (
        f"{value:.2g}" if value < 10 else f"{value:.0f}"
        for value in (statistics.median(ratios), ratios[0], ratios[-1])
    )
    return f"×{median} ({least}–{most})"


def flower_versions() -> dict[str, str]:
    """The versions in Flower's environment."""
    code = "import json; from importlib.metadata import version as v\n"
    code += "print(json.dumps({name: v(name) for name in ('flwr', 'ray', 'torch', 'numpy')}))"
    answer = subprocess.run([str(FLOWER), "-c", code], check=True, capture_output=True, text=True)
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--limit", type=float, default=150, help="seconds for Flower a setting")
    parser.add_argument("--no-flower", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="10 clients, one model: does it run?")
    parser.add_argument("--remark", default="", help="a sentence about the machine, for the note")
    parser.add_argument("--first", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.first:
        setting = Setting(**json.loads(options.first))
        one_round(make_model(setting), make_clients(setting), setting, 1, "auto")
        return
    flower = not options.no_flower
    if flower and not FLOWER.exists():
        parser.error(f"{FLOWER} is missing: run benchmarks/make_flower_env.sh, or use --no-flower")
    settings = {Setting("MLP", 10, 40): 2} if options.tiny else SETTINGS
    load, entries = os.getloadavg()[0], []
    oracles = [measure(setting, 2, options.limit, flower=flower) for setting in ORACLES]
    print(f"after 3 rounds in float64 the models differ by {worst(oracles):.0e}", flush=True)
    for setting, rounds in settings.items():
        entries.append(measure(setting, rounds, options.limit, flower=flower))
        print(*(f"{key}: {value}" for key, value in row(entries[-1], options.limit).items()),
              sep="\n  ", flush=True)  # fmt: skip
    record = {
        "name": "fedavg_rounds",
        "title": "Rounds per second of federated averaging",
        "note": "One epoch of SGD, batch 32, learning rate 0.05, on glyphs; every client in every "
        "round; no evaluation. Ours: one process, one thread. Flower: Ray with two processes of "
        "one thread each. Medians over rounds that took turns (least–most); ratios within a turn. "
        "Bold: the engine that `auto` takes, and that is compared with Flower. "
        "Round 1, with imports and start-up in a fresh process, stands apart. All three train the "
        f"same global model: after 3 rounds in float64 they differ by {worst(oracles):.0e} of the "
        f"distance that training went, after all rounds in float32 by {worst(entries):.0e}. "
        f"{options.remark}".rstrip(),
        "provenance": provenance() | {"flower": flower_versions() if flower else None},
        "load_average_before": round(load, 2),
        "rows": [row(entry, options.limit) for entry in entries],
        "oracles": [{"model": one["model"], "difference": one["difference"]} for one in oracles],
        "measurements": entries,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(options.out)


def worst(entries: list[dict[str, Any]]) -> float:
    """The largest difference between two competitors' models in any setting."""
    return max(value for entry in entries for value in entry["difference"].values())


if __name__ == "__main__":
    main()
