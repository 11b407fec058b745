"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, read by torchvision from files that were verified.

torchvision is imported here and only when needed: beside another build of torch its import fails
(`operator torchvision::nms does not exist`), which must not break the chapters that do without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flcourse.data.sources import SOURCES, Source, find_root, verify_parts
from flcourse.data.types import Dataset, Split
from flcourse.runtime import generator

TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}


def load_torchvision(name: str) -> Callable[..., Split]:
    """The loader of one of torchvision's sets: `load(root, *, num_train, num_test, seed)`."""

    def load(
        root: Path,
        *,
        num_train: int | None = None,
        num_test: int | None = None,
        seed: int = 0,
    ) -> Split:
        """The published train and test halves; or a random choice of so many from each."""
        source = SOURCES[name]
        folder = find_root(source, root)
        verify_parts(source, folder)
        reader = getattr(_torchvision_datasets(name), TORCHVISION_CLASSES[name])
        halves = [
            _read(source, reader(folder, train=train, download=False), count, seed, part)
            for train, count, part in ((True, num_train, "train"), (False, num_test, "test"))
        ]
        return Split(*halves)

    return load


def _torchvision_datasets(name: str) -> Any:
    try:
        return importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ImportError(
            f"{name} is read by torchvision, which cannot be imported here ({error}). Install the "
            "torchvision that belongs to this torch, or use a data set that needs none: glyphs, "
            "photos, digits, breast_cancer, zen"
        ) from error


def _read(source: Source, raw: Any, count: int | None, seed: int, part: str) -> Dataset:
    labels = torch.as_tensor(raw.targets, dtype=torch.int64)
    chosen = choose(len(labels), count, seed, f"num_{part}", source.name)
    return Dataset(
        name=source.name,
        inputs=_pictures(torch.as_tensor(raw.data)[chosen]),
        labels=labels[chosen],
        classes=tuple(raw.classes),
        source=source.title,
        licence=source.licence,
    )


def _pictures(raw: Tensor) -> Tensor:
    """uint8 `[n, h, w]` or `[n, h, w, c]` to float32 `[n, c, h, w]` in [0, 1]."""
    last = raw.unsqueeze(-1) if raw.dim() == 3 else raw
    return last.permute(0, 3, 1, 2).float().contiguous() / 255


def choose(total: int, count: int | None, seed: int, option: str, name: str) -> Tensor:
    """All positions `0 … total - 1`, or `count` of them at random (in random order).

    Raises:
        ValueError: if `count` is below one or above `total`.
    """
    if count is None:
        return torch.arange(total)
    if not 1 <= count <= total:
        raise ValueError(f"{option}={count}: {name} has {total:,} there, so use 1 to {total}")
    return torch.randperm(total, generator=generator(seed, "choose", name, option))[:count]
