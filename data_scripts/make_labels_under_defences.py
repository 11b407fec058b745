"""Make the stored result `labels_under_defences`: ten simple defences against label and photo.

    python data_scripts/make_labels_under_defences.py        # about 4 minutes on one core

LeNet with 100 classes, one photo a message. Labels: 12 photos, 10 seeds of model and noise, read by
the sign of the bias, the sum of the row, and `infer_labels`. Pictures: 6 of the photos, one seed,
`match_gradients` as it is, with all that the defence makes public. Chapter 04 shows it and reads
one cell again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flcourse import metrics
from flcourse.attacks.inversion import match_gradients
from flcourse.attacks.labels import infer_labels
from flcourse.attacks.observe import observe_gradient
from flcourse.attacks.types import Leak
from flcourse.claims import save_stored
from flcourse.data import load_dataset
from flcourse.defences import SIMPLE_DEFENCES
from flcourse.models import LeNet
from flcourse.runtime import progress

SEEDS = tuple(range(10))
PHOTOS = tuple(range(12))
PICTURE_SEEDS = (0,)
PICTURES = (0, 1, 2, 3, 7, 8)  # a face, a cat, a cup, a flower, a temple, a photographer
NONE = "no defence"
DEFENCES = (NONE, *SIMPLE_DEFENCES)


def defended(photo: int, defence: str, seed: int) -> tuple[nn.Module, Leak]:
    """The model and what the server receives for one photo."""
    photos = load_dataset("photos").train
    model = LeNet(100, seed=seed)
    leak = observe_gradient(model, photos.inputs[photo : photo + 1], photos.labels[photo, None])
    return model, leak if defence == NONE else SIMPLE_DEFENCES[defence](leak, seed)


def labels_read(photo: int, defence: str, seed: int) -> dict[str, bool]:
    """Which rules name the label."""
    model, leak = defended(photo, defence, seed)
    label = int(load_dataset("photos").train.labels[photo])
    weight, bias = leak.gradients["7.weight"], leak.gradients["7.bias"]
    return {
        "bias": int(bias.argmin()) == label,
        "rows": int(weight.sum(dim=1).argmin()) == label,
        "inferred": infer_labels(model, leak).labels.tolist() == [label],
    }


def picture_psnr(photo: int, defence: str, seed: int) -> float:
    """The PSNR in dB of what the attacker gets, which does not know the label either."""
    model, leak = defended(photo, defence, seed)
    truth = load_dataset("photos").train.inputs[photo : photo + 1]
    found = match_gradients(model, leak, seed=seed)
    assert found.images is not None
    return float(metrics.psnr(truth, found.images))


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for defence in progress(DEFENCES, "defences", total=len(DEFENCES)):
        read = [[labels_read(photo, defence, seed) for seed in SEEDS] for photo in PHOTOS]
        results[defence] = {
            rule: [sum(one[rule] for one in photo) for photo in read]
            for rule in ("bias", "rows", "inferred")
        }
        results[defence]["psnr"] = [
            picture_psnr(photo, defence, seed) for photo in PICTURES for seed in PICTURE_SEEDS
        ]
        print(defence, results[defence], flush=True)
    truth = load_dataset("photos").train.inputs[list(PICTURES)]
    results["floors"] = metrics.flat_floor(truth).tolist()
    config = {
        "seeds": SEEDS,
        "photos": PHOTOS,
        "pictures": PICTURES,
        "picture_seeds": PICTURE_SEEDS,
        "model": "LeNet(100)",
        "data": "photos",
    }
    print(save_stored("labels_under_defences", config=config, results=results))


if __name__ == "__main__":
    main()
