"""Make the stored result `invertibility`: which networks the closed form and a search invert.

    python -m data_scripts.make_invertibility        # about ten minutes on one core; can be resumed

The network of the DLG paper with other activations and widths, as it starts and after training;
three of the course's photos on each of three seeds. Chapter 05 shows it and recomputes one cell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.recursive import peel
from flcourse.attacks.scoring import score
from flcourse.claims import save_stored
from flcourse.data import load_dataset
from flcourse.models import uniform_
from flcourse.runtime import generator, progress, seeded

SEEDS = (0, 1, 2)
PICTURES = (0, 3, 7)
ACTIVATIONS: dict[str, Any] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "leaky ReLU 0.2": partial(nn.LeakyReLU, 0.2),
    "leaky ReLU 0.01": partial(nn.LeakyReLU, 0.01),
    "ReLU": nn.ReLU,
}
STATES = ("initialised", "trained")
WIDTHS = (4, 6, 8, 9, 10, 12, 16)
WIDTH = 12
MATCH_STEPS = 200
TRAIN_STEPS = 400


def network(activation: str, width: int, seed: int) -> nn.Sequential:
    """LeNet of the DLG paper with `width` channels; sigmoids start wide, as they do there."""
    act = ACTIVATIONS[activation]
    with seeded(seed, "invertibility"):
        model = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            act(),
            nn.Conv2d(width, width, 5, stride=2, padding=2),
            act(),
            nn.Conv2d(width, width, 5, stride=1, padding=2),
            act(),
            nn.Flatten(),
            nn.Linear(width * 64, 10),
        )
        if activation == "sigmoid":
            uniform_(model, 0.5)
    return model


@cache
def trained(activation: str, seed: int) -> tuple[nn.Sequential, float]:
    """The network after Adam on crops of ten photos that are not attacked; share of crops right."""
    model, draw = network(activation, WIDTH, seed), generator(seed, "invertibility crops")
    photos = load_dataset("photos", image_size=64).train
    images, labels = photos.inputs[10:], photos.labels[10:]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    shares = []
    for _ in range(TRAIN_STEPS):
        which = torch.randint(len(images), (32,), generator=draw)
        top, left = torch.randint(33, (2,), generator=draw).tolist()
        logits = model(images[which, :, top : top + 32, left : left + 32])
        shares.append(float((logits.argmax(dim=1) == labels[which]).float().mean()))
        optimiser.zero_grad()
        F.cross_entropy(logits, labels[which]).backward()
        optimiser.step()
    return model, sum(shares[-20:]) / 20


def cell(activation: str, width: int, state: str, picture: int, seed: int) -> dict[str, Any]:
    """One network, one photo, both attacks."""
    photos = load_dataset("photos").train
    image, label = photos.inputs[picture : picture + 1], photos.labels[picture : picture + 1]
    if state == "trained":
        model, share = trained(activation, seed)
    else:
        model, share = network(activation, width, seed), None
    leak = observe_gradient(model, image, label)
    closed = peel(model, leak)
    found = match_gradients(model, leak, steps=MATCH_STEPS)
    exact, matched = score(closed, image), score(found, image)
    return {
        "peel": float(exact.psnr[0]),
        "peel_loss": None if closed.images is None else closed.loss,
        "stopped_at": closed.stopped_at,
        "match": float(matched.psnr[0]),
        "match_loss": found.loss,
        "floor": float(exact.floor[0]),
        "crops_right": share,
    }


def cells() -> Iterator[tuple[str, int, str, int, int]]:
    """Every run: first the widths, then the activations."""
    settings = [("sigmoid", width, "initialised") for width in WIDTHS]
    settings += [(name, WIDTH, state) for name in ACTIVATIONS for state in STATES]
    for setting in dict.fromkeys(settings):
        for seed in SEEDS:
            for picture in PICTURES:
                yield *setting, picture, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("runs") / "invertibility.jsonl")
    options = parser.parse_args()
    options.work.parent.mkdir(parents=True, exist_ok=True)
    lines = options.work.read_text().splitlines() if options.work.exists() else []
    records = {tuple(key): record for key, record in map(json.loads, lines)}
    for key in progress(list(cells()), "runs"):
        if key not in records:
            records[key] = cell(*key)
            with options.work.open("a") as file:
                file.write(json.dumps([key, records[key]]) + "\n")
    results: dict[str, dict[str, list[Any]]] = {}
    for key in cells():
        columns = results.setdefault(", ".join(map(str, key[:3])), {})
        for name, value in records[key].items():
            columns.setdefault(name, []).append(value)
    config = {
        "seeds": SEEDS,
        "pictures": PICTURES,
        "data": "photos",
        "order": "seeds, and within a seed the pictures",
        "match_steps": MATCH_STEPS,
        "train_steps": TRAIN_STEPS,
        "trained_on": "random 32×32 crops of the ten other photos at 64×64",
    }
    print(save_stored("invertibility", config=config, results=results))


if __name__ == "__main__":
    main()
