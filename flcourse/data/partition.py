"""Who holds which samples: five ways to deal a data set to clients (chapter 01).

Every way deals each sample to exactly one client, leaves no client empty, and gives the same answer
for the same seed. What cannot be done is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flcourse.data.types import Client, Dataset
from flcourse.runtime import derive_seed, generator

MAX_TRIES = 1_000


def partition(
    dataset: Dataset,
    how: str,
    num_clients: int,
    *,
    seed: int = 0,
    alpha: float = 0.5,
    shards_per_client: int = 2,
) -> list[Client]:
    """Deal `dataset` to `num_clients` clients.

    Args:
        how: `"iid"`, `"dirichlet"` (labels unevenly, `alpha`), `"shards"` (few labels each,
            `shards_per_client`), `"quantity"` (sizes unevenly, `alpha`) or `"writer"`.
        num_clients: how many clients; each gets at least one sample.
        seed: the same seed gives the same clients.
        alpha: concentration of the Dirichlet distribution; small is uneven, large is even.
        shards_per_client: pieces of the label-sorted data that each client gets.

    Raises:
        ValueError: for an unknown `how`, or for a request that cannot be met.
    """
    parts = partition_indices(
        dataset, how, num_clients, seed=seed, alpha=alpha, shards_per_client=shards_per_client
    )
    return [
        Client(index, dataset.inputs[part], dataset.labels[part])
        for index, part in enumerate(parts)
    ]


def partition_indices(
    dataset: Dataset,
    how: str,
    num_clients: int,
    *,
    seed: int = 0,
    alpha: float = 0.5,
    shards_per_client: int = 2,
) -> list[Tensor]:
    """As `partition`, but the positions of each client's samples in the data set, int64, sorted."""
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "iid": lambda: split_iid(len(dataset), num_clients, seed),
        "dirichlet": lambda: split_dirichlet(dataset.labels, num_clients, alpha, seed),
        "shards": lambda: split_shards(dataset.labels, num_clients, shards_per_client, seed),
        "quantity": lambda: split_quantity(len(dataset), num_clients, alpha, seed),
        "writer": lambda: split_writers(dataset, num_clients, seed),
    }
    if how not in ways:
        raise ValueError(f"how={how!r} is no partition: use one of {', '.join(ways)}")
    _check_counts(len(dataset), num_clients)
    return [part.sort().values for part in ways[how]()]


def split_iid(num_samples: int, num_clients: int, seed: int) -> list[Tensor]:
    """Shuffle and cut into `num_clients` pieces whose sizes differ by at most one.

    Raises:
        ValueError: if there are more clients than samples.
    """
    _check_counts(num_samples, num_clients)
    order = torch.randperm(num_samples, generator=generator(seed, "partition", "iid"))
    return list(order.tensor_split(num_clients))


