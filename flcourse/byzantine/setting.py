"""The federation in which lies and rules meet: who holds what, who lies, who is tested. Chapter 16.

world = federation(Setting(num_byzantine=4), seed=0)
world.clients, world.liars, world.model
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flcourse.data import Client, Dataset, Split, load_dataset, partition
from flcourse.runs import make_model
from flcourse.runtime import generator


@dataclass(frozen=True)
class Setting:
    """The federation that a cell is measured in; a seed deals data, names liars, starts a model.

    Attributes:
        data_set: a name of ``load_dataset``; ``num_train`` samples of it, or all.
        num_clients: ``n``, of which ``num_byzantine`` (``f``) lie.
        partition: ``"iid"`` or another of ``flcourse.data.partition``, with ``alpha``.
        model: as ``flcourse.runs.make_model`` has it.
        rounds: of communication; epochs, batch_size, lr, momentum: as in ``flcourse.fedavg.train``.
        root_size: clean samples of the server's own, for ``fltrust``; no client holds them.
        clip: ``centered_clipping`` cuts at so many times the median length of a round's rows.
        longest: ``norm_filter`` keeps rows up to so many times that length.
    """

    data_set: str = "digits"
    num_train: int | None = None
    num_clients: int = 20
    num_byzantine: int = 4
    partition: str = "dirichlet"
    alpha: float = 0.5
    model: str = "mlp"
    rounds: int = 10
    epochs: int = 5
    batch_size: int | None = 32
    lr: float = 0.3
    momentum: float = 0.0
    root_size: int = 100
    clip: float = 1.0
    longest: float = 2.0

    @property
    def local(self) -> dict[str, Any]:
        """The options of local training."""
        names = ("epochs", "batch_size", "lr", "momentum")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Federation:
    """Clients, liars, test samples, root set and a fresh model, all from a setting and a seed."""

    clients: list[Client]
    liars: frozenset[int]
    test: Dataset
    root: Client
    model: nn.Module
    num_classes: int


def federation(setting: Setting, seed: int, folder: str | None = None) -> Federation:
    """The federation of a setting and a seed; ``folder`` is where data sets lie.

    The root set is drawn first and dealt to no client. Which clients lie is drawn at random, the
    same for every lie and rule. Chapter 16.
    Raises ``ValueError`` as ``load_dataset``, ``partition`` and ``make_model`` do, and unless
    ``0 ≤ f < n`` and the root set leaves samples to deal.
    """
    n, f = setting.num_clients, setting.num_byzantine
    if not 0 <= f < n:
        raise ValueError(f"num_byzantine={f} of num_clients={n}: leave at least one honest client")
    split = _split(setting.data_set, setting.num_train, folder)
    if not 1 <= setting.root_size < len(split.train):
        raise ValueError(f"root_size={setting.root_size} of {len(split.train)} samples")
    order = torch.randperm(len(split.train), generator=generator(seed, "root set"))
    kept = split.train.subset(order[: setting.root_size])
    dealt = split.train.subset(order[setting.root_size :])
    drawn = torch.randperm(n, generator=generator(seed, "liars"))[:f]
    return Federation(
        partition(dealt, setting.partition, n, seed=seed, alpha=setting.alpha),
        frozenset(drawn.tolist()),
        split.test,
        Client(-1, kept.inputs, kept.labels),
        make_model(setting.model, split.train, seed),
        len(split.train.classes),
    )


@functools.lru_cache(maxsize=2)
def _split(name: str, num_train: int | None, folder: str | None) -> Split:
    sizes = {} if num_train is None else {"num_train": num_train}
    return load_dataset(name, folder, **sizes)
