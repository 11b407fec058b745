"""Poisoned data: the liar trains as everybody does, on samples that it has changed. Chapter 16."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from flcourse.byzantine.screening import whole_number
from flcourse.data import Client


def label_flip(
    client: Client, num_classes: int, *, source: int | None = None, target: int | None = None
) -> Client:
    """The same client with false labels: every ``y`` becomes ``num_classes − 1 − y``.

    With ``source`` and ``target`` only the samples of one class change, all to the other: what the
    model forgets is then chosen. In a class count that is odd, the middle class keeps its label.
    Its rows are honestly trained: no check of a row's form can tell. Knows: its own samples only.

    Source: Biggio et al. 2012, "Poisoning Attacks against Support Vector Machines" (the idea);
    Fang et al. 2020, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    section 5 (``y → C − 1 − y``). Chapter 16.
    Raises ``ValueError`` for labels or classes outside 0 to ``num_classes − 1``, or if only one of
    ``source`` and ``target`` is given.
    """
    if (source is None) != (target is None):
        raise ValueError(f"source={source} and target={target}: give both, or none of them")
    labels = client.labels
    seen = [*labels.unique().tolist(), *(c for c in (source, target) if c is not None)]
    if outside := [label for label in seen if not 0 <= label < num_classes]:
        raise ValueError(f"label {outside[0]} is none of the {num_classes} classes, from 0")
    flipped = num_classes - 1 - labels
    if source is not None and target is not None:
        flipped = labels.masked_fill(labels == source, target)
    return Client(client.index, client.inputs, flipped)


def poison(clients: Sequence[Client], liars: Collection[int], num_classes: int) -> list[Client]:
    """The same clients, with those whose index is among the ``liars`` under ``label_flip``."""
    lying = liar_indices(liars)
    return [
        label_flip(client, num_classes) if int(client.index) in lying else client
        for client in clients
    ]


def liar_indices(liars: Collection[int]) -> frozenset[int]:
    """Client indices as plain numbers: a tensor's elements equal no number when looked up in a set.

    Raises ``ValueError`` for what is no whole number, such as a mask.
    """
    found = [liar.item() if isinstance(liar, Tensor) else liar for liar in liars]
    if wrong := [liar for liar in found if not whole_number(liar)]:
        raise ValueError(
            f"liars={found}: {wrong[0]!r} is no client index; of a mask give mask.nonzero()[:, 0]"
        )
    return frozenset(int(liar) for liar in found)
