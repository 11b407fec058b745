"""What every data set is in this course: inputs, labels and where they come from (chapter 01)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class DamagedFileError(OSError):
    """A file of a data set is not what its publisher released (checksum or structure differ)."""


@dataclass(frozen=True)
class Dataset:
    """Samples with labels, in units that every chapter shares.

    Attributes:
        name: what `load_dataset` calls it.
        inputs: pictures `[n, channels, height, width]` float32 in [0, 1]; or table rows
            `[n, features]` float32 in their real units; or text `[n, words]` int64 tokens.
        labels: `[n]` int64, indices into `classes`.
        classes: the name of each label (for text: the word of each token).
        writers: `[n]` int64, who made each sample (for glyphs: the typeface), where that is known.
        feature_names: the names of a table's columns.
        source: where the data come from.
        licence: under which terms.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    writers: Tensor | None = None
    feature_names: tuple[str, ...] | None = None
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        counts = {
            len(part) for part in (self.inputs, self.labels, self.writers) if part is not None
        }
        if len(counts) > 1:
            raise ValueError(
                f"{self.name}: {len(self.inputs)} inputs, {len(self.labels)} labels and "
                f"{'no' if self.writers is None else len(self.writers)} writers do not match; "
                "give one label (and one writer, if any) for each input"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> Dataset:
        """The samples at `indices`, in that order."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        return dataclasses.replace(
            self,
            inputs=self.inputs[at],
            labels=self.labels[at],
            writers=None if self.writers is None else self.writers[at],
        )

    def to(self, device: torch.device | str) -> Dataset:
        """The same samples on `device` (the writers stay where they are)."""
        return dataclasses.replace(
            self, inputs=self.inputs.to(device), labels=self.labels.to(device)
        )


class Split(NamedTuple):
    """The same data set twice: samples to train on and samples to test on, none in both."""

    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class Client:
    """One participant and the samples that never leave it (chapter 01)."""

    index: int
    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Client:
        """The same client with its samples on `device`."""
        return Client(self.index, self.inputs.to(device), self.labels.to(device))
