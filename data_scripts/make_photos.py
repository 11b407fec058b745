"""Cut the 20 photos: 10 classes x 2 crops, at 64 x 64 and at 32 x 32 pixels.

    python data_scripts/make_photos.py [--sheet contact_sheet.png]

The originals are those that lie in the installed packages scikit-image (`skimage/data`),
scikit-learn (`sklearn/datasets/images`) and matplotlib (`mpl-data/sample_data`); nothing is
downloaded. Each size is resized by Lanczos from the original, never one from the other. Sources and
licences stand in `flcourse/assets/README.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import skimage
import sklearn
from PIL import Image, ImageOps

SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.__file__).parent / "datasets" / "images"
MATPLOTLIB = Path(matplotlib.get_data_path()) / "sample_data"
SIZES = (32, 64)
ASSET = Path(__file__).parents[1] / "flcourse" / "assets" / "photos.npz"


class Crop(NamedTuple):
    """A square of an original: `box` is (left, top, right, bottom) in its pixels."""

    name: str
    original: Path
    box: tuple[int, int, int, int]


CLASSES = (
    "astronaut", "cat", "coffee", "flower", "rocket",
    "officer", "retina", "temple", "photographer", "horse",
)  # fmt: skip
# One crop of each class, in the order of CLASSES, then the second crop of each.
CROPS = (
    Crop("astronaut, face", SKIMAGE / "astronaut.png", (135, 5, 315, 185)),
    Crop("cat, face", SKIMAGE / "chelsea.png", (70, 10, 360, 300)),
    Crop("coffee, cup on a table", SKIMAGE / "coffee.png", (130, 20, 510, 400)),
    Crop("flower", SKLEARN / "flower.jpg", (110, 0, 537, 427)),
    Crop("rocket on its pad", SKIMAGE / "rocket.jpg", (120, 0, 547, 427)),
    Crop("officer, face", MATPLOTLIB / "grace_hopper.jpg", (120, 20, 420, 320)),
    Crop("retina, whole", SKIMAGE / "retina.jpg", (0, 0, 1411, 1411)),
    Crop("temple with its lake", SKLEARN / "china.jpg", (170, 10, 560, 400)),
    Crop("photographer and his camera", SKIMAGE / "camera.png", (100, 30, 356, 286)),
    Crop("horse, silhouette", SKIMAGE / "horse.png", (36, 0, 364, 328)),
    Crop("astronaut, suit and flag", SKIMAGE / "astronaut.png", (0, 0, 512, 512)),
    Crop("cat, eye", SKIMAGE / "chelsea.png", (150, 70, 240, 160)),
    Crop("coffee, cup from near", SKIMAGE / "coffee.png", (200, 60, 420, 280)),
    Crop("flower from near", SKLEARN / "flower.jpg", (150, 60, 400, 310)),
    Crop("rocket, model of a shuttle", SKIMAGE / "astronaut.png", (290, 0, 512, 222)),
    Crop("officer, portrait", MATPLOTLIB / "grace_hopper.jpg", (0, 20, 512, 532)),
    Crop("retina, optic disc", SKIMAGE / "retina.jpg", (80, 350, 780, 1050)),
    Crop("temple, pavilion", SKLEARN / "china.jpg", (60, 20, 320, 280)),
    Crop("photographer, whole", SKIMAGE / "camera.png", (0, 0, 512, 512)),
    Crop("horse, head", SKIMAGE / "horse.png", (200, 0, 380, 180)),
)


def cut(crop: Crop, size: int) -> np.ndarray:
    """One crop at one size: uint8 [3, size, size]."""
    with Image.open(crop.original) as original:
        left, top, right, bottom = crop.box
        if right - left != bottom - top or right > original.width or bottom > original.height:
            raise ValueError(f"{crop.name}: {crop.box} is no square inside {original.size}")
        picture = original.convert("L" if original.mode == "1" else "RGB")
    if crop.original.name == "horse.png":  # a mask: the horse is black, we want it white
        picture = ImageOps.invert(picture.convert("L"))
    square = picture.crop(crop.box).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(square.convert("RGB")).transpose(2, 0, 1)


def save_sheet(photos: np.ndarray, path: Path) -> None:
    """All photos, enlarged, in two rows of ten, to be looked at."""
    rows = photos.reshape(2, 10, 3, *photos.shape[2:]).transpose(0, 3, 1, 4, 2)
    sheet = Image.fromarray(rows.reshape(2 * rows.shape[1], -1, 3))
    factor = 1600 // sheet.width
    sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet here (one a size)")
    arguments = parser.parse_args()
    photos = {size: np.array([cut(crop, size) for crop in CROPS]) for size in SIZES}
    np.savez_compressed(
        ASSET,
        **{f"photos_{size}": photos[size] for size in SIZES},
        labels=np.arange(len(CROPS)) % len(CLASSES),
        classes=np.array(CLASSES),
    )
    print(f"{ASSET.name}: {len(CROPS)} photos, {ASSET.stat().st_size / 1000:.0f} kB")
    if arguments.sheet:
        for size in SIZES:
            save_sheet(photos[size], arguments.sheet.with_stem(f"{arguments.sheet.stem}_{size}"))


if __name__ == "__main__":
    main()
