"""Make the stored result `published_loops`: how often DLG and iDLG succeed, and what cures them.

    python -m data_scripts.make_published_loops        # about an hour on one core; can be resumed

LeNet with 100 classes, the first 12 photos, one at a time, 3 seeds of weights and start: DLG and
iDLG as published, then (1 seed) iDLG with one change (a line search, a grey start, the DCT basis
with the same white start), and with all three. Chapter 03 shows it and recomputes one cell.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers_leakage import OUTER, Run, gradient_loop, sign_label
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.scoring import MARGIN_DB, SUCCESS_DB
from flcourse.claims import save_stored
from flcourse.data import load_dataset
from flcourse.metrics import flat_floor, psnr
from flcourse.models import LeNet
from flcourse.runtime import progress

SEEDS = (0, 1, 2)
PICTURES = tuple(range(12))
VARIANTS: dict[str, dict[str, bool]] = {
    "DLG": {},
    "iDLG": {},
    "iDLG, line search": {"line_search": True},
    "iDLG, grey start": {"grey_start": True},
    "iDLG, DCT basis": {"cosine_basis": True},
    "iDLG, all three": {"line_search": True, "grey_start": True, "cosine_basis": True},
}
# A change gets a fifth of the published budget: what it cures, it cures well before that.
CHANGED_OUTER, CHANGED_SEEDS = OUTER // 5, (0,)
SHOWN = (0, 1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300)  # outer steps at which the loss is stored


def cell(variant: str, picture: int, seed: int, outer: int | None = None) -> dict[str, Any]:
    """One run of one variant, with all that the chapter shows of it."""
    photos = load_dataset("photos").train
    image, label = photos.inputs[picture : picture + 1], photos.labels[picture : picture + 1]
    model = LeNet(seed=seed)
    leak = observe_gradient(model, image, label)
    labels = None if variant == "DLG" else sign_label(leak)
    outer = outer or (CHANGED_OUTER if VARIANTS[variant] else OUTER)
    run = gradient_loop(model, leak, labels=labels, seed=seed, outer=outer, **VARIANTS[variant])

    def score(found: Run) -> dict[str, Any]:
        return {
            "psnr": float(psnr(image, found.images)),
            "evaluations": found.evaluations,
            "cpu_seconds": found.seconds,
        }

    return {
        "variant": variant,
        "picture": picture,
        "seed": seed,
        **score(run),
        "floor": float(flat_floor(image)),
        "diverged": run.diverged,
        "loss": finite(run.loss),
        "label_right": bool(run.labels.item() == label.item()),
        "largest_pixel": finite(float(run.images.abs().max())),
        "losses": [finite(run.losses[step]) for step in SHOWN if step < len(run.losses)],
        "at_iDLGs_stop": score(run.stopped) if run.stopped else None,
    }


def finite(value: float) -> float | None:
    """``value``, or ``None`` where it is no number: JSON has none of those."""
    return value if math.isfinite(value) else None


def succeeded(record: dict[str, Any]) -> bool:
    """As `scoring.succeeded` has it."""
    return bool(record["psnr"] > SUCCESS_DB and record["psnr"] >= record["floor"] + MARGIN_DB)


def cells() -> Iterator[tuple[str, int, int]]:
    """Every run, the published loops first."""
    for changed in (False, True):
        for seed in CHANGED_SEEDS if changed else SEEDS:
            for picture in PICTURES:
                for variant, changes in VARIANTS.items():
                    if bool(changes) == changed:
                        yield variant, picture, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("runs") / "published_loops.jsonl")
    options = parser.parse_args()
    torch.backends.mkldnn.enabled = False  # on one 32×32 picture it takes 1.6 times as long
    options.work.parent.mkdir(parents=True, exist_ok=True)
    lines = options.work.read_text().splitlines() if options.work.exists() else []
    records = {
        (record["variant"], record["picture"], record["seed"]): record
        for record in map(json.loads, lines)
    }
    for key in progress(list(cells()), "runs"):
        if key not in records:
            records[key] = cell(*key)
            with options.work.open("a") as file:
                file.write(json.dumps(records[key]) + "\n")
    results = {}
    for variant in VARIANTS:
        mine = [records[key] for key in cells() if key[0] == variant]
        columns: dict[str, Any] = {name: [record[name] for record in mine] for name in mine[0]}
        columns["success"] = [succeeded(record) for record in mine]
        results[variant] = {k: v for k, v in columns.items() if k != "variant"}
    config = {
        "seeds": SEEDS,
        "pictures": PICTURES,
        "data": "photos",
        "model": "LeNet(num_classes=100)",
        "variants": VARIANTS,
        "seeds_with_a_change": CHANGED_SEEDS,
        "outer_steps": {"as published": OUTER, "with a change": CHANGED_OUTER},
        "success": f"PSNR above {SUCCESS_DB:g} dB and {MARGIN_DB:g} dB above the flat picture",
        "losses_at_outer_steps": SHOWN,
    }
    print(save_stored("published_loops", config=config, results=results))


if __name__ == "__main__":
    main()
