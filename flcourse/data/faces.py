"""Faces at 64 × 64 pixels: LFW (labels: the persons) and CelebA (label: one attribute).

Neither set may be given on with this course. `python -m flcourse data lfw` downloads LFW; how to
get CelebA, and whether what you have is complete, says `python -m flcourse data celeba`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flcourse.data.files import choose
from flcourse.data.images import read_square
from flcourse.data.sources import SOURCES, fetch_command
from flcourse.data.types import DamagedFileError, Dataset, Split
from flcourse.runtime import generator

IMAGE_SIZE = 64
LFW_SIDE = 128  # of the published 250 × 250: the face without the surroundings
CELEBA_SIDE = 148  # of the published 178 × 218, as commonly cut
_TEST_SHARE = 0.2


# ---------------------------------------------------------------------------------------- LFW


def load_lfw(root: Path, *, min_faces: int = 20, seed: int = 0) -> Split:
    """Labeled Faces in the Wild, 3 × 64 × 64; a class is a person with at least `min_faces`.

    Of each person, a fifth of the pictures (at least one), chosen by `seed`, is the test half.
    With 20 faces: 62 persons, 3,023 pictures.

    Raises:
        ValueError: if `min_faces` is below two, or nobody has so many.
        FileNotFoundError: if the pictures are missing; says where it looked and how to get them.
        DamagedFileError: if a picture cannot be read.
    """
    if min_faces < 2:
        raise ValueError(f"min_faces={min_faces}: use 2 or more, one to train on and one to test")
    pictures = _lfw_pictures(find_lfw(root))
    persons = {name: files for name, files in pictures.items() if len(files) >= min_faces}
    if not persons:
        most = max(len(files) for files in pictures.values())
        raise ValueError(f"min_faces={min_faces}: nobody has so many; the most are {most}")
    rng = generator(seed, "split", "lfw")
    train: list[tuple[Path, int]] = []
    test: list[tuple[Path, int]] = []
    for label, files in enumerate(persons.values()):
        order = [files[i] for i in torch.randperm(len(files), generator=rng).tolist()]
        num_test = max(1, round(len(files) * _TEST_SHARE))
        test += [(file, label) for file in order[:num_test]]
        train += [(file, label) for file in order[num_test:]]
    classes = tuple(name.replace("_", " ") for name in persons)
    return Split(*(_lfw_half(half, classes) for half in (train, test)))


def find_lfw(root: Path) -> Path:
    """The folder that holds one folder a person: any published form of it, nested or not.

    Raises:
        FileNotFoundError: saying where it looked and how to get the pictures.
    """
    forms = ("lfw-deepfunneled", "lfw_funneled", "lfw-funneled", "lfw")
    bases = (root, root / "lfw", root / "lfw-py", root / "lfw_home")
    candidates = [base / form / nested for base in bases for form in forms for nested in (form, "")]
    for folder in candidates:
        if next(folder.glob("*/*_[0-9][0-9][0-9][0-9].jpg"), None):
            return folder
    raise FileNotFoundError(
        f"LFW is not here: looked for {', '.join(forms)} (also one folder deeper) in "
        f"{', '.join(map(str, bases))}. Get it with: {fetch_command('lfw', root)}"
    )


def _lfw_pictures(folder: Path) -> dict[str, list[Path]]:
    people = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    found = {person.name: sorted(person.glob(f"{person.name}_*.jpg")) for person in people}
    return {name: files for name, files in found.items() if files}


def _lfw_half(samples: list[tuple[Path, int]], classes: tuple[str, ...]) -> Dataset:
    return Dataset(
        name="lfw",
        inputs=_read_pictures([file for file, _ in samples], LFW_SIDE, "lfw"),
        labels=torch.tensor([label for _, label in samples]),
        classes=classes,
        source=SOURCES["lfw"].title,
        licence=SOURCES["lfw"].licence,
    )


# ------------------------------------------------------------------------------------- CelebA


@dataclass(frozen=True)
class CelebaFiles:
    """Where the parts of a CelebA folder lie (`identity` is optional)."""

    pictures: Path
    attributes: Path
    halves: Path
    identity: Path | None


def load_celeba(
    root: Path,
    *,
    attribute: str = "Smiling",
    num_train: int | None = 10_000,
    num_test: int | None = 2_000,
    seed: int = 0,
) -> Split:
    """CelebA, 3 × 64 × 64, one of its 40 attributes as the label; its published halves.

    Where `identity_CelebA.txt` lies there, the person is the sample's writer. `num_train` and
    `num_test` choose so many at random, or all there are if fewer; all 182,732 would take 9 GB.

    Raises:
        ValueError: for an unknown attribute; the message lists the valid ones.
        FileNotFoundError: if files are missing; says where it looked and how to get them.
        DamagedFileError: if a picture cannot be read, or the lists do not match.
    """
    files = find_celeba(root)
    labels = read_column(files.attributes, attribute)
    halves = read_column(files.halves, "partition")
    people = read_column(files.identity, "identity") if files.identity else None
    if unknown := [n for n in halves if n not in labels or (people and n not in people)]:
        raise DamagedFileError(
            f"{files.halves.name} names {unknown[0]}, which {files.attributes.name} (or the list "
            "of persons) does not: the lists belong to different releases, or one is cut short"
        )

    def half(code: int, part: str, count: int | None) -> Dataset:
        names = [name for name, published in halves.items() if published == code]
        if count is not None and count >= 1:
            count = min(count, len(names))
        at = choose(len(names), count, seed, f"num_{part}", "celeba").tolist()
        return _celeba_half(files.pictures, [names[i] for i in at], attribute, labels, people)

    return Split(half(0, "train", num_train), half(2, "test", num_test))


def find_celeba(root: Path) -> CelebaFiles:
    """The parts of CelebA: as published (`Img`, `Anno`, `Eval`), flat, or with Kaggle's CSV.

    Raises:
        FileNotFoundError: saying what is missing, where it looked and how to get it.
    """
    bases = [root, *(root / name for name in ("celeba", "CelebA", "celeba-dataset"))]

    def first(*patterns: str) -> Path | None:
        paths = (base / pattern for base in bases for pattern in patterns)
        return next((path for path in paths if path.exists()), None)

    def lists(stem: str, folder: str) -> Path | None:
        return first(
            *(f"{at}{stem}.{kind}" for at in ("", f"{folder}/") for kind in ("txt", "csv"))
        )

    nested = "img_align_celeba/img_align_celeba"
    parts = {
        "img_align_celeba": first(
            nested, f"Img/{nested}", "img_align_celeba", "Img/img_align_celeba"
        ),
        "list_attr_celeba": lists("list_attr_celeba", "Anno"),
        "list_eval_partition": lists("list_eval_partition", "Eval"),
    }
    missing = [name for name, path in parts.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"CelebA is not complete: no {' and no '.join(missing)} (.txt or .csv) in "
            f"{', '.join(map(str, bases))}. How to get it: {fetch_command('celeba', root)}"
        )
    pictures, attributes, halves = (path for path in parts.values() if path)
    return CelebaFiles(pictures, attributes, halves, lists("identity_CelebA", "Anno"))


def read_column(path: Path, column: str) -> dict[str, int]:
    """One column of a CelebA list, by file name; as published (spaces) or Kaggle's CSV.

    The published attribute list starts with a count and a header; the others have no header (then
    their only column is meant).
    """
    rows = _rows(path)
    first = next(rows, [])
    header: list[str] = []
    while first and not first[0].endswith(".jpg"):
        header, first = first, next(rows, [])
    names = [name for name in header if name != "image_id"] or [column]
    if column not in names:
        raise ValueError(f"{path.name} has no attribute {column!r}: use one of {', '.join(names)}")
    at = names.index(column) + 1
    try:
        return {row[0]: int(row[at]) for row in (first, *rows) if row}
    except (IndexError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: a row is too short or no number") from error


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as file:
        yield from (line.replace(",", " ").split() for line in file if line.strip())


def _celeba_half(
    pictures: Path,
    names: list[str],
    attribute: str,
    labels: dict[str, int],
    people: dict[str, int] | None,
) -> Dataset:
    return Dataset(
        name="celeba",
        inputs=_read_pictures([pictures / name for name in names], CELEBA_SIDE, "celeba"),
        labels=torch.tensor([int(labels[name] > 0) for name in names], dtype=torch.int64),
        classes=(f"not {attribute}", attribute),
        writers=torch.tensor([people[name] for name in names]) if people else None,
        source=SOURCES["celeba"].title,
        licence=SOURCES["celeba"].licence,
    )


def _read_pictures(paths: list[Path], side: int, name: str) -> Tensor:
    """float32 `[n, 3, 64, 64]`; one picture is read at a time, so memory holds the crops only."""
    pictures = np.empty((len(paths), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for index, path in enumerate(paths):
        try:
            pictures[index] = read_square(path, IMAGE_SIZE, side)
        except ValueError as error:
            raise DamagedFileError(f"{name}: {error}; unpack its archive again") from error
    return torch.from_numpy(pictures).float().div_(255)
