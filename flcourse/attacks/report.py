"""What one attack leaves in a folder: numbers, pictures, loss, the picture emerging. Chapter 06.

The truth is optional: an attack that is repeated from its message alone has no scores.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from flcourse import viz
from flcourse.attacks.scoring import score, succeeded
from flcourse.attacks.types import Leak, Recovery, Scores, Snapshot
from flcourse.metrics import psnr
from flcourse.runtime import finite_json, provenance
from flcourse.viz.emerging import emerging_frame, thin

METRICS, PICTURE, LOSS, CURVE = "metrics.json", "reconstruction.png", "loss.csv", "loss.png"
ANIMATION, PROTOCOL, LEAK, GUESS = "emerging.gif", "layers.png", "leak.pt", "recovery.pt"
FILES = (METRICS, PICTURE, LOSS, CURVE, ANIMATION, PROTOCOL, LEAK, GUESS)
SHOWN = 8  # pictures of a batch in a figure
FRAMES = 16


def write(
    folder: Path,
    model: nn.Module,
    leak: Leak,
    recovery: Recovery,
    truth: tuple[Tensor, Tensor] | None,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the recovery where the truth ``(images, labels)`` is known, and write all files.

    Returns the content of ``metrics.json``. Everything is the same in every run of the same
    command, but for the entry ``run`` (seconds, date, machine).
    """
    folder.mkdir(parents=True, exist_ok=True)
    scores = None if truth is None else score(recovery, *truth, model=model)
    numbers = metrics(leak, recovery, scores, truth, classes)
    save_json(folder / METRICS, numbers)
    leak.to("cpu").save(folder / LEAK)
    guess = recovery.images
    labels = recovery.labels
    torch.save({"images": _cpu(guess), "labels": _cpu(labels)}, folder / GUESS)
    _write_loss(folder / LOSS, recovery)
    if recovery.layers:
        viz.layer_protocol(recovery.layers).save(folder / PROTOCOL)
    if truth is not None and scores is not None:
        _compared(folder, leak, recovery, scores, truth[0])
    elif guess is not None:
        viz.picture_grid(guess[:SHOWN].cpu(), alt="What came back.").save(folder / PICTURE)
    return numbers


def clear(folder: Path) -> None:
    """Remove what an earlier attack left in the folder, and nothing else."""
    for own in (folder, *folder.glob("client-*"), *folder.glob("aggregate")):
        for name in FILES:
            (own / name).unlink(missing_ok=True)
        if own != folder and not any(own.iterdir()):
            own.rmdir()


def metrics(
    leak: Leak,
    recovery: Recovery,
    scores: Scores | None,
    truth: tuple[Tensor, Tensor] | None,
    classes: Sequence[str],
) -> dict[str, Any]:
    """The numbers of one attack: what the attacker knows, then what the truth adds."""
    labels = recovery.labels
    if labels is not None and labels.dim() == 2:
        labels = labels.argmax(dim=1)
    found = None if labels is None else labels.tolist()
    content: dict[str, Any] = {
        "method": recovery.method,
        "kind": leak.kind,
        "batch_size": leak.batch_size,
        "num_clients": leak.num_clients,
        "values_sent": leak.row.numel(),
        "loss": recovery.loss,
        "restart_losses": list(recovery.restart_losses),
        "evaluations": recovery.evaluations,
        "recovered": recovery.images is not None,
        "stopped_at": recovery.stopped_at,
        "labels": found,
        "label_names": _names(found, classes),
        "layers": [vars(layer) for layer in recovery.layers],
    }
    if scores is not None and truth is not None:
        true = truth[1].tolist()
        content |= {"true_labels": true, "true_label_names": _names(true, classes)}
        content |= {"success": succeeded(scores).tolist()} | scores.as_dict()
    return content | {"run": {"cpu_seconds": recovery.seconds, **provenance()}}


