"""Data sets behind one switch, and their partitions to clients (chapter 01).

    train, test = load_dataset("glyphs")
    clients = partition(train, "dirichlet", 10, alpha=0.1)

`glyphs`, `photos`, `digits`, `breast_cancer` and `zen` lie in the package; nothing is downloaded.
The others are read from a folder that `python -m flcourse data NAME` fills.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flcourse.data.embedded import load_breast_cancer, load_digits, load_photos, load_zen
from flcourse.data.faces import load_celeba, load_lfw
from flcourse.data.files import TORCHVISION_CLASSES, load_torchvision
from flcourse.data.glyphs import load_glyphs
from flcourse.data.images import load_image
from flcourse.data.partition import partition, partition_indices
from flcourse.data.sources import default_root
from flcourse.data.types import Client, DamagedFileError, Dataset, Split

__all__ = [
    "Client",
    "DamagedFileError",
    "Dataset",
    "Split",
    "dataset_names",
    "default_root",
    "load_dataset",
    "load_image",
    "partition",
    "partition_indices",
]

EMBEDDED: dict[str, Callable[..., Split]] = {
    "glyphs": load_glyphs,
    "photos": load_photos,
    "digits": load_digits,
    "breast_cancer": load_breast_cancer,
    "zen": load_zen,
}
# These take the folder as their first argument.
ON_DISK: dict[str, Callable[..., Split]] = {
    **{name: load_torchvision(name) for name in TORCHVISION_CLASSES},
    "lfw": load_lfw,
    "celeba": load_celeba,
}


def dataset_names() -> tuple[str, ...]:
    """The names that `load_dataset` knows, those in the package first."""
    return (*EMBEDDED, *ON_DISK)


def load_dataset(name: str | None = None, root: str | Path | None = None, **options: Any) -> Split:
    """The data set `name`, as `(train, test)`.

    Args:
        name: one of `dataset_names()`; default `FLCOURSE_DATASET`, else `"glyphs"`.
        root: the folder where data sets lie; default `FLCOURSE_DATA`, else a cache of the user.
        options: what the data set's own loader takes, such as `num_train=1000` (glyphs, and all
            sets on disk), `characters="all"` (glyphs), `image_size=64` (photos),
            `attribute="Smiling"` (celeba), `min_faces=20` (lfw).

    Raises:
        ValueError: for an unknown name or option; the message lists the valid ones.
        FileNotFoundError: if files are missing; the message says where it looked and what to do.
        DamagedFileError: if a file is not what its publisher released.
    """
    name = name or os.environ.get("FLCOURSE_DATASET") or "glyphs"
    loader = EMBEDDED.get(name) or ON_DISK.get(name)
    if loader is None:
        raise ValueError(f"no data set {name!r}: use one of {', '.join(dataset_names())}")
    _check_options(name, loader, options)
    if name in EMBEDDED:
        return loader(**options)
    return loader(Path(root) if root else default_root(), **options)


def _check_options(name: str, loader: Callable[..., Split], options: dict[str, Any]) -> None:
    parameters = inspect.signature(loader).parameters.values()
    valid = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    unknown = [option for option in options if option not in valid]
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}: use {', '.join(valid)}")
