"""Pack the small real data sets (digits, breast_cancer) and the Zen of Python for the package.

    python data_scripts/make_tables.py

The digits and the table come from scikit-learn, which carries the UCI originals; the text from
Python's own module `this`. Packed, they need only numpy when the course runs.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

ASSETS = Path(__file__).parents[1] / "flcourse" / "assets"


def zen_of_python() -> str:
    """The text of PEP 20, as `import this` prints it (importing the module prints it, too)."""
    with contextlib.redirect_stdout(io.StringIO()):
        this = importlib.import_module("this")
    return codecs.decode(this.s, "rot13")


def main() -> None:
    digits = load_digits()
    np.savez_compressed(
        ASSETS / "digits.npz",
        images=digits.images.astype(np.uint8),  # whole numbers 0-16
        labels=digits.target.astype(np.uint8),
    )
    cancer = load_breast_cancer()
    np.savez_compressed(
        ASSETS / "breast_cancer.npz",
        features=cancer.data.astype(np.float32),
        labels=cancer.target.astype(np.uint8),
        classes=cancer.target_names.astype(str),
        feature_names=cancer.feature_names.astype(str),
    )
    (ASSETS / "zen.txt").write_text(zen_of_python(), encoding="utf-8")
    for name in ("digits.npz", "breast_cancer.npz", "zen.txt"):
        print(f"{name}: {(ASSETS / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
