"""Files that lie in the package, so that a wheel brings its data along (chapter 01)."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_arrays(name: str) -> dict[str, NDArray[Any]]:
    """All arrays of `flcourse/assets/NAME`, an npz file."""
    asset = resources.files("flcourse") / "assets" / name
    with asset.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def read_text(name: str) -> str:
    """The text of `flcourse/assets/NAME`."""
    return (resources.files("flcourse") / "assets" / name).read_text(encoding="utf-8")
