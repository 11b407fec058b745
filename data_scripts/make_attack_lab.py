"""Make the stored result `attack_lab`: the attack of chapter 03 on other signals, under defences.

    python -m data_scripts.make_attack_lab            # about 25 minutes on one core; can be resumed

LeNet(100) and the course's photos. Every cell runs on several pairs of photo and seed; the first
pair is the running case, whose recovered picture is kept as well. Chapter 06 shows the result and
recomputes one cell.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flcourse import defences
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.observe import aggregate, observe_gradient, observe_round, observe_update
from flcourse.attacks.scoring import score, succeeded
from flcourse.attacks.types import Leak, Recovery
from flcourse.claims import save_stored
from flcourse.data import Client, load_dataset
from flcourse.models import LeNet
from flcourse.runtime import generator, progress

# (photo, seed of the model): a face, a flower, a temple, a photographer, each on two models.
HIDDEN = ("start",)  # the page has a curve of it, no pictures
RUNS = ((0, 3), (3, 0), (7, 1), (8, 2), (0, 0), (3, 1), (7, 2), (8, 3))
MANY = 8
STEPS = 150  # evaluations for one photo and one step
STEPS_MANY = 600  # for several photos; half of it where there are more than eight
STEPS_NORMALISED = 150  # where each client's own gradient must be computed in each evaluation
STEPS_LOCAL = 100  # for several local steps, of which each evaluation costs as many gradients
LR = 0.01  # sigmoids after uniform weights of 0.5 overshoot at 0.05

BATCHES = (1, 2, 4, 8, 16, 32, 50)  # also the mean of as many clients with one photo each
LOCAL_STEPS = (1, 2, 5, 10, 20)
CLIENTS = (2, 4, 8, 16, 32, 50)
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0)
ROUNDS = (1, 2, 5, 10, 20, 50, 200)
FEDERATION = {"epochs": 1, "batch_size": None, "lr": 0.2}

PLAIN = {"distance": "cosine", "basis": "pixels", "support": "all", "candidates": 1}
UNAWARE = {"distance": "cosine", "support": "all", "candidates": 1}
ATTACKERS = ("plain", "better basis", "adapts")


def _noise(leak: Leak, seed: int, std: float) -> Leak:
    row = defences.clip(leak.row, 1.0)
    row = defences.gaussian(row, std, generator(seed, "defence", "gaussian"))
    return leak.with_row(row, clip_norm=1.0, noise_std=std)


def _clip(leak: Leak, seed: int) -> Leak:
    return leak.with_row(defences.clip(leak.row, 1.0), clip_norm=1.0)


def _on_row(change: Callable[..., Tensor], *args: float) -> Callable[[Leak, int], Leak]:
    return lambda leak, seed: leak.with_row(change(leak.row, *args))


DEFENCES: dict[str, Callable[[Leak, int], Leak]] = {
    "none": lambda leak, seed: leak,
    "clip to 1": _clip,
    "keep 50 %": _on_row(defences.prune, 0.5),
    "keep 10 %": _on_row(defences.prune, 0.1),
    "keep 1 %": _on_row(defences.prune, 0.01),
    "8 bits": _on_row(defences.quantise, 8),
    "4 bits": _on_row(defences.quantise, 4),
    "2 bits": _on_row(defences.quantise, 2),
    "sign": _on_row(defences.sign),
    "noise 1e-4": partial(_noise, std=1e-4),
    "noise 1e-3": partial(_noise, std=1e-3),
    "noise 1e-2": partial(_noise, std=1e-2),
    "noise 1e-1": partial(_noise, std=1e-1),
}


def pictures(photo: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` pictures, `photo` first: the other photos, then quarters of the larger ones."""
    small = load_dataset("photos").train
    order = [(photo + k) % len(small) for k in range(len(small))]
    large = load_dataset("photos", image_size=64).train
    quarters = large.inputs.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5)
    images = torch.cat([small.inputs[order], quarters.reshape(-1, 3, 32, 32)])
    labels = torch.cat([small.labels[order], large.labels.repeat_interleave(4)])
    return images[:count].contiguous(), labels[:count]


def lenet(seed: int) -> LeNet:
    return LeNet(100, seed=seed)


def _steps(count: int) -> int:
    return STEPS if count == 1 else STEPS_MANY if count <= MANY else STEPS_MANY // 2


def batch(size: int, method: str, photo: int, seed: int) -> tuple[Recovery, Tensor, Tensor]:
    """The gradient of a batch, by the course's attack or in pixels with the cosine."""
    images, labels = pictures(photo, size)
    leak = observe_gradient(lenet(seed), images, labels)
    options = PLAIN if method == "plain" else {}
    found = match_gradients(lenet(seed), leak, seed=seed, steps=_steps(size), **options)
    return found, images, labels


