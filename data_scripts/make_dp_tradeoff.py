"""Make the stored result `dp_tradeoff`: the same noise multiplier seen by attacker and by trainer.

    python data_scripts/make_dp_tradeoff.py        # about 9 minutes on one core

Attack: LeNet with 100 classes, one photo's gradient, clipped to 1 with noise z on every value; the
attacker knows z and takes it into account (`adapts`) or matches gradients as if there were none
(`plain`). Labels by `infer_labels`, 12 photos. Training: 1,000 clients of 60 glyphs, MLP, a tenth
of them a round, noise once on the sum or by each client on its own. Chapter 12 shows it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from flcourse import metrics
from flcourse.attacks import infer_labels, match_gradients, observe_gradient
from flcourse.attacks.types import Leak
from flcourse.claims import save_stored
from flcourse.data import Client, Dataset, load_dataset, partition
from flcourse.models import MLP, LeNet
from flcourse.privacy import Clipped, DPFedAvg, clip_rows, gaussian_sum, train_private
from flcourse.runtime import generator

MULTIPLIERS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RUNS = ((0, 0), (0, 1), (3, 0), (3, 1), (7, 0), (7, 1))  # astronaut, flower, temple; seeds
SEEDS = (0, 1)
LABELLED, LABEL_SEEDS = tuple(range(12)), (0, 1, 2, 3, 4)
CLIP_NORM = 1.0

TRAINED = (0.03, 0.1, 0.3, 1.0, 3.0)
NUM_CLIENTS, RATE, ROUNDS, LOCAL_STEPS, LR, TRAIN_CLIP = 1_000, 0.1, 40, 5, 0.2, 0.5


def released(photo: int, seed: int, z: float, public: bool = True) -> tuple[nn.Module, Leak]:
    """The model and what the server receives for one photo; `public`: it says which noise."""
    photos = load_dataset("photos").train
    model = LeNet(100, seed=seed)
    bare = observe_gradient(model, photos.inputs[photo : photo + 1], photos.labels[photo, None])
    clipped: Clipped = clip_rows(bare.row[None], CLIP_NORM, unit="example")
    row = clipped.rows[0]
    if z:
        row = gaussian_sum(clipped, z, generator(seed, "tradeoff noise", photo))
    noise = z * CLIP_NORM if public and z else None
    return model, bare.with_row(row, clip_norm=CLIP_NORM, noise_std=noise)


def attacked(photo: int, seed: int, z: float, adapts: bool) -> tuple[float, bool, Tensor]:
    """PSNR in dB, whether the label came back, and the picture ``[3, h, w]``."""
    photos = load_dataset("photos").train
    model, leak = released(photo, seed, z, adapts)
    if adapts:
        found = match_gradients(model, leak, seed=seed)
    else:  # the label is given to it, which costs nothing up to z = 0.1
        found = match_gradients(model, leak, seed=seed, labels=photos.labels[photo, None])
    assert found.images is not None and found.labels is not None
    right = found.labels.tolist() == [int(photos.labels[photo])]
    picture = found.images.detach().nan_to_num().clamp(0, 1)
    return float(metrics.psnr(photos.inputs[photo : photo + 1], picture)), right, picture[0]


def label_read(photo: int, seed: int, z: float) -> bool:
    """Whether `infer_labels`, which knows the noise, names the label."""
    model, leak = released(photo, seed, z)
    label = int(load_dataset("photos").train.labels[photo])
    return bool(infer_labels(model, leak).labels.tolist() == [label])


@functools.cache
def federation() -> tuple[list[Client], Dataset]:
    """60,000 glyphs dealt to the clients, and the test glyphs."""
    split = load_dataset("glyphs", num_train=60_000)
    return partition(split.train, "iid", NUM_CLIENTS, seed=0), split.test


def trained(z: float, where: str, seed: int, rounds: int = ROUNDS) -> float:
    """Test accuracy at the end."""
    clients, test = federation()
    dp = DPFedAvg(TRAIN_CLIP, z, num_clients=NUM_CLIENTS, sample_rate=RATE, where=where)
    batch = math.ceil(len(clients[0]) / LOCAL_STEPS)
    model = MLP(seed=seed)
    history = train_private(
        model, clients, test, dp, rounds=rounds, batch_size=batch, lr=LR, seed=seed
    )
    return history.accuracy[-1]


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"attack": {}, "training": {"none": [trained(0.0, "server", 0)]}}
    pictures = {}
    for z in MULTIPLIERS:
        cell: dict[str, Any] = {"labels": [sum(label_read(p, s, z) for s in LABEL_SEEDS)
                                           for p in LABELLED]}  # fmt: skip
        for adapts in (True, False):
            found = [attacked(*run, z, adapts) for run in RUNS]
            cell["adapts" if adapts else "plain"] = [psnr for psnr, _, _ in found]
            if adapts:
                cell["label with picture"] = [right for _, right, _ in found]
                pictures[f"z={z:g}"] = found[0][2]
        results["attack"][f"{z:g}"] = cell
        print(z, cell, flush=True)
    for z in TRAINED:
        for where in ("server", "local"):
            runs = [trained(z, where, seed) for seed in SEEDS]
            results["training"][f"{where} {z:g}"] = runs
            print(where, z, runs, flush=True)
    truth = load_dataset("photos").train.inputs[[photo for photo, _ in RUNS]]
    results["floors"] = metrics.flat_floor(truth).tolist()
    config = {"seeds": SEEDS, "runs": RUNS, "labelled": LABELLED, "label_seeds": LABEL_SEEDS,
              "multipliers": MULTIPLIERS, "trained": TRAINED, "clients": NUM_CLIENTS, "rate": RATE,
              "rounds": ROUNDS, "local_steps": LOCAL_STEPS, "lr": LR, "clip_norm": CLIP_NORM,
              "train_clip": TRAIN_CLIP, "model": "LeNet(100); MLP"}  # fmt: skip
    print(save_stored("dp_tradeoff", config=config, results=results, pictures=pictures))


if __name__ == "__main__":
    main()
