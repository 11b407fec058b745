"""Draw the README's picture (assets/hero.png): the leak that the course's first page shows.

    python -m data_scripts.make_hero

Nothing is drawn by hand: `leak` is the computation of chapters/intro.md, and the cover
(data_scripts/book/cover.py) shows its result, too.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flcourse import metrics, models, viz
from flcourse.data import load_dataset

TARGET = Path(__file__).resolve().parents[1] / "assets" / "hero.png"


def leak() -> tuple[Tensor, Tensor, Tensor]:
    """Client 3's photo, the gradient that is sent, and what it gives back.

    The gradient is that of one linear layer with a cross-entropy loss. In the row of class j the
    weights' gradient is (the bias's gradient) times the photo, so one division returns the photo.

    Returns:
        photo `[1, c, h, w]`, gradient row `[d]` (weights, then biases), recovered `[1, c, h, w]`.
    """
    photos, _ = load_dataset("photos")
    photo, label = photos.inputs[:1], photos.labels[:1]
    network = models.Logistic(photo.numel(), num_classes=10, seed=0)
    loss = F.cross_entropy(network(photo), label)
    weight, bias = torch.autograd.grad(loss, list(network.parameters()))
    row = bias.abs().argmax()
    recovered = (weight[row] / bias[row]).reshape(photo.shape)
    return photo, torch.cat([weight.flatten(), bias]), recovered


def main() -> None:
    """Draw and save the picture."""
    photo, gradient, recovered = leak()
    psnr, floor = float(metrics.psnr(photo, recovered)), float(metrics.flat_floor(photo))
    viz.hero(photo[0], gradient, recovered[0], psnr, floor).save(TARGET)
    print(f"assets/{TARGET.name}: {TARGET.stat().st_size} bytes, {psnr:.1f} dB, floor {floor:.1f}")


if __name__ == "__main__":
    main()
