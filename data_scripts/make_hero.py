"""Draw the README's picture (assets/hero.png): the leak that the course's first page shows.

    python -m data_scripts.make_hero

Nothing is drawn by hand: `leak` is the computation of chapters/intro.md, and the cover
(data_scripts/book/cover.py) shows its result, too.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from flcourse import attacks, metrics, models, viz
from flcourse.data import load_dataset

TARGET = Path(__file__).resolve().parents[1] / "assets" / "hero.png"


def leak() -> tuple[Tensor, Tensor, Tensor]:
    """Client 3's photo, the gradient that is sent, and what the attack of chapter 03 makes of it.

    Returns:
        photo `[1, c, h, w]`, gradient row `[d]`, recovered `[1, c, h, w]`, clamped to [0, 1].
    """
    photos, _ = load_dataset("photos")
    photo, label = photos.inputs[:1], photos.labels[:1]
    model = models.LeNet(seed=0)
    message = attacks.observe_gradient(model, photo, label)
    recovered = attacks.match_gradients(model, message).images
    assert recovered is not None  # a search always has a best point
    return photo, message.row, recovered.clamp(0, 1)


def main() -> None:
    """Draw and save the picture."""
    photo, gradient, recovered = leak()
    psnr, floor = float(metrics.psnr(photo, recovered)), float(metrics.flat_floor(photo))
    viz.hero(photo[0], gradient, recovered[0], psnr, floor).save(TARGET)
    print(f"assets/{TARGET.name}: {TARGET.stat().st_size} bytes, {psnr:.1f} dB, floor {floor:.1f}")


if __name__ == "__main__":
    main()
