"""Make the stored result `masked_groups`: the larger the masked group, the safer from whom?

    python data_scripts/make_masked_groups.py        # about 12 minutes on one core

Part `trained`: 20 clients, digits, Dirichlet(0.5), secure sums in groups of 1 to 20, the median
over groups, flips ×5 from none to four clients. Part `leaked`: chapter 03's attack on the sum of a
group in which client 3's photo is. Chapter 17 shows it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flcourse import fedavg
from flcourse.attacks import aggregate, match_gradients, observe_gradient, score
from flcourse.byzantine import Grouped, as_transform, coordinate_median, group_means
from flcourse.claims import save_stored
from flcourse.data import load_dataset, partition
from flcourse.models import MLP, LeNet

SEEDS = (0, 1, 2, 3, 4)
CLIENTS, ROUNDS = 20, 15
SIZES = (1, 2, 4, 5, 10, 20)
LIARS = (0, 1, 2, 4)
NETWORKS = (0, 1, 2)
CLIP = 2.0  # of a value; honest ones stay below 0.5


def accuracy(size: int, liars: int, seed: int, rounds: int = ROUNDS) -> list[float]:
    """Test accuracy after each round under flips ×5."""
    digits = load_dataset("digits")
    clients = partition(digits.train, "dirichlet", CLIENTS, seed=seed, alpha=0.5)
    rule = Grouped(coordinate_median, size, clip=CLIP, beyond="wrap", seed=seed)
    lie = as_transform("sign_flip", liars=tuple(range(liars)), scale=5.0)
    model = MLP(64, 32, 10, seed=seed)
    history = fedavg.train(
        model, clients, digits.test, rounds=rounds, epochs=5, lr=0.1, aggregate=rule,
        transform=lie, seed=seed,
    )  # fmt: skip
    return history.accuracy


def pictures(count: int) -> tuple[Tensor, Tensor]:
    """Client 3's photo first, then the other photos, then quarters of larger ones."""
    photos, large = load_dataset("photos").train, load_dataset("photos", image_size=64).train
    quarters = large.inputs.unfold(2, 32, 32).unfold(3, 32, 32)
    quarters = quarters.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)
    images = torch.cat([photos.inputs, quarters])[:count].contiguous()
    return images, torch.cat([photos.labels, large.labels.repeat_interleave(4)])[:count]


def leaked(size: int, seed: int) -> dict[str, Any]:
    """The attack on the masked sum of client 3's group: its PSNR, the floor, the picture."""
    network = LeNet(num_classes=100, seed=seed)
    images, labels = pictures(size)
    each = zip(images.split(1), labels.split(1), strict=True)
    leaks = [observe_gradient(network, *one) for one in each]
    rows = torch.stack([leak.row for leak in leaks])
    seen = group_means(rows, (tuple(range(size)),), clip=16.0).means[0]
    leak = aggregate(leaks).with_row(seen) if size > 1 else leaks[0].with_row(seen)
    found = match_gradients(network, leak, steps=100)
    assert found.images is not None  # a search always ends somewhere
    scores = score(found, images, labels)
    place = int((found.images - images[0]).square().mean(dim=(1, 2, 3)).argmin())
    return {
        "psnr": scores.psnr[0].item(),
        "floor": scores.floor[0].item(),
        "picture": found.images[place].clamp(0, 1),
    }


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"trained": {}, "leaked": {}}
    shown = {}
    for size in SIZES:
        cells = [leaked(size, seed) for seed in NETWORKS]
        shown[f"{size}"] = cells[0]["picture"]
        results["leaked"][f"{size}"] = {
            key: [one[key] for one in cells] for key in ("psnr", "floor")
        }
        print(size, results["leaked"][f"{size}"], flush=True)
    for liars in LIARS:
        for size in SIZES:
            runs = [accuracy(size, liars, seed) for seed in SEEDS]
            results["trained"].setdefault(f"{liars}", {})[f"{size}"] = {
                "accuracy": [run[-1] for run in runs],
                "first": [run[1] for run in runs],
            }
            print(liars, size, results["trained"][f"{liars}"][f"{size}"], flush=True)
    config = {"seeds": SEEDS, "networks": NETWORKS, "clients": CLIENTS, "rounds": ROUNDS,
              "epochs": 5, "lr": 0.1, "scale": 5, "clip": CLIP, "data": "digits and photos",
              "model": "MLP and LeNet"}  # fmt: skip
    print(save_stored("masked_groups", config=config, results=results, pictures=shown))


if __name__ == "__main__":
    main()