def split_dirichlet(labels: Tensor, num_clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Cut each class `k` by the clients' shares of it, drawn from `Dirichlet(alpha, …, alpha)`.

    This is the form of Yurochkin et al. 2019 and Li et al. 2022 (shares of each class over the
    clients, so that the clients' sizes differ, too). Hsu et al. 2019 draw the shares the other way
    round (classes within each client, equal sizes). All classes are drawn again, up to 1,000 times,
    until no client is empty, so the result follows the distribution *given* that nobody is empty.

    Raises:
        ValueError: if `alpha` is not positive and finite, or if every draw left a client empty.
    """
    _check_alpha(alpha)
    rng = np.random.default_rng(derive_seed(seed, "partition", "dirichlet"))
    classes = [torch.nonzero(labels == label).flatten() for label in labels.unique()]
    sizes = [len(members) for members in classes]
    counts = _draw_until_none_empty(
        lambda: np.stack([_cut(size, rng.dirichlet([alpha] * num_clients)) for size in sizes]),
        f"dirichlet with alpha={alpha:g} for {num_clients} clients of {len(labels)} samples",
    )
    shuffle = generator(seed, "partition", "dirichlet", "order")
    dealt = [
        members[torch.randperm(len(members), generator=shuffle)].split(row.tolist())
        for members, row in zip(classes, counts, strict=True)
    ]
    return [torch.cat(pieces) for pieces in zip(*dealt, strict=True)]


def split_shards(
    labels: Tensor, num_clients: int, shards_per_client: int, seed: int
) -> list[Tensor]:
    """Sort by label, cut into `num_clients · shards_per_client` shards, deal them at random.

    McMahan et al. 2017, section 3: with two shards a client, most clients see two labels only.

    Raises:
        ValueError: if there are more shards than samples.
    """
    num_shards = num_clients * shards_per_client
    if not shards_per_client >= 1 or num_shards > len(labels):
        raise ValueError(
            f"shards_per_client={shards_per_client} for {num_clients} clients asks for "
            f"{num_shards} shards of {len(labels)} samples: use 1 to {len(labels) // num_clients}"
        )
    rng = generator(seed, "partition", "shards")
    shuffled = torch.randperm(len(labels), generator=rng)  # which of a label's samples: at random
    by_label = shuffled[labels[shuffled].argsort(stable=True)]
    shards = by_label.tensor_split(num_shards)
    dealt = torch.randperm(num_shards, generator=rng).reshape(num_clients, shards_per_client)
    return [torch.cat([shards[shard] for shard in row]) for row in dealt.tolist()]


def split_quantity(num_samples: int, num_clients: int, alpha: float, seed: int) -> list[Tensor]:
    """Shuffle, and cut into sizes in proportion to one draw of `Dirichlet(alpha, …, alpha)`.

    Li et al. 2022, "quantity skew": labels are mixed alike, sizes are not. Drawn again, up to 1,000
    times, until no client is empty.

    Raises:
        ValueError: if `alpha` is not positive and finite, or if every draw left a client empty.
    """
    _check_alpha(alpha)
    rng = np.random.default_rng(derive_seed(seed, "partition", "quantity"))
    counts = _draw_until_none_empty(
        lambda: _cut(num_samples, rng.dirichlet([alpha] * num_clients))[None],
        f"quantity with alpha={alpha:g} for {num_clients} clients of {num_samples} samples",
    )
    order = torch.randperm(num_samples, generator=generator(seed, "partition", "quantity", "order"))
    return list(order.split(counts[0].tolist()))


def split_writers(dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
    """Each writer's samples stay together; the writers are dealt to the clients at random.

    With as many clients as writers, everyone holds exactly one.

    Raises:
        ValueError: if the data set knows no writers, or fewer of them than clients.
    """
    if dataset.writers is None:
        raise ValueError(
            f"{dataset.name} does not know who made its samples; partition by 'dirichlet' or "
            "'shards' instead, or use glyphs, whose writers are typefaces"
        )
    writers = dataset.writers.unique()
    if num_clients > len(writers):
        raise ValueError(
            f"num_clients={num_clients}, but {dataset.name} has {len(writers)} writers in these "
            f"{len(dataset)} samples: use 1 to {len(writers)}"
        )
    order = torch.randperm(len(writers), generator=generator(seed, "partition", "writer"))
    groups = writers[order].tensor_split(num_clients)
    return [torch.nonzero(torch.isin(dataset.writers, group)).flatten() for group in groups]


def _check_counts(num_samples: int, num_clients: int) -> None:
    if not 1 <= num_clients <= num_samples:
        raise ValueError(
            f"num_clients={num_clients} for {num_samples} samples: no client may be empty, "
            f"so use 1 to {num_samples}"
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha={alpha}: use a positive finite number, such as 0.1 or 1")


def _cut(size: int, shares: np.ndarray) -> np.ndarray:
    """Whole counts that add up to `size`: the cumulated shares, rounded down, then differenced."""
    edges = (np.cumsum(shares)[:-1] * size).astype(np.int64).clip(0, size)
    return np.diff(edges, prepend=0, append=size)


def _draw_until_none_empty(draw: Callable[[], np.ndarray], request: str) -> np.ndarray:
    """The first of at most 1,000 draws `[rows, clients]` in which every column adds up to ≥ 1."""
    for _ in range(MAX_TRIES):
        counts = draw()
        if (counts.sum(axis=0) > 0).all():
            return counts
    raise ValueError(
        f"{request}: each of {MAX_TRIES:,} draws left a client without samples; "
        "use a larger alpha, fewer clients, or more samples"
    )