def steps(count: int, method: str, photo: int, seed: int) -> tuple[Recovery, Tensor, Tensor]:
    """The update after `count` steps on one photo, unrolled or taken for one gradient."""
    images, labels = pictures(photo, 1)
    leak = observe_update(lenet(seed), images, labels, lr=LR, epochs=count, batch_size=None)
    unroll = None if method == "unrolled" else False
    found = match_gradients(lenet(seed), leak, seed=seed, steps=STEPS_LOCAL, unroll=unroll)
    return found, images, labels


def clients(count: int, method: str, photo: int, seed: int) -> tuple[Recovery, Tensor, Tensor]:
    """The mean of gradients scaled to length one, one photo a client (as they are: `batch`)."""
    images, labels = pictures(photo, count)
    alone = zip(images.split(1), labels.split(1), strict=True)
    leak = aggregate([observe_gradient(lenet(seed), *one) for one in alone], normalise=True)
    found = match_gradients(lenet(seed), leak, seed=seed, steps=STEPS_NORMALISED)
    return found, images, labels


def start(scale: float, method: str, photo: int, seed: int) -> tuple[Recovery, Tensor, Tensor]:
    """One photo, weights and biases uniform in (-scale, scale)."""
    model = lenet(seed)
    torch_seed = generator(seed, "attack lab", "scale")
    with torch.no_grad():
        for parameter in model.parameters():
            draw = torch.rand(parameter.shape, generator=torch_seed)
            parameter.copy_(scale * (2 * draw - 1))
    images, labels = pictures(photo, 1)
    leak = observe_gradient(model, images, labels)
    options = PLAIN if method == "plain" else {}
    return match_gradients(model, leak, seed=seed, steps=STEPS, **options), images, labels


def in_round(number: int, method: str, photo: int, seed: int) -> tuple[Recovery, Tensor, Tensor]:
    """The update of the client with this photo in a later round, ten clients of one photo each."""
    model, leak, images, labels = round_of(number, photo, seed)
    options = PLAIN if method == "plain" else {}
    return match_gradients(model, leak, seed=seed, steps=STEPS, **options), images, labels


@cache
def round_of(number: int, photo: int, seed: int) -> tuple[nn.Module, Leak, Tensor, Tensor]:
    images, labels = pictures(photo, 10)
    each = enumerate(zip(images.split(1), labels.split(1), strict=True))
    group = [Client(index, *own) for index, own in each]
    model, leak = observe_round(lenet(seed), group, client=0, round=number, seed=seed, **FEDERATION)
    return model, leak, images[:1], labels[:1]


def under_defence(
    name: str, attacker: str, photo: int, seed: int
) -> tuple[Recovery, Tensor, Tensor]:
    """One photo's gradient under a defence, against one of three attackers."""
    images, labels = pictures(photo, 1)
    leak = DEFENCES[name](observe_gradient(lenet(seed), images, labels), seed)
    found = attack(lenet(seed), leak, name, attacker, seed)
    return found, images, labels


def attack(model: nn.Module, leak: Leak, name: str, attacker: str, seed: int) -> Recovery:
    """`plain` and `better basis` ignore the defence, `adapts` uses all that it makes public."""
    if attacker != "adapts":
        leak = replace(leak, clip_norm=None, noise_std=None)
        options = PLAIN if attacker == "plain" else UNAWARE
        return match_gradients(model, leak, seed=seed, steps=STEPS, **options)
    if name.endswith("bits"):  # rounding is noise, uniform in ± half a step
        levels = leak.row[leak.row > 0]
        leak = replace(leak, noise_std=float(levels.min()) / 12**0.5)
        return match_gradients(model, leak, seed=seed, steps=STEPS, support="all")
    return match_gradients(model, leak, seed=seed, steps=STEPS)


SWEEPS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[str, ...]]] = {
    "defence": (under_defence, tuple(DEFENCES), ATTACKERS),
    "start": (start, SCALES, ("course", "plain")),
    "round": (in_round, ROUNDS, ("course", "plain")),
    "steps": (steps, LOCAL_STEPS, ("unrolled", "one gradient")),
    "batch": (batch, BATCHES, ("course", "plain")),
    "clients": (clients, CLIENTS, ("normalised",)),
}


