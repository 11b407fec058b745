"""The leakage benchmark's table: medians, quartiles, ratios within a message, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

Record = dict[str, Any]


def rows(records: Sequence[Record], yardsticks: dict[str, str | None]) -> list[Record]:
    """One line for each attack of each part."""
    found = []
    for part in dict.fromkeys(record["part"] for record in records):
        mine = [record for record in records if record["part"] == part]
        for name in dict.fromkeys(record["attack"] for record in mine):
            chosen = [record for record in mine if record["attack"] == name]
            found.append(_row(part, name, chosen) | _faster(mine, name, yardsticks.get(part)))
    return found


def _row(part: str, name: str, chosen: list[Record]) -> Record:
    psnrs = np.concatenate([record["psnr"] for record in chosen])
    seconds = [record["cpu_seconds"] for record in chosen]
    low, middle, high = (float(np.quantile(psnrs, q)) for q in (0.25, 0.5, 0.75))
    matches = [r["label_match"] for r in chosen if r["label_match"] is not None]
    return {
        "part": part,
        "attack": name,
        "pictures": len(psnrs),
        "success": float(np.mean(np.concatenate([record["success"] for record in chosen]))),
        "psnr": middle,
        "quartiles": [low, high],
        "least": float(psnrs.min()),
        "ssim": float(np.median(np.concatenate([record["ssim"] for record in chosen]))),
        "floor": float(np.median(np.concatenate([record["floor"] for record in chosen]))),
        "labels": float(np.mean(matches)) if matches else None,
        "cpu_seconds": median(seconds),
    }


def _faster(records: list[Record], name: str, yardstick: str | None) -> Record:
    """How many times less CPU than the yardstick, message by message: median, least, most."""
    if yardstick is None or name == yardstick:
        return {"faster": None}
    seconds = {
        which: {
            (r["picture"], r["seed"]): r["cpu_seconds"] for r in records if r["attack"] == which
        }
        for which in (yardstick, name)
    }
    both = seconds[yardstick].keys() & seconds[name].keys()
    ratios = sorted(seconds[yardstick][key] / max(seconds[name][key], 1e-4) for key in both)
    return {"faster": [median(ratios), ratios[0], ratios[-1]] if ratios else None}


def shown(line: Record) -> dict[str, str]:
    """A line of the table as a reader sees it."""
    low, high = line["quartiles"]
    faster = line["faster"]
    return {
        "message": line["part"],
        "attack": line["attack"],
        "pictures": str(line["pictures"]),
        "success": f"{line['success']:.0%}",
        "PSNR, dB": f"{line['psnr']:.1f} ({low:.1f}–{high:.1f}), least {line['least']:.1f}",
        "SSIM": f"{line['ssim']:.2f}",
        "floor, dB": f"{line['floor']:.1f}",
        "labels": "" if line["labels"] is None else f"{line['labels']:.0%}",
        "CPU s": f"{line['cpu_seconds']:.2g}",
        "times less CPU": ""
        if faster is None
        else f"×{faster[0]:.3g} ({faster[1]:.2g}–{faster[2]:.3g})",
    }


def markdown(lines: Sequence[Record]) -> str:
    """The table, for a terminal or a page."""
    texts = [shown(line) for line in lines]
    heads = list(texts[0]) if texts else []
    body = [heads, ["---"] * len(heads), *(list(text.values()) for text in texts)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in body)


# --- targets ------------------------------------------------------------------------------------

# part, attack, figure, least that is wanted. PSNRs in dB; the table on photos is meant.
TARGETS: tuple[tuple[str, str, str, float], ...] = (
    ("LeNet, one picture", "peel", "times less CPU", 100),
    ("LeNet, one picture", "peel", "least PSNR", 50),
    ("LeNet, one picture", "match_gradients", "times less CPU", 15),
    ("LeNet, one picture", "match_gradients", "least PSNR", 30),
    ("SimpleCNN, one picture", "match_gradients", "median PSNR", 27),
    ("SimpleCNN, one picture", "match_gradients", "times less CPU", 10),
    ("LeNet, batch of 2", "match_gradients", "median PSNR", 37),
    ("LeNet, batch of 4", "match_gradients", "median PSNR", 31),
    ("LeNet, batch of 8", "match_gradients", "median PSNR", 27.5),
    ("LeNet, update of 5 local steps", "match_gradients", "median PSNR", 35),
    ("LeNet, update of 20 local steps", "match_gradients", "median PSNR", 31),
)
MEMORY_TARGET = 2048.0  # MiB


def verdicts(lines: Sequence[Record], memory: Record | None = None) -> list[str]:
    """One sentence for each target that was measured."""
    by_name = {(line["part"], line["attack"]): line for line in lines}
    said = []
    for part, name, figure, wanted in TARGETS:
        line = by_name.get((part, name))
        if line is None:
            continue
        faster = line["faster"][0] if line["faster"] else math.nan
        value = {"times less CPU": faster, "least PSNR": line["least"], "median PSNR": line["psnr"]}
        said.append(_verdict(f"{part}: {name}: {figure}", value[figure], wanted, more=True))
    if memory is not None:
        what = f"SimpleCNN, {memory['restarts']} restarts: peak MiB"
        said.append(_verdict(what, memory["peak_mib"], MEMORY_TARGET, more=False))
    return said


def _verdict(what: str, value: float, wanted: float, *, more: bool) -> str:
    reached = value >= wanted if more else value <= wanted
    sign = "at least" if more else "at most"
    return f"{'reached' if reached else 'MISSED'}: {what} {value:.4g}, wanted {sign} {wanted:g}"