def save_json(path: Path, content: Any) -> None:
    """Write JSON that any reader takes: no NaN, no infinity."""
    text = json.dumps(finite_json(content), indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def sentence(name: str, numbers: Mapping[str, Any]) -> str:
    """One line for the terminal: what came back."""
    if not numbers["recovered"]:
        return f"{name}: no picture, {numbers['method']} stopped at {numbers['stopped_at']}"
    if "psnr" not in numbers:
        return f"{name}: {numbers['method']}, loss {numbers['loss']:.2g}; no truth, so no score"
    psnr, floor = torch.tensor(numbers["psnr"]), torch.tensor(numbers["floor"])
    share = numbers["label_match"]
    label = "" if share is None else f", labels {share:.0%}"
    return (
        f"{name}: {numbers['method']}, PSNR {_span(psnr)} dB (floor {_span(floor)} dB), "
        f"SSIM {_span(torch.tensor(numbers['ssim']), 2)}{label}"
    )


# -------------------------------------------------------------------------------- the pictures


def _compared(folder: Path, leak: Leak, recovery: Recovery, scores: Scores, images: Tensor) -> None:
    images, first = images.cpu(), float(scores.floor[0])
    guess = None if recovery.images is None else recovery.images.cpu()[scores.order]
    if guess is not None and len(images) == 1:
        named = {"PSNR (dB)": float(scores.psnr[0]), "SSIM": float(scores.ssim[0])}
        figure = viz.reconstruction(images[0], guess[0], named, first, gradient=leak.row)
    else:
        pictures = [None] * len(images) if guess is None else guess
        figure = viz.recovered_grid(
            images[:SHOWN], {"what came back": pictures[:SHOWN]},
            {"what came back": scores.psnr[:SHOWN]}, scores.floor[:SHOWN], errors=True,
            columns=min(len(images), 4),
        )  # fmt: skip
    figure.save(folder / PICTURE)
    if recovery.snapshots:
        snapshots = [_ordered(one, scores.order) for one in recovery.snapshots]
        lined = {recovery.method: replace(recovery, snapshots=tuple(snapshots))}
        note = "PSNR of the first picture." if len(images) > 1 else ""
        viz.loss_and_psnr(lined, images[0], first, caption=note).save(folder / CURVE)
        if len(snapshots) > 1:
            _animate(folder / ANIMATION, images, snapshots, scores.floor)


def _ordered(snapshot: Snapshot, order: Tensor) -> Snapshot:
    """The snapshot with its pictures in the order of the truth, as they end."""
    return replace(snapshot, images=snapshot.images.detach().cpu()[order])


def _animate(path: Path, images: Tensor, snapshots: Sequence[Snapshot], floors: Tensor) -> None:
    """The picture as it emerges, a frame a snapshot; the last one stays for two seconds."""
    chosen = thin(snapshots, FRAMES)
    if len(images) == 1:
        figures = [emerging_frame(images[0], one, float(floors[0])) for one in chosen]
    else:
        figures = [_batch_frame(images[:SHOWN], one, floors[:SHOWN]) for one in chosen]
    frames = [Image.open(io.BytesIO(figure.png)).convert("RGB") for figure in figures]
    halves = [frame.resize((frame.width // 2, frame.height // 2)) for frame in frames]
    packed = [half.quantize(256, dither=Image.Dither.NONE) for half in halves]
    times = [300] * (len(packed) - 1) + [2000]
    packed[0].save(path, save_all=True, append_images=packed[1:], duration=times, loop=0)


def _batch_frame(images: Tensor, snapshot: Snapshot, floors: Tensor) -> viz.Figure:
    guess = snapshot.images[: len(images)]
    title = f"after {snapshot.evaluation} evaluations, loss {snapshot.loss:.2g}"
    return viz.recovered_grid(
        images, {title: guess}, {title: psnr(images, guess)}, floors, columns=min(len(images), 4)
    )


def _write_loss(path: Path, recovery: Recovery) -> None:
    """The attacker's loss at each evaluation; a closed form has one value, at its end."""
    history = recovery.history or (recovery.loss,)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("evaluation", "loss"))
        writer.writerows((number, f"{loss:.9g}") for number, loss in enumerate(history, start=1))


def _names(labels: list[int] | None, classes: Sequence[str]) -> list[str] | None:
    if labels is None:
        return None
    return [classes[label] if label < len(classes) else str(label) for label in labels]


def _span(values: Tensor, digits: int = 1) -> str:
    low, high = f"{float(values.min()):.{digits}f}", f"{float(values.max()):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def _cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().cpu()