def runs_of(sweep: str, setting: Any) -> tuple[tuple[int, int], ...]:
    """Fewer runs where many pictures are attacked at once: each run scores all of them."""
    count = setting if sweep in ("batch", "clients") else 1
    slow = sweep == "clients" and count > 16
    return RUNS[: 1 if slow else 2 if count > 16 else 3 if count > 1 else 4]


def cell(sweep: str, setting: Any, method: str, photo: int, seed: int) -> dict[str, Any]:
    """One run: medians over its pictures, what the label attack read, and the photo itself."""
    found, images, labels = SWEEPS[sweep][0](setting, method, photo, seed)
    scores = score(found, images, labels)
    assert found.images is not None
    victim = found.images[int(scores.order[0])]
    return {
        "psnr": float(scores.psnr.median()),
        "own": float(scores.psnr[0]),
        "best": float(scores.psnr.max()),
        "ssim": float(scores.ssim.median()),
        "floor": float(scores.floor.median()),
        "success": float(succeeded(scores).double().mean()),
        "label": scores.label_match,
        "seconds": found.seconds,
        "picture": victim.clamp(0, 1) if (photo, seed) == RUNS[0] else None,
    }


def plan(sweeps: list[str], extra: bool) -> Iterator[tuple[str, Any, str, int, int]]:
    """The first run of every cell, then the second of every cell, and so on."""
    for turn in range(len(RUNS)):
        for sweep in sweeps:
            _, settings, methods = SWEEPS[sweep]
            for setting in settings:
                runs = (
                    RUNS
                    if extra and runs_of(sweep, setting) == RUNS[:4]
                    else runs_of(sweep, setting)
                )
                for method in methods:
                    if turn < len(runs):
                        yield sweep, setting, method, *runs[turn]


def done(work: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs have measured, by the text of its key."""
    lines = [line for path in sorted(work.glob("*.jsonl")) for line in path.open()]
    return {json.dumps(one["key"]): one for one in map(json.loads, lines)}


def work_on(work: Path, sweeps: list[str], extra: bool) -> None:
    known = done(work)
    todo = [key for key in plan(sweeps, extra) if json.dumps(key) not in known]
    path = work / f"{'-'.join(sweeps)}.jsonl"
    for key in progress(todo, "attack lab", total=len(todo)):
        result = cell(*key)
        if result["picture"] is not None:
            levels = (result["picture"] * 255).round().to(torch.uint8)
            result["picture"] = base64.b64encode(levels.numpy().tobytes()).decode()
        with path.open("a") as file:
            file.write(json.dumps({"key": key, **result}) + "\n")
        print(*key, round(result["psnr"], 1), round(result["seconds"], 1), flush=True)


def collect(work: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`results[sweep][method][setting] = {measure: values by run}`, and the pictures by name."""
    measures = ("psnr", "own", "best", "floor", "label")
    results: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}
    known = done(work)
    for key in plan(list(SWEEPS), extra=True):
        one = known.get(json.dumps(key))
        if one is None:
            continue
        sweep, setting, method, *_ = key
        entry = results.setdefault(sweep, {}).setdefault(method, {}).setdefault(f"{setting}", {})
        for measure in measures:
            entry.setdefault(measure, []).append(round(one[measure], 2))
        if one["picture"] and sweep not in HIDDEN:
            levels = torch.frombuffer(
                bytearray(base64.b64decode(one["picture"])), dtype=torch.uint8
            )
            kept[f"{sweep} {method} {setting}"] = levels.reshape(3, 32, 32).float() / 255
    for sweep, methods in results.items():  # as many runs in each cell, where extra ones are few
        if sweep not in ("batch", "clients"):
            cells = [entry for table in methods.values() for entry in table.values()]
            fewest = min(len(entry["psnr"]) for entry in cells)
            for entry in cells:
                entry.update({measure: entry[measure][:fewest] for measure in measures})
    return results, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/attack_lab"))
    parser.add_argument("--sweeps", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--extra", action="store_true", help="eight runs instead of four")
    parser.add_argument("--only-save", action="store_true", help="store what there is")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.only_save:
        work_on(given.work, given.sweeps, given.extra)
    results, kept = collect(given.work)
    config = {
        "seeds": sorted({seed for _, seed in RUNS}),
        "runs": RUNS,
        "evaluations": {
            "one photo": STEPS,
            "2 to 8 photos": STEPS_MANY,
            "more photos": STEPS_MANY // 2,
            "normalised": STEPS_NORMALISED,
            "several local steps": STEPS_LOCAL,
        },
        "local lr": LR,
        "federation": FEDERATION,
        "model": "LeNet(100)",
        "data": "photos",
    }
    print(save_stored("attack_lab", config=config, results=results, pictures=kept))


if __name__ == "__main__":
    main()
