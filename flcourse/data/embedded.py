"""The small real data sets in the package: `photos`, `digits`, `breast_cancer`, `zen`.

Sources and licences of every file: `flcourse/assets/README.md`.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from flcourse.data.assets import read_arrays, read_text
from flcourse.data.types import Dataset, Split
from flcourse.runtime import generator

_TEST_SHARE = 0.2


def load_photos(*, image_size: int = 32) -> Split:
    """20 natural pictures, 10 classes × 2 crops, 3 × size × size; train holds all, test is empty.

    The first ten are one of each class in the order of `classes`, the next ten the second crops.

    Raises:
        ValueError: if `image_size` is neither 32 nor 64.
    """
    if image_size not in (32, 64):
        raise ValueError(
            f"image_size={image_size}: photos comes in 32 and 64; for another size use "
            "load_image(path, image_size=…) on a picture of your own"
        )
    arrays = read_arrays("photos.npz")
    photos = Dataset(
        name="photos",
        inputs=torch.from_numpy(arrays[f"photos_{image_size}"]).float() / 255,
        labels=torch.from_numpy(arrays["labels"]).long(),
        classes=tuple(arrays["classes"].tolist()),
        source="pictures bundled with scikit-image, scikit-learn and matplotlib",
        licence="public domain, CC0 and CC BY 2.0: see assets/README.md",
    )
    return Split(photos, photos.subset([]))


def load_digits(*, seed: int = 0) -> Split:
    """1,797 handwritten digits, 1 × 8 × 8: 1,437 to train and 360 to test, shuffled by `seed`."""
    arrays = read_arrays("digits.npz")
    digits = Dataset(
        name="digits",
        inputs=torch.from_numpy(arrays["images"]).float().unsqueeze(1) / 16,
        labels=torch.from_numpy(arrays["labels"]).long(),
        classes=tuple(str(digit) for digit in range(10)),
        source="UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)",
        licence="CC BY 4.0",
    )
    return _shuffled_split(digits, seed)


def load_breast_cancer(*, seed: int = 0) -> Split:
    """569 patients, 30 measurements each in their real units; 455 to train and 114 to test."""
    arrays = read_arrays("breast_cancer.npz")
    patients = Dataset(
        name="breast_cancer",
        inputs=torch.from_numpy(arrays["features"]),
        labels=torch.from_numpy(arrays["labels"]).long(),
        classes=tuple(arrays["classes"].tolist()),
        feature_names=tuple(arrays["feature_names"].tolist()),
        source="UCI Breast Cancer Wisconsin (Diagnostic) (Wolberg, Mangasarian, Street, 1995)",
        licence="CC BY 4.0",
    )
    return _shuffled_split(patients, seed)


def load_zen(*, context: int = 8) -> Split:
    """The Zen of Python as a text to continue: `context` words in, the next word as the label.

    Tokens are int64 `[n, context]`; `classes[token]` is the word. Words are in lower case, without
    punctuation: 144 of them, 88 distinct. Train holds all windows, test is empty.

    Raises:
        ValueError: if `context` leaves no window.
    """
    words = re.findall(r"[\w'-]+", read_text("zen.txt").lower())
    if not 1 <= context < len(words):
        raise ValueError(f"context={context}: the text has {len(words)} words, so use 1 to 143")
    vocabulary = tuple(sorted(set(words)))
    tokens = torch.tensor([vocabulary.index(word) for word in words])
    windows = tokens.unfold(0, context + 1, 1)
    zen = Dataset(
        name="zen",
        inputs=windows[:, :-1].contiguous(),
        labels=windows[:, -1].contiguous(),
        classes=vocabulary,
        source="The Zen of Python (Tim Peters, PEP 20)",
        licence="public domain",
    )
    return Split(zen, zen.subset([]))


def _shuffled_split(dataset: Dataset, seed: int) -> Split:
    order: Tensor = torch.randperm(len(dataset), generator=generator(seed, "split", dataset.name))
    num_test = -int(-len(dataset) * _TEST_SHARE // 1)
    return Split(dataset.subset(order[num_test:]), dataset.subset(order[:num_test]))
