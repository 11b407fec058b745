"""One step of DP-SGD: ours (vmap, in chunks, ghost) beside Opacus (hooks, ghost) and plain SGD.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.dpsgd_step         # about half a minute

All do a step on the same model and batch, with noise, and take turns; ratios are of CPU seconds,
formed within a turn. Before that, the clipped sums must agree. Peak memory is that of a process of
its own for each: what the resident set grew by during three steps, after imports, model and a step
on one sample (Linux only). Writes results/dpsgd_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flcourse.models import LeNet, SimpleCNN
from flcourse.privacy import clipped_gradients, private_step
from flcourse.runtime import generator, provenance

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "dpsgd_step.json"
BATCH, LR, CLIP_NORM, NOISE = 64, 0.01, 1.0, 1.0
MODELS: dict[str, Callable[[], nn.Module]] = {
    "SimpleCNN": SimpleCNN,
    "LeNet": lambda: LeNet(num_classes=10),
}
OURS = {
    "vmap": {"method": "vmap"},
    "vmap, all at once": {"method": "vmap", "chunk_size": BATCH},
    "ghost": {"method": "ghost"},
}
THEIRS = ("Opacus, hooks", "Opacus, ghost")
STEPS = ("plain SGD", *OURS, *THEIRS)
MEBIBYTE = 2**20

Step = Callable[[Tensor, Tensor], None]


def batch(count: int = BATCH) -> tuple[Tensor, Tensor]:
    """Pictures and labels; their content does not matter to the clock."""
    draws = generator(0, "batch")
    return torch.rand(count, 3, 32, 32, generator=draws), torch.arange(count) % 10


def make_step(name: str, model: nn.Module, noise: float = NOISE) -> Step:
    """A step of ``name`` that trains ``model`` in place."""
    if name in OURS:
        draws = generator(0, "noise")

        def ours(inputs: Tensor, labels: Tensor) -> None:
            private_step(
                model, inputs, labels, clip_norm=CLIP_NORM, noise_multiplier=noise,
                expected_batch_size=BATCH, lr=LR, generator=draws, **OURS[name],
            )  # fmt: skip

        return ours
    if name in THEIRS:
        return _opacus(model, ghost=name.endswith("ghost"), noise=noise)
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)

    def plain(inputs: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimiser.step()

    return plain


def _opacus(model: nn.Module, *, ghost: bool, noise: float) -> Step:
    from opacus.grad_sample import GradSampleModule
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    options = {
        "noise_multiplier": noise, "max_grad_norm": CLIP_NORM, "expected_batch_size": BATCH,
    }  # fmt: skip
    if ghost:
        hooked = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True
        )
        optimiser = DPOptimizerFastGradientClipping(
            torch.optim.SGD(hooked.parameters(), lr=LR), **options
        )
        loss = DPLossFastGradientClipping(hooked, optimiser, nn.CrossEntropyLoss(), "mean")
    else:
        hooked = GradSampleModule(model)
        optimiser = DPOptimizer(torch.optim.SGD(hooked.parameters(), lr=LR), **options)
        loss = F.cross_entropy

    def theirs(inputs: Tensor, labels: Tensor) -> None:
        optimiser.zero_grad()
        loss(hooked(inputs), labels).backward()
        optimiser.step()

    return theirs


def disagreement(model_name: str) -> dict[str, float]:
    """How far each way's bare step is from that of one backward pass a sample, of its length."""
    inputs, labels = batch()
    truth = _one_by_one(MODELS[model_name](), inputs, labels)
    found = {}
    for name in (*OURS, *THEIRS):
        model = MODELS[model_name]()
        if name in OURS:
            total = clipped_gradients(
                model, inputs, labels, clip_norm=CLIP_NORM, **OURS[name]
            ).total
        else:
            before = _row(model)
            make_step(name, model, noise=0.0)(inputs, labels)
            total = (before - _row(model)) * BATCH / LR
        found[name] = float((total - truth).norm() / truth.norm())
    return found


def _one_by_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    total = torch.zeros_like(_row(model))
    for sample, label in zip(inputs, labels, strict=True):
        loss = F.cross_entropy(model(sample[None]), label[None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        row = torch.cat([part.reshape(-1) for part in parts])
        total += row * min(1.0, CLIP_NORM / float(row.norm()))
    return total


def _row(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


def seconds(model_name: str, turns: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each turn; the first turn is warm-up and left out."""
    inputs, labels = batch()
    steps = {name: make_step(name, MODELS[model_name]()) for name in STEPS}
    took: dict[str, list[float]] = {name: [] for name in STEPS}
    for turn in range(turns + 1):
        for name, step in steps.items():
            start = time.process_time()
            step(inputs, labels)
            if turn:
                took[name].append(time.process_time() - start)
    return took


def peak_here(name: str, model_name: str) -> float:
    """MiB that three steps add to this process' resident set at its peak."""
    inputs, labels = batch()
    step = make_step(name, MODELS[model_name]())
    step(inputs[:1], labels[:1])
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        step(inputs, labels)
    # Not getrusage: its maximum starts at that of the process which started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kibibytes = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    assert kibibytes is not None
    return (1024 * int(kibibytes[1]) - before) / MEBIBYTE


def peak(name: str, model_name: str) -> float:
    """``peak_here`` in a process of its own."""
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.dpsgd_step",
        "--peak",
        name,
        model_name,
    ]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return float(done.stdout.strip().splitlines()[-1])


def measure(model_name: str, turns: int) -> dict[str, object]:
    """Everything about one model, as it is stored."""
    apart = disagreement(model_name)
    took = seconds(model_name, turns)
    against = took[THEIRS[0]]
    rows = {}
    for name in STEPS:
        ratios = [theirs / own for theirs, own in zip(against, took[name], strict=True)]
        tenths = statistics.quantiles(ratios, n=10)
        spread = (statistics.median(ratios), tenths[0], tenths[-1])
        rows[name] = {
            "CPU milliseconds": round(1e3 * statistics.median(took[name]), 1),
            "times faster than Opacus' hooks": [round(value, 2) for value in spread],
            "peak MiB": round(peak(name, model_name)),
            "disagreement": apart.get(name),
        }
    return rows


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.peak:
        print(peak_here(*args.peak))
        return
    found = {name: measure(name, args.turns) for name in MODELS}
    for name, rows in found.items():
        print(name)
        for way, row in rows.items():
            print(f"  {way:22s} {row}")
    config = {"batch": BATCH, "turns": args.turns, "clip_norm": CLIP_NORM}
    content = {
        "what": "a step of DP-SGD; ratios: median, 10th and 90th percentile of the turns",
        "config": config, "models": found, "provenance": provenance(), "opacus": _opacus_version(),
    }  # fmt: skip
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _opacus_version() -> str:
    from importlib.metadata import version

    return version("opacus")


if __name__ == "__main__":
    main()
