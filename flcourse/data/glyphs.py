"""`glyphs`: digits and letters in 21 typefaces, bent at random (the course's default data).

Real fonts, drawn once into an atlas in `assets/glyphs.npz`; each sample is a warp of one glyph:

    source position = frame · (R(rotation) · S(shear) · position / scale + shift + displacement)

with a smooth displacement field. The typeface is kept as the sample's writer, so one client per
writer is a natural split of people who write differently. Chapter 01.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flcourse.data.assets import read_arrays
from flcourse.data.types import Dataset, Split
from flcourse.runtime import generator

IMAGE_SIZE = 28
MAX_SAMPLES = 60_000
ROTATION = 0.2  # radians, to either side
SHEAR = 0.25
SCALE = (0.8, 1.15)
SHIFT = 0.1  # in half widths of the picture
ELASTIC = 0.08  # standard deviation of the displacement, in half widths
NOISE = 0.1  # standard deviation, in grey values of [0, 1]
# The part of the atlas that fills the picture: digits are 20 pixels tall as in MNIST, while letters
# need the room that a W and a g take.
FRAME = {"digits": 0.82, "all": 1.0}
_CHUNK = 2_000  # samples warped at a time: bounds the memory, not the result's distribution
_SOURCE = "drawn from the DejaVu, STIX and Computer Modern fonts that matplotlib bundles"
_LICENCE = "Bitstream Vera and DejaVu licence, STIX licence, BaKoMa licence: see assets/README.md"


@lru_cache(maxsize=1)
def atlas() -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
    """Grey values `[typefaces, characters, 64, 64]` in [0, 1], typeface names, characters."""
    arrays = read_arrays("glyphs.npz")
    packed = arrays["atlas"]  # two 4-bit pixels a byte
    steps = np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], -1)
    grey = torch.from_numpy(steps).float() / 15
    return grey, tuple(arrays["typefaces"].tolist()), tuple(arrays["characters"].tolist())


def warp_grid(count: int, rng: torch.Generator, size: int = IMAGE_SIZE) -> Tensor:
    """Random sampling positions `[count, size, size, 2]` for `grid_sample`: affine + elastic."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=rng) * (high - low) + low

    angle, shear = uniform(-ROTATION, ROTATION), uniform(-SHEAR, SHEAR)
    zoom, shift = 1 / uniform(*SCALE), uniform(-SHIFT, SHIFT, 2)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    first = torch.stack([cos, cos * shear - sin, shift[:, 0]], dim=1)
    second = torch.stack([sin, sin * shear + cos, shift[:, 1]], dim=1)
    grid = functional.affine_grid(
        torch.stack([first, second], dim=1), [count, 1, size, size], align_corners=False
    )
    coarse = ELASTIC * torch.randn(count, 2, 4, 4, generator=rng)
    field = functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    return grid + field.permute(0, 2, 3, 1)


def draw(count: int, characters: str, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`count` warped glyphs: pictures `[count, 1, 28, 28]`, labels, writers (both `[count]`).

    Every pair of typeface and character comes up equally often, give or take one.
    """
    classes = _classes(characters)
    grey = atlas()[0][:, : len(classes)]
    pairs = torch.randperm(len(grey) * len(classes), generator=rng)
    chosen = pairs.repeat(-(-count // len(pairs)))[:count]
    chosen = chosen[torch.randperm(count, generator=rng)]
    # Half the resolution is still finer than the picture, so sampling it leaves no aliasing.
    glyphs = functional.avg_pool2d(grey.flatten(0, 1).unsqueeze(1), 2)
    chunks = [_warp(glyphs[part], FRAME[characters], rng) for part in chosen.split(_CHUNK)]
    return torch.cat(chunks), chosen % len(classes), chosen // len(classes)


def _classes(characters: str) -> tuple[str, ...]:
    return atlas()[2][: 10 if characters == "digits" else None]


def _warp(glyphs: Tensor, frame: float, rng: torch.Generator) -> Tensor:
    grid = frame * warp_grid(len(glyphs), rng)
    pictures = functional.grid_sample(glyphs, grid, align_corners=False)
    return (pictures + NOISE * torch.randn(pictures.shape, generator=rng)).clamp_(0, 1)


def load_glyphs(
    *, num_train: int = 4_000, num_test: int = 2_000, characters: str = "digits", seed: int = 0
) -> Split:
    """Warped glyphs, 1 × 28 × 28; the random streams of train and test are unrelated.

    Args:
        num_train: samples to train on, 1 to 60,000.
        num_test: samples to test on, 1 to 60,000.
        characters: `"digits"` (10 classes) or `"all"` (digits and letters, 62 classes).
        seed: another seed gives other samples of the same distribution.

    Raises:
        ValueError: for a number out of range or unknown `characters`.
    """
    for option, number in (("num_train", num_train), ("num_test", num_test)):
        if not 1 <= number <= MAX_SAMPLES:
            raise ValueError(f"{option}={number}: glyphs gives 1 to {MAX_SAMPLES:,} samples")
    if characters not in FRAME:
        raise ValueError(f"characters={characters!r}: use 'digits' (10 classes) or 'all' (62)")

    def part(which: str, count: int) -> Dataset:
        rng = generator(seed, "glyphs", characters, which)
        inputs, labels, writers = draw(count, characters, rng)
        return Dataset(
            name="glyphs",
            inputs=inputs,
            labels=labels,
            classes=_classes(characters),
            writers=writers,
            source=_SOURCE,
            licence=_LICENCE,
        )

    return Split(part("train", num_train), part("test", num_test))
